"""Traces of torch.profiler as runs: real ones of the CPU, and one made up of a CUDA device."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from stepwatch.cli.main import main
from stepwatch.probe.store.errors import TraceError
from stepwatch.probe.store.kineto import parsing
from stepwatch.probe.store.kineto.intervals import Intervals
from stepwatch.probe.store.kineto.parsing import read_kineto
from stepwatch.probe.store.kineto.summary import Summary, summarise
from stepwatch.probe.store.profiles import profiles_of
from stepwatch.probe.store.reader import Trace
from tests.deep import made_up

Marked = dict[str, list[float]]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Marked]:
    """A trace of training on the CPU, and the milliseconds of the phases as the script marked them itself."""
    torch.manual_seed(0)
    model = nn.Sequential(*(layer for _ in range(4) for layer in (nn.Linear(256, 256), nn.ReLU())))
    optimizer = torch.optim.AdamW(model.parameters())
    loader = DataLoader(TensorDataset(torch.randn(160, 256)), batch_size=16)
    path = tmp_path_factory.mktemp("real") / "trace.json.gz"
    with torch.profiler.profile(
        record_shapes=True,
        profile_memory=True,
        schedule=torch.profiler.schedule(wait=1, warmup=1, active=6, repeat=1),
        on_trace_ready=lambda profiler: profiler.export_chrome_trace(str(path)),
    ) as profiler:
        for (x,) in loader:
            with torch.profiler.record_function("mine/forward"):
                loss = model(x).square().mean()
            optimizer.zero_grad()
            with torch.profiler.record_function("mine/backward"):
                loss.backward()
            with torch.profiler.record_function("mine/optimizer"):
                optimizer.step()
            profiler.step()
    with gzip.open(path) as file:
        events = json.load(file)["traceEvents"]
    marked = {
        phase: [e["dur"] / 1e3 for e in events if e["name"] == f"mine/{phase}" and e["cat"] == "user_annotation"]
        for phase in ("forward", "backward", "optimizer")
    }
    return path, marked


@pytest.fixture(scope="module")
def cuda(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    path = made_up.write(tmp_path_factory.mktemp("cuda") / "trace.json", steps=5, layers=16)
    return summarise(read_kineto(path), 0)


def command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit:
        main([str(argument) for argument in arguments])
    return int(exit.value.code or 0)


def test_phases_are_those_that_the_script_marked(real: tuple[Path, Marked]) -> None:
    path, marked = real
    steps = summarise(read_kineto(path), 0).steps
    assert len(steps) == 6
    for phase in ("forward", "backward", "optimizer"):
        ours = np.array([getattr(step, f"{phase}_ns") / 1e6 for step in steps])
        theirs = np.array(marked[phase][-6:])
        # backward() makes its first gradient before autograd's first node, which counts as forward
        assert np.median(np.abs(theirs - ours) / theirs) < 0.3, phase
    assert all(step.loader_ns > 0 and step.data_ns >= step.loader_ns for step in steps)


def test_self_times_and_calls_are_torchs(real: tuple[Path, Marked]) -> None:
    path, _ = real
    with gzip.open(path) as file:
        events = [e for e in json.load(file)["traceEvents"] if e.get("cat") == "cpu_op"]
    operators = {operator.name: operator for operator in summarise(read_kineto(path), 0).operators}
    mm = [event for event in events if event["name"] == "aten::addmm"]
    assert operators["aten::addmm"].calls == len(mm) == 24
    assert operators["aten::addmm"].total_ns == pytest.approx(1e3 * sum(e["dur"] for e in mm), abs=100)
    assert operators["aten::addmm"].self_ns < operators["aten::addmm"].total_ns
    whole = sum(operator.self_ns for operator in operators.values())
    assert whole <= sum(step.duration_ns for step in summarise(read_kineto(path), 0).steps) * 1.01


def test_a_real_trace_becomes_a_run(
    real: tuple[Path, Marked], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = real
    assert command("import", path, "-o", tmp_path / "run") == 0
    trace = Trace(tmp_path / "run")
    rows = trace.table("steps").to_pandas()
    assert rows["step"].tolist() == [2, 3, 4, 5, 6, 7]
    parts = rows[["data_ns", "forward_ns", "backward_ns", "optimizer_ns"]].sum(axis=1)
    assert (parts <= rows["duration_ns"]).all()
    assert (parts / rows["duration_ns"]).median() > 0.5  # a busy machine may stall one step between its phases
    assert trace.status() == "finished"
    assert command("profile", tmp_path / "run", "--json") == 0
    shown = capsys.readouterr().out
    (profile,) = json.loads(shown[shown.index("[") :])
    assert profile["trace"] == str(path) and len(profile["summary"]["steps"]) == 6
    assert command("import", path, tmp_path / "run") == 2
    assert "holds something already" in capsys.readouterr().err


def test_what_a_device_did_adds_up(cuda: Summary) -> None:
    (use,) = cuda.uses
    assert use.computation_ns + use.communication_ns + use.memory_ns + use.idle_ns == use.span_ns
    assert use.host_ns + use.short_ns + use.other_ns == use.idle_ns
    assert use.collectives_ns == 5 * 2 * 300_000
    assert use.hidden_ns + use.communication_ns == use.collectives_ns
    # The last collective of a step has nothing to hide behind; the other has the rest of the backward pass.
    assert use.communication_ns == pytest.approx(5 * 300_000, rel=0.1)
    kinds = {kernel.name[:8]: kernel.kind for kernel in cuda.kernels}
    assert kinds["ncclDevK"] == "communication" and kinds["ampere_b"] == "computation"
    assert kinds["Memcpy H"] == "memory"
    assert cuda.memory[0].device == 0 and cuda.memory[0].peak_bytes == 3 << 30


def test_a_late_host_is_told_from_the_cost_of_starting_kernels(cuda: Summary) -> None:
    (use,) = cuda.uses
    gap = cuda.gaps[0]
    assert "DataLoader" in gap.host  # the device waits for the batch between two steps
    assert gap.duration_ns > 400_000 and use.host_ns >= 4 * gap.duration_ns * 0.9
    assert 0 < use.short_ns < use.host_ns


def test_queues_are_counted_as_launches_find_them(tmp_path: Path) -> None:
    def kernel(number: int, launch: float, start: float, end: float) -> list[dict[str, Any]]:
        both = {"ph": "X", "pid": 0, "tid": 7, "args": {"correlation": number, "stream": 7, "device": 0}}
        return [
            {**both, "cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": launch, "dur": 1},
            {**both, "cat": "kernel", "name": "k", "ts": start, "dur": end - start},
        ]

    events = [*kernel(1, 0, 10, 20), *kernel(2, 2, 20, 30), *kernel(3, 4, 30, 40), *kernel(4, 50, 60, 70)]
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({"traceEvents": events}))
    summary = summarise(read_kineto(path), 0)
    (queue,) = summary.queues
    assert (queue.launches, queue.longest, queue.mean) == (4, 3, (1 + 2 + 3 + 1) / 4)
    assert queue.delay_ns == 14_000
    (use,) = summary.uses
    assert (use.idle_ns, use.host_ns) == (20_000, 20_000)  # launched at 50, when the third was done at 40


def test_ranks_are_imported_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [made_up.write(tmp_path / f"{rank}.json.gz", 3, 8, rank, world_size=2) for rank in (1, 0)]
    assert command("import", *files, tmp_path / "run") == 0
    trace = Trace(tmp_path / "run")
    assert trace.ranks == [0, 1] and trace.info.world_size == 2
    assert trace.info.start_ns // 10**9 == made_up.EPOCH_US // 10**6
    assert [profile.rank for profile in profiles_of(tmp_path / "run")] == [0, 1]
    assert command("profile", tmp_path / "run", "--rank", 1) == 0
    shown = capsys.readouterr().out
    assert "rank 1, steps 10 to 12" in shown and "hidden" in shown
    assert command("import", tmp_path, "-o", tmp_path / "again") == 0  # a directory of traces
    assert command("import", files[0], files[0], tmp_path / "twice") == 2
    assert "both of rank 1" in capsys.readouterr().err


def test_a_trace_is_read_alike_in_pieces_and_with_either_parser(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made_up.write(tmp_path / "trace.json", 3, 8)
    whole = summarise(read_kineto(path), 0)
    monkeypatch.setattr(parsing, "_PIECE", 5000)
    assert summarise(read_kineto(path), 0) == whole
    monkeypatch.setattr(parsing, "loads", json.loads)
    assert summarise(read_kineto(path), 0) == whole
    tight = tmp_path / "tight.json"
    tight.write_text(json.dumps(json.loads(path.read_text()), separators=(",", ":")))
    assert summarise(read_kineto(tight), 0) == whole
    bare = tmp_path / "bare.json"
    bare.write_text(json.dumps(json.loads(path.read_text())["traceEvents"]))
    assert summarise(read_kineto(bare), 0).uses == whole.uses


def test_a_trace_without_steps_says_so(tmp_path: Path) -> None:
    event = {"ph": "X", "cat": "cpu_op", "name": "aten::add", "pid": 1, "tid": 1, "ts": 5.0, "dur": 2.0}
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({"schemaVersion": 1, "traceEvents": [event]}))
    assert command("import", path, tmp_path / "run") == 0
    assert any("marks no steps" in note for note in Trace(tmp_path / "run").notes)
    (profile,) = profiles_of(tmp_path / "run")
    assert profile.summary().operators[0].self_ns == 2000


def test_names_can_do_nothing_to_a_terminal(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    path.write_text(_event(name="\x1b[2Jgone\n" + "x" * 10_000))
    (operator,) = summarise(read_kineto(path), 0).operators
    assert operator.name.startswith("\ufffd[2Jgone\ufffdx") and len(operator.name) == 500


def test_traces_from_before_categories_were_renamed_are_read(tmp_path: Path) -> None:
    path = made_up.write(tmp_path / "trace.json", 2, 4)
    now = summarise(read_kineto(path), 0)
    text = path.read_text()
    for new, old in (
        ("cpu_op", "Operator"),
        ("cuda_runtime", "Runtime"),
        ("kernel", "Kernel"),
        ("gpu_memcpy", "Memcpy"),
    ):
        text = text.replace(f'"cat": "{new}"', f'"cat": "{old}"')
    path.write_text(text)
    assert summarise(read_kineto(path), 0) == now


def _event(**changes: Any) -> str:
    event = {"ph": "X", "cat": "cpu_op", "name": "a", "pid": 1, "tid": 1, "ts": 1.0, "dur": 1.0}
    return json.dumps({"schemaVersion": 1, "traceEvents": [{**event, **changes}]})


HOSTILE: dict[str, Callable[[], bytes]] = {
    "cut off": lambda: _event().encode()[:-3],
    "not JSON": lambda: b'{"schemaVersion": 1, "traceEvents": [{"ph": X}]}',
    "deep": lambda: b'{"traceEvents": [' + b"[" * 200_000,
    "events that are numbers": lambda: b'{"traceEvents": [1, 2]}',
    "events that are no list": lambda: b'{"schemaVersion": 1, "traceEvents": {"a": 1}}',
    "no time": lambda: _event(ts=None).encode(),
    "time as text": lambda: _event(ts="soon").encode(),
    "endless time": lambda: _event(ts=1e300).encode(),
    "a name that is a list": lambda: _event(name=[1]).encode(),
    "a category that is a list": lambda: _event(cat=[1]).encode(),
    "arguments that are text": lambda: _event(args="x").encode(),
    "half a gzip": lambda: gzip.compress(_event().encode() * 3)[:-9],
    "a bomb": lambda: gzip.compress(b'{"traceEvents": [' + b" " * (70 << 20), 1),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_no_trace_is_refused_in_one_line(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "trace.json"
    path.write_bytes(HOSTILE[kind]())
    with pytest.raises(TraceError):
        read_kineto(path)
    assert command("import", path, tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert said.startswith("stepwatch: ") and said.count("\n") == 1 and str(path) in said
    assert not (tmp_path / "run").exists()


def test_intervals_cover_what_any_of_them_covers() -> None:
    rng = np.random.default_rng(0)
    starts = rng.integers(0, 900, 60)
    ends = starts + rng.integers(0, 40, 60)
    times = np.arange(1000)
    covered = ((times >= starts[:, None]) & (times < ends[:, None])).any(axis=0)
    united = Intervals.of(starts, ends)
    assert united.total == covered.sum()
    windows = rng.integers(0, 500, 20)
    expected = [covered[a : a + 77].sum() for a in windows]
    assert united.within(windows, windows + 77).tolist() == expected
    other = Intervals.of(starts[:20] + 300, ends[:20] + 350)
    both = ((times >= other.starts[:, None]) & (times < other.ends[:, None])).any(axis=0)
    assert united.shared(other) == (covered & both).sum()
    assert united.gaps().total == int(united.ends[-1] - united.starts[0]) - united.total
