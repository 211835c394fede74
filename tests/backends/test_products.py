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
    monkeypatch.setattr(products, "_has_onednn", lambda: request.param)


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


@pytest.mark.parametrize(("leads", "columns"), [(True, 128), (False, 1024)])
def test_short_rows_go_to_mkl(leads, columns, library, monkeypatch):
    """Two sums or more, and few columns: how few, depends on how much faster oneDNN is."""
    if not products._has_onednn():
        pytest.skip("no oneDNN, or no AVX-512")
    found = []
    monkeypatch.setattr(products, "_onednn_leads", lambda: leads)
    monkeypatch.setattr(products.torch, "mm", lambda a, b: found.append("mm") or a @ b)
    onednn = products._onednn
    monkeypatch.setattr(products, "_onednn", lambda a, b: found.append("onednn") or onednn(a, b))
    a = torch.randn(256, 300)
    for count in (columns - 1, columns):
        b = torch.randn(300, count)
        assert_close(matmul(a, b).double(), a.double() @ b.double(), rtol=1e-4, atol=1e-4)
    assert found == ["mm", "onednn", "onednn"]


@pytest.mark.parametrize(("onednn", "mkl", "leads"), [(1.0, 2.0, True), (1.0, 1.4, False)])
def test_which_library_leads_is_measured(onednn, mkl, leads, monkeypatch):
    times = iter([[9.0, onednn], [mkl, 8.0]])
    monkeypatch.setattr(products.timeit, "repeat", lambda *given, **named: next(times))
    assert products._onednn_leads.__wrapped__() is leads
