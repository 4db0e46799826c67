"""``stepwatch run``: scripts that know nothing of us behave as without us, and are recorded."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from stepwatch.probe.store.reader import Trace

SCRIPT = """
import sys, torch
from torch import nn
torch.manual_seed(0)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.relu, self.fc2 = nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)
    def forward(self, x):
        return self.fc2(self.relu(self.fc1(x)))

def main(steps):
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    loss_fn = nn.CrossEntropyLoss()
    for epoch in range(2):
        model.train()
        for _ in range(steps):
            x = torch.randn(16, 6)
            optimizer.zero_grad()
            loss = loss_fn(model(x), x[:, :3].argmax(1))
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            loss_fn(model(x), x[:, :3].argmax(1))
    print("argv", sys.argv[1:], "name", __name__, "loss %.4f" % loss.item())

if __name__ == "__main__":
    main(int(sys.argv[1]))
"""


def stepwatch(*args: str | Path, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stepwatch.cli", *map(str, args)]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=120, env={**os.environ, **(env or {})}
    )


def plain(*args: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *map(str, args)], cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "train.py").write_text(SCRIPT)
    package = tmp_path / "jobs"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "helper.py").write_text("FACTOR = 2")
    body = SCRIPT.replace("import sys, torch", "import sys, torch\nfrom .helper import FACTOR", 1)
    (package / "train.py").write_text(body)
    (package / "__main__.py").write_text("from . import helper\nprint('package', helper.FACTOR)")
    return tmp_path


def test_a_script_is_recorded_and_prints_what_it_prints(project: Path) -> None:
    bare = plain("train.py", "5", "--flag", "-o", cwd=project)
    ours = stepwatch("run", "--out", "rec", "--save-interval", "1", "train.py", "5", "--flag", "-o", cwd=project)
    assert (ours.returncode, ours.stdout) == (0, bare.stdout)
    assert "argv ['5', '--flag', '-o'] name __main__" in ours.stdout
    trace = Trace(project / "rec")
    steps = trace.table("steps").to_pandas()
    assert steps[steps["mode"] == "TRAIN"]["step"].tolist() == list(range(10))
    assert steps[steps["mode"] == "EVAL"]["step"].tolist() == [5, 10]
    names = set(trace.table("stats", columns=["name"]).to_pandas()["name"])
    assert {"Net_fc1.weight", "gradient/Net_fc2.bias", "relu_output_0"} <= names
    losses = trace.table("scalars", names=["CrossEntropyLoss_output_0"], modes=["TRAIN"])
    assert losses["step"].to_pylist() == list(range(10))
    assert losses["value"][-1].as_py() == pytest.approx(float(ours.stdout.split()[-1]), abs=1e-4)


def test_modules_and_packages_with_relative_imports(project: Path) -> None:
    bare = plain("-m", "jobs.train", "3", cwd=project)
    ours = stepwatch("run", "--out", "rec", "-m", "jobs.train", "3", cwd=project)
    assert (ours.returncode, ours.stdout) == (0, bare.stdout), ours.stderr
    assert Trace(project / "rec").table("steps", modes=["TRAIN"]).num_rows == 6
    ours = stepwatch("run", "-m", "jobs", cwd=project)
    assert (ours.returncode, ours.stdout) == (0, "package 2\n")
    assert "nothing was recorded" in ours.stderr


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("raise SystemExit(7)", 7),
        ("import sys; sys.exit('gave up')", 1),
        ("raise ValueError('wrong shape')", 1),
        ("import os; os._exit(5)", 5),
        ("pass", 0),
    ],
)
def test_the_scripts_exit_status_is_ours(tmp_path: Path, body: str, status: int) -> None:
    (tmp_path / "end.py").write_text(body)
    bare = plain("end.py", cwd=tmp_path)
    ours = stepwatch("run", "end.py", cwd=tmp_path)
    assert ours.returncode == bare.returncode == status
    assert (
        bare.stderr.strip().splitlines()[-1:]
        == [line for line in ours.stderr.strip().splitlines() if not line.startswith("stepwatch:")][-1:]
    )


ODD = """
import torch

class Odd(torch.nn.Module):
    def parameters(self, recurse=True):
        raise RuntimeError("not yet")

    def forward(self, x):
        return 2 * x

print(Odd()(torch.ones(2)).tolist())
"""


def test_a_module_that_cannot_be_looked_into_computes_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(ODD)
    ours = stepwatch("run", "odd.py", cwd=tmp_path)
    assert (ours.returncode, ours.stdout) == (0, "[2.0, 2.0]\n"), ours.stderr
    assert "could not be watched" in ours.stderr and "not yet" in ours.stderr


def test_a_traceback_shows_the_script_alone(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def f():\n    raise ValueError('wrong')\nf()\n")
    ours = stepwatch("run", "bad.py", cwd=tmp_path)
    frames = [line for line in ours.stderr.splitlines() if line.strip().startswith("File")]
    assert len(frames) == 2 and all("bad.py" in frame for frame in frames)


def test_an_exception_is_the_runs_end(project: Path) -> None:
    (project / "dies.py").write_text(SCRIPT.replace('print("argv"', 'raise RuntimeError("boom")\n    print("argv"'))
    assert stepwatch("run", "--out", "rec", "dies.py", "2", cwd=project).returncode == 1
    end = Trace(project / "rec").end(0)
    assert end is not None and (end.status, end.reason) == ("exception", "RuntimeError: boom")


def test_workers_that_are_spawned_find_the_scripts_main(tmp_path: Path) -> None:
    body = """
    import multiprocessing
    def double(x):
        return 2 * x
    if __name__ == "__main__":
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print(pool.map(double, [1, 2]))
    """
    (tmp_path / "spawn.py").write_text(textwrap.dedent(body))
    ours = stepwatch("run", "spawn.py", cwd=tmp_path)
    assert (ours.returncode, ours.stdout) == (0, "[2, 4]\n"), ours.stderr


def test_rules_stop_a_script(project: Path) -> None:
    diverging = SCRIPT.replace(
        "torch.optim.Adam(model.parameters(), lr=0.01)", "torch.optim.SGD(model.parameters(), lr=1e6)"
    )
    (project / "train.py").write_text(diverging)
    ours = stepwatch("run", "--out", "rec", "--stop", "train.py", "3000", cwd=project)
    assert ours.returncode == 1
    assert "stepwatch: stopped after" in ours.stderr
    assert Trace(project / "rec").findings()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["missing.py"], "missing.py cannot be read: No such file"),
        (["jobs"], "jobs is a directory"),
        (["-m", "no.such.module"], "no module 'no.such.module'"),
        (["--rules", "Nonsense", "train.py"], "unknown rule 'Nonsense'"),
        (["--ranks", "1,2", "train.py"], "--ranks is '1,2'; expected all, first, node, or numbers with 0"),
        (["--out", "nowhere://x", "train.py", "3"], "nowhere://x"),
    ],
)
def test_what_cannot_be_run_is_said_in_one_line(project: Path, args: list[str], message: str) -> None:
    ours = stepwatch("run", *args, cwd=project)
    assert ours.returncode == 2
    assert message in ours.stderr and len(ours.stderr.strip().splitlines()) == 1


def test_two_ranks_under_torchrun(project: Path) -> None:
    distributed = SCRIPT.replace(
        "def main(steps):",
        "def main(steps):\n    torch.distributed.init_process_group('gloo')",
    ).replace("model = Net()", "model = nn.parallel.DistributedDataParallel(Net())", 1)
    (project / "ddp.py").write_text(distributed)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, "-m", "stepwatch.cli", "run", "--out", "rec", "--save-interval", "1", "ddp.py", "4"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    trace = Trace(project / "rec")
    assert trace.ranks == [0, 1]
    assert trace.info.world_size == 2
    weights = trace.table("stats", columns=["step", "name", "l2"], names=["Net_fc1.weight"]).to_pandas()
    by_rank = [group["l2"].tolist() for _, group in weights.groupby("rank")]
    assert by_rank[0] == by_rank[1] and len(by_rank[0]) == 8


def test_ranks_save_the_same_steps_at_the_interval_that_rank_0_chose(project: Path) -> None:
    (project / "slow.py").write_text(
        """
import time, torch
from torch import nn
from stepwatch.probe import Hook
torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
with Hook("rec", model=model, optimizer=optimizer, overhead_budget=0.5):
    for _ in range(700):
        time.sleep(0.004 * rank)
        optimizer.zero_grad()
        model(torch.randn(4, 8)).square().mean().backward()
        optimizer.step()
"""
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run([*torchrun, "slow.py"], cwd=project, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    trace = Trace(project / "rec")
    steps = trace.table("steps", columns=["step", "saved"]).to_pandas()
    saved = [rows.loc[rows["saved"], "step"].tolist() for _, rows in steps.groupby("rank")]
    assert saved[0] == saved[1]
    assert saved[0][:10] == list(range(10))
    chosen = trace.table("scalars", columns=["step", "value"], names=["stepwatch/save_interval"]).to_pandas()
    by_rank = [rows[["step", "value"]].to_numpy().tolist() for _, rows in chosen.groupby("rank")]
    assert by_rank[0] == by_rank[1] and len(by_rank[0]) > 1


def test_several_ranks_must_be_given_a_directory(project: Path) -> None:
    ours = stepwatch("run", "train.py", "2", cwd=project, env={"WORLD_SIZE": "2", "RANK": "0"})
    assert ours.returncode == 2 and "--out" in ours.stderr
