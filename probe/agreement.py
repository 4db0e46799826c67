"""How far the gradients of two batches in a row agree: what tells noise from signal.

Two updates in a row are made at nearly the same weights on different batches, so that what their gradients share is
signal and the rest is noise. At every fourth saved step and at the step after it a part of the gradients of a few
weights is copied; the pair is compared in the writer's thread, and told at the next saved step.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from stepwatch.probe.fetch import Fetch
from stepwatch.probe.recorder import OpenRecord
from stepwatch.probe.store.schema import AGREEMENT_QUANTITY
from stepwatch.probe.updates import UpdateSample

_EVERY = 4  # saved steps


class GradientAgreement:
    """Adds the derived quantity ``agreement`` of the weights of one optimizer.

    Args:
        sample: chooses the weights.
    """

    def __init__(self, sample: UpdateSample) -> None:
        self._sample = sample
        self._turn = -1
        self._first: torch.Tensor | None = None
        self._pair: tuple[str, Fetch, Fetch] | None = None

    def look(self, record: OpenRecord, optimizer: torch.optim.Optimizer) -> None:
        """The optimizer has the gradients of a step."""
        first, self._first = self._first, None
        if first is not None:
            second = self._sample.gradients(optimizer)
            if second is not None and (second[1].shape, second[1].device) == (first.shape, first.device):
                self._pair = second[0], Fetch(first), Fetch(second[1])
        if not record.due:
            return
        pair, self._pair = self._pair, None
        if pair is not None:
            record.add_derived(pair[0], AGREEMENT_QUANTITY, lambda: _cosine(pair[1], pair[2]))
        self._turn += 1
        if self._turn % _EVERY == 0 and getattr(optimizer, "found_inf", None) is None:
            begun = self._sample.gradients(optimizer)
            self._first = None if begun is None else begun[1]


def _cosine(one: Fetch, other: Fetch) -> NDArray[np.float64]:
    """The vector of a pair; not a number where a gradient is zero or not finite."""
    first, second = one().double().numpy(), other().double().numpy()
    size = float(np.linalg.norm(first) * np.linalg.norm(second))
    return np.array([first @ second / size if 0 < size < np.inf else np.nan])
