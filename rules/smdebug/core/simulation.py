"""Stands in for a SageMaker container, or for a plain script, while a block runs: for tests of training scripts."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TypeVar

from stepwatch.rules.smdebug.core.constants import (
    CONFIG_FILE_PATH_ENV_STR,
    DEFAULT_SAGEMAKER_OUTDIR,
    DEFAULT_SAGEMAKER_TENSORBOARD_PATH,
    TENSORBOARD_CONFIG_FILE_PATH_ENV_STR,
)

_JOB = "TRAINING_JOB_NAME"
_Self = TypeVar("_Self", bound="SagemakerSimulator")
_Script = TypeVar("_Script", bound="ScriptSimulator")


class SagemakerSimulator:
    """A container: files and variables as SageMaker gives them, an empty directory for tensors.

    Args:
        json_config_path: where the hook's configuration is written.
        tensorboard_dir: what the configuration for TensorBoard names.
        training_job_name: name of the job.
        json_file_contents: the hook's configuration.
        cleanup: whether old tensors go before, and files and variables afterwards.
    """

    def __init__(
        self,
        json_config_path: str = "/tmp/zcc_config.json",
        tensorboard_dir: str = "/tmp/tensorboard",
        training_job_name: str = "sm_job",
        json_file_contents: str = "{}",
        cleanup: bool = True,
    ) -> None:
        self.out_dir = DEFAULT_SAGEMAKER_OUTDIR
        self.json_config_path = json_config_path
        self.tb_json_config_path = DEFAULT_SAGEMAKER_TENSORBOARD_PATH
        self.tensorboard_dir = tensorboard_dir
        self.training_job_name = training_job_name
        self.json_file_contents = json_file_contents
        self.cleanup = cleanup

    def __enter__(self: _Self) -> _Self:
        if self.cleanup:
            shutil.rmtree(self.out_dir, ignore_errors=True)
        os.environ[CONFIG_FILE_PATH_ENV_STR] = self.json_config_path
        os.environ[TENSORBOARD_CONFIG_FILE_PATH_ENV_STR] = self.tb_json_config_path
        os.environ[_JOB] = self.training_job_name
        contents = {
            self.json_config_path: self.json_file_contents,
            self.tb_json_config_path: json.dumps({"LocalPath": self.tensorboard_dir}),
        }
        for path, content in contents.items():
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(content, encoding="utf-8")
        return self

    def __exit__(self, *error: object) -> None:
        if not self.cleanup:
            return
        for path in (self.json_config_path, self.tb_json_config_path):
            Path(path).unlink(missing_ok=True)
        for variable in (CONFIG_FILE_PATH_ENV_STR, TENSORBOARD_CONFIG_FILE_PATH_ENV_STR, _JOB):
            os.environ.pop(variable, None)


class ScriptSimulator:
    """A plain script: empty directories.

    Args:
        out_dir: directory of the run.
        tensorboard_dir: directory for TensorBoard, where there is one.
    """

    def __init__(self, out_dir: str = "/tmp/test", tensorboard_dir: str | None = None) -> None:
        self.out_dir = out_dir
        self.tensorboard_dir = tensorboard_dir

    def __enter__(self: _Script) -> _Script:
        self._clean()
        return self

    def __exit__(self, *error: object) -> None:
        self._clean()

    def _clean(self) -> None:
        for folder in (self.out_dir, self.tensorboard_dir):
            if folder:
                shutil.rmtree(folder, ignore_errors=True)
