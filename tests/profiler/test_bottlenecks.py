"""Rules about time and machine, on real jobs with real bottlenecks."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from stepwatch.probe.store.reader import Trace
from stepwatch.rules.catalogue import configure
from stepwatch.rules.finding import Finding, Severity
from stepwatch.rules.profiler.loading import DataLoadingBound
from stepwatch.rules.replay import Analysis, analyze
from tests import forked
from tests.profiler.jobs import train

ROOT = Path(__file__).parents[2]
QUICK = [
    "DataLoadingBound.seconds=0.5",
    "DataLoadingBound.steps=20",
    "StragglerRank.seconds=0.5",
    "StragglerRank.steps=20",
    "StepTimeDrift.steps=15",
    "StepTimeDrift.seconds=0.2",
    "SlowCheckpointing.seconds=0.5",
    "MemoryLeak.seconds=3",
    "MemoryLeak.growth_mib=40",
    "MemoryLeak.horizon=1000",
    "DiskFilling.seconds=2",
    "DiskFilling.growth_mib=20",
    "DiskFilling.horizon=100000",
    "Hang.seconds=1.5",
    "GpuStarved.seconds=1",
]
"""The rules look at minutes; these jobs last seconds."""


class Impatient(DataLoadingBound):
    """Data loading, looked at for half a second.

    Args:
        seconds: as there.
    """

    def __init__(self, *, seconds: float = 0.5) -> None:
        super().__init__(seconds=seconds, steps=20)


def judge(run: Path, settings: list[str] = QUICK) -> Analysis:
    analysis = analyze(Trace(run), configure(["profiler"], settings))
    assert not [result for result in analysis.results if result.detail], "no rule failed"
    return analysis


def by_rule(analysis: Analysis) -> dict[str, Finding]:
    return {finding.rule: finding for finding in analysis.findings}


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("healthy") / "run"
    train(run, steps=150, work=0.02)
    return run


def test_a_healthy_job_is_quiet_even_when_looked_at_for_seconds(healthy: Path) -> None:
    analysis = judge(healthy)
    assert not analysis.findings
    undecided = {result.rule for result in analysis.results if not result.coverage.decided}
    without = {"ContainerThrottled", "CpuContention"}  # perhaps
    without |= {"DeviceErrors", "HostBound", "GpuStarved", "GpuOverheating", "Fragmentation", "SmallBatch"}
    assert undecided - without == {"StragglerRank", "CommunicationBound"}


def test_a_short_job_is_not_called_healthy(healthy: Path) -> None:
    analysis = judge(healthy, settings=[])
    assert not analysis.findings
    missing = {result.rule: result.coverage.missing for result in analysis.results if not result.coverage.decided}
    assert {"MemoryLeak", "DiskFilling", "DataLoadingBound", "SlowCheckpointing"} <= set(missing)
    assert "300 s are needed" in missing["MemoryLeak"][0]


@pytest.mark.parametrize(("workers", "needed"), [(0, range(2, 5)), (1, range(2, 6))])
def test_a_sleeping_data_set_is_named_with_the_workers_that_would_feed_it(
    tmp_path: Path, workers: int, needed: range
) -> None:
    train(tmp_path / "run", steps=60, sample=0.01, work=0.015, workers=workers)  # 40 ms to load, 15 ms to train
    finding = by_rule(judge(tmp_path / "run"))["DataLoadingBound"]
    assert finding.evidence["workers"] == workers
    assert finding.evidence["workers_needed"] in needed
    assert f"num_workers={finding.evidence['workers_needed']}" in finding.suggestion
    assert finding.severity is Severity.WARNING


def test_the_hook_finds_in_the_process_what_is_found_afterwards(tmp_path: Path) -> None:
    rule = f"{__file__}:Impatient"
    train(tmp_path / "run", steps=40, sample=0.01, rules=rule)
    recorded = [row for row in Trace(tmp_path / "run").findings() if row["judged_by"] == "hook"]
    (afterwards,) = analyze(Trace(tmp_path / "run"), configure([rule])).findings
    assert [(row["rule"], row["finding_id"]) for row in recorded] == [("Impatient", afterwards.id)]


def test_steps_that_grow_longer_are_found_with_their_phase(tmp_path: Path) -> None:
    train(tmp_path / "run", steps=111, work=0.002, growth=0.0006)
    finding = by_rule(judge(tmp_path / "run"))["StepTimeDrift"]
    # The job sleeps between backward() and the optimizer's step.
    assert finding.evidence["phase"] == "other"
    assert finding.value > 1.5


def test_a_throttled_disk_makes_checkpoints_slow(tmp_path: Path) -> None:
    train(tmp_path / "run", steps=40, work=0.02, checkpoint=0.003)
    finding = by_rule(judge(tmp_path / "run"))["SlowCheckpointing"]
    assert finding.value > 0.1
    assert finding.first_step == 5


@pytest.fixture(scope="module")
def failing() -> Iterator[Path]:
    """Leaks, fills the disk (one on which no other test writes), and hangs in the end."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 1 << 30
    folder = Path(tempfile.mkdtemp(dir=memory if roomy else None))
    train(folder / "run", steps=101, work=0.09, leak_mb=2, disk_mb=2, hang_at=95, hang=6.0)
    yield folder / "run"
    shutil.rmtree(folder)


def test_a_leak_is_found_with_the_time_that_is_left(failing: Path) -> None:
    finding = by_rule(judge(failing))["MemoryLeak"]
    rate = finding.evidence["bytes_per_second"]
    assert finding.tensors == ("job",)
    assert 5e6 < rate < 60e6, "2 MB at every step of a tenth of a second"
    assert finding.value == pytest.approx(finding.evidence["room"] / rate)
    assert "will be used up in" in finding.message


def test_a_disk_that_fills_is_found_with_the_time_that_is_left(failing: Path) -> None:
    findings = [finding for finding in judge(failing).findings if finding.rule == "DiskFilling"]
    assert str(failing) in " ".join(finding.message for finding in findings)


def test_a_hang_is_found_where_it_began(failing: Path) -> None:
    finding = by_rule(judge(failing))["Hang"]
    assert finding.first_step in (95, 96)
    assert finding.severity is Severity.ERROR
    assert finding.value >= 1.5


def test_a_slow_rank_is_named_with_its_phase(tmp_path: Path) -> None:
    forked.ranks(2, tmp_path, partial(train, steps=60, sample=0.01, slow_rank=1), tmp_path / "run")
    finding = by_rule(judge(tmp_path / "run"))["StragglerRank"]
    assert finding.rank == 1
    assert finding.evidence["phase"] == "data"
    assert finding.message.startswith("rank 1 is ")


# -- GPUs, by a library that speaks NVML's interface ---------------------------------------------------


@pytest.fixture(scope="module")
def gpu_job(tmp_path_factory: pytest.TempPathFactory) -> Any:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("nvml")
    source = ROOT / "tests" / "probe" / "nvml_standin.c"
    library = folder / "libnvidia-ml.so.1"
    command = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{library.name}", "-o", str(library), str(source)]
    subprocess.run(command, check=True)

    def run(state: str, **options: Any) -> Path:
        (folder / "state").write_text(state)
        out = tmp_path_factory.mktemp("job") / "run"
        process = forked.start(_train_beside, library, folder / "state", out, options)
        process.join(timeout=120)
        assert process.exitcode == 0
        return out

    return run


def _train_beside(library: Path, state: Path, run: Path, options: dict[str, Any]) -> None:
    """With this library loaded under the name that NVML has."""
    ctypes.CDLL(str(library))
    os.environ["NVML_STANDIN"] = str(state)
    train(run, **options)


BUSY = "memory_total 80000000000\n{0} memory_used 40000000000\n{0} utilization 95\n{0} throttle 0\n"


def test_a_starving_gpu_and_errors_are_found_and_the_idle_neighbour_is_not(gpu_job: Any) -> None:
    state = f"0 {BUSY.format(0)}0 remapped_pending 1\n0 xid 79\n".replace("utilization 95", "utilization 7")
    state += "1 memory_total 80000000000\n1 memory_used 500000000\n1 utilization 0\n"
    analysis = judge(gpu_job(state, steps=60, sample=0.01, work=0.001, on_gpu=True))
    starved = by_rule(analysis)["GpuStarved"]
    assert starved.tensors == ("GPU-00000000-aaaa-bbbb-cccc-0123456789ab",)
    assert starved.value == 7
    assert "waiting for data" in starved.message
    assert "DataLoadingBound" in by_rule(analysis)
    errors = [finding for finding in analysis.findings if finding.rule == "DeviceErrors"]
    assert {finding.value for finding in errors} == {79, 1}
    assert "fallen off the bus" in " ".join(finding.message for finding in errors)
