"""What is wrong with the data a model is given, on jobs that really train; and data that look like it and are right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from stepwatch.probe import Hook, SaveConfig
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.catalogue import configure
from stepwatch.rules.diagnosis import diagnose
from stepwatch.rules.finding import RuleResult, Status
from stepwatch.rules.replay import analyze

Data = tuple[torch.Tensor, torch.Tensor]


def clusters(count: int = 640, features: int = 12) -> Data:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 4, (count,), generator=generator)
    centres = torch.randn(4, features, generator=generator)
    return centres[y] + 0.5 * torch.randn(count, features, generator=generator), y


def pixels() -> Data:
    x, y = clusters()
    return (x * 40 + 128).clamp(0, 255), y


def dense(*first: nn.Module, act: type[nn.Module] = nn.ReLU) -> nn.Module:
    return nn.Sequential(*first, nn.Linear(12, 32), act(), nn.Linear(32, 4))


def loop(loader: DataLoader) -> Any:
    while True:
        yield from loader


def begun_anew(loader: DataLoader) -> Any:
    while True:
        yield next(iter(loader))


def one_for_all(loader: DataLoader) -> Any:
    batch = next(iter(loader))
    while True:
        yield batch


def train(
    run: Path,
    data: Data,
    model: nn.Module,
    *,
    feed: Callable[[DataLoader], Any] = loop,
    size: int = 32,
    shuffle: bool = True,
    steps: int = 120,
    every: int = 5,
    rate: float = 0.02,
    optimizer: type[torch.optim.Optimizer] = torch.optim.SGD,
) -> None:
    torch.manual_seed(0)
    batches = feed(DataLoader(TensorDataset(*data), batch_size=size, shuffle=shuffle, drop_last=True))
    loss_fn, updater = nn.CrossEntropyLoss(), optimizer(model.parameters(), lr=rate)
    config = SaveConfig(save_interval=every)
    with Hook(run, model=model, optimizer=updater, loss_fn=loss_fn, save_config=config, system_interval=0):
        for _ in range(steps):
            x, y = next(batches)
            updater.zero_grad()
            loss_fn(model(x), y).backward()
            updater.step()


def judge(run: Path, *rules: str) -> list[RuleResult]:
    return analyze(Trace(run), configure(rules)).results


def verdict(run: Path, rule: str) -> RuleResult:
    (result,) = judge(run, rule)
    return result


# -- NaN -------------------------------------------------------------------------------------------------


def poisoned(at: int) -> Callable[[DataLoader], Any]:
    def feed(loader: DataLoader) -> Any:
        for number, (x, y) in enumerate(loop(loader)):
            if number == at:
                x = x.clone()
                x[3, 5] = float("nan")
            yield x, y

    return feed


def test_a_state_that_the_model_made_is_no_data(tmp_path: Path) -> None:
    model = nn.RNNCell(4, 4, nonlinearity="relu")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e4)
    config = SaveConfig(save_interval=1)
    with Hook(tmp_path / "run", model=model, optimizer=optimizer, save_config=config, system_interval=0):
        for _ in range(6):
            state = None
            for _ in range(3):
                state = model(torch.ones(2, 4), state)
            optimizer.zero_grad()
            (-state.exp().sum()).backward()
            optimizer.step()
    bad, given = judge(tmp_path / "run", "ExplodingTensor", "NonFiniteInput")
    assert bad.findings and not given.findings


def test_a_nan_in_one_batch_between_saved_steps_is_the_root_cause(tmp_path: Path) -> None:
    train(tmp_path / "run", clusters(), dense(), feed=poisoned(33), every=10)
    results = judge(tmp_path / "run", "NonFiniteInput", "ExplodingTensor", "DivergingLoss")
    assert all(result.status is Status.ISSUES_FOUND for result in results)
    (finding,) = results[0].findings
    assert (finding.first_step, finding.tensors, finding.value) == (33, ("Sequential_input_0",), 1)
    (story,) = diagnose([finding for result in results for finding in result.findings])
    assert story.cause.rule == "NonFiniteInput"


class Imputing(nn.Module):
    """Deals with missing values itself; attends by a mask of zeros and minus infinity."""

    def __init__(self) -> None:
        super().__init__()
        self.body = dense()

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.body(torch.nan_to_num(x)) + mask.softmax(-1)


def test_nan_for_what_is_missing_is_no_finding_where_the_model_deals_with_it(tmp_path: Path) -> None:
    x, y = clusters()
    x[torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.1] = float("nan")
    mask = torch.tensor([0.0, 0.0, -torch.inf, 0.0])
    model = Imputing()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    with Hook(tmp_path / "run", model=model, optimizer=optimizer, system_interval=0):
        for step in range(30):
            optimizer.zero_grad()
            chosen = torch.arange(step, step + 32)
            nn.functional.cross_entropy(model(x[chosen], mask=mask), y[chosen]).backward()
            optimizer.step()
    result = verdict(tmp_path / "run", "NonFiniteInput")
    assert result.status is Status.NO_ISSUES_FOUND
    assert result.coverage.tensors == 2


def test_without_a_model_nothing_is_claimed(tmp_path: Path) -> None:
    with Hook(tmp_path / "run", system_interval=0) as hook:
        hook.log("loss", 1.0)
    for result in judge(tmp_path / "run", "NonFiniteInput", "ConstantInput", "InputNotNormalized", "RepeatedBatch"):
        assert result.status is Status.STOPPED
        assert result.coverage.missing


# -- scale -----------------------------------------------------------------------------------------------


def test_raw_pixels_are_not_normalised(tmp_path: Path) -> None:
    train(tmp_path / "run", pixels(), dense())
    (finding,) = verdict(tmp_path / "run", "InputNotNormalized").findings
    assert finding.value == pytest.approx(pixels()[0].square().mean().sqrt().item(), rel=0.05)
    assert finding.tensors == ("0_input_0",)
    assert "guessing" in finding.message


def test_raw_pixels_saturate_a_sigmoid(tmp_path: Path) -> None:
    train(tmp_path / "run", pixels(), dense(act=nn.Sigmoid))
    (finding,) = verdict(tmp_path / "run", "InputNotNormalized").findings
    assert "1_output_0 stands at its ends" in finding.message


class Divide(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - 128) / 40


def fitted() -> nn.Module:
    """Weights that were made for pixels, as those of a pretrained model are."""
    model = dense()
    with torch.no_grad():
        model[0].weight /= 130
    return model


@pytest.mark.parametrize(
    ("make", "rate"),
    [
        (lambda: dense(nn.BatchNorm1d(12)), 0.02),
        (lambda: dense(nn.LayerNorm(12)), 0.02),
        (lambda: dense(Divide()), 0.02),
        (fitted, 1e-5),
    ],
)
def test_a_model_that_copes_with_raw_pixels_is_no_finding(
    tmp_path: Path, make: Callable[[], nn.Module], rate: float
) -> None:
    train(tmp_path / "run", pixels(), make(), rate=rate)
    assert not verdict(tmp_path / "run", "InputNotNormalized").findings


def test_normalised_inputs_are_no_finding(tmp_path: Path) -> None:
    train(tmp_path / "run", clusters(), dense())
    result = verdict(tmp_path / "run", "InputNotNormalized")
    assert result.status is Status.NO_ISSUES_FOUND
    assert result.coverage.margin == pytest.approx(0.11, abs=0.05)


# -- batches ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("feed", "said"), [(begun_anew, "begun anew"), (one_for_all, "no other was taken")])
@pytest.mark.parametrize("every", [1, 5])
def test_the_same_batch_again_and_again(tmp_path: Path, feed: Any, said: str, every: int) -> None:
    train(tmp_path / "run", clusters(), dense(), feed=feed, shuffle=False, every=every)
    (finding,) = verdict(tmp_path / "run", "RepeatedBatch").findings
    assert finding.first_step == 0
    assert "one of 20" in finding.message
    assert said in finding.message


@pytest.mark.parametrize(
    "options",
    [
        {"size": 640, "shuffle": False},  # all data in one batch
        {"size": 128, "shuffle": False, "every": 5},  # five batches an epoch: a saved step sees the first one always
        {"size": 128, "shuffle": False, "every": 1},
        {"feed": begun_anew},  # slow, but shuffled: another batch each time
    ],
)
def test_batches_that_come_again_in_their_turn_are_no_finding(tmp_path: Path, options: dict[str, Any]) -> None:
    train(tmp_path / "run", clusters(), dense(), **options)
    assert not verdict(tmp_path / "run", "RepeatedBatch").findings


def in_order(data: Data) -> Data:
    order = data[1].argsort()
    return data[0][order], data[1][order]


def test_data_sorted_by_class(tmp_path: Path) -> None:
    train(tmp_path / "run", in_order(clusters()), dense(), shuffle=False, every=2)
    (finding,) = verdict(tmp_path / "run", "LabelsInOrder").findings
    assert finding.value >= 0.75
    assert "4 classes in turn" in finding.message


def of_one_class() -> Data:
    x, y = clusters()
    return x, torch.where(torch.arange(len(y)) % 60 == 0, y, 0)


@pytest.mark.parametrize("data", [clusters, of_one_class])
def test_shuffled_data_is_no_finding(tmp_path: Path, data: Callable[[], Data]) -> None:
    train(tmp_path / "run", data(), dense(), every=2, size=16)
    result = verdict(tmp_path / "run", "LabelsInOrder")
    assert result.status is Status.NO_ISSUES_FOUND


def test_samples_that_are_all_the_same(tmp_path: Path) -> None:
    x, y = clusters()
    train(tmp_path / "run", (x[:1].expand_as(x), y), dense())
    (finding,) = verdict(tmp_path / "run", "ConstantInput").findings
    assert "all 32 samples" in finding.message


def test_samples_that_differ_in_one_entry_are_no_finding(tmp_path: Path) -> None:
    _, y = clusters()
    train(tmp_path / "run", (torch.nn.functional.one_hot(y, 12).float() * 1e-6, y), dense())
    assert verdict(tmp_path / "run", "ConstantInput").status is Status.NO_ISSUES_FOUND


# -- padding ---------------------------------------------------------------------------------------------


class Tokens(nn.Module):
    def __init__(self, padding: int | None) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 8, padding_idx=padding)
        self.head = nn.Linear(8, 4)

    def forward(self, tokens: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        return self.head(self.embed(tokens).mean(1))


@pytest.mark.parametrize("by_mask", [True, False])
@pytest.mark.parametrize("length", [3, 16])
def test_padding_is_told_where_it_is_most_of_a_batch(tmp_path: Path, by_mask: bool, length: int) -> None:
    torch.manual_seed(0)
    model = Tokens(None if by_mask else 7)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    config = SaveConfig(save_interval=1)
    with Hook(tmp_path / "run", model=model, optimizer=optimizer, save_config=config, system_interval=0):
        for _ in range(25):
            tokens = torch.randint(8, 30, (8, 20))
            tokens[:, length:] = 7
            options = {"attention_mask": (tokens != 7).long()} if by_mask else {}
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(tokens, **options), tokens[:, 0] % 4).backward()
            optimizer.step()
    result = verdict(tmp_path / "run", "MostlyPadding")
    assert result.coverage.margin == pytest.approx((1 - length / 20) / 0.75)
    assert result.status is (Status.ISSUES_FOUND if length == 3 else Status.NO_ISSUES_FOUND)
