"""Statistics beside NumPy's in float64, by both ways of computing them."""

from __future__ import annotations

import ctypes
import gc
import shutil
import subprocess
import sysconfig
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tensor import DTensor

from stepwatch.probe import batched, compiled
from stepwatch.probe.statistics import backend, measure, unsupported
from stepwatch.probe.store.schema import STAT_COLUMNS

Matrix = NDArray[np.float64]
EXACT = [STAT_COLUMNS.index(name) for name in ("numel", "n_nan", "n_inf", "n_zero", "min", "max", "abs_max")]
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
KERNEL_SOURCE = Path(compiled.__file__).with_name("_kernels.c")


def expected(entries: NDArray[np.float64]) -> Matrix:
    """One row, from NumPy; scaled by the largest magnitude so that no square leaves float64."""
    x = entries.reshape(-1)
    y = x[np.isfinite(x)]
    counts = [x.size, np.isnan(x).sum(), np.isinf(x).sum(), (x == 0).sum()]
    if not y.size:
        return np.array([*counts, *[np.nan] * 4, 0, 0, np.nan])
    largest = np.abs(y).max()
    scaled = y / (largest or 1)
    mean = y[0] if y.min() == y.max() else scaled.mean() * largest
    std = 0 if y.min() == y.max() else scaled.std() * largest
    l2 = np.sqrt((scaled**2).sum()) * largest
    return np.array([*counts, y.min(), y.max(), mean, std, np.abs(y).sum(), l2, largest])


def in_double(tensor: torch.Tensor) -> NDArray[np.float64]:
    return tensor.detach().to(torch.float64).numpy()


def check(found: Matrix, wanted: Matrix, tolerance: float = 1e-6, std_tolerance: float = 1e-6) -> None:
    """Counts and extremes exactly; the rest within the tolerances that the module states."""
    got = dict(zip(STAT_COLUMNS, found, strict=True))
    want = dict(zip(STAT_COLUMNS, wanted, strict=True))
    np.testing.assert_array_equal(found[EXACT], wanted[EXACT], str(got))
    finite = want["numel"] - want["n_nan"] - want["n_inf"]
    if not finite:
        assert got["l1"] == got["l2"] == 0 and np.isnan([got["mean"], got["std"]]).all()
        return
    rounding = 1e-14 * abs(want["mean"])  # of float64 itself, where the mean dwarfs the spread
    allowed = {
        "l1": tolerance * want["l1"],
        "l2": tolerance * want["l2"],
        "std": std_tolerance * want["std"] + rounding,
        "mean": tolerance * min(want["l1"] / finite, want["abs_max"]),
    }
    for name, limit in allowed.items():
        limit += 2e-323  # what is below it has no digits
        np.testing.assert_allclose(got[name], want[name], rtol=0, atol=limit, err_msg=f"{name} of {want}")


def by_torch(tensors: list[torch.Tensor]) -> Matrix:
    return batched.measure(tensors)()


def by_kernel(tensors: list[torch.Tensor]) -> Matrix:
    return compiled.measure(tensors)


def built(folder: Path, *flags: str) -> Callable[[list[torch.Tensor]], Matrix]:
    """The kernel as other processors compile it: no AVX-512; one thread."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler")
    library = folder / f"portable{sysconfig.get_config_var('SHLIB_SUFFIX')}"
    flags = ("-std=gnu11", "-O3", "-fopenmp-simd", "-Wall", "-Wextra", "-Werror", *flags)
    command = [compiler, *flags, "-DPORTABLE", "-shared", "-fPIC", str(KERNEL_SOURCE), "-o", str(library)]
    subprocess.run([*command, "-lm"], check=True)
    function = ctypes.CDLL(str(library)).stepwatch_measure

    def measure_with(tensors: list[torch.Tensor]) -> Matrix:
        rows = [(t.data_ptr(), t.numel(), compiled.TYPES[t.dtype]) for t in tensors]
        described = np.array(rows, dtype=np.int64)
        matrix = np.empty((len(tensors), len(STAT_COLUMNS)))
        pointers = (ctypes.c_void_p(described.ctypes.data), ctypes.c_void_p(matrix.ctypes.data))
        broken = function(ctypes.c_int64(len(tensors)), *pointers, None)
        assert broken == sum(not bool(t.isfinite().all()) for t in tensors)
        return matrix

    return measure_with


@pytest.fixture(scope="module", params=["kernel", "portable kernel", "torch"])
def way(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[list[torch.Tensor]], Matrix]:
    if request.param == "torch":
        return by_torch
    if request.param == "portable kernel":
        return built(tmp_path_factory.mktemp("kernel"))
    if not compiled.available():
        pytest.skip("the kernel was not built: no C compiler")
    return by_kernel


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_floats(way: Callable[[list[torch.Tensor]], Matrix], dtype: torch.dtype, data: st.DataObject) -> None:
    if dtype is torch.float64:  # sums of these are in range
        special = st.sampled_from([float("nan"), float("inf"), float("-inf")])
        arrays = hnp.arrays("f8", st.integers(0, 700), elements=st.one_of(st.floats(-1e305, 1e305), special))
    else:  # any bits at all
        arrays = hnp.arrays(f"i{dtype.itemsize}", st.integers(0, 700))
    drawn = data.draw(st.lists(arrays, min_size=1, max_size=4))
    tensors = [torch.from_numpy(array.copy()).view(dtype) for array in drawn]
    for found, tensor in zip(way(tensors), tensors, strict=True):
        check(found, expected(in_double(tensor)), 2e-6, 1e-5)


SHAPES = {
    "normal": lambda n, g: torch.randn(n, generator=g, dtype=torch.float64),
    "gradients": lambda n, g: torch.randn(n, generator=g, dtype=torch.float64) * 1e-4,
    "vanished": lambda n, g: torch.randn(n, generator=g, dtype=torch.float64) * 1e-30,
    "subnormal": lambda n, g: torch.randn(n, generator=g, dtype=torch.float64) * 1e-41,
    "huge": lambda n, g: (torch.rand(n, generator=g, dtype=torch.float64) - 0.5) * 6e38,
    "relu": lambda n, g: torch.randn(n, generator=g, dtype=torch.float64).relu(),
    "one and a bit": lambda n, g: 1 + 1e-3 * torch.randn(n, generator=g, dtype=torch.float64),
    "far from zero": lambda n, g: 1e6 + torch.randn(n, generator=g, dtype=torch.float64),
    "constant": lambda n, g: torch.full((n,), 0.1, dtype=torch.float64),
    "two values": lambda n, g: torch.where(torch.arange(n) % 3 == 0, 0.1, -0.3).double(),
    "zeros": lambda n, g: -torch.zeros(n, dtype=torch.float64),
    "nan": lambda n, g: torch.full((n,), float("nan"), dtype=torch.float64),
    "one spike": lambda n, g: torch.cat([torch.full((1,), 3e4), torch.randn(n - 1, generator=g)]).double(),
    "a few not finite": lambda n, g: torch.randn(n, generator=g, dtype=torch.float64).index_fill_(
        0, torch.arange(0, n, 999), float("-inf")
    ),
}


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_distributions(way: Callable[[list[torch.Tensor]], Matrix], shape: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(7)
    # Around the sizes at which the work is cut: runs, blocks, rows, chunks, and where threads begin.
    sizes = (1, 7, 255, 256, 257, 2049, 4096, 4097, 65536, 65537, 300_001)
    tensors = [SHAPES[shape](size, generator).to(dtype) for size in sizes]
    for found, tensor in zip(way(tensors), tensors, strict=True):
        check(found, expected(in_double(tensor)))


@pytest.mark.parametrize("factor", [1e300, 1e-200, 5e-324])
def test_doubles_whose_squares_leave_the_range(way: Callable[[list[torch.Tensor]], Matrix], factor: float) -> None:
    generator = torch.Generator().manual_seed(7)
    tensor = torch.randn(5000, generator=generator, dtype=torch.float64) * 100 * factor
    check(way([tensor])[0], expected(in_double(tensor)))


def test_kernel_has_no_undefined_behaviour(tmp_path: Path) -> None:
    way = built(tmp_path, "-fsanitize=undefined", "-fno-sanitize-recover=all")
    generator = torch.Generator().manual_seed(7)
    tensors = [make(4099, generator).to(dtype) for make in SHAPES.values() for dtype in FLOATS]
    wanted = np.array([expected(in_double(tensor)) for tensor in tensors])
    np.testing.assert_array_equal(way(tensors)[:, EXACT], wanted[:, EXACT])


def test_result_does_not_depend_on_threads() -> None:
    if not compiled.available():
        pytest.skip("the kernel was not built: no C compiler")
    tensor = torch.randn(2_000_001)
    before = torch.get_num_threads()
    try:
        rows = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            rows.append(compiled.measure([tensor])[0])
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(rows[0], rows[1])


def test_several_threads_may_measure_at_once() -> None:
    tensors = [torch.randn(300_000) + index for index in range(4)]
    found: dict[int, Matrix] = {}

    def run(index: int) -> None:
        found[index] = measure([tensors[index]]).result()[0]

    threads = [threading.Thread(target=run, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, tensor in enumerate(tensors):
        check(found[index], expected(in_double(tensor)))


def test_flushing_subnormal_numbers_changes_nothing() -> None:
    tensor = torch.full((1000,), 1e-40)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormal numbers")
    try:
        row = measure([tensor]).result()[0]
        assert float(torch.tensor([1e-40]) * 1.0) == 0  # the user's setting is still there
    finally:
        torch.set_flush_denormal(False)
    check(row, expected(np.full(1000, np.float64(np.float32(1e-40)))))


# -- kinds of tensors ------------------------------------------------------------------------------------


@pytest.fixture(params=["compiled", "torch"])
def any_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it was installed, and as where no compiler was found."""
    if request.param == "torch":
        monkeypatch.setattr(compiled, "_library", None)
    assert backend() == ("compiled" if compiled.available() else "torch")


def measured(*tensors: torch.Tensor) -> Matrix:
    assert [unsupported(tensor) for tensor in tensors] == [None] * len(tensors)
    return measure(tensors).result()


INTEGERS = [torch.int8, torch.int16, torch.int32, torch.int64]
INTEGERS += [torch.uint8, torch.uint16, torch.uint32, torch.uint64]
FLOAT8 = [torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz]


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS, *FLOAT8, torch.bool], ids=str)
def test_every_real_dtype(any_backend: None, dtype: torch.dtype) -> None:
    tensor = torch.arange(300).fmod(7).reshape(3, 100).to(dtype)
    check(measured(tensor)[0], expected(in_double(tensor)))


def test_large_integers() -> None:
    tensor = torch.tensor([2**31 - 1, -(2**31), 123_456_789], dtype=torch.int32)
    check(measured(tensor)[0], expected(in_double(tensor)))


@pytest.mark.parametrize("dtype", [torch.complex32, torch.complex64, torch.complex128], ids=str)
@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_complex_by_magnitude(any_backend: None, dtype: torch.dtype) -> None:
    parts = torch.tensor([[3.0, 4.0], [0.0, 0.0], [-6.0, 8.0], [float("nan"), 1.0], [1.0, float("inf")]])
    tensor = torch.view_as_complex(parts).to(dtype)
    wanted = expected(np.array([5.0, 0.0, 10.0, np.nan, np.inf]))
    check(measured(tensor)[0], wanted)
    check(measured(tensor.conj())[0], wanted)


def test_magnitudes_beyond_single_precision() -> None:
    tensor = torch.full((3,), complex(3e38, 3e38), dtype=torch.complex64)
    assert measured(tensor)[0][10] == pytest.approx(np.hypot(np.float64(np.float32(3e38)), np.float32(3e38)))


def test_shapes_and_strides(any_backend: None) -> None:
    base = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4) - 5
    views = [
        base,
        base.transpose(0, 2),
        base[:, 1, ::2],
        base[..., -1],
        base.flip(1),
        base[0, 0, 0],
        base[:, :0],
        base[:1].expand(5, 3, 4),
        base[None].contiguous(memory_format=torch.channels_last),
        torch.view_as_complex(base.reshape(-1, 2)).conj().imag,
        torch.empty(0),
        torch.tensor(float("nan")),
    ]
    rows = measured(*views)
    for view, row in zip(views, rows, strict=True):
        check(row, expected(in_double(view.contiguous())))


def test_nothing_at_all() -> None:
    assert measure([]).result().shape == (0, len(STAT_COLUMNS))


def test_parameters_build_no_graph_and_are_let_go(any_backend: None) -> None:
    parameter = torch.nn.Parameter(torch.randn(100))
    (parameter * 2).sum().backward()
    assert parameter.grad is not None
    pending = measure([parameter, parameter.grad, parameter.t() * 2])
    values = in_double(parameter)
    with torch.no_grad():
        parameter.zero_()  # what was measured is what it was
    gone = weakref.ref(parameter)
    del parameter
    gc.collect()
    assert gone() is None
    rows = pending.result()
    check(rows[0], expected(values))
    check(rows[1], expected(np.full(100, 2.0)))
    check(rows[2], expected(values * 2))


def test_inference_tensors(any_backend: None) -> None:
    with torch.inference_mode():
        tensor = torch.ones(10) * 3
    check(measured(tensor)[0], expected(np.full(10, 3.0)))


def sparse(layout: str, dense: torch.Tensor) -> torch.Tensor:
    if layout.startswith("bs"):
        return dense.to_sparse(layout=getattr(torch, f"sparse_{layout}"), blocksize=(2, 2))
    return dense.to_sparse(layout=getattr(torch, f"sparse_{layout}"))


@pytest.mark.parametrize("layout", ["coo", "csr", "csc", "bsr", "bsc"])
@pytest.mark.filterwarnings("ignore:Sparse")
def test_sparse_with_its_implicit_zeros(any_backend: None, layout: str) -> None:
    dense = torch.zeros(6, 8)
    dense[1, 2], dense[4, 5], dense[4, 6] = 3.0, -7.5, float("inf")
    for each in (dense, torch.zeros(6, 8), torch.full((6, 8), 2.5)):
        check(measured(sparse(layout, each))[0], expected(in_double(each)))


def test_sparse_gradient_of_an_embedding(any_backend: None) -> None:
    embedding = torch.nn.Embedding(1000, 16, sparse=True)
    embedding(torch.tensor([3, 3, 999])).square().sum().backward()  # row 3 twice: not coalesced
    gradient = embedding.weight.grad
    assert gradient is not None and gradient.is_sparse and not gradient.is_coalesced()
    check(measured(gradient)[0], expected(in_double(gradient.to_dense())))


def test_mkldnn(any_backend: None) -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch was built without MKL-DNN")
    dense = torch.randn(4, 5)
    check(measured(dense.to_mkldnn())[0], expected(in_double(dense)))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_quantised_by_what_it_stands_for(any_backend: None) -> None:
    quantised = torch.quantize_per_tensor(torch.linspace(-1, 1, 50), 0.05, 3, torch.qint8)
    check(measured(quantised)[0], expected(in_double(quantised.dequantize())))


def test_subclasses_that_only_wrap_functions(any_backend: None) -> None:
    class Named(torch.Tensor):
        pass

    values = torch.randn(20)
    row = measured(values.as_subclass(Named))[0]
    check(row, expected(in_double(values)))


def test_dtensor_by_the_shard_of_this_rank(any_backend: None, tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        values = torch.randn(6, 4)
        sharded = DTensor.from_local(values, mesh, [torch.distributed.tensor.Shard(0)])
        rows = measured(sharded, torch.nn.Parameter(sharded))
    finally:
        torch.distributed.destroy_process_group()
    check(rows[0], expected(in_double(values)))
    check(rows[1], expected(in_double(values)))


def test_what_is_not_supported_says_why() -> None:
    freed = torch.nn.Parameter(torch.randn(4))
    freed.data.untyped_storage().resize_(0)
    with FakeTensorMode():
        fake = torch.empty(3)
    reasons = {
        "meta device": torch.empty(3, device="meta"),
        "not initialised": torch.nn.LazyLinear(3).weight,
        "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
        "FakeTensor": fake,
        "memory is freed": freed,
        "dtype torch.bits8": torch.empty(4, dtype=torch.uint8).view(torch.bits8),
    }
    for reason, tensor in reasons.items():
        assert reason in (unsupported(tensor) or "")
    inside: list[str | None] = []
    torch.func.vmap(lambda row: (inside.append(unsupported(row)), row)[1])(torch.ones(2, 3))
    assert "torch.func" in (inside[0] or "")


def test_memory_that_is_not_there_is_refused_not_read() -> None:
    if not compiled.available():
        pytest.skip("the kernel was not built: no C compiler")
    freed = torch.randn(4)
    freed.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match=r"shape \(4,\) has no memory"):
        measure([freed])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_nothing_waits() -> None:
    generator = torch.Generator().manual_seed(7)
    tensors = [SHAPES[name](70_001, generator).float() for name in SHAPES]
    tensors += [torch.randn(512, 512, dtype=torch.bfloat16), torch.empty(0), torch.tensor(3.0)]
    remote = [tensor.cuda() for tensor in tensors]
    measure(remote).result()  # allocations of the first call
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        pending = measure(remote)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for row, tensor in zip(pending.result(), tensors, strict=True):
        check(row, expected(in_double(tensor)))
