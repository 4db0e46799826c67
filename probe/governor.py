"""How often to save, so that the hook holds its overhead budget, and all ranks save the same steps."""

from __future__ import annotations

import math
import time
from collections import deque
from pathlib import Path
from statistics import median

from stepwatch.probe.store.control import SavePlan, publish_plan, read_plan

WARM_UP_STEPS = 10
DENSE_STEPS = 50
MAX_INTERVAL = 1000
_NICE_INTERVALS = (1, 2, 5, 10, 20, 50, 100, 200, 500, MAX_INTERVAL)
_UNAGREED_INTERVAL = 100


class Governor:
    """Chooses the save interval from the measured cost of a saved step and the length of a plain one.

    The first ``WARM_UP_STEPS`` steps are all saved: bad initialisation and an early NaN show there. From then on
    every step that is a multiple of the interval is, which is the smallest of 1, 2, 5, 10, 20, 50... for which

        (cost of a saved step - cost of a plain one) / interval <= rest of the budget

    where the rest is ``budget * length of a plain step - cost of a plain step``, or half of the budget where a
    plain step alone costs more than that. The cost of a saved step is the time in the hook, or, where that is
    clearly more, the time by which saved steps are longer: it holds what the caches lost. All are medians of the
    last observations, so that one slow step (a compilation, a checkpoint) does not count, and the interval gets
    shorter only when it could be less than half.

    In a job of several ranks rank 0 decides, and says in RUN/control from which step on its plan holds: far
    enough ahead for the others to have read it.

    Args:
        budget: share of the step time, in (0, 1].
        run_dir: the run's directory.
        rank, world_size: of this process.
        hearing_seconds: after which the other ranks have read what rank 0 has written.

    Raises:
        ValueError: a budget outside its range.
    """

    def __init__(self, budget: float, run_dir: Path, rank: int, world_size: int, hearing_seconds: float) -> None:
        if not 0 < budget <= 1:
            raise ValueError(f"overhead_budget is {budget}; expected a share of the step time in (0, 1]")
        self._budget = budget
        self._run_dir = run_dir
        self._decides = rank == 0
        self._alone = world_size == 1
        self._hearing_seconds = hearing_seconds
        self._since = time.time_ns()
        self._saved_costs: deque[int] = deque(maxlen=9)
        self._saved_lengths: deque[int] = deque(maxlen=9)
        self._plain_costs: deque[int] = deque(maxlen=33)
        self._plain_lengths: deque[int] = deque(maxlen=33)
        self._warm_until: int | None = None
        self._plan = SavePlan(1 if self._alone else _UNAGREED_INTERVAL)
        self._next: SavePlan | None = None
        self._wanted = self._plan.interval
        self._dense_wanted = False

    @property
    def interval(self) -> int:
        """The interval in force."""
        return self._plan.interval

    def due(self, mode_step: int) -> bool:
        """Whether this training step is to be saved."""
        if self._warm_until is None:
            self._warm_until = mode_step + WARM_UP_STEPS
        if self._next is not None and mode_step >= self._next.from_step:
            self._plan, self._next = self._next, None
        if mode_step < self._warm_until or mode_step % self._plan.interval == 0:
            return True
        return self._plan.dense and mode_step < self._plan.from_step + DENSE_STEPS

    def save_densely(self, mode_step: int) -> None:
        """Something is suspicious: save every step for a while."""
        if self._alone:
            self._plan = SavePlan(self.interval, mode_step, dense=True)
        else:
            self._dense_wanted = self._decides

    def observe(self, *, saved: bool, hook_ns: int, step_ns: int) -> None:
        """Take note of what a finished training step cost, all of it and the hook's part."""
        if not saved:
            self._plain_costs.append(hook_ns)
            self._plain_lengths.append(step_ns)
            return
        self._saved_costs.append(hook_ns)
        self._saved_lengths.append(step_ns)
        if not self._decides:
            return
        needed = self._needed_interval()
        if needed > self._wanted or needed < self._wanted / 2:
            self._wanted = next((n for n in _NICE_INTERVALS if n >= needed), MAX_INTERVAL)
            if self._alone:
                self._plan = SavePlan(self._wanted, self._plan.from_step, dense=self._plan.dense)

    def exchange(self, mode_step: int, step_seconds: float) -> None:
        """Publish what rank 0 wants, or read it; called several times a second from a thread beside the training.

        Args:
            mode_step: training steps done.
            step_seconds: how long one takes, or 0 where that is not known.
        """
        if self._alone or self._next is not None or not step_seconds:
            return
        if not self._decides:
            plan = read_plan(self._run_dir)
            if plan is not None and plan.time_ns > max(self._plan.time_ns, self._since):
                self._next = plan
        elif self._dense_wanted or self._wanted != self.interval:
            ahead = math.ceil(self._hearing_seconds / step_seconds) + 1
            plan = SavePlan(self._wanted, mode_step + ahead, self._dense_wanted, time.time_ns())
            self._dense_wanted = False
            publish_plan(self._run_dir, plan)
            self._next = plan

    def _needed_interval(self) -> float:
        saved_cost, saved_length = median(self._saved_costs), median(self._saved_lengths)
        plain_cost = median(self._plain_costs) if self._plain_costs else 0
        plain_length = median(self._plain_lengths) if self._plain_lengths else saved_length - saved_cost
        extra = saved_cost - plain_cost
        if len(self._saved_lengths) > 2 and len(self._plain_lengths) > 2:
            extra = max(extra, min(saved_length - plain_length, 4 * extra))
        allowed = self._budget * max(plain_length, 1)
        return extra / max(allowed - plain_cost, allowed / 2)
