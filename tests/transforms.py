"""Every transform of PyTorch that the layer was tried with, and what comes out.

A row takes a function of a map and a memory, and returns what the transform makes of it. The tests
run each on the layer and on the formula, written here in plain PyTorch, both eager and compiled.
docs/transforms.md has the same table: `python -m tests.transforms` writes it anew.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch import Tensor, func
from torch.autograd import functional
from torch.utils.checkpoint import checkpoint

from blockmem import blockwise_memory

PAGE = Path(__file__).parents[1] / "docs" / "transforms.md"
BLOCK, TEMPERATURE = (4, 2, 2), 0.5

Layer = Callable[[Tensor, Tensor], Tensor]


def layer(x: Tensor, memory: Tensor) -> Tensor:
    return blockwise_memory(x, memory, BLOCK, temperature=TEMPERATURE)


def formula(x: Tensor, memory: Tensor) -> Tensor:
    """The same for maps of four channels, by nothing of blockmem."""
    batch, channels, height, width = x.shape
    grid = x.reshape(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 3, 5, 1)
    queries = F.normalize(grid.reshape(batch, -1, 16), dim=-1)
    p = torch.softmax(queries @ F.normalize(memory, dim=-1).T / TEMPERATURE, dim=-1)
    answers = torch.where(p < 1 / memory.shape[0], 0.0, p) @ memory
    return answers.reshape(grid.shape).permute(0, 5, 1, 3, 2, 4).reshape(x.shape)


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 4, 4, dtype=torch.float64, generator=generator)
    return x, torch.randn(5, 16, dtype=torch.float64, generator=generator)


def loss(f: Layer) -> Layer:
    return lambda x, memory: f(x, memory).square().sum()


def leaves(x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    return x.detach().requires_grad_(), memory.detach().requires_grad_()


def penalty(gradients: tuple[Tensor, ...]) -> Tensor:
    """Another number to differentiate."""
    return torch.stack([g.square().sum() for g in gradients]).sum()


@dataclass(frozen=True)
class Row:
    name: str
    run: Callable[[Layer, Tensor, Tensor], Any]
    by: str  # "operator", or "formula" where that stands in for it
    # Whether PyTorch compiles the whole, and whether it takes a compiled layer; else it refuses that
    # for any function
    whole: bool
    around: bool


ROWS: list[Row] = []
TOOLS: list[tuple[str, str]] = []  # filled by test_tools


def tool(name: str, outcome: str) -> Callable[[Any], Any]:
    """Make a test a line of the page: what is tried, and what comes out."""
    TOOLS.append((name, outcome))
    return lambda test: test


def row(
    name: str, *, by: str = "formula", whole: bool = True, around: bool = False
) -> Callable[..., Any]:
    def add(run: Callable[[Layer, Tensor, Tensor], Any]) -> None:
        ROWS.append(Row(name, run, by, whole, around))

    return add


@row("a call", by="operator", around=True)
def _(f: Layer, x: Tensor, memory: Tensor) -> Any:
    return f(x, memory)


@row("`torch.no_grad`, `torch.inference_mode`", by="operator", around=True)
def _(f: Layer, x: Tensor, memory: Tensor) -> Any:
    with torch.no_grad():
        first = f(x, memory)
    with torch.inference_mode():
        return first, f(x, memory).clone()


@row("`backward`, `torch.autograd.grad`", by="operator", whole=False, around=True)
def _(f: Layer, x: Tensor, memory: Tensor) -> Any:
    x, memory = leaves(x, memory)
    return torch.autograd.grad(loss(f)(x, memory), (x, memory))


@row("gradients of gradients (`create_graph=True`), to the third order", whole=False)
def _(f: Layer, x: Tensor, memory: Tensor) -> Any:
    x, memory = leaves(x, memory)
    first = torch.autograd.grad(loss(f)(x, memory), (x, memory), create_graph=True)
    second = torch.autograd.grad(penalty(first), (x, memory), create_graph=True)
    return first, second, torch.autograd.grad(penalty(second), (x, memory))


@row("batched gradients (`is_grads_batched=True`)", whole=False)
def _(f: Layer, x: Tensor, memory: Tensor) -> Any:
    x, memory = leaves(x, memory)
    grads = torch.stack([torch.ones_like(x), x.detach()])
    once = torch.autograd.grad(f(x, memory), (x, memory), grads, is_grads_batched=True)
    graph = torch.autograd.grad(
        f(x, memory), (x, memory), grads, is_grads_batched=True, create_graph=True
    )
    return once, torch.autograd.grad(penalty(graph), (x, memory))


@row("activation checkpointing", by="operator", whole=False, around=True)
def _(f: Layer, x: Tensor, memory: Tensor) -> Any:
    x, memory = leaves(x, memory)
    again = torch.autograd.grad(checkpoint(loss(f), x, memory, use_reentrant=False), (x, memory))
    checkpoint(loss(f), x, memory, use_reentrant=True).backward()
    return again, x.grad, memory.grad


@row("`torch.autograd.graph.save_on_cpu`", by="operator", whole=False, around=True)
def _(f: Layer, x: Tensor, memory: Tensor) -> Any:
    x, memory = leaves(x, memory)
    with torch.autograd.graph.save_on_cpu():
        value = loss(f)(x, memory)
    return torch.autograd.grad(value, (x, memory))


@row("`forward_ad.dual_level`", around=True)
def _(f: Layer, x: Tensor, memory: Tensor) -> Any:
    with forward_ad.dual_level():
        x, memory = (forward_ad.make_dual(t, t.cos()) for t in (x, memory))
        return forward_ad.unpack_dual(f(x, memory)).tangent


@row("dual numbers through a backward", whole=False)
def _(f: Layer, x: Tensor, memory: Tensor) -> Any:
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x.detach().requires_grad_(), x.cos())
        (gradient,) = torch.autograd.grad(loss(f)(dual, memory), dual, create_graph=True)
        plain = x.detach().requires_grad_()
        (other,) = torch.autograd.grad(f(plain, memory), plain, forward_ad.make_dual(x, x.cos()))
        return forward_ad.unpack_dual(gradient).tangent, forward_ad.unpack_dual(other).tangent


@row("`torch.autograd.functional.jacobian`, `hessian`", whole=False)
def _(f: Layer, x: Tensor, memory: Tensor) -> Any:
    return functional.jacobian(f, (x, memory)), functional.hessian(loss(f), (x, memory))


@row("the same with `vectorize=True`", whole=False)
def _(f: Layer, x: Tensor, memory: Tensor) -> Any:
    return (
        functional.jacobian(f, (x, memory), vectorize=True),
        functional.hessian(loss(f), (x, memory), vectorize=True),
    )


@row('the same with `strategy="forward-mode"`', whole=False)
def _(f: Layer, x: Tensor, memory: Tensor) -> Any:
    mode = {"vectorize": True, "outer_jacobian_strategy": "forward-mode"}
    return (
        functional.jacobian(f, (x, memory), vectorize=True, strategy="forward-mode"),
        functional.hessian(loss(f), (x, memory), **mode),
    )


@row("`torch.func.grad`")
def _(f: Layer, x: Tensor, memory: Tensor) -> Any:
    return func.grad(loss(f), argnums=(0, 1))(x, memory)


@row("`torch.func.grad`, three deep")
def _(f: Layer, x: Tensor, memory: Tensor) -> Any:
    first = func.grad(loss(f))
    second = func.grad(lambda x, memory: first(x, memory).square().sum())
    third = func.grad(lambda x, memory: second(x, memory).square().sum(), argnums=(0, 1))
    return third(x, memory)


@row("`torch.func.vjp`")
def _(f: Layer, x: Tensor, memory: Tensor) -> Any:
    out, pull = func.vjp(f, x, memory)
    return out, pull(x)


@row("`torch.func.jvp`")
def _(f: Layer, x: Tensor, memory: Tensor) -> Any:
    frozen = func.jvp(lambda x: f(x, memory), (x,), (x.cos(),))
    return frozen, func.jvp(f, (x, memory), (x.cos(), memory.cos()))


@row("`torch.func.linearize`", whole=False)
def _(f: Layer, x: Tensor, memory: Tensor) -> Any:
    out, linear = func.linearize(lambda x: f(x, memory), x)
    return out, linear(x.cos())


@row("`torch.func.jacrev`")
def _(f: Layer, x: Tensor, memory: Tensor) -> Any:
    return func.jacrev(f, argnums=(0, 1))(x, memory)


@row("`torch.func.jacfwd`")
def _(f: Layer, x: Tensor, memory: Tensor) -> Any:
    return func.jacfwd(f, argnums=(0, 1))(x, memory)


@row("`torch.func.hessian`, `jvp` of `vjp`, `vjp` of `jvp`")
def _(f: Layer, x: Tensor, memory: Tensor) -> Any:
    def pull(x: Tensor) -> Tensor:
        return func.vjp(lambda x: f(x, memory), x)[1](memory.sum() * torch.ones_like(x))[0]

    def push(x: Tensor) -> Tensor:
        return func.jvp(lambda x: f(x, memory), (x,), (x.cos(),))[1]

    return (
        func.hessian(loss(f))(x, memory),
        func.jvp(pull, (x,), (x.cos(),)),
        func.vjp(push, x)[1](x),
    )


@row("`torch.vmap` over maps or memories")
def _(f: Layer, x: Tensor, memory: Tensor) -> Any:
    several = torch.stack([memory, 1 + 2 * memory.flip(0)])
    maps = torch.vmap(lambda x: f(x[None], memory)[0])(x)
    return maps, torch.vmap(f, in_dims=(None, 0))(x, several)


@row("`torch.vmap` of `torch.func.grad` (gradients of each sample)")
def _(f: Layer, x: Tensor, memory: Tensor) -> Any:
    one = func.grad(lambda x, memory: loss(f)(x[None], memory), argnums=1)
    return torch.vmap(one, in_dims=(0, None))(x, memory)


def table() -> str:
    """The rows in Markdown."""
    by = {"operator": "operator", "formula": "formula, all weights held"}
    compiled = {True: "right", False: "PyTorch refuses it"}
    lines = [
        "| transform | eager | compiled as a whole | around a compiled layer | computed by |",
        "|---|---|---|---|---|",
    ]
    for r in ROWS:
        cells = (r.name, "right", compiled[r.whole], compiled[r.around], by[r.by])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def tools() -> str:
    """What test_tools tries, in Markdown."""
    from tests import test_tools  # noqa: F401  # which fills the list

    return "\n".join(["| tool | outcome |", "|---|---|", *(f"| {n} | {o} |" for n, o in TOOLS)])


def page(text: str) -> str:
    """The page with its tables made anew."""
    for name, made in (("transforms", table()), ("tools", tools())):
        before, rest = text.split(f"<!-- {name} -->\n", 1)
        after = rest.split(f"<!-- /{name} -->", 1)[1]
        text = f"{before}<!-- {name} -->\n{made}\n<!-- /{name} -->{after}"
    return text


if __name__ == "__main__":
    from tests.transforms import page as written  # in the module that test_tools knows

    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
