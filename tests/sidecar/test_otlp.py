"""What the sidecar sends by OTLP, decoded by a real receiver."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from stepwatch.rules.sidecar.otlp import OpenTelemetry
from stepwatch.rules.sidecar.policy import Policy
from stepwatch.rules.sidecar.sidecar import Sidecar
from stepwatch.rules.telling.courier import Courier
from tests.sidecar.conftest import SPECS, Job

Begin = Callable[..., Job]


class Collector(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.metrics: list[Any] = []
        self.logs: list[Any] = []
        self.secrets: set[str | None] = set()
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.secrets.add(self.headers["x-token"])
        if self.path == "/in/v1/metrics":
            self.server.metrics.append(ExportMetricsServiceRequest.FromString(body))
        elif self.path == "/in/v1/logs":
            self.server.logs.append(ExportLogsServiceRequest.FromString(body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    one = Collector()
    yield one
    one.shutdown()
    one.server_close()


def plain(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, str(each.value.WhichOneof("value"))) for each in attributes}


def test_metrics_and_findings_arrive(
    tmp_path: Path, begin: Begin, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-token=s3cr3t")
    begin(tmp_path / "runs" / "a").train(1, 200)
    begin(tmp_path / "runs" / "b").train(1).end()
    sidecar = Sidecar([tmp_path / "runs"], lambda trace: Policy("all", tuple(SPECS)), tmp_path / "state")
    url = f"http://127.0.0.1:{collector.server_port}/in/"
    telemetry = OpenTelemetry(url, sidecar, Courier(tmp_path / "outbox"))
    for event in sidecar.look():
        telemetry.see(event)
    telemetry.looked(0.25)
    telemetry.close()
    sidecar.close()
    assert collector.secrets == {"s3cr3t"}
    (resource,) = collector.metrics[-1].resource_metrics
    assert plain(resource.resource.attributes)["service.name"] == "stepwatch"
    metrics = {metric.name: metric for scope in resource.scope_metrics for metric in scope.metrics}
    states = {plain(p.attributes)["state"]: p.as_int for p in metrics["stepwatch.runs"].gauge.data_points}
    assert states == {"live": 1, "ended": 1}
    (findings,) = metrics["stepwatch.findings"].sum.data_points
    assert plain(findings.attributes) == {"rule": "Spike", "severity": "error"} and findings.as_int == 1
    (loss,) = metrics["stepwatch.run.loss"].gauge.data_points
    assert loss.as_double == 200 and plain(loss.attributes)["job"] == "a"
    assert metrics["stepwatch.look.duration"].histogram.data_points[0].sum == 0.25
    records = [record for scope in collector.logs[0].resource_logs[0].scope_logs for record in scope.log_records]
    (found,) = (record for record in records if record.event_name == "stepwatch.finding")
    assert (found.severity_text, found.severity_number, found.body.string_value) == ("ERROR", 17, "loss is 200")
    attributes = plain(found.attributes)
    assert (attributes["stepwatch.rule"], attributes["stepwatch.step"]) == ("Spike", 1)
    (ended,) = (record for record in records if record.event_name == "stepwatch.run.ended")
    assert plain(ended.attributes)["stepwatch.status"] == "finished"


def test_a_collector_that_is_no_url_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the collector's URL is not of the form http\[s\]://HOST"):
        OpenTelemetry("localhost:4317", None, None)  # type: ignore[arg-type]
