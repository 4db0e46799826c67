"""A few weights that stand for all, where to look at every one would cost the job too much."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import nn

from stepwatch.probe.capture import ModelCapture, Origin
from stepwatch.probe.statistics import unsupported


def spread_weights(
    models: Iterable[ModelCapture], count: int, suits: Callable[[str, nn.Parameter, Origin], bool]
) -> list[tuple[str, nn.Parameter]]:
    """Names and weights, as many as are asked for at most, spread over the depth of the models.

    They have two dimensions or more, are trained, whole and contiguous, of no embedding, and of the dtype and on the
    device of the first, so that parts of them can be put together.
    """
    found = [
        (name, weight)
        for capture in models
        for name, weight, origin in capture.parameters()
        if weight.dim() > 1
        and weight.requires_grad
        and weight.is_floating_point()
        and type(weight.data) is torch.Tensor  # of one that is sharded, a part is elsewhere
        and weight.is_contiguous()
        and unsupported(weight) is None
        and "Embedding" not in (origin.module_type or "")
        and suits(name, weight, origin)
    ]
    alike = [each for each in found if (each[1].dtype, each[1].device) == (found[0][1].dtype, found[0][1].device)]
    places = sorted({round(at) for at in np.linspace(0, len(alike) - 1, count)}) if alike else []
    return [alike[place] for place in places]
