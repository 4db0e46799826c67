"""Which of several sidecars acts on a run."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
from pathlib import Path

from stepwatch.probe.store.identity import process_identity

log = logging.getLogger("stepwatch")

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


class Lease:
    """The right to act on a run: a lock on a file, which the system takes from a process that dies.

    It holds between machines where the file system has locks between machines (NFS, Lustre mounted with
    ``flock``). Where it has none at all the lease is given with a warning, as nobody can tell who else acts.

    Args:
        folder: where the file is; made if it is missing, in a directory that exists.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "watch.lock"
        self._file: int | None = None

    @property
    def held(self) -> bool:
        """Whether this process acts."""
        return self._file is not None

    def acquire(self) -> bool:
        """Take it if nobody else has it; whether it is held now.

        Raises:
            OSError: the file cannot be made.
        """
        if self._file is not None:
            return True
        self._path.parent.mkdir(exist_ok=True)
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return False
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(file)
                raise
            log.warning("%s: the file system has no locks; a second sidecar would act as well", self._path)
        identity = process_identity()
        holder = {key: identity[key] for key in ("host", "pid", "user")}
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(holder).encode(), 0)
        self._file = file
        return True

    def holder(self) -> str:
        """Who took it last, in words."""
        try:
            content = json.loads(self._path.read_bytes())
            return f"process {content['pid']} of {content['user']} on {content['host']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"

    def release(self) -> None:
        """Let another act."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
