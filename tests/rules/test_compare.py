"""Comparison of real runs that were made to differ in a known way."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from stepwatch.probe import Hook, ReductionConfig, SaveConfig, modes
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.compare.objective import Series, choose, judge
from stepwatch.rules.compare.parting import parted
from stepwatch.rules.compare.runs import Pair, compare, compare_pair
from tests.command import stepwatch

STEPS = 60


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.relu = nn.ReLU()
        self.last = nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.relu(self.first(x)))


Change = Callable[[int, Net, torch.optim.Optimizer, torch.Tensor], None]


def nothing(step: int, net: Net, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> None:
    pass


def train(run: Path, *, seed: int = 0, before: Change = nothing, after: Change = nothing, raw: bool = False) -> Trace:
    """Train; ``before`` is called before the forward pass of each step, ``after`` after the backward pass."""
    torch.manual_seed(seed)
    net, loss_fn = Net(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    reduction = ReductionConfig(save_raw_tensor=True) if raw else None
    every = SaveConfig(save_interval=1)
    data = torch.Generator().manual_seed(7)
    with Hook(
        run,
        model=net,
        optimizer=optimizer,
        loss_fn=loss_fn,
        save_config=every,
        reduction_config=reduction,
        system_interval=0,
    ) as hook:
        for step in range(STEPS):
            x = torch.randn(32, 8, generator=data)
            y = (x.sum(1) > 0).long()
            before(step, net, optimizer, x)
            optimizer.zero_grad()
            loss_fn(net(x), y).backward()
            after(step, net, optimizer, x)
            optimizer.step()
            if step % 10 == 9:
                hook.set_mode(modes.EVAL)
                with torch.no_grad():
                    loss_fn(net(x), y)
                hook.set_mode(modes.TRAIN)
    return Trace(run)


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    return train(tmp_path_factory.mktemp("runs") / "baseline")


def first_of(pair: Pair) -> tuple[int, str]:
    assert pair.first_difference is not None
    return pair.first_difference.step, pair.first_difference.tensors[0]


def test_the_same_run_again_is_the_same_bit_for_bit(baseline: Trace, tmp_path: Path) -> None:
    pair = compare_pair(baseline, train(tmp_path / "again"))
    assert pair.identical is True and pair.first_difference is None and pair.partings == []
    assert pair.steps == STEPS + STEPS // 10 and pair.saved_steps >= STEPS


def test_another_seed_differs_from_the_first_parameter_on(baseline: Trace, tmp_path: Path) -> None:
    pair = compare_pair(baseline, train(tmp_path / "seed", seed=1))
    step, tensor = first_of(pair)
    assert (step, tensor) in ((0, "Net_first.weight"), (0, "Net_first.bias"))
    assert pair.first_difference is not None and "seed" in pair.first_difference.meaning
    assert {layer.module for layer in pair.layers()} >= {"first", "last"}


def test_other_data_at_a_step_shows_first_in_the_forward_pass(baseline: Trace, tmp_path: Path) -> None:
    def other_data(step: int, net: Net, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> None:
        if step == 20:
            x[0, 0] += 1e-3

    pair = compare_pair(baseline, train(tmp_path / "data", before=other_data))
    step, tensor = first_of(pair)
    assert step == 20 and tensor.startswith("relu")
    assert pair.first_difference is not None and "data" in pair.first_difference.meaning
    assert not [p for p in pair.partings if p.module is None], "a thousandth in one entry is not a loss beyond noise"


def test_a_gradient_changed_after_the_backward_pass_shows_in_that_gradient(baseline: Trace, tmp_path: Path) -> None:
    def nudge(step: int, net: Net, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> None:
        if step == 30:
            net.last.weight.grad[0, 0] += 1e-4  # type: ignore[index]

    pair = compare_pair(baseline, train(tmp_path / "gradient", after=nudge))
    assert first_of(pair) == (30, "gradient/Net_last.weight")
    assert pair.first_difference is not None and pair.first_difference.tensors == ("gradient/Net_last.weight",)


def test_curves_part_where_the_rate_was_changed(baseline: Trace, tmp_path: Path) -> None:
    def faster(step: int, net: Net, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> None:
        if step == 25:
            optimizer.param_groups[0]["lr"] = 2.0

    pair = compare_pair(baseline, train(tmp_path / "rate", before=faster))
    step, _ = first_of(pair)
    assert step in (25, 26)
    by_name = {parting.name: parting for parting in pair.partings if parting.mode == "TRAIN"}
    assert by_name["learning_rate"].step == 25 and by_name["learning_rate"].values == (0.05, 2.0)
    assert 26 <= by_name["Net_last.weight"].step <= 28
    assert [p.step for p in pair.partings] == sorted(p.step for p in pair.partings)


def test_whole_tensors_are_compared_where_they_were_saved(tmp_path: Path) -> None:
    """Two entries that change places leave every statistic as it was."""

    def swap(step: int, net: Net, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> None:
        if step == 40:
            grad = net.last.weight.grad
            assert grad is not None
            grad[0, [0, 1]] = grad[0, [1, 0]]

    one = train(tmp_path / "one", raw=True)
    two = train(tmp_path / "two", raw=True, after=swap)
    pair = compare_pair(one, two)
    assert first_of(pair) == (40, "gradient/Net_last.weight")
    assert compare_pair(one, one).identical is True


def test_what_was_made_differently_is_listed(baseline: Trace, tmp_path: Path) -> None:
    script = "import sys\nfrom stepwatch.probe.store.writer import TraceWriter\n"
    script += "TraceWriter(sys.argv[1], run_info={'config': {'a': {'b': int(sys.argv[3])}}}).close('finished')\n"
    for name, number in (("x", "1"), ("y", "2")):
        subprocess.run([sys.executable, "-c", script, tmp_path / name, "--lr", number, "--fast"], check=True)
    found = compare([Trace(tmp_path / name) for name in ("x", "y", "x")])
    assert {d.key: d.values for d in found.differences} == {
        "command --lr": ("1", "2", "1"),
        "config a.b": ("1", "2", "1"),
    }
    assert found.objective is None and found.standings == []
    assert [pair.identical for pair in found.pairs] == [None, None]


def curve(values: list[float] | np.ndarray) -> Series:
    return Series(np.arange(len(values)), np.asarray(values, dtype=float))


def test_the_better_run_and_since_when() -> None:
    steps = np.arange(200)
    noise = np.random.default_rng(0).normal(0, 0.01, (2, 200))
    one = curve(1 / (1 + steps / 20) + noise[0])
    two = curve(np.where(steps < 100, 1.2, 0.8) / (1 + steps / 20) + noise[1])
    verdict = judge(("one", "two"), one, two, "min")
    assert verdict.better == "two" and verdict.since is not None and 90 <= verdict.since <= 115
    assert judge(("one", "two"), one, two, "max").better == "one"
    alike = judge(("one", "two"), curve(1 + noise[0]), curve(1 + noise[1]), "min")
    assert alike.better is None and alike.since is None
    broken = judge(("one", "two"), curve([1.0, 0.9, 0.8, 0.7]), curve([1.0, 0.5, np.nan, np.nan]), "min")
    assert (broken.better, broken.since) == ("one", 2)


def test_noise_alone_makes_no_run_better() -> None:
    """Two hundred pairs, the noise of which remembers: two thirds of a point are the one before it."""
    rng = np.random.default_rng(2)
    noise = rng.normal(0, 1, (200, 2, 120))
    for at in range(1, noise.shape[-1]):
        noise[..., at] += 0.67 * noise[..., at - 1]
    trend = 20 * np.exp(-np.arange(noise.shape[-1]) / 20)
    verdicts = [judge(("one", "two"), curve(one), curve(two), "min") for one, two in noise + trend]
    assert sum(verdict.better is not None for verdict in verdicts) <= 4
    apart = [judge(("one", "two"), curve(one), curve(two - 5), "min") for one, two in noise + trend]
    assert sum(verdict.better == "two" for verdict in apart) >= 180
    alike = curve(noise[0, 0]), curve(noise[0, 0] + 1e-3 * np.linspace(0, 1, noise.shape[-1]))
    assert judge(("one", "two"), *alike, "min").better is None, "the same data and nearly the same course"


def test_noise_alone_does_not_part_curves() -> None:
    """A thousand pairs of curves that differ only by noise, and as many of which one drops by three deviations."""
    rng = np.random.default_rng(1)
    a, b = rng.normal(0, 1, (2, 400, 1000))
    trend = 20 * np.exp(-np.arange(400) / 50)[:, None]
    assert (parted(a + trend, b + trend) >= 0).sum() <= 5
    b[200:] -= 3
    found = parted(a + trend, b + trend)
    assert (found >= 0).mean() > 0.99
    assert np.abs(np.median(found) - 200) <= 3


def test_a_value_that_is_not_finite_parts_at_once_and_an_unknown_one_does_not() -> None:
    a, b = np.ones((2, 40, 3))
    b[30:, 0] = np.inf
    b[10:20, 1] = np.nan
    assert parted(a, b).tolist() == [30, -1, -1]


def test_an_objective_must_be_in_every_run() -> None:
    runs = [{("val_loss", "TRAIN"): curve([1.0]), ("loss", "TRAIN"): curve([1.0])}, {("loss", "TRAIN"): curve([1.0])}]
    chosen = choose(None, runs)
    assert chosen is not None and (chosen.name, chosen.goal) == ("loss", "min")
    assert choose("loss:max", runs).goal == "max"  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="'val_loss' was not recorded in every run; scalars that were: loss"):
        choose("val_loss", runs)


def test_the_command(baseline: Trace, tmp_path: Path) -> None:
    again, seed = train(tmp_path / "again").path, train(tmp_path / "seed", seed=1).path
    assert stepwatch("compare", baseline.path, again, "--exact").returncode == 0
    done = stepwatch("compare", baseline.path, again, seed, "--exact")
    assert done.returncode == 1, done.stderr
    assert "the same bit for bit in all that both recorded" in done.stdout
    assert "until step 0" in done.stdout and "is better" in done.stdout and "parts beyond noise" in done.stdout
    content = json.loads(
        stepwatch("compare", baseline.path, seed, "--json", "--objective", "CrossEntropyLoss_output_0").stdout
    )
    assert content["objective"] == {"name": "CrossEntropyLoss_output_0", "mode": "EVAL", "goal": "min"}
    assert content["pairs"][0]["identical"] is False and len(content["standings"]) == 2
    for arguments, text in (
        ((baseline.path,), "two or more"),
        ((baseline.path, tmp_path / "none"), "no such directory"),
        ((baseline.path, again, "--objective", "bleu"), "'bleu' was not recorded in every run"),
    ):
        wrong = stepwatch("compare", *arguments)
        assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1 and text in wrong.stderr


RECORDED = """
import sys
from stepwatch.probe.code import code_version
from stepwatch.probe.store.writer import TraceWriter
TraceWriter(sys.argv[1], run_info={"code": code_version()}).close("finished")
"""


def test_a_hook_records_the_code(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(RECORDED)
    subprocess.run([sys.executable, str(script), str(tmp_path / "run")], check=True, timeout=60)
    assert Trace(tmp_path / "run").info.code["script"] == hashlib.sha256(script.read_bytes()).hexdigest()


@pytest.mark.skipif(shutil.which("git") is None, reason="no git")
def test_the_code_that_ran_is_part_of_how_runs_were_made(tmp_path: Path) -> None:
    script = tmp_path / "code" / "train.py"
    script.parent.mkdir()
    script.write_text(RECORDED)
    git = ["git", "-C", str(script.parent), "-c", "user.name=a", "-c", "user.email=a@example.com"]

    def record(name: str, *before: list[str]) -> Trace:
        for command in before:
            subprocess.run([*git, *command], check=True, capture_output=True)
        subprocess.run([sys.executable, str(script), str(tmp_path / name)], check=True, timeout=60)
        return Trace(tmp_path / name)

    bare = record("bare")
    assert set(bare.info.code) == {"script"}
    clean = record("clean", ["init"], ["add", "."], ["commit", "-m", "first"])
    assert len(clean.info.code["commit"]) == 40 and clean.info.code["script"] == bare.info.code["script"]
    script.write_text(RECORDED + "\n# changed\n")
    changed = record("changed")
    assert changed.info.code["commit"] == clean.info.code["commit"] + "-dirty"
    found = {difference.key for difference in compare([clean, changed]).differences}
    assert found == {"code commit", "code script"}
