"""Units that are dead or saturated, counted over every sample and step."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwatch.rules.finding import Finding
from stepwatch.rules.sagemaker.base import SageMakerRule, percent
from stepwatch.rules.sagemaker.selection import Selection
from stepwatch.rules.step import Step


class _InactiveUnits(SageMakerRule):
    """A layer of which too many units are active for too few samples.

    A unit is an element of what the layer gives for one sample: of an image every channel at every pixel. Its
    activity is the percentage of samples, over all steps so far, for which it was active; below
    ``threshold_inactivity`` it is inactive. Fires where more than ``threshold_layer`` per cent of a layer's units
    are. Where the shape of a sample changes the counts of the layer begin anew.
    """

    whole_tensors = True
    inactive_word: str
    suggestion: str

    def __init__(self, selection: Selection, threshold_inactivity: float, threshold_layer: float) -> None:
        super().__init__()
        percent("threshold_inactivity", threshold_inactivity)
        percent("threshold_layer", threshold_layer)
        self.threshold_inactivity = threshold_inactivity
        self.threshold_layer = threshold_layer
        self._selection = selection
        self._active: dict[str, NDArray[np.int64]] = {}
        self._samples: dict[str, int] = {}
        self.nothing = f"no tensor of {selection} was recorded"

    @abstractmethod
    def active(self, name: str, value: NDArray[Any]) -> NDArray[np.bool_] | None:
        """Which entries are active; None for a tensor that is passed over."""

    def judge(self, step: Step) -> Finding | None:
        """See the base class."""
        shares: dict[str, float] = {}
        for name, value in self._selection.values(step).items():
            if name.startswith("gradient") or value.ndim < 2 or not value.size:
                continue
            active = self.active(name, value)
            if active is not None:
                shares[name] = self._inactive_share(name, active)
        if not shares:
            self._say_why(step)
            return None
        self.looked_at(step, len(shares))
        ordered = sorted(shares, key=lambda name: -shares[name])
        if self.threshold_layer:
            self.came_near(shares[ordered[0]] / self.threshold_layer, ordered[0])
        names = [name for name in ordered if shares[name] > self.threshold_layer]
        if not names:
            return None
        samples = self._samples[names[0]]
        more = f"; {len(names) - 1} more of {len(shares)} layers too" if len(names) > 1 else ""
        return self.fire(
            step,
            names,
            [shares[names[0]]],
            threshold=self.threshold_layer,
            message=f"{shares[names[0]]:.3g} % of the units of {names[0]} are {self.inactive_word}: active for less "
            f"than {self.threshold_inactivity:g} % of {samples} samples up to step {step.step}{more}",
            suggestion=self.suggestion,
            unit="% of units",
        )

    def _inactive_share(self, name: str, active: NDArray[np.bool_]) -> float:
        counts = active.sum(axis=0)
        known = self._active.get(name)
        if known is not None and known.shape == counts.shape:
            counts = counts + known
            self._samples[name] += len(active)
        else:
            self._samples[name] = len(active)
        self._active[name] = counts
        activity = 100 * counts / self._samples[name]
        return float(100 * (activity < self.threshold_inactivity).mean())

    def _say_why(self, step: Step) -> None:
        names = self._selection.of(step).names
        named = [name for name in names if not name.startswith("gradient") and name not in step.values]
        if named:
            self.lacks(f"{named[0]} was recorded as statistics; each unit needs whole tensors (save_raw_tensor)")


class DeadRelu(_InactiveUnits):
    """Most units of a ReLU give zero for nearly every sample.

    A unit is an element of the output for one sample: of an image every channel at every pixel. Its activity is
    the percentage of samples, over all saved steps so far, for which its output was above zero; it is dead below
    ``threshold_inactivity``. Fires where more than ``threshold_layer`` per cent of a layer's units are dead; one
    saved step is enough. Gradients whose name matches are passed over. Needs whole tensors.

    Args:
        tensor_regex: names of outputs of ReLUs. The default is SageMaker's; in PyTorch it matches a module that is
            called ``...relu``, with any other name give e.g. ``act.*_output``.
        threshold_inactivity: percentage of samples below which a unit is dead.
        threshold_layer: percentage of dead units.
    """

    inactive_word = "dead"
    suggestion = (
        "lower the learning rate, use a leaky ReLU or ELU, initialise biases at or above zero, normalise inputs"
    )

    def __init__(
        self,
        *,
        tensor_regex: tuple[str, ...] = (".*relu_output",),
        threshold_inactivity: float = 1.0,
        threshold_layer: float = 50.0,
    ) -> None:
        super().__init__(Selection(patterns=tensor_regex), threshold_inactivity, threshold_layer)

    def active(self, name: str, value: NDArray[Any]) -> NDArray[np.bool_]:
        """Above zero."""
        return np.asarray(value > 0)


class SaturatedActivation(_InactiveUnits):
    """Most units of a tanh or sigmoid are given inputs so large that hardly any gradient passes.

    A unit is an element of the input for one sample, and active for a sample where its input lies within the
    limits of its function: outside them the derivative is next to zero. Its activity is the percentage over all
    samples of all saved steps so far; it is saturated below ``threshold_inactivity``. Fires where more than
    ``threshold_layer`` per cent of a layer's units are saturated. Which function it is says the name of the
    tensor (``tanh`` or ``sigmoid`` in it), else the type of the module; tensors of neither are passed over.
    Needs whole tensors.

    Args:
        collection_names: collections to look at.
        tensor_regex: names of the inputs. The default is SageMaker's; in PyTorch it matches modules that are called
            ``...tanh`` or ``...sigmoid``.
        threshold_tanh_min: least input of tanh that passes a gradient.
        threshold_tanh_max: largest such input.
        threshold_sigmoid_min: least input of a sigmoid that passes a gradient.
        threshold_sigmoid_max: largest such input.
        threshold_inactivity: percentage of samples below which a unit is saturated.
        threshold_layer: percentage of saturated units.
    """

    inactive_word = "saturated"
    suggestion = "normalise or scale the inputs, initialise smaller, use ReLU-like activations"

    def __init__(
        self,
        *,
        collection_names: tuple[str, ...] | None = None,
        tensor_regex: tuple[str, ...] | None = (".*tanh_input|.*sigmoid_input",),
        threshold_tanh_min: float = -9.4999,
        threshold_tanh_max: float = 9.4999,
        threshold_sigmoid_min: float = -23.0,
        threshold_sigmoid_max: float = 16.99999,
        threshold_inactivity: float = 1.0,
        threshold_layer: float = 50.0,
    ) -> None:
        super().__init__(Selection(collection_names, tensor_regex), threshold_inactivity, threshold_layer)
        self.limits = {
            "tanh": (threshold_tanh_min, threshold_tanh_max),
            "sigmoid": (threshold_sigmoid_min, threshold_sigmoid_max),
        }
        for function, (low, high) in self.limits.items():
            if not low < high:
                raise ValueError(f"threshold_{function}_min is {low}; expected less than the maximum, {high}")
        self._types: dict[str, str] = {}

    def judge(self, step: Step) -> Finding | None:
        """See the base class."""
        if step.stats is not None and step.values:
            tensors = step.stats.tensors
            for name, info in zip(tensors.names, tensors.infos, strict=True):
                self._types.setdefault(name, info.module_type or "")
        return super().judge(step)

    def active(self, name: str, value: NDArray[Any]) -> NDArray[np.bool_] | None:
        """Within the limits."""
        said = f"{name} {self._types.get(name, '')}".lower()
        function = next((word for word in self.limits if word in said), None)
        if function is None:
            self.lacks(f"{name} is not told to be the input of tanh or sigmoid, by its name or its module")
            return None
        low, high = self.limits[function]
        return np.asarray((value >= low) & (value <= high))
