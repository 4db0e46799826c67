"""What tests of several folders share."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.smdebug_reference import KINDS, REFERENCE, job

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job: ours would ignore Ctrl-C with us
    signal.signal(signal.SIGINT, signal.default_int_handler)

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported, which torch does when it likes


@pytest.fixture(autouse=True)
def log_as_it_was() -> Iterator[None]:
    """Commands set up the log of their process, which here is that of the next test as well."""
    log = logging.getLogger("stepwatch")
    level, propagate, handlers = log.level, log.propagate, log.handlers.copy()
    yield
    log.setLevel(level)
    log.propagate, log.handlers[:] = propagate, handlers


@pytest.fixture(scope="session")
def smdebug_jobs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """Folder of jobs that smdebug itself recorded, by kind, and what it reads of them."""
    if not REFERENCE.exists():
        pytest.skip(f"no smdebug at {REFERENCE}; scripts/smdebug_env.sh makes it")
    folder = tmp_path_factory.mktemp("smdebug")
    return folder, job(REFERENCE, "write", *(folder / kind for kind in KINDS))
