"""The record that is open: what the current step has shown so far."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from stepwatch.probe.fetch import Fetch
from stepwatch.probe.mode_keys import ModeKeys
from stepwatch.probe.sheet import StatisticsSheet
from stepwatch.probe.store.records import StepRecord


class Pending(Protocol):
    """Statistics on their way from a device."""

    def result(self) -> NDArray[np.float64] | None:
        """Wait for them: float64 [tensors, columns], or None where they turn out not to count."""


_MODE_NAMES = {mode: mode.name for mode in ModeKeys}

Scalar: TypeAlias = "float | torch.Tensor"


class OpenRecord:
    """Collects one step. Values on a device stay there, detached, until the writer's thread fetches them.

    Attributes:
        step, mode, mode_step: as in :class:`StepRecord`.
        due: names of the collections whose tensors are recorded at this step; empty where nothing is saved.
        ended: whether its step is over; what is logged now still belongs to it.
        timing: nanoseconds of its phases, once it has ended.
        alarmed: whether something ceased to be finite in it, for which the steps before are wanted.
        forwards, backwards: passes seen so far.
        finite: whether every loss that is known on the host is finite.
    """

    __slots__ = (
        "_derived",
        "_losses",
        "_remote",
        "_scalars",
        "_sheet",
        "_statistics",
        "_timings",
        "_values",
        "alarmed",
        "backwards",
        "due",
        "ended",
        "ended_at",
        "finite",
        "forwards",
        "mode",
        "mode_step",
        "step",
        "time_ns",
        "timing",
    )

    def __init__(self, step: int, mode: ModeKeys, mode_step: int, *, due: frozenset[str]) -> None:
        self.step = step
        self.mode = mode
        self.mode_step = mode_step
        self.due = due
        self.alarmed = False
        self.ended = False
        self.ended_at = 0.0
        self.timing: dict[str, int] = {}
        self.forwards = 0
        self.backwards = 0
        self.finite = True
        self.time_ns = time.time_ns()
        self._sheet: StatisticsSheet | None = None
        self._statistics: list[tuple[Sequence[str], Pending]] = []
        self._derived: list[tuple[str, str, Callable[[], NDArray[np.float64] | None]]] = []
        self._values: list[tuple[str, torch.Tensor]] = []
        self._losses: dict[str, list[Scalar]] = {}
        self._scalars: list[tuple[str, Scalar]] = []
        self._remote = False
        self._timings: Callable[[], dict[str, int]] | None = None

    @property
    def sheet(self) -> StatisticsSheet:
        """Statistics that are there at once."""
        if self._sheet is None:
            self._sheet = StatisticsSheet()
        return self._sheet

    def add_statistics(self, names: Sequence[str], pending: Pending) -> None:
        """Statistics of these tensors, on their way."""
        self._statistics.append((names, pending))

    def has_statistics(self) -> bool:
        """Whether any are there or on their way."""
        return self._sheet is not None or bool(self._statistics)

    def add_derived(self, name: str, quantity: str, result: Callable[[], NDArray[np.float64] | None]) -> None:
        """A derived quantity, on its way; None when it turns out not to exist."""
        self._derived.append((name, quantity, result))

    def add_value(self, name: str, tensor: torch.Tensor) -> None:
        """A whole tensor, copied now: the script may change it in place."""
        self._values.append((name, tensor.detach().clone()))

    def add_loss(self, name: str, value: torch.Tensor) -> None:
        """A captured loss; those of several micro-batches are averaged."""
        kept = self._keep(value if value.numel() == 1 else value.detach().float().mean())
        if isinstance(kept, float) and not math.isfinite(kept):
            self.finite = False
        self._losses.setdefault(name, []).append(kept)

    def has_loss(self) -> bool:
        """Whether a loss was captured."""
        return bool(self._losses)

    def drop_losses(self) -> None:
        """Forget the losses: the step they led to was skipped."""
        self._losses.clear()
        self.finite = True

    def add_scalar(self, name: str, value: Scalar) -> None:
        """A logged scalar; of one name the last counts."""
        self._scalars.append((name, self._keep(value) if isinstance(value, torch.Tensor) else value))

    def add_timings(self, pending: Callable[[], dict[str, int]] | None) -> None:
        """Times that a device tells when it is done."""
        self._timings = pending

    def _keep(self, value: torch.Tensor) -> Scalar:
        """The number itself where reading it does not wait for a device, else a copy there."""
        if value.is_cpu:
            return float(value.item())
        self._remote = True
        return value.detach().clone()

    def end(self, timing: dict[str, int]) -> None:
        """The step is over."""
        self.ended = True
        self.ended_at = time.monotonic()
        self.timing = timing

    def close(self, intern: Callable[[tuple[str, ...]], tuple[str, ...]]) -> StepRecord:
        """The finished record; what is still on a device is fetched by its ``resolve``."""
        scalars = _Scalars(self._losses, self._scalars, self.backwards, remote=self._remote)
        sheet, statistics, derived, values = self._sheet, self._statistics, self._derived, self._values
        timings = self._timings

        def resolve(record: StepRecord) -> None:
            record.scalars = scalars.result()
            if timings is not None and record.timing:
                record.timing.update(timings())
            batches: list[tuple[Sequence[str], NDArray[np.float64] | None]] = []
            if sheet is not None and sheet.names:
                batches.append((sheet.names, sheet.matrix()))
            batches += [(names, pending.result()) for names, pending in statistics]
            found = [(names, matrix) for names, matrix in batches if matrix is not None]
            if found:
                record.names = intern(tuple(name for names, _ in found for name in names))
                record.stats = np.concatenate([matrix for _, matrix in found]) if len(found) > 1 else found[0][1]
            for name, quantity, result in derived:
                vector = result()
                if vector is not None:
                    record.derived.append((name, quantity, vector))
            record.values = [(name, _to_numpy(tensor)) for name, tensor in values]

        return StepRecord(
            step=self.step,
            mode=_MODE_NAMES[self.mode],
            mode_step=self.mode_step,
            time_ns=self.time_ns,
            timing=self.timing,
            saved=bool(self.due),
            alarmed=self.alarmed,
            resolve=resolve,
        )


class _Scalars:
    """Losses and scalars of one step; those on an accelerator, if any are remote, are copied without waiting for it."""

    def __init__(
        self, losses: dict[str, list[Scalar]], scalars: list[tuple[str, Scalar]], backwards: int, *, remote: bool
    ) -> None:
        self._losses = losses
        self._scalars = scalars
        self._backwards = backwards
        self._fetch: Callable[[], torch.Tensor] | None = None
        tensors = [value for value in self._values() if isinstance(value, torch.Tensor)] if remote else []
        if tensors:
            self._fetch = Fetch(torch.stack([value.reshape(()).double() for value in tensors]))

    def result(self) -> list[tuple[str, float]]:
        """Wait for them. Of one name the last scalar counts, and of losses the mean.

        Of more losses than backward passes, the ones that are not finite were left out by the script itself.
        """
        fetched = iter(self._fetch().tolist() if self._fetch is not None else ())
        numbers = [next(fetched) if isinstance(value, torch.Tensor) else value for value in self._values()]
        found, at = {}, 0
        for name, parts in self._losses.items():
            known = numbers[at : at + len(parts)]
            at += len(parts)
            if len(known) > self._backwards > 0:
                known = [number for number in known if math.isfinite(number)] or known
            found[name] = float(sum(known) / len(known))
        logged = {name: number for (name, _), number in zip(self._scalars, numbers[at:], strict=True)}
        return [*found.items(), *logged.items()]

    def _values(self) -> Iterator[Scalar]:
        for parts in self._losses.values():
            yield from parts
        for _, value in self._scalars:
            yield value


def _to_numpy(tensor: torch.Tensor) -> NDArray[Any]:
    host = tensor.to("cpu").contiguous()
    try:
        return host.numpy()
    except TypeError:
        return host.float().numpy()  # bfloat16 and float8 have no counterpart in NumPy
