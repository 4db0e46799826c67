"""What a query of a trial raises, under smdebug's names, so that ``except`` clauses written for it still fit."""

from __future__ import annotations

from stepwatch.probe.mode_keys import ModeKeys
from stepwatch.probe.smdebug.errors import SMDebugError as SMDebugError


class StepNotYetAvailable(SMDebugError):
    """The step was not recorded yet, and the job goes on."""

    def __init__(self, step: int, mode: ModeKeys) -> None:
        super().__init__(f"step {step} of mode {mode.name} was not recorded yet")
        self.step = step
        self.mode = mode


class StepUnavailable(SMDebugError):
    """The step was passed over, or the job ended before it."""

    def __init__(self, step: int, mode: ModeKeys) -> None:
        super().__init__(f"step {step} of mode {mode.name} was not recorded")
        self.step = step
        self.mode = mode


class NoMoreData(SMDebugError):
    """The job ended before the step."""

    def __init__(self, step: int, mode: ModeKeys, last_step: int | None) -> None:
        last = "nothing was recorded" if last_step is None else f"the last step is {last_step}"
        super().__init__(f"the job ended before step {step} of mode {mode.name}; {last}")
        self.step = step
        self.mode = mode
        self.last_step = last_step


class TensorUnavailable(SMDebugError):
    """No tensor of that name was recorded."""

    def __init__(self, tname: str) -> None:
        super().__init__(f"tensor {tname} was not recorded")
        self.tname = tname


class TensorUnavailableForStep(SMDebugError):
    """The step was recorded, but not the tensor, not whole, or not this reduction of it."""

    def __init__(
        self, tname: str, step: int, mode: ModeKeys = ModeKeys.GLOBAL, has_reductions: bool = False, what: str = "value"
    ) -> None:
        hint = "; statistics of it were" if has_reductions else ""
        super().__init__(f"{what} of {tname} was not recorded at step {step} of mode {mode.name}{hint}")
        self.tname = tname
        self.step = step
        self.mode = mode
        self.has_reductions = has_reductions


class ShapeUnavailableForStep(SMDebugError):
    """The shape that the tensor had at the step is not known."""

    def __init__(self, tname: str, step: int, mode: ModeKeys = ModeKeys.GLOBAL) -> None:
        super().__init__(f"shape of {tname} was not recorded at step {step} of mode {mode.name}")
        self.tname = tname
        self.step = step
        self.mode = mode


class InvalidWorker(SMDebugError):
    """No such worker has recorded the tensor."""

    def __init__(self, worker: str) -> None:
        super().__init__(f"worker {worker} has not recorded it")
        self.worker = worker


class MissingCollectionFiles(SMDebugError):
    """The job ended and has not described its collections."""
