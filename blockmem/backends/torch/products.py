"""Matrix products of the PyTorch backend, by the fastest library that this PyTorch has for them.

PyTorch multiplies float32 matrices by MKL. oneDNN, built into the same PyTorch, is faster on an AMD
EPYC with AVX-512: 417 GFLOP/s to 205 on two cores of Zen 5, 204 to 184 on Zen 4 (torch 2.13.0). On an
Intel Xeon it is not: each case of the benchmarks takes 2 to 15 % less time by MKL. So both are
measured once a process. oneDNN is reached by the operator that torch.compile uses for linear layers.
Whatever that operator does not take goes to `torch.mm`.
"""

import timeit
from functools import cache, partial

import torch
from torch import Tensor

SLAB = 2**21  # elements in a temporary product: 8 MB in float32
LEAST_FLOPS = 2**23  # of a product that is worth the 20 us that oneDNN takes to begin
# oneDNN's rate over MKL's, from which on it is worth taking, and from which on it is much faster. It
# is 0.8 to 0.95 on an Intel Xeon, 1.1 on Zen 4, 2 on Zen 5: a process should not choose by chance
LEAST_LEAD, LEAD = 1.05, 1.5
ROUNDS = 10  # of the measurement
# Of a product with fewer columns, several sums cost more than oneDNN is faster: where it leads, or not
LEAST_COLUMNS, MORE_COLUMNS = 128, 1024
TERMS = 256  # added up in one go; rounding grows with how many follow one another


def matmul(a: Tensor, b: Tensor, terms: int = TERMS, room: Tensor | None = None) -> Tensor:
    """`a @ b`, of `(R, K)` and `(K, C)`; by oneDNN in sums of so many `terms`, else in `room` if given."""
    if not onednn_takes(a, b):
        return torch.mm(a, b, out=room)
    if not b.is_contiguous() or len(b) <= terms:
        return _onednn(a, b)
    if b.shape[1] < (LEAST_COLUMNS if _lead() > LEAD else MORE_COLUMNS):
        return torch.mm(a, b)
    product = _onednn(a[:, :terms], b[:terms])
    for start in range(terms, len(b), terms):
        some = slice(start, start + terms)
        product += _onednn(a[:, some], b[some])
    return product


def add_products(total: Tensor, a: Tensor, b: Tensor) -> None:
    """In place, `total += a.T @ b`, of `(R, N)` and `(R, D)`."""
    if not onednn_takes(a, b):
        total.addmm_(a.T, b)
    elif a.shape[1] >= b.shape[1]:  # the longer of both sides is best the second one
        # In two sums: more cost time where D is small, and chunks are many sums already
        total.add_(matmul(b.T, a, -(-len(a) // 2)).T)
    else:  # by slabs of items, as a whole product is much memory
        step = max(1, SLAB // b.shape[1])
        terms = min(TERMS, -(-len(a) // 2))  # w and ds are not added up in one go
        for start in range(0, a.shape[1], step):
            items = slice(start, start + step)
            total[items].add_(matmul(a[:, items].T, b, terms))


def _onednn(a: Tensor, b: Tensor) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(a, b.T, None, "none", [], "")
    return product


def onednn_takes(a: Tensor, b: Tensor) -> bool:
    """Whether `matmul` multiplies these by oneDNN."""
    return (
        2 * a.numel() * b.shape[-1] >= LEAST_FLOPS  # asked first: it is all that small products ask
        and a.dtype == torch.float32
        and a.device.type == "cpu"
        # Other strides of b it meets with a loop that is 1000 times slower
        and (b.is_contiguous() or b.T.is_contiguous())
        and bool(torch.backends.mkldnn.enabled)
        and _has_onednn()
        and _lead() > LEAST_LEAD
    )


@cache
def _has_onednn() -> bool:
    return (
        bool(torch.backends.mkldnn.is_available())
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


@cache
def _lead() -> float:
    """Return oneDNN's rate over MKL's, measured once a process: three milliseconds, in turns."""
    a = torch.ones(256, 256)
    times = [
        [timeit.timeit(partial(multiply, a, a), number=1) for multiply in (_onednn, torch.mm)]
        for _ in range(ROUNDS)
    ]
    by_onednn, by_mkl = map(min, zip(*times, strict=True))
    lead: float = by_mkl / by_onednn
    return lead
