"""Profiles and stacks in the report and in ``show``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stepwatch.cli.main import main
from stepwatch.probe.store.kineto.importing import import_kineto
from stepwatch.probe.store.profiles import profiles_of
from stepwatch.rules.actions import Dispatcher
from tests.deep import made_up
from tests.deep.test_asked import finding
from tests.deep.test_deep_profile import Job


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imported")
    files = [made_up.write(folder / f"{rank}.json", 4, 8, rank, world_size=2) for rank in range(2)]
    import_kineto(files, folder / "run")
    return folder / "run"


def command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit:
        main([str(argument) for argument in arguments])
    return int(exit.value.code or 0)


def test_the_report_has_the_profiled_steps(run: Path, tmp_path: Path) -> None:
    assert command("report", run, "-o", tmp_path / "report.html") in (0, 1)
    page = (tmp_path / "report.html").read_text()
    for text in ("Profiled steps", "Steps of rank 0, steps 10 to 13", "Devices of all ranks", "ncclDevKernel", "3 GiB"):
        assert text in page
    assert "Where it stood still" not in page


def test_the_report_shows_where_a_job_stood_still(tmp_path: Path) -> None:
    job = Job(tmp_path / "run")
    job.steps(3)
    job.hook.close()
    stack = 'Thread 0x1 (most recent call first):\n  File "train.py", line 7 in <module>'
    found = finding("Hang", evidence={"stacks": {"0": stack, "1": ""}})
    Dispatcher(tmp_path / "run", [], judged_by="watch").dispatch([found])
    assert command("report", tmp_path / "run", "-o", tmp_path / "report.html") in (0, 1)
    page = (tmp_path / "report.html").read_text()
    assert "Where it stood still" in page and "line 7 in &lt;module&gt;" in page
    assert "rank 0, when steps take long" in page and "rank 1, when" not in page


def test_a_trace_that_is_gone_leaves_the_report_whole(run: Path, tmp_path: Path) -> None:
    profile = profiles_of(run)[0]
    kept = profile._file("summary.json")
    content, trace = kept.read_text(), profile.trace.read_text()
    try:
        kept.unlink()
        profile.trace.write_text("{}")
        assert command("report", run, "-o", tmp_path / "report.html") in (0, 1)
        assert "It cannot be shown" in (tmp_path / "report.html").read_text()
        kept.write_text('{"version": 1, "steps": 3}')  # a summary that is none is made anew
        profile.trace.write_text(trace)
        profile.summary()
        assert json.loads(kept.read_text()) == json.loads(content)
    finally:
        kept.write_text(content)
        profile.trace.write_text(trace)


def test_show_names_the_profiles(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("show", run) == 0
    assert "profiled: rank 1, 4 steps from 10" in capsys.readouterr().out
    assert command("show", run, "--json") == 0
    assert [each["rank"] for each in json.loads(capsys.readouterr().out)["profiled"]] == [0, 1]
