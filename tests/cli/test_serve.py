"""The server: what it shows, to whom, and in a real browser while a real job trains."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from stepwatch.probe.store.findings import FindingLog
from stepwatch.probe.store.labels import change_labels
from stepwatch.probe.store.records import StepRecord
from stepwatch.probe.store.writer import TraceWriter

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = "<img src=x onerror=alert(1)>"

LIVE = """
import sys, time, torch
from torch import nn
from stepwatch.probe import Hook, SaveConfig
torch.set_num_threads(1)
model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
with Hook(sys.argv[1], model=model, optimizer=optimizer, system_interval=0, save_config=SaveConfig(save_interval=10)):
    while True:
        optimizer.zero_grad()
        (model(torch.randn(8, 4)) ** 2).mean().backward()
        optimizer.step()
        time.sleep(0.02)
"""


def write(run: Path, steps: int, *, finding: str = "") -> None:
    writer = TraceWriter(run, run_info={"job_name": f"job {HOSTILE}"})
    for step in range(steps):
        writer.submit(StepRecord(step, "TRAIN", step, step * 10**9, scalars=[("train_loss", 1.0 / (1 + step))]))
    writer.close("finished", last_step=steps)
    if finding:
        FindingLog(run, "hook").append([{"finding_id": "1", "rule": finding, "last_step": 3, "message": "m"}])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    write(folder / "first", 20)
    change_labels(folder / "first", add=["sweep-7"], note="the first one")
    write(folder / "deep" / "second", 30, finding="DivergingLoss")
    (folder / "broken").mkdir()
    (folder / "broken" / "run.json").write_text("{")
    (folder.parent / "secret.txt").write_text("secret")
    return folder


@contextmanager
def serving(folder: Path, *args: str, **env: str) -> Iterator[str]:
    """A server of its own process; yields the address that it printed."""
    command = [sys.executable, "-m", "stepwatch.cli", "serve", str(folder), "--port", "0", *args]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **env}
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.send_signal(signal.SIGINT)
        _, problems = process.communicate(timeout=30)
    assert process.returncode == 130 and problems == "stepwatch: interrupted\n"


def get(address: str, path: str, **headers: str) -> tuple[int, dict[str, str], str]:
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=30)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, body


@pytest.fixture(scope="module")
def server(runs: Path) -> Iterator[str]:
    with serving(runs) as address:
        yield address


def test_every_run_is_listed_with_how_it_stands(server: str) -> None:
    _, _, body = get(server, "/api/runs")
    rows = {row["run"]: row for row in json.loads(body)["runs"]}
    assert set(rows) == {"first", "deep/second", "broken"}
    assert (rows["first"]["status"], rows["first"]["step"], rows["first"]["loss"]) == ("finished", 19, 0.05)
    assert rows["deep/second"]["findings"] == ["DivergingLoss"]
    assert rows["broken"]["status"] == "unreadable" and "not valid JSON" in rows["broken"]["error"]


def test_a_report_is_a_page_of_its_run(server: str) -> None:
    status, headers, body = get(server, "/report?run=deep/second")
    assert status == 200 and headers["content-type"].startswith("text/html")
    assert "Stepwatch report" in body and HOSTILE not in body


@pytest.mark.parametrize("run", ["..", "../secret.txt", "/etc", "deep", "nothing", "", "first/../first"])
def test_only_runs_below_the_directory_are_served(server: str, run: str) -> None:
    for path in ("/report", "/api/run"):
        assert get(server, f"{path}?run={run}")[0] == 404
    assert get(server, "/../secret.txt")[0] == 404
    assert get(server, "/report")[0] == 404


def test_pages_forbid_what_they_do_not_need(server: str) -> None:
    for path in ("/", "/run?run=first", "/list.js", "/run.js", "/style.css"):
        status, headers, body = get(server, path)
        assert status == 200 and body
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"
        assert "unsafe" not in headers["content-security-policy"]


def test_a_name_of_another_site_is_refused(server: str) -> None:
    assert get(server, "/", Host="evil.example")[0] == 403
    assert get(server, "/", Host="localhost")[0] == 200


def test_other_machines_need_the_token(runs: Path) -> None:
    with serving(runs, "--host", "0.0.0.0", STEPWATCH_TOKEN="a long secret") as address:
        assert parse_qs(urlsplit(address).query) == {"token": ["a long secret"]}
        here = address.replace("0.0.0.0", "127.0.0.1")
        for path in ("/", "/api/runs", "/report?run=first", "/style.css", "/?token=wrong"):
            status, _, body = get(here, path)
            assert status == 401 and "stepwatch serve" in body
        assert get(here, "/api/runs", Authorization="Bearer a long secret")[0] == 200
        status, headers, _ = get(here, "/run?token=a%20long%20secret&run=first")
        assert status == 302 and headers["location"] == "/run?run=first"
        cookie = headers["set-cookie"].partition(";")[0]
        assert "HttpOnly" in headers["set-cookie"] and "SameSite=Strict" in headers["set-cookie"]
        assert get(here, "/api/runs", Cookie=cookie)[0] == 200


def test_what_cannot_be_served_is_one_line(runs: Path, server: str) -> None:
    port = str(urlsplit(server).port)
    for arguments, text in (([runs / "none"], "no such directory"), ([runs, "--port", port], "in use")):
        command = [sys.executable, "-m", "stepwatch.cli", "serve", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and text in done.stderr


@pytest.mark.skipif(BROWSER is None, reason="no browser")
def test_in_a_browser_while_a_job_trains(runs: Path, tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    folder = tmp_path / "runs"
    shutil.copytree(runs, folder)
    job = subprocess.Popen([sys.executable, "-c", LIVE, str(folder / "live")])
    try:
        with serving(folder) as address, playwright.sync_playwright() as p:
            browser = p.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
            page = browser.new_page()
            problems: list[str] = []
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
            page.on("dialog", lambda dialog: problems.append("a dialog opened"))
            _look(page, address)
            assert problems == []
            browser.close()
    finally:
        job.kill()
        job.wait()


def _look(page: Any, address: str) -> None:
    page.goto(address)
    page.locator(".badge", has_text="live").wait_for(timeout=120_000)
    assert page.locator("#count").inner_text() == "4 of 4 runs"
    page.fill("#search", "diverging")
    assert page.locator("#runs tr").count() == 1
    page.fill("#search", "sweep-7")
    assert page.locator("#runs tr").count() == 1 and page.locator("#runs .badge.tag").inner_text() == "sweep-7"
    page.fill("#search", "")
    page.select_option("#status", "live")
    assert page.locator("#count").inner_text() == "1 of 4 runs"
    page.locator("#runs a").click()
    report = page.frame_locator("#report")
    report.locator("h1").wait_for(timeout=120_000)
    report.locator(".bk-Figure, .bk-Canvas, canvas").first.wait_for(timeout=120_000)
    choice = report.locator("#layer-choice")
    choice.locator("option").nth(1).wait_for(state="attached", timeout=120_000)
    choice.select_option(index=1)
    chosen = choice.input_value()
    state = page.locator("#state")
    page.locator("#state", has_text="step ").wait_for(timeout=120_000)
    before = int(state.inner_text().split("step ")[1].split(",")[0])
    deadline = time.monotonic() + 90
    while int(state.inner_text().split("step ")[1].split(",")[0]) <= before and time.monotonic() < deadline:
        page.wait_for_timeout(200)
    assert int(state.inner_text().split("step ")[1].split(",")[0]) > before
    first = page.locator("#report").get_attribute("src")
    deadline = time.monotonic() + 120  # it is made anew for that, beside other work perhaps
    while page.locator("#report").get_attribute("src") == first and time.monotonic() < deadline:
        page.wait_for_timeout(200)
    assert page.locator("#report").get_attribute("src") != first, "the report follows the run"
    report.locator("#layer-table tr").first.wait_for(timeout=120_000)
    assert report.locator("#layer-choice").input_value() == chosen, "and shows the layer that was looked at"
