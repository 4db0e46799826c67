"""The sidecar's figures, asked for over HTTP."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from stepwatch.rules.sidecar import metrics as metrics_module
from stepwatch.rules.sidecar.metrics import Metrics
from stepwatch.rules.sidecar.policy import Policy
from stepwatch.rules.sidecar.sidecar import Sidecar
from stepwatch.rules.telling.courier import Courier
from tests.sidecar.conftest import SPECS, Job

Begin = Callable[..., Job]


@pytest.fixture
def served(tmp_path: Path, begin: Begin) -> Iterator[Metrics]:
    begin(tmp_path / "runs" / "a").train(1, 200, 300)
    begin(tmp_path / "runs" / "b").train(200).end()
    (tmp_path / "runs" / "newer").mkdir()
    (tmp_path / "runs" / "newer" / "run.json").write_text('{"format_version": 9}')
    sidecar = Sidecar([tmp_path / "runs"], lambda trace: Policy("all", tuple(SPECS)), tmp_path / "state")
    metrics = Metrics("0", sidecar, Courier(tmp_path / "outbox"))
    for event in sidecar.look():
        metrics.see(event)
    metrics.looked(0.1)
    yield metrics
    metrics.close()
    sidecar.close()


def get(metrics: Metrics, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics.port}{path}", timeout=10) as answer:
        return str(answer.read().decode())


def test_prometheus_reads_it(served: Metrics) -> None:
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(get(served, "/metrics"))
        for sample in family.samples
    }
    assert samples["stepwatch_runs", "live"] == 1 and samples["stepwatch_runs", "ended"] == 1
    assert samples["stepwatch_findings_total", "Spike", "error"] == 3
    assert samples["stepwatch_judged_steps",] == 3
    assert samples["stepwatch_unreadable_runs",] == 1
    assert samples["stepwatch_look_seconds_count",] == 1


def test_health_is_that_of_the_loop(served: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    assert get(served, "/healthz") == "looked at all runs 0 s ago\n"
    monkeypatch.setattr(metrics_module, "_HEALTHY_SECONDS", -1.0)
    for path, status in (("/healthz", 503), ("/other", 404)):
        with pytest.raises(urllib.error.HTTPError) as error:
            get(served, path)
        assert error.value.code == status


def test_it_listens_on_loopback_only_and_refuses_what_is_no_address(served: Metrics) -> None:
    assert served._server.server_address[0] == "127.0.0.1"
    with pytest.raises(ValueError, match=r"expected \[HOST:\]PORT"):
        Metrics("localhost", None, None)  # type: ignore[arg-type]
