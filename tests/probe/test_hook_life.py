"""How a recording begins, goes on and ends: exceptions, signals, forks, resumes, stops, bad arguments."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from stepwatch.probe import Hook, SaveConfig, TrainingStopped, modes
from stepwatch.probe.store.control import read_acknowledgement, request_stop
from stepwatch.probe.store.errors import TraceError
from stepwatch.probe.store.reader import Trace
from tests.forked import start_script

from .conftest import Net, batch, frame, scalar

TRAINING = """
import sys, time, torch
from torch import nn
from stepwatch.probe import Hook, SaveConfig
torch.manual_seed(0)
torch.set_num_threads(1)
model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
optimizer = torch.optim.Adam(model.parameters())
loss_fn = nn.CrossEntropyLoss()
hook = Hook(sys.argv[1], model=model, optimizer=optimizer, loss_fn=loss_fn,
            save_config=SaveConfig(save_interval=1))
def train(steps, pause=0.0):
    for _ in range(steps):
        x = torch.randn(16, 6)
        optimizer.zero_grad()
        loss_fn(model(x), x[:, :3].argmax(1)).backward()
        optimizer.step()
        time.sleep(pause)
"""


def script(body: str, run: Path) -> subprocess.Popen[str]:
    code = TRAINING + textwrap.dedent(body)
    return subprocess.Popen(
        [sys.executable, "-c", code, str(run)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_steps(run: Path, count: int, timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        try:
            if Trace(run).table("steps", columns=["step"]).num_rows >= count:
                return
        except TraceError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"{run} did not reach {count} steps")


def test_closed_at_interpreter_exit(tmp_path: Path) -> None:
    process = script("train(30)", tmp_path / "run")
    assert process.wait(60) == 0
    trace = Trace(tmp_path / "run")
    end = trace.end(0)
    assert end is not None
    assert (end.status, end.last_step) == ("finished", 30)
    assert trace.table("steps").num_rows == 30
    assert not trace.live()


def test_an_uncaught_exception_is_recorded_and_still_shown(tmp_path: Path) -> None:
    process = script("train(5)\nraise RuntimeError('out of luck')", tmp_path / "run")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "RuntimeError: out of luck" in errors
    end = Trace(tmp_path / "run").end(0)
    assert end is not None
    assert (end.status, end.reason) == ("exception", "RuntimeError: out of luck")


def test_sigterm_writes_everything_and_ends_the_process_as_without_us(tmp_path: Path) -> None:
    process = script("train(100000, 0.01)", tmp_path / "run")
    wait_for_steps(tmp_path / "run", 5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == -signal.SIGTERM
    end = Trace(tmp_path / "run").end(0)
    assert end is not None
    assert end.status == "signal"
    steps = frame(tmp_path / "run", "steps")["step"].tolist()
    assert steps == list(range(len(steps)))
    assert end.last_step in (len(steps), len(steps) - 1)


def test_sigterm_waits_for_a_close_that_is_under_way(tmp_path: Path) -> None:
    process = script(
        """
        train(30)
        flush = hook._writer.flush
        def slow_flush():  # a slow disk
            print("closing", flush=True)
            time.sleep(1)
            flush()
        hook._writer.flush = slow_flush
        hook.close()
        time.sleep(60)
        """,
        tmp_path / "run",
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "closing\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == -signal.SIGTERM
    assert frame(tmp_path / "run", "steps")["step"].tolist() == list(range(30))
    end = Trace(tmp_path / "run").end(0)
    assert end is not None
    assert end.status == "finished"


def test_the_scripts_own_sigterm_handler_stays(tmp_path: Path) -> None:
    process = script(
        """
        import signal
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
        train(100000, 0.01)
        """,
        tmp_path / "run",
    )
    wait_for_steps(tmp_path / "run", 5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 7
    end = Trace(tmp_path / "run").end(0)
    assert end is not None
    assert end.status == "finished"


def test_killed_runs_keep_everything_older_than_a_flush(tmp_path: Path) -> None:
    clock = random.Random(1)
    for number in range(10):
        run = tmp_path / f"run{number}"
        process = start_script(TRAINING + "train(100000, 0.002)", run)
        wait_for_steps(run, 1)
        time.sleep(clock.random())
        killed_ns = time.time_ns()
        process.kill()
        process.join()
        trace = Trace(run)
        steps = trace.table("steps").to_pandas()
        assert len(steps) and steps["step"].tolist() == list(range(len(steps)))
        assert killed_ns - steps["time_ns"].iloc[-1] < 20e9  # a second, and what a busy machine is late
        stats = trace.table("stats", columns=["step", "name"]).to_pandas()
        counts = stats.groupby("step").size()
        assert set(counts.loc[steps["step"]]) == {9}
        assert trace.warnings == []
        assert not trace.live()
        assert trace.end(0) is None


def test_a_step_is_on_disk_soon_even_when_nothing_follows_it(tmp_path: Path) -> None:
    process = script("train(3)\ntime.sleep(60)", tmp_path / "run")
    try:
        wait_for_steps(tmp_path / "run", 3, timeout=30)
    finally:
        process.kill()
        process.wait()


def test_data_loader_workers_neither_write_nor_hang(tmp_path: Path, make_hook) -> None:
    model, loss_fn = Net(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hook = make_hook(model=model, optimizer=optimizer, loss_fn=loss_fn)
    x, y = batch(64)
    for _ in range(2):
        for inputs, labels in DataLoader(TensorDataset(x, y), batch_size=8, num_workers=2):
            optimizer.zero_grad()
            loss_fn(model(inputs), labels).backward()
            optimizer.step()
    hook.close()
    assert frame(tmp_path / "run", "steps")["step"].tolist() == list(range(16))
    assert Trace(tmp_path / "run").counters == {}


def test_a_forked_child_leaves_the_trace_alone(tmp_path: Path, make_hook) -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hook = make_hook(model=model, optimizer=optimizer)
    model(batch()[0]).sum().backward()
    optimizer.step()
    child = os.fork()
    if child == 0:
        hook.log("from the child", 1.0)
        hook.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    hook.log("from the parent", 2.0)
    hook.close()
    names = set(frame(tmp_path / "run", "scalars")["name"])
    assert "from the parent" in names and "from the child" not in names


def train_some(
    hook_of, run: Path, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, **options
) -> list[float]:
    hook = hook_of(out_dir=run, model=model, optimizer=optimizer, loss_fn=nn.CrossEntropyLoss(), **options)
    loss_fn = nn.CrossEntropyLoss()
    hook.watch_loss(loss_fn)
    losses = []
    for _ in range(steps):
        x, y = batch()
        optimizer.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    hook.close()
    return losses


@pytest.mark.parametrize("told", [False, True])
def test_a_resumed_job_continues_its_trace_and_replaces_what_it_repeats(tmp_path: Path, make_hook, told: bool) -> None:
    run, model = tmp_path / "run", Net()
    optimizer = torch.optim.Adam(model.parameters())
    first = train_some(make_hook, run, model, optimizer, 10)
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    lost = train_some(make_hook, run, model, optimizer, 5)  # counts on by Adam's own count
    model = Net()
    model.load_state_dict(saved["model"])
    optimizer = torch.optim.Adam(model.parameters())
    options = {"start_step": 10} if told else {}
    if not told:
        optimizer.load_state_dict(saved["optimizer"])
        for state in optimizer.state.values():
            state["step"] = torch.tensor(10.0)
    again = train_some(make_hook, run, model, optimizer, 8, **options)
    assert len(lost) == 5
    assert frame(run, "steps")["step"].tolist() == list(range(18))
    assert scalar(run, "CrossEntropyLoss_output_0") == pytest.approx([*first, *again], rel=1e-6)
    assert len(Trace(run).attempts(0).entries) == 3


def test_a_fresh_start_in_the_same_directory_replaces_the_old_run(tmp_path: Path, make_hook) -> None:
    run = tmp_path / "run"
    for steps in (8, 3):
        model = Net()
        train_some(make_hook, run, model, torch.optim.SGD(model.parameters(), lr=0.1), steps)
    assert frame(run, "steps")["step"].tolist() == [0, 1, 2]


def stop_options(saved: Path) -> dict[str, object]:
    def checkpoint(step: int) -> Path:
        path = saved / f"step-{step}.pt"
        torch.save({"step": step}, path)
        return path

    return {"checkpoint": checkpoint}


def test_a_stop_from_outside_raises_at_a_step_boundary_after_the_checkpoint(tmp_path: Path, make_hook) -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    make_hook(model=model, optimizer=optimizer, **stop_options(tmp_path))
    run = tmp_path / "run"
    identity = ""
    done = 0
    with pytest.raises(TrainingStopped, match="enough") as caught:
        for _ in range(10000):
            model(batch()[0]).sum().backward()
            optimizer.step()
            done += 1
            if done == 3:
                identity = request_stop(run, "enough", by="a test")
            time.sleep(0.002)
    assert caught.value.step == done + 1
    assert done >= 3
    assert torch.load(caught.value.checkpoint)["step"] == caught.value.step
    answer = read_acknowledgement(run, 0)
    assert answer is not None
    assert (answer.request_id, answer.step, answer.checkpoint) == (identity, done + 1, caught.value.checkpoint)
    end = Trace(run).end(0)
    assert end is not None
    assert (end.status, end.reason) == ("stopped", "enough")


@pytest.mark.parametrize(("ranks", "recorded", "late"), [("all", [0, 1], 5.0), ("first", [0], 0.0)])
def test_all_ranks_stop_at_the_same_step(tmp_path: Path, ranks: str, recorded: list[int], late: float) -> None:
    """Two real processes under torchrun, in lockstep through gloo; a stop in between would hang one of them.

    In the first case rank 1 listens so seldom that it learns of the request when the others would be gone.
    """
    (tmp_path / "job.py").write_text(
        """
import time, torch
from torch import nn
from stepwatch.probe import Hook
torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
model = nn.parallel.DistributedDataParallel(nn.Linear(6, 3))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
hook = Hook(
    "run", model=model, optimizer=optimizer, ranks="RANKS", checkpoint=lambda step: f"rank{rank}-{step}.pt"
)
if rank == 1:
    poll = hook._stopper.poll
    hook._stopper.poll = lambda *steps: (time.sleep(LATE), poll(*steps))
try:
    for _ in range(100000):
        optimizer.zero_grad()
        model(torch.randn(4, 6)).square().mean().backward()
        optimizer.step()
except Exception as error:
    print(f"{rank} {type(error).__name__}\\n", end="", flush=True)  # in one piece: the ranks share the output
torch.distributed.destroy_process_group()
""".replace("RANKS", ranks).replace("LATE", str(late))
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "job.py"]
    job = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_steps(tmp_path / "run", 50, timeout=90)
    identity = request_stop(tmp_path / "run", "enough", by="a test")
    output, errors = job.communicate(timeout=90)
    assert sorted(output.splitlines()) == ["0 TrainingStopped", "1 TrainingStopped"], errors
    answers = [read_acknowledgement(tmp_path / "run", rank) for rank in (0, 1)]
    assert answers[0] is not None and answers[1] is not None
    assert answers[0].request_id == answers[1].request_id == identity
    assert answers[0].step == answers[1].step
    assert answers[1].checkpoint == f"rank1-{answers[1].step}.pt"
    assert Trace(tmp_path / "run").ranks == recorded


@pytest.mark.parametrize("style", ["flag", "callable"])
def test_a_stop_by_flag_or_callable_lets_the_script_end_itself(tmp_path: Path, make_hook, style: str) -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    heard: list[str] = []
    hook = make_hook(model=model, optimizer=optimizer, stop="flag" if style == "flag" else heard.append)
    hook.request_stop("enough")
    for _ in range(3):
        model(batch()[0]).sum().backward()
        optimizer.step()
    assert hook.should_stop
    assert heard == ([] if style == "flag" else ["enough"])


def test_a_checkpoint_that_fails_does_not_prevent_the_stop(tmp_path: Path, make_hook) -> None:
    def checkpoint(step: int) -> str:
        raise OSError("disk full")

    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hook = make_hook(model=model, optimizer=optimizer, checkpoint=checkpoint)
    hook.request_stop("enough")
    with pytest.raises(TrainingStopped):
        model(batch()[0]).sum().backward()
        optimizer.step()
    answer = read_acknowledgement(tmp_path / "run", 0)
    assert answer is not None and answer.checkpoint is None


def test_an_error_in_the_hook_never_reaches_the_job(tmp_path: Path, make_hook, caplog) -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hook = make_hook(model=model, optimizer=optimizer)
    for _ in range(3):
        model(batch()[0]).sum().backward()
        optimizer.step()
        hook.log("wrong", torch.zeros(3))
        hook.log("also wrong", "text")  # type: ignore[arg-type]
        hook.set_mode("TRAIN")  # type: ignore[arg-type]
    hook.close()
    trace = Trace(tmp_path / "run")
    assert trace.counters["hook_errors"] == 9
    assert len(trace.notes) == 3 and "3 entries" in trace.notes[0]
    assert trace.table("steps").num_rows == 3
    assert len([r for r in caplog.records if "training goes on" in r.message]) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": 3}, "model is a int; expected a torch.nn.Module"),
        ({"optimizer": [1]}, "optimizer is a int"),
        ({"loss_fn": 3}, "loss_fn is a int"),
        ({"overhead_budget": 2.0}, "overhead_budget is 2.0"),
        ({"include_regex": ["("]}, "'\\(' is not a regular expression"),
        ({"stop": "never"}, "stop is 'never'"),
        ({"actions": ["stop"]}, "actions were given without rules"),
        ({"rules": "recomended"}, "did you mean recommended"),
        ({"rules": "recommended", "actions": ["halt"]}, "action 'halt' is unknown"),
        ({"ranks": "none"}, "ranks is 'none'; expected 'all', 'first', 'node' or numbers"),
        ({"ranks": [1]}, "0 among them"),
        ({"system_interval": -1}, "system_interval is -1"),
    ],
)
def test_bad_arguments_are_named(tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Hook(tmp_path / "run", **options)  # type: ignore[arg-type]
    Hook(tmp_path / "run", system_interval=0).close()  # nothing is left locked


def test_two_hooks_cannot_write_one_directory(tmp_path: Path, make_hook) -> None:
    make_hook()
    with pytest.raises(TraceError, match=f"being written by process {os.getpid()}"):
        Hook(tmp_path / "run")


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TraceError, match="file/run"):
        Hook(tmp_path / "file" / "run")


def test_the_governor_holds_its_budget_and_keeps_every_loss(tmp_path: Path, make_hook) -> None:
    model, loss_fn = nn.Sequential(*[nn.Linear(64, 64) for _ in range(8)], nn.Linear(64, 3)), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    hook = make_hook(model=model, optimizer=optimizer, loss_fn=loss_fn, save_config=SaveConfig(), overhead_budget=0.001)
    for _ in range(300):
        optimizer.zero_grad()
        loss_fn(model(torch.randn(8, 64)), torch.randint(3, (8,))).backward()
        optimizer.step()
    hook.close()
    steps = frame(tmp_path / "run", "steps")
    saved = steps[steps["saved"]]["step"].tolist()
    assert saved[:10] == list(range(10))
    assert len(saved) < 100
    assert len(scalar(tmp_path / "run", "CrossEntropyLoss_output_0")) == 300
    chosen = frame(tmp_path / "run", "scalars", names=["stepwatch/save_interval"]).sort_values("step")
    last = chosen.iloc[-1]
    assert last["value"] > 1
    assert {step % last["value"] for step in saved if step > max(last["step"], 10)} <= {0}


def test_the_machine_is_sampled_beside_the_training(tmp_path: Path, make_hook) -> None:
    hook = make_hook(system_interval=0.1)
    time.sleep(0.8)
    hook.close()
    samples = Trace(tmp_path / "run").system().to_pandas()
    resident = samples[(samples["device"] == "process") & (samples["metric"] == "memory_rss_bytes")]["value"]
    assert len(resident) >= 3
    assert (resident > 50e6).all()
    assert {"cpu_percent", "memory_percent", "load_1min"} <= set(samples[samples["device"] == "node"]["metric"])


def test_the_runs_description(tmp_path: Path, make_hook) -> None:
    make_hook(job_name="night shift").close()
    content = json.loads((tmp_path / "run" / "run.json").read_text())
    assert content["job_name"] == "night shift"
    assert content["format_version"] == 1
    assert content["versions"]["torch"] == torch.__version__
    assert content["config"]["save_config"]["TRAIN"]["save_interval"] == 1
    assert modes.TRAIN.value == 1


class _Pruned(Exception):
    pass


def test_what_the_scripts_own_way_of_stopping_raises_reaches_it(tmp_path: Path, make_hook) -> None:
    def prune(reason: str) -> None:
        raise _Pruned(reason)

    model = Net()
    hook = make_hook(model=model, stop=prune)  # without an optimizer it is a forward pass that stops
    model(batch()[0])
    hook.request_stop("no use")
    with pytest.raises(_Pruned, match="no use"):
        for _ in range(200):
            model(batch()[0])
            time.sleep(0.05)
