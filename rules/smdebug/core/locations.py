"""Where smdebug keeps what: event files, indexes, timelines."""

from __future__ import annotations

import os
import re
from typing import Any

from stepwatch.probe.mode_keys import ModeKeys
from stepwatch.probe.smdebug.errors import SMDebugValueError


class TensorLocation:
    """A tensor in an event file: ``length`` bytes at ``start_idx``."""

    def __init__(
        self,
        tname: str,
        mode: ModeKeys,
        mode_step: int,
        event_file_name: str,
        start_idx: int,
        length: int,
        worker: str,
    ) -> None:
        self.tensorname = tname
        self.mode = mode
        self.mode_step = int(mode_step)
        self.event_file_name = event_file_name
        self.start_idx = start_idx
        self.length = length
        self.worker = worker

    def to_dict(self) -> dict[str, Any]:
        """Its entry in an index."""
        return {"tensorname": self.tensorname, "start_idx": self.start_idx, "length": self.length}


class TensorShape:
    """A tensor of which the shape was saved."""

    def __init__(
        self, name: str, mode: ModeKeys, mode_step: int, shape: tuple[int, ...], original_name: str | None = None
    ) -> None:
        self.name = name
        self.mode = mode
        self.mode_step = mode_step
        self.shape = shape
        self.original_name = original_name or name

    def to_dict(self) -> dict[str, Any]:
        """Its entry in an index."""
        return {"tensorname": self.name, "originalname": self.original_name, "shape": self.shape}


class EventFileLocation:
    """Name of the file in which a worker saves a step."""

    def __init__(self, step_num: int, worker_name: str) -> None:
        self.step_num = int(step_num)
        self.worker_name = worker_name

    def get_step_num_str(self) -> str:
        """The step in twelve digits."""
        return f"{self.step_num:012d}"

    def get_filename(self) -> str:
        """The name."""
        return f"{self.get_step_num_str()}_{self.worker_name}.tfevents"

    @classmethod
    def match_regex(cls, s: str) -> tuple[int, str] | None:
        """Step and worker of a name, or None."""
        match = re.search(r"(\d+)_(.+)\.tfevents$", s)
        return (int(match[1]), match[2]) if match else None

    @classmethod
    def load_filename(cls, s: str, print_error: bool = True) -> EventFileLocation | None:
        """From a path; where it is that of no event file, None unless ``print_error``.

        Raises:
            SMDebugValueError: it is that of no event file.
        """
        found = cls.match_regex(os.path.basename(s))
        if found is None:
            if not print_error:
                return None
            raise SMDebugValueError(f"{s}: expected STEP_WORKER.tfevents")
        return cls(*found)


class TensorFileLocation(EventFileLocation):
    """The same below a job's directory."""

    @staticmethod
    def get_dir(trial_dir: str) -> str:
        """Folder of all event files."""
        return os.path.join(trial_dir, "events")

    def get_file_location(self, trial_dir: str = "") -> str:
        """The path."""
        return os.path.join(self.get_step_dir_path(trial_dir, self.step_num), self.get_filename())

    @classmethod
    def get_step_dirs(cls, trial_dir: str) -> list[str]:
        """Names of the folders of steps."""
        return os.listdir(cls.get_dir(trial_dir))

    @classmethod
    def get_step_dir_path(cls, trial_dir: str, step_num: int) -> str:
        """Folder of a step."""
        return os.path.join(cls.get_dir(trial_dir), f"{step_num:012d}")


class TensorboardFileLocation(EventFileLocation):
    """A file for TensorBoard, in the folder of its mode."""

    def __init__(self, step_num: int, worker_name: str, mode: ModeKeys | None = None) -> None:
        super().__init__(step_num, worker_name)
        self.mode = mode

    def get_file_location(self, base_dir: str = "") -> str:
        """The path."""
        return os.path.join(base_dir, (self.mode or ModeKeys.GLOBAL).name, self.get_filename())


class IndexFileLocationUtils:
    """Names of the files of an index, a thousand steps in a folder."""

    MAX_INDEX_FILE_NUM_IN_INDEX_PREFIX = 1000

    @classmethod
    def get_index_prefix_for_step(cls, step_num: int) -> str:
        """Folder of a step."""
        return f"{step_num // cls.MAX_INDEX_FILE_NUM_IN_INDEX_PREFIX:09d}"

    @classmethod
    def next_index_prefix_for_step(cls, step_num: int) -> str:
        """The folder after that of a step."""
        return cls.get_index_prefix_for_step(step_num + cls.MAX_INDEX_FILE_NUM_IN_INDEX_PREFIX)

    @classmethod
    def get_index_key_for_step(cls, trial_prefix: str, step_num: int, worker_name: str) -> str:
        """Path of the file of a step and worker."""
        folder = os.path.join(cls.get_index_path(trial_prefix), cls.get_index_prefix_for_step(step_num))
        return os.path.join(folder, f"{step_num:012d}_{worker_name}.json")

    _get_index_key = get_index_key_for_step

    @staticmethod
    def parse_step_from_index_file_name(index_file_name: str) -> int:
        """The step of a file."""
        return int(os.path.basename(index_file_name).partition("_")[0])

    get_step_from_idx_filename = parse_step_from_index_file_name

    @staticmethod
    def get_index_path(path: str) -> str:
        """Folder of the index below a job's directory."""
        return os.path.join(path, "index")

    @staticmethod
    def get_prefix_from_index_file(index_file: str) -> str:
        """The job's directory of a file."""
        return "/".join(index_file.split("/")[:-3])
