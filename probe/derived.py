"""Derived quantities: what rules need beside the columns of ``stats``, computed where the tensor is.

======================  ==========================================================================================
``unit_activity``       of the output of a ReLU, ReLU6 or Threshold module: [units, silent now, silent in each of
                        the last 10 saved training steps, silent in each of the last 50]; the last two are 0 until
                        that many were saved. A unit is a channel (dim 1) of an output with four
                        dimensions or more (images, volumes), else an entry of the last dimension; it is silent at
                        a step when its output was 0 or less for every sample and position.
``class_counts``        of the labels of a cross-entropy or negative-log-likelihood loss: samples of each class,
                        then of these the ones predicted right (argmax over classes): 2C numbers, C <= 1000.
======================  ==========================================================================================

Like the statistics, they are computed without waiting for a device, and fetched by the writer's thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from stepwatch.probe import compiled
from stepwatch.probe.collections import RELU_TYPES
from stepwatch.probe.fetch import Fetch
from stepwatch.probe.recorder import OpenRecord
from stepwatch.probe.statistics import unsupported

SILENCE_WINDOWS = (10, 50)
MAX_CLASSES = 1000

Vector: TypeAlias = "Callable[[], NDArray[np.float64] | None]"


class DerivedQuantities:
    """Adds them to the open records of saved training steps."""

    def __init__(self) -> None:
        self._activity: dict[str, UnitActivity] = {}

    def see_output(self, record: OpenRecord, name: str, module: nn.Module, output: torch.Tensor) -> None:
        """``unit_activity`` of a module's output, where it has units that can fall silent."""
        if type(module).__name__ not in RELU_TYPES or output.dim() < 2 or not output.numel():
            return
        activity = self._activity.get(name)
        if activity is None:
            activity = self._activity[name] = UnitActivity()
        record.add_derived(name, "unit_activity", activity.observe(output))

    def see_labels(self, record: OpenRecord, name: str, loss: nn.Module, inputs: Sequence[Any]) -> None:
        """``class_counts`` of what a loss module was given, where its labels are classes."""
        if not isinstance(loss, (nn.CrossEntropyLoss, nn.NLLLoss)) or len(inputs) < 2:
            return
        logits, labels = inputs[:2]
        if labels.is_floating_point() or logits.dim() != labels.dim() + 1 or logits.dim() < 2:
            return  # labels given as probabilities, or a single sample
        if logits.shape[1] <= MAX_CLASSES and labels.numel():
            record.add_derived(name, "class_counts", class_counts(logits, labels, loss.ignore_index))


class UnitActivity:
    """``unit_activity`` of one tensor; counts on its device for how long each unit has been silent."""

    def __init__(self) -> None:
        self._counter: compiled.SilenceCounter | None = None
        self._silent_for: torch.Tensor | None = None
        self._seen = 0

    def observe(self, output: torch.Tensor) -> Vector:
        """Take note of the output of one saved training step, [N, C, ...] or [..., units], not empty.

        The counts begin anew when the number of units or the device changes. A unit that is NaN somewhere
        is not silent.
        """
        channels = output.dim() >= 4
        if output.is_cpu:
            laid_out = output if output.is_contiguous() else output.detach().contiguous()
            units = laid_out.shape[1 if channels else -1]
            if self._counter is None or self._counter.units != units:
                self._counter = compiled.SilenceCounter(units, SILENCE_WINDOWS)
            silent = self._counter.observe(laid_out, math.prod(laid_out.shape[2:]) if channels else 1)
            if silent is not None:
                return lambda: np.array([units, *silent], dtype=np.float64)
        if unsupported(output):
            return lambda: None
        return self._observe_on_device(output, (0, *range(2, output.dim())) if channels else range(output.dim() - 1))

    @torch.no_grad()
    def _observe_on_device(self, output: torch.Tensor, dims: Sequence[int]) -> Vector:
        silent = output.detach().amax(tuple(dims)) <= 0
        before = self._silent_for
        if before is None or before.shape != silent.shape or before.device != silent.device:
            before = torch.zeros(silent.shape, dtype=torch.int32, device=silent.device)
            self._seen = 0
        self._silent_for = torch.where(silent, before + 1, 0)
        self._seen += 1
        fetch, seen = Fetch(self._silent_for), self._seen

        def vector() -> NDArray[np.float64]:
            silent_for = fetch().numpy()
            lasting = [(silent_for >= steps).sum() if seen >= steps else 0 for steps in SILENCE_WINDOWS]
            return np.array([silent_for.size, (silent_for > 0).sum(), *lasting], dtype=np.float64)

        return vector


@torch.no_grad()
def class_counts(logits: torch.Tensor, labels: torch.Tensor, ignore_index: int) -> Vector:
    """``class_counts`` of logits [N, C, ...] and labels [N, ...] of an integer type; C is at least 1.

    Labels that are ``ignore_index`` or no class do not count.
    """
    classes = logits.shape[1]
    found = compiled.class_counts(logits, labels, ignore_index)
    if found is not None:
        return lambda: found.astype(np.float64)
    flat = labels.detach().reshape(-1).long()
    right = logits.detach().argmax(1).reshape(-1) == flat
    known = (flat >= 0) & (flat < classes) & (flat != ignore_index)
    slots = torch.where(known, flat + classes * right, 2 * classes)
    counts = torch.zeros(2 * classes + 1, dtype=torch.int64, device=flat.device)
    fetch = Fetch(counts.scatter_add_(0, slots, torch.ones_like(slots)))

    def vector() -> NDArray[np.float64]:
        wrong, right = fetch().numpy()[: 2 * classes].reshape(2, classes)
        return np.concatenate([wrong + right, right]).astype(np.float64)

    return vector
