"""Jobs whose traces are written by this process, and a rule and an action to watch them with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from stepwatch.probe.store.records import StepRecord
from stepwatch.probe.store.writer import TraceWriter
from stepwatch.rules.catalogue import RuleSpec
from stepwatch.rules.finding import Coverage, Finding, Severity
from stepwatch.rules.rule import Rule
from stepwatch.rules.step import Step


class Spike(Rule):
    """A logged number above 100."""

    def observe(self, step: Step) -> Iterable[Finding]:
        for name, value in step.scalars.items():
            if value > 100:
                yield self.finding(
                    step,
                    first_step=step.step,
                    tensors=[name],
                    value=value,
                    threshold=100,
                    message=f"{name} is {value:g}",
                    suggestion="nothing",
                )

    def coverage(self) -> Coverage:
        return Coverage(decided=True)


SPECS = [RuleSpec(Spike)]


class Telling:
    """An action that remembers what it was told."""

    name = "tell"
    at_least = Severity.INFO

    def __init__(self) -> None:
        self.told: list[tuple[str, int]] = []

    def apply(self, finding: Finding, run_dir: Path) -> str:
        self.told.append((run_dir.name, finding.last_step))
        return "told"


class Job:
    """A run that is being written."""

    def __init__(self, path: Path, start_step: int = 0) -> None:
        self.path = path
        self._writer = TraceWriter(path, run_info={"job_name": path.name})
        self._writer.set_start_step(start_step)
        self._step = start_step

    def train(self, *losses: float) -> Job:
        for loss in losses:
            record = StepRecord(self._step, "TRAIN", self._step, 0)
            record.scalars.append(("loss", loss))
            self._writer.submit(record)
            self._step += 1
        self._writer.flush()
        return self

    def end(self, status: str = "finished") -> Job:
        self._writer.close(status)
        return self


@pytest.fixture
def begin() -> Iterator[type[Job]]:
    jobs: list[Job] = []

    class Tracked(Job):
        def __init__(self, path: Path, start_step: int = 0) -> None:
            super().__init__(path, start_step)
            jobs.append(self)

    yield Tracked
    for job in jobs:
        job.end()
