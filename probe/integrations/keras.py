"""Keras 3 on PyTorch: ``model.fit(..., callbacks=[StepwatchCallback("runs/exp1", rules="recommended")])``."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import torch
from torch import nn

from stepwatch.probe.collections import CollectionKeys
from stepwatch.probe.hook import Hook
from stepwatch.probe.lifecycle import describe_exception
from stepwatch.probe.mode_keys import ModeKeys
from stepwatch.probe.rotation import set_aside
from stepwatch.probe.store.errors import TraceError

log = logging.getLogger("stepwatch")

_WITH_ACTIVATION = (
    *(keras.layers.Dense, keras.layers.EinsumDense, keras.layers.Activation),
    *(keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D),
    *(keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose),
    *(keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D),
    *(keras.layers.SeparableConv1D, keras.layers.SeparableConv2D),
)
_BIASES = ("bias", "beta")
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "sigmoid": nn.Sigmoid,
    "hard_sigmoid": nn.Hardsigmoid,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
}


class StepwatchCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Records a ``fit`` of a Keras model.

    Weights have the names of their layers (``Sequential_dense.kernel``), the activation of a layer one of its own
    (``dense.activation_output_0``). Only what is trained when ``fit`` begins is recorded. When a rule or
    ``stepwatch stop`` asks for it, the model is saved below the run's directory, and ``fit`` ends with the batch.
    What ModelCheckpoint and others save is noted, and the last healthy checkpoint is not overwritten while a finding is
    open.

    Attributes:
        hook: the hook of the ``fit`` under way; None outside.
        stop_reason: why it was stopped, it or the one before; None where it was not.

    Args:
        out_dir: directory of the run.
        options: further arguments of :class:`stepwatch.probe.Hook`; model, optimizer and loss are found here.

    Raises:
        RuntimeError: from ``fit``, where Keras runs on another backend than torch.
    """

    def __init__(self, out_dir: str | os.PathLike[str], **options: Any) -> None:
        super().__init__()
        self.hook: Hook | None = None
        self._out_dir = Path(out_dir)
        self._options = options
        self.stop_reason: str | None = None
        self._logged: set[str] = set()
        self._detach: list[Callable[[], object]] = []

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Attach to the model, its optimizer and its loss."""
        if keras.backend.backend() != "torch":
            raise RuntimeError(f"Keras runs on {keras.backend.backend()!r}; expected KERAS_BACKEND=torch")
        self._close("exception", "fit did not return")  # the one before, where it failed outside a step
        self.stop_reason = None
        view = LayerView(self.model)
        optimizer = getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)
        update = KerasOptimizer(optimizer, [parameter for _, parameter in view.named_parameters()])
        loss = KerasLoss(self.model)
        self._detach = [view.detach, update.detach, loss.detach]
        if not self.model.jit_compile:
            self._detach.append(_replace(self.model, "train_step", self._train_step))
        own = {
            "checkpoint": self._checkpoint,
            "stop": self._stop,
            "start_step": int(optimizer.iterations),
        }
        name = type(self.model).__name__
        options = {**own, **self._options}
        self.hook = hook = Hook(self._out_dir, model={name: view}, optimizer=update, loss_fn=loss, **options)
        for save in ("save", "save_weights"):
            self._detach.append(_replace(self.model, save, self._save))
        for path, _ in view.named_parameters():  # Keras calls weights otherwise than the expressions of the collections
            kind = CollectionKeys.BIASES if path.endswith(_BIASES) else CollectionKeys.WEIGHTS
            hook._registry.get(kind).tensor_names.add(f"{name}_{path}")
        hook.set_mode(ModeKeys.TRAIN)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Its metrics are to come."""
        self._logged.clear()

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """An evaluation begins; the metrics of the epoch so far still belong to its last step."""
        if self.hook is not None:
            self._log(self.model.get_metrics_result())
            self.hook.set_mode(ModeKeys.EVAL)

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        """Record what the evaluation gave."""
        if self.hook is not None:
            self._log({f"val_{name}": value for name, value in (logs or {}).items()})
            self.hook.set_mode(ModeKeys.TRAIN)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Record what the epoch gave."""
        self._log(logs or {})

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Save the model where the training was stopped, and close the run."""
        if self.hook is None:
            return
        step = self.hook.step
        self._close("finished" if self.stop_reason is None else "stopped", self.stop_reason or "")
        if self.stop_reason is not None:
            self.model.save(self._checkpoint(step))

    def _close(self, status: str, reason: str = "") -> None:
        for detach in self._detach:
            detach()
        self._detach.clear()
        if self.hook is not None:
            self.hook.close(status, reason)
            self.hook = None

    def _train_step(self, train_step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Keras tells no callback that a fit has failed."""
        try:
            return train_step(*args, **kwargs)
        except BaseException as error:
            self._close("exception", describe_exception(type(error), error))
            raise

    def _save(self, save: Callable[..., Any], filepath: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """Note what is saved; what it would overwrite is kept under another name where it may be needed."""
        hook = self.hook
        if hook is None:
            return save(filepath, *args, **kwargs)
        try:
            set_aside(hook.out_dir, hook.rank, filepath)
        except (OSError, TraceError) as error:
            log.warning("%s: the last healthy checkpoint may be overwritten: %s", filepath, error)
        saved = save(filepath, *args, **kwargs)
        hook.note_checkpoint(filepath)
        return saved

    def _log(self, metrics: Mapping[str, Any]) -> None:
        """Record what is new in this epoch, but for the means of losses, which are recorded batch by batch."""
        if self.hook is None:
            return
        for name in metrics.keys() - self._logged - {"loss", "val_loss"}:
            self._logged.add(name)
            self.hook.log(name, metrics[name])

    def _checkpoint(self, step: int) -> Path:
        """Where the model will be saved after this batch."""
        return self._out_dir / f"checkpoint-{step}.keras"

    def _stop(self, reason: str) -> None:
        self.stop_reason = reason
        self.model.stop_training = True


class LayerView(nn.Module):
    """A Keras model as PyTorch names modules: layers by their names, with the weights that are trained.

    Keras keeps its layers out of sight of PyTorch, and all weights under their paths in one dictionary. The activation
    that is part of a layer is a module of its own here, so that rules about activations see it.

    Args:
        model: the model, built.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._model = [model]  # in a list, so that it is no module of this one
        self._detach: list[Any] = []
        self._layers: dict[str, nn.Module] = {"": model}
        self._weights: dict[str, nn.Parameter] = {}
        self._add(model, "")

    def detach(self) -> None:
        """Activations are not shown any more."""
        for handle in self._detach:
            handle.remove()

    @property
    def training(self) -> bool:  # type: ignore[override]
        """Whether the model is in train mode."""
        return bool(self._model[0].training)

    @training.setter
    def training(self, mode: bool) -> None:
        """Set by torch when a module is made."""

    def register_forward_pre_hook(self, hook: Callable[..., Any], **options: Any) -> Any:  # type: ignore[override]
        """On the model: it is what is called."""
        return self._model[0].register_forward_pre_hook(functools.partial(self._as_this, hook), **options)

    def register_forward_hook(self, hook: Callable[..., Any], **options: Any) -> Any:  # type: ignore[override]
        """On the model: it is what is called."""
        return self._model[0].register_forward_hook(functools.partial(self._as_this, hook), **options)

    def _as_this(self, hook: Callable[..., Any], model: nn.Module, *args: Any) -> Any:
        return hook(self, *args)

    def named_modules(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Module]]:  # type: ignore[override]
        """(path, layer) of the model itself and all of its layers."""
        yield from self._layers.items()

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """(path, weight) of all weights that are trained, shared ones once."""
        yield from self._weights.items()

    def _add(self, layer: Any, path: str) -> None:
        inner = [each for each in layer._flatten_layers(include_self=False, recursive=False)]
        of_inner = {id(weight) for each in inner for weight in each.trainable_variables}
        for weight in layer.trainable_variables:
            if id(weight) not in of_inner and not any(weight.value is known for known in self._weights.values()):
                self._weights[self._path(path, weight.name, self._weights)] = weight.value
        for each in inner:
            if isinstance(layer, keras.Sequential) and isinstance(each, keras.Model) and each is layer._functional:
                continue  # the same layers once more
            self._add_layer(each, path)

    def _add_layer(self, layer: Any, path: str) -> None:
        own = self._path(path, layer.name, self._layers)
        kind = _activation_of(layer)
        self._layers[own] = layer
        if kind is not None:
            whole = isinstance(layer, (keras.layers.ReLU, keras.layers.Activation))
            stand_in = _stand_in(kind)
            self._layers[own if whole else f"{own}.activation"] = stand_in
            self._detach.append(layer.register_forward_hook(_shown_to(stand_in, layer)))
        self._add(layer, own)

    @staticmethod
    def _path(parent: str, name: str, taken: Mapping[str, object]) -> str:
        path = f"{parent}.{name}" if parent else name
        return path if path not in taken else f"{path}#{sum(each.split('#')[0] == path for each in taken)}"


def _activation_of(layer: Any) -> type[nn.Module] | None:
    """The type of module that the last thing a layer does would be in PyTorch."""
    if isinstance(layer, keras.layers.ReLU):
        return nn.ReLU if not layer.negative_slope and not layer.threshold else None
    if not isinstance(layer, _WITH_ACTIVATION):
        return None
    return _ACTIVATIONS.get(getattr(layer.activation, "__name__", ""))


def _stand_in(kind: type[nn.Module]) -> nn.Module:
    """A module that is called by the name of the type and changes nothing."""
    module: nn.Module = type(kind.__name__, (nn.Identity,), {})()
    return module


def _shown_to(stand_in: nn.Module, layer: Any) -> Callable[..., None]:
    channels_last = getattr(layer, "data_format", keras.config.image_data_format()) == "channels_last"

    def show(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor):
            stand_in(output.movedim(-1, 1) if channels_last and output.dim() > 3 else output)

    return show


class KerasLoss(nn.Module):
    """The loss of a Keras model as a module: ``compute_loss`` calls it, in training and in evaluation.

    Args:
        model: the model; its own ``compute_loss`` is called.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.detach = _replace(model, "compute_loss", self)

    def forward(self, compute_loss: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The loss."""
        return compute_loss(*args, **kwargs)


class KerasOptimizer(torch.optim.Optimizer):
    """An optimizer of Keras's, as far as PyTorch's hooks of optimizers are concerned.

    A step is an update of the weights: after so many batches where gradients are accumulated, and with the gradients as
    they are then, unscaled and clipped.

    Args:
        optimizer: the one that the model is trained with.
        parameters: what it trains.
    """

    def __init__(self, optimizer: Any, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__(parameters, {"lr": 0.0})
        self.detach = _replace(optimizer, "_backend_update_step", self._update)

    def _update(self, update: Callable[..., None], gradients: Any, variables: Any, learning_rate: Any) -> None:
        for gradient, variable in zip(gradients, variables, strict=True):
            variable.value.grad = gradient  # what is recorded; Keras has taken its own, and resets them
        self.param_groups[0]["lr"] = keras.ops.convert_to_tensor(learning_rate).detach()
        self._pending = functools.partial(update, gradients, variables, learning_rate)
        self.step()

    def step(self) -> None:  # type: ignore[override]
        """Update the weights."""
        self._pending()


def _replace(owner: Any, name: str, call: Callable[..., Any]) -> Callable[[], None]:
    """Have a method of an object done by ``call``, which gets the method before its arguments; returns the undoing."""
    method = getattr(owner, name)

    @functools.wraps(method)
    def instead(*args: Any, **kwargs: Any) -> Any:
        return call(method, *args, **kwargs)

    object.__setattr__(owner, name, instead)
    return lambda: object.__delattr__(owner, name)
