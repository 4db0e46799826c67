"""Losses that are given what they are not meant for, and all the ways in which they are given what they are."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from stepwatch.probe import Hook, SaveConfig
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.catalogue import configure
from stepwatch.rules.finding import RuleResult, Severity, Status
from stepwatch.rules.replay import analyze

Loss = Callable[[torch.Tensor], torch.Tensor]
CLASSES = torch.arange(6) % 3
SHARES = torch.tensor([0.1, 0.3, 0.45, 0.6, 0.8, 0.95])
MASKS = torch.zeros(6, 4, 4, dtype=torch.int64)


def judged(run: Path, loss: Loss, *, outputs: int = 3, loss_fn: nn.Module | None = None) -> RuleResult:
    model = nn.Linear(5, outputs)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    config = SaveConfig(save_interval=1)
    with Hook(run, model=model, optimizer=optimizer, loss_fn=loss_fn, save_config=config, system_interval=0):
        for _ in range(4):
            optimizer.zero_grad()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of shapes that differ
                loss(model(torch.randn(6, 5))).backward()
            optimizer.step()
    (result,) = analyze(Trace(run), configure(["WrongLossInput"])).results
    return result


WRONG: dict[str, tuple[int, Loss, str]] = {
    "softmax twice": (3, lambda x: functional.cross_entropy(x.softmax(1), CLASSES), "softmax of it again"),
    "softmax twice, smoothed": (
        3,
        lambda x: functional.cross_entropy(x.softmax(1), CLASSES, label_smoothing=0.1),
        "softmax of it again",
    ),
    "softmax twice, per pixel": (
        3,
        lambda x: functional.cross_entropy(x[:, :, None, None].expand(6, 3, 4, 4).softmax(1), MASKS),
        "softmax of it again",
    ),
    "softmax twice, beside another term": (
        3,
        lambda x: 0.5 * functional.cross_entropy(x.softmax(1).view(6, 3), CLASSES) + x.pow(2).mean(),
        "softmax of it again",
    ),
    "sigmoid, then softmax": (3, lambda x: functional.cross_entropy(x.sigmoid(), CLASSES), "output of a sigmoid"),
    "sigmoid twice": (
        1,
        lambda x: functional.binary_cross_entropy_with_logits(x.sigmoid().squeeze(1), SHARES),
        "0.50 and 0.73",
    ),
    "relu on a logit": (
        1,
        lambda x: functional.binary_cross_entropy_with_logits(x.relu()[:, 0], SHARES),
        "below one half",
    ),
    "likelihood of logits": (3, lambda x: functional.nll_loss(x, CLASSES), "without bound"),
    "likelihood of probabilities": (3, lambda x: functional.nll_loss(x.softmax(1), CLASSES), "probabilities"),
    "column against row": (1, lambda x: functional.mse_loss(x, SHARES), "all 6 samples"),
    "row against column": (1, lambda x: functional.l1_loss(x[:, 0], SHARES[:, None]), "all 6 samples"),
    "column against row, by hand": (1, lambda x: (SHARES - x).pow(2).mean(), "all 6 samples"),
    "targets below a relu": (1, lambda x: functional.mse_loss(x.relu()[:, 0], SHARES - 0.5), "no training can reach"),
    "targets beyond a sigmoid": (1, lambda x: functional.huber_loss(x.sigmoid()[:, 0], 9 * SHARES), "outside 0 to 1"),
    "targets beyond a tanh": (1, lambda x: functional.smooth_l1_loss(x.tanh()[:, 0], SHARES + 1), "outside -1 to 1"),
    "column against row, Huber": (1, lambda x: functional.huber_loss(x, SHARES), "all 6 samples"),
}
SOUND: dict[str, tuple[int, Loss]] = {
    "cross-entropy": (3, lambda x: functional.cross_entropy(x, CLASSES)),
    "log-softmax and likelihood": (3, lambda x: functional.nll_loss(x.log_softmax(1), CLASSES)),
    "logarithm of a mixture": (3, lambda x: functional.nll_loss(x.softmax(1).log(), CLASSES)),
    "soft labels": (3, lambda x: functional.cross_entropy(x, functional.one_hot(CLASSES).float())),
    "capped logits": (3, lambda x: functional.cross_entropy(30 * torch.tanh(x / 30), CLASSES)),
    "logits and a gate": (
        4,
        lambda x: functional.cross_entropy(x[:, :3] * x[:, 3:].sigmoid(), CLASSES),
    ),
    "binary": (1, lambda x: functional.binary_cross_entropy_with_logits(x[:, 0], SHARES)),
    "sigmoid and its own loss": (1, lambda x: functional.binary_cross_entropy(x.sigmoid()[:, 0], SHARES)),
    "regression of bounded numbers": (1, lambda x: functional.mse_loss(x.sigmoid()[:, 0], SHARES)),
    "targets that a relu reaches": (1, lambda x: functional.mse_loss(x.relu()[:, 0], SHARES)),
    "all pairs of samples": (1, lambda x: (x - x.T).pow(2).mean()),
    "one answer for all": (1, lambda x: functional.mse_loss(x.mean().expand(6), SHARES)),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_a_loss_is_not_meant_for_is_named(tmp_path: Path, case: str) -> None:
    outputs, loss, said = WRONG[case]
    (finding,) = judged(tmp_path / "run", loss, outputs=outputs).findings
    assert said in finding.message
    assert (finding.severity, finding.last_step) == (Severity.WARNING, 0)


@pytest.mark.parametrize("case", SOUND)
def test_what_it_is_meant_for_is_no_finding(tmp_path: Path, case: str) -> None:
    outputs, loss = SOUND[case]
    result = judged(tmp_path / "run", loss, outputs=outputs)
    assert not result.findings
    unknown = case in ("sigmoid and its own loss", "all pairs of samples")
    assert result.status is (Status.STOPPED if unknown else Status.NO_ISSUES_FOUND)


def test_loss_modules_are_seen_under_a_scaler_too(tmp_path: Path) -> None:
    loss_fn, scaler = nn.CrossEntropyLoss(), torch.amp.GradScaler("cpu")
    (finding,) = judged(
        tmp_path / "run", lambda x: scaler.scale(loss_fn(x.softmax(1), CLASSES)), loss_fn=loss_fn
    ).findings
    assert "softmax" in finding.suggestion


def test_a_relu_before_a_cross_entropy_is_a_remark(tmp_path: Path) -> None:
    (finding,) = judged(tmp_path / "run", lambda x: functional.cross_entropy(x.relu(), CLASSES)).findings
    assert finding.severity is Severity.INFO
