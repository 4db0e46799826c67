"""The commands as a user types them, in processes of their own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from stepwatch.cli.demo import job
from stepwatch.probe.store.control import read_acknowledgement
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.catalogue import RULE_SETS
from tests.forked import start

STEPWATCH = [sys.executable, "-m", "stepwatch.cli"]

ENDLESS = """
import sys, time, torch
from torch import nn
from stepwatch.probe import Hook
torch.set_num_threads(1)
model = nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=float(sys.argv[2]))
hook = Hook(sys.argv[1], model=model, optimizer=optimizer, checkpoint=lambda step: f"ckpt-{step}.pt")
for _ in range(100000):
    optimizer.zero_grad()
    (model(torch.randn(8, 4)) ** 2).mean().backward()
    optimizer.step()
    time.sleep(0.005)
"""

RULES = """
from stepwatch.rules.finding import Coverage
from stepwatch.rules.rule import Rule

class LossAbove(Rule):
    '''The training loss is above a limit.'''
    def __init__(self, *, limit: float = 2.0) -> None:
        self.limit, self.steps = limit, 0
    def observe(self, step):
        self.steps += 1
        for name, value in step.train_losses().items():
            if value > self.limit and step.step == 0:
                yield self.finding(step, first_step=step.step, tensors=[name], value=value, threshold=self.limit,
                                   message=f"{name} is {value:.3f}", suggestion="nothing")
    def coverage(self):
        return Coverage(decided=self.steps > 0, steps=self.steps)

class Broken(Rule):
    '''Fails.'''
    def observe(self, step):
        raise RuntimeError("cannot")
    def coverage(self):
        return Coverage()
"""


def stepwatch(*args: object, timeout: float = 120, **env: str) -> subprocess.CompletedProcess[str]:
    command = [*STEPWATCH, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env={**os.environ, **env})


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    processes = [start(job.main, [name, str(folder / name)]) for name in ("healthy", "overfit")]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    (folder / "my_rules.py").write_text(RULES)
    return folder


@pytest.fixture
def endless(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    run = tmp_path / "live"
    process = subprocess.Popen([sys.executable, "-c", ENDLESS, str(run), "0.01"], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not list((run / "steps").rglob("*.parquet")):
        time.sleep(0.05)
    yield run, process
    process.kill()
    process.wait()


def test_analyze_a_healthy_run(runs: Path) -> None:
    done = stepwatch("analyze", runs / "healthy")
    assert done.returncode == 0, done.stderr
    assert "no issue found" in done.stdout and done.stdout.count("no issue") >= 11
    assert "\x1b[" not in done.stdout
    narrow = stepwatch("analyze", runs / "healthy", COLUMNS="40").stdout.splitlines()
    assert "GradientsNotReset: no issue" in narrow and max(map(len, narrow)) <= 40


def test_analyze_says_what_where_on_what_evidence_and_what_to_try(runs: Path) -> None:
    done = stepwatch("analyze", runs / "overfit")
    assert done.returncode == 1
    for part in (
        "1 issue found",
        "Overfit",
        "evidence: measured",
        "try: ",
        "more: docs/rules/",
        "not decided",
        "depth means something from 4",
    ):
        assert part in done.stdout


def test_analyze_json_has_the_documented_shape(runs: Path) -> None:
    content = json.loads(stepwatch("analyze", "--json", runs / "overfit").stdout)
    assert content["run"] == str(runs / "overfit")
    by_name = {entry["rule"]: entry for entry in content["rules"]}
    assert {entry["status"] for entry in content["rules"]} == {"NoIssuesFound", "IssuesFound", "Stopped"}
    (finding,) = by_name["Overfit"]["findings"]
    documented = {
        "rule",
        "severity",
        "first_step",
        "last_step",
        "tensors",
        "value",
        "threshold",
        "message",
        "suggestion",
    }
    assert documented <= finding.keys()
    assert finding["first_step"] < finding["last_step"]
    undecided = by_name["VanishingGradient"]
    assert undecided["status"] == "Stopped" and undecided["coverage"]["decided"] is False
    assert undecided["coverage"]["missing"]


def test_several_runs_are_a_list_and_a_bad_one_does_not_hide_the_others(runs: Path) -> None:
    done = stepwatch("analyze", "--json", runs / "healthy", runs / "nowhere", runs / "overfit")
    assert done.returncode == 2
    assert [Path(entry["run"]).name for entry in json.loads(done.stdout)] == ["healthy", "overfit"]
    assert done.stderr == f"stepwatch: {runs / 'nowhere'}: no such directory\n"


def test_own_rules_and_parameters(runs: Path) -> None:
    mine = f"{runs / 'my_rules.py'}:LossAbove"
    assert stepwatch("analyze", "--rules", mine, runs / "healthy").returncode == 1
    assert stepwatch("analyze", "--rules", mine, "--set", "LossAbove.limit=9", runs / "healthy").returncode == 0
    broken = stepwatch("analyze", "--rules", f"{runs / 'my_rules.py'}:Broken", runs / "healthy")
    assert broken.returncode == 3
    assert "RuntimeError: cannot" in broken.stdout
    both = stepwatch("analyze", "--json", "--rules", f"{mine},{runs / 'my_rules.py'}:Broken", runs / "healthy")
    assert both.returncode == 1
    assert [entry["status"] for entry in json.loads(both.stdout)["rules"]] == ["IssuesFound", "Error"]


@pytest.mark.parametrize("command", ["analyze", "show", "report", "stop", "watch"])
@pytest.mark.parametrize("kind", ["missing", "file", "empty", "foreign", "newer"])
def test_what_is_no_run_is_one_line_and_status_2(tmp_path: Path, command: str, kind: str) -> None:
    path = tmp_path / "run"
    if kind == "file":
        path.write_text("")
    elif kind != "missing":
        path.mkdir()
    if kind == "foreign":
        (path / "weights.bin").write_text("")
    if kind == "newer":
        (path / "run.json").write_text('{"format_version": 9}')
    if command == "watch" and kind in ("empty", "foreign", "newer"):
        return  # a directory in which runs may yet appear
    done = stepwatch(command, path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and str(path) in done.stderr and "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--rules", "VanishingGradiant"], "did you mean VanishingGradient?"),
        (["--rules", "nothing/here.py:Rule"], "nothing/here.py: no such file"),
        (["--rules", "json:JSONDecoder"], "json has no rule 'JSONDecoder'"),
        (["--set", "Overfit.patiance=3"], "Overfit has no parameter 'patiance'; it has: fall, patience, rise"),
        (["--set", "Overfit.patience=many"], "Overfit.patience is 'many'; expected a whole number"),
        (["--set", "Overfit.patience=-1"], "Overfit: patience is -1; expected 2 or more"),
        (["--set", "Overfit"], "setting 'Overfit' cannot be read; expected Rule.parameter=value"),
        (["--set", "Nope.x=1"], "'Nope' is not among the rules"),
    ],
)
def test_bad_rules_and_parameters_are_named(runs: Path, args: list[str], message: str) -> None:
    done = stepwatch("analyze", *args, runs / "healthy")
    assert done.returncode == 2
    assert message in done.stderr and len(done.stderr.splitlines()) == 1


def test_no_command_but_run_and_demo_needs_torch(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('there is no torch here')")
    for args in (
        ["analyze", runs / "overfit"],
        ["show", runs / "overfit"],
        ["report", runs / "overfit", "-o", tmp_path / "r.html"],
        ["rules"],
    ):
        done = stepwatch(*args, PYTHONPATH=str(tmp_path))
        assert done.returncode in (0, 1), done.stderr
        assert "Traceback" not in done.stderr


def test_show(runs: Path) -> None:
    done = stepwatch("show", runs / "healthy")
    assert done.returncode == 0
    for part in ("finished after 550 steps", "CrossEntropyLoss_output_0", "Net_conv1.weight", "accuracy [EVAL]"):
        assert part in done.stdout
    content = json.loads(stepwatch("show", "--json", "--tensors", "^gradient/.*bias", runs / "healthy").stdout)
    assert content["steps"] == 550
    assert [row["name"] for row in content["tensors"]] == [
        f"gradient/Net_{layer}.bias" for layer in ("conv1", "conv2", "fc1", "fc2")
    ]
    bad = stepwatch("show", "--tensors", "(", runs / "healthy")
    assert bad.returncode == 2 and "is not a regular expression" in bad.stderr


def test_rules_lists_and_explains() -> None:
    listed = json.loads(stepwatch("rules", "--json").stdout)
    wanted = {rule for rules in RULE_SETS.values() for rule in rules}  # some are in two sets
    assert sorted(entry["rule"] for entry in listed) == sorted(rule.__name__ for rule in wanted)
    one = stepwatch("rules", "overfit")
    assert one.returncode == 0 and "patience=5" in one.stdout and "turned up" in one.stdout
    assert stepwatch("rules", "nosuchrule").returncode == 2


def test_a_closed_pipe_is_quiet(runs: Path) -> None:
    command = f"{' '.join(STEPWATCH)} show --tensors . {runs / 'healthy'} | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stderr == "" and len(done.stdout.splitlines()) == 1


def test_stop_waits_for_the_checkpoint(endless: tuple[Path, subprocess.Popen[str]]) -> None:
    run, process = endless
    done = stepwatch("stop", run, "--reason", "enough")
    assert done.returncode == 0, done.stderr
    answer = read_acknowledgement(run, 0)
    assert answer is not None
    assert done.stdout == f"rank 0 stopped after {answer.step} steps, checkpoint ckpt-{answer.step}.pt\n"
    assert process.wait(30) == 1
    assert process.stderr is not None and "TrainingStopped" in process.stderr.read()
    again = stepwatch("stop", run)
    assert again.returncode == 2 and "not live" in again.stderr


def test_a_live_run_is_in_progress(endless: tuple[Path, subprocess.Popen[str]]) -> None:
    run, _ = endless
    content = json.loads(stepwatch("analyze", "--json", run).stdout)
    assert content["live"] is True
    assert {entry["status"] for entry in content["rules"]} == {"InProgress"}
    assert "live" in stepwatch("show", run).stdout


class Receiver(BaseHTTPRequestHandler):
    received: list[dict[str, Any]] = []  # noqa: RUF012

    def do_POST(self) -> None:
        self.received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


def test_watch_finds_tells_and_stops(tmp_path: Path) -> None:
    """A run that appears while the directory is watched, diverges, is told of by HTTP and is stopped."""
    server = HTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/secret"
    watching = subprocess.Popen(
        [*STEPWATCH, "watch", str(tmp_path), "--stop", "--webhook", url, "--once"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")},
    )
    run = tmp_path / "live"
    job = subprocess.Popen([sys.executable, "-c", ENDLESS, str(run), "1e6"], stderr=subprocess.PIPE, text=True)
    output, _ = watching.communicate(timeout=90)
    assert watching.returncode == 1
    assert job.wait(30) == 1
    server.shutdown()
    recorded = Trace(run).findings()
    assert recorded and all(row["judged_by"] == "watch" for row in recorded)
    done = {(action["action"], action["outcome"]) for row in recorded for action in row["actions"]}
    assert done == {("stop", "done"), ("notify", "done")}
    told = [entry for body in Receiver.received for entry in body["findings"]]
    assert sorted(entry["finding"]["rule"] for entry in told) == sorted(row["rule"] for row in recorded)
    assert told[0]["job_name"] == "live"
    assert "secret" not in output and "secret" not in json.dumps(recorded)
    end = Trace(run).end(0)
    assert end is not None and end.status == "stopped"


def hears_of_files(pid: int) -> bool:
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if "inotify" in os.readlink(each):
                return True
    return False


def test_ctrl_c_ends_a_watch_quietly(tmp_path: Path) -> None:
    watching = subprocess.Popen([*STEPWATCH, "watch", str(tmp_path)], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not hears_of_files(watching.pid):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    watching.send_signal(signal.SIGINT)
    _, errors = watching.communicate(timeout=20)
    assert watching.returncode == 0
    assert errors == "stepwatch: no longer watching\n"


def imported_by(*words: object) -> set[str]:
    code = (
        f"import sys; from stepwatch.cli.main import main\ntry: main({[str(word) for word in words]})\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.splitlines()[-1].split())


def test_first_answers_are_quick_because_nothing_heavy_is_imported(runs: Path) -> None:
    heavy = {"torch", "pandas", "pyarrow", "numpy", "bokeh", "rich"}
    for words in (["--help"], ["demo", "--list"]):
        assert imported_by(*words) & heavy == set(), words
    assert imported_by("show", runs / "healthy") & heavy == {"pyarrow", "numpy", "rich"}


def test_demo_names_its_faults() -> None:
    listed = stepwatch("demo", "--list").stdout
    names = [line.split()[0] for line in listed.splitlines()]
    assert names == ["exploding", "vanishing", "nan", "dead-relu", "overfit", "oscillating", "stalled", "imbalance"]
    bad = stepwatch("demo", "nosuch")
    assert bad.returncode == 2 and "unknown fault 'nosuch'" in bad.stderr


def test_the_demo_shows_both_runs_and_says_what_was_saved(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "healthy", tmp_path / "healthy")  # of a demonstration before, which this one replaces
    done = stepwatch("demo", "nan", "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "finished after 550 steps" in done.stdout
    assert "ExplodingTensor" in done.stdout and "steps saved" in done.stdout
    for name in ("healthy", "nan"):
        assert (tmp_path / name / "report.html").stat().st_size < 5e6
