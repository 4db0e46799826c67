"""Small helpers that scripts take from ``smdebug.core.utils``: paths, names of workers, lists."""

from __future__ import annotations

import enum
import json
import os
import re
import socket
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwatch.probe.smdebug.errors import SMDebugTypeError, SMDebugValueError
from stepwatch.rules.smdebug.core.constants import CLAIM_FILENAME


class FRAMEWORK(enum.Enum):
    """Frameworks that smdebug knows."""

    PYTORCH = "pytorch"
    TENSORFLOW = "tensorflow"
    MXNET = "mxnet"
    XGBOOST = "xgboost"


# -- lists and texts ----------------------------------------------------------------------------------


def flatten(lis: Iterable[Any]) -> list[Any]:
    """The entries of lists within lists; other containers are entries."""
    found: list[Any] = []
    for entry in lis:
        found.extend(flatten(entry) if isinstance(entry, list) else [entry])
    return found


def split(comma_separated_string: str) -> list[str]:
    """What stands between commas, without blanks around it."""
    return [part.strip() for part in comma_separated_string.split(",")]


def merge_two_dicts(x: Mapping[Any, Any], y: Mapping[Any, Any]) -> dict[Any, Any]:
    """Both; the second goes before."""
    return {**x, **y}


def index(sorted_list: Sequence[Any], elem: Any) -> int:
    """Where an entry is in an ordered list.

    Raises:
        SMDebugValueError: it is not there.
    """
    place = bisect_left(sorted_list, elem)
    if place == len(sorted_list) or sorted_list[place] != elem:
        raise SMDebugValueError(f"{elem} is not in the list")
    return place


def match_inc(tname: str, include: Iterable[str]) -> bool:
    """Whether one of some expressions is found in a name."""
    return any(re.search(pattern, tname) for pattern in include)


def step_in_range(range_steps: tuple[int | None, int | None], step: int) -> bool:
    """Whether a step is in (first, end)."""
    first, end = range_steps
    return (first is None or step >= first) and (end is None or step < end)


def load_json_as_dict(s: Any) -> Any:
    """What a JSON text holds; None for None, and an object as it is.

    Raises:
        SMDebugValueError: something else.
    """
    if s is None or s == "None" or isinstance(s, dict):
        return s if isinstance(s, dict) else None
    if not isinstance(s, str):
        raise SMDebugValueError(f"JSON is a {type(s).__name__}; expected a text or an object")
    return json.loads(s)


def make_numpy_array(x: Any) -> NDArray[Any]:
    """An array of a number, a text, a list, a tuple or a dictionary; numbers and texts have one entry.

    Raises:
        SMDebugTypeError: something else.
    """
    if isinstance(x, np.ndarray):
        return x
    if np.isscalar(x):
        return np.array([x])
    if isinstance(x, (list, tuple, dict)):
        return np.array(x)
    raise SMDebugTypeError(f"{x!r:.80} is a {type(x).__name__}; expected a number, a text, an array or a list")


def validate_custom_tensor_value(tensor_value: Any, make_numpy_fn: Callable[[Any], Any]) -> bool:
    """Whether a function makes an array of a value."""
    try:
        make_numpy_fn(tensor_value)
    except TypeError:
        return False
    return True


def size_and_shape(t: NDArray[Any]) -> tuple[int, tuple[int, ...]]:
    """Bytes and shape."""
    return t.nbytes, t.shape


# -- places -------------------------------------------------------------------------------------------


def is_s3(path: str) -> tuple[bool, str | None, str | None]:
    """Whether a path is in S3, and then its bucket and the prefix there."""
    if not path.startswith("s3://"):
        return False, None, None
    bucket, _, prefix = path.removeprefix("s3://").partition("/")
    return True, bucket, prefix


def ensure_dir(file_path: str, is_file: bool = True) -> None:
    """Make a directory, or that of a file."""
    folder = os.path.dirname(file_path) if is_file else file_path
    if folder:
        os.makedirs(folder, exist_ok=True)


def list_files_in_directory(directory: str, file_regex: str | None = None) -> list[str]:
    """Files in a directory at any depth; only those whose path an expression matches, where there is one."""
    every = [os.path.join(folder, name) for folder, _, names in os.walk(directory) for name in names]
    return [path for path in every if file_regex is None or re.match(file_regex, path)]


def list_collection_files_in_directory(directory: str) -> list[str]:
    """Files of collections in a directory."""
    return [path for path in list_files_in_directory(directory) if path.endswith("collections.json")]


def get_immediate_subdirectories(a_dir: str) -> list[str]:
    """Names of the folders in a directory."""
    return [entry.name for entry in os.scandir(a_dir) if entry.is_dir()]


def remove_file_if_exists(file_path: str) -> None:
    """Remove a file that may be gone."""
    Path(file_path).unlink(missing_ok=True)


def is_first_process(path: str, is_dir: bool = True) -> bool:
    """Whether no other process has claimed a directory, or a file, before; claims it."""
    if is_s3(path)[0]:
        return True
    claim = os.path.join(path, CLAIM_FILENAME) if is_dir else path
    ensure_dir(claim)
    try:
        os.close(os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    return True


def remove_claim_file(path: str) -> None:
    """Give a claim back."""
    if not is_s3(path)[0]:
        remove_file_if_exists(os.path.join(path, CLAIM_FILENAME))


def get_path_to_collections(directory: str) -> str:
    """Folder of the files of collections."""
    return os.path.join(directory, "collections", "000000000", "")


def get_path_to_events_directory(path: str) -> str:
    """Folder of the event files."""
    return os.path.join(path, "events", "")


def get_relative_event_file_path(path: str) -> str:
    """The path of an event file from the job's directory on."""
    return "/".join(path.split("/")[-3:])


# -- workers ------------------------------------------------------------------------------------------


def serialize_tf_device(device: str) -> str:
    """A device of TensorFlow as file names spell it."""
    return device.replace("/", "_").replace(":", "-")


def deserialize_tf_device(device_name: str) -> str:
    """Inverse of :func:`serialize_tf_device`."""
    return device_name.replace("_", "/").replace("-", ":")


def get_worker_name_from_collection_file(filename: str) -> str:
    """The worker that wrote a file of collections."""
    name = os.path.basename(filename).rpartition("_collections.")[0]
    return deserialize_tf_device(name) if "__" in name else name


def parse_worker_name_from_file(filename: str) -> str:
    """The worker that wrote an event file or an index.

    Raises:
        IndexReaderException: the name says none.
    """
    from stepwatch.rules.smdebug.exceptions import IndexReaderException

    name = os.path.basename(filename)
    match = re.fullmatch(r"\d+_(.+)\.(?:tfevents|json|csv)", name)
    if match is None:
        raise IndexReaderException(f"{filename}: expected STEP_WORKER.tfevents or STEP_WORKER.json")
    return deserialize_tf_device(match[1]) if "__" in name else match[1]


def get_tb_worker() -> str:
    """Process and host, as names of TensorBoard's files have them."""
    return f"{os.getpid()}_{socket.gethostname()}"


def get_aws_region_from_processing_job_arn(processing_job_arn: str) -> str:
    """Region of AWS in the name of a processing job."""
    return processing_job_arn.split(":")[3]


def setup_profiler_report(processing_job_arn: str | None, opt_out: bool = False) -> None:
    """Nothing: smdebug tells Amazon here that its report was opened, Stepwatch tells nobody anything."""


def get_region() -> str | None:
    """Region of AWS that the environment names."""
    return os.environ.get("AWS_REGION")
