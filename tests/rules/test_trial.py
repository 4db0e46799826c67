"""Queries in smdebug's shape, on traces of the real hook, checked against what the training itself computed."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from stepwatch.probe import Hook, ReductionConfig, SaveConfig, modes
from stepwatch.probe.statistics import measure
from stepwatch.probe.store.errors import TraceError
from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.records import StepRecord
from stepwatch.probe.store.schema import STAT_COLUMNS
from stepwatch.probe.store.writer import TraceWriter
from stepwatch.rules.catalogue import RuleSpec, configure
from stepwatch.rules.exceptions import (
    InvalidWorker,
    NoMoreData,
    ShapeUnavailableForStep,
    SMDebugError,
    StepNotYetAvailable,
    StepUnavailable,
    TensorUnavailable,
    TensorUnavailableForStep,
)
from stepwatch.rules.finding import Status
from stepwatch.rules.reductions import REDUCTIONS, computed, derived
from stepwatch.rules.replay import analyze
from stepwatch.rules.trial import StepState, Trial, create_trial
from stepwatch.rules.trial_rule import TrialRule


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.relu(self.fc(x))
        return out


@dataclass
class Truth:
    """A run and what happened in it."""

    run: Path
    weights: list[np.ndarray] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    eval_losses: list[float] = field(default_factory=list)


def train(run: Path, raw: bool) -> Truth:
    """Two epochs of three steps, each followed by two batches of evaluation; saved every second step."""
    torch.manual_seed(0)
    truth, model, loss_fn = Truth(run), Net(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    config = ReductionConfig(save_raw_tensor=raw)
    with Hook(
        run,
        model=model,
        optimizer=optimizer,
        loss_fn=loss_fn,
        save_config=SaveConfig(save_interval=2),
        reduction_config=config,
        system_interval=0,
    ) as hook:
        for epoch in range(2):
            model.train()
            for _ in range(3):
                truth.weights.append(model.fc.weight.detach().numpy().copy())
                optimizer.zero_grad()
                loss = loss_fn(model(torch.randn(8, 4)), torch.randint(0, 3, (8,)))
                loss.backward()
                truth.losses.append(loss.item())
                optimizer.step()
            model.eval()
            with torch.no_grad():
                for _ in range(2):
                    truth.eval_losses.append(loss_fn(model(torch.randn(8, 4)), torch.randint(0, 3, (8,))).item())
            hook.log("accuracy", epoch / 4)
    return truth


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Truth:
    return train(tmp_path_factory.mktemp("trial") / "statistics", raw=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Truth:
    return train(tmp_path_factory.mktemp("trial") / "whole", raw=True)


LOSS = "CrossEntropyLoss_output_0"
WEIGHT = "Net_fc.weight"


def test_names_by_expression_collection_mode_and_step(truth: Truth) -> None:
    trial = create_trial(truth.run)
    assert trial.name == "statistics"
    names = [LOSS, WEIGHT, "Net_fc.bias", "accuracy", "gradient/Net_fc.bias", f"gradient/{WEIGHT}", "relu_output_0"]
    assert set(names) <= set(trial.tensor_names())
    assert trial.tensor_names() == sorted(trial.tensor_names())
    assert trial.tensor_names(regex="^gradient") == ["gradient/Net_fc.bias", f"gradient/{WEIGHT}"]
    assert trial.tensor_names(regex=["bias$", "relu"]) == ["Net_fc.bias", "gradient/Net_fc.bias", "relu_output_0"]
    assert trial.tensor_names(collection="weights") == [WEIGHT]
    assert trial.tensor_names(collection=trial.collection("losses")) == [LOSS]
    assert "accuracy" in trial.tensor_names(collection="metrics", mode=modes.EVAL)
    assert WEIGHT not in trial.tensor_names(mode=modes.EVAL)
    assert WEIGHT in trial.tensor_names(step=2) and WEIGHT not in trial.tensor_names(step=1)
    assert trial.tensor_names(step=99) == []
    assert trial.collection("nothing").tensor_names == set()
    assert trial.has_tensor(LOSS) and not trial.has_tensor("nothing")
    with pytest.raises(ValueError, match="both regex and collection"):
        trial.tensor_names(regex=".", collection="losses")
    with pytest.raises(TensorUnavailable, match="nothing"):
        trial.tensor("nothing")


def test_steps_and_modes(truth: Truth) -> None:
    trial = create_trial(truth.run)
    assert trial.steps() == [0, 1, 2, 3, 4, 5, 6]  # the last evaluation comes after six optimizer steps
    assert trial.steps(modes.TRAIN) == [0, 1, 2, 3, 4, 5]
    assert trial.steps(modes.EVAL) == [0, 1, 2, 3]
    assert trial.modes() == [modes.TRAIN, modes.EVAL]
    assert trial.mode_modestep(3) == (modes.TRAIN, 3)
    assert trial.mode(6) is modes.EVAL and trial.mode_step(6) == 3
    assert trial.mode(7) is None and trial.mode_step(7) is None
    assert trial.global_step(modes.EVAL, 1) == 3 and trial.global_step(modes.EVAL, 9) is None
    assert trial.workers() == ["worker_0"]
    assert trial.tensor(WEIGHT).steps() == [0, 2, 4]
    assert trial.tensor(WEIGHT).prev_steps(3) == [0, 2]
    assert trial.tensor(WEIGHT).prev_steps(4, 2) == [2, 4]
    assert trial.tensor(LOSS).prev_steps(2, 2, modes.EVAL) == [1, 2]


def test_losses_and_scalars_are_values(truth: Truth) -> None:
    loss = create_trial(truth.run).tensor(LOSS)
    assert [loss.value(step).item() for step in range(6)] == pytest.approx(truth.losses)
    assert loss.value(0).shape == () == loss.shape(0)
    evals = loss.values(modes.EVAL)
    assert [evals[step].item() for step in range(4)] == pytest.approx(truth.eval_losses)
    assert loss.reduction_value(5, "mean") == pytest.approx(truth.losses[5])
    accuracy = create_trial(truth.run).tensor("accuracy")
    assert accuracy.steps() == [3, 6]
    assert accuracy.value(6).tolist() == [0.25]


def test_reductions_from_statistics(truth: Truth) -> None:
    weight = create_trial(truth.run).tensor(WEIGHT)
    for step in (0, 2, 4):
        array = truth.weights[step].astype(np.float64)
        assert weight.reduction_value(step, "mean") == pytest.approx(array.mean(), rel=1e-5)
        assert weight.reduction_value(step, "std") == pytest.approx(array.std(), rel=1e-5)
        assert weight.reduction_value(step, "variance", modes.TRAIN) == pytest.approx(array.var(), rel=1e-5)
        assert weight.reduction_value(step, "mean", abs=True) == pytest.approx(np.abs(array).mean(), rel=1e-5)
        assert weight.reduction_value(step, "l2_norm") == pytest.approx(np.linalg.norm(array), rel=1e-5)
        assert weight.shape(step) == (3, 4)
        known = weight.reduction_values(step)
        assert known[("max", True)] == pytest.approx(np.abs(array).max())
        assert ("prod", False) not in known
    with pytest.raises(TensorUnavailableForStep, match=r"value of Net_fc.weight .* statistics of it were"):
        weight.value(0)
    with pytest.raises(TensorUnavailableForStep, match="prod of"):
        weight.reduction_value(0, "prod")
    with pytest.raises(TensorUnavailableForStep, match="at step 1 of mode GLOBAL"):
        weight.reduction_value(1, "mean")
    with pytest.raises(StepUnavailable):
        weight.reduction_value(99, "mean")
    with pytest.raises(InvalidWorker, match="worker_7"):
        weight.reduction_value(0, "mean", worker="worker_7")
    assert weight.workers(0) == ["worker_0"]


def test_whole_tensors(whole: Truth) -> None:
    weight = create_trial(whole.run).tensor(WEIGHT)
    values = weight.values()
    assert list(values) == [0, 2, 4]
    for step, value in values.items():
        np.testing.assert_array_equal(value, whole.weights[step])
        assert weight.shape(step) == (3, 4)
        product = float(np.prod(whole.weights[step].astype(np.float64)))
        assert weight.reduction_value(step, "prod") == pytest.approx(product)
        least = float(np.abs(whole.weights[step]).min())
        assert weight.reduction_value(step, "min", abs=True) == pytest.approx(least)


def test_a_range_of_steps(truth: Truth) -> None:
    trial = create_trial(truth.run, name="part", range_steps=(2, 4))
    assert trial.name == "part" and trial.steps() == [2, 3]
    assert create_trial(truth.run, range_steps=(None, 2)).steps() == [0, 1]
    with pytest.raises(ValueError, match="first step below the end"):
        create_trial(truth.run, range_steps=(4, 4))


def test_waiting_on_a_run_that_has_ended(truth: Truth) -> None:
    trial = create_trial(truth.run)
    trial.wait_for_steps([0, 6])
    assert trial.loaded_all_steps
    with pytest.raises(NoMoreData, match=r"before step 7 .* the last step is 6"):
        trial.wait_for_steps([7])
    with pytest.raises(StepUnavailable):
        create_trial(truth.run, range_steps=(2, None)).wait_for_steps([1])
    assert trial.has_passed_step(3) is StepState.AVAILABLE
    assert trial.has_passed_step(7) is StepState.UNAVAILABLE
    assert issubclass(NoMoreData, SMDebugError)


WRITE = """
import sys, time
from stepwatch.probe.store.records import StepRecord
from stepwatch.probe.store.writer import TraceWriter
writer = TraceWriter(sys.argv[1], flush_seconds=0.05)
for step in (0, 1, 3):
    sys.stdin.readline()
    writer.submit(StepRecord(step, "TRAIN", step, 1, scalars=[("loss", float(step))]))
    writer.flush()
sys.stdin.readline()
if sys.argv[2] == "finish":
    writer.close("finished")
else:
    import os
    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("ending", ["finish", "killed"])
def test_a_run_that_grows_is_waited_for(tmp_path: Path, ending: str) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-c", WRITE, str(run), ending]
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True) as job:
        assert job.stdin is not None

        def go_on() -> None:
            assert job.stdin is not None
            job.stdin.write("\n")
            job.stdin.flush()

        go_on()
        while not (run / "steps").is_dir():
            assert job.poll() is None
        trial = create_trial(run)
        trial.wait_for_steps([0])
        loss = trial.tensor("loss")
        assert loss.steps() == [0]
        assert trial.has_passed_step(1) is StepState.NOT_YET_AVAILABLE
        with pytest.raises(StepNotYetAvailable):
            loss.value(1)
        go_on()
        trial.wait_for_steps([1])
        assert loss.value(1).tolist() == [1.0]
        go_on()
        with pytest.raises(StepUnavailable):
            trial.wait_for_steps([2])
        assert not trial.loaded_all_steps
        go_on()
        with pytest.raises(NoMoreData):
            trial.wait_for_steps([4])
        assert trial.loaded_all_steps and trial.steps() == [0, 1, 3]


def test_ranks_are_workers(tmp_path: Path) -> None:
    for rank in (0, 1):
        with_bias = ("Net_fc.bias",) if rank else ()
        names = (WEIGHT, *with_bias)
        writer = TraceWriter(tmp_path / "run", rank=rank)
        stats = np.full((len(names), len(STAT_COLUMNS)), 1.0 + rank)
        stats[:, 1:3] = 0
        writer.submit(StepRecord(0, "TRAIN", 0, 1, names, stats, saved=True, scalars=[("loss", float(rank))]))
        writer.close("finished")
    trial = create_trial(tmp_path / "run")
    assert trial.workers() == ["worker_0", "worker_1"]
    assert trial.tensor("loss").value(0).tolist() == [0.0]
    assert trial.tensor("loss").value(0, worker="worker_1").tolist() == [1.0]
    assert trial.tensor(WEIGHT).workers(0) == ["worker_0", "worker_1"]
    assert trial.tensor(WEIGHT).reduction_value(0, "max", worker="worker_1") == 2.0
    assert trial.tensor("Net_fc.bias").reduction_value(0, "max") == 2.0
    with pytest.raises(InvalidWorker):
        trial.tensor("Net_fc.bias").reduction_value(0, "max", worker="worker_0")
    with pytest.raises(ShapeUnavailableForStep):
        trial.tensor(WEIGHT).shape(0, worker="worker_1")


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no such directory"):
        create_trial(tmp_path / "missing")


floats = st.floats(-1e3, 1e3, width=32, allow_subnormal=False)
specials = st.sampled_from([np.nan, np.inf, -np.inf, 0.0])


@given(
    hnp.arrays(np.float32, hnp.array_shapes(max_dims=2, max_side=6), elements=st.one_of(floats, floats, specials)),
    st.booleans(),
)
def test_reductions_are_those_of_numpy(array: np.ndarray, of_magnitudes: bool) -> None:
    """Where the statistics tell a reduction, it is the one of the whole tensor."""
    row = dict(zip(STAT_COLUMNS, measure([torch.from_numpy(array)]).result()[0].tolist(), strict=True))
    size = float(np.abs(array[np.isfinite(array)]).max(initial=1.0))
    for name in REDUCTIONS:
        expected = computed(array, name, of_magnitudes=of_magnitudes)
        found = derived(row, name, of_magnitudes=of_magnitudes)
        if found is not None:
            # A difference of sums that nearly cancel is only as exact as the sums.
            scale = size * size if name == "variance" else size * array.size
            loose = 3e-3 * size if name == "std" else 1e-5 * scale
            assert found == pytest.approx(expected, rel=1e-4, abs=loose, nan_ok=True), name
    if np.isfinite(array).all():
        known = {name for name in REDUCTIONS if derived(row, name, of_magnitudes=of_magnitudes) is not None}
        assert known >= {"max", "mean", "std", "variance", "sum", "l1", "l2"}


class LossAbove(TrialRule):
    """The loss is above a limit."""

    def __init__(self, *, limit: float = 0.5) -> None:
        super().__init__()
        self.limit = limit

    def invoke_at_step(self, step: int) -> bool:
        return bool(self.base_trial.tensor("loss").value(step).item() > self.limit)


class Reads(TrialRule):
    """Remembers what it could see."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, list[int], list[int]]] = []

    def invoke_at_step(self, step: int) -> bool:
        self.seen.append((step, self.base_trial.steps(), self.base_trial.steps(modes.EVAL)))
        return False


def write_losses(run: Path, losses: list[float]) -> None:
    writer = TraceWriter(run)
    for step, loss in enumerate(losses):
        writer.submit(StepRecord(step, "TRAIN", step, 1, scalars=[("loss", loss)] if loss >= 0 else []))
    writer.close("finished")


def test_a_trial_rule_is_judged_like_any_other(tmp_path: Path) -> None:
    write_losses(tmp_path / "run", [0, 1, 1, 0, -1, 1])
    analysis = analyze(Trace(tmp_path / "run"), [RuleSpec(LossAbove)])
    assert [(f.first_step, f.tensors) for f in analysis.findings] == [(1, ("loss",)), (5, ("loss",))]
    assert analysis.findings[0].message == "The loss is above a limit: the condition is met at step 1"
    (result,) = analysis.results
    assert result.status is Status.ISSUES_FOUND
    assert (result.coverage.steps, result.coverage.tensors) == (5, 1)
    quiet = analyze(Trace(tmp_path / "run"), [RuleSpec(LossAbove, {"limit": 2.0})])
    assert quiet.results[0].status is Status.NO_ISSUES_FOUND


def test_a_trial_rule_that_finds_no_data_has_not_decided(tmp_path: Path) -> None:
    write_losses(tmp_path / "run", [-1, -1])
    (result,) = analyze(Trace(tmp_path / "run"), [RuleSpec(LossAbove)]).results
    assert result.status is Status.STOPPED
    assert result.coverage.missing == ("tensor loss was not recorded",)


def test_a_trial_rule_sees_all_of_a_step_and_nothing_later(truth: Truth) -> None:
    rule = Reads()

    class Only(RuleSpec):
        def build(self) -> Reads:
            return rule

    analyze(Trace(truth.run), [Only(Reads)])
    assert [step for step, _, _ in rule.seen] == [0, 1, 2, 3, 4, 5, 6]
    assert [steps[-1] for _, steps, _ in rule.seen] == [0, 1, 2, 3, 4, 5, 6]
    assert [len(evals) for _, _, evals in rule.seen] == [0, 0, 0, 2, 2, 2, 4]


def test_a_trial_rule_is_named_and_configured_at_the_command_line(tmp_path: Path) -> None:
    rules = tmp_path / "mine.py"
    rules.write_text(
        "from stepwatch.rules.trial_rule import TrialRule\n"
        "class Low(TrialRule):\n"
        "    '''The loss is low.'''\n"
        "    def __init__(self, *, limit: float = 0.5):\n"
        "        super().__init__()\n"
        "        self.limit = limit\n"
        "    def invoke_at_step(self, step):\n"
        "        return self.base_trial.tensor('loss').value(step) < self.limit\n"
    )
    write_losses(tmp_path / "run", [3, 2, 1])
    (spec,) = configure([f"{rules}:Low"], ["Low.limit=1.5"])
    assert [finding.first_step for finding in analyze(Trace(tmp_path / "run"), [spec]).findings] == [2]
    assert analyze(Trace(tmp_path / "run"), configure([f"{rules}:Low"])).findings == []


def test_a_trial_without_steps_answers_with_nothing() -> None:
    trial = Trial("empty")
    assert (trial.steps(), trial.tensor_names(), trial.modes(), trial.workers()) == ([], [], [], [])
    assert trial.has_passed_step(0) is StepState.NOT_YET_AVAILABLE
