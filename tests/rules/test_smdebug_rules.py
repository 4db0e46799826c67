"""Rules and scripts that say ``import smdebug``, unmodified."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from stepwatch.probe import Hook, SaveConfig

REFERENCE = Path(
    os.environ.get("STEPWATCH_SMDEBUG_PYTHON") or Path(__file__).parents[2] / ".smdebug-venv" / "bin" / "python"
)

RULE = """
from smdebug.core.modes import ModeKeys
from smdebug.exceptions import *
from smdebug.rules.rule import Rule


class LargeGradient(Rule):
    '''The mean magnitude of a gradient is above a threshold.'''

    def __init__(self, base_trial, threshold=10.0, other_trials=None):
        super().__init__(base_trial, other_trials)
        self.threshold = float(threshold)

    def set_required_tensors(self, step):
        pass

    def invoke_at_step(self, step):
        for name in self.base_trial.tensor_names(collection="gradients"):
            value = self.base_trial.tensor(name).reduction_value(step, "mean", abs=True)
            if value > self.threshold:
                self.logger.info("%s is %f at step %d in %s", name, value, step, modes.GLOBAL)
                return True
        return False
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine steps, every third saved; the gradients of the last ones are large."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with Hook(folder, model=model, optimizer=optimizer, save_config=SaveConfig(save_interval=3), system_interval=0):
        for step in range(9):
            optimizer.zero_grad()
            (model(torch.ones(3, 4)).sum() * (1 if step < 6 else 100)).backward()
            optimizer.step()
    return folder


@pytest.fixture
def rule_file(tmp_path: Path) -> Path:
    path = tmp_path / "my_rules.py"
    path.write_text(RULE)
    return path


def analyze(run: Path, *options: object) -> tuple[int, dict]:
    command = [sys.executable, "-m", "stepwatch.cli", "analyze", "--json", *map(str, options), str(run)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)["rules"][0]


def script(folder: Path, run: Path, body: str) -> str:
    head = f"""
from stepwatch.rules.smdebug import install
install()
from my_rules import LargeGradient
from smdebug.exceptions import NoMoreData, RuleEvaluationConditionMet
from smdebug.rules.rule_invoker import invoke_rule
from smdebug.trials import create_trial
trial = create_trial({str(run)!r})
"""
    (folder / "script.py").write_text(head + body)
    done = subprocess.run([sys.executable, "script.py"], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_rule_file_runs_unmodified(run: Path, rule_file: Path) -> None:
    status, result = analyze(run, "--rules", f"{rule_file}:LargeGradient")
    assert status == 1 and result["rule"] == "LargeGradient"
    (finding,) = result["findings"]
    assert finding["first_step"] == 6
    assert finding["message"].startswith("The mean magnitude of a gradient is above a threshold")
    assert finding["tensors"] == ["gradient/Linear_bias"] or "gradient/Linear_weight" in finding["tensors"]
    assert result["coverage"]["steps"] == 3


def test_its_parameters_can_be_set(run: Path, rule_file: Path) -> None:
    status, result = analyze(run, "--rules", f"{rule_file}:LargeGradient", "--set", "LargeGradient.threshold=1000")
    assert status == 0 and result["status"] == "NoIssuesFound"
    command = [sys.executable, "-m", "stepwatch.cli", "analyze", "--rules", f"{rule_file}:LargeGradient"]
    bad = subprocess.run([*command, "--set", "LargeGradient.limit=1", str(run)], capture_output=True, text=True)
    assert bad.returncode == 2 and "has no parameter 'limit'; it has: threshold" in bad.stderr


def test_a_script_that_invokes_a_rule(run: Path, rule_file: Path) -> None:
    output = script(
        rule_file.parent,
        run,
        """
rule = LargeGradient(trial, threshold="10")
try:
    invoke_rule(rule, raise_eval_cond=True)
except RuleEvaluationConditionMet as met:
    print("met", met.rule_name, met.step, met.end_of_rule)
invoke_rule(rule, start_step=0, end_step=5, raise_eval_cond=True)
print("quiet until 5")
try:
    invoke_rule(rule)
except NoMoreData as end:
    print("end", end.step, end.last_step)
""",
    )
    assert output.splitlines() == ["met LargeGradient 6 False", "quiet until 5", "end 9 8"]


@pytest.mark.parametrize(
    "call",
    [
        "super().__init__(trial)",
        "super().__init__(trial, None)",
        "super().__init__(trial, [trial])",
        "super().__init__(trial, '')",
        'super().__init__(trial, \'{"name": "stoptraining"}\', [trial])',
        "super().__init__(trial, other_trials=None)",
        "super().__init__(trial, action_str='', other_trials=[trial])",
        "super().__init__(base_trial=trial, other_trials=[trial])",
    ],
)
def test_every_form_in_which_the_constructor_was_called(run: Path, rule_file: Path, call: str) -> None:
    body = f"""
from smdebug.rules import Rule
class Mine(Rule):
    def __init__(self, trial):
        {call}
    def invoke_at_step(self, step):
        return False
rule = Mine(trial)
print(rule.rule_name, rule.base_trial is trial, len(rule.trials))
"""
    others = 2 if "[trial]" in call else 1
    assert script(rule_file.parent, run, body).strip() == f"Mine True {others}"


def test_required_tensors(run: Path, rule_file: Path) -> None:
    output = script(
        rule_file.parent,
        run,
        """
from smdebug.rules import Rule
class Loss(Rule):
    def set_required_tensors(self, step):
        self.req_tensors.add("loss.*", steps=[step], should_match_regex=True)
    def invoke_at_step(self, step):
        (loss,) = self.req_tensors.get()
        print(step, self.req_tensors.get_names(), self.req_tensors.get_tensor_steps(loss.name), loss.value(step).shape)
        return False
invoke_rule(Loss(trial), start_step=4, end_step=6)
""",
    )
    assert output.splitlines() == [f"{s} ['loss_output_0'] [{s}] ()" for s in (4, 5)]


def test_an_installed_smdebug_is_left_aside(run: Path, rule_file: Path) -> None:
    package = rule_file.parent / "smdebug"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('the real one')")
    output = script(rule_file.parent, run, "import smdebug; print(smdebug.__version__, smdebug.__spec__.origin)")
    assert output.strip() == "1.0.34 stepwatch"


def test_what_is_not_provided_is_an_import_error(run: Path, rule_file: Path) -> None:
    output = script(
        rule_file.parent,
        run,
        """
for line in ("from smdebug.pytorch import TraceEvent", "import smdebug.tensorflow"):
    try:
        exec(line)
    except ImportError as error:
        print(error)
""",
    )
    assert "TraceEvent" in output and "smdebug.tensorflow" in output


TRAINING = """
import sys
import torch
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loss_fn = nn.CrossEntropyLoss()
{hook}
for step in range(12):
    torch.manual_seed(step)
    optimizer.zero_grad()
    loss = loss_fn(model(torch.randn(16, 4) * (1 + step)), torch.randint(2, (16,)))
    loss.backward()
    optimizer.step()
hook.close()

{install}
from my_rules import LargeGradient
from smdebug.exceptions import NoMoreData, RuleEvaluationConditionMet, TensorUnavailableForStep
from smdebug.trials import create_trial
trial = create_trial("run")
print("steps", trial.steps())
names = [name for name in trial.tensor_names(collection="gradients")]
print("names", sorted(names))
for threshold in (0.001, 0.02, 0.05, 0.1, 10):
    rule = LargeGradient(trial, threshold)
    for step in range(12):
        try:
            rule.invoke(step)
            print(threshold, step, "quiet")
        except RuleEvaluationConditionMet as met:
            print(threshold, met.step, "met")
        except Exception as error:
            print(threshold, step, type(error).__name__)
try:
    rule.invoke(12)
except Exception as error:
    print(type(error).__name__)
for name in names:
    for step in trial.tensor(name).steps():
        values = [trial.tensor(name).reduction_value(step, reduction) for reduction in ("min", "max", "mean")]
        print(name, step, *(round(float(value), 5) + 0.0 for value in values))
"""
OURS = """
from stepwatch.probe import Hook, SaveConfig
hook = Hook("run", model=model, optimizer=optimizer, loss_fn=loss_fn, save_config=SaveConfig(save_interval=1))
"""
THEIRS = """
import smdebug.pytorch as smd
reductions = smd.ReductionConfig(reductions=["min", "max", "mean"], abs_reductions=["mean"])
hook = smd.Hook(
    "run", save_config=smd.SaveConfig(save_interval=1), reduction_config=reductions, include_collections=["gradients"]
)
hook.register_module(model)
hook.register_loss(loss_fn)
"""


@pytest.mark.smdebug
def test_a_rule_says_the_same_under_smdebug_itself(tmp_path: Path) -> None:
    """One training job and one rule, under smdebug in its own environment and here."""
    if not REFERENCE.exists():
        pytest.skip(f"no smdebug at {REFERENCE}; scripts/smdebug_env.sh makes it")
    printed = {}
    for python, hook, install in (
        (REFERENCE, THEIRS, ""),
        (Path(sys.executable), OURS, "from stepwatch.rules.smdebug import install; install()"),
    ):
        folder = tmp_path / ("theirs" if hook is THEIRS else "ours")
        folder.mkdir()
        rule = RULE.replace("other_trials=None", "action_str=''").replace("other_trials)", "'')")
        (folder / "my_rules.py").write_text(rule)
        (folder / "job.py").write_text(TRAINING.format(hook=hook, install=install))
        done = subprocess.run([str(python), "job.py"], cwd=folder, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-3000:]
        printed[hook] = [line for line in done.stdout.splitlines() if line and not line.startswith("[")]  # no log
    assert printed[OURS] == printed[THEIRS]
    assert any(line.endswith("met") for line in printed[OURS]) and any(line.endswith("quiet") for line in printed[OURS])
