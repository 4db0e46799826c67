"""smdebug's collections, and the manager that keeps them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepwatch.probe import collections
from stepwatch.probe.smdebug.configuration import ReductionConfig, SaveConfig
from stepwatch.probe.smdebug.errors import SMDebugError, SMDebugTypeError, SMDebugValueError
from stepwatch.probe.store.smdebug.directory import COLLECTIONS_FOLDER

if TYPE_CHECKING:
    from torch import nn

BUILT_IN = {
    "default": [],
    "all": [],
    "weights": [r"^(?!gradient).*weight"],
    "biases": [r"^(?!gradient).*bias"],
    "gradients": [r"^gradient"],
    "losses": [r"[Ll]oss_(?!input).*output"],
}
"""Collections that a PyTorch hook begins with, and their expressions."""

SCALAR_COLLECTIONS = frozenset(("losses", "metrics", "feature_importance", "average_shap", "sm_metrics"))
"""Always saved whole, never reduced."""


_KEYS = ("name", "include_regex", "tensor_names", "reduction_config", "save_config", "save_histogram")


class CollectionKeys(collections.CollectionKeys):
    """Names of collections, those of other frameworks among them."""

    LAYERS = "layers"
    SM_METRICS = "sm_metrics"
    OPTIMIZER_VARIABLES = "optimizer_variables"
    TENSORFLOW_SUMMARIES = "tensorflow_summaries"
    HYPERPARAMETERS = "hyperparameters"
    PREDICTIONS = "predictions"
    LABELS = "labels"
    FEATURE_IMPORTANCE = "feature_importance"
    AVERAGE_SHAP = "average_shap"
    FULL_SHAP = "full_shap"
    TREES = "trees"


class Collection(collections.Collection):
    """A named group of tensors and how to save it; histograms are not made.

    Raises:
        SMDebugTypeError: an expression that is no text.
        ValueError: an expression that cannot be used.
    """

    def __init__(
        self,
        name: str,
        include_regex: str | Iterable[str] | None = None,
        tensor_names: Iterable[str] | None = None,
        reduction_config: Any = None,
        save_config: Any = None,
        save_histogram: bool = True,
    ) -> None:
        self.save_histogram = save_histogram
        self.modules: list[tuple[nn.Module, tuple[str, ...]]] = []
        super().__init__(name)
        self.include(include_regex or [])
        self.tensor_names = tensor_names  # type: ignore[assignment]
        self.save_config = save_config
        self.reduction_config = reduction_config

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "tensor_names":
            if not (value is None or isinstance(value, (list, tuple, set, frozenset))):
                raise SMDebugTypeError(f"tensor_names of {self.name} is {value!r}; expected a list or a set")
            value = set(value or ())
        elif name == "save_config" and value is not None:
            value = SaveConfig.parse(value)
        elif name == "reduction_config" and isinstance(value, Mapping):
            value = ReductionConfig.from_dict(value)
        super().__setattr__(name, value)

    def include(self, t: str | Iterable[str]) -> None:
        """Add expressions."""
        if not isinstance(t, (str, list, tuple, set, frozenset)):
            raise SMDebugTypeError(f"collection {self.name} got the expressions {t!r}; expected text or a list")
        found = [t] if isinstance(t, str) else list(t)
        for pattern in found:
            if not isinstance(pattern, str):
                raise SMDebugTypeError(f"collection {self.name} got the expression {pattern!r}; expected text")
        super().include(found)

    def add_tensor_name(self, tname: str) -> None:
        """Take in a tensor by name."""
        self.tensor_names.add(tname)

    def remove_tensor_name(self, tname: str) -> None:
        """Leave a tensor out that was taken in by name."""
        self.tensor_names.discard(tname)

    def has_tensor_name(self, tname: str) -> bool:
        """Whether a tensor was taken in by name."""
        return tname in self.tensor_names

    def add_module_tensors(self, module: nn.Module, inputs: bool = False, outputs: bool = True) -> None:
        """Take in what goes into a module of the registered model, or comes out of it."""
        wanted = (("input", inputs), ("output", outputs))
        self.modules.append((module, tuple(direction for direction, yes in wanted if yes)))

    def resolve_modules(self, names: Mapping[nn.Module, str]) -> None:
        """Turn modules that were added into expressions, by the names that they have in the model.

        Raises:
            SMDebugError: one of them is no part of it.
        """
        for module, directions in self.modules:
            if module not in names:
                raise SMDebugError(f"collection {self.name}: {type(module).__name__} is no part of a registered model")
            self.include([f"{names[module]}_{direction}_" for direction in directions])
        self.modules.clear()

    def to_json_dict(self) -> dict[str, Any]:
        """Its JSON object, as smdebug's files of collections have it."""
        reductions, steps = self.reduction_config, self.save_config
        return {
            "name": self.name,
            "include_regex": list(self.include_regex),
            "tensor_names": sorted(self.tensor_names),
            "reduction_config": reductions.to_json_dict() if isinstance(reductions, ReductionConfig) else None,
            "save_config": steps.to_json_dict() if isinstance(steps, SaveConfig) else None,
            "save_histogram": self.save_histogram,
        }

    def to_json(self) -> str:
        """Its JSON."""
        return json.dumps(self.to_json_dict())

    @classmethod
    def from_dict(cls, params: Mapping[str, Any]) -> Collection:
        """From its JSON object; other keys are ignored."""
        return cls(**{key: params[key] for key in _KEYS if key in params})

    @classmethod
    def from_json(cls, json_str: str) -> Collection:
        """From its JSON."""
        return cls.from_dict(json.loads(json_str))

    def __hash__(self) -> int:
        return hash(self.name)


class CollectionManager:
    """The collections of a hook by name."""

    def __init__(self, collections: Mapping[str, Collection] | None = None, create_default: bool = True) -> None:
        self.collections = dict(collections or {})
        self._workers = 1
        if create_default:
            for name, patterns in BUILT_IN.items():
                self.collections.setdefault(name, Collection(name, patterns))

    def create_collection(self, name: str, cls: type[Collection] = Collection) -> Collection:
        """A new collection."""
        found = self.collections[name] = cls(name)
        return found

    def add(self, arg: str | Collection) -> None:
        """Add or replace one.

        Raises:
            SMDebugTypeError: it is neither a collection nor the name of one.
        """
        if isinstance(arg, str):
            self.create_collection(arg)
        elif isinstance(arg, Collection):
            self.collections[arg.name] = arg
        else:
            raise SMDebugTypeError(f"collection is {arg!r}; expected a Collection or a name")

    def get(self, name: str, create: bool = True) -> Collection:
        """The collection of that name, made if it is new and ``create`` says so.

        Raises:
            SMDebugError: there is none.
        """
        if name not in self.collections:
            if not create:
                raise SMDebugError(f"collection {name} was not made")
            return self.create_collection(name)
        return self.collections[name]

    def get_collections(self) -> dict[str, Collection]:
        """All of them by name."""
        return self.collections

    def get_num_workers(self) -> int:
        """How many workers write."""
        return self._workers

    def set_num_workers(self, num_workers: int) -> None:
        """So many workers write."""
        self._workers = int(num_workers)

    def update_meta(self, meta: Mapping[str, Any]) -> None:
        """Take ``num_workers`` from what a file of collections says beside them."""
        self._workers = int(meta.get("num_workers", self._workers))

    def describe(self) -> dict[str, Any]:
        """Their JSON objects by name."""
        return {name: collection.to_json_dict() for name, collection in self.collections.items()}

    def to_json_dict(self) -> dict[str, Any]:
        """What a file of collections holds."""
        return {"collections": self.describe(), "_meta": {"num_workers": self._workers}}

    def export(self, out_dir: str, filename: str) -> None:
        """Write that file into a job's directory."""
        folder = Path(out_dir, COLLECTIONS_FOLDER)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / filename).write_text(json.dumps(self.to_json_dict()), encoding="utf-8")

    @classmethod
    def load(cls, filename: str, collection_class: type[Collection] = Collection) -> CollectionManager:
        """From such a file; ``collection_class`` is what its entries become.

        Raises:
            SMDebugValueError: it holds something else.
        """
        return cls.load_from_string(Path(filename).read_text(encoding="utf-8"), collection_class)

    @classmethod
    def load_from_string(cls, s: str, collection_class: type[Collection] = Collection) -> CollectionManager:
        """From what it holds.

        Raises:
            SMDebugValueError: it holds something else.
        """
        content = json.loads(s)
        if not isinstance(content, dict) or not content.keys() <= {"collections", "_meta"}:
            raise SMDebugValueError(f"collections are {s!r:.80}; expected an object of 'collections' and '_meta'")
        manager = cls(create_default=False)
        for name, entry in (content.get("collections") or {}).items():
            manager.collections[name] = collection_class.from_dict({"name": name, **entry})
        manager.update_meta(content.get("_meta") or {})
        return manager
