"""AMD devices, by a module that stands in for the library (see there)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from stepwatch.probe.sampler import open_sources
from stepwatch.probe.system import amd
from tests.probe import amdsmi_standin

ONE, TWO = (f"GPU-{number}2ff74a0-0000-1000-80b9-0123456789ab" for number in (0, 1))


@pytest.fixture(autouse=True)
def library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "amdsmi", amdsmi_standin)
    monkeypatch.setattr(amd, "DRIVER", tmp_path)
    monkeypatch.setattr(amdsmi_standin, "asked", [])
    monkeypatch.setattr(amdsmi_standin, "failing", {})


def read(devices: amd.AmdDevices) -> dict[tuple[str, str], float]:
    return {(uuid, metric): value for source in devices.sources() for uuid, metric, value in source.read(1.0)}


def test_every_field_is_read_under_the_names_that_rules_know() -> None:
    found = read(amd.AmdDevices(pid=4711))
    assert {metric: value for (uuid, metric), value in found.items() if uuid == ONE} == {
        "utilization_percent": 93,
        "memory_used_bytes": 40 << 30,
        "power_watts": 612,
        "clock_sm_mhz": 2100,
        "memory_total_bytes": 192 << 30,
        "memory_utilization_percent": 41,
        "temperature_celsius": 71,
        "power_limit_watts": 750,
        "clock_memory_mhz": 1300,
        "processes": 1,
        "own_memory_bytes": 5 << 30,
        "ecc_corrected": 4,
        "ecc_uncorrected": 1,
    }


def test_a_field_that_a_device_lacks_costs_only_itself_and_only_once() -> None:
    amdsmi_standin.failing = {("activity", 1): 2, ("power", 1): 30}  # not supported; busy
    sources = amd.AmdDevices().sources()
    use = {(uuid, metric) for uuid, metric, _ in sources[0].read(1.0)}
    assert (ONE, "utilization_percent") in use and (TWO, "utilization_percent") not in use
    assert (TWO, "power_watts") not in use and (TWO, "memory_used_bytes") in use
    amdsmi_standin.failing.clear()
    asked = len(amdsmi_standin.asked)
    again = {(uuid, metric) for uuid, metric, _ in sources[0].read(2.0)}
    assert (TWO, "power_watts") in again, "what failed for another reason is asked for again"
    assert ("activity", 1) not in amdsmi_standin.asked[asked:], "what is not supported is not"
    health = {(uuid, metric) for uuid, metric, _ in sources[1].read(1.0)}
    assert (ONE, "memory_utilization_percent") in health and (TWO, "memory_utilization_percent") not in health


def test_the_sampler_reads_them(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="stepwatch"):
        sources = open_sources([])
    assert sum(type(source).__module__ == amd.__name__ for source in sources) == 2
    assert not [record for record in caplog.records if "no GPU" in record.message]


def test_a_library_that_fails_is_told_in_one_line() -> None:
    amdsmi_standin.failing = {("init", -1): 32}
    with pytest.raises(RuntimeError, match=r"^AMD SMI: 32$"):
        amd.AmdDevices()


def test_a_driver_without_the_library_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "amdsmi", None)
    with pytest.raises(RuntimeError, match="the driver is there, amdsmi cannot be loaded"):
        amd.AmdDevices()
