"""Thirty rules over twenty jobs, under smdebug itself and here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.smdebug_reference import REFERENCE

SCRIPT = Path(__file__).parents[1] / "smdebug_table.py"


def start(python: Path, *arguments: object) -> subprocess.Popen[str]:
    command = [str(python), str(SCRIPT), *map(str, arguments)]
    at_once = {**os.environ, "SMDEBUG_TRAINING_END_DELAY_REFRESH": "0"}  # smdebug sleeps at the end of every job
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=at_once)


def result(process: subprocess.Popen[str]) -> dict[str, dict[str, str]]:
    output, error = process.communicate(timeout=600)
    assert process.returncode == 0, error[-3000:]
    return json.loads(output.splitlines()[-1])


def brief(verdict: str) -> str:
    """``met 0,3; StepUnavailable 1,2; invoked ends with NoMoreData 10``."""
    content = json.loads(verdict)
    end = content.pop("invoked")
    parts = [f"{what} {','.join(map(str, steps))}" for what, steps in content.items() if steps]
    return "; ".join([*parts, f"invoked ends with {end}"])


@pytest.mark.smdebug
def test_every_rule_says_the_same_of_every_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of what smdebug recorded, and of what its scripts record here. The whole table is printed with ``-s``."""
    if not REFERENCE.exists():
        pytest.skip(f"no smdebug at {REFERENCE}; scripts/smdebug_env.sh makes it")
    recording = start(Path(sys.executable), "--ours", "record", tmp_path / "ours")
    theirs = result(start(REFERENCE, "record", tmp_path / "theirs"))
    read = result(start(Path(sys.executable), "--ours", "judge", tmp_path / "theirs"))
    recorded = result(recording)
    del recorded["two workers"]  # a copy of one worker's files, made for the reader

    equal: Counter[str] = Counter()
    unequal = []
    print(f"{'item':66} {'smdebug':80} {'ours':80} equal")
    for source, ours in (("read", read), ("recorded", recorded)):
        for job, verdicts in ours.items():
            for rule, verdict in verdicts.items():
                same = verdict == theirs[job][rule]
                equal[rule] += same
                line = f"{f'{source}: {job}: {rule}':66} {brief(theirs[job][rule]):80} {brief(verdict):80} {same}"
                print(line)
                if not same:
                    unequal.append(line)
    jobs = len(read) + len(recorded)
    with capsys.disabled():
        print(f"\n{'rule':40} {'met in (of smdebug)':>20}  equal")
        for rule in equal:
            met = sum(bool(json.loads(verdicts[rule])["met"]) for verdicts in theirs.values())
            print(f"{rule:40} {f'{met} of {len(theirs)} jobs':>20}  {equal[rule]} of {jobs}")
        print(
            f"{len(equal)} rules, {len(theirs)} jobs: {sum(equal.values())} of {jobs * len(equal)} verdicts are equal"
        )
    assert len(equal) >= 30 and len(theirs) >= 20
    assert unequal == []
