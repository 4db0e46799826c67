"""The sidecar's figures, asked for over HTTP."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from stepwatch.rules.catalogue import configure
from stepwatch.rules.sidecar import metrics as metrics_module
from stepwatch.rules.sidecar.metrics import Metrics
from stepwatch.rules.sidecar.policy import Policy
from stepwatch.rules.sidecar.sidecar import Sidecar
from stepwatch.rules.telling.courier import Courier
from tests.sidecar.conftest import SPECS, Job

Begin = Callable[..., Job]


@pytest.fixture
def served(tmp_path: Path, begin: Begin) -> Iterator[Metrics]:
    job = begin(tmp_path / "runs" / "a")
    use = [
        ("node", "cpu_percent", 40.0),
        ("gpu:a", "utilization_percent", 80.0),
        ("gpu:b", "utilization_percent", 90.0),
    ]
    job._writer.submit_system([(1_000_000_000, *each) for each in use])
    job.train(1, 200, 300)
    begin(tmp_path / "runs" / "b").train(200).end()
    (tmp_path / "runs" / "newer").mkdir()
    (tmp_path / "runs" / "newer" / "run.json").write_text('{"format_version": 9}')
    specs = [*SPECS, *configure(["GpuOverheating"])]
    sidecar = Sidecar([tmp_path / "runs"], lambda trace: Policy("all", tuple(specs)), tmp_path / "state")
    metrics = Metrics("0", sidecar, Courier(tmp_path / "outbox"))
    for event in sidecar.look():
        metrics.see(event)
    metrics.looked(0.1)
    yield metrics
    metrics.close()
    sidecar.close()


def get(metrics: Metrics, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics.port}{path}", timeout=60) as answer:
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


def test_figures_of_live_runs_are_there_and_those_of_others_are_not(served: Metrics) -> None:
    families = {family.name: family for family in text_string_to_metric_families(get(served, "/metrics"))}
    expected = {"step": 2, "loss": 300, "cpu_percent": 40, "gpu_percent": 85}
    for name, value in expected.items():
        (sample,) = families[f"stepwatch_run_{name}"].samples
        assert (sample.labels["name"], Path(sample.labels["run"]).name, sample.value) == ("a", "a", value)
    assert len(families["stepwatch_run_lag_seconds"].samples) == 1


def test_grafanas_dashboard_asks_for_what_is_there(served: Metrics) -> None:
    dashboard = json.loads((Path(__file__).parents[2] / "deploy" / "grafana" / "stepwatch.json").read_text())
    exposed: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(get(served, "/metrics")):
        for sample in family.samples:
            exposed.setdefault(sample.name, set()).update(sample.labels)
    variables = {each["name"] for each in dashboard["templating"]["list"]}
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked += [str(each["definition"]) for each in dashboard["templating"]["list"] if each["type"] == "query"]
    for expression in asked:
        names = re.findall(r"stepwatch_\w+", expression)
        assert names and set(names) <= exposed.keys(), expression
        labels = set(re.findall(r'(\w+)=~?"', expression)) | set(re.findall(r"by \(([^)]*)\)", expression)[:1])
        known = {"instance", "le"}.union(*(exposed[name] for name in names))
        assert {label for part in labels for label in part.split(", ")} <= known, expression
        assert set(re.findall(r"\$(\w+)", expression)) - {"__rate_interval"} <= variables, expression
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in dashboard["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24


def test_a_watcher_logs_lines_of_json(tmp_path: Path, begin: Begin) -> None:
    begin(tmp_path / "runs" / "a").train(1, 200).end("failed")
    (tmp_path / "runs" / "newer").mkdir()
    (tmp_path / "runs" / "newer" / "run.json").write_text('{"format_version": 9}')
    command = [sys.executable, "-m", "stepwatch.cli", "watch", str(tmp_path / "runs"), "--once", "--format", "json"]
    rule = tmp_path / "mine.py"
    rule.write_text("from tests.sidecar.conftest import Spike as Base\n\n\nclass Spike(Base):\n    'The same.'\n")
    command += ["--state", str(tmp_path / "state"), "--rules", f"{rule}:Spike"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 1, done.stderr
    assert all({"time", "level", "event", "message"} <= line.keys() for line in lines)
    events = [line["event"] for line in lines]
    assert {"begun", "found", "ended", "said"} <= set(events) and events.index("begun") < events.index("found")
    (found,) = (line for line in lines if line["event"] == "found")
    assert (found["level"], found["finding"]["rule"]) == ("error", "Spike")
    assert found["run"].endswith("runs/a")
    (ended,) = (line for line in lines if line["event"] == "ended")
    assert (ended["status"], ended["findings"]) == ("failed", 1)
