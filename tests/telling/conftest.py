"""A server that is told, a run, and something found in it."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from stepwatch.probe.store.records import StepRecord
from stepwatch.probe.store.writer import TraceWriter
from stepwatch.rules.finding import Finding, Severity
from stepwatch.rules.telling.notice import Notice


class Server(ThreadingHTTPServer):
    """Answers with the statuses given, then with 200."""

    def __init__(self, *statuses: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.statuses = list(statuses)
        self.requests: list[tuple[dict[str, str], bytes]] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.requests]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/s3cr3t"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append(({key.lower(): value for key, value in self.headers.items()}, body))
        self.send_response(self.server.statuses.pop(0) if self.server.statuses else 200)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server()
    yield one
    one.shutdown()
    one.server_close()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "digits")


def finding(
    step: int = 3, rank: int = 0, rule: str = "ExplodingTensor", severity: Severity = Severity.ERROR
) -> Finding:
    return Finding(
        rule, severity, step, step, ("weight",), float("inf"), 0.0, "it blew up", "lower the rate", rank=rank
    )


def notice(run: Path, step: int = 3, rank: int = 0, rule: str = "ExplodingTensor") -> Notice:
    return Notice.of(run, finding(step, rank, rule), time.time())


def make_run(path: Path) -> Path:
    writer = TraceWriter(path, run_info={"job_name": path.name})
    writer.submit(StepRecord(0, "TRAIN", 0, 1))
    writer.close("finished")
    return path


def free_port() -> int:
    """A port of this machine on which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
