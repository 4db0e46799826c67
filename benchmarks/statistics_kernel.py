"""All statistics of the tensors of a training step, beside torch.sum over the same bytes and other ways.

    python benchmarks/statistics_kernel.py

Each way runs once per round, the ways in turn; the number is the median over rounds, in microseconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median

import torch

from stepwatch.probe import batched
from stepwatch.probe.statistics import backend, measure

ROUNDS = 100


def separate_calls(tensors: Sequence[torch.Tensor]) -> None:
    """What is quick to write: one fast call per column. Knows nothing of NaN, overflows, and is not all of it."""
    for tensor in tensors:
        torch.aminmax(tensor)
        torch.std_mean(tensor)
        torch.linalg.vector_norm(tensor, 1)
        torch.linalg.vector_norm(tensor, 2)
        torch.count_nonzero(tensor)


WAYS: dict[str, Callable[[Sequence[torch.Tensor]], object]] = {
    "torch.sum": lambda tensors: [tensor.sum() for tensor in tensors],
    f"stepwatch ({backend()})": lambda tensors: measure(tensors).result(),
    "separate torch calls, without NaN": separate_calls,
    "stepwatch, torch's reductions": lambda tensors: batched.measure(tensors)(),
}


def wide(dtype: torch.dtype) -> list[torch.Tensor]:
    shapes = [(512, 512), (512,)] * 12
    return [(torch.randn(shape) * 0.02).to(dtype) for shape in shapes]


def workloads() -> dict[str, list[torch.Tensor]]:
    found = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        name = str(dtype).removeprefix("torch.")
        found[f"24 tensors of six 512x512 layers, {name}"] = wide(dtype)
        found[f"the same entries in one tensor, {name}"] = [torch.cat([t.flatten() for t in wide(dtype)])]
    found["53 tensors of 64x64, float32"] = [torch.randn(64, 64) for _ in range(53)]
    poisoned = wide(torch.float32)
    for tensor in poisoned:
        tensor.fill_(float("nan"))
    found["24 tensors of six 512x512 layers, float32, all NaN"] = poisoned
    return found


def timed(way: Callable[[Sequence[torch.Tensor]], object], tensors: Sequence[torch.Tensor]) -> float:
    began = time.perf_counter()
    way(tensors)
    return (time.perf_counter() - began) * 1e6


def main() -> None:
    torch.set_num_threads(2)
    print(f"| | {' | '.join(WAYS)} |")
    print(f"|---|{'---:|' * len(WAYS)}")
    for name, tensors in workloads().items():
        times: dict[str, list[float]] = {way: [] for way in WAYS}
        for turn in range(ROUNDS):
            for way, call in WAYS.items():
                if "reductions" not in way or turn < 10:  # takes a hundred times as long
                    times[way].append(timed(call, tensors))
        base = median(times["torch.sum"])
        cells = [f"{median(found):.0f} (x{median(found) / base:.1f})" for found in times.values()]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
