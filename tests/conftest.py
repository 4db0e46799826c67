"""What tests of several folders share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.smdebug_reference import KINDS, REFERENCE, job


@pytest.fixture(scope="session")
def smdebug_jobs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """Folder of jobs that smdebug itself recorded, by kind, and what it reads of them."""
    if not REFERENCE.exists():
        pytest.skip(f"no smdebug at {REFERENCE}; scripts/smdebug_env.sh makes it")
    folder = tmp_path_factory.mktemp("smdebug")
    return folder, job(REFERENCE, "write", *(folder / kind for kind in KINDS))
