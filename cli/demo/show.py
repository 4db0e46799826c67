"""``stepwatch demo``: a healthy run and a faulty one side by side, watched from outside as they train."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from rich.columns import Columns
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from stepwatch.cli.demo.faults import HEALTHY, Fault
from stepwatch.cli.demo.job import planned_steps
from stepwatch.cli.demo.scenarios import SCENARIOS
from stepwatch.cli.errors import ISSUES_FOUND, NOTHING_FOUND, RULE_FAILED
from stepwatch.cli.render import console, sparkline, story_block
from stepwatch.cli.report.page import write_report
from stepwatch.cli.summary import state_of
from stepwatch.probe.store.control import read_acknowledgement
from stepwatch.probe.store.errors import TraceError
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.catalogue import configure
from stepwatch.rules.diagnosis import diagnose
from stepwatch.rules.replay import Analysis, analyze

_REFRESH_SECONDS = 0.25
_PANEL_WIDTH = 56


@dataclass
class _Job:
    """A training process and what its trace shows so far."""

    fault: Fault
    run_dir: Path
    planned: int
    process: subprocess.Popen[bytes]
    steps: int = 0
    losses: list[float] = field(default_factory=list)
    found: list[str] = field(default_factory=list)
    state: str = "starting"

    def look(self) -> None:
        """Read what is new in the trace."""
        try:
            trace = Trace(self.run_dir)
        except TraceError:
            return  # the process has not begun to record
        rows = trace.table("scalars", columns=["name", "step", "value"], modes=["TRAIN"]).to_pandas()
        rows = rows[rows["name"].str.contains("[Ll]oss_", regex=True)]
        self.losses = rows["value"].tolist()
        self.steps = int(rows["step"].max()) + 1 if len(rows) else 0
        self.found = [row["rule"] for row in trace.findings()]
        self.state = state_of(trace) if self.process.poll() is not None else "training"


def run_demo(fault: Fault, out: Path) -> int:
    """Train both, show them, explain what was found; the exit status says whether it came out as announced."""
    screen = console()
    screen.print(Text("Two real training runs on 1,797 images of handwritten digits, side by side.", "bold"))
    screen.print(f"  healthy   {HEALTHY.mistake}", markup=False)
    screen.print(f"  {fault.name:<9} {fault.mistake}\n", markup=False)
    jobs = [_start(each, out / each.name) for each in (HEALTHY, fault)]
    try:
        _follow(screen, jobs)
    except BaseException:
        for job in jobs:
            job.process.terminate()
        raise
    as_announced = True
    for job in jobs:
        if job.process.returncode != 0:
            errors = (job.run_dir / "output.log").read_text(errors="replace").strip().splitlines()[-1:]
            screen.print(Text(f"the {job.fault.name} job failed: {' '.join(errors)}", "red"))
            return RULE_FAILED
        as_announced &= _explain(screen, job)
    return NOTHING_FOUND if as_announced else ISSUES_FOUND


def _start(fault: Fault, run_dir: Path) -> _Job:
    if (run_dir / "run.json").exists():
        shutil.rmtree(run_dir)  # of an earlier demonstration
    run_dir.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "stepwatch.cli.demo.job", fault.name, str(run_dir)]
    with (run_dir / "output.log").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    return _Job(fault, run_dir, planned_steps(SCENARIOS[fault.name]), process)


def _follow(screen: Console, jobs: list[_Job]) -> None:
    if not screen.is_terminal:
        for job in jobs:
            job.process.wait()
            job.look()
        screen.print(_panels(screen, jobs))
        return
    with Live(console=screen, refresh_per_second=8) as live:
        running = True
        while running:
            running = any(job.process.poll() is None for job in jobs)
            for job in jobs:
                job.look()
            live.update(_panels(screen, jobs))
            time.sleep(_REFRESH_SECONDS)


def _panels(screen: Console, jobs: list[_Job]) -> Columns:
    width = min(_PANEL_WIDTH, max(screen.width // 2 - 1, 30))
    return Columns([_panel(job, width) for job in jobs])


def _panel(job: _Job, width: int) -> Panel:
    latest = f"{job.losses[-1]:.4g}" if job.losses else "-"
    done = min(job.steps / max(job.planned, 1), 1.0)
    bar_width = width - 24
    bar = "━" * int(done * bar_width)
    lines = [
        Text.assemble("step ", (f"{job.steps:>5}", "bold"), f" of {job.planned:<5} ", (bar, "cyan")),
        Text.assemble("loss ", (f"{latest:>9} ", "bold"), sparkline(job.losses, width - 20)),
        Text(job.state if len(job.state) < width - 4 else job.state[: width - 7] + "...", "dim"),
        Text("found: " + ", ".join(job.found), "bold red") if job.found else Text("nothing found", "green"),
    ]
    return Panel(Group(*lines), title=job.fault.name, width=width, title_align="left")


def _explain(screen: Console, job: _Job) -> bool:
    """Print the verdict on a job; whether it is the announced one."""
    trace = Trace(job.run_dir)
    analysis = analyze(trace, configure(None))
    report = write_report(trace, job.run_dir / "report.html", configure(None))
    screen.print()
    screen.print(Text(f"{job.fault.name}: {job.fault.mistake}", "bold"))
    screen.print(_outcome(job, trace, analysis), markup=False)
    for story in diagnose(analysis.findings):
        screen.print(story_block(story))
    screen.print(f"  trace  {job.run_dir}\n  report {report}", markup=False)
    found = {finding.rule for finding in analysis.findings}
    expected = job.fault.found_by
    return bool(found & set(expected)) if expected else not found


def _outcome(job: _Job, trace: Trace, analysis: Analysis) -> str:
    if not analysis.findings:
        decided = sum(result.coverage.decided for result in analysis.results)
        return f"  {job.steps} steps, no issue; {decided} of {len(analysis.results)} rules could decide"
    answer = read_acknowledgement(job.run_dir, 0)
    if answer is None:
        return f"  {job.steps} steps; what was found is no reason to stop a job by itself"
    saved = job.planned - answer.step
    share = 100 * saved / job.planned
    kept = f", after its checkpoint {answer.checkpoint}" if answer.checkpoint else ""
    return f"  stopped after {answer.step} of {job.planned} steps{kept}: {saved} steps saved ({share:.0f} %)"
