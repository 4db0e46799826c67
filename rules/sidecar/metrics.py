"""The sidecar's own figures over HTTP: /metrics for Prometheus, /healthz."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from stepwatch.rules.sidecar.run import Event, Found
from stepwatch.rules.sidecar.sidecar import Sidecar
from stepwatch.rules.telling.courier import Courier

_HEALTHY_SECONDS = 60.0
_RUN = ("name", "run")  # Prometheus has a label "job" of its own


class Metrics:
    """Serves /metrics and /healthz; changes nothing and asks for no credentials, so it belongs on loopback.

    Args:
        address: ``[HOST:]PORT``; 127.0.0.1 by default. Port 0 takes a free one.
        sidecar: what is watched.
        courier: what waits to be told.

    Raises:
        ValueError: the address is not one.
        OSError: nothing can listen there.
        ImportError: prometheus-client is not installed.
    """

    def __init__(self, address: str, sidecar: Sidecar, courier: Courier) -> None:
        try:
            from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, make_wsgi_app
        except ImportError:
            raise ImportError("--listen needs prometheus-client: pip install 'stepwatch[metrics]'") from None
        host, _, port = address.rpartition(":")
        if not port.isdecimal():
            raise ValueError(f"--listen is {address!r}; expected [HOST:]PORT")
        registry = CollectorRegistry()
        self._findings = Counter("stepwatch_findings", "Findings", ["rule", "severity"], registry=registry)
        self._looks = Histogram("stepwatch_look_seconds", "Time that a look at all runs took", registry=registry)
        runs = Gauge("stepwatch_runs", "Runs that are watched", ["state"], registry=registry)
        runs.labels("live").set_function(lambda: sidecar.count(ended=False))
        runs.labels("ended").set_function(lambda: sidecar.count(ended=True))
        troubles = Gauge("stepwatch_unreadable_runs", "Runs that cannot be read", registry=registry)
        troubles.set_function(lambda: sidecar.unreadable)
        waiting = Gauge("stepwatch_untold_findings", "Findings that wait in an outbox", registry=registry)
        waiting.set_function(lambda: courier.waiting)
        steps = Gauge("stepwatch_judged_steps", "Steps of live runs that were judged", registry=registry)
        steps.set_function(lambda: sidecar.steps)
        registry.register(_RunFigures(sidecar))
        self._looked = time.monotonic()
        self._metrics = make_wsgi_app(registry)
        self._server = make_server(host or "127.0.0.1", int(port), self._answer, _Server, _Quiet)
        threading.Thread(target=self._server.serve_forever, name="stepwatch-metrics", daemon=True).start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._server.server_port

    def see(self, event: Event) -> None:
        """Count it."""
        if isinstance(event, Found):
            self._findings.labels(event.finding.rule, event.finding.severity.value).inc()

    def looked(self, seconds: float) -> None:
        """All runs have been looked at."""
        self._looks.observe(seconds)
        self._looked = time.monotonic()

    def close(self) -> None:
        """No longer listen."""
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            answer: Iterable[bytes] = self._metrics(environ, start)
            return answer
        if path != "/healthz":
            start("404 Not Found", [("Content-Type", "text/plain")])
            return [b"expected /metrics or /healthz\n"]
        age = time.monotonic() - self._looked
        start("200 OK" if age < _HEALTHY_SECONDS else "503 Service Unavailable", [("Content-Type", "text/plain")])
        return [f"looked at all runs {age:.0f} s ago\n".encode()]


class _RunFigures:
    """Figures of each live run, read when they are asked for, so that a run that is over has none."""

    def __init__(self, sidecar: Sidecar) -> None:
        self._sidecar = sidecar

    def collect(self) -> Iterator[Any]:
        """As prometheus-client wants them."""
        from prometheus_client.core import GaugeMetricFamily

        steps = GaugeMetricFamily("stepwatch_run_step", "Latest training step judged", labels=_RUN)
        losses = GaugeMetricFamily("stepwatch_run_loss", "Latest training loss", labels=_RUN)
        times = GaugeMetricFamily("stepwatch_run_step_timestamp_seconds", "When that step was over", labels=_RUN)
        lags = GaugeMetricFamily("stepwatch_run_lag_seconds", "From then until it was judged", labels=_RUN)
        cpus = GaugeMetricFamily("stepwatch_run_cpu_percent", "Use of the node's cores", labels=_RUN)
        gpus = GaugeMetricFamily("stepwatch_run_gpu_percent", "Use of the node's GPUs, their mean", labels=_RUN)
        for name, run, figures in self._sidecar.figures():
            steps.add_metric([name, run], figures.step)
            times.add_metric([name, run], figures.ended)
            lags.add_metric([name, run], figures.lag)
            for family, value in ((losses, figures.loss), (cpus, figures.cpu_percent), (gpus, figures.gpu_percent)):
                if value is not None:
                    family.add_metric([name, run], value)
        yield from (steps, losses, times, lags, cpus, gpus)


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""
