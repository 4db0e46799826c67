"""What one training step computes, counted once after the warm-up: floating-point operations and tokens."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from stepwatch.probe.attached import Attached
from stepwatch.probe.capture import is_compiled
from stepwatch.probe.peaks import peak_flops
from stepwatch.probe.store.schema import FLOPS_SCALAR, PEAK_SECONDS_SCALAR, TOKENS_SCALAR

log = logging.getLogger("stepwatch")

_WARM_UP_UPDATES = 3


class StepWork:
    """Counts the forward and backward passes of one training step, by torch's formulas for matrix products,
    convolutions and attention; what else a step computes is little beside these.

    Recomputed activations count as often as they are computed. Nothing is counted where a part of a model is compiled
    (graphs hide what they compute) or replicated by DataParallel (in threads of its own). A step that is being profiled
    is let pass, and the next one counted: the operations of a counted step take longer on the host.

    Attributes:
        active: whether there is still something to count: nobody need call otherwise.

    Args:
        failed: told of an error in a hook.
    """

    def __init__(self, failed: Callable[[str, Exception], None]) -> None:
        self.active = True
        self._failed = failed
        self._updates = 0
        self._profiled = False
        self._counter: _Counter | None = None
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def step_ended(self, models: Sequence[nn.Module]) -> dict[str, float]:
        """A training step is over; returns what was counted in it, as scalars by name: nothing but once."""
        self._updates += 1
        if self._updates == _WARM_UP_UPDATES:
            self._begin(models)
        elif self._counter is not None and not self._profiled:
            return self._end()
        self._profiled = False
        return {}

    def backward_begins(self) -> None:
        """A backward pass begins."""
        if self._counter is not None and self._counts():
            self._counter.enter()

    def backward_ends(self) -> None:
        """It returned or raised."""
        if self._counter is not None:
            self._counter.leave()

    def close(self) -> None:
        """Count no more."""
        self.active = False
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._counter = None

    def _begin(self, models: Sequence[nn.Module]) -> None:
        parts = [part for model in models for part in model.modules()]
        if not parts or any(is_compiled(part) or isinstance(part, nn.DataParallel) for part in parts):
            self.active = False
            return
        counter = self._counter = _Counter()
        thread = threading.get_ident()

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if threading.get_ident() == thread and self._counts():
                counter.see_inputs(args, kwargs)
                counter.enter()

        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if threading.get_ident() == thread:
                counter.leave()

        for model in models:
            enter, leave = Attached(before, self._failed), Attached(after, self._failed)
            self._handles.append(model.register_forward_pre_hook(enter, with_kwargs=True))
            self._handles.append(model.register_forward_hook(leave, always_call=True))

    def _counts(self) -> bool:
        """Whether the open step is counted: not any more when a profiler is at work in it."""
        if not self._profiled and torch.autograd._profiler_enabled():  # type: ignore[attr-defined]
            assert self._counter is not None
            self._profiled = True
            self._counter.forget()
        return not self._profiled

    def _end(self) -> dict[str, float]:
        assert self._counter is not None
        counted = self._counter
        self.close()
        found = {FLOPS_SCALAR: float(sum(counted.flops.values()))}
        peaks = [(peak_flops(device, dtype), count) for (device, dtype), count in counted.flops.items()]
        if peaks and all(peak for peak, _ in peaks):
            found[PEAK_SECONDS_SCALAR] = sum(count / peak for peak, count in peaks if peak)
        if counted.tokens:
            found[TOKENS_SCALAR] = float(counted.tokens)
        return found if found[FLOPS_SCALAR] else {}


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation between :meth:`enter` and :meth:`leave`; these nest.

    Attributes:
        flops: by device and dtype of the operands.
        tokens: entries of the integer tensor [batch, length] that the model is given, paddings included.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops: dict[tuple[torch.device, torch.dtype], int] = {}
        self.tokens = 0
        self._depth = 0

    def forget(self) -> None:
        """Begin anew."""
        self.flops.clear()
        self.tokens = 0

    def enter(self) -> None:
        """Begin to count."""
        self._depth += 1
        if self._depth == 1:
            self.__enter__()  # type: ignore[no-untyped-call]

    def leave(self) -> None:
        """Count no more; to be called as often as :meth:`enter`."""
        if self._depth == 1:
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        self._depth = max(self._depth - 1, 0)

    def see_inputs(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """What a model that is not called by another one is given."""
        given = kwargs.get("input_ids", args[0] if args else None)
        integers = (torch.int64, torch.int32)
        if not self._depth and isinstance(given, torch.Tensor) and given.dim() == 2 and given.dtype in integers:
            self.tokens += given.numel()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run it, and add what it costs. Subclasses of tensors take themselves apart first."""
        if any(each not in (torch.Tensor, nn.Parameter) for each in types):
            return NotImplemented
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(getattr(func, "_overloadpacket", None))
        if formula is not None:
            self._add(formula, args, kwargs or {}, out)
        return out

    def _add(self, formula: Callable[..., int], args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
        operand = next((each for each in args if isinstance(each, torch.Tensor)), None)
        if operand is None:
            return
        try:
            count = formula(*args, **kwargs, out_val=out)
        except Exception as error:  # a formula that does not know these arguments: the training goes on
            log.debug("an operation is not counted: %s", error)
            return
        key = (operand.device, operand.dtype)
        self.flops[key] = self.flops.get(key, 0) + int(count)
