"""A tile's functions: in Triton (interpreted on the CPU) as in float64; no graph breaks.

The interpreter multiplies in float32, whatever a kernel asks for; here it rounds as tensor cores.
"""

import os
import subprocess
import sys

import pytest
import torch

from counterpoint.losses.kernels import tile_ops
from counterpoint.losses.kernels.pairing import Pairing
from counterpoint.losses.kernels.reductions import softmax_sums, softplus_sums
from counterpoint.losses.kernels.tile_ops import TORCH

SHAPES = [(1, 1), (5, 130), (70, 33), (33, 257)]


def tile(rows, columns, dtype, seed=0):
    g = torch.Generator().manual_seed(seed)
    logits = 60 * torch.randn(rows, columns, generator=g, dtype=torch.float64)
    logits[:, columns // 2] = -torch.inf  # a column in which nothing counts
    logits[rows // 2, ::3] = -torch.inf
    vectors = [torch.randn(n, generator=g, dtype=torch.float64) for n in (rows, columns)]
    return logits.to(dtype), [v.to(dtype) for v in vectors]


def check(form, shape, dtype, rtol):
    logits, (by_row, by_column) = tile(*shape, dtype)
    exact = logits.double()
    over_columns, over_rows = form.log_sum_exps(logits.clone())
    wanted = exact.logsumexp(1), exact.logsumexp(0)
    torch.testing.assert_close(over_columns.double(), wanted[0], rtol=rtol, atol=rtol)
    torch.testing.assert_close(over_rows.double(), wanted[1], rtol=rtol, atol=rtol)
    shifts = [w.masked_fill(w == -torch.inf, 0.0) for w in wanted]
    slopes = by_row.double()[:, None] * (exact - shifts[0][:, None]).exp()
    slopes += by_column.double() * (exact - shifts[1]).exp()
    shifts = [s.to(dtype) for s in shifts]
    out = torch.full_like(logits, torch.nan)
    found = form.softmax_grad(logits.clone(), *shifts, by_row, by_column, out)
    assert found is out
    # An exponential's relative error is its argument's absolute one: some 200 in size here.
    torch.testing.assert_close(found.double(), slopes, rtol=300 * rtol, atol=rtol)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-13), (torch.float32, 1e-6)])
def test_torch(shape, dtype, rtol):
    check(TORCH, shape, dtype, rtol)


def on_tensor_cores(builder, x, y, total, precision, _):
    """A block's product as tensor cores make it of float32 (in place of the interpreter's)."""
    import numpy as np
    from triton.runtime.interpreter import TensorHandle

    def cut(values, half):
        bits = values.astype(np.float32).view(np.uint32) + np.uint32(half)
        return (bits & np.uint32(0xFFFFE000)).view(np.float32)

    def parts(values):
        big = cut(values, 0x1000)  # to the nearest
        return big, cut(values - big, 0)  # what tensor cores read of a float32

    (x_big, x_small), (y_big, y_small) = parts(x.data), parts(y.data)
    product = x_big @ y_big
    if precision.name == "TF32x3":
        product += x_small @ y_big + x_big @ y_small
    return TensorHandle(product + total.data, total.dtype.scalar)


def padded(rows, columns, dtype=torch.float32):
    """Memory of a tile as on a GPU: rows longer than the tile, with anything at their ends."""
    return torch.full((rows, -(-columns // 16) * 16), torch.nan, dtype=dtype)[:, :columns]


def check_products(form):
    """Of every layout that the kernels use, with sizes that no block divides."""
    g = torch.Generator().manual_seed(2)
    for rows, columns, depth in [(1, 1, 1), (5, 140, 40), (150, 33, 7), (20, 16, 2100)]:
        a, b = (torch.randn(n, depth, generator=g) for n in (rows, columns))
        wide, tall, out = padded(rows, depth), padded(depth, rows), padded(rows, columns)
        wide.copy_(a)
        tall.copy_(a.T)
        start = torch.randn(rows, columns, generator=g)
        exact = a.double() @ b.double().T
        tolerance = {"rtol": 0.0, "atol": 1e-6 * depth**0.5 * float(a.abs().max() * b.abs().max())}
        for left, right in [(a, b.T), (wide, b.T.contiguous()), (tall.T, b.T.contiguous())]:
            assert form.product(left, right, out) is out
            torch.testing.assert_close(out.double(), exact, **tolerance)
            found = form.add_product(left, right, start.clone())
            torch.testing.assert_close(found.double(), start.double() + exact, **tolerance)
    assert form.product(a[:0], b.T, out[:0]).shape == (0, columns)


def losses(dtype):
    """Values and gradients of sums over all pairs, in tiles of which none is whole."""
    g = torch.Generator().manual_seed(1)
    u, v = (torch.nn.functional.normalize(torch.randn(40, 24, generator=g)) for _ in range(2))
    u, v = (x.to(dtype).requires_grad_() for x in (u, v))
    s, c = (torch.tensor([x], dtype=dtype, requires_grad=True) for x in (100.0, -10.0))
    pairing = Pairing(tile_bytes=17 * 40 * s.itemsize)
    sums = softmax_sums(u, v, s, pairing)
    softplus, _ = softplus_sums(u, v, s, c, pairing)
    value = (sums.rows + 2 * sums.columns - sums.row_targets + softplus).mean()
    return [value.detach(), *torch.autograd.grad(value, [u, v, s, c])]


def interpreted():
    """Runs in a process of its own: Triton reads the variable when it is imported."""
    from triton.runtime.interpreter import InterpreterBuilder

    from counterpoint.losses.kernels.tile_ops_triton import FUSED

    InterpreterBuilder.create_dot = on_tensor_cores
    for shape in SHAPES:
        check(FUSED, shape, torch.float32, 1e-6)
        check(FUSED, shape, torch.float64, 1e-12)
    check_products(FUSED)
    exact = losses(torch.float64)
    # In units of the largest gradient: rounded to TF32 once, products err by 1e-3.
    for form in (TORCH, FUSED):
        tile_ops.of = lambda tensor, form=form: form
        for found, wanted in zip(losses(torch.float32), exact, strict=True):
            error = float((found - wanted).abs().max() / wanted.abs().max())
            assert error < 1e-5, (form, error)
    print("equal")


@pytest.mark.skipif(sys.platform != "linux", reason="Triton comes with torch on Linux only")
def test_triton_interpreted():
    code = f"import runpy; runpy.run_path({__file__!r})['interpreted']()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.stdout.strip().endswith("equal"), done.stdout + done.stderr


def test_products_in_torch():
    check_products(TORCH)


@pytest.mark.parametrize("setting", ["high", "medium"])
def test_no_setting_of_torch_rounds_products(monkeypatch, setting):
    matmul, seen = torch.backends.cuda.matmul, []
    for name, owner in (("mm", torch), ("addmm_", torch.Tensor)):
        real = getattr(owner, name)

        def record(*args, real=real, **options):
            seen.append((matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision))
            return real(*args, **options)

        monkeypatch.setattr(owner, name, record)
    torch.set_float32_matmul_precision(setting)
    try:
        before = matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision
        found = losses(torch.float32)
        after = matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision
        assert torch.get_float32_matmul_precision() == setting
    finally:
        torch.set_float32_matmul_precision("highest")
        monkeypatch.undo()
    assert before == after and before != ("ieee", "ieee")
    assert len(seen) > 10 and set(seen) == {("ieee", "ieee")}
    for value, wanted in zip(found, losses(torch.float32), strict=True):
        assert torch.equal(value, wanted)


@pytest.mark.gpu
def test_triton_on_a_gpu():
    from counterpoint.losses.kernels.tile_ops_triton import FUSED

    for shape in [*SHAPES, (512, 32768)]:
        logits, (by_row, by_column) = tile(*shape, torch.float32)
        shifts = [s.masked_fill(s == -torch.inf, 0.0) for s in TORCH.log_sum_exps(logits)]
        wanted = TORCH.softmax_grad(
            logits.clone(), *shifts, by_row, by_column, torch.empty_like(logits)
        )
        on_gpu = [t.cuda() for t in (logits, *shifts, by_row, by_column)]
        for a, b in zip(FUSED.log_sum_exps(on_gpu[0]), TORCH.log_sum_exps(logits), strict=True):
            torch.testing.assert_close(a.cpu(), b)
        found = FUSED.softmax_grad(*on_gpu, torch.empty_like(on_gpu[0]))
        torch.testing.assert_close(found.cpu(), wanted, rtol=1e-4, atol=1e-6)


def test_no_graph_breaks():
    logits, (by_row, by_column) = tile(8, 16, torch.float32)
    shifts = [s.masked_fill(s == -torch.inf, 0.0) for s in TORCH.log_sum_exps(logits)]

    def both(logits, out):
        return *TORCH.log_sum_exps(logits), TORCH.softmax_grad(
            logits, *shifts, by_row, by_column, out
        )

    compiled = torch.compile(both, backend="aot_eager", fullgraph=True)
    found = compiled(logits.clone(), torch.empty_like(logits))
    wanted = both(logits.clone(), torch.empty_like(logits))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)
