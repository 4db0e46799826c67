"""The report, of real traces, read as text and opened in a real browser."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from playwright.sync_api import expect, sync_playwright
from torch import nn

from stepwatch.cli.report.downsample import bucket_max, keep_extremes
from stepwatch.cli.report.page import write_report
from stepwatch.probe import Hook, SaveConfig
from stepwatch.probe.store.labels import change_labels
from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.records import StepRecord, TensorInfo
from stepwatch.probe.store.schema import STAT_COLUMNS
from stepwatch.probe.store.writer import TraceWriter
from stepwatch.rules.catalogue import configure

HOSTILE = "</script><img src=x onerror=alert(1)>&'\"{{7*7}}"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def make_run(
    path: Path,
    *,
    steps: int,
    tensors: int,
    every: int = 1,
    name: str = "Net",
    nan_at: int = -1,
    rank: int = 0,
    ranks: int = 1,
) -> Trace:
    run_info = {"job_name": f"job {name}", "command": ["python", name], "world_size": ranks}
    writer = TraceWriter(path, rank=rank, run_info=run_info, queue_bytes=1 << 30)
    names = tuple(f"gradient/{name}_{i}.weight" for i in range(tensors))
    for order, tensor in enumerate(names):
        writer.describe(TensorInfo(tensor, (4, 4), "float32", ("gradients",), f"{order}", "Linear", order))
    generator = np.random.default_rng(rank)
    start = 10**18
    for step in range(steps):
        saved = step % every == 0
        matrix = np.abs(generator.normal(size=(tensors, len(STAT_COLUMNS)))) * 0.01
        matrix[:, :4] = [16, 0, 0, 0]
        loss = 2.0 * math.exp(-step / (steps / 3)) + 0.01 * generator.normal()
        if 0 <= nan_at <= step:
            loss, matrix[:, 1] = math.nan, 3
        writer.submit(
            StepRecord(
                step,
                "TRAIN",
                step,
                start + step * 10**7,
                names=names,
                stats=matrix if saved else None,
                scalars=[("loss_output_0", loss), (f"metric {name}", float(generator.normal()))],
                timing={"duration_ns": 10**7, "forward_ns": 3 * 10**6, "backward_ns": 5 * 10**6},
                saved=saved,
            )
        )
    writer.submit_system([(start + i * 10**8, "node", "cpu_percent", float(i % 100)) for i in range(200)])
    writer.close("finished", last_step=steps)
    return Trace(path)


class Text(HTMLParser):
    """Collects visible text, tags and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._hidden += tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.text.append(data)


def parse(page: Path) -> tuple[str, list[tuple[str, dict[str, str | None]]]]:
    parser = Text()
    parser.feed(page.read_text())
    return re.sub(r"\s+", " ", " ".join(parser.text)), parser.tags


def test_the_page_says_what_happened(tmp_path: Path) -> None:
    trace = make_run(tmp_path / "run", steps=60, tensors=6, nan_at=40)
    text, _ = parse(write_report(trace, tmp_path / "r.html", configure(None)))
    assert "Issues found" in text
    assert "gradient/Net_5.weight holds NaN in 3 of 16 entries at step 40" in text
    assert "About this rule: docs/rules/ExplodingTensor.md" in text
    assert "Try:" in text and "not decided" in text and "finished after 60 steps" in text
    assert "Gradients by layer" in text and "Where the step's time goes" in text


def test_a_healthy_run_is_not_green_for_rules_that_could_not_decide(tmp_path: Path) -> None:
    trace = make_run(tmp_path / "run", steps=30, tensors=6)
    text, _ = parse(write_report(trace, tmp_path / "r.html", configure(["DeadRelu", "StalledLoss"])))
    assert "Not decided" in text and "No rule could decide" in text
    assert "no issue" not in text.lower().replace("no issue was", "")


def test_ranks_stand_side_by_side_and_what_is_missing_is_said(tmp_path: Path) -> None:
    for rank in (0, 1):
        trace = make_run(tmp_path / "run", steps=30, tensors=2, rank=rank, ranks=3)
    text, _ = parse(write_report(trace, tmp_path / "r.html", configure(["DeadRelu"])))
    shown = text.partition("Ranks side by side")[2]
    assert "Norm of the gradients" in shown and "rank 0 finished 30" in shown and "rank 1 finished 30" in shown
    missing = shown.partition("What was not, and why")[2]
    assert "no weights, biases, activations: the job has none" in missing
    assert "1 of 3 ranks" in missing


def test_hostile_names_are_text(tmp_path: Path) -> None:
    trace = make_run(tmp_path / "run", steps=60, tensors=3, name=HOSTILE, nan_at=30)
    change_labels(trace.path, add=["sweep-7"], note=f"note {HOSTILE}")
    text, tags = parse(write_report(trace, tmp_path / "r.html", configure(None)))
    assert HOSTILE in text and f"#sweep-7: note {HOSTILE}" in text
    assert not [tag for tag, attributes in tags if tag == "img" or any(name.startswith("on") for name in attributes)]
    scripts = [attributes.get("type") for tag, attributes in tags if tag == "script"]
    assert scripts.count(None) == 3 and scripts.count("application/json") == 1


def test_nothing_may_be_fetched(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path / "run", steps=20, tensors=2), tmp_path / "r.html", configure(None))
    _, tags = parse(page)
    policy = next(a["content"] for t, a in tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy and "script-src 'unsafe" not in policy
    assert not [
        a for t, a in tags if t in ("link", "iframe") or a.get("src") or not (a.get("href") or "#").startswith("#")
    ]


def test_a_long_run_of_many_layers_stays_small(tmp_path: Path) -> None:
    trace = make_run(tmp_path / "run", steps=5_000, tensors=300, every=10)
    page = write_report(trace, tmp_path / "r.html", configure(None))
    assert page.stat().st_size < 5e6


@given(arrays(np.float64, st.integers(1, 400), elements=st.floats(width=32)), st.integers(4, 60))
@settings(max_examples=200, deadline=None)
def test_thinned_series_keep_their_extremes_and_order(values: np.ndarray, size: int) -> None:
    kept = keep_extremes(values, size)
    assert len(kept) <= max(size, 4)
    assert (np.diff(kept) > 0).all()
    assert kept[0] == 0 and kept[-1] == len(values) - 1
    if np.isfinite(values).all():
        assert values[kept].min() == values.min() and values[kept].max() == values.max()
    else:
        assert not np.isfinite(values[kept]).all()


@given(
    arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(1, 50)), elements=st.floats(-1e6, 1e6)),
    st.integers(1, 20),
)
@settings(max_examples=100, deadline=None)
def test_joined_columns_keep_the_largest(matrix: np.ndarray, size: int) -> None:
    joined, starts = bucket_max(matrix, size)
    assert joined.shape == (len(matrix), len(starts)) and len(starts) <= size
    ends = [*starts[1:], matrix.shape[1]]
    for column, (start, end) in enumerate(zip(starts, ends, strict=True)):
        np.testing.assert_array_equal(joined[:, column], matrix[:, start:end].max(axis=1))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    return write_report(make_run(folder / "run", steps=80, tensors=6, nan_at=60), folder / "r.html", configure(None))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if BROWSER is None:
        pytest.skip("no Chromium on this machine: the page cannot be opened")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.parametrize("look", ["light", "dark", "phone"])
def test_a_browser_draws_it_without_a_complaint(page: Path, browser: Any, tmp_path: Path, look: str) -> None:
    width, scheme = (390, "light") if look == "phone" else (1100, look)
    tab = browser.new_page(viewport={"width": width, "height": 1000}, color_scheme=scheme)
    complaints: list[str] = []
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    tab.goto(f"file://{page}")
    # The script that draws a layer runs when the charts are there.
    tab.locator("#layer-table tr").first.wait_for(timeout=60_000)
    assert tab.locator(".bk-Figure").count() >= 8
    assert complaints == []
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "nothing is wider than the screen"
    tab.screenshot(path=tmp_path / "page.png", full_page=True)
    from PIL import Image

    with Image.open(tmp_path / "page.png") as image:
        corner = image.convert("RGB").getpixel((3, 3))
        colours = len(image.convert("RGB").resize((200, 400)).getcolors(100_000) or [])
    assert (sum(corner) < 200) == (look == "dark")
    assert colours > 200
    tab.close()


def test_a_layer_is_chosen_by_a_finding_a_list_and_a_heat_map(page: Path, browser: Any) -> None:
    tab = browser.new_page(viewport={"width": 1100, "height": 1000})
    tab.goto(f"file://{page}")
    tab.locator("#layer-table tr").first.wait_for(timeout=60_000)
    choice = tab.locator("#layer-choice")
    assert "ExplodingTensor" in tab.locator("#layer-findings").inner_text(), "one that a finding names comes first"
    choice.select_option("2")
    assert tab.locator("#layer-table button").inner_text() == "gradient/Net_2.weight"
    assert tab.locator("#layer-spread-name").inner_text() == "gradient/Net_2.weight"
    assert tab.locator("#layer-table td").last.inner_text() == "yes", "it held NaN"
    values = tab.evaluate("Bokeh.documents[0].get_model_by_name('layer-spread').data.low")
    assert len(values) == 80 and all(value >= 0 for value in values)
    tab.locator(".finding a", has_text="gradient/Net_5.weight").first.click()
    expect(choice).to_have_value("5", timeout=60_000)
    heat = tab.locator("section[aria-labelledby=gradients-title] .bk-Figure")
    box = heat.bounding_box()
    assert box is not None
    heat.click(position={"x": box["width"] / 2, "y": 40})  # below the toolbar: the first layer
    expect(choice).to_have_value("0", timeout=60_000)
    tab.close()


def test_ranks_of_which_no_gradients_were_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        model = nn.Linear(4, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        every = SaveConfig(save_interval=1)
        with Hook(
            tmp_path / "run", model=model, optimizer=optimizer, include_collections=["weights"], save_config=every
        ):
            for _ in range(3):
                model(torch.randn(8, 4)).square().sum().backward()
                optimizer.step()
    write_report(Trace(tmp_path / "run"), tmp_path / "r.html", configure(None))
    assert "median gradient norm" in (tmp_path / "r.html").read_text()
