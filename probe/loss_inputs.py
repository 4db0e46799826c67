"""What the loss is computed from, read from the graph that autograd keeps: is it given what it is meant for?

Recorded as the quantity ``loss_input`` of ``loss`` in the first saved training steps, each kind once. The walk goes
from the loss through arithmetic to the functions that compare an output with a target, and sees from which operation
their input comes. It looks at names and shapes, and at one number: how many targets lie where the output cannot get.
That one is fetched like statistics, so that nothing waits for a device.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from stepwatch.probe.fetch import Fetch
from stepwatch.probe.mode_keys import TRAINING
from stepwatch.probe.recorder import OpenRecord
from stepwatch.probe.store.schema import LOSS_INPUT_QUANTITY, LossInput

_LOOKS = 8  # a script may have several losses in turn
_NODES = 64
_CROSS_ENTROPY = {
    "Softmax": LossInput.SOFTMAX_TO_CROSS_ENTROPY,
    "Sigmoid": LossInput.SIGMOID_TO_CROSS_ENTROPY,
    "Relu": LossInput.RELU_TO_CROSS_ENTROPY,
}
_LOGITS = {
    "Sigmoid": LossInput.SIGMOID_TO_LOGITS,
    "Softmax": LossInput.SOFTMAX_TO_LOGITS,
    "Relu": LossInput.RELU_TO_LOGITS,
}
_LIKELIHOOD = {
    "Softmax": LossInput.PROBABILITIES_TO_LIKELIHOOD,
    **dict.fromkeys(("Addmm", "Mm", "Linear", "Convolution"), LossInput.LOGITS_TO_LIKELIHOOD),
}
_CRITERIA = {
    "LogSoftmax": _CROSS_ENTROPY,
    "BinaryCrossEntropyWithLogits": _LOGITS,
    "NllLoss": _LIKELIHOOD,
    "NllLoss2D": _LIKELIHOOD,
}
_RANGES = {
    "Relu": (LossInput.RELU_OUT_OF_REACH, 0.0, math.inf),
    "Sigmoid": (LossInput.SIGMOID_OUT_OF_REACH, 0.0, 1.0),
    "Softmax": (LossInput.SIGMOID_OUT_OF_REACH, 0.0, 1.0),
    "Tanh": (LossInput.TANH_OUT_OF_REACH, -1.0, 1.0),
}
"""Where the outputs of an operation lie."""
_BESIDE = 0.05  # targets that are so little out of reach do not count
_DISTANCES = frozenset({"MseLoss", "SmoothL1Loss", "HuberLoss"})
_ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div", "Neg", "Mean", "Sum", "Pow", "Abs", *_DISTANCES})
_SAME_NUMBERS = frozenset(
    {"View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Select", "Slice", "Transpose", "Permute", "T"}
    | {"ToCopy", "Clone", "Alias"}
)


class _Found(NamedTuple):
    """What was found of one of the functions: ``number`` gives the other number of the vector."""

    problem: LossInput
    number: Callable[[], float] = float

    def vector(self) -> NDArray[np.float64]:
        return np.array([self.problem, self.number()], dtype=np.float64)


class LossInputs:
    """Adds the derived quantity ``loss_input``."""

    def __init__(self) -> None:
        self._looks = 0
        self._told: set[LossInput] = set()

    def look(self, record: OpenRecord, losses: Sequence[torch.Tensor]) -> None:
        """These losses of a saved step were computed, or a backward pass begins on them."""
        if self._looks == _LOOKS or record.mode not in TRAINING:
            return
        known = [loss.grad_fn for loss in losses if loss.grad_fn is not None]
        self._looks += bool(known)
        untold = [found for node in known for found in _walk(node) if found.problem not in self._told]
        if untold:
            worst = max(untold, key=lambda found: found.problem)  # what else there is, is told by the next look
            self._told.add(worst.problem)
            record.add_derived("loss", LOSS_INPUT_QUANTITY, worst.vector)


def _walk(loss: Any) -> Iterator[_Found]:
    """Each function that compares an output with a target."""
    waiting = [loss]
    for _ in range(_NODES):
        if not waiting:
            return
        node = waiting.pop()
        name, behind = _name(node), [each for each, _ in node.next_functions if each is not None]
        if name.startswith("NllLoss") and behind and _name(behind[0]) == "LogSoftmax":
            waiting += behind
        elif name in _CRITERIA:
            if behind:
                yield _Found(_CRITERIA[name].get(_name(_source(behind[0])), LossInput.SOUND))
        elif name in _ARITHMETIC:
            rows = _broadcast_rows(node)
            if rows:
                yield _Found(LossInput.BROADCAST, functools.partial(float, rows))
            elif name in _DISTANCES and behind:
                yield _reach(node, _name(_source(behind[0])))
            waiting += behind


def _reach(distance: Any, operation: str) -> _Found:
    """How many targets of a distance are out of reach of the operation that made the predictions."""
    target = getattr(distance, "_saved_target", None)
    if operation not in _RANGES or target is None:
        return _Found(LossInput.SOUND)
    problem, low, high = _RANGES[operation]
    beyond = Fetch(((target < low - _BESIDE) | (target > high + _BESIDE)).float().mean().reshape(1))
    return _Found(problem, lambda: float(beyond()))


def _name(node: Any) -> str:
    return str(node.name()).partition("Backward")[0]


def _source(node: Any) -> Any:
    """The operation that computed the numbers, behind those that only lay them out."""
    while _name(node) in _SAME_NUMBERS and node.next_functions[0][0] is not None:
        node = node.next_functions[0][0]
    return node


def _broadcast_rows(node: Any) -> int:
    """N where predictions [N, 1] or [N] were held against targets of the other shape: all N x N pairs; 0 elsewhere."""
    operands = [each for each, _ in node.next_functions]
    predictions = [each for each in operands if each is not None]
    if len(operands) < 2 or len(predictions) != 1:
        return 0  # not held against a constant
    expanded = _name(predictions[0]) == "Expand"
    pairs = _shape(predictions[0] if expanded else node)
    given = _shape(predictions[0].next_functions[0][0] if expanded else predictions[0])
    square = len(pairs) == 2 and pairs[0] == pairs[1] > 1
    return pairs[0] if square and given in ((pairs[0], 1), (pairs[0],)) else 0


def _shape(node: Any) -> tuple[int, ...]:
    """What the operation returned."""
    metadata = getattr(node, "_input_metadata", ())  # of the backward operation's input: the forward one's result
    return tuple(metadata[0].shape) if metadata else ()
