"""Collections: named groups of tensors, by regular expression, by explicit name or by module type.

The names and expressions of the first four are those of smdebug, so that its configurations select the
same tensors here. Beside them each module type has two collections of its own, ``<type>_input`` and
``<type>_output`` with the class name in lower case (``relu_output``, ``conv2d_input``): selection by type
finds a ReLU whatever attribute it is assigned to, which a regular expression over names cannot.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from stepwatch.probe.reductions import ReductionConfig
from stepwatch.probe.schedule import SaveConfig


class CollectionKeys:
    """Names of the built-in collections."""

    ALL = "all"
    DEFAULT = "default"
    WEIGHTS = "weights"
    BIASES = "biases"
    GRADIENTS = "gradients"
    LOSSES = "losses"
    METRICS = "metrics"
    INPUTS = "inputs"
    OUTPUTS = "outputs"
    ACTIVATIONS = "activations"
    RELU_INPUT = "relu_input"
    RELU_OUTPUT = "relu_output"


DEFAULT_COLLECTIONS: tuple[str, ...] = (
    CollectionKeys.LOSSES,
    CollectionKeys.WEIGHTS,
    CollectionKeys.BIASES,
    CollectionKeys.GRADIENTS,
    CollectionKeys.ACTIVATIONS,
)
"""Saved when the user names none: what the recommended rules look at."""

_NAME_PATTERNS: dict[str, str] = {
    CollectionKeys.WEIGHTS: r"^(?!gradient).*weight",
    CollectionKeys.BIASES: r"^(?!gradient).*bias",
    CollectionKeys.GRADIENTS: r"^gradient",
    CollectionKeys.LOSSES: r"[Ll]oss_(?!input).*output",
}

ACTIVATION_TYPES: frozenset[str] = frozenset(
    (
        *("ReLU", "ReLU6", "LeakyReLU", "PReLU", "RReLU", "Threshold", "ELU", "SELU", "CELU", "GELU", "SiLU"),
        *("Mish", "Hardswish", "Hardtanh", "Hardsigmoid", "Sigmoid", "Tanh", "LogSigmoid", "Softplus"),
        *("Softsign", "Softshrink", "Hardshrink", "Tanhshrink", "GLU"),
    )
)
"""Module types whose outputs form the collection ``activations``."""

RELU_TYPES: frozenset[str] = frozenset(("ReLU", "ReLU6", "Threshold"))
"""Module types whose output is exactly zero for a negative input; they form ``relu_input``/``relu_output``."""


@dataclass
class Collection:
    """A named group of tensors and how to save it.

    Attributes:
        name: its name.
        include_regex: expressions searched for in tensor names (``re.search``).
        tensor_names: names that belong to it besides.
        save_config: when to save its tensors; the hook's where None.
        reduction_config: what of them to save; the hook's where None.
    """

    name: str
    include_regex: list[str] = field(default_factory=list)
    tensor_names: set[str] = field(default_factory=set)
    save_config: SaveConfig | None = None
    reduction_config: ReductionConfig | None = None

    def __post_init__(self) -> None:
        if isinstance(self.include_regex, str):
            self.include_regex = [self.include_regex]
        for pattern in self.include_regex:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"collection {self.name!r}: {pattern!r} is not a regular expression: {error}"
                ) from None

    def include(self, patterns: str | Iterable[str]) -> None:
        """Add regular expressions."""
        self.include_regex += [patterns] if isinstance(patterns, str) else list(patterns)
        self.__post_init__()

    def matches(self, tensor_name: str) -> bool:
        """Whether the tensor belongs to it by name."""
        return tensor_name in self.tensor_names or any(
            re.search(pattern, tensor_name) for pattern in self.include_regex
        )


def collections_of_module_tensor(module_type: str, direction: str) -> list[str]:
    """Collections of an input or output of a module of this type; ``direction`` is "input" or "output"."""
    names = [f"{module_type.lower()}_{direction}"]
    if module_type in RELU_TYPES and module_type != "ReLU":
        names.append(f"relu_{direction}")
    if module_type in ACTIVATION_TYPES and direction == "output":
        names.append(CollectionKeys.ACTIVATIONS)
    return names


class CollectionRegistry:
    """The collections of one hook and the memberships of its tensors.

    Raises ValueError for a collection that is included but unknown and has no expression.
    """

    def __init__(self, include: Iterable[str | Collection] | None, include_regex: Iterable[str] | None) -> None:
        self._scheduled: dict[str, SaveConfig] | None = None
        self._collections = {name: Collection(name, [pattern]) for name, pattern in _NAME_PATTERNS.items()}
        included = list(DEFAULT_COLLECTIONS if include is None else include)
        for entry in included:
            if isinstance(entry, Collection):
                self.add(entry)
        names = (entry.name if isinstance(entry, Collection) else entry for entry in included)
        self.included: frozenset[str] = frozenset((*names, CollectionKeys.LOSSES))
        if include_regex:
            patterns = [include_regex] if isinstance(include_regex, str) else list(include_regex)
            self.add(Collection(CollectionKeys.DEFAULT, patterns))
            self.include(CollectionKeys.DEFAULT)
        if CollectionKeys.ALL in self.included:
            self.add(Collection(CollectionKeys.ALL, [".*"]))

    def add(self, collection: Collection) -> None:
        """Add or replace a collection; a built-in one keeps its own expressions when the new one has none."""
        known = self._collections.get(collection.name)
        if known is not None and not collection.include_regex:
            collection.include_regex = list(known.include_regex)
        self._collections[collection.name] = collection
        self._scheduled = None

    def get(self, name: str) -> Collection:
        """The collection of that name, made when it is new."""
        found = self._collections.get(name)
        if found is None:
            found = self._collections[name] = Collection(name)
        return found

    def include(self, name: str) -> None:
        """Save this collection too."""
        if name not in self.included:
            self.included |= {name}
            self._scheduled = None

    @property
    def scheduled(self) -> dict[str, SaveConfig]:
        """Schedules of the saved collections that have their own."""
        if self._scheduled is None:
            self._scheduled = {name: config for name in self.included if (config := self.get(name).save_config)}
        return self._scheduled

    def of_tensor(self, tensor_name: str, by_type: Iterable[str] = ()) -> tuple[str, ...]:
        """All collections a tensor belongs to, by name and by module type; sorted."""
        by_name = (c.name for c in self._collections.values() if c.matches(tensor_name))
        return tuple(sorted({*by_name, *by_type}))

    def saved(self, memberships: Iterable[str]) -> list[Collection]:
        """Those of the memberships that are saved."""
        return [self.get(name) for name in memberships if name in self.included]
