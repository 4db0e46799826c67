"""The sidecar's figures and what it finds over OpenTelemetry's protocol (OTLP over HTTP)."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from stepwatch.rules.finding import Severity, json_number
from stepwatch.rules.sidecar.run import Ended, Event, Found, Said
from stepwatch.rules.sidecar.sidecar import Sidecar
from stepwatch.rules.telling.courier import Courier
from stepwatch.rules.telling.posting import Endpoint

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Observation

    Observe = Callable[[CallbackOptions], Iterable[Observation]]

_EXPORT_MILLISECONDS = 15_000
_TIMEOUT_SECONDS = 5.0
_NUMBERS = {Severity.INFO: 9, Severity.WARNING: 13, Severity.ERROR: 17}  # of OpenTelemetry's data model


class OpenTelemetry:
    """Sends metrics every fifteen seconds, and findings as log records of the event ``stepwatch.finding``.

    A collector that is away holds nothing up. What else OpenTelemetry defines is obeyed: OTEL_EXPORTER_OTLP_HEADERS for
    secrets, OTEL_RESOURCE_ATTRIBUTES.

    Args:
        url: of the collector, up to the path that ``/v1/metrics`` and ``/v1/logs`` are added to.
        sidecar: what is watched.
        courier: what waits to be told.

    Raises:
        ValueError: the URL is not one.
        ImportError: OpenTelemetry is not installed.
    """

    def __init__(self, url: str, sidecar: Sidecar, courier: Courier) -> None:
        Endpoint(url, "collector")
        try:
            from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
            from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
            from opentelemetry.sdk._logs import LoggerProvider
            from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
            from opentelemetry.sdk.metrics import MeterProvider
            from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
            from opentelemetry.sdk.resources import Resource
        except ImportError:
            raise ImportError("--otlp needs OpenTelemetry: pip install 'stepwatch[otlp]'") from None
        resource = Resource.create({"service.name": "stepwatch", "host.name": socket.gethostname()})
        base = url.rstrip("/")
        reader = PeriodicExportingMetricReader(
            OTLPMetricExporter(f"{base}/v1/metrics", timeout=_TIMEOUT_SECONDS), _EXPORT_MILLISECONDS
        )
        self._meters = MeterProvider([reader], resource)
        self._logs = LoggerProvider(resource=resource)
        self._logs.add_log_record_processor(
            BatchLogRecordProcessor(OTLPLogExporter(f"{base}/v1/logs", timeout=_TIMEOUT_SECONDS))
        )
        self._logger = self._logs.get_logger("stepwatch")
        meter = self._meters.get_meter("stepwatch")
        self._findings = meter.create_counter("stepwatch.findings", "{finding}", "Findings")
        self._looks = meter.create_histogram("stepwatch.look.duration", "s", "Time that a look at all runs took")
        for name, unit, description, values in _gauges(sidecar, courier):
            meter.create_observable_gauge(name, [_observing(values)], unit, description)

    def see(self, event: Event) -> None:
        """Send it."""
        run = str(event.run)
        if isinstance(event, Found):
            finding = event.finding
            self._findings.add(1, {"rule": finding.rule, "severity": finding.severity.value})
            attributes = {
                "stepwatch.run": run,
                "stepwatch.rule": finding.rule,
                "stepwatch.step": finding.last_step,
                "stepwatch.first_step": finding.first_step,
                "stepwatch.rank": finding.rank,
                "stepwatch.value": json.dumps(json_number(finding.value)),
                "stepwatch.threshold": json.dumps(json_number(finding.threshold)),
                "stepwatch.tensors": list(finding.tensors),
                "stepwatch.suggestion": finding.suggestion,
            }
            self._emit("stepwatch.finding", finding.severity, finding.message, attributes)
        elif isinstance(event, Ended):
            attributes = {"stepwatch.run": run, "stepwatch.status": event.status, "stepwatch.findings": event.findings}
            self._emit(
                "stepwatch.run.ended", Severity.INFO, f"{event.status}, {event.findings} issues found", attributes
            )
        elif isinstance(event, Said):
            self._emit("stepwatch.run.note", Severity.WARNING, event.message, {"stepwatch.run": run})

    def looked(self, seconds: float) -> None:
        """All runs have been looked at."""
        self._looks.record(seconds)

    def close(self) -> None:
        """Send what is left, for some seconds."""
        self._meters.shutdown(timeout_millis=2 * _TIMEOUT_SECONDS * 1000)
        self._logs.shutdown()

    def _emit(self, event: str, severity: Severity, text: str, attributes: dict[str, Any]) -> None:
        from opentelemetry._logs import LogRecord, SeverityNumber

        now = time.time_ns()
        self._logger.emit(
            LogRecord(
                timestamp=now,
                observed_timestamp=now,
                severity_number=SeverityNumber(_NUMBERS[severity]),
                severity_text=severity.value.upper(),
                body=text,
                attributes=attributes,
                event_name=event,
            )
        )


Values = Callable[[], Iterable[tuple[float, dict[str, str]]]]


def _gauges(sidecar: Sidecar, courier: Courier) -> list[tuple[str, str, str, Values]]:
    """Name, unit, description and values of each; a run that is over has none."""

    def of_runs(name: str) -> Values:
        def values() -> Iterable[tuple[float, dict[str, str]]]:
            for job, run, figures in sidecar.figures():
                value = getattr(figures, name)
                if value is not None:
                    yield value, {"job": job, "run": run}

        return values

    def runs() -> Iterable[tuple[float, dict[str, str]]]:
        return [(sidecar.count(ended=ended), {"state": "ended" if ended else "live"}) for ended in (False, True)]

    return [
        ("stepwatch.runs", "{run}", "Runs that are watched", runs),
        ("stepwatch.unreadable_runs", "{run}", "Runs that cannot be read", lambda: [(sidecar.unreadable, {})]),
        ("stepwatch.untold_findings", "{finding}", "Findings that wait in an outbox", lambda: [(courier.waiting, {})]),
        ("stepwatch.run.step", "{step}", "Latest training step judged", of_runs("step")),
        ("stepwatch.run.loss", "1", "Latest training loss", of_runs("loss")),
        ("stepwatch.run.lag", "s", "From the end of that step until it was judged", of_runs("lag")),
        ("stepwatch.run.cpu", "%", "Use of the node's cores", of_runs("cpu_percent")),
        ("stepwatch.run.gpu", "%", "Use of the node's GPUs, their mean", of_runs("gpu_percent")),
    ]


def _observing(values: Values) -> Observe:
    from opentelemetry.metrics import Observation

    return lambda options: [Observation(value, attributes) for value, attributes in values()]
