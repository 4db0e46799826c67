"""Which steps are saved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from stepwatch.probe.mode_keys import ModeKeys


@dataclass(frozen=True)
class SaveConfigMode:
    """Schedule of one mode, over its own count of steps.

    A step is saved when it is in ``save_steps``, or lies in [start_step, end_step) and is a multiple of
    ``save_interval``. Where neither interval nor steps are given the interval is the governor's, chosen
    so that the hook holds its overhead budget.

    Raises:
        ValueError: a number below its range.
    """

    save_interval: int | None = None
    start_step: int = 0
    end_step: int | None = None
    save_steps: Iterable[int] = ()
    _steps: frozenset[int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.save_interval is not None and self.save_interval < 1:
            raise ValueError(f"save_interval is {self.save_interval}; expected 1 or more")
        if self.start_step < 0:
            raise ValueError(f"start_step is {self.start_step}; expected 0 or more")
        if self.end_step is not None and self.end_step <= self.start_step:
            raise ValueError(f"end_step is {self.end_step}; expected more than start_step {self.start_step}")
        object.__setattr__(self, "save_steps", tuple(self.save_steps))
        object.__setattr__(self, "_steps", frozenset(self.save_steps))

    @property
    def governed(self) -> bool:
        """Whether the interval is left to the governor."""
        return self.save_interval is None and not self._steps

    def should_save_step(self, mode_step: int) -> bool:
        """Whether the schedule alone saves this step; a governed one leaves that to the governor."""
        if mode_step in self._steps:
            return True
        if self.save_interval is None:
            return False
        return self.in_range(mode_step) and mode_step % self.save_interval == 0

    def in_range(self, mode_step: int) -> bool:
        """Whether the step lies in [start_step, end_step)."""
        return self.start_step <= mode_step and (self.end_step is None or mode_step < self.end_step)


class SaveConfig:
    """Schedules by mode: one for all of them, or a mapping for some (the others are not saved).

    ``SaveConfig(save_interval=100)``, ``SaveConfig({modes.TRAIN: SaveConfigMode(save_interval=10)})``.
    """

    def __init__(
        self,
        mode_save_configs: Mapping[ModeKeys, SaveConfigMode] | None = None,
        *,
        save_interval: int | None = None,
        start_step: int = 0,
        end_step: int | None = None,
        save_steps: Iterable[int] = (),
    ) -> None:
        if mode_save_configs is None:
            config = SaveConfigMode(save_interval, start_step, end_step, save_steps)
            self._by_mode = {mode: config for mode in ModeKeys}
        else:
            self._by_mode = dict(mode_save_configs)

    def get_save_config(self, mode: ModeKeys) -> SaveConfigMode | None:
        """The schedule of a mode, or None where the mode is not saved."""
        return self._by_mode.get(mode)

    def should_save_step(self, mode: ModeKeys, mode_step: int) -> bool:
        """Whether the schedule alone saves this step of the mode."""
        config = self._by_mode.get(mode)
        return config is not None and config.should_save_step(mode_step)

    def describe(self) -> dict[str, dict[str, object]]:
        """JSON-compatible form for run.json."""
        return {
            mode.name: {
                "save_interval": config.save_interval or ("governed" if config.governed else None),
                "start_step": config.start_step,
                "end_step": config.end_step,
                "save_steps": list(config.save_steps),
            }
            for mode, config in self._by_mode.items()
        }
