"""What a hook is given: models, optimizers, losses, ranks; checked and spelled out."""

from __future__ import annotations

import functools
import os
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from stepwatch.probe.store.remote import is_url

Models: TypeAlias = "nn.Module | Sequence[nn.Module] | Mapping[str, nn.Module]"
Optimizers: TypeAlias = "torch.optim.Optimizer | Sequence[torch.optim.Optimizer]"
Ranks: TypeAlias = 'Literal["all", "first", "node"] | Sequence[int]'


def is_recorded(ranks: Ranks, rank: int, first_of_node: bool) -> bool:
    """Whether this rank is one of them.

    Raises:
        ValueError: they are not as described.
    """
    if ranks in ("all", "first", "node"):
        return rank == 0 or ranks == "all" or (ranks == "node" and first_of_node)
    if isinstance(ranks, str) or 0 not in ranks:
        raise ValueError(f"ranks is {ranks!r}; expected 'all', 'first', 'node' or numbers of ranks, 0 among them")
    return rank in ranks


def base_name(place: str | os.PathLike[str]) -> str:
    """The last part of a path or URL."""
    text = os.fspath(place)
    return posixpath.basename(text.partition("?")[0].rstrip("/")) if is_url(text) else Path(text).resolve().name


def check_arguments(models: Sequence[Any], optimizers: Sequence[Any], loss_fn: Any) -> None:
    """Check their types.

    Raises:
        TypeError: one of them is something else.
    """
    for model in models:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
    for optimizer in optimizers:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"optimizer is a {type(optimizer).__name__}; expected a torch.optim.Optimizer")
    if loss_fn is not None and not callable(loss_fn):
        raise TypeError(f"loss_fn is a {type(loss_fn).__name__}; expected a module or a function")


def named_models(model: Models | None) -> Iterator[tuple[str | None, nn.Module]]:
    """Models with the names that they were given."""
    if model is None:
        return
    if isinstance(model, Mapping):
        yield from model.items()
    elif isinstance(model, (list, tuple)):
        yield from ((None, each) for each in model)
    else:
        yield None, model  # type: ignore[misc]


@functools.cache
def loss_name(name: str) -> str:
    """Name of a loss in tensor names: it says that it is one, as smdebug's expression wants."""
    return name if name.lower().endswith("loss") else f"{name}_loss"


def has_closure(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether an optimizer's step was called with a closure; ``args`` begins with the optimizer or not."""
    if not kwargs and len(args) == (1 if args and isinstance(args[0], torch.optim.Optimizer) else 0):
        return False
    return kwargs.get("closure") is not None or any(
        callable(arg) and not isinstance(arg, torch.optim.Optimizer) for arg in args
    )


def learning_rates(optimizer: torch.optim.Optimizer, place: int) -> Iterator[tuple[str, float | torch.Tensor]]:
    """Name and value of the rate of each parameter group; ``place`` is the optimizer's among several."""
    groups = optimizer.param_groups
    stem = f"learning_rate/optimizer_{place}" if place else "learning_rate"
    for index, group in enumerate(groups):
        rate = group.get("lr")
        if rate is not None:
            name = stem if len(groups) == 1 else f"{stem}/group_{index}"
            yield name, rate if isinstance(rate, torch.Tensor) else float(rate)
