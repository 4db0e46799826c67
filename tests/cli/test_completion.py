"""Completion in real shells: commands, options, choices and directories."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = Path(sys.executable).with_name("stepwatch")


@pytest.mark.skipif(shutil.which("bash") is None or not COMMAND.exists(), reason="no bash, or no command")
def test_bash_completes(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "notes.txt").touch()
    script = """
    eval "$(_STEPWATCH_COMPLETE=bash_source stepwatch)"
    complete_line() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _stepwatch_completion stepwatch; }
    complete_line stepwatch re; echo "${COMPREPLY[@]}"
    complete_line stepwatch export run out --format t; echo "${COMPREPLY[@]}"
    complete_line stepwatch compare --ob; echo "${COMPREPLY[@]}"
    for command in show analyze; do
        complete_line stepwatch $command r; compgen -d -- "${COMPREPLY[0]:-r}"; echo "${#COMPREPLY[@]}"
    done
    """
    environment = {**os.environ, "PATH": f"{COMMAND.parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    lines = done.stdout.splitlines()
    assert lines[:3] == ["report", "tensorboard", "--objective"], done.stderr
    assert lines[3:] == ["runs", "0", "runs", "0"], "directories are left to the shell"


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_have_a_script(shell: str) -> None:
    environment = {**os.environ, "_STEPWATCH_COMPLETE": f"{shell}_source"}
    done = subprocess.run([COMMAND], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "_STEPWATCH_COMPLETE" in done.stdout
