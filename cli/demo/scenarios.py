"""The training runs of the demonstration: each a real one on real images, none scripted."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from stepwatch.cli.demo.digits import Digits, few_labels_wrong, mostly_one_class, shuffled_labels
from stepwatch.cli.demo.faults import FAULTS, HEALTHY, Fault


class Net(nn.Module):
    """A small convolutional classifier of 8 x 8 images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.relu2 = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(32 * 4 * 4, 64)
        self.relu3 = nn.ReLU()
        self.fc2 = nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[batch, 1, 8, 8] images -> [batch, 10] logits."""
        hidden = self.relu2(self.conv2(self.relu1(self.conv1(images))))
        hidden = self.relu3(self.fc1(self.pool(hidden).flatten(1)))
        logits: torch.Tensor = self.fc2(hidden)
        return logits


class HandWrittenCrossEntropy(nn.Module):
    """Cross-entropy as people write it from the formula: the logarithm of a softmax that underflows."""

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """[batch, 10] logits and [batch] labels -> mean loss."""
        probabilities = logits.exp() / logits.exp().sum(dim=1, keepdim=True)
        one_hot = functional.one_hot(labels, logits.shape[1])
        return -(one_hot * probabilities.log()).sum(dim=1).mean()


def plain_net() -> nn.Module:
    """The network as it should be."""
    return Net()


def deep_sigmoid_net() -> nn.Module:
    """Ten sigmoid layers: the derivative of each is at most 1/4."""
    layers: list[nn.Module] = [nn.Flatten()]
    widths = [64] + [64] * 10
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.Sigmoid()]
    return nn.Sequential(*layers, nn.Linear(64, 10))


def net_with_dead_units() -> nn.Module:
    """A bias initialised far below zero: no input brings the units of one layer above it again."""
    net = Net()
    nn.init.constant_(net.fc1.bias, -20.0)
    return net


def wide_net() -> nn.Module:
    """More capacity than a handful of images can fill."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 1024), nn.ReLU(), nn.Linear(1024, 512), nn.ReLU(), nn.Linear(512, 10)
    )


def linear_net() -> nn.Module:
    """Softmax regression."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def adam(model: nn.Module) -> torch.optim.Optimizer:
    """Adam with the rate that most people begin with."""
    return torch.optim.Adam(model.parameters(), lr=1e-3)


def sgd(rate: float, momentum: float = 0.9, weight_decay: float = 0.0) -> Callable[[nn.Module], torch.optim.Optimizer]:
    """Makes SGD with this rate."""
    return lambda model: torch.optim.SGD(model.parameters(), lr=rate, momentum=momentum, weight_decay=weight_decay)


@dataclass(frozen=True)
class Scenario:
    """One training run.

    Attributes:
        fault: what is wrong with it.
        data: changes the data.
        model, optimizer, loss: make the parts.
        batch_size, epochs: of the training.
    """

    fault: Fault
    data: Callable[[Digits], Digits] = field(default=lambda digits: digits)
    model: Callable[[], nn.Module] = plain_net
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] = adam
    loss: Callable[[], nn.Module] = nn.CrossEntropyLoss
    batch_size: int = 64
    epochs: int = 25


_PARTS: dict[str, dict[str, Any]] = {
    "exploding": {"optimizer": sgd(10.0)},
    "vanishing": {"model": deep_sigmoid_net, "optimizer": sgd(0.01)},
    "nan": {
        "optimizer": sgd(0.05),
        "loss": HandWrittenCrossEntropy,
        "data": lambda digits: digits.scaled(255.0),
    },
    "dead-relu": {"model": net_with_dead_units, "optimizer": sgd(0.01)},
    "overfit": {"data": few_labels_wrong, "model": wide_net, "batch_size": 20, "epochs": 80},
    "oscillating": {"model": linear_net, "optimizer": sgd(5.0, momentum=0.0, weight_decay=0.05)},
    "stalled": {"data": shuffled_labels, "optimizer": sgd(0.01)},
    "imbalance": {"data": mostly_one_class, "optimizer": sgd(0.01, momentum=0.0)},
}

SCENARIOS: dict[str, Scenario] = {
    HEALTHY.name: Scenario(HEALTHY),
    **{fault.name: Scenario(fault, **_PARTS[fault.name]) for fault in FAULTS},
}
