"""Hears of what a script waits for: batches, their copies to a device, checkpoints being written, collectives.

``DataLoader``, ``Tensor.to`` and its like, ``torch.save`` and the ``wait`` of a collective are wrapped while somebody
listens. Of loaders inside loaders only the outermost is timed, and only in the thread that trains: what another thread
waits for costs no time of the step.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from time import perf_counter_ns
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch.utils.data import dataloader

from stepwatch.probe.collectives import COLLECTIVE
from stepwatch.probe.device_clock import COPY
from stepwatch.probe.timeline import StepClock

log = logging.getLogger("stepwatch")

_COPIES = ("to", "cuda", "pin_memory")

_listeners: dict[int, tuple[StepClock, int]] = {}
_originals: dict[str, Callable[..., Any]] = {}
_waiting = threading.local()


def listen(clock: StepClock) -> None:
    """Add what this thread waits for to ``clock`` from now on."""
    _listeners[id(clock)] = (clock, threading.get_ident())
    if not _originals:
        _install()


def unlisten(clock: StepClock) -> None:
    """Stop; the last one restores torch's own functions."""
    _listeners.pop(id(clock), None)
    if not _listeners and _originals:
        dataloader.DataLoader.__iter__ = _originals["iter"]  # type: ignore[method-assign]
        dataloader._BaseDataLoaderIter.__next__ = _originals["next"]  # type: ignore[method-assign]
        torch.save = _originals["save"]  # type: ignore[assignment]
        for name in _COPIES:
            delattr(torch.Tensor, name)  # where it inherits them from
        if "wait" in _originals:
            dist.Work.wait = _originals["wait"]  # type: ignore[method-assign]
        _originals.clear()


def _install() -> None:
    start = _originals["iter"] = dataloader.DataLoader.__iter__
    fetch = _originals["next"] = dataloader._BaseDataLoaderIter.__next__
    save = _originals["save"] = torch.save

    @functools.wraps(start)
    def timed_start(self: Any) -> Any:
        iterator = _timed("loader_ns", start, self)
        with suppress(AttributeError, TypeError):  # a loader that has no place for it, or cannot be a key
            iterator._stepwatch_feed = _feeds.setdefault(self, _Feed())
        return iterator

    @functools.wraps(fetch)
    def timed_fetch(self: Any) -> Any:
        data = _timed("loader_ns", fetch, self)
        if not getattr(_waiting, "inside", False):
            _note_batch(self, data)
        return data

    @functools.wraps(save)
    def timed_save(*args: Any, **kwargs: Any) -> Any:
        return _timed("checkpoint_ns", save, *args, **kwargs)

    dataloader.DataLoader.__iter__ = timed_start  # type: ignore[method-assign]
    dataloader._BaseDataLoaderIter.__next__ = timed_fetch  # type: ignore[method-assign]
    torch.save = timed_save
    for name in _COPIES:
        setattr(torch.Tensor, name, _timed_copy(getattr(torch.Tensor, name), pins=name == "pin_memory"))
    if dist.is_available():
        wait = _originals["wait"] = dist.Work.wait

        @functools.wraps(wait)
        def timed_wait(self: Any, *args: Any, **kwargs: Any) -> Any:
            return _timed(COLLECTIVE, wait, self, *args, **kwargs)

        dist.Work.wait = timed_wait  # type: ignore[method-assign]


def _note_batch(iterator: Any, data: Any) -> None:
    """Tell of a batch; however odd it or its loader is, the script gets it."""
    try:
        samples, entries = batch_size(data)
        number = _number(iterator)
        for clock in _clocks():
            clock.loaded(samples=samples, entries=entries, workers=iterator._num_workers, batch=number)
    except Exception as error:
        log.debug("a batch is not counted: %s", error)


def _number(iterator: Any) -> tuple[int, int]:
    """Which of all batches of its loader this one is, and how many an epoch has."""
    feed = getattr(iterator, "_stepwatch_feed", None)
    if feed is None:  # made before anybody listened
        return 0, 0
    feed.batches += 1
    return feed.batches, feed.per_epoch(iterator)


class _Feed:
    """What one loader has given, over all its iterators."""

    def __init__(self) -> None:
        self.batches = 0
        self._per_epoch: int | None = None

    def per_epoch(self, iterator: Any) -> int:
        """Batches of an epoch; 0 where the loader cannot tell."""
        if self._per_epoch is None:
            try:
                self._per_epoch = len(iterator._index_sampler)
            except (TypeError, NotImplementedError):
                self._per_epoch = 0
        return self._per_epoch


_feeds: WeakKeyDictionary[Any, _Feed] = WeakKeyDictionary()


def _timed(phase: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if getattr(_waiting, "inside", False):
        return call(*args, **kwargs)
    _waiting.inside = True
    clocks = _clocks()
    for clock in clocks:
        clock.waits_for = phase
        clock.device.begin(phase)
    began = perf_counter_ns()
    try:
        return call(*args, **kwargs)
    finally:
        _waiting.inside = False
        for clock in clocks:
            clock.waits_for = ""
            clock.device.end(phase)
            clock.waited(phase, perf_counter_ns() - began)


def _timed_copy(copy: Callable[..., torch.Tensor], *, pins: bool) -> Callable[..., torch.Tensor]:
    """The method of tensors, timed where it takes one from the host to a device, or to where that can fetch it.

    Only outside of the phases of a step: what a model copies in its forward pass is part of that.
    """

    @functools.wraps(copy)
    def timed(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if torch.compiler.is_compiling() or not self.is_cpu or getattr(_waiting, "inside", False):
            return copy(self, *args, **kwargs)
        clocks = [clock for clock in _clocks() if clock.outside]
        for clock in clocks:
            clock.device.begin(COPY)
        moved, began = self, perf_counter_ns()
        try:
            moved = copy(self, *args, **kwargs)
            return moved
        finally:
            took = perf_counter_ns() - began
            for clock in clocks:
                if moved is not self and (pins or not moved.is_cpu):
                    clock.device.end(COPY)
                    clock.waited(COPY, took)
                else:
                    clock.device.forget(COPY)

    return timed


def _clocks() -> list[StepClock]:
    thread = threading.get_ident()
    return [clock for clock, training in _listeners.values() if training == thread]


def batch_size(data: Any) -> tuple[int, int]:
    """Length of the first dimension of the first tensor in a batch, and its entries; 0 and 0 where there is none."""
    while True:
        if isinstance(data, torch.Tensor):
            return (len(data) if data.dim() else 0), data.numel()
        if isinstance(data, Mapping):
            data = next(iter(data.values()), None)
        elif isinstance(data, (list, tuple)) and data:
            data = data[0]
        else:
            return 0, 0
