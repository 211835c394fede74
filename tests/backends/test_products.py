"""Products by oneDNN and by `torch.mm` are the same products, whatever the strides."""

import pytest
import torch
from torch.testing import assert_close

from blockmem.backends.torch import products
from blockmem.backends.torch.products import add_products, matmul

LAYOUTS = {
    "rows": lambda t: t,
    "columns": lambda t: t.T.contiguous().T,
    "slice": lambda t: torch.randn(t.shape[0], t.shape[1] + 3)[:, : t.shape[1]].copy_(t),
    "expanded": lambda t: t[:1].expand(t.shape),
}


@pytest.fixture(params=[False, True], ids=["mm", "onednn"])
def library(request, monkeypatch):
    if request.param and not products._has_onednn():
        pytest.skip("no oneDNN, or no AVX-512")
    monkeypatch.setattr(products, "_lead", lambda: 2.0 if request.param else 1.0)


@pytest.mark.parametrize("b_layout", LAYOUTS)
@pytest.mark.parametrize("a_layout", LAYOUTS)
@pytest.mark.parametrize("sizes", [(7, 33, 5), (64, 20, 130), (1, 1, 1), (0, 3, 4), (3, 0, 4)])
def test_times(sizes, a_layout, b_layout, library):
    rows, inner, columns = sizes
    a, b = (LAYOUTS[k](torch.randn(s)) for k, s in
            ((a_layout, (rows, inner)), (b_layout, (inner, columns))))  # fmt: skip
    assert_close(matmul(a, b).double(), a.double() @ b.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", [(30, 17, 5), (30, 5, 17), (64, 40, 4096), (0, 4, 5)])
def test_add_products(sizes, dtype, library, monkeypatch):
    monkeypatch.setattr(products, "SLAB", 3 * 4096)  # several slabs of items
    rows, items, size = sizes
    a, b, total = (
        torch.randn(s, dtype=dtype) for s in ((rows, items), (rows, size), (items, size))
    )
    expected = total.double() + a.double().T @ b.double()
    add_products(total, a, b)
    assert_close(total.double(), expected, rtol=1e-4, atol=1e-4)


def test_what_onednn_would_compute_by_a_slow_loop_goes_to_mm():
    wide = torch.randn(20, 64)
    assert not products.onednn_takes(torch.randn(8, 20), wide[:, :32])
    assert not products.onednn_takes(torch.randn(8, 20).double(), wide.double())


def test_pytorchs_switch_is_obeyed():
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        assert not products.onednn_takes(torch.randn(8, 20), torch.randn(20, 8))
    finally:
        torch._C._set_mkldnn_enabled(before)


@pytest.mark.parametrize(("lead", "columns"), [(2.0, 128), (1.1, 1024)])
def test_short_rows_go_to_mkl(lead, columns, monkeypatch):
    """Two sums or more, and few columns: how few, depends on how much faster oneDNN is."""
    if not products._has_onednn():
        pytest.skip("no oneDNN, or no AVX-512")
    found = []
    monkeypatch.setattr(products, "_lead", lambda: lead)
    monkeypatch.setattr(products.torch, "mm", lambda a, b, **out: found.append("mm") or a @ b)
    onednn = products._onednn
    monkeypatch.setattr(products, "_onednn", lambda a, b: found.append("onednn") or onednn(a, b))
    a = torch.randn(256, 300)
    for count in (columns - 1, columns):
        b = torch.randn(300, count)
        assert_close(matmul(a, b).double(), a.double() @ b.double(), rtol=1e-4, atol=1e-4)
    assert found == ["mm", "onednn", "onednn"]


@pytest.mark.parametrize(("lead", "takes"), [(0.9, False), (1.0, False), (1.1, True)])
def test_onednn_is_taken_where_it_is_faster(lead, takes, monkeypatch):
    if not products._has_onednn():
        pytest.skip("no oneDNN, or no AVX-512")
    monkeypatch.setattr(products, "_lead", lambda: lead)
    a = torch.ones(256, 256)
    assert products.onednn_takes(a, a) is takes


def test_the_lead_is_that_of_the_shortest_times(monkeypatch):
    times = iter([9.0, 8.0, 1.0, 3.0] + 16 * [4.0])  # oneDNN's, then MKL's, in turns
    monkeypatch.setattr(products.timeit, "timeit", lambda *given, **named: next(times))
    assert products._lead.__wrapped__() == 3.0
    assert next(times, None) is None
