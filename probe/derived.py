"""Derived quantities: what rules need beside the columns of ``stats``, computed where the tensor is.

======================  ==========================================================================================
``unit_activity``       of the output of a ReLU, ReLU6 or Threshold module: [units, silent now, silent in each of
                        the last 10 saved training steps, silent in each of the last 50]; the last two are 0 until
                        that many were saved. A unit is a channel (dim 1) of an output with four
                        dimensions or more (images, volumes), else an entry of the last dimension; it is silent at
                        a step when its output was above 0 for no sample and no position.
``class_counts``        of the labels of a cross-entropy or negative-log-likelihood loss: samples of each class,
                        then of these the ones predicted right (argmax over classes): 2C numbers, C <= 1000.
======================  ==========================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stepwatch.probe.collections import RELU_TYPES
from stepwatch.probe.fetch import fetch_later
from stepwatch.probe.recorder import OpenRecord
from torch import nn

SILENCE_WINDOWS = (10, 50)
MAX_CLASSES = 1000


class DerivedQuantities:
    """Computes them at saved training steps; keeps one counter per unit on the unit's device."""

    def __init__(self) -> None:
        self._silent_for: dict[str, torch.Tensor] = {}
        self._seen: dict[str, int] = {}

    def see_output(self, record: OpenRecord, name: str, module: nn.Module, output: torch.Tensor) -> None:
        """``unit_activity`` of a module's output, where it has units that can fall silent."""
        if type(module).__name__ not in RELU_TYPES or output.dim() < 2 or not output.numel():
            return
        with torch.no_grad():
            fired = _fired(output.detach())
            silent_for = self._silent_for.get(name)
            if silent_for is None or silent_for.shape != fired.shape or silent_for.device != fired.device:
                silent_for = torch.zeros(fired.shape, dtype=torch.int32, device=fired.device)
                self._seen[name] = 0
            silent_for = self._silent_for[name] = torch.where(fired, 0, silent_for + 1)
            self._seen[name] += 1
            counts = [silent_for.new_tensor(fired.numel()), (silent_for > 0).sum()]
            for window in SILENCE_WINDOWS:
                enough = self._seen[name] >= window
                counts.append((silent_for >= window).sum() if enough else silent_for.new_zeros(()))
            record.add_derived(name, "unit_activity", _vector(torch.stack([c.double() for c in counts])))

    def see_labels(self, record: OpenRecord, name: str, loss: nn.Module, inputs: Sequence[Any]) -> None:
        """``class_counts`` of what a loss module was given: logits [N, C, ...] and labels int64 [N, ...]."""
        if not isinstance(loss, (nn.CrossEntropyLoss, nn.NLLLoss)) or len(inputs) < 2:
            return
        logits, labels = inputs[0].detach(), inputs[1].detach()
        if labels.is_floating_point() or logits.dim() != labels.dim() + 1 or logits.dim() < 2:
            return  # labels given as probabilities, or a single sample
        classes = logits.shape[1]
        if classes > MAX_CLASSES or not labels.numel():
            return
        with torch.no_grad():
            flat = labels.reshape(-1)
            known = (flat != loss.ignore_index) & (flat >= 0) & (flat < classes)
            right = known & (logits.argmax(1).reshape(-1) == flat)
            slots = torch.where(known, flat, 0)
            counts = torch.zeros(2, classes, dtype=torch.float64, device=flat.device)
            counts[0].scatter_add_(0, slots, known.double())
            counts[1].scatter_add_(0, slots, right.double())
            record.add_derived(name, "class_counts", _vector(counts.reshape(-1)))


def _fired(output: torch.Tensor) -> torch.Tensor:
    """Which units were above zero anywhere in the batch."""
    positive = output > 0
    if output.dim() >= 4:
        return positive.flatten(2).any(2).any(0)
    return positive.reshape(-1, positive.shape[-1]).any(0)


def _vector(tensor: torch.Tensor) -> Callable[[], NDArray[np.float64] | None]:
    fetch = fetch_later(tensor)
    return lambda: fetch().numpy()
