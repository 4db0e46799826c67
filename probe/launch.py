"""Records a script that knows nothing of Stepwatch: ``stepwatch run train.py --its --args``.

The script runs in this process as ``__main__``, with its own ``sys.argv`` and ``sys.path``. Its models, losses
and optimizers are found through PyTorch's global hooks when they are first used, and watched like those of
a script that makes the hook itself.
"""

from __future__ import annotations

import importlib.util
import io
import logging
import os
import signal
import sys
import time
import traceback
import types
import weakref
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_pre_hook

from stepwatch.probe.attached import Attached
from stepwatch.probe.hook import Hook
from stepwatch.probe.integrations.frameworks import Frameworks
from stepwatch.probe.lifecycle import describe_exception
from stepwatch.probe.stopping import TrainingFinished, TrainingStopped
from stepwatch.probe.store.errors import TraceError

log = logging.getLogger("stepwatch")

_STEPS_OF_DISCOVERY = 100


class LaunchError(ValueError):
    """A script that cannot be run; one line that says which and why."""


def default_run_dir(target: str) -> Path:
    """``runs/<script>-<time>``.

    Raises:
        LaunchError: there are several ranks, which could not agree on it.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise LaunchError("with several ranks the run's directory must be given: stepwatch run --out DIR ...")
    return Path("runs") / f"{Path(target).stem}-{time.strftime('%Y%m%d-%H%M%S')}"


def launch(
    target: str,
    args: list[str],
    *,
    module: bool,
    out_dir: str | Path,
    options: dict[str, Any],
    has_own_hook: Callable[[], bool] = lambda: False,
) -> int:
    """Run a script or module under a hook and return its exit status.

    Args:
        target: path of the script, or name of the module.
        args: its arguments.
        module: whether ``target`` is a module's name, as with ``python -m``.
        out_dir: directory or URL of the run.
        options: further arguments of the hook.
        has_own_hook: whether the script has made a hook by itself; asked when the first model is seen.

    Raises:
        LaunchError: there is no such script or module.
    """
    code, main = _load_module(target, args) if module else _load_script(target, args)
    sys.modules["__main__"] = main
    watch = _Discovery(out_dir, options, has_own_hook)
    try:
        exec(code, main.__dict__)
    except TrainingStopped as stopped:
        print(f"stepwatch: {stopped}", file=sys.stderr)
        watch.close("stopped", stopped.reason)
        return 0 if isinstance(stopped, TrainingFinished) else 1
    except TraceError as error:
        print(f"stepwatch: {error}", file=sys.stderr)
        watch.close("exception", str(error))
        return 2
    except SystemExit as end:
        watch.close("finished")
        return _exit_status(end)
    except KeyboardInterrupt as interrupt:
        _print_traceback(interrupt)
        watch.close("exception", "KeyboardInterrupt")
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
        return 130
    except BaseException as error:
        _print_traceback(error)
        watch.close("exception", describe_exception(type(error), error))
        return 1
    watch.close("finished")
    return 1 if watch.frameworks.stopped is not None else 0


class _Discovery:
    """Finds what a script trains, through hooks on all modules and optimizers.

    They are removed after the first steps, when everything that takes part has been seen: from then on a
    step costs what it costs with a hook made by hand.
    """

    def __init__(self, out_dir: str | Path, options: dict[str, Any], has_own_hook: Callable[[], bool]) -> None:
        self._out_dir = out_dir
        self._options = options
        self._has_own_hook = has_own_hook
        self._hook: Hook | None = None
        self._left_alone = False
        self.frameworks = Frameworks(out_dir, options, self._is_free)
        self._depth = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()
        self._handles = [
            register_module_forward_pre_hook(Attached(self._enter, self._failed)),
            register_module_forward_hook(Attached(self._leave, self._failed), always_call=True),
            register_optimizer_step_pre_hook(Attached(self._update, self._failed)),
        ]

    def close(self, status: str, reason: str = "") -> None:
        """The script has ended."""
        self._remove()
        self.frameworks.close()
        if self._hook is not None:
            self._hook.close(status, reason)
        elif not self._left_alone and not self.frameworks.recorded:
            print("stepwatch: nothing was recorded: no model was called", file=sys.stderr)

    def _is_free(self) -> bool:
        """Whether nothing records the script so far."""
        self._left_alone = self._left_alone or self._has_own_hook()
        return self._hook is None and not self._left_alone

    def _enter(self, module: nn.Module, args: Any) -> None:
        if self.frameworks.at_work:
            return
        self._depth += 1
        if self._depth > 1 or module in self._seen or _is_symbolic(args):
            return
        self._seen.add(module)
        if is_loss(module):
            if self._hook is not None:
                self._hook.watch_loss(module)
        elif next(module.parameters(), None) is not None:
            if self._hook is None:
                if self.frameworks.recorded or not self._is_free():
                    self._remove()
                    return
                self._hook = self._make_hook()
            self._hook.watch_model(module)
            # The module's own hooks for this call were collected before ours was among them.
            self._hook.forward_begins(module, args, {})

    def _make_hook(self) -> Hook:
        try:
            hook = Hook(self._out_dir, **{**self.frameworks.hook_options(), **self._options})
        except (TraceError, ValueError) as error:
            self._left_alone = True
            print(f"stepwatch: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        self.frameworks.attach(hook)
        hook.expect_optimizer()
        return hook

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if not self.frameworks.at_work:
            self._depth = max(self._depth - 1, 0)

    def _update(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if self._hook is None:
            return
        if optimizer not in self._seen:
            self._seen.add(optimizer)
            self._hook.watch_optimizer(optimizer)
        if self._hook.step > _STEPS_OF_DISCOVERY:
            self._remove()

    def _failed(self, where: str, error: Exception) -> None:
        log.warning("what the script calls could not be watched (%s); it goes on", where, exc_info=error)
        self._remove()

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def _is_symbolic(args: Any) -> bool:
    """Whether a module is only asked for the shape of its output, as Keras does."""
    return any(getattr(each, "is_meta", False) or type(each).__name__ == "KerasTensor" for each in args)


def is_loss(module: nn.Module) -> bool:
    """Whether a module is a loss, by its class or its class's name."""
    return isinstance(module, nn.modules.loss._Loss) or (
        type(module).__name__.endswith("Loss") and next(module.parameters(), None) is None
    )


def _load_script(target: str, args: list[str]) -> tuple[types.CodeType, types.ModuleType]:
    path = Path(target)
    if path.is_dir():
        raise LaunchError(f"{target} is a directory; expected a Python script")
    try:
        with io.open_code(str(path.absolute())) as file:
            code = compile(file.read(), target, "exec", dont_inherit=True)
    except OSError as error:
        raise LaunchError(f"{target} cannot be read: {error.strerror}") from None
    main = types.ModuleType("__main__")
    main.__file__ = target
    main.__loader__ = SourceFileLoader("__main__", target)
    main.__dict__["__builtins__"] = __builtins__
    sys.argv = [target, *args]
    sys.path[0] = str(path.absolute().parent)
    return code, main


def _load_module(target: str, args: list[str]) -> tuple[types.CodeType, types.ModuleType]:
    sys.path[0] = str(Path.cwd())
    try:
        spec = importlib.util.find_spec(target)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{target}.__main__")
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.loader is None:
        raise LaunchError(f"there is no module {target!r} that can be run")
    code = spec.loader.get_code(spec.name)  # type: ignore[attr-defined]
    if code is None:
        raise LaunchError(f"module {target!r} has no code that can be run")
    main = types.ModuleType("__main__")
    main.__spec__ = spec
    main.__file__ = spec.origin
    main.__loader__ = spec.loader
    main.__package__ = spec.parent
    main.__dict__["__builtins__"] = __builtins__
    sys.argv = [spec.origin or target, *args]
    return code, main


def _exit_status(end: SystemExit) -> int:
    """The status that the interpreter would have exited with."""
    if end.code is None:
        return 0
    if isinstance(end.code, int):
        return end.code
    print(end.code, file=sys.stderr)
    return 1


def _print_traceback(error: BaseException) -> None:
    """As the interpreter would have, without our own frame."""
    below = error.__traceback__.tb_next if error.__traceback__ else None
    traceback.print_exception(type(error), error, below)
