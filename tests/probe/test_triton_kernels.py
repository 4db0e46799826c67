"""The fused kernels for CUDA devices, beside NumPy; in Triton's interpreter, which needs no device, and on a real one.

What cannot be shown without a device is how fast they are.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from .test_statistics import SHAPES, check, expected, in_double

TYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(scope="module")
def kernels() -> ModuleType:
    pytest.importorskip("triton", reason="Triton is not installed")
    from stepwatch.probe import triton_kernels

    return triton_kernels


def on_device(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.cuda() if torch.cuda.is_available() else tensor


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bits(kernels: ModuleType, dtype: torch.dtype, data: st.DataObject) -> None:
    drawn = data.draw(st.lists(hnp.arrays(f"i{dtype.itemsize}", st.integers(0, 700)), min_size=1, max_size=3))
    tensors = [torch.from_numpy(array.copy()).view(dtype) for array in drawn]
    found = kernels.measure([on_device(tensor) for tensor in tensors])()
    for row, tensor in zip(found, tensors, strict=True):
        check(row, expected(in_double(tensor)), 2e-6, 1e-5)


@pytest.mark.parametrize("name", list(SHAPES))
def test_tensors_of_several_rows_and_types_at_once(kernels: ModuleType, name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    tensors = [SHAPES[name](size, generator).to(dtype) for size in (1, 4096, 5000) for dtype in TYPES]
    found = kernels.measure([on_device(tensor) for tensor in tensors])()
    for row, tensor in zip(found, tensors, strict=True):
        check(row, expected(in_double(tensor)), 2e-6, 1e-5)


COMPILE = """
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from stepwatch.probe import triton_kernels as kernels

rows = dict(addresses="*i64", tensor_of_row="*i32", first_rows="*i64", sizes="*i64", summaries="*fp32")
rows["TYPE"] = "constexpr"
merged = dict(summaries="*fp32", first_rows="*i64", results="*fp64")
for capability in (80, 90):
    target = GPUTarget("cuda", capability, 32)
    for kind in set(kernels._TYPES.values()):
        triton.compile(ASTSource(kernels._summarise_rows, rows, constexprs={(5,): kind}), target=target)
    triton.compile(ASTSource(kernels._merge_rows, merged, constexprs={}), target=target)
"""


def test_they_compile_for_gpus_that_are_not_here(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    script = tmp_path / "compile.py"  # Triton reads its functions' source
    script.write_text(COMPILE)
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_statistics_of_a_gpu_come_from_them() -> None:
    from stepwatch.probe.statistics import _fused_kernels, measure

    measure([torch.randn(10, device="cuda")]).result()
    assert _fused_kernels() is not None, "Triton comes with torch for CUDA"
