"""The steps before a problem are in the trace although they were not due to be saved."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from stepwatch.probe import SaveConfig
from stepwatch.probe.hook import Hook
from stepwatch.probe.store.control import ask_for_recent
from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.recent import RECENT_STEPS
from stepwatch.rules.catalogue import configure
from stepwatch.rules.replay import analyze
from stepwatch.rules.sidecar.policy import Policy
from stepwatch.rules.sidecar.sidecar import Sidecar
from tests.sidecar.conftest import SPECS

from .conftest import Net, batch, frame

RARELY = SaveConfig(save_interval=100_000)


STEPS_WITH_STATISTICS = """
from stepwatch.rules.finding import Coverage
from stepwatch.rules.rule import Rule

class StepsWithStatistics(Rule):
    seen = 0

    def observe(self, step):
        self.seen += step.stats is not None and step.step > 0
        if step.step == 30:
            yield self.finding(
                step, first_step=0, tensors=(), value=self.seen, threshold=0, message="step 30", suggestion=""
            )

    def coverage(self):
        return Coverage(steps=31)
"""


def train(hook: Hook, model: Net, optimizer: torch.optim.Optimizer, steps: int, spoil_at: int = -1) -> list[float]:
    """Train; returns the norm of the last bias's gradient at each step."""
    loss_fn = nn.CrossEntropyLoss()
    norms = []
    for step in range(steps):
        x, y = batch()
        if step == spoil_at:
            x[0, 0] = float("nan")
        optimizer.zero_grad()
        loss_fn(model(x), y).backward()
        assert model.fc2.bias.grad is not None
        norms.append(model.fc2.bias.grad.norm().item())
        optimizer.step()
    return norms


@pytest.fixture
def job(make_hook):
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return lambda **options: (make_hook(model=model, optimizer=optimizer, **options), model, optimizer)


def test_the_steps_before_a_nan_are_written_with_their_own_numbers(tmp_path: Path, job) -> None:
    hook, model, optimizer = job(save_config=RARELY)
    norms = train(hook, model, optimizer, 60, spoil_at=40)
    hook.close()
    rows = frame(tmp_path / "run", "stats", names=["gradient/Net_fc2.bias"]).sort_values("step")
    before = rows[(rows["step"] > 0) & (rows["step"] < 40)]
    assert before["step"].tolist() == list(range(1, 40))
    np.testing.assert_allclose(before["l2"], norms[1:40], rtol=1e-6)
    saved = frame(tmp_path / "run", "steps").set_index("step")["saved"]
    assert not saved[1:40].any()
    assert saved[40], "what is not finite is captured whole, in the step in which it is noticed"
    assert set(frame(tmp_path / "run", "stats", steps=(40, 41))["name"]) > {"Net_fc1.weight", "gradient/Net_fc1.weight"}


def test_a_run_without_a_problem_writes_only_what_was_due(tmp_path: Path, job) -> None:
    hook, model, optimizer = job(save_config=SaveConfig(save_interval=20), rules="recommended")
    train(hook, model, optimizer, 50)
    hook.close()
    assert sorted(frame(tmp_path / "run", "stats")["step"].unique()) == [0, 20, 40]


def test_the_steps_before_an_exception_are_written(tmp_path: Path, job) -> None:
    hook, model, optimizer = job(save_config=RARELY)
    with pytest.raises(RuntimeError, match="out of luck"), hook:
        train(hook, model, optimizer, RECENT_STEPS + 100)
        raise RuntimeError("out of luck")
    steps = sorted(frame(tmp_path / "run", "stats", names=["gradient/Net_fc2.bias"])["step"])
    assert steps == [0, *range(100, RECENT_STEPS + 100)]


def test_the_steps_before_a_finding_are_written_and_judged_as_little_as_before(tmp_path: Path, job) -> None:
    """What a rule in the training process has not seen, the same rule must not see afterwards."""
    own = tmp_path / "own.py"
    own.write_text(STEPS_WITH_STATISTICS)
    hook, model, optimizer = job(save_config=RARELY, rules=[f"{own}:StepsWithStatistics"])
    train(hook, model, optimizer, 60)
    hook.close()
    run = tmp_path / "run"
    steps = sorted(frame(run, "stats", names=["gradient/Net_fc2.bias"])["step"])
    assert steps[:30] == list(range(30))
    (recorded,) = Trace(run).findings()
    (offline,) = analyze(Trace(run), configure([f"{own}:StepsWithStatistics"])).findings
    assert recorded["value"] == offline.value == 0


def test_the_steps_before_a_finding_of_a_sidecar_are_written(tmp_path: Path, job) -> None:
    hook, model, optimizer = job(save_config=RARELY)
    train(hook, model, optimizer, 40)
    hook._writer.flush()
    sidecar = Sidecar([tmp_path], lambda trace: Policy("all", tuple(SPECS)), tmp_path / "state")
    list(sidecar.look())
    assert len(set(frame(tmp_path / "run", "stats")["step"])) == 1
    hook.log("score", 500.0)
    train(hook, model, optimizer, 1)
    deadline = time.monotonic() + 60
    while len(set(frame(tmp_path / "run", "stats")["step"])) < 40:
        assert time.monotonic() < deadline
        list(sidecar.look())
        time.sleep(0.1)
    sidecar.close()
    hook.close()
    assert Trace(tmp_path / "run").counters == {}


def test_an_earlier_wish_for_the_last_steps_is_not_meant_for_this_attempt(tmp_path: Path, job) -> None:
    (tmp_path / "run" / "control").mkdir(parents=True)
    ask_for_recent(tmp_path / "run")
    hook, model, optimizer = job(save_config=RARELY)
    train(hook, model, optimizer, 20)
    hook._tick()
    hook.close()
    assert set(frame(tmp_path / "run", "stats")["step"]) == {0}
