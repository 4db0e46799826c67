"""A made-up trace as torch.profiler writes them on a CUDA device: there is none here to record a real one."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

EPOCH_US = 1_700_000_000_000_000
LOADER = "enumerate(DataLoader)#_MultiProcessingDataLoaderIter.__next__"
COMPUTE_STREAM, COMMUNICATION_STREAM = 7, 20


Event = dict[str, Any]


class Clock:
    """A host thread and two streams of a device, in microseconds."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.now = 1000.0
        self.free = {COMPUTE_STREAM: 0.0, COMMUNICATION_STREAM: 0.0}
        self.correlation = 0

    def host(
        self, category: str, name: str, start: float, end: float, thread: int = 100, **args: Any
    ) -> dict[str, Any]:
        return {
            "ph": "X",
            "cat": category,
            "name": name,
            "pid": 100 + self.rank,
            "tid": thread,
            "ts": round(start, 3),
            "dur": round(end - start, 3),
            "args": {"External id": self.correlation, **args},
        }

    def launch(
        self, kernel: str, duration: float, stream: int = COMPUTE_STREAM, thread: int = 100, after: float = 0.0
    ) -> Iterator[Event]:
        """A call that launches a kernel, and the kernel when its stream is free."""
        self.correlation += 1
        number, called = self.correlation, self.now
        self.now += 4.0
        start = max(called + 6.0, self.free[stream] + 1.5, after)
        self.free[stream] = start + duration
        yield self.host("cuda_runtime", "cudaLaunchKernel", called, self.now, thread, correlation=number, cbid=211)
        common = {"id": number, "pid": 100 + self.rank, "tid": thread, "cat": "ac2g", "name": "ac2g"}
        yield {"ph": "s", "ts": round(called, 3), **common}
        category = "gpu_memcpy" if kernel.startswith("Memcpy") else "kernel"
        yield {
            "ph": "X",
            "cat": category,
            "name": kernel,
            "pid": self.rank,
            "tid": stream,
            "ts": round(start, 3),
            "dur": round(duration, 3),
            "args": {
                "External id": number,
                "device": self.rank,
                "context": 1,
                "stream": stream,
                "correlation": number,
                **({"bytes": 1 << 20} if category == "gpu_memcpy" else {"grid": [128, 1, 1], "block": [256, 1, 1]}),
            },
        }
        yield {"ph": "f", "bp": "e", "ts": round(start, 3), **{**common, "pid": self.rank, "tid": stream}}

    def operator(self, name: str, kernel: str, duration: float, thread: int = 100) -> Iterator[Event]:
        """An operator that launches one kernel."""
        began = self.now
        self.now += 3.0
        yield from self.launch(kernel, duration, thread=thread)
        self.now += 2.0
        shapes = {"Input Dims": [[512, 1024], [1024, 1024]], "Input type": ["c10::BFloat16", "c10::BFloat16"]}
        yield self.host("cpu_op", name, began, self.now, thread, **shapes)


def events(steps: int, layers: int, rank: int = 0, first: int = 10) -> Iterator[Event]:
    """Steps of a data-parallel job: loader, forward, backward with overlapped collectives, optimizer."""
    clock = Clock(rank)
    for step in range(first, first + steps):
        began = clock.now
        clock.now += 400.0  # 0.4 ms for the batch
        yield clock.host("user_annotation", LOADER, began + 5, clock.now)
        yield from clock.launch("Memcpy HtoD (Pinned -> Device)", 60.0)
        for _ in range(layers):
            yield from clock.operator("aten::addmm", "ampere_bf16_s16816gemm_bf16_128x128_tn", 45.0)
            yield from clock.operator("aten::relu", "void at::native::vectorized_elementwise_kernel<4>(int)", 6.0)
        for layer in range(layers):
            opened = clock.now
            clock.now += 1.0
            yield from clock.operator("aten::mm", "ampere_bf16_s16816gemm_bf16_128x128_nt", 90.0, thread=200)
            yield clock.host(
                "cpu_op", "autograd::engine::evaluate_function: AddmmBackward0", opened, clock.now + 1, 200
            )
            clock.now += 2.0
            if layer % 8 == 7:
                ready = clock.free[COMPUTE_STREAM]
                name = "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)"
                yield from clock.launch(name, 300.0, COMMUNICATION_STREAM, thread=200, after=ready)
        clock.free[COMPUTE_STREAM] = max(clock.free.values())  # the update waits for the last collective
        opened = clock.now = clock.now + 2.0
        for _ in range(4):
            name = "void at::native::multi_tensor_apply_kernel<Adam>(int)"
            yield from clock.operator("aten::_fused_adamw_", name, 120.0)
        yield clock.host("user_annotation", "Optimizer.step#AdamW.step", opened - 1, clock.now + 1)
        yield {
            "ph": "i",
            "cat": "cpu_instant_event",
            "s": "t",
            "name": "[memory]",
            "pid": 100 + rank,
            "tid": 100,
            "ts": round(clock.now, 3),
            "args": {"Total Allocated": 3 << 30, "Bytes": 1 << 20, "Device Id": rank, "Device Type": 1, "Addr": 1},
        }
        clock.now = max(clock.now, clock.free[COMPUTE_STREAM]) + 50.0
        yield clock.host("user_annotation", f"ProfilerStep#{step}", began, clock.now)
        clock.now += 1.0


def write(path: Path, steps: int, layers: int, rank: int = 0, world_size: int = 1) -> Path:
    """Write such a trace, laid out as torch.profiler does; compressed where its name says so."""
    head = {
        "schemaVersion": 1,
        "deviceProperties": [{"id": rank, "name": "Made-up GPU", "numSms": 108}],
        "distributedInfo": {"backend": "nccl", "rank": rank, "world_size": world_size},
        "displayTimeUnit": "ms",
        "baseTimeNanoseconds": EPOCH_US * 1000,
    }
    with gzip.open(path, "wt", compresslevel=1) if path.suffix == ".gz" else path.open("w") as file:
        file.write(json.dumps(head, indent=2)[:-2] + ',\n  "traceEvents": [\n')
        between = ""
        for event in events(steps, layers, rank):
            file.write(between + "  " + json.dumps(event))
            between = ",\n"
        file.write(f'\n  ],\n  "traceName": "{path.name}"\n}}\n')
    return path
