"""Profiles that several ranks make of the same steps, and those that rules ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stepwatch.cli.main import main
from stepwatch.probe.judge import Judge
from stepwatch.probe.store.profile_requests import request_profile
from stepwatch.probe.store.profiles import profiles_of
from stepwatch.rules.actions import Dispatcher
from stepwatch.rules.finding import Finding, Severity
from stepwatch.rules.profiler.profiling import MOST, ProfileAction, profile_when_slow
from tests import forked
from tests.deep.test_deep_profile import Job
from tests.probe.test_distributed import HEAD, TAIL

RANKS = """
import time
from pathlib import Path
from stepwatch.probe.store.profile_requests import read_profile_answer, request_profile
run = Path("run")
model = nn.parallel.DistributedDataParallel(model)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
hook = hooked(model, optimizer)
for step in range(4000):
    x, y = batch(step)
    optimizer.zero_grad()
    loss_fn(model(x), y).backward()
    optimizer.step()
    time.sleep(0.01)
    if step == 20 and rank == 0:
        request_profile(run, 3, [0, 1], "", "a test")
    answers = [read_profile_answer(run, number) for number in range(ranks)]
    done = torch.tensor(float(all(answer is not None and answer.state == "done" for answer in answers)))
    dist.all_reduce(done)
    if done == ranks:
        break
"""


def finding(rule: str, step: int = 0, evidence: dict[str, Any] | None = None) -> Finding:
    return Finding(
        rule=rule,
        severity=Severity.WARNING,
        first_step=step,
        last_step=step,
        tensors=(),
        value=1.0,
        threshold=0.5,
        message="steps take long",
        suggestion="look",
        evidence=evidence or {},
    )


def test_all_ranks_profile_the_same_steps(tmp_path: Path) -> None:
    forked.ranks(2, tmp_path, forked.run_text, HEAD + RANKS + TAIL)
    profiles = profiles_of(tmp_path / "run")
    assert [(profile.rank, profile.steps) for profile in profiles] == [(0, 3), (1, 3)]
    assert profiles[0].step == profiles[1].step
    summaries = [profile.summary() for profile in profiles]
    assert [step.number for step in summaries[0].steps] == [step.number for step in summaries[1].steps]
    assert all(any("allreduce" in each.name for each in summary.operators) for summary in summaries)


def test_a_slow_job_is_profiled_for_a_rule_and_not_for_ever(tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = Job(run)
    job.steps(3)
    dispatcher = Dispatcher(run, [profile_when_slow()], judged_by="hook")
    dispatcher.dispatch([finding("DiskFilling")])  # which no look into steps explains
    for number in range(MOST):
        dispatcher.dispatch([finding("StepTimeDrift", number)])
        job.until(lambda made=number + 1: len(profiles_of(run)) == made)
    assert ProfileAction().apply(finding("StepTimeDrift"), run).startswith("not profiled")
    job.hook.close()
    dispatcher.close()
    profiles = profiles_of(run)
    assert [(profile.steps, profile.by) for profile in profiles] == [(3, "a rule")] * MOST
    assert profiles[0].reason == "StepTimeDrift: steps take long"
    assert ProfileAction().apply(finding("StepTimeDrift"), run) == "nothing to profile: the job had ended"


def test_the_action_has_a_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Judge(tmp_path, 0, "profiler", ["profile"], lambda reason: None, lambda: None)
    with pytest.raises(ValueError, match="'profile'"):
        Judge(tmp_path, 0, "profiler", ["profiles"], lambda reason: None, lambda: None)
    job = Job(tmp_path / "run")
    job.steps(2)
    job.hook.close()
    with pytest.raises(SystemExit):
        main(["watch", str(tmp_path), "--profile", "--rules", "profiler", "--check"])
    assert "profile on " in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.parametrize(("steps", "ranks"), [(0, [0]), (101, [0]), (3, [])])
def test_requests_that_make_no_sense_are_refused(tmp_path: Path, steps: int, ranks: list[int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        request_profile(tmp_path, steps, ranks, "", "")
