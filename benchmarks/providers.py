"""The providers: ways to compute the layer, each `(x, memory, block_shape, threshold) -> y`."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.flex_attention import flex_attention

from benchmarks.machine import Device
from blockmem import assemble, blockwise_memory, divide
from blockmem.backends.torch.products import matmul, onednn_takes

Shape = tuple[int, ...]
Layer = Callable[[Tensor, Tensor, Shape, float], Tensor]


class Formula(NamedTuple):
    """What a provider computes: whether weights are made to sum to 1, and by what blocks are compared."""

    renormalize: bool = False
    similarity: str = "cosine"


DEFAULT = Formula()
FLEX_LARGEST = 512  # FlexAttention keeps whole queries and items on the chip


@dataclass(frozen=True)
class Provider:
    """A name, and `build`, which makes the layer for a device; ValueError says why it cannot."""

    name: str
    build: Callable[[Device], Layer]
    formula: Formula = DEFAULT
    compiles: bool = False

    @property
    def ours(self) -> bool:
        return self.name.startswith("blockmem")


def eager(
    x: Tensor,
    memory: Tensor,
    block_shape: Shape,
    threshold: float,
    formula: Formula = DEFAULT,
) -> Tensor:
    """What a careful user writes. `divide` and `assemble` are one einops `rearrange` each."""
    weights = _probabilities(x, memory, block_shape, formula.similarity)
    weights = torch.where(weights >= threshold, weights, 0.0)
    if formula.renormalize:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return assemble(weights.to(memory.dtype) @ memory, block_shape, x.shape)


def eager_onednn(x: Tensor, memory: Tensor, block_shape: Shape, threshold: float) -> Tensor:
    """Eager's formula, its products by the library that blockmem takes."""
    queries = functional.normalize(divide(x, block_shape), dim=-1).flatten(0, 1)
    cosine = _product(queries, functional.normalize(memory, dim=-1).mT)
    weights = torch.softmax(cosine, dim=-1)
    weights = torch.where(weights >= threshold, weights, 0.0)
    answers = _product(weights, memory)
    return assemble(answers.unflatten(0, (len(x), -1)), block_shape, x.shape)


class _Product(torch.autograd.Function):
    """`a @ b` by blockmem's `matmul`, which has no gradient of its own."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return matmul(a, b)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        return matmul(grad, b.mT), matmul(a.mT, grad)


def _product(a: Tensor, b: Tensor) -> Tensor:
    found: Tensor = _Product.apply(a, b)  # type: ignore[no-untyped-call]  # torch's own
    return found


def _build_eager_onednn(device: Device) -> Layer:
    a = torch.ones(256, 256, device=device.torch)
    if not onednn_takes(a, a):
        raise ValueError("oneDNN is no faster than MKL here, or this PyTorch cannot multiply by it")
    return eager_onednn


def memae(
    x: Tensor, memory: Tensor, block_shape: Shape, threshold: float, similarity: str = "cosine"
) -> Tensor:
    """Shrinkage as MemAE publishes it (Gong et al., ICCV 2019, Eq. 7), then an L1 norm of 1.

    Of the layer this is `renormalize=True`. The logits are cosines, so that all providers address
    alike, or dot products, as in MemAE's code.
    """
    weights = _probabilities(x, memory, block_shape, similarity)
    above = weights - threshold
    weights = functional.relu(above) * weights / (above.abs() + 1e-12)
    # The L1 norm of what is nowhere negative; functional.normalize(p=1) is ten times less exact
    weights = weights / weights.sum(dim=-1, keepdim=True).clamp_min(1e-12)
    return assemble(weights.to(memory.dtype) @ memory, block_shape, x.shape)


def _probabilities(
    x: Tensor, memory: Tensor, block_shape: Shape, similarity: str = "cosine"
) -> Tensor:
    """`(B, Q, N)`, in float32 for half dtypes: weights near 1/N need the digits."""
    queries = divide(x, block_shape)
    if similarity == "cosine":
        queries = functional.normalize(queries, dim=-1)
        memory = functional.normalize(memory, dim=-1)
    dtype = torch.promote_types(x.dtype, torch.float32)
    return torch.softmax(queries @ memory.mT, dim=-1, dtype=dtype)


def flex(x: Tensor, memory: Tensor, block_shape: Shape, threshold: float) -> Tensor:
    """FlexAttention twice: once for each query's log-sum-exp, once over the items it keeps.

    The second pass divides by the sum of what is kept; exp of the two log-sum-exps' difference
    takes that back.
    """
    queries = functional.normalize(divide(x, block_shape).flatten(0, 1), dim=-1)[None, None]
    keys = functional.normalize(memory, dim=-1)[None, None]
    # Only the log-sum-exp is wanted of the first pass, so its values are as few as can be
    _, total = flex_attention(queries, keys, keys[..., :16], scale=1.0, return_lse=True)
    fixed = total.detach()  # the set of kept items is held constant, as for ReLU

    def shrink(score: Tensor, b: Tensor, h: Tensor, q: Tensor, item: Tensor) -> Tensor:
        return torch.where(torch.exp(score - fixed[b, h, q]) >= threshold, score, -torch.inf)

    answers, kept = flex_attention(
        queries, keys, memory[None, None], score_mod=shrink, scale=1.0, return_lse=True
    )
    answers = answers * torch.exp(kept - total).unsqueeze(-1)
    batch = x.shape[0]
    return assemble(
        answers.to(x.dtype).view(batch, -1, memory.shape[1]), block_shape, tuple(x.shape)
    )


def _compiled(function: Layer, device: Device) -> Layer:
    # fullgraph, so that what cannot be compiled is an error rather than eager under another name
    compiled: Layer = torch.compile(
        function, fullgraph=True, dynamic=False, mode=device.compile_mode
    )
    return compiled


def _build_flex(device: Device) -> Layer:
    refusal = _flex_refusal(device)
    if refusal:
        raise ValueError(refusal)
    compiled = _compiled(flex, device)

    def layer(x: Tensor, memory: Tensor, block_shape: Shape, threshold: float) -> Tensor:
        if memory.shape[1] > FLEX_LARGEST:
            raise ValueError(
                f"FlexAttention keeps whole queries on the chip: D {memory.shape[1]} is above "
                f"{FLEX_LARGEST}"
            )
        return compiled(x, memory, block_shape, threshold)

    return layer


@cache
def _flex_refusal(device: Device) -> str | None:
    """Why FlexAttention cannot run on a device at all, asked once: it takes seconds to say so."""
    try:
        _compiled(flex, device)(device.ones(64, 64, 1), device.ones(64, 64), (64, 1), 0.0)
    except Exception as error:  # whatever it is, it is the reason
        return reason(error)
    return None


def _build_blockmem(backend: str) -> Callable[[Device], Layer]:
    def layer(x: Tensor, memory: Tensor, block_shape: Shape, threshold: float) -> Tensor:
        return blockwise_memory(x, memory, block_shape, threshold=threshold, backend=backend)

    def build(device: Device) -> Layer:
        # The library's own words where it has no such backend, or none for this device
        layer(device.ones(1, 16, 1), device.ones(16, 16), (16, 1), 0.0)
        return layer

    return build


def reason(error: Exception) -> str:
    """One line of at most 200 characters that says what went wrong."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    text = re.sub(r"^(\w+(Error|Exception): )+", "", text)  # errors that were wrapped in others
    if "allocate" in text:
        text = f"out of memory: {text.rpartition('Allocator: ')[2]}"
    return text if len(text) <= 200 else text[:197] + "..."


PROVIDERS: dict[str, Provider] = {
    provider.name: provider
    for provider in (
        Provider("eager", lambda device: eager),
        Provider("eager-onednn", _build_eager_onednn),
        Provider("compile", lambda device: _compiled(eager, device), compiles=True),
        Provider("memae", lambda device: memae, Formula(renormalize=True)),
        Provider(
            "memae-dot", lambda device: partial(memae, similarity="dot"), Formula(True, "dot")
        ),
        Provider("flex", _build_flex, compiles=True),
        Provider("blockmem-torch", _build_blockmem("torch")),
        Provider("blockmem-triton", _build_blockmem("triton")),
    )
}
