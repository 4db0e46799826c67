"""Files of SageMaker's profiler: read as runs, judged by its rules, and hostile ones refused in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stepwatch.probe.store.discovery import find_runs
from stepwatch.probe.store.errors import TraceError
from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.smdebug.profiler import (
    is_profiler_directory,
    profiler_files,
    read_system_metrics,
    read_timeline,
)
from stepwatch.probe.store.smdebug.profiling import ProfilerImporter
from stepwatch.rules.catalogue import configure
from stepwatch.rules.finding import Status
from stepwatch.rules.replay import analyze
from tests.smdebug_reference import REFERENCE

BEGAN = 1_700_006_400  # seconds; a full hour


def sample(second: float, name: str, dimension: str, value: float, node: str = "algo-1") -> str:
    kind = "gpu" if name.startswith("gpu") else "cpu"
    fields = {"Type": kind, "Name": name, "Dimension": dimension, "Value": value, "NodeId": node}
    return json.dumps({**fields, "Timestamp": BEGAN + second})


def write_metrics(folder: Path, minutes: int, node: str = "algo-1", gpu: float = 20.0) -> None:
    for minute in range(minutes):
        path = folder / "system" / "incremental" / "2023111500" / f"{BEGAN + 60 * minute}.{node}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = []
        for half in range(120):
            second = 60 * minute + half / 2
            for core in (0, 1):
                lines += [sample(second + core / 1000, f"cpu{core}", "CPUUtilization", 95.0 - core, node)]
                lines += [sample(second, f"cpu{core}", "I/OWaitPercentage", 4.0 * core, node)]
            lines += [sample(second, "gpu0", "GPUUtilization", gpu, node)]
            lines += [sample(second, "gpu0", "GPUMemoryUtilization", 40.0, node)]
            lines += [sample(second, "MemoryUsedPercent", "MemoryUsedPercent", 55.0, node)]
        path.write_text("\n".join(lines) + "\n")


def write_timeline(folder: Path, steps: int, process: str = "0-algo-1", slow: range = range(0)) -> Path:
    events: list[dict[str, Any]] = [
        {"name": "process_name", "ph": "M", "pid": 0, "args": {"start_time_since_epoch_in_micros": BEGAN * 1_000_000}},
        {"name": "process_sort_index", "ph": "M", "pid": 0, "args": {"sort_index": 0}},
        {"name": "process_name", "ph": "M", "pid": 1, "args": {"name": "Step:ModeKeys.TRAIN"}},
        {"name": "process_name", "ph": "M", "pid": 2, "args": {"name": "Forward"}},
        {"name": "process_name", "ph": "M", "pid": 3, "args": {"name": "DataLoaderIter"}},
    ]
    for step in range(steps):
        at, took, args = step * 500_000, 400_000 if step in slow else 100_000, {"pid": 7, "step_num": str(step)}
        events += [
            {"name": "next", "pid": 3, "ph": "X", "ts": at - 20_000, "dur": 15_000, "args": args},
            {"name": "Step:ModeKeys.TRAIN", "pid": 1, "ph": "X", "ts": at, "dur": took, "args": args},
            {"name": "Net", "pid": 2, "ph": "B", "ts": at + 1000, "args": args},
            {"name": "Net", "pid": 2, "ph": "E", "ts": at + 31_000, "args": args},
        ]
    end = BEGAN * 1_000_000 + steps * 500_000
    path = folder / "framework" / "pevents" / "2023111500" / f"{end}_{process}_pythontimeline.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(events))
    return path


def write_exchanges(folder: Path, steps: int, process: str, kind: str) -> None:
    """Two tensors exchanged in each step: the second is offered 60 ms into it, and is there 90 ms into it."""
    events: list[dict[str, Any]] = [
        {"name": "process_name", "ph": "M", "pid": 0, "args": {"start_time_since_epoch_in_micros": BEGAN * 1_000_000}},
        *({"name": "process_name", "ph": "M", "pid": pid, "args": {"name": f"gradient {pid}"}} for pid in (1, 2)),
    ]
    for step in range(steps):
        for track, begins, offered, reduces, ends in ((1, 40, 45, 50, 70), (2, 55, 60, 75, 90)):
            at = [step * 500_000 + 1000 * ms for ms in (begins, offered, reduces, ends)]
            rank = process.partition("-")[0]
            events += [
                {"name": "NEGOTIATE_ALLREDUCE", "pid": track, "ph": "B", "ts": at[0]},
                {"name": rank, "pid": track, "ph": "X", "ts": at[1], "dur": 812355471858},  # as it is found in files
                {"name": "", "pid": track, "ph": "E", "ts": at[2]},
                {"name": "ALLREDUCE", "pid": track, "ph": "B", "ts": at[2]},
                {"pid": track, "ph": "E", "ts": at[3]},
            ]
        events += [{"name": "CYCLE_START", "pid": 2, "ph": "i", "ts": step * 500_000, "s": "g"}]
    end = BEGAN * 1_000_000 + steps * 500_000
    path = folder / "framework" / "pevents" / "2023111500" / f"{end}_{process}_{kind}.json"
    path.write_text(json.dumps(events))


@pytest.mark.parametrize("kind", ["horovod_timeline", "smdataparallel_timeline"])
def test_waiting_for_other_processes(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "profiler-output"
    for process in ("0-algo-1", "1-algo-2"):
        write_timeline(folder, 20, process)
    write_exchanges(folder, 15, "1-algo-2", kind)
    importer = ProfilerImporter(folder, tmp_path / "run")
    importer.poll()
    importer.finish()
    trace = Trace(tmp_path / "run")
    assert trace.table("steps", ranks=[0])["collective_ns"].to_pylist() == [None] * 20
    # From when its last tensor was offered until the last one was there; nothing is known of the last five steps.
    assert trace.table("steps", ranks=[1])["collective_ns"].to_pylist() == [30_000_000] * 15 + [None] * 5


@pytest.fixture
def profiled(tmp_path: Path) -> Path:
    """Two nodes with a process each."""
    folder = tmp_path / "job" / "profiler-output"
    for number, node in enumerate(("algo-1", "algo-2")):
        write_metrics(folder, 10, node)
        write_timeline(folder, 200, f"{number}-{node}", slow=range(50, 62))
    for path in folder.rglob("*.json"):
        os.utime(path, (BEGAN, BEGAN))  # the job is over
    return folder


def test_steps_and_samples(profiled: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stepwatch.cli", "import", str(profiled), str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'run'}: 400 steps of 2 processes, samples of 2 nodes\n"
    for trace in (Trace(tmp_path / "run"), Trace(profiled)):
        steps = trace.table("steps", ranks=[1]).to_pylist()
        assert [row["step"] for row in steps] == [row["mode_step"] for row in steps] == list(range(200))
        assert {row["mode"] for row in steps} == {"TRAIN"}
        assert steps[3]["time_ns"] == BEGAN * 10**9 + 3 * 500_000_000
        assert (steps[3]["duration_ns"], steps[3]["forward_ns"], steps[3]["loader_ns"]) == (
            10**8,
            3 * 10**7,
            15 * 10**6,
        )
        assert trace.nodes == ["algo-1", "algo-2"]
        system = trace.system().to_pandas()
        of_node = system[(system.node == "algo-2") & (system.device == "node")]
        means = of_node.groupby("metric").value.mean().to_dict()
        assert means == {
            "cpu_percent": 94.5,
            "cpu_busiest_core_percent": 95.0,
            "iowait_percent": 2.0,
            "iowait_worst_core_percent": 4.0,
            "memory_percent": 55.0,
        }
        assert set(system.device) == {"node", "core:0", "core:1", "gpu0"}
        assert len(of_node) == 5 * 1200


def test_sagemakers_rules_judge_them(profiled: Path) -> None:
    results = analyze(Trace(find_runs([profiled.parent])[0]), configure(["sagemaker-profiler"])).results
    status = {result.rule: result.status for result in results}
    assert status["LowGPUUtilization"] is Status.ISSUES_FOUND
    assert status["StepOutlier"] is Status.ISSUES_FOUND
    assert status["IOBottleneck"] is Status.NO_ISSUES_FOUND
    busy = next(result for result in results if result.rule == "StepOutlier")
    assert busy.findings[0].value == 12


def test_a_directory_that_grows(tmp_path: Path) -> None:
    folder = tmp_path / "profiler-output"
    write_metrics(folder, 1)
    importer = ProfilerImporter(folder, tmp_path / "run")
    importer.poll()
    write_metrics(folder, 3)
    write_timeline(folder, 20)
    (folder / "framework" / "1-algo-1_pythontimeline.json.tmp").write_text("[{")
    importer.poll()
    importer.finish()
    trace = Trace(tmp_path / "run")
    assert trace.table("steps").num_rows == 20
    assert len(set(trace.system()["time_ns"].to_pylist())) == 3 * 120


def test_without_anything(tmp_path: Path) -> None:
    (tmp_path / "system" / "incremental").mkdir(parents=True)
    assert not is_profiler_directory(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "stepwatch.cli", "show", str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1


GOOD = sample(0, "cpu0", "CPUUtilization", 5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{\n" + GOOD, "line 1: "),
        ("[]\n" + GOOD, "line 1: holds a list; expected an object"),
        (GOOD.replace("5", "null") + "\n" + GOOD, "line 1: "),
        (GOOD.replace('"Value": 5', '"Value": NaN') + "\n" + GOOD, "line 1: Value is nan; expected a number"),
        (GOOD.replace('"algo-1"', "7") + "\n" + GOOD, "line 1: NodeId is 7; expected text"),
        (GOOD.replace(str(BEGAN), "-1") + "\n" + GOOD, "line 1: Timestamp is -1"),
        ("[" * 100_000 + "\n" + GOOD, "line 1: "),
    ],
)
def test_a_damaged_file_of_metrics(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "f.json"
    path.write_text(text)
    with pytest.raises(TraceError) as error:
        read_system_metrics(path)
    assert said in str(error.value) and str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def test_a_last_line_that_is_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    path.write_text(GOOD + "\n" + GOOD[:30])
    assert [metric.value for metric in read_system_metrics(path)] == [5]


@pytest.mark.parametrize(
    "text",
    ["", "{}", "7", "[1]", "[" * 100_000, '[{"ph": "X"}]', '[{"ph": "X", "ts": 1e400}]', '[{"ph": "X", "ts": "1"}]'],
)
def test_a_damaged_timeline(tmp_path: Path, text: str) -> None:
    path = tmp_path / "f.json"
    path.write_text(text)
    with pytest.raises(TraceError) as error:
        read_timeline(path, "0-algo-1")
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from(["ph", "ts", "dur", "pid", "tid", "name", "args", "step_num", "Type", "Value", "Timestamp"])
entries = st.lists(
    st.dictionaries(keys, json_values | st.sampled_from(["X", "B", "E", "M", "i"]), max_size=6), max_size=6
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(entries, st.binary(max_size=40))
def test_whatever_they_hold(tmp_path: Path, content: list[dict[str, Any]], noise: bytes) -> None:
    path = tmp_path / "f.json"
    readers: list[Callable[[], object]] = [lambda: read_timeline(path, "0-a"), lambda: read_system_metrics(path)]
    for written in (json.dumps(content).encode(), json.dumps(content).encode() + noise, noise + b"\n\n"):
        path.write_bytes(written)
        for read in readers:
            try:
                read()
            except TraceError as error:
                assert "\n" not in str(error)


@pytest.mark.smdebug
@pytest.mark.skipif(not REFERENCE.exists(), reason=f"no smdebug at {REFERENCE}; scripts/smdebug_env.sh makes it")
def test_a_timeline_that_smdebug_wrote(tmp_path: Path) -> None:
    detailed = '{"StartStep": 0, "NumSteps": 100}'
    parameters = {"LocalPath": str(tmp_path / "profile"), "DetailedProfilingConfig": detailed}
    (tmp_path / "profiler.json").write_text(json.dumps({"ProfilingParameters": parameters}))
    script = tmp_path / "train.py"
    script.write_text(
        "import smdebug.pytorch as smd, sys, torch\n"
        "model = torch.nn.Linear(2, 1)\n"
        "hook = smd.Hook(sys.argv[1])\n"
        "hook.register_module(model)\n"
        "for mode, steps in ((smd.modes.TRAIN, 4), (smd.modes.EVAL, 2), (smd.modes.TRAIN, 3)):\n"
        "    hook.set_mode(mode)\n"
        "    for _ in range(steps):\n"
        "        model(torch.zeros(1, 2)).sum().backward()\n"
        "hook.close()\n"
    )
    environment = {**os.environ, "SMPROFILER_CONFIG_PATH": str(tmp_path / "profiler.json")}
    command = [str(REFERENCE), str(script), str(tmp_path / "tensors")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [file.kind for file in profiler_files(tmp_path / "profile")] == ["pythontimeline"]
    rows = Trace(tmp_path / "profile").table("steps").to_pylist()
    first, last = [("TRAIN", n) for n in range(4)], [("TRAIN", n) for n in (4, 5, 6)]
    expected = [*first, ("EVAL", 0), ("EVAL", 1), *last]
    assert [(row["mode"], row["mode_step"]) for row in rows] == expected
    assert all(0 < (row["forward_ns"] or 1) <= row["duration_ns"] for row in rows)
