"""Notices at every step that gradients are not finite any more, also where nothing is saved."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from stepwatch.probe.fetch import Fetch
from stepwatch.probe.sheet import StatisticsSheet


class GradientGuard:
    """Looks at the smallest gradient in each half of the model's depth.

    A NaN or an infinity that backpropagation meets goes on to the gradients of every layer below, the biases and
    the scales of the norms among them, so that a few hundred numbers stand for all. What arises in one gradient
    alone reaches the loss at the next step, which is looked at as well.

    On the CPU the answer is that of this step, on an accelerator that of an earlier one, for which nothing waits.

    Args:
        parameters: of the model, in order.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        half = len(trained) // 2
        halves = [part for part in (trained[:half], trained[half:]) if part]
        self._watched = [min(part, key=lambda parameter: parameter.numel()) for part in halves]
        self._names = [""] * len(self._watched)
        self._sheet = StatisticsSheet()
        self._pending: Fetch | None = None

    def finite(self) -> bool:
        """Whether the gradients that are known by now are finite; to be called before the update."""
        gradients = [gradient for parameter in self._watched if (gradient := parameter.grad) is not None]
        if not gradients:
            return True
        if gradients[0].is_cpu:
            self._sheet.clear()
            self._sheet.add_all(self._names, gradients)
            return not self._sheet.broken
        return self._finite_on_device(gradients)

    @torch.no_grad()
    def _finite_on_device(self, gradients: list[torch.Tensor]) -> bool:
        pending = self._pending
        known = True
        if pending is not None:
            if not pending.ready():
                return True
            known = bool(pending().isfinite().all())
        dense = [gradient for gradient in gradients if type(gradient) is torch.Tensor and not gradient.is_sparse]
        norms = torch._foreach_norm(dense) if dense else ()
        self._pending = Fetch(torch.stack(list(norms))) if norms else None
        return known
