"""The mistakes that the demonstration makes. They are named here without torch, which takes seconds to import."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """What is wrong with a training run.

    Attributes:
        name: what ``stepwatch demo NAME`` takes.
        mistake: what is wrong with it, in one line.
        found_by: the rules of which at least one must find it; empty for a healthy run.
    """

    name: str
    mistake: str
    found_by: tuple[str, ...] = ()


HEALTHY = Fault("healthy", "nothing: the learning rate is 0.001, with Adam")

FAULTS: tuple[Fault, ...] = (
    Fault("exploding", "the learning rate is 10 instead of 0.01, with SGD", ("ExplodingTensor", "DivergingLoss")),
    Fault("vanishing", "ten sigmoid layers, so that almost no gradient reaches the first ones", ("VanishingGradient",)),
    Fault("nan", "the loss is written by hand, and its logarithm meets a probability of zero", ("ExplodingTensor",)),
    Fault("dead-relu", "a bias far below zero silences every unit of a layer", ("DeadRelu",)),
    Fault("overfit", "a wide network and 120 training images, a fifth of them with a wrong label", ("Overfit",)),
    Fault(
        "oscillating",
        "the learning rate is 5 instead of 0.05: too high to settle, too low to diverge",
        ("OscillatingLoss",),
    ),
    Fault("stalled", "the labels were shuffled and no longer belong to their images", ("StalledLoss",)),
    Fault("imbalance", "one class makes up nearly all of the training images", ("ClassImbalance",)),
)
