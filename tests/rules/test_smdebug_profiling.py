"""SageMaker's configuration of its profiler, and what is written and read for it, through smdebug's names."""

# ruff: noqa: E402 - smdebug's names are there from install() on

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from stepwatch.rules.smdebug import install

install()

from smdebug.core.modes import ModeKeys
from smdebug.core.tfevent.timeline_file_writer import TimelineFileWriter
from smdebug.profiler import LocalAlgorithmMetricsReader
from smdebug.profiler.analysis.python_profile_analysis import PyinstrumentAnalysis, cProfileAnalysis
from smdebug.profiler.analysis.utils.profiler_data_to_pandas import PandasFrame
from smdebug.profiler.analysis.utils.python_profile_analysis_utils import Metrics
from smdebug.profiler.profiler_config_parser import (
    MetricsCategory,
    ProfilerConfigParser,
    reset_profiler_config_parser,
)
from smdebug.profiler.python_profiler import StepPhase, cProfilePythonProfiler, cProfileTimer

from tests.store.test_profiler_files import BEGAN, write_metrics, write_timeline


class Configured:
    """SageMaker's file; a call writes it and gives a parser."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path, self.output = folder / "profilerconfig.json", folder / "profiler"
        monkeypatch.setenv("SMPROFILER_CONFIG_PATH", str(self.path))

    def __call__(self, **parameters: Any) -> ProfilerConfigParser:
        self.path.write_text(json.dumps({"ProfilingParameters": {"LocalPath": str(self.output), **parameters}}))
        return ProfilerConfigParser("pytorch")

    def timelines(self) -> list[Path]:
        return sorted((self.output / "framework" / "pevents").glob("*/*.json"))


@pytest.fixture
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Configured:
    return Configured(tmp_path, monkeypatch)


def test_when_something_is_profiled(configured: Configured) -> None:
    steps = configured(detailedprofilingConfig=str({"StartStep": 3, "numSteps": "2"}))
    assert steps.profiling_enabled
    assert [step for step in range(8) if steps.should_save_metrics(MetricsCategory.DETAILED_PROFILING, step)] == [3, 4]
    open_end = configured(DetailedProfilingConfig={"NumSteps": 2})
    assert [s for s in range(5, 9) if open_end.should_save_metrics(MetricsCategory.DETAILED_PROFILING, s)] == [5, 6]
    times = configured(DetailedProfilingConfig={"StartTimeInSecSinceEpoch": 100, "DurationInSeconds": 10})
    when = [99, 100, 109, 110]
    saved = [times.should_save_metrics(MetricsCategory.DETAILED_PROFILING, 1, current_time=now) for now in when]
    assert saved == [False, True, True, False]
    loader = configured(DataloaderProfilingConfig={"StartStep": 0, "NumSteps": 1, "MetricsRegex": "Loader:E"})
    names = ("loader:EVENT", "other")
    assert [loader.should_save_metrics(MetricsCategory.DATALOADER_PROFILING, 0, each) for each in names] == [
        True,
        False,
    ]
    assert not loader.should_save_metrics(MetricsCategory.PYTHON_PROFILING, 0)


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"PythonProfilingConfig": "__import__('os').getpid()"}, "expected a dictionary"),
        ({"PythonProfilingConfig": {"ProfilerName": "perf"}}, "must be cprofile or pyinstrument"),
        ({"PythonProfilingConfig": {"cProfileTimer": "sundial"}}, "sundial"),
        ({"PythonProfilingConfig": {"StartStep": "five"}}, "five"),
        ({"PythonProfilingConfig": {"StartStep": 5, "DurationInSeconds": 3}}, "step and time"),
        ({"RotateMaxFileSizeInBytes": "large"}, "default parameter values"),
    ],
)
def test_a_mistake_disables_its_part(
    configured: Configured, caplog: pytest.LogCaptureFixture, parameters: dict, said: str
) -> None:
    caplog.set_level("INFO", "stepwatch")
    parser = configured(**parameters)
    assert parser.profiling_enabled and not parser.is_python_profiling_enabled()
    assert said in caplog.text


def test_no_file_a_damaged_one_and_one_that_disables_it(configured: Configured) -> None:
    assert not ProfilerConfigParser().profiling_enabled
    for content in ("{", "[]", '{"DisableProfiler": true, "ProfilingParameters": {"a": 1}}', "{}"):
        configured.path.write_text(content)
        assert not ProfilerConfigParser().profiling_enabled
    parser = configured()
    assert parser.profiling_enabled
    configured.path.write_text("{}")
    parser.load_config()
    assert not parser.profiling_enabled


def test_a_timeline_is_what_readers_expect(configured: Configured) -> None:
    writer = TimelineFileWriter(configured())
    for number in range(3):
        writer.write_trace_events(BEGAN + number, "Step:ModeKeys.TRAIN", "step", duration=0.5, step_num=str(number))
    writer.write_trace_events(BEGAN + 2.6, "Other", "odd", shape={1}, back={(1, 2): 3})  # has no JSON: left out
    writer.write_trace_events(BEGAN + 2.7, "Other", "where", path=Path("a/b"))
    writer.write_trace_events(BEGAN + 3, "Loading", "batch", phase="B")
    writer.write_trace_events(BEGAN + 5, "Loading", "batch", phase="E")
    writer.flush()
    assert configured.timelines() == []  # it has its name when it is complete
    writer.close()
    writer.close()
    (file,) = configured.timelines()
    assert file.name.startswith(f"{(BEGAN + 5) * 10**6}_")
    reader = LocalAlgorithmMetricsReader(str(configured.output))
    events = {e.event_phase: (e.start_time / 1e6, e.duration / 1e6) for e in reader.get_events(0, 1 << 60)}
    assert events == {"Step:ModeKeys.TRAIN": (BEGAN + 2, 0.5), "Other": (BEGAN + 2.7, 0), "Loading": (BEGAN + 3, 2)}
    assert [e.event_args for e in reader.get_events_by_step(1, 2)] == [{"step_num": "1"}]


def test_a_full_timeline_goes_on_in_a_new_file(configured: Configured) -> None:
    writer = TimelineFileWriter(configured(RotateMaxFileSizeInBytes=600))
    for number in range(20):
        writer.write_trace_events(BEGAN + number, "Step", f"event {number}")
    writer.close()
    contents = [json.loads(file.read_text()) for file in configured.timelines()]
    names = [each["name"] for content in contents for each in content if each["ph"] == "X"]
    assert len(contents) > 2 and names == [f"event {number}" for number in range(20)]


def test_a_timeline_that_cannot_be_written_ends(configured: Configured, caplog: pytest.LogCaptureFixture) -> None:
    configured.output.write_text("a file where the folder should be")
    writer = TimelineFileWriter(configured(FileOpenFailThreshold=2))
    for number in range(5):
        writer.write_trace_events(BEGAN + number, "Step", "event")
    writer.flush()
    writer.write_trace_events(BEGAN, "Step", "event")
    writer.close()
    assert "no more events are taken" in caplog.text


def busy_step() -> int:
    return sum(number * number for number in range(2000))


def busy_evaluation() -> int:
    return sum(range(2000))


def test_profiles_of_python_are_found_by_step(tmp_path: Path) -> None:
    profiler = cProfilePythonProfiler(str(tmp_path), "pytorch", cProfileTimer.TOTAL_TIME)
    profiler.stop_profiling(StepPhase.STEP_END, end_step=0)  # nothing was begun
    from smdebug.profiler.python_profiler import PythonProfileModes as Modes

    for number in (1, 2):
        profiler.start_profiling(StepPhase.STEP_START, Modes.TRAIN, number)
        busy_step()
        profiler.stop_profiling(StepPhase.STEP_END, Modes.TRAIN, number)
    began = time.time()
    profiler.start_profiling(StepPhase.STEP_END, Modes.TRAIN, 2)
    busy_evaluation()
    profiler.stop_profiling(StepPhase.STEP_START, Modes.EVAL, 3)

    analysis = cProfileAnalysis(str(tmp_path / "framework" / "pytorch" / "cprofile"))
    assert len(analysis.python_profile_stats) == 3 and len(analysis.list_available_node_ids()) == 1

    def calls(stats: Any, name: str) -> int:
        return sum(each.total_calls for each in stats.function_stats_list if f"({name})" in each.function_name)

    one, both = analysis.fetch_profile_stats_by_step(1), analysis.fetch_profile_stats_by_step(1, 2)
    assert (calls(one, "busy_step"), calls(both, "busy_step"), calls(both, "busy_evaluation")) == (1, 2, 0)
    assert calls(analysis.fetch_profile_stats_by_time(began, time.time()), "busy_evaluation") == 1
    assert analysis.fetch_profile_stats_by_step(7) is None
    phases = analysis.fetch_profile_stats_by_job_phase()
    assert set(phases) == {"training_loop"} and calls(phases["training_loop"], "busy_step") == 2
    assert set(analysis.fetch_profile_stats_by_training_phase()) == {
        (Modes.TRAIN, Modes.TRAIN),
        (Modes.TRAIN, Modes.EVAL),
    }
    assert analysis.list_profile_stats()["end_mode"].tolist() == ["train", "train", "eval"]
    both.print_top_n_functions(Metrics.TOTAL_CALLS, 3)
    assert "total_calls" in both.get_function_stats()
    with pytest.raises(AssertionError, match="no such directory"):
        cProfileAnalysis(str(tmp_path / "none"))


def test_profiles_of_pyinstrument(tmp_path: Path) -> None:
    pytest.importorskip("pyinstrument")
    from smdebug.profiler.python_profiler import PyinstrumentPythonProfiler

    profiler = PyinstrumentPythonProfiler(str(tmp_path), "pytorch")
    profiler.start_profiling(StepPhase.STEP_START, start_step=1)
    deadline = time.process_time() + 0.05
    while time.process_time() < deadline:
        busy_step()
    profiler.stop_profiling(StepPhase.STEP_END, end_step=1)
    analysis = PyinstrumentAnalysis(str(tmp_path / "framework" / "pytorch" / "pyinstrument"))
    (profile,) = analysis.fetch_pre_step_zero_profile_stats() or analysis.fetch_profile_stats_by_time(0, time.time())
    assert "root_frame" in profile.json_stats and Path(profile.html_file_path).stat().st_size > 0


def test_without_pyinstrument_one_line_says_so(
    configured: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from smdebug.exceptions import SMDebugError
    from smdebug.profiler.python_profiler import PyinstrumentPythonProfiler

    monkeypatch.setitem(sys.modules, "pyinstrument", None)
    with pytest.raises(SMDebugError, match="pip install pyinstrument"):
        PyinstrumentPythonProfiler(str(tmp_path), "pytorch")
    parser = configured(PythonProfilingConfig={"StartStep": 0, "ProfilerName": "pyinstrument"})
    parser.handle_step_start_python_profiling(ModeKeys.TRAIN, 0)  # the job goes on
    assert parser.python_profiler is None and "Python is not profiled" in caplog.text


def test_a_hook_writes_what_is_configured(configured: Configured, tmp_path: Path) -> None:
    import smdebug.pytorch as smd
    import torch

    configured(PythonProfilingConfig={"StartStep": 1, "NumSteps": 2})
    reset_profiler_config_parser()
    model = torch.nn.Linear(2, 1)
    hook = smd.Hook(str(tmp_path / "run"), save_config=smd.SaveConfig(save_interval=2))
    try:
        hook.register_module(model)
        hook.set_mode(smd.modes.TRAIN)
        for _ in range(4):
            model(torch.zeros(1, 2)).sum().backward()
        hook.record_trace_events(time.time(), "Mine", "checkpoint", duration=0.25, size=3)
    finally:
        hook.close()
        hook.profiler_config_parser.stop_post_hook_close_python_profiling()
        smd.del_hook()
        reset_profiler_config_parser()
    reader = LocalAlgorithmMetricsReader(str(configured.output))
    events = [(e.event_name, e.event_args) for e in reader.get_events(0, 1 << 60)]
    for phase in ("Step:ModeKeys.TRAIN", "Forward"):
        assert [args["step_num"] for name, args in events if name == phase] == ["0", "1", "2", "3"]
    assert ("checkpoint", {"size": 3}) in events
    profiles = cProfileAnalysis(str(configured.output / "framework" / "pytorch" / "cprofile"))
    phases = {(s.start_phase, s.start_step, s.end_phase, s.end_step) for s in profiles.python_profile_stats}
    assert (StepPhase.STEP_START, 1, StepPhase.FORWARD_PASS_END, 1) in phases
    assert (StepPhase.START, -1, StepPhase.STEP_START, 0) in phases
    assert (StepPhase.END, -1, StepPhase.END, float("inf")) in phases
    assert not any(step == 3 for _, step, _, _ in phases)


def test_the_time_of_a_trace_is_in_the_name_beside_it(tmp_path: Path) -> None:
    from smdebug.profiler.utils import read_tf_profiler_metadata_file

    step = tmp_path / "framework" / "tensorflow" / "detailed_profiling" / "2020080513" / "000000000"
    trace = step / "plugins" / "profile" / "2020_08_05" / "host.trace.json.gz"
    trace.parent.mkdir(parents=True)
    assert read_tf_profiler_metadata_file(str(trace)) == ("", "0", "0")
    (step / "7-host.name_1596659864545103_1596659864854168.metadata").touch()
    found = read_tf_profiler_metadata_file(str(trace))
    assert found == ("7-host.name", "1596659864545103", "1596659864854168")
    assert read_tf_profiler_metadata_file(str(step / "other.json")) == ("", "0", "0")


def test_tables_of_pandas(tmp_path: Path) -> None:
    write_metrics(tmp_path, 2, gpu=12.5)
    write_timeline(tmp_path, 30)
    frame = PandasFrame(str(tmp_path))
    samples, events = frame.get_all_system_metrics(), frame.get_all_framework_metrics()
    assert {"cpu", "gpu"} <= set(samples["type"]) and samples["timestamp_us"].min() == 0
    assert set(samples[samples["dimension"] == "GPUUtilization"]["value"]) == {12.5}
    steps = events[events["process"].str.startswith("Step:")]
    assert steps["step"].tolist() == list(range(30)) and (steps["end_time_us"] >= steps["start_time_us"]).all()
    few = frame.get_all_system_metrics(selected_system_metrics=["cpu0"])
    assert set(few["system_metric"]) == {"cpu0"} and 0 < len(few) < len(samples)
    _, some = frame.get_profiler_data_by_step(3, 5)
    assert set(some["step"]) == {3, 4, 5}
