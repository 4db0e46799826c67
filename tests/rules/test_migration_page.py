"""The page about moving over from smdebug: every row of its tables names what shows it, and what it says is so."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from stepwatch.probe import Hook, SaveConfig
from stepwatch.probe.smdebug import hook as smdebug
from stepwatch.probe.smdebug.configuration import ReductionConfig
from stepwatch.probe.smdebug.configuration import SaveConfig as SMDebugSaveConfig
from stepwatch.rules.smdebug import install
from stepwatch.rules.smdebug.modules import MODULES
from stepwatch.rules.trial import Trial, create_trial

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "migrating-from-smdebug.md").read_text()
MEASURED = "ratio"  # the table of times, which the benchmark prints


def rows() -> list[str]:
    tables = re.findall(r"^(\|.*)\n\|[-|:]+\|\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    return [row for head, body in tables if MEASURED not in head for row in body.splitlines()]


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[2:40])
def test_every_row_names_a_test_that_is_there(row: str) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row)
    assert named, "no test is named"
    for file, test in named:
        assert re.search(rf"^def {test}\(", (ROOT / file).read_text(), re.MULTILINE), f"{file} has no {test}"


@pytest.mark.parametrize("row", [row for row in rows() if row.startswith("| `smdebug")], ids=lambda row: row[2:40])
def test_every_name_of_a_module_is_there(row: str) -> None:
    install()
    first, names, _ = row.strip("|").split(" | ")
    roots = tuple(re.findall(r"`([\w.]+)`", first))
    there = [name for name in MODULES if name.startswith(roots)]
    for name in re.findall(r"`([\w.]+)`", names):
        *_, last = name.split(".")
        found = any(module.endswith(f".{name}") for module in there) or any(
            hasattr(importlib.import_module(module), last) for module in there
        )
        assert found, f"{name} is nowhere below {', '.join(roots)}"


def trained(hook: Hook | smdebug.Hook, model: torch.nn.Module, path: Path) -> Trial:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if isinstance(hook, Hook):
        hook.watch_optimizer(optimizer)
        hook.watch_model(model)
    else:
        hook.register_module(model)
    for _ in range(2):
        torch.nn.functional.mse_loss(model(torch.ones(4, 3)), torch.zeros(4, 2)).backward()
        optimizer.step()
    hook.close()
    return create_trial(path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trial, Trial, np.ndarray]:
    """The same first step by our hook and by smdebug's, and the weights before it."""
    folder = tmp_path_factory.mktemp("both")
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    weights = model.weight.detach().clone().numpy()
    state = {name: each.clone() for name, each in model.state_dict().items()}
    every = {"save_interval": 1}
    ours = trained(Hook(folder / "ours", save_config=SaveConfig(**every), system_interval=0), model, folder / "ours")
    model.load_state_dict(state)
    config = ReductionConfig(reductions=["std"])
    theirs = smdebug.Hook(
        str(folder / "theirs"),
        save_config=SMDebugSaveConfig(**every),
        reduction_config=config,
        include_collections=["weights"],
    )
    return ours, trained(theirs, model, folder / "theirs"), weights


def test_deviations_are_over_all_entries(runs: tuple[Trial, Trial, np.ndarray]) -> None:
    ours, theirs, weights = runs
    assert ours.tensor("Linear_weight").reduction_value(0, "std") == pytest.approx(weights.std(), rel=1e-5)
    assert theirs.tensor("Linear_weight").reduction_value(0, "std") == pytest.approx(weights.std(ddof=1), rel=1e-5)


def test_what_is_recorded_by_default(tmp_path: Path, runs: tuple[Trial, Trial, np.ndarray]) -> None:
    ours, _, _ = runs
    assert {"losses", "weights", "biases", "gradients"} <= set(ours.collections())
    hook = smdebug.Hook(str(tmp_path / "run"))
    assert hook.has_default_hook_configuration() and hook.include_collections == {"losses"}
    hook.close()


def test_reductions_that_nobody_configured(runs: tuple[Trial, Trial, np.ndarray]) -> None:
    ours, theirs, weights = runs
    expected = {"min": weights.min(), "max": weights.max(), "mean": weights.mean(), "sum": weights.sum()}
    expected |= {"variance": weights.var(), "l1": np.abs(weights).sum(), "l2": np.linalg.norm(weights)}
    for name, value in expected.items():
        assert ours.tensor("Linear_weight").reduction_value(0, name) == pytest.approx(value, rel=1e-5)
    assert set(theirs.tensor("Linear_weight").reduction_values(0)) == {("std", False)}
