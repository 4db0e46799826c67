"""Names of files, keys and variables that smdebug has as constants."""

from __future__ import annotations

from stepwatch.probe.mode_keys import ModeKeys
from stepwatch.probe.smdebug import state_store
from stepwatch.probe.smdebug.collection import BUILT_IN, SCALAR_COLLECTIONS
from stepwatch.probe.smdebug.configuration import DEFAULT_INTERVAL
from stepwatch.probe.smdebug.json_config import (
    DEFAULT_OUT_DIR,
    DEFAULT_PATH,
    DEFAULT_TENSORBOARD_PATH,
    PATH_VARIABLE,
    TENSORBOARD_VARIABLE,
)
from stepwatch.probe.store.smdebug.directory import END_FILE, REDUCTION_PREFIX

ALLOWED_MODES = list(ModeKeys)
ALLOWED_MODE_NAMES = [mode.name for mode in ModeKeys]
MODE_STEP_PLUGIN_NAME = "mode_step"
MODE_PLUGIN_NAME = "mode"


ALLOWED_REDUCTIONS = ["min", "max", "mean", "std", "variance", "sum", "prod"]
ALLOWED_NORMS = ["l1", "l2"]
REDUCTIONS_PREFIX = REDUCTION_PREFIX
REDUCTION_CONFIG_VERSION_NUM = "v0"

DEFAULT_SAVE_CONFIG_INTERVAL = DEFAULT_INTERVAL
DEFAULT_SAVE_CONFIG_START_STEP = 0
DEFAULT_SAVE_CONFIG_END_STEP = None
DEFAULT_SAVE_CONFIG_SAVE_STEPS: list[int] = []

SUMMARIES_COLLECTIONS = {"tensorflow_summaries"}
SM_METRIC_COLLECTIONS = {"losses", "metrics", "sm_metrics"}
NON_REDUCTION_COLLECTIONS = SCALAR_COLLECTIONS | SUMMARIES_COLLECTIONS
NON_HISTOGRAM_COLLECTIONS = NON_REDUCTION_COLLECTIONS
DEFAULT_PYTORCH_COLLECTIONS = set(BUILT_IN)
DEFAULT_MXNET_COLLECTIONS = set(BUILT_IN)
DEFAULT_TF_COLLECTIONS = {
    *BUILT_IN,
    *("inputs", "layers", "metrics", "optimizer_variables", "outputs", "sm_metrics"),
}
DEFAULT_XGBOOST_COLLECTIONS = {
    *("all", "default", "hyperparameters", "labels", "predictions", "trees"),
    *("average_shap", "feature_importance", "full_shap"),
}
DEFAULT_SAVED_COLLECTIONS = ["losses"]

CLAIM_FILENAME = "claim.smd"
END_OF_JOB_FILENAME = END_FILE
DEFAULT_WORKER_NAME = "worker_0"
DEFAULT_COLLECTIONS_FILE_NAME = f"{DEFAULT_WORKER_NAME}_collections.json"
SMDEBUG_TEMP_PATH_SUFFIX = ".tmp"
STEP_NUMBER_FORMATTING_LENGTH = "012"

CONFIG_FILE_PATH_ENV_STR = PATH_VARIABLE
DEFAULT_CONFIG_FILE_PATH = DEFAULT_PATH
DEFAULT_SAGEMAKER_OUTDIR = DEFAULT_OUT_DIR
DEFAULT_SAGEMAKER_METRICS_PATH = "SAGEMAKER_METRICS_DIRECTORY"
TENSORBOARD_CONFIG_FILE_PATH_ENV_STR = TENSORBOARD_VARIABLE
DEFAULT_SAGEMAKER_TENSORBOARD_PATH = DEFAULT_TENSORBOARD_PATH
CHECKPOINT_CONFIG_FILE_PATH_ENV_VAR = state_store.PATH_VARIABLE
CHECKPOINT_DIR_KEY = state_store.DIRECTORY_KEY
DEFAULT_CHECKPOINT_CONFIG_FILE = state_store.DEFAULT_PATH

CONFIG_OUTDIR_KEY = "LocalPath"
CONFIG_HOOK_PARAMS_KEY = "HookParameters"
CONFIG_COLLECTION_CONFIG_KEY = "CollectionConfigurations"
CONFIG_COLLECTION_NAME_KEY = "CollectionName"
CONFIG_COLLECTION_PARAMS_KEY = "CollectionParameters"
CONFIG_DRYRUN_KEY = "dry_run"
CONFIG_INCLUDE_REGEX_KEY = "include_regex"
CONFIG_INCLUDE_WORKERS_KEY = "include_workers"
CONFIG_RDN_CFG_KEY = "reduction_config"
CONFIG_REDUCTION_CONFIGS_KEY = "reduction_configs"
CONFIG_SAVE_ALL_KEY = "save_all"
CONFIG_SAVE_CONFIGS_KEY = "save_configs"
EXPORT_TENSORBOARD_KEY = "export_tensorboard"
TENSORBOARD_DIR_KEY = "tensorboard_dir"

INCOMPLETE_STEP_WAIT_WINDOW_KEY = "SMDEBUG_INCOMPLETE_STEP_WAIT_WINDOW"
INCOMPLETE_STEP_WAIT_WINDOW_DEFAULT = 1000
MISSING_EVENT_FILE_RETRY_LIMIT_KEY = "SMDEBUG_MISSING_EVENT_FILE_RETRY_LIMIT"
MISSING_EVENT_FILE_RETRY_LIMIT = 100
TRAINING_END_DELAY_REFRESH_KEY = "SMDEBUG_TRAINING_END_DELAY_REFRESH"
TRAINING_END_DELAY_REFRESH_DEFAULT = 1
LOG_DUPLICATION_THRESHOLD = 3
METADATA_FILENAME = state_store.STATES_FILE
METADATA_FILENAME_S3_UPLOADED = f"{METADATA_FILENAME}.sagemaker-uploaded"
LATEST_GLOBAL_STEP_SEEN = state_store.SEEN
LATEST_GLOBAL_STEP_SAVED = state_store.SAVED
LATEST_MODE_STEP = state_store.MODE_STEPS
TRAINING_RUN = state_store.RUN
CALLABLE_CACHE_ENV_VAR = "SMDEBUG_KERAS_CALLABLE_CACHE_TYPE"
DEFAULT_CALLABLE_CACHE = "CACHE_PER_MODE"
PROFILER_REPORT_VERSION = "profiler_report_v1"
PROFILER_TELEMETRY_URL = "https://sm-profiler-report-{region}.s3.{region}.amazonaws.com"
PAPERMILL_EXECUTION_ENV_VAR = "PAPERMILL_EXECUTION"

ENV_RULE_STOP_SIGNAL_FILENAME = "SAGEMAKER_ENV_RULE_STOP_SIGNAL_FILE"
DEFAULT_GRACETIME_FOR_RULE_STOP_SEC = 60
"""Seconds after the signal from which rules are to end."""


def str_to_mode_keys(mode_str: str) -> ModeKeys:
    """A mode by its name in small letters.

    Raises:
        ValueError: there is none of that name.
    """
    if mode_str.upper() not in ALLOWED_MODE_NAMES or mode_str != mode_str.lower():
        raise ValueError(f"mode is {mode_str!r}; expected one of train, eval, predict, global")
    return ModeKeys[mode_str.upper()]
