"""How often to save, so that the hook holds its overhead budget."""

from __future__ import annotations

from collections import deque
from statistics import median

WARM_UP_STEPS = 10
MAX_INTERVAL = 1000
_NICE_INTERVALS = (1, 2, 5, 10, 20, 50, 100, 200, 500, MAX_INTERVAL)


class Governor:
    """Chooses the save interval from the measured cost of a saved step and the length of a plain one.

    The first ``WARM_UP_STEPS`` steps are all saved: bad initialisation and an early NaN show there. After
    them the interval is the smallest of 1, 2, 5, 10, 20, 50... for which

        (cost of a saved step - cost of a plain one) / interval <= budget * length of a plain step.

    Costs are medians over the last observations, so that one slow step (a compilation, a checkpoint) does
    not count.
    """

    def __init__(self, budget: float) -> None:
        if not 0 < budget <= 1:
            raise ValueError(f"overhead_budget is {budget}; expected a share of the step time in (0, 1]")
        self._budget = budget
        self._saved_costs: deque[int] = deque(maxlen=9)
        self._plain_costs: deque[int] = deque(maxlen=33)
        self._plain_lengths: deque[int] = deque(maxlen=33)
        self._seen = 0
        self._next_due = 0
        self.interval = 1

    def due(self, mode_step: int) -> bool:
        """Whether this training step is to be saved."""
        return self._seen < WARM_UP_STEPS or mode_step >= self._next_due

    def observe(self, mode_step: int, *, saved: bool, hook_ns: int, step_ns: int) -> None:
        """Take note of what a finished training step cost, all of it and the hook's part."""
        self._seen += 1
        self._plain_lengths.append(max(step_ns - hook_ns, 1))
        if not saved:
            self._plain_costs.append(hook_ns)
            return
        self._saved_costs.append(hook_ns)
        extra = median(self._saved_costs) - (median(self._plain_costs) if self._plain_costs else 0)
        needed = extra / (self._budget * median(self._plain_lengths))
        self.interval = next((n for n in _NICE_INTERVALS if n >= needed), MAX_INTERVAL)
        self._next_due = mode_step + self.interval
