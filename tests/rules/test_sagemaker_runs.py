"""SageMaker's rules about two runs and about runs that stand still."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from stepwatch.probe import Hook
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.errors import RuleError
from stepwatch.rules.finding import Status
from stepwatch.rules.replay import LiveAnalysis
from tests.rules.sagemaker_runs import Net, fires_at, judge, spec, train


@pytest.mark.parametrize("whole", [True, False])
def test_similar_across_runs(tmp_path: Path, whole: bool) -> None:
    def nudge(step: int, hook: object, model: nn.Module) -> None:
        if step == 6:
            model.fc2.weight.data += 0.01  # type: ignore[union-attr, operator]

    base = train(tmp_path / "base", whole=whole)
    same = {"other_trials": train(tmp_path / "same", whole=whole).as_uri()}  # as SageMaker's SDK gives s3://
    nudged = {"other_trials": str(train(tmp_path / "nudged", whole=whole, each=nudge))}
    assert fires_at(base, "SimilarAcrossRuns", **same) is None
    assert judge(base, "SimilarAcrossRuns", **same).coverage.steps == 12
    finding = judge(base, "SimilarAcrossRuns", **nudged).findings[0]
    assert finding.first_step == 6 and finding.tensors == ("Net_fc2.weight",)
    assert fires_at(base, "SimilarAcrossRuns", collection_names="gradients", **nudged) == 7


def test_similar_across_runs_with_another_model(tmp_path: Path) -> None:
    base = train(tmp_path / "base")
    torch.manual_seed(0)
    wide = train(tmp_path / "wide", model=Net(width=20))
    assert fires_at(base, "SimilarAcrossRuns", other_trials=str(wide)) == 0
    tree = judge(base, "SimilarAcrossRuns", other_trials=str(wide), tensor_regex="^absent")
    assert tree.status is Status.STOPPED


def test_similar_across_runs_needs_one_other_run(tmp_path: Path) -> None:
    base = train(tmp_path / "base", steps=2)
    result = judge(base, "SimilarAcrossRuns")
    assert result.status is Status.STOPPED and "other_trials was not given" in result.coverage.missing[0]
    with pytest.raises(RuleError, match=r"other_trials: .*absent: no such directory"):
        spec("SimilarAcrossRuns", other_trials=str(tmp_path / "absent"))
    with pytest.raises(RuleError, match="names 2 runs; expected one"):
        spec("SimilarAcrossRuns", other_trial_0="a", other_trial_1="b")


def test_stalled_training(tmp_path: Path) -> None:
    def wait(step: int, hook: object, model: nn.Module) -> None:
        time.sleep(1.2 if step == 5 else 0)

    run = train(tmp_path / "run", each=wait)
    result = judge(run, "StalledTrainingRule", threshold="1", stop_training_on_fire="True")
    finding = result.findings[0]
    assert finding.value >= 1.2 and finding.first_step == finding.last_step
    assert judge(run, "StalledTrainingRule").status is Status.NO_ISSUES_FOUND


def test_stalled_training_is_found_while_it_stands_still(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Hook(tmp_path / "run", model=model, optimizer=optimizer, system_interval=0) as hook:

        def step() -> None:
            model(torch.ones(1, 1)).sum().backward()
            optimizer.step()
            hook.log("loss", 1.0)

        for _ in range(3):
            step()
        rule = spec("StalledTrainingRule", threshold="1")
        live = LiveAnalysis(Trace(tmp_path / "run"), [rule])
        found = []
        deadline = time.monotonic() + 30
        while not found and time.monotonic() < deadline:
            found = live.poll()
            time.sleep(0.2)
        step()
        step()
    assert live.conclude() == []
    (afterwards,) = judge(tmp_path / "run", "StalledTrainingRule", threshold="1").findings
    assert [finding.id for finding in found] == [afterwards.id]
    assert json.dumps(found[0].to_json())
