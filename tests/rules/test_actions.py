"""Actions: done once per finding, recorded, and never in the way."""

from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from stepwatch.probe.store.control import read_request
from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.records import StepRecord
from stepwatch.probe.store.writer import TraceWriter
from stepwatch.rules.actions import Dispatcher, LogAction, StopAction, WebhookAction
from stepwatch.rules.finding import Finding, Severity


def finding(step: int = 3, severity: Severity = Severity.ERROR, rule: str = "ExplodingTensor") -> Finding:
    return Finding(
        rule,
        severity,
        first_step=step,
        last_step=step,
        tensors=("gradient/Net_fc.weight",),
        value=math.inf,
        threshold=0.0,
        message="it blew up",
        suggestion="lower the learning rate",
        evidence={"last": [1.0, math.nan], "unit": "norm"},
    )


class Counting:
    """An action that says how often it was done."""

    name = "count"

    def __init__(self, at_least: Severity = Severity.INFO, fail: bool = False) -> None:
        self.at_least = at_least
        self.fail = fail
        self.seen: list[int] = []

    def apply(self, finding: Finding, run_dir: Path) -> str:
        self.seen.append(finding.last_step)
        if self.fail:
            raise RuntimeError("no route")
        return f"counted {len(self.seen)}"


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    """A run that this process is writing."""
    writer = TraceWriter(tmp_path / "run", run_info={"job_name": "digits"})
    writer.submit(StepRecord(0, "TRAIN", 0, 1))
    writer.flush()
    yield tmp_path / "run"
    writer.close("finished")


def dispatch(run: Path, findings: list[Finding], *actions: Any) -> None:
    dispatcher = Dispatcher(run, actions, judged_by="watch")
    dispatcher.dispatch(findings)
    dispatcher.close()


def recorded(run: Path) -> list[tuple[int, list[tuple[str, str, str]]]]:
    rows = Trace(run).findings()
    return [(r["last_step"], [(a["action"], a["outcome"], a["detail"]) for a in r["actions"]]) for r in rows]


def test_a_finding_is_recorded_and_acted_upon_once_also_after_a_restart(run: Path) -> None:
    action = Counting()
    dispatcher = Dispatcher(run, [action], judged_by="watch")
    dispatcher.dispatch([finding(3)])
    dispatcher.dispatch([finding(3), finding(5)])
    dispatcher.close()
    dispatch(run, [finding(3), finding(5), finding(7)], action)
    assert action.seen == [3, 5, 7]
    assert recorded(run) == [(step, [("count", "done", f"counted {n}")]) for n, step in ((1, 3), (2, 5), (3, 7))]
    (row, *_) = Trace(run).findings()
    assert (row["rule"], row["message"], row["suggestion"]) == (
        "ExplodingTensor",
        "it blew up",
        "lower the learning rate",
    )
    assert row["value"] == math.inf and row["judged_by"] == "watch"
    assert row["evidence"] == {"last": [1.0, "nan"], "unit": "norm"}


def test_what_another_judge_has_done_meanwhile_is_not_repeated(run: Path) -> None:
    mine, other = Counting(), Counting()
    waiting = Dispatcher(run, [mine], judged_by="hook")
    dispatch(run, [finding()], other)
    waiting.dispatch([finding()])
    waiting.close()
    assert (mine.seen, other.seen) == ([], [3])
    assert len(recorded(run)) == 1


def test_a_failing_action_hides_nothing_and_is_tried_again_after_a_restart(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken, sound = Counting(fail=True), LogAction()
    with caplog.at_level(logging.INFO, "stepwatch"):
        dispatch(run, [finding()], broken, sound)
    assert sorted(recorded(run)[0][1]) == [("count", "failed", "RuntimeError: no route"), ("log", "done", "logged")]
    assert f"{run}: ExplodingTensor: it blew up" in caplog.text
    broken.fail = False
    dispatch(run, [finding()], broken, sound)
    assert [outcome for _, outcome, _ in recorded(run)[0][1] if _ != "log"].count("done") == 2
    assert broken.seen == [3, 3]


def test_only_findings_that_are_severe_enough(run: Path) -> None:
    errors, warnings = Counting(Severity.ERROR), Counting(Severity.WARNING)
    warnings.name = "count warnings"
    every = [finding(i, severity) for i, severity in enumerate(Severity)]
    dispatch(run, every, errors, warnings)
    assert errors.seen == [2] and warnings.seen == [1, 2]
    assert len(recorded(run)) == 3
    assert StopAction().at_least is Severity.ERROR


def test_a_slow_action_does_not_hold_up_the_judge_or_the_stop(run: Path) -> None:
    release = threading.Event()

    class Slow(Counting):
        name = "slow"

        def apply(self, finding: Finding, run_dir: Path) -> str:
            release.wait(30)
            return super().apply(finding, run_dir)

    slow, stopped = Slow(), threading.Event()
    dispatcher = Dispatcher(run, [slow, StopAction(lambda reason: stopped.set())], judged_by="hook")
    dispatcher.dispatch([finding()])
    assert stopped.wait(30)
    assert slow.seen == []
    release.set()
    dispatcher.close()
    assert slow.seen == [3]


def test_stop_in_the_process_gets_the_reason(run: Path) -> None:
    reasons: list[str] = []
    dispatch(run, [finding()], StopAction(reasons.append))
    assert reasons == ["ExplodingTensor: it blew up"]
    assert read_request(run) is None


def test_stop_from_outside_asks_a_live_job_and_no_other(run: Path, tmp_path: Path) -> None:
    dispatch(run, [finding()], StopAction())
    request = read_request(run)
    assert request is not None
    assert (request.reason, request.by) == ("ExplodingTensor: it blew up", "watch")
    TraceWriter(tmp_path / "ended").close("finished")
    dispatch(tmp_path / "ended", [finding()], StopAction())
    assert read_request(tmp_path / "ended") is None
    assert recorded(tmp_path / "ended") == [(3, [("stop", "done", "nothing to stop: the job had ended")])]


def test_a_job_that_fails_again_after_a_restart_is_acted_upon_again(tmp_path: Path) -> None:
    run, action = tmp_path / "run", Counting()
    for start in (0, 2, 5):
        writer = TraceWriter(run)
        writer.set_start_step(start)
        dispatch(run, [finding(3)], action)
        writer.close("exception")
    # The third attempt began after step 3: what was found there stands from the second.
    assert action.seen == [3, 3]


def test_findings_come_through_where_the_trace_cannot_be_read_yet(tmp_path: Path) -> None:
    """Rank 1 may find something before rank 0 has written run.json."""
    action = Counting()
    (tmp_path / "run").mkdir()
    dispatch(tmp_path / "run", [finding()], action)
    assert action.seen == [3]
    TraceWriter(tmp_path / "run").close("finished")
    assert recorded(tmp_path / "run") == [(3, [("count", "done", "counted 1")])]


class Server(ThreadingHTTPServer):
    """Answers with the statuses given, then with 200."""

    def __init__(self, statuses: list[int]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.statuses = statuses
        self.bodies: list[dict[str, Any]] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        self.server.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        status = self.server.statuses.pop(0) if self.server.statuses else 200
        if status:
            self.send_response(status)
            self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Any]:
    servers: list[Server] = []

    def start(*statuses: int) -> tuple[Server, str]:
        servers.append(Server(list(statuses)))
        return servers[-1], f"http://127.0.0.1:{servers[-1].server_port}/token-s3cr3t"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_webhook_posts_the_documented_object(run: Path, serve: Any) -> None:
    server, url = serve()
    dispatch(run, [finding()], WebhookAction(url))
    (body,) = server.bodies
    run_id = Trace(run).info.run_id
    told = body["findings"][0].pop("time")
    assert abs(time.time() - datetime.fromisoformat(told.replace("Z", "+00:00")).timestamp()) < 600
    assert body["id"].endswith(f"-0-{finding().id}")
    assert body == {
        "version": 1,
        "id": body["id"],
        "resolved": [],
        "findings": [
            {
                "id": body["id"],
                "run": str(run),
                "job_name": "digits",
                "run_id": run_id,
                "finding": {
                    "rule": "ExplodingTensor",
                    "severity": "error",
                    "first_step": 3,
                    "last_step": 3,
                    "tensors": ["gradient/Net_fc.weight"],
                    "value": "inf",
                    "threshold": 0.0,
                    "message": "it blew up",
                    "suggestion": "lower the learning rate",
                    "evidence": {"last": [1.0, "nan"], "unit": "norm"},
                    "rank": 0,
                    "docs": "",
                },
            }
        ],
    }
    assert recorded(run) == [(3, [("webhook", "done", "posted, answered 200")])]


@pytest.mark.parametrize("trouble", [503, 429, 0])
def test_webhook_tries_again_after_trouble_on_the_way(run: Path, serve: Any, trouble: int) -> None:
    server, url = serve(trouble)
    dispatch(run, [finding()], WebhookAction(url))
    assert len(server.bodies) == 2 and server.bodies[0] == server.bodies[1]
    assert recorded(run) == [(3, [("webhook", "done", "posted, answered 200")])]


def test_webhook_that_is_refused_is_not_tried_again(run: Path, serve: Any) -> None:
    server, url = serve(403, 403)
    dispatch(run, [finding()], WebhookAction(url))
    assert len(server.bodies) == 1
    assert recorded(run) == [(3, [("webhook", "failed", "OSError: not posted in 1 try: answered 403")])]


def test_webhook_that_leads_nowhere_is_given_up_without_telling_its_url(
    run: Path, serve: Any, caplog: pytest.LogCaptureFixture
) -> None:
    server, url = serve()
    server.shutdown()
    server.server_close()
    dispatch(run, [finding()], WebhookAction(url, attempts=2))
    ((_, ((_, outcome, detail),)),) = recorded(run)
    assert outcome == "failed" and "not posted in 2 tries" in detail
    assert "s3cr3t" not in detail + caplog.text
    assert "not posted" in caplog.text


@pytest.mark.parametrize("url", ["ftp://host/s3cr3t", "http:///s3cr3t", "http://host:port/s3cr3t", "http://[s3cr3t"])
def test_webhook_refuses_what_is_no_url_without_repeating_it(url: str) -> None:
    with pytest.raises(ValueError, match=r"http\[s\]://HOST") as error:
        WebhookAction(url)
    assert "s3cr3t" not in str(error.value)


def test_an_action_under_way_is_finished_before_the_process_ends(tmp_path: Path, serve: Any) -> None:
    """A job that ends right after the finding still tells of it."""
    server, url = serve()
    script = f"""
import torch
from torch import nn
from stepwatch.probe import Hook
model = nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
hook = Hook({str(tmp_path / "run")!r}, model=model, optimizer=optimizer, rules="recommended", actions=[{url!r}])
for _ in range(2):
    optimizer.zero_grad()
    (model(torch.full((4, 2), float("nan"))) ** 2).mean().backward()
    optimizer.step()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert {body["findings"][0]["finding"]["rule"] for body in server.bodies} == {
        r["rule"] for r in Trace(tmp_path / "run").findings()
    }
    assert server.bodies
