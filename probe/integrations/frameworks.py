"""Finds trainers of frameworks in a script that knows nothing of us, and gives them our callbacks."""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import inspect
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

Train = Callable[..., Any]


class Frameworks(importlib.abc.MetaPathFinder):
    """Waits for a script to import a framework, and records what its trainers train.

    The first training is recorded in ``out_dir``, those after it beside it: ``out_dir-2``, ``out_dir-3``. Trainers that
    have a callback of ours from the script are left as they are.

    Attributes:
        at_work: whether a trainer has control: what it calls is not ours to find.
        recorded: how many trainings were recorded.
        stopped: why the last of them was stopped; None where it was not.

    Args:
        out_dir: directory or URL of the run.
        options: further arguments of :class:`stepwatch.probe.Hook`.
        may_record: asked before each training; False where something else records the script.
    """

    def __init__(self, out_dir: str | Path, options: dict[str, Any], may_record: Callable[[], bool]) -> None:
        self.at_work = 0
        self.recorded = 0
        self.stopped: str | None = None
        self._out_dir = out_dir
        self._options = options
        self._may_record = may_record
        self._accelerator: Any = None
        self._waiting = {**dict.fromkeys(_TRAINERS, self._adapt), "accelerate.accelerator": self._adapt_accelerate}
        sys.meta_path.insert(0, self)

    def close(self) -> None:
        """Wait no longer."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """What the import system asks: one of the modules that are waited for is changed once it is loaded."""
        adapt = self._waiting.pop(fullname, None)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path) if adapt else None
        if adapt is None or spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def load_and_adapt(module: types.ModuleType) -> None:
            load(module)
            adapt(module)

        spec.loader.exec_module = load_and_adapt  # type: ignore[method-assign]
        return spec

    def hook_options(self) -> dict[str, Any]:
        """What a hook is given where the script drives the training by itself, through Accelerate perhaps."""
        accelerator = self._accelerator
        if accelerator is None:
            return {}
        from stepwatch.probe.integrations.accelerate import saving

        return {"checkpoint": saving(accelerator, self._out_dir)}

    def attach(self, hook: Any) -> None:
        """The script's own training has this hook."""
        if self._accelerator is not None:
            from stepwatch.probe.integrations.accelerate import StepwatchTracker

            self._accelerator.trackers.append(StepwatchTracker(hook))

    def _adapt(self, module: types.ModuleType) -> None:
        trainer = _TRAINERS[module.__name__]
        kind = getattr(module, trainer.name)
        for method in (trainer.trains, *trainer.does):
            setattr(
                kind,
                method,
                self._in_charge(getattr(kind, method), trainer.record if method == trainer.trains else None),
            )

    def _in_charge(self, method: Train, record: Callable[..., Any] | None) -> Train:
        @functools.wraps(method)
        def call(trainer: Any, *args: Any, **kwargs: Any) -> Any:
            outermost = not self.at_work
            self.at_work += 1
            try:
                if record is None or not outermost or not self._may_record():
                    return method(trainer, *args, **kwargs)
                return record(method, trainer, args, kwargs, self._recording)
            finally:
                self.at_work -= 1

        return call

    @contextmanager
    def _recording(self, make: Callable[..., Any]) -> Iterator[Any]:
        self.recorded += 1
        suffix = "" if self.recorded == 1 else f"-{self.recorded}"
        callback = make(f"{self._out_dir}{suffix}", **self._options)
        try:
            yield callback
        finally:
            self.stopped = callback.stop_reason

    def _adapt_accelerate(self, module: types.ModuleType) -> None:
        made = module.Accelerator.__init__

        @functools.wraps(made)
        def remember(accelerator: Any, *args: Any, **kwargs: Any) -> None:
            made(accelerator, *args, **kwargs)
            self._accelerator = accelerator

        module.Accelerator.__init__ = remember


def _in_lightning(fit: Train, trainer: Any, args: Any, kwargs: Any, recording: Any) -> Any:
    from stepwatch.probe.integrations.lightning import StepwatchCallback

    if any(isinstance(each, StepwatchCallback) for each in trainer.callbacks):
        return fit(trainer, *args, **kwargs)
    with recording(StepwatchCallback) as callback:
        trainer.callbacks.insert(0, callback)
        try:
            return fit(trainer, *args, **kwargs)
        finally:
            trainer.callbacks.remove(callback)


def _in_transformers(train: Train, trainer: Any, args: Any, kwargs: Any, recording: Any) -> Any:
    from stepwatch.probe.integrations.transformers import StepwatchCallback

    if any(isinstance(each, StepwatchCallback) for each in trainer.callback_handler.callbacks):
        return train(trainer, *args, **kwargs)
    with recording(StepwatchCallback) as callback:
        trainer.add_callback(callback)
        try:
            return train(trainer, *args, **kwargs)
        finally:
            trainer.remove_callback(callback)


def _in_keras(fit: Train, model: Any, args: Any, kwargs: Any, recording: Any) -> Any:
    from stepwatch.probe.integrations.keras import StepwatchCallback

    given = inspect.signature(fit).bind(model, *args, **kwargs)
    callbacks = given.arguments.get("callbacks") or []
    known = list(getattr(callbacks, "callbacks", callbacks if isinstance(callbacks, (list, tuple)) else [callbacks]))
    if any(isinstance(each, StepwatchCallback) for each in known):
        return fit(model, *args, **kwargs)
    with recording(StepwatchCallback) as callback:
        given.arguments["callbacks"] = [*known, callback]
        return fit(*given.args, **given.kwargs)


class _Trainer(NamedTuple):
    """What trains in a framework: its class, the method that does, others that run models, and how it is recorded."""

    name: str
    trains: str
    does: tuple[str, ...]
    record: Callable[..., Any]


_LIGHTNING = _Trainer("Trainer", "fit", ("validate", "test", "predict"), _in_lightning)
_TRAINERS = {
    "lightning.pytorch.trainer.trainer": _LIGHTNING,
    "pytorch_lightning.trainer.trainer": _LIGHTNING,
    "transformers.trainer": _Trainer("Trainer", "train", ("evaluate", "predict"), _in_transformers),
    "keras.src.backend.torch.trainer": _Trainer("TorchTrainer", "fit", ("evaluate", "predict"), _in_keras),
}
