"""A tile's functions: in Triton (interpreted on the CPU) as in float64; no graph breaks."""

import os
import subprocess
import sys

import pytest
import torch

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


def interpreted():
    """Runs in a process of its own: Triton reads the variable when it is imported."""
    from counterpoint.losses.kernels import tile_ops as inner
    from counterpoint.losses.kernels.pairing import Pairing
    from counterpoint.losses.kernels.reductions import softmax_sums
    from counterpoint.losses.kernels.tile_ops_triton import FUSED

    for shape in SHAPES:
        check(FUSED, shape, torch.float32, 1e-6)
        check(FUSED, shape, torch.float64, 1e-12)
    g = torch.Generator().manual_seed(1)
    u, v = (torch.randn(40, 6, generator=g).requires_grad_() for _ in range(2))
    s = torch.tensor([100.0], requires_grad=True)
    results = []
    for form in (inner.TORCH, FUSED):
        inner.of = lambda device, form=form: form
        sums = softmax_sums(u, v, s, Pairing(tile_bytes=40 * 16 * 4))
        value = (sums.rows + 2 * sums.columns - sums.row_targets).sum()
        results.append([value, *torch.autograd.grad(value, [u, v, s])])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)
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
