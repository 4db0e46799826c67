"""What the loss is computed from, read from the graph that autograd keeps: is it given what it is meant for?

Recorded as the quantity ``loss_input`` of ``loss`` in the first saved training steps, each kind once. The walk goes
from the loss through arithmetic to the functions that compare an output with a target, and sees from which operation
their input comes; it looks at names and shapes, never at numbers, and so waits for no device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

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
_DISTANCES = frozenset({"MseLoss", "SmoothL1Loss", "HuberLoss"})
_ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div", "Neg", "Mean", "Sum", "Pow", "Abs", *_DISTANCES})
_SAME_NUMBERS = frozenset(
    {"View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Select", "Slice", "Transpose", "Permute", "T"}
    | {"ToCopy", "Clone", "Alias"}
)


class LossInputs:
    """Adds the derived quantity ``loss_input``."""

    def __init__(self) -> None:
        self._looks = 0
        self._told: set[tuple[LossInput, int]] = set()

    def look(self, record: OpenRecord, losses: Sequence[torch.Tensor]) -> None:
        """These losses were computed, or a backward pass begins on them."""
        if self._looks == _LOOKS or not record.due or record.mode not in TRAINING:
            return
        known = [loss.grad_fn for loss in losses if loss.grad_fn is not None]
        self._looks += bool(known)
        untold = {each for node in known for each in _walk(node)} - self._told
        if untold:
            worst = max(untold)  # what else there is, is told by the next look
            self._told.add(worst)
            record.add_derived("loss", LOSS_INPUT_QUANTITY, lambda: _vector(*worst))


def _vector(problem: LossInput, rows: int) -> NDArray[np.float64]:
    return np.array([problem, rows], dtype=np.float64)


def _walk(loss: Any) -> Iterator[tuple[LossInput, int]]:
    """Each function that compares an output with a target, and over how many rows it was broadcast."""
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
                yield _CRITERIA[name].get(_name(_source(behind[0])), LossInput.SOUND), 0
        elif name in _ARITHMETIC:
            rows = _broadcast_rows(node)
            if rows:
                yield LossInput.BROADCAST, rows
            elif name in _DISTANCES:
                yield LossInput.SOUND, 0
            waiting += behind


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
