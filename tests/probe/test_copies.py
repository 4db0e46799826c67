"""Models with a hook are saved, copied, traced and called by other threads as they are without one."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from stepwatch.probe.store.reader import Trace

from .conftest import batch


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def pickled(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def traced(model: nn.Module) -> nn.Module:
    return torch.jit.trace(model, torch.randn(2, 6))


def exported(model: nn.Module) -> nn.Module:
    return torch.export.export(model, (torch.randn(2, 6),)).module()


def train(make_hook: Callable[..., Any], each_step: Callable[[nn.Module, torch.Tensor], None]) -> None:
    model, loss_fn = network(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with make_hook(model=model, optimizer=optimizer, loss_fn=loss_fn, include_collections=["all"]):
        for _ in range(6):
            x, y = batch()
            optimizer.zero_grad()
            loss_fn(model(x), y).backward()
            each_step(model, x)
            optimizer.step()


@pytest.mark.parametrize("duplicate", [saved, pickled, copy.deepcopy, traced, exported])
def test_a_duplicate_made_in_the_middle_of_a_step_computes_the_same(
    tmp_path: Path, make_hook: Callable[..., Any], duplicate: Callable[[nn.Module], nn.Module]
) -> None:
    def each_step(model: nn.Module, x: torch.Tensor) -> None:
        one = x[:2]
        torch.testing.assert_close(duplicate(model)(one), model(one))

    train(make_hook, each_step)
    trace = Trace(tmp_path / "run")
    assert trace.counters == {} and trace.notes == []
    assert trace.table("steps", modes=["TRAIN"])["step"].to_pylist() == list(range(6))


def test_a_model_saved_while_it_trains_is_loaded_where_stepwatch_is_not(
    tmp_path: Path, make_hook: Callable[..., Any]
) -> None:
    train(make_hook, lambda model, x: torch.save(model, tmp_path / "model.pt"))
    code = """
import sys, torch
model = torch.load("model.pt", weights_only=False)
print(tuple(model(torch.ones(1, 6)).shape), [name for name in sys.modules if name.startswith("stepwatch")])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=180)
    assert done.stdout.strip() == "(1, 3) []", done.stderr


def test_another_thread_may_call_the_model(tmp_path: Path, make_hook: Callable[..., Any]) -> None:
    over, failures, calls = threading.Event(), [], 0
    model, loss_fn = network(), nn.CrossEntropyLoss()

    def evaluate() -> None:
        nonlocal calls
        while not over.is_set():
            try:
                with torch.no_grad():
                    model(torch.randn(4, 6))
                calls += 1
            except Exception as error:
                failures.append(error)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    thread = threading.Thread(target=evaluate)
    with make_hook(model=model, optimizer=optimizer, loss_fn=loss_fn):
        thread.start()
        for _ in range(60):
            x, y = batch()
            optimizer.zero_grad()
            loss_fn(model(x), y).backward()
            optimizer.step()
        over.set()
        thread.join()
    assert calls and failures == []
    assert Trace(tmp_path / "run").counters == {}
