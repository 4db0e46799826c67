"""What smdebug's trials and tensors are asked beside the queries that ours have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from stepwatch.probe.mode_keys import ModeKeys
from stepwatch.probe.smdebug.collection import Collection, CollectionManager
from stepwatch.probe.smdebug.errors import SMDebugNotImplementedError

if TYPE_CHECKING:
    from stepwatch.rules.tensor import Array, Tensor


class TrialNames:
    """More names of a trial."""

    dynamic_refresh = True
    """Whether queries look for what was recorded meanwhile."""

    if TYPE_CHECKING:  # what the trial itself has
        tensor_names: Callable[..., list[str]]
        tensor: Callable[[str], Tensor]
        workers: Callable[[], list[str]]
        steps: Callable[..., list[int]]
        collections: Callable[[], Mapping[str, Any]]
        refresh: Callable[[], None]

    def tensors(self, *args: Any, **kwargs: Any) -> list[str]:
        """:meth:`tensor_names` by the name that it once had."""
        return self.tensor_names(*args, **kwargs)

    @property
    def worker_set(self) -> set[str]:
        """Names of the workers."""
        return set(self.workers())

    @property
    def num_workers(self) -> int:
        """How many workers have recorded something."""
        return len(self.workers())

    @property
    def last_complete_step(self) -> int:
        """The last global step that can be read, or -1."""
        return max(self.steps(), default=-1)

    def maybe_refresh(self, name: str | None = None) -> None:
        """Take what was recorded meanwhile, as every query does."""
        self.refresh()

    @property
    def collection_manager(self) -> CollectionManager:
        """The collections, in a manager."""
        known = self.collections()
        made = {name: Collection(name, each.include_regex, each.tensor_names) for name, each in known.items()}
        return CollectionManager(made, create_default=False)

    def inputs(self, step: int, mode: ModeKeys = ModeKeys.GLOBAL) -> list[Array]:
        """Whole tensors of the collection ``inputs`` at a step."""
        names = self.tensor_names(step=step, mode=mode, collection="inputs")
        return [self.tensor(name).value(step, mode) for name in names]

    def labels(self, step: int, mode: ModeKeys = ModeKeys.GLOBAL) -> list[Array]:
        """Whole tensors at a step that a script has saved as ``labels``."""
        names = self.tensor_names(step=step, mode=mode, regex="label")
        return [self.tensor(name).value(step, mode) for name in names]

    def predictions(self, step: int, mode: ModeKeys = ModeKeys.GLOBAL) -> list[Array]:
        """Whole tensors at a step that a script has saved as ``predictions``."""
        names = self.tensor_names(step=step, mode=mode, regex="prediction")
        return [self.tensor(name).value(step, mode) for name in names]


class TensorNames:
    """More names of a tensor."""

    name: str

    @property
    def original_name(self) -> str:
        """Its name: in PyTorch there is no other."""
        return self.name

    def step(self, step_num: int, mode: ModeKeys = ModeKeys.GLOBAL) -> None:
        """What smdebug has removed.

        Raises:
            SMDebugNotImplementedError: always.
        """
        raise SMDebugNotImplementedError("step() was removed from smdebug; expected value() or reduction_value()")
