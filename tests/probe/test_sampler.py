"""What is sampled of the machine, and what that costs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stepwatch.probe.sampler import BUDGET, Pace, SystemSampler, open_sources
from stepwatch.probe.system.cgroup import ControlGroup
from stepwatch.probe.system.node import Pressure, Volumes
from stepwatch.probe.system.process import ProcessTree
from stepwatch.probe.system.source import Reading, Source

HERE = Path(__file__).parent


def readings(source: Source, now: float) -> dict[tuple[str, str], float]:
    return {(device, metric): value for device, metric, value in source.read(now)}


# -- the node -----------------------------------------------------------------------------------------


def test_every_source_of_this_machine_can_be_read_at_every_sample(tmp_path: Path) -> None:
    sources = open_sources([tmp_path])
    first = [readings(source, 1.0) for source in sources]
    time.sleep(0.05)
    second = {key: value for source in sources for key, value in readings(source, 2.0).items()}
    assert any(first)
    assert {
        ("node", "cpu_percent"),
        ("node", "cpu_busiest_core_percent"),
        ("node", "iowait_percent"),
        ("node", "memory_used_bytes"),
        ("process", "memory_rss_bytes"),
        ("process", "file_descriptors"),
        ("job", "processes"),
        ("core:0", "cpu_percent"),
        (f"volume:{tmp_path}", "free_bytes"),
    } <= set(second)
    assert 0 <= second["node", "cpu_percent"] <= second["node", "cpu_busiest_core_percent"] <= 100


def test_workers_count_as_the_job(tmp_path: Path) -> None:
    tree = ProcessTree()
    alone = readings(tree, 0.0)
    worker = subprocess.Popen([sys.executable, "-c", "x = bytearray(60_000_000); input()"], stdin=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 10
        now = 100.0
        while time.monotonic() < deadline:
            now += 100.0
            together = readings(tree, now)
            if together["job", "memory_rss_bytes"] - alone["job", "memory_rss_bytes"] > 50e6:
                break
            time.sleep(0.05)
        assert together["job", "processes"] == alone["job", "processes"] + 1
        assert together["job", "memory_rss_bytes"] - alone["job", "memory_rss_bytes"] > 50e6
    finally:
        worker.communicate()
    assert readings(tree, now + 1)["job", "processes"] == alone["job", "processes"]


def test_pressure_is_the_growth_of_the_kernels_totals(tmp_path: Path) -> None:
    def stalled(microseconds: int) -> None:
        line = f"avg10=0.00 avg60=0.00 avg300=0.00 total={microseconds}"
        (tmp_path / "io").write_text(f"some {line}\nfull {line}\n")

    stalled(1_000_000)
    source = Pressure(tmp_path)
    assert readings(source, 10.0) == {}
    stalled(1_500_000)
    assert readings(source, 12.0) == {
        ("node", "pressure_io_some_percent"): 25.0,
        ("node", "pressure_io_full_percent"): 25.0,
    }


def test_directories_of_one_volume_are_reported_once(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    devices = {device for device, _, _ in Volumes([tmp_path, inner, tmp_path / "missing"]).read(0.0)}
    assert devices == {f"volume:{tmp_path}"}


# -- containers ---------------------------------------------------------------------------------------


def write_tree(root: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)


def test_limits_and_throttling_of_cgroup_version_2(tmp_path: Path) -> None:
    write_tree(
        tmp_path,
        {
            "membership": "0::/jobs/training\n",
            "cg/cgroup.controllers": "cpu memory\n",
            "cg/jobs/memory.max": "8000000000\n",
            "cg/jobs/cpu.max": "max 100000\n",
            "cg/jobs/training/memory.max": "max\n",
            "cg/jobs/training/memory.current": "5000\n",
            "cg/jobs/training/memory.stat": "anon 10\ninactive_file 2000\n",
            "cg/jobs/training/memory.events": "low 0\noom_kill 3\n",
            "cg/jobs/training/cpu.max": "150000 100000\n",
            "cg/jobs/training/cpu.stat": "nr_periods 100\nnr_throttled 10\n",
        },
    )
    group = ControlGroup(tmp_path / "cg", tmp_path / "membership")
    readings(group, 1.0)
    (tmp_path / "cg/jobs/training/cpu.stat").write_text("nr_periods 200\nnr_throttled 60\n")
    assert readings(group, 2.0) == {
        ("cgroup", "memory_used_bytes"): 3000.0,
        ("cgroup", "memory_limit_bytes"): 8e9,  # of the group above
        ("cgroup", "oom_kills"): 3.0,
        ("cgroup", "cpu_limit_cores"): 1.5,
        ("cgroup", "throttled_percent"): 50.0,
    }


def test_limits_of_cgroup_version_1_seen_from_inside_a_container(tmp_path: Path) -> None:
    write_tree(
        tmp_path,
        {
            # The path is the host's; inside the container the group is the root of the mount.
            "membership": "4:memory:/docker/abc\n2:cpuacct,cpu:/docker/abc\n",
            "cg/memory/memory.limit_in_bytes": "4000000000\n",
            "cg/memory/memory.usage_in_bytes": "1000\n",
            "cg/memory/memory.stat": "total_inactive_file 400\n",
            "cg/memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\n",
            "cg/cpu/cpu.cfs_quota_us": "-1\n",
            "cg/cpu/cpu.cfs_period_us": "100000\n",
        },
    )
    group = ControlGroup(tmp_path / "cg", tmp_path / "membership")
    assert readings(group, 1.0) == {
        ("cgroup", "memory_used_bytes"): 600.0,
        ("cgroup", "memory_limit_bytes"): 4e9,
    }


# -- the pace -----------------------------------------------------------------------------------------


class Busy(Source):
    def __init__(self, milliseconds: float, period: float = 0.0) -> None:
        self.period = period
        self.reads = 0
        self._seconds = milliseconds / 1000

    def read(self, now: float) -> Iterator[Reading]:
        self.reads += 1
        until = time.thread_time() + self._seconds
        while time.thread_time() < until:
            pass
        yield "node", "busy", 1.0


def test_costly_sources_are_read_less_often_and_cheap_ones_are_not() -> None:
    cheap, dear = Busy(0.05), Busy(40)
    pace = Pace([cheap, dear], interval=0.5)
    for sample in range(40):
        pace.read(100 + 0.5 * sample)
    assert cheap.reads == 40
    assert dear.reads <= 4
    cheap_period, dear_period = pace.periods()
    assert cheap_period == 0.5
    assert 0.04 / dear_period <= BUDGET


def test_slow_sources_are_read_at_their_own_period() -> None:
    slow = Busy(0, period=5.0)
    pace = Pace([slow], interval=0.5)
    for sample in range(41):  # 20 seconds
        pace.read(100 + 0.5 * sample)
    assert slow.reads == 5


def test_a_source_that_fails_costs_only_itself() -> None:
    class Broken(Source):
        def read(self, now: float) -> Iterator[Reading]:
            yield "node", "before", 1.0
            raise RuntimeError("gone")

    pace = Pace([Broken(), Busy(0)], interval=0.5)
    assert ("node", "busy", 1.0) in pace.read(100.0)
    assert ("node", "busy", 1.0) in pace.read(100.5)


def test_samples_come_as_often_as_asked() -> None:
    rows: list[Any] = []
    sampler = SystemSampler(0.05, rows.extend, lambda: None)
    sampler.start()
    time.sleep(1.5)
    sampler.stop()
    times = {stamp for stamp, *_ in rows}
    assert 10 <= len(times) <= 32


def test_an_interval_that_is_too_short_is_refused() -> None:
    with pytest.raises(ValueError, match=r"system_interval is 0\.01; expected seconds, at least 0\.05"):
        SystemSampler(0.01, lambda rows: None, lambda: None)


# -- NVIDIA devices, through a library that speaks NVML's interface -------------------------------------

READ = """
import json, sys
from stepwatch.probe.system.nvidia import NvidiaDevices
sources = NvidiaDevices().sources()
now = 1.0
for line in sys.stdin:
    found = {}
    for source in sources:
        for device, metric, value in source.read(now):
            found[f"{device} {metric}"] = value
    now += 1.0
    print(json.dumps(found), flush=True)
"""


@pytest.fixture(scope="session")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("nvml")
    command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(folder / "libnvidia-ml.so.1"), str(HERE / "nvml_standin.c")]
    subprocess.run(command, check=True)
    return folder


class Reader:
    """A process that has the stand-in for its driver and reads all fields when told to."""

    def __init__(self, nvml: Path, state: Path) -> None:
        self._state = state
        environment = {**os.environ, "LD_LIBRARY_PATH": str(nvml), "NVML_STANDIN": str(state)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", READ], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )

    def read(self, lines: str | None = None) -> dict[str, float]:
        if lines is not None:
            self._state.write_text(lines)
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        found: dict[str, float] = json.loads(self.process.stdout.readline())
        return found

    def close(self) -> None:
        self.process.communicate()


FULL = """
0 memory_total 85899345920
0 memory_used 42949672960
0 utilization 93
0 memory_utilization 41
0 power 612345
0 power_limit 700000
0 temperature 71
0 clock1 1755
0 clock2 2619
0 throttle 0x20
0 ecc_corrected 4
0 ecc_uncorrected 1
0 remapped_pending 1
0 pcie_rx 1000
0 pcie_tx 2000
0 field138 1000
0 field139 5000
"""


def test_every_field_of_a_device_is_read_under_its_uuid(nvml: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.write_text(FULL)
    reader = Reader(nvml, state)
    first = reader.read()
    second = reader.read(FULL.replace("field139 5000", "field139 9000") + f"0 xid 79\n0 pid {reader.process.pid}\n")
    third = reader.read(FULL + f"0 xid 79\n0 pid {reader.process.pid}\n0 pid_memory 123456\n")
    reader.close()
    uuid = "GPU-00000000-aaaa-bbbb-cccc-0123456789ab"
    assert {key.split()[0] for key in first} == {uuid}
    assert first[f"{uuid} utilization_percent"] == 93
    assert first[f"{uuid} memory_used_bytes"] == 40 << 30
    assert first[f"{uuid} memory_total_bytes"] == 80 << 30
    assert first[f"{uuid} power_watts"] == 612
    assert first[f"{uuid} temperature_celsius"] == 71
    assert (first[f"{uuid} clock_sm_mhz"], first[f"{uuid} clock_memory_mhz"]) == (1755, 2619)
    assert (first[f"{uuid} throttled_thermal"], first[f"{uuid} throttled_power"]) == (1, 0)
    assert (first[f"{uuid} ecc_corrected"], first[f"{uuid} ecc_uncorrected"]) == (4, 1)
    assert first[f"{uuid} pcie_receive_bytes_per_s"] == 1000 * 1024
    assert f"{uuid} nvlink_receive_bytes_per_s" not in first  # a rate needs two readings
    assert second[f"{uuid} nvlink_receive_bytes_per_s"] == 4000 * 1024
    assert second[f"{uuid} xid"] == 79
    assert f"{uuid} xid" not in third, "an error is told once"


def test_a_field_that_a_device_lacks_costs_only_itself(nvml: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.write_text(
        "0 memory_total 1048576\n0 memory_used 1048576\n1 memory_total 1048576\n1 utilization 7\n1 power !15\n"
    )
    reader = Reader(nvml, state)
    first = reader.read()
    # What is not supported is not asked for again; what failed for another reason is.
    second = reader.read(state.read_text() + "0 utilization 9\n1 power 50000\n")
    reader.close()
    one, two = (f"GPU-0000000{index}-aaaa-bbbb-cccc-0123456789ab" for index in (0, 1))
    assert first[f"{one} memory_used_bytes"] == 1048576
    assert first[f"{two} utilization_percent"] == 7
    assert f"{two} power_watts" not in first
    assert second[f"{two} power_watts"] == 50
    assert f"{one} utilization_percent" not in second


def test_mig_instances_are_devices_of_their_own(nvml: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.write_text(
        "0 memory_total 8388608\n0 memory_used 0\n0 mig 2\n100 memory_total 4194304\n100 memory_used 1048576\n"
        "101 memory_total 4194304\n101 memory_used 2097152\n"
    )
    reader = Reader(nvml, state)
    found = reader.read()
    reader.close()
    used = {key.split()[0][:12]: value for key, value in found.items() if key.endswith(" memory_used_bytes")}
    assert used == {"GPU-00000000": 0, "MIG-00000100": 1048576, "MIG-00000101": 2097152}


def test_a_machine_without_a_driver_says_so_once(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    from stepwatch.probe.system.nvidia import NvidiaDevices

    try:
        NvidiaDevices()
    except RuntimeError:
        pass
    else:
        pytest.skip("this machine has an NVIDIA driver")
    with caplog.at_level("INFO", logger="stepwatch"):
        rows: list[Any] = []
        sampler = SystemSampler(0.05, rows.extend, lambda: None)
        sampler.start()
        time.sleep(0.4)
        sampler.stop()
    assert rows
    assert [record.message for record in caplog.records if "GPU" in record.message] == [
        "no GPU is sampled: NVML: NVML Shared Library Not Found; AMD SMI: no driver"
    ]
