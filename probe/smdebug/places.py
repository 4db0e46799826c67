"""Where smdebug's profiler keeps what: names of its folders and files, and of this process among them."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

CONVERT_TO_MICROSECS = 1_000_000
CONVERT_MICRO_TO_NS = 1000
DEFAULT_PREFIX = "framework/pevents"
DEFAULT_SYSTEM_PROFILER_PREFIX = "system"
TRACE_DIRECTORY_FORMAT = "%Y%m%d%H"
PYTHONTIMELINE_SUFFIX = "pythontimeline.json"
MODELTIMELINE_SUFFIX = "model_timeline.json"
TENSORBOARDTIMELINE_SUFFIX = "trace.json.gz"
HOROVODTIMELINE_SUFFIX = "horovod_timeline.json"
SMDATAPARALLELTIMELINE_SUFFIX = "smdataparallel_timeline.json"
MERGEDTIMELINE_SUFFIX = "merged_timeline.json"
PT_DATALOADER_WORKER = "DataLoaderWorker"
PT_DATALOADER_ITER = "DataLoaderIter"
PT_DATALOADER_INITIALIZE = "DataLoaderIterInitialize"
TF_DATALOADER_ITER = "DataIterator"
TF_METRICS_PREFIX = "aws_marker-"
DEFAULT_RESOURCE_CONFIG_FILE = "/opt/ml/input/config/resourceconfig.json"


def get_distributed_worker() -> int | None:
    """Rank of this process in torch.distributed, or None."""
    dist = sys.modules.get("torch.distributed")  # a process group is there only where it was imported
    return dist.get_rank() if dist is not None and dist.is_available() and dist.is_initialized() else None


def get_node_id_from_resource_config() -> str | None:
    """Name of this node in a SageMaker job, or None."""
    try:
        found = json.loads(Path(DEFAULT_RESOURCE_CONFIG_FILE).read_text(encoding="utf-8")).get("current_host")
    except (FileNotFoundError, ValueError):
        return None
    return None if found is None else str(found)


def get_node_id() -> str:
    """Rank, or number of this process, and host, as names of timelines have them."""
    rank = get_distributed_worker()
    host = get_node_id_from_resource_config() or socket.gethostname()
    return f"{os.getpid() if rank is None else rank}-{host}".replace("_", "-")


class TraceFileLocation:
    """Names of files of the profiler; times are microseconds since the epoch."""

    @staticmethod
    def get_file_location(timestamp: float, base_dir: str, suffix: str = PYTHONTIMELINE_SUFFIX) -> str:
        """A timeline, by the end of its last event."""
        hour = time.strftime(TRACE_DIRECTORY_FORMAT, time.gmtime(timestamp / CONVERT_TO_MICROSECS))
        return os.path.join(base_dir, DEFAULT_PREFIX, hour, f"{round(timestamp)}_{get_node_id()}_{suffix}")

    @staticmethod
    def get_detailed_profiling_log_dir(base_folder: str, framework: str, current_step: int) -> str:
        """Folder of TensorFlow's traces of a step; it is made."""
        hour = time.strftime(TRACE_DIRECTORY_FORMAT)
        return _made(base_folder, "framework", framework, "detailed_profiling", hour, f"{current_step:09d}")

    @staticmethod
    def get_tf_profiling_metadata_file(base_folder: str, start_time_us: float, end_time_us: float) -> str:
        """The file beside them; its folder is made."""
        name = f"{get_node_id()}_{round(start_time_us)}_{round(end_time_us)}.metadata"
        return os.path.join(_made(base_folder), name)

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
        """Folder of Python's profile between two phases; it is made."""
        began = f"{start_mode}-{start_step}-{start_phase}-{start_time_since_epoch_in_micros}"
        ended = f"{end_mode}-{end_step}-{end_phase}-{end_time_since_epoch_in_micros}"
        return _made(base_folder, "framework", framework, profiler_name, get_node_id(), f"{began}_{ended}")

    @staticmethod
    def get_merged_trace_file_location(base_dir: str, timestamp_in_us: float) -> str:
        """A timeline that was merged of others."""
        return os.path.join(base_dir, f"{round(timestamp_in_us)}_{get_node_id()}_{MERGEDTIMELINE_SUFFIX}")


def _made(*parts: str) -> str:
    folder = os.path.join(*parts)
    os.makedirs(folder, exist_ok=True)
    return folder
