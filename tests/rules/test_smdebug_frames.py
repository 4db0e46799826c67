"""Questions to what SageMaker's profiler wrote: merged timelines, tables and what is asked of them."""

# ruff: noqa: E402 - smdebug's names are there from install() on

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from stepwatch.rules.smdebug import install

install()

from smdebug.profiler.analysis.utils.merge_timelines import MergedTimeline, MergeUnit
from smdebug.profiler.analysis.utils.pandas_data_analysis import PandasFrameAnalysis, Resource, StatsBy
from smdebug.profiler.analysis.utils.profiler_data_to_pandas import PandasFrame
from smdebug.profiler.analysis.utils.pytorch_dataloader_analysis import PT_dataloader_analysis

from tests.store.test_profiler_files import BEGAN, sample, write_metrics, write_timeline

START = BEGAN * 10**6


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("profile")
    write_metrics(folder, 1)
    write_timeline(folder, 20, slow=range(4, 5))
    write_timeline(folder, 18, "1-algo-2")
    return folder


def test_a_merged_timeline_has_all_processes_and_the_machine(profile: Path, tmp_path: Path) -> None:
    merged = MergedTimeline(str(profile), output_directory=str(tmp_path))
    path = merged.merge_timeline(START, START + 2 * 10**6)
    assert path.endswith("_merged_timeline.json") and path.startswith(f"{tmp_path}/{START + 2 * 10**6}_")
    entries = json.loads(Path(path).read_text())
    tracks = {each["pid"]: each["args"]["name"] for each in entries if each["name"] == "process_name"}
    assert {1: "Step:ModeKeys.TRAIN", 10_000: "Forward"}.items() <= tracks.items()
    threads = {(each["pid"], each["tid"]): each["args"]["name"] for each in entries if each["name"] == "thread_name"}
    steps = [each for each in entries if each["ph"] == "X" and each["pid"] == 1]
    nodes = {threads[each["pid"], each["tid"]].rpartition("_")[0] for each in steps}
    assert nodes == {"algo-1-0", "algo-2-1"}  # side by side, each on a line of its own
    times = [each["ts"] for each in entries if "ts" in each]
    assert times == sorted(times) and times[0] >= START
    counters = {each["name"] for each in entries if each["ph"] == "C"}
    assert "gpu0_GPUUtilization_algo-1" in counters
    (first, *_) = [each for each in entries if each["ph"] == "i"]
    assert first["args"]["gpu0_GPUUtilization_algo-1"] == 20.0 and first["args"]["cpu0_CPUUtilization_algo-1"] == 95.0


def test_a_merged_timeline_of_steps_alone(profile: Path, tmp_path: Path) -> None:
    merged = MergedTimeline(str(profile), ["pythontimeline.json"], str(tmp_path))
    entries = json.loads(Path(merged.merge_timeline(4, 6, MergeUnit.STEP, sys_metrics_filter={})).read_text())
    steps = {each["args"]["step_num"] for each in entries if each["ph"] == "X"}
    assert steps == {"4", "5"}
    assert {each["ph"] for each in entries} == {"M", "X"}
    assert json.loads(Path(merged.merge_timeline(90, 95, "step")).read_text()) == []
    with pytest.raises(ValueError, match="hours"):
        merged.merge_timeline(1, 2, "hours")


def test_a_gpu_that_is_busy_is_not_marked(tmp_path: Path) -> None:
    write_metrics(tmp_path, 1, gpu=99.0)
    path = MergedTimeline(str(tmp_path)).merge_timeline(START, START + 10**6)
    assert {each["ph"] for each in json.loads(Path(path).read_text())} == {"M", "C"}


def tables(profile: Path) -> PandasFrameAnalysis:
    frame = PandasFrame(str(profile))
    return PandasFrameAnalysis(frame.get_all_system_metrics(), frame.get_all_framework_metrics())


def test_how_long_steps_took_and_what_the_machine_did(profile: Path) -> None:
    analysis = tables(profile)
    by_phase = analysis.get_step_statistics()
    assert by_phase["training_phase"].tolist() == ["Step:ModeKeys.TRAIN"]
    assert by_phase["duration_max_us"].tolist() == [400_000] and by_phase["duration_p50_us"].tolist() == [100_000]
    assert analysis.get_step_statistics(by="step") is None
    used = analysis.get_utilization_stats(Resource.GPU)
    assert used[["Resource", "nodeID", "utilization_max"]].to_numpy().tolist() == [["gpu", "algo-1", 40.0]]
    phases = analysis.get_utilization_stats(by=StatsBy.TRAINING_PHASE)
    assert {"Step:ModeKeys.TRAIN", "After Step:ModeKeys.TRAIN"} <= set(phases["Training_phase"])
    assert analysis.get_utilization_stats("gpu") is None and analysis.get_training_phase_intervals("none") is None
    assert analysis.get_utilization_stats(Resource.NETWORK).empty
    stretches = analysis.get_training_phase_intervals()
    assert stretches["phase"].iloc[0] == "Before Step:ModeKeys.TRAIN"
    usage = analysis.get_device_usage_stats(Resource.GPU)
    assert usage[(10, 90)].tolist() == [240]
    job = analysis.get_job_statistics()
    assert job["training_loop_duration"] == 9_600_000 and 15 < job["training_loop_%"] < 17
    assert "training_loop_start" in repr(job)


def test_an_event_without_a_step_is_part_of_the_step_around_it(profile: Path) -> None:
    frame = PandasFrame(str(profile))
    events = frame.get_all_framework_metrics()
    inside, outside = events.iloc[[0]].copy(), events.iloc[[0]].copy()
    for row, start in ((inside, 2_010_000), (outside, 10**9)):
        row["framework_metric"], row["process"], row["step"] = "copy", "copy", -1
        row["start_time_us"], row["end_time_us"] = start, start + 100
    given = pd.concat([events, inside, outside])
    analysis = PandasFrameAnalysis(frame.get_all_system_metrics(), given)
    found = analysis.framework_metrics_df
    assert found[found["framework_metric"] == "copy"]["step"].tolist() == [4, -1]
    assert "duration_us" not in given.columns


def test_no_events_is_said(tmp_path: Path) -> None:
    write_metrics(tmp_path, 1)
    analysis = tables(tmp_path)
    with pytest.raises(ValueError, match="no step 0 of training"):
        analysis.get_job_statistics()
    assert analysis.get_training_phase_intervals() is None
    assert analysis.get_step_statistics().empty
    assert not analysis.get_device_usage_stats().empty
    nothing = PandasFrameAnalysis(analysis.sys_metrics_df.iloc[:0], analysis.framework_metrics_df)
    assert nothing.get_device_usage_stats().empty and nothing.get_utilization_stats().empty
    frame = PandasFrame(str(tmp_path))
    assert frame.get_framework_metrics_by_timesteps([]) == ({}, {}, {})
    assert frame.get_framework_metrics_by_begin_and_end_timesteps([], []) == ({}, {})


@pytest.mark.parametrize("number", [None, [], {}, float("nan"), -3, "x", "9" * 30])
def test_a_step_without_a_number_is_none(tmp_path: Path, number: object) -> None:
    write_metrics(tmp_path, 1)
    path = write_timeline(tmp_path, 2)
    events = json.loads(path.read_text())
    events[-1]["args"] = events[-2]["args"] = {"step_num": number}
    path.write_text(json.dumps(events))
    steps = PandasFrame(str(tmp_path)).get_all_framework_metrics()["step"].tolist()
    assert sorted(steps) == [-1, 0, 0, 1, 1]


def test_slow_batches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "system" / "incremental" / f"{BEGAN}.algo-1.json"
    path.parent.mkdir(parents=True)
    path.write_text(sample(1, "cpu0", "CPUUtilization", 5.0) + "\n")
    events: list[dict[str, Any]] = [
        {"name": "process_name", "ph": "M", "pid": 0, "args": {"start_time_since_epoch_in_micros": START}},
        {"name": "process_name", "ph": "M", "pid": 1, "args": {"name": "DataLoaderIterInitialize"}},
        {"name": "process_name", "ph": "M", "pid": 2, "args": {"name": "DataLoaderIter"}},
    ]
    made = {"num_workers": 2, "pin_memory": True}
    name = "_MultiProcessingDataLoaderIter.__init__"
    events.append({"name": name, "ph": "X", "pid": 1, "ts": 1000, "dur": 500, "args": made})
    for batch, took in enumerate([10, 10, 10, 90, 10]):
        args = {"worker_id": batch % 2}
        call = {"name": "DataLoaderIter::GetNext", "ph": "X", "pid": 2, "ts": 2000 + 1000 * batch, "dur": took}
        events.append({**call, "args": args})
    timeline = tmp_path / "framework" / "pevents" / "2023111500" / f"{START + 10**6}_1-algo-1_pythontimeline.json"
    timeline.parent.mkdir(parents=True)
    timeline.write_text(json.dumps(events))
    analysis = PT_dataloader_analysis(PandasFrame(str(tmp_path)))
    slow = analysis.analyze_dataloader_getnext()
    assert slow is not None and slow[["duration_us", "worker_id"]].to_numpy().tolist() == [[90, 1]]
    assert analysis.analyze_batchtime() is None
    analysis.analyze_dataloaderIter_initialization()
    said = capsys.readouterr().out
    assert f"{name}: 1 times, pin_memory=True, num_workers=2" in said and "no outliers" in said
    assert analysis.analyze_dataloaderWorkers() is None
    assert "no events of worker processes" in capsys.readouterr().out
