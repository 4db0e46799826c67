"""Operations and tokens of one training step: what torch's own counter says of the same step, and no trouble."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from stepwatch.cli.profile import profile
from stepwatch.probe import Hook, SaveConfig
from stepwatch.probe.peaks import peak_of
from stepwatch.probe.store.reader import Trace

TERA = 1e12


class Language(nn.Module):
    def __init__(self, recompute: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 50)
        self.recompute = recompute
        self.fail = False

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(input_ids)
        if self.fail:
            raise ValueError("a batch that this model does not like")
        x = checkpoint(self.layer, x, use_reentrant=False) if self.recompute else self.layer(x)
        return self.head(x)


def passes(model: nn.Module, ids: torch.Tensor) -> None:
    logits = model(input_ids=ids)
    nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()


def record(
    run: Path, model: Language, *, steps: int = 6, between: Callable[[int], None] = lambda step: None, **options: Any
) -> Trace:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    options = {"save_config": SaveConfig(save_interval=2), "system_interval": 0, **options}
    with Hook(run, model=model, optimizer=optimizer, **options):
        for step, ids in enumerate(DataLoader(torch.randint(50, (4 * steps, 12)), batch_size=4)):
            between(step)
            for half in ids.split(2):
                passes(model, half)
            optimizer.step()
            optimizer.zero_grad()
            assert _get_current_dispatch_mode() is None
    return Trace(run)


def counted(trace: Trace) -> dict[str, list[float]]:
    rows = trace.table("scalars", columns=["step", "name", "value"]).to_pandas()
    rows = rows[rows["name"].isin(["stepwatch/flops", "stepwatch/tokens", "stepwatch/seconds_at_peak"])]
    return {str(name): group["value"].tolist() for name, group in rows.groupby("name")}


def test_a_profiled_step_is_let_pass_and_the_next_one_counted(tmp_path: Path) -> None:
    plain = record(tmp_path / "plain", Language())
    profiled = record(tmp_path / "profiled", Language(), profile_steps=range(3, 5))

    def step(trace: Trace) -> list[int]:
        rows = trace.table("scalars", columns=["step", "name"]).to_pandas()
        return rows[rows["name"] == "stepwatch/flops"]["step"].tolist()

    assert (step(plain), step(profiled)) == ([3], [5])
    assert counted(plain) == counted(profiled)


@pytest.mark.parametrize("recompute", [False, True])
def test_the_count_is_torchs_own_over_all_micro_batches(tmp_path: Path, recompute: bool) -> None:
    model = Language(recompute)
    found = counted(trace := record(tmp_path / "run", model))
    with FlopCounterMode(display=False) as counter:
        for half in torch.randint(50, (4, 12)).split(2):
            passes(model, half)
    assert found == {"stepwatch/flops": [counter.get_total_flops()], "stepwatch/tokens": [48.0]}
    assert trace.counters.get("hook_errors", 0) == 0
    throughput = profile(trace)["throughput"]
    assert set(throughput) == {"samples_per_second", "tokens_per_second", "flops_per_second"}
    assert throughput["tokens_per_second"] == pytest.approx(12 * throughput["samples_per_second"])
    assert throughput["flops_per_second"] / throughput["tokens_per_second"] == pytest.approx(
        counter.get_total_flops() / 48
    )


def test_a_forward_pass_that_fails_while_it_is_counted_leaves_nothing_behind(tmp_path: Path) -> None:
    model = Language()

    def between(step: int) -> None:
        model.fail = step == 3
        if model.fail:
            with pytest.raises(ValueError, match="does not like"):
                model(torch.zeros(2, 12, dtype=torch.int64))
            model.fail = False
            assert _get_current_dispatch_mode() is None

    assert counted(record(tmp_path / "run", model, between=between))["stepwatch/flops"]


def test_a_hook_that_is_closed_meanwhile_counts_no_more(tmp_path: Path) -> None:
    model = Language()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    hook = Hook(tmp_path / "run", model=model, optimizer=optimizer, system_interval=0)
    for _ in range(3):
        passes(model, torch.randint(50, (2, 12)))
        optimizer.step()
    before = len(model._forward_hooks)
    hook.close()
    assert len(model._forward_hooks) < before and not model._forward_hooks
    passes(model, torch.randint(50, (2, 12)))
    assert _get_current_dispatch_mode() is None and counted(Trace(tmp_path / "run")) == {}


def test_what_is_compiled_is_not_counted(tmp_path: Path) -> None:
    model = Language()
    model.head.compile(backend="eager")
    assert counted(record(tmp_path / "run", model)) == {}


@pytest.mark.parametrize(
    ("name", "dtype", "tf32", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", torch.bfloat16, False, 989),
        ("NVIDIA H100 PCIe", torch.float16, False, 756),
        ("NVIDIA A100-SXM4-80GB", torch.float32, True, 156),
        ("NVIDIA A100-SXM4-80GB", torch.float32, False, 19.5),
        ("Tesla V100-PCIE-16GB", torch.float16, False, 112),
        ("Tesla V100-SXM2-32GB", torch.bfloat16, False, None),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", torch.float16, False, None),
        ("NVIDIA GeForce GTX 980", torch.float32, False, None),
        ("NVIDIA L4", torch.float64, False, None),
    ],
)
def test_peaks_are_those_of_the_data_sheets(name: str, dtype: torch.dtype, tf32: bool, peak: float | None) -> None:
    assert peak_of(name, dtype, tf32=tf32) == (None if peak is None else peak * TERA)
