"""SageMaker's rules about gradients, weights and activations, each on a training that has the fault and on one
that has not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.smdebug.converted import converted
from stepwatch.probe.store.smdebug.exporting import export_smdebug
from stepwatch.rules.catalogue import configure
from stepwatch.rules.finding import Status
from stepwatch.rules.replay import analyze
from tests.rules.sagemaker_runs import Net, batch, fires_at, judge, train


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sane training, with whole tensors."""
    return train(tmp_path_factory.mktemp("runs") / "healthy", whole=True)


@pytest.fixture(scope="module")
def statistics_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("runs") / "statistics")


def network(activation: str = "relu", seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net(activation)


def test_vanishing_gradient(tmp_path: Path, healthy: Path) -> None:
    model = network("sigmoid")
    with torch.no_grad():
        model.fc3.weight.mul_(1e-6)
    run = train(tmp_path / "run", model=model, lr=1e-9)
    result = judge(run, "VanishingGradient")
    (finding,) = result.findings
    assert finding.first_step == 0 and finding.value < finding.threshold == 1e-7
    assert finding.tensors[0].startswith("gradient/") and "fc1" in finding.tensors[0]
    assert fires_at(healthy, "VanishingGradient") is None
    assert fires_at(healthy, "VanishingGradient", threshold="20.0") == 0


def test_vanishing_gradient_says_when_there_are_no_gradients(tmp_path: Path) -> None:
    result = judge(train(tmp_path / "run", collections=("weights",)), "VanishingGradient")
    assert result.status is Status.STOPPED
    assert result.coverage.missing == ("no gradients were recorded",)


def test_exploding_tensor(tmp_path: Path, healthy: Path) -> None:
    def spoil(step: int, hook: object, model: nn.Module) -> None:
        if step == 4:
            model.fc2.weight.data[0, 0] = float("inf")  # type: ignore[union-attr, operator]

    run = train(tmp_path / "run", each=spoil)
    assert fires_at(run, "ExplodingTensor") == 4
    assert fires_at(run, "ExplodingTensor", collection_names="weights, gradients") == 4
    assert fires_at(run, "ExplodingTensor", tensor_regex="fc3") == 5  # what passes through it, a step later
    assert judge(run, "ExplodingTensor", only_nan="True").findings[0].first_step == 5
    assert fires_at(run, "ExplodingTensor", end_step="4") is None
    assert fires_at(healthy, "ExplodingTensor") is None


def test_poor_weight_initialization_by_variance_over_depth(tmp_path: Path) -> None:
    model = network()
    with torch.no_grad():
        model.fc2.weight.mul_(30)
    run = train(tmp_path / "run", model=model, lr=1e-4)
    finding = judge(run, "PoorWeightInitialization", distribution_range="1e-12").findings[0]
    assert finding.tensors == ("relu_input_0", "second_relu_input_0") and finding.value > 10


def test_poor_weight_initialization_by_gradients_without_spread(tmp_path: Path) -> None:
    model = network("sigmoid")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1e-3)
    run = train(tmp_path / "run", model=model, whole=True)
    finding = judge(run, "PoorWeightInitialization").findings[0]
    assert finding.first_step == 0 and finding.value < 0.001 and finding.tensors[0].startswith("gradient/")
    smaller = train(tmp_path / "statistics", model=network("sigmoid"))
    assert "percentiles need whole tensors" in str(judge(smaller, "PoorWeightInitialization").coverage.missing)


def test_poor_weight_initialization_by_a_loss_that_stays(tmp_path: Path) -> None:
    fixed = batch(64)
    quiet = {"distribution_range": "1e-12", "threshold": "1e12"}
    stays = train(tmp_path / "stays", data=lambda: fixed, lr=0.0)
    assert fires_at(stays, "PoorWeightInitialization", **quiet) == 5
    assert fires_at(stays, "PoorWeightInitialization", steps="5", **quiet) is None
    falls = train(tmp_path / "falls", data=lambda: fixed, lr=0.05)
    assert fires_at(falls, "PoorWeightInitialization", **quiet) is None


def test_all_zero(tmp_path: Path, healthy: Path) -> None:
    model = network()
    with torch.no_grad():
        model.fc2.bias.zero_()
        model.fc2.weight[:8].zero_()
    run = train(tmp_path / "run", model=model, lr=0.0)
    finding = judge(run, "AllZero", collection_names="biases").findings[0]
    assert finding.tensors == ("Net_fc2.bias",) and finding.value == 100
    assert fires_at(run, "AllZero", tensor_regex="fc2.weight$", threshold="50") == 0
    assert fires_at(run, "AllZero", tensor_regex="^Net_fc2.weight$", threshold="51") is None
    assert fires_at(healthy, "AllZero", collection_names="weights") is None


def test_rules_that_must_be_told_what_to_look_at(healthy: Path) -> None:
    for rule in ("AllZero", "TensorVariance", "UnchangedTensor"):
        result = judge(healthy, rule)
        assert result.status is Status.STOPPED and "neither collection_names nor" in result.coverage.missing[0]


def test_tensor_variance(healthy: Path) -> None:
    weights = {"collection_names": "weights"}
    assert fires_at(healthy, "TensorVariance", max_threshold="1.0", min_threshold="1e-9", **weights) is None
    assert fires_at(healthy, "TensorVariance", max_threshold="1e-9", **weights) == 0
    low = judge(healthy, "TensorVariance", min_threshold="1.0", **weights).findings[0]
    assert low.value < low.threshold == 1 and len(low.tensors) == 3
    assert "nothing can fire" in judge(healthy, "TensorVariance", **weights).coverage.missing[0]


@pytest.mark.parametrize("whole", [True, False])
def test_unchanged_tensor(tmp_path: Path, whole: bool) -> None:
    def freeze(step: int, hook: object, model: nn.Module) -> None:
        if step >= 3:
            model.fc1.weight.grad = None  # type: ignore[union-attr]

    run = train(tmp_path / "run", each=freeze, whole=whole)
    finding = judge(run, "UnchangedTensor", tensor_regex="^Net_fc").findings[0]
    assert finding.tensors == ("Net_fc1.weight",) and (finding.first_step, finding.last_step) == (3, 5)
    assert fires_at(run, "UnchangedTensor", tensor_regex="^Net_fc2") is None
    assert fires_at(run, "UnchangedTensor", tensor_regex="^Net_fc1", num_steps="7") == 9


def test_unchanged_tensor_goes_by_its_tolerance(healthy: Path) -> None:
    assert fires_at(healthy, "UnchangedTensor", collection_names="weights", rtol="100") == 2
    assert fires_at(healthy, "UnchangedTensor", collection_names="weights") is None


def test_weight_update_ratio(tmp_path: Path, healthy: Path, statistics_only: Path) -> None:
    assert fires_at(healthy, "WeightUpdateRatio") is None
    assert fires_at(healthy, "WeightUpdateRatio", num_steps="4") is None
    slow = judge(train(tmp_path / "slow", lr=1e-11, whole=True), "WeightUpdateRatio").findings[0]
    assert slow.last_step == 1 and slow.value < slow.threshold == 1e-8
    fast = judge(train(tmp_path / "fast", lr=1e4, whole=True), "WeightUpdateRatio").findings[0]
    assert fast.value > fast.threshold == 10
    result = judge(statistics_only, "WeightUpdateRatio")
    assert result.status is Status.STOPPED and "whole" in result.coverage.missing[0]


def test_weight_update_ratio_reaches_back_by_num_steps(healthy: Path) -> None:
    def furthest(**parameters: str) -> float:
        margin = judge(
            healthy, "WeightUpdateRatio", large_threshold="1", small_threshold="0", **parameters
        ).coverage.margin
        assert margin is not None
        return margin

    assert furthest() == furthest(num_steps="1")
    assert furthest(num_steps="8") > 2 * furthest()


def test_dead_relu(tmp_path: Path, healthy: Path, statistics_only: Path) -> None:
    model = network()
    with torch.no_grad():
        model.fc2.bias.fill_(-100)
    run = train(tmp_path / "run", model=model, whole=True)
    finding = judge(run, "DeadRelu").findings[0]
    assert finding.first_step == 0 and finding.tensors == ("second_relu_output_0",) and finding.value == 100
    assert fires_at(healthy, "DeadRelu") is None
    assert fires_at(healthy, "DeadRelu", threshold_inactivity="99.9", threshold_layer="10") == 0
    result = judge(statistics_only, "DeadRelu")
    assert result.status is Status.STOPPED and "save_raw_tensor" in result.coverage.missing[0]


def test_dead_relu_counts_over_steps(tmp_path: Path) -> None:
    """Units that were active once are dead only when that is long ago."""
    model = network()

    def kill(step: int, hook: object, module: nn.Module) -> None:
        model.fc2.bias.data.fill_(-100)

    run = train(tmp_path / "run", model=model, whole=True, each=kill, steps=30)
    assert fires_at(run, "DeadRelu", threshold_inactivity="10") not in (None, 0, 1)
    assert fires_at(run, "DeadRelu", threshold_inactivity="10", start_step="1") == 1


def test_saturated_activation(tmp_path: Path) -> None:
    def scaled(factor: float) -> Net:
        model = network("tanh")
        with torch.no_grad():
            model.fc2.weight.mul_(factor)
            model.fc2.bias.fill_(factor)
        return model

    run = train(tmp_path / "run", model=scaled(200), whole=True, lr=0.0)
    finding = judge(run, "SaturatedActivation").findings[0]
    assert finding.tensors == ("second_tanh_input_0",) and finding.value > 50
    assert fires_at(run, "SaturatedActivation", tensor_regex="^tanh_input") is None
    assert fires_at(train(tmp_path / "sane", model=scaled(1), whole=True), "SaturatedActivation") is None


def test_saturated_activation_knows_the_function_by_the_module(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Sigmoid(), nn.Linear(8, 3))
    with torch.no_grad():
        model[0].bias.fill_(-300)
    run = train(tmp_path / "run", model=model, whole=True, lr=0.0)
    assert fires_at(run, "SaturatedActivation", collection_names="sigmoid_input", tensor_regex="none") == 0
    missing = judge(run, "SaturatedActivation", tensor_regex="^0_output").coverage.missing
    assert missing == ("0_output_0 is not told to be the input of tanh or sigmoid, by its name or its module",)


@pytest.mark.parametrize("whole", [True, False])
def test_the_training_process_finds_what_is_found_afterwards(tmp_path: Path, whole: bool) -> None:
    rules = tmp_path / "rules.json"
    every = {"tensor_regex": "Net_fc"}
    entries = [("DeadRelu", {"threshold_inactivity": "90"}), ("WeightUpdateRatio", {"small_threshold": "1"})]
    entries += [("UnchangedTensor", {**every, "rtol": "10"}), ("TensorVariance", {**every, "max_threshold": "0"})]
    rules.write_text(
        json.dumps(
            [
                {"RuleConfigurationName": f"My{name}", "RuleParameters": {"rule_to_invoke": name, **parameters}}
                for name, parameters in entries
            ]
        )
    )
    run = train(tmp_path / "run", whole=whole, rules=str(rules))
    offline = {finding.id for finding in analyze(Trace(run), configure([str(rules)])).findings}
    assert {row["finding_id"] for row in Trace(run).findings()} == offline
    assert len(offline) == (4 if whole else 1)


def test_directories_of_smdebug_are_judged_alike(tmp_path: Path, healthy: Path, statistics_only: Path) -> None:
    """Of the first whole tensors were saved, of the second reductions and nothing else."""
    weights = {"collection_names": "weights"}
    cases: list[tuple[str, dict[str, str]]] = [
        ("VanishingGradient", {"threshold": "1"}),
        ("ExplodingTensor", {}),
        ("TensorVariance", {**weights, "max_threshold": "0.001"}),
        ("UnchangedTensor", weights),
        ("LossNotDecreasing", {"diff_percent": "50"}),
    ]
    for run in (healthy, statistics_only):
        directory = tmp_path / run.name
        export_smdebug(Trace(run), directory)
        for rule, parameters in cases:
            ours, theirs = fires_at(run, rule, **parameters), fires_at(converted(directory), rule, **parameters)
            assert ours == theirs, rule
    export_smdebug(Trace(healthy), tmp_path / "whole")
    whole = converted(tmp_path / "whole")
    assert fires_at(whole, "DeadRelu", threshold_inactivity="99.9", threshold_layer="10") == 0
    assert fires_at(whole, "WeightUpdateRatio", small_threshold="1") == 1
