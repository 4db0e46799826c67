"""A policy file says what is done about which runs; mistakes in it are named with their lines."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stepwatch.probe.store.labels import change_labels
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.finding import Severity
from stepwatch.rules.sidecar.policy import describe
from stepwatch.rules.sidecar.policy_file import PolicyFile
from stepwatch.rules.sidecar.positions import FileError
from stepwatch.rules.study.study import StudySettings
from stepwatch.rules.telling.courier import Courier
from tests.sidecar.conftest import Job

Begin = Callable[..., Job]

TOML = """
[[policy]]
name = "production"
runs = ["prod-*"]
rules = ["recommended"]
severity = {Overfit = "error", StalledLoss = "info"}
notify = ["https://example.org/hook", {channel = "sns-sms:+1555", at_least = "error"}]

[policy.set]
Overfit.patience = 9

[policy.stop]
grace = 5

[[policy]]
name = "the rest"
rules = "ExplodingTensor"
log = true
"""

YAML = """
policy:
  - name: production
    runs: [prod-*]
    rules: [recommended]
    severity: {Overfit: error, StalledLoss: info}
    notify:
      - https://example.org/hook
      - channel: sns-sms:+1555
        at_least: error
    set:
      Overfit: {patience: 9}
    stop:
      grace: 5
  - name: the rest
    rules: ExplodingTensor
    log: true
"""


def read(path: Path, text: str) -> PolicyFile:
    path.write_text(text)
    return PolicyFile(path, Courier(path.parent / "outbox"))


@pytest.mark.parametrize(("name", "text"), [("p.toml", TOML), ("p.yaml", YAML)])
def test_the_first_policy_that_matches_a_run_is_the_one_for_it(
    tmp_path: Path, begin: Begin, name: str, text: str
) -> None:
    file = read(tmp_path / name, text)
    first = file.find(Trace(begin(tmp_path / "prod-1").train(1).path))
    rest = file.find(Trace(begin(tmp_path / "try-1").train(1).path))
    assert first is not None and rest is not None
    assert (first.name, rest.name) == ("production", "the rest")
    assert [action.name.split("-")[0] for action in first.actions] == ["notify webhook", "notify sns", "stop"]
    assert [action.at_least.value for action in first.actions] == ["warning", "error", "error"]
    assert first.severities == {"Overfit": Severity.ERROR, "StalledLoss": Severity.INFO}
    assert {spec.name: spec.parameters for spec in first.specs}["Overfit"] == {"patience": 9}
    assert [spec.name for spec in rest.specs] == ["ExplodingTensor"]


def test_runs_are_chosen_by_name_directory_and_user(tmp_path: Path, begin: Begin) -> None:
    trace = Trace(begin(tmp_path / "team" / "run").train(1).path)
    user = trace.attempts(0).entries[-1]["user"]
    for line, matches in (
        (f"users = ['{user}']", True),
        ("users = ['somebody-else']", False),
        ("directories = ['*/team/*']", True),
        ("directories = ['*/other/*']", False),
        (f"runs = ['x', 'r?n']\nusers = ['{user}']", True),
        ("runs = ['r?n']\nusers = ['somebody-else']", False),
    ):
        file = read(tmp_path / "p.toml", f"[[policy]]\n{line}\n")
        assert (file.find(trace) is not None) is matches, line


def test_runs_are_chosen_by_tag_and_trials_given_up(tmp_path: Path, begin: Begin) -> None:
    trace = Trace(begin(tmp_path / "a").train(1).path)
    file = read(
        tmp_path / "p.toml",
        "[[policy]]\ntags = ['sweep-*', 'team=vision']\nrules = 'ExplodingTensor'\n"
        "notify = [{channel = 'sns-sms:+1', quiet = ['22:00-07:00 UTC'], breaks_through = 'never', gather = 9}]\n"
        "study = {grace = 100, patience = 50}\n",
    )
    assert file.find(trace) is None
    change_labels(trace.path, add=["sweep-7", "x"])
    policy = file.find(trace)
    assert policy is not None and policy.study is not None
    assert policy.study.settings == StudySettings(100, patience=50)
    text = describe(policy)
    assert text.startswith("runs tagged sweep-* or team=vision; 1 rule (ExplodingTensor); trials are given up by")
    assert "quiet 22:00-07:00 UTC" in text and text.endswith("; stop on Unpromising")
    stopless = read(tmp_path / "p.toml", "[[policy]]\nstudy = {grace = 100}\nstop = false\n").policies[0]
    assert stopless.study is not None and not stopless.actions


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.toml", "x = 1\n", "p.toml:1: 'x' is an unknown key; expected one of policy"),
        ("p.toml", "\n[[policy]]\nrun = ['a']\n", "p.toml:3: 'run' is an unknown key; did you mean runs?"),
        ("p.toml", "[[policy]]\n\nrules = ['Overfitt']\n", "p.toml:3: .*did you mean Overfit?"),
        (
            "p.toml",
            "[[policy]]\n[[policy]]\n[policy.set]\nOverfit.patience = 'x'\n",
            "p.toml:3: Overfit.patience is 'x'",
        ),
        ("p.toml", "[[policy]]\n[policy.stop]\ngrace = -1\n", "p.toml:3: grace is -1; expected seconds, 0 or more"),
        ("p.toml", "[[policy]]\nseverity = {Overfit = 'bad'}\n", "p.toml:2: Overfit is 'bad'; expected info, warning"),
        ("p.toml", "[[policy]]\nnotify = ['env:NO_SUCH_THING']\n", "p.toml:2: env:NO_SUCH_THING: there is no such"),
        ("p.toml", "[[policy]]\nstop = 3\n", "p.toml:2: stop is 3; expected a table"),
        ("p.toml", "[[policy]\n", "p.toml:1: not valid TOML"),
        ("p.toml", "", "p.toml: holds no policy"),
        ("p.yaml", "policy:\n- runs: [a]\n  log: maybe\n", "p.yaml:3: log is 'maybe'; expected true or false"),
        ("p.yaml", "policy:\n- runs: [a\n", "p.yaml:3: not valid YAML"),
        ("p.yaml", "- a\n", "p.yaml:1: holds a list; expected a table"),
        ("p.yaml", "policy:\n- notify:\n  - sns-sms:+1\n  - at_least: info\n", "p.yaml:4: names no channel"),
        (
            "p.toml",
            "[[policy]]\nnotify = [{channel = 'sns-sms:+1', quiet = '22-7'}]\n",
            "p.toml:2: quiet hours are '22-7'; expected",
        ),
        (
            "p.yaml",
            "policy:\n- notify:\n  - channel: sns-sms:+1\n    breaks_through: loud\n",
            "p.yaml:4: breaks_through is 'loud'; expected info, warning or error",
        ),
        (
            "p.toml",
            "[[policy]]\n[policy.study]\nobjective = 'loss'\ngrace = 0\n",
            "p.toml:4: grace is 0; expected steps, 1 or more",
        ),
        ("p.toml", "[[policy]]\n[policy.study]\nmedian = true\n", "p.toml:2: grace is missing"),
        ("p.toml", "[[policy]]\n[policy.study]\ngrce = 1\n", "p.toml:3: 'grce' is an unknown key; did you mean grace?"),
        ("p.ini", "", "p.ini: is a .ini file; expected .toml, .yaml or .yml"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(FileError, match=message):
        read(tmp_path / name, text)


def test_a_policy_is_checked_obeyed_and_changed_while_it_is_used(tmp_path: Path, begin: Begin) -> None:
    runs, policy = tmp_path / "runs", tmp_path / "watch.toml"
    rules = tmp_path / "mine.py"
    rules.write_text("from tests.sidecar.conftest import Spike as Base\n\n\nclass Spike(Base):\n    '''The same.'''\n")
    begins = f"[[policy]]\nname = 'mine'\nruns = ['a']\nrules = ['{rules}:Spike']\nstop = {{dry_run = true}}\n"
    policy.write_text(begins + "severity = {Spike = 'warning'}\n")
    job = begin(runs / "a").train(1, 200)
    begin(runs / "b").train(200)
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "XDG_STATE_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "stepwatch.cli", "watch", str(runs), "--policy", str(policy)]
    checked = subprocess.run([*command, "--check"], capture_output=True, text=True, env=env, timeout=60)
    assert checked.stdout == (
        "mine: runs named a; 1 rule (Spike); Spike is warning; stop (dry run) from error\n"
        f"{runs / 'a'} (live): mine; a stop would ask 1 rank(s) to stop; then end process {os.getpid()} of rank 0\n"
        f"{runs / 'b'} (live): no policy is for it\n"
    )
    watching = subprocess.Popen([*command, "--interval", "0.1"], stdout=subprocess.PIPE, text=True, env=env)
    while not Trace(runs / "a").findings():
        assert watching.poll() is None
        time.sleep(0.05)
    policy.write_text(begins.replace("[[policy]", "[[policy"))
    assert watching.stdout is not None
    output = ""
    while "not valid TOML" not in output:
        output += watching.stdout.readline()
    policy.write_text(begins)
    job.train(300)
    while not any(row["actions"] for row in Trace(runs / "a").findings()):
        assert watching.poll() is None
        time.sleep(0.05)
    watching.terminate()
    output += watching.communicate(timeout=120)[0]
    assert "the policies from before stay in force" in output
    assert "read again, 1 policies" in output and "no policy is for this run; it is left alone" in output
    found = {row["last_step"]: (row["severity"], len(row["actions"])) for row in Trace(runs / "a").findings()}
    assert found[1] == ("warning", 0) and found[2] == ("error", 1)


def test_options_that_the_file_replaces_are_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stepwatch.cli", "watch", str(tmp_path), "--policy", "p.toml", "--stop"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "go there" in done.stderr
