"""What a model is given and whether it tells samples apart: inputs, a checksum of each batch, padding, outputs.

======================  ==========================================================================================
``input``               of each tensor that the root module is called with, integers as numbers: the columns of
                        ``stats``, then the number of samples (the first dimension), then 1 where all samples are the
                        same, else 0: up to 64 of them, by up to 256 entries
``first_layer``         the same of what enters the first layer with weights, under the name of that layer's input,
                        where it is a linear, convolutional or recurrent one: after whatever the model does to its
                        inputs before
``batch``               of the first input: [CRC-32 of up to 4,096 evenly spaced entries, batches that its DataLoader
                        had given when the batch came, batches of an epoch]; 0 and 0 without a DataLoader
``padding``             of the first input, where the model's embedding has a ``padding_idx`` or an attention mask is
                        given: [entries of padding, entries]
``output_variance``     of the first output with samples and at least two numbers for each: [samples, variance between
                        samples averaged over the numbers, variance of all], over up to 64 samples by 256 numbers
======================  ==========================================================================================

They are recorded at saved training steps, once per model and step, after the first 20 steps at most at every fifth; and
at a step whose loss is not finite, as far as that is known on the host. Nothing waits for a device.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from stepwatch.probe.attached import Attached
from stepwatch.probe.capture import ModelCapture, flatten
from stepwatch.probe.fetch import Fetch
from stepwatch.probe.mode_keys import TRAINING
from stepwatch.probe.recorder import OpenRecord
from stepwatch.probe.statistics import PendingStatistics, measure, unsupported
from stepwatch.probe.store.schema import (
    BATCH_QUANTITY,
    FIRST_LAYER_QUANTITY,
    INPUT_QUANTITY,
    OUTPUT_QUANTITY,
    PADDING_QUANTITY,
)
from stepwatch.probe.timeline import StepClock

_LAYERS = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd, nn.RNNBase)
_FIRST_STEPS, _EVERY = 20, 5
_NOT_CALLED = "?"  # no path of a module
_MAX_INPUTS = 8
_MAX_SAMPLES, _MAX_ENTRIES = 64, 256
_MAX_FINGERPRINTED = 4096

Vector: TypeAlias = "Callable[[], NDArray[np.float64]]"


class InputWatch:
    """Adds what models are given to the open records.

    Args:
        clock: knows which batch came last.
        failed: told of an error in a hook.
    """

    def __init__(self, clock: StepClock, failed: Callable[[str, Exception], None]) -> None:
        self._clock = clock
        self._failed = failed
        self._models: dict[int, _Model] = {}
        self._record: OpenRecord | None = None
        self._looked: set[int] = set()
        self._held: tuple[_Model, Any, Any] | None = None
        self._awaited: _Model | None = None

    def add_model(self, capture: ModelCapture) -> None:
        """Look at what this model is given."""
        self._models[id(capture.entry)] = _Model(capture, self._failed)

    def forward_begins(self, record: OpenRecord, module: nn.Module, args: Any, kwargs: Any) -> None:
        """A root module is called with these."""
        model = self._models[id(module)]
        if record.mode not in TRAINING:
            model.disarm()
            return
        self._held = (model, args, kwargs)
        if not record.due or not self._is_time(record):
            model.disarm()
        elif self.look(record):
            self._awaited = model
            model.arm(record)

    def forward_ends(self, record: OpenRecord, output: Any) -> None:
        """The root module that was called last returns this."""
        model, self._awaited = self._awaited, None
        if model is None:
            return
        for index, tensor in enumerate(flatten(output)):
            samples = len(tensor) if tensor.dim() > 1 else 0
            if samples > 1 and tensor.is_floating_point() and tensor.numel() >= 2 * samples and not unsupported(tensor):
                record.add_derived(f"{model.capture.prefix}_output_{index}", OUTPUT_QUANTITY, _variance(tensor))
                return

    def look(self, record: OpenRecord) -> bool:
        """Record what the model was called with last; False where that was done in this step, or cannot be."""
        if record is not self._record:
            self._record = record
            self._looked.clear()
        if self._held is None or id(self._held[0]) in self._looked:
            return False
        model, args, kwargs = self._held
        self._looked.add(id(model))
        tensors = [tensor for tensor in flatten((args, kwargs)) if tensor.dim() and tensor.numel()][:_MAX_INPUTS]
        names = [f"{model.capture.prefix}_input_{index}" for index in range(len(tensors))]
        given = zip(names, tensors, strict=True)  # but for what the model computed itself
        known = [(name, each) for name, each in given if each.grad_fn is None and unsupported(each) is None]
        if not known:
            return False
        rows = _Rows(measure([tensor for _, tensor in known]))
        vectors = [_description(rows, row, tensor) for row, (_, tensor) in enumerate(known)]
        for (name, _), vector in zip(known, vectors, strict=True):
            record.add_derived(name, INPUT_QUANTITY, vector)
        name, first = known[0]
        crc = _fingerprint(first)
        position = np.array(self._clock.batch, dtype=np.float64)
        record.add_derived(name, BATCH_QUANTITY, lambda: np.array([crc(), *position], dtype=np.float64))
        padding = _padding(first, kwargs, model.padding_index)
        if padding is not None:
            record.add_derived(name, PADDING_QUANTITY, padding)
        model.expect(first, vectors[0])
        return True

    def _is_time(self, record: OpenRecord) -> bool:
        """Where every step is saved, a few of them are enough: a look takes as long as 20 gradients."""
        last = self._record.mode_step if self._record is not None else -_EVERY
        return record is self._record or record.mode_step < _FIRST_STEPS or record.mode_step >= last + _EVERY

    def release(self) -> None:
        """The update is done: keep nothing of the batch alive."""
        self._held = None


class _Model:
    """One root model, and the first layer with weights that a forward pass of it reaches."""

    def __init__(self, capture: ModelCapture, failed: Callable[[str, Exception], None]) -> None:
        self.capture = capture
        self._failed = failed
        self.padding_index = next(
            (
                m.padding_idx
                for m in capture.root.modules()
                if isinstance(m, nn.Embedding) and m.padding_idx is not None
            ),
            None,
        )
        self._known = capture.compiled
        self._first: tuple[str, nn.Module] | None = None
        self._handle: Any = None
        self._record: OpenRecord | None = None
        self._described: tuple[int, int, Vector] | None = None

    def expect(self, tensor: torch.Tensor, described: Vector) -> None:
        """This is given to the model; where a layer gets it as it is, it has been described."""
        self._described = tensor.data_ptr(), tensor.numel(), described

    def arm(self, record: OpenRecord) -> None:
        """The coming forward pass is recorded."""
        self._record = record
        if not self._known:
            self._find_first()
        if self._first is not None and self._handle is None:
            self._handle = self._first[1].register_forward_pre_hook(Attached(self._before_layer, self._failed))

    def disarm(self) -> None:
        """Remove the hook of the first layer."""
        self._record = None
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _find_first(self) -> None:
        order_of = self.capture.order_of
        layers = [
            (path, module)
            for path, module in self.capture.modules()
            if any(True for _ in module.parameters(recurse=False)) and not any(True for _ in module.children())
        ]
        path, module = min(layers, key=lambda layer: order_of(layer[0]), default=("", self.capture.root))
        if order_of(path) == order_of(_NOT_CALLED):
            return  # no forward pass was seen yet
        self._known = True
        if isinstance(module, _LAYERS):
            self._first = path or self.capture.prefix, module

    def _before_layer(self, module: nn.Module, args: Any) -> None:
        record, self._record = self._record, None
        if record is None or self._first is None or not args or not isinstance(args[0], torch.Tensor):
            return
        tensor = args[0]
        if tensor.dim() and tensor.numel() and unsupported(tensor) is None:
            address, numel, described = self._described or (0, 0, None)
            if described is None or (tensor.data_ptr(), tensor.numel()) != (address, numel):
                described = _description(_Rows(measure([tensor])), 0, tensor)
            record.add_derived(f"{self._first[0]}_input_0", FIRST_LAYER_QUANTITY, described)


class _Rows:
    """Statistics of several tensors, fetched once."""

    def __init__(self, pending: PendingStatistics) -> None:
        self._pending = pending
        self._matrix: NDArray[np.float64] | None = None

    def __getitem__(self, row: int) -> NDArray[np.float64]:
        if self._matrix is None:
            self._matrix = self._pending.result()
        return np.asarray(self._matrix[row])


@torch.no_grad()
def _description(rows: _Rows, row: int, tensor: torch.Tensor) -> Vector:
    """``input`` of a tensor with at least one dimension and one entry."""
    samples = len(tensor)
    some = _some(tensor)
    same = (some == some[:1]).all()
    identical = Fetch(same) if same.is_cuda else same.item
    return lambda: np.array([*rows[row], samples, identical()], dtype=np.float64)


@torch.no_grad()
def _variance(tensor: torch.Tensor) -> Vector:
    """``output_variance`` of [samples, ...]."""
    samples = len(tensor)
    some = _some(tensor).float()
    fetch = Fetch(torch.stack([some.var(0, correction=0).mean(), some.var(correction=0)]))
    return lambda: np.array([samples, *fetch().tolist()], dtype=np.float64)


def _some(tensor: torch.Tensor) -> torch.Tensor:
    """Up to 64 samples by up to 256 evenly spaced entries of each."""
    some = tensor.detach()[:_MAX_SAMPLES].reshape(min(len(tensor), _MAX_SAMPLES), -1)
    return some[:, :: -(-some.shape[1] // _MAX_ENTRIES)]


@torch.no_grad()
def _fingerprint(tensor: torch.Tensor) -> Callable[[], int]:
    flat = tensor.detach().reshape(-1)
    some = flat[:: -(-len(flat) // _MAX_FINGERPRINTED)].contiguous().view(torch.uint8)
    if some.is_cpu:
        crc = zlib.crc32(some.numpy().data)
        return lambda: crc
    fetch = Fetch(some)
    return lambda: zlib.crc32(fetch().numpy().data)


@torch.no_grad()
def _padding(first: torch.Tensor, kwargs: Mapping[str, Any], index: int | None) -> Vector | None:
    """``padding`` of tokens [samples, positions]."""
    mask = kwargs.get("attention_mask")
    if isinstance(mask, torch.Tensor) and mask.dim() == 2 and not mask.is_floating_point():
        padding = mask == 0
    elif index is not None and first.dim() == 2 and not first.is_floating_point():
        padding = first == index
    else:
        return None
    fetch = Fetch(padding.sum())
    entries = padding.numel()
    return lambda: np.array([int(fetch()), entries], dtype=np.float64)
