"""Where smdebug keeps what: event files, indexes, timelines."""

from __future__ import annotations

import os
import re
import time
from datetime import datetime, timezone
from typing import Any

from stepwatch.probe.mode_keys import ModeKeys
from stepwatch.probe.smdebug.errors import SMDebugValueError
from stepwatch.rules.smdebug.core.constants import (
    CONVERT_TO_MICROSECS,
    DEFAULT_PREFIX,
    MERGEDTIMELINE_SUFFIX,
    PYTHONTIMELINE_SUFFIX,
    TRACE_DIRECTORY_FORMAT,
)
from stepwatch.rules.smdebug.core.utils import ensure_dir, get_node_id


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


class TraceFileLocation:
    """Names of files of the profiler; times are microseconds since the epoch."""

    @staticmethod
    def get_file_location(timestamp: float, base_dir: str, suffix: str = PYTHONTIMELINE_SUFFIX) -> str:
        """A timeline, by the end of its last event."""
        hour = datetime.fromtimestamp(timestamp / CONVERT_TO_MICROSECS, timezone.utc).strftime(TRACE_DIRECTORY_FORMAT)
        return os.path.join(base_dir, DEFAULT_PREFIX, hour, f"{int(timestamp)}_{get_node_id()}_{suffix}")

    @staticmethod
    def get_detailed_profiling_log_dir(base_folder: str, framework: str, current_step: int) -> str:
        """Folder of TensorFlow's traces of a step."""
        hour = time.strftime(TRACE_DIRECTORY_FORMAT, time.gmtime())
        folder = os.path.join(base_folder, "framework", framework, "detailed_profiling", hour, f"{current_step:09d}")
        ensure_dir(folder, is_file=False)
        return folder

    @staticmethod
    def get_tf_profiling_metadata_file(base_folder: str, start_time_us: float, end_time_us: float) -> str:
        """The file beside them."""
        name = f"{get_node_id()}_{round(start_time_us)}_{round(end_time_us)}.metadata"
        ensure_dir(os.path.join(base_folder, name))
        return os.path.join(base_folder, name)

    @staticmethod
    def get_python_profiling_stats_dir(
        base_folder: str,
        profiler_name: str,
        framework: str,
        start_mode: str,
        start_step: Any,
        start_phase: str,
        start_time_since_epoch_in_micros: float,
        end_mode: str,
        end_step: Any,
        end_phase: str,
        end_time_since_epoch_in_micros: float,
    ) -> str:
        """Folder of Python's profile between two phases."""
        began = f"{start_mode}-{start_step}-{start_phase}-{start_time_since_epoch_in_micros}"
        ended = f"{end_mode}-{end_step}-{end_phase}-{end_time_since_epoch_in_micros}"
        node = os.path.join(base_folder, "framework", framework, profiler_name, get_node_id())
        folder = os.path.join(node, f"{began}_{ended}")
        ensure_dir(folder, is_file=False)
        return folder

    @staticmethod
    def get_merged_trace_file_location(base_dir: str, timestamp_in_us: int) -> str:
        """A timeline that was merged of others."""
        return os.path.join(base_dir, f"{timestamp_in_us}_{get_node_id()}_{MERGEDTIMELINE_SUFFIX}")
