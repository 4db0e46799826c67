"""The page about a comparison, read as text and opened in a real browser."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from stepwatch.rules.testing import SyntheticRun
from tests.command import stepwatch
from tests.report.test_report import HOSTILE, parse

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for name, leaves in (("base", 1.0), ("same", 1.0), ("other", 5.0)):
        run = SyntheticRun(60).loss(lambda step, leaves=leaves: 1.0 + 0.001 * (step % 3) + (step >= 30) * (leaves - 1))
        weights = lambda step, leaves=leaves: 0.1 * (leaves if step >= 20 else 1.0)  # noqa: E731
        run.weights({f"fc{HOSTILE}.weight": weights}).scalar(f"metric {HOSTILE}", lambda step: float(step % 7))
        run.write(folder / name)
    return folder


@pytest.fixture(scope="module")
def page(runs: Path) -> Path:
    done = stepwatch("compare", *(runs / name for name in ("base", "same", "other")), "-o", runs / "compare.html")
    assert (done.returncode, done.stdout) == (0, f"{runs / 'compare.html'}\n"), done.stderr
    return runs / "compare.html"


def test_the_page_says_where_runs_part_and_which_is_better(page: Path) -> None:
    text, tags = parse(page)
    assert "base is better than other by 4, since step 30." in text
    assert "same is the same bit for bit in all that both recorded." in text
    assert "to part is fc" in text and "at step 20" in text and HOSTILE in text
    assert not [tag for tag, attributes in tags if tag == "img" or any(name.startswith("on") for name in attributes)]
    assert page.stat().st_size < 3_000_000


@pytest.mark.skipif(BROWSER is None, reason="no browser")
def test_a_browser_draws_the_plots_side_by_side(page: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 390, "height": 800})
        problems: list[str] = []
        opened.on("pageerror", lambda error: problems.append(str(error)))
        opened.on("dialog", lambda dialog: problems.append("a dialog opened"))
        opened.on("request", lambda asked: None if asked.url.startswith("file:") else problems.append(asked.url))
        opened.goto(f"file://{page}")
        opened.locator(".bk-Figure").nth(5).wait_for(state="attached", timeout=60_000)
        assert problems == []
        assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it fits a phone"
        browser.close()


def test_a_page_that_cannot_be_written_is_one_line(runs: Path) -> None:
    done = stepwatch("compare", runs / "base", runs / "other", "-o", runs / "nowhere" / "compare.html")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "nowhere" in done.stderr
