"""Which steps a job had done when it last wrote a checkpoint, kept beside its checkpoints as smdebug keeps it.

A job that SageMaker takes away and starts again finds its checkpoints in the folder that ``checkpointconfig.json``
names; with them is ``metadata.json``, a list of such states.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from stepwatch.probe.mode_keys import ModeKeys
from stepwatch.probe.store.layout import write_json

log = logging.getLogger("stepwatch")

PATH_VARIABLE = "CHECKPOINT_CONFIG_FILE_PATH"
DEFAULT_PATH = "/opt/ml/input/config/checkpointconfig.json"
DIRECTORY_KEY = "LocalPath"
STATES_FILE = "metadata.json"
SEEN, SAVED = "latest-global-step-seen", "latest-global-step-saved"
MODE_STEPS, RUN = "latest-mode-step", "training-run"
_UPLOADED = "sagemaker-uploaded"  # in the names of SageMaker's marks


class StateStore:
    """The states of a job, where SageMaker's configuration says that it writes checkpoints; none elsewhere.

    What is no state, in a configuration or a file of states, is left out with a line in the log.
    """

    def __init__(self) -> None:
        self._checkpoint_dir: str | None = _configured()
        self._saved_states: list[dict[str, Any]] = []
        self._seen: dict[str, int] = {}
        if self._checkpoint_dir is not None:
            self._saved_states = _read(Path(self._checkpoint_dir, STATES_FILE))
            self._seen = self._files()

    @property
    def enabled(self) -> bool:
        """Whether there is a folder with checkpoints to look at."""
        return self._checkpoint_dir is not None

    def is_checkpoint_updated(self) -> bool:
        """Whether checkpoints have come, gone or changed their size since the last call."""
        files = self._files()
        changed = bool(files) and files != self._seen
        self._seen = files or self._seen
        return changed

    def get_last_saved_state(self) -> dict[str, Any] | None:
        """The state with the latest step, or None."""
        return max(self._saved_states, key=lambda state: state[SEEN], default=None)

    def update_state(self, ts_state: dict[str, Any]) -> None:
        """Add a state to the file.

        Args:
            ts_state: ``training-run``, ``latest-global-step-saved``, ``latest-global-step-seen`` and
                ``latest-mode-step``, steps by the names of modes.

        Raises:
            OSError: it cannot be written.
        """
        self._saved_states.append(ts_state)
        if self._checkpoint_dir is not None:
            write_json(Path(self._checkpoint_dir, STATES_FILE), self._saved_states)

    def _files(self) -> dict[str, int]:
        """The checkpoints and their sizes in bytes."""
        found = {}
        for folder, _, names in os.walk(self._checkpoint_dir or ""):
            for name in names:
                path = os.path.join(folder, name)
                if name != STATES_FILE and _UPLOADED not in name and not name.endswith(".tmp"):
                    found[path] = _size(path)
        return found


def mode_steps_of(state: dict[str, Any]) -> dict[ModeKeys, int]:
    """The step that each mode had reached."""
    return {ModeKeys[mode]: step for mode, step in state[MODE_STEPS].items()}


def _configured() -> str | None:
    path = os.environ.get(PATH_VARIABLE, DEFAULT_PATH)
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        folder = content.get(DIRECTORY_KEY) if isinstance(content, dict) else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning("%s is left aside: %s", path, error)
        return None
    return folder if isinstance(folder, str) else None


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError) as error:
        log.warning("%s is left aside: %s", path, error)
        return []
    found = [state for state in content if _is_state(state)] if isinstance(content, list) else []
    if not isinstance(content, list) or len(found) < len(content):
        log.warning("%s: what is no state is left out", path)
    return [{key: state[key] for key in (RUN, SAVED, SEEN, MODE_STEPS)} for state in found]


def _is_state(state: Any) -> bool:
    if not isinstance(state, dict) or not isinstance(state.get(MODE_STEPS), dict):
        return False
    steps = state[MODE_STEPS]
    numbers = [state.get(RUN), state.get(SEEN), *steps.values()]
    known = all(mode in ModeKeys.__members__ for mode in steps)
    return known and SAVED in state and all(isinstance(each, int) for each in numbers)


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:
        return 0  # it went in the meantime
