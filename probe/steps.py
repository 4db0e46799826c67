"""Where one step ends and the next begins, and which are saved."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from stepwatch.probe.collections import CollectionRegistry
from stepwatch.probe.governor import Governor
from stepwatch.probe.mode_keys import TRAINING, ModeKeys
from stepwatch.probe.recorder import OpenRecord
from stepwatch.probe.schedule import SaveConfig
from stepwatch.probe.store.schema import INTERVAL_SCALAR
from stepwatch.probe.timeline import StepClock

DENSE_STEPS = 5
_NOTHING: frozenset[str] = frozenset()


class StepTracker:
    """Counts steps and modes, opens records and hands over the finished ones.

    Args:
        registry: the collections that are saved, some with schedules of their own.
        save_config: the schedule of all others.
        governor: chooses where the schedule names no interval.
        submit: gets each finished record.

    Attributes:
        step: the global step, the number of optimizer steps done.
        by_optimizer: whether optimizer steps are expected to be what is counted.
        has_optimizer: whether an optimizer is known.
    """

    def __init__(
        self,
        registry: CollectionRegistry,
        save_config: SaveConfig,
        governor: Governor,
        submit: Callable[[OpenRecord], None],
    ) -> None:
        self.clock = StepClock()
        self.record: OpenRecord | None = None
        self.step = 0
        self.by_optimizer = False
        self.has_optimizer = False
        self._registry = registry
        self._schedules = {mode: save_config.get_save_config(mode) for mode in ModeKeys}
        self._governed = {mode for mode, schedule in self._schedules.items() if schedule and schedule.governed}
        self._governor = governor
        self._hand_over = submit
        self._mode_steps: dict[ModeKeys, int] = {}
        self._suspended: OpenRecord | None = None
        self._dense_until = 0
        self._told_interval = 0
        self._finite = True

    def start_at(self, step: int, mode_steps: Mapping[ModeKeys, int] | None = None) -> None:
        """The job resumes with this many optimizer steps done, as many of each mode of training by default."""
        self.step = step
        self._mode_steps.update(mode_steps or dict.fromkeys(TRAINING, step))

    def open(self, mode: ModeKeys) -> OpenRecord:
        """The open record, made now in ``mode`` if there is none."""
        if self.record is None and mode in TRAINING and self._suspended is not None:
            self.record, self._suspended = self._suspended, None
        if self.record is None:
            mode_step = self._mode_steps.get(mode, 0)
            self.record = OpenRecord(self.step, mode, mode_step, due=self._due(mode, mode_step))
            if mode in self._governed and mode in TRAINING and self._governor.interval != self._told_interval:
                self._told_interval = self._governor.interval
                self.record.add_scalar(INTERVAL_SCALAR, self._told_interval)
        return self.record

    def forward_in(self, mode: ModeKeys) -> OpenRecord:
        """The record that a forward pass in ``mode`` belongs to: another micro-batch, or a new step."""
        record = self.record
        if record is not None and not self._continues(record, mode):
            self.finish()
        return self.open(mode)

    def turn_to_training(self, record: OpenRecord) -> None:
        """An optimizer steps in it: it is a training step, whatever the model's flag says."""
        if record.mode not in TRAINING and not record.ended:
            record.mode = ModeKeys.TRAIN
            record.mode_step = self._mode_steps.get(ModeKeys.TRAIN, 0)
            record.due = self._due(record.mode, record.mode_step)

    def updated(self) -> None:
        """The optimizer that counts the steps has stepped; what is logged now still belongs to the step."""
        record = self.record
        if record is None or record.ended:
            return
        record.end(self.clock.finish())
        self._count(record)

    def lengthened(self) -> None:
        """Another optimizer has stepped, which belongs to the step that has ended."""
        record = self.record
        if record is not None and record.timing:
            more = self.clock.finish()
            record.end({name: record.timing.get(name, 0) + more.get(name, 0) for name in {**record.timing, **more}})
            self.clock.restart()

    def skipped(self) -> None:
        """The open step ends without an update; the next one has its global step, and the next count of its mode."""
        record = self.record
        if record is not None and not record.ended:
            record.end(self.clock.finish())
            self._mode_steps[record.mode] = record.mode_step + 1
            self.clock.restart()

    def finish(self) -> None:
        """What comes now belongs to another record: hand over the open one.

        A training step that waits for its optimizer (evaluation in the middle of gradient accumulation) is
        put aside and taken up again by the next training pass.
        """
        record, self.record = self.record, None
        if record is None:
            return
        if self.has_optimizer and record.mode in TRAINING and not record.ended:
            self._suspended = record
            self.clock.restart()
            return
        if not record.ended:
            record.end(self.clock.finish())
            if record.forwards:
                self._count(record)
        self._submit(record)

    def finish_all(self) -> None:
        """The job ends: hand over everything, also a step that never reached its optimizer."""
        self.finish()
        record, self._suspended = self._suspended, None
        if record is not None:
            record.end({})
            self._submit(record)

    def see_finite(self, finite: bool) -> None:
        """Whether the loss or the gradients of this step are finite.

        When they cease to be, what is left of this step is saved, and the next steps, whatever the schedule.
        """
        ceased, self._finite = self._finite and not finite, finite
        if not ceased:
            return
        if self.record is not None:
            self.record.due = self._registry.included
            self.record.alarmed = True
        self._dense_until = self.step + DENSE_STEPS

    def finish_idle(self, seconds: float) -> None:
        """Hand over a record whose step ended that long ago, so that a pause between steps loses nothing."""
        record = self.record
        if record is not None and record.ended and time.monotonic() - record.ended_at > seconds:
            self.finish()

    def _continues(self, record: OpenRecord, mode: ModeKeys) -> bool:
        if record.mode is not mode or record.ended:
            return False
        if not record.forwards:
            return True
        return mode in TRAINING and (self.has_optimizer or (self.by_optimizer and record.backwards > 0))

    def _submit(self, record: OpenRecord) -> None:
        if record.mode in self._governed and record.mode in TRAINING and record.timing:
            self._governor.observe(
                saved=bool(record.due),
                hook_ns=record.timing.get("hook_ns", 0),
                step_ns=record.timing["duration_ns"],
            )
        self._hand_over(record)

    def _count(self, record: OpenRecord) -> None:
        self._mode_steps[record.mode] = record.mode_step + 1
        if not self.by_optimizer or record.mode in TRAINING:
            self.step += 1
        self.clock.restart()

    def _due(self, mode: ModeKeys, mode_step: int) -> frozenset[str]:
        if mode in TRAINING and self.step < self._dense_until:
            return self._registry.included
        schedule = self._schedules[mode]
        if schedule is None:
            due = False
        elif mode in self._governed:
            due = mode in TRAINING and schedule.in_range(mode_step) and self._governor.due(mode_step)
        else:
            due = schedule.should_save_step(mode_step)
        own = self._registry.scheduled
        if not own:
            return self._registry.included if due else _NOTHING
        return frozenset(
            name
            for name in self._registry.included
            if (own[name].should_save_step(mode, mode_step) if name in own else due)
        )
