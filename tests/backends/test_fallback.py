"""Where a kernel does not compile, "auto" goes on with PyTorch and says so once."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from blockmem import BlockwiseMemory, blockwise_memory
from blockmem.backends import choice
from blockmem.backends.common import KernelFailure
from blockmem.backends.torch import chunks

CPU = torch.device("cpu")


def failing(name: str) -> SimpleNamespace:
    """A backend whose function `name` does not compile; others are PyTorch's.

    What it saves is of use to no other backend, and of another size.
    """

    def fail(*arguments: Any) -> Any:
        raise KernelFailure("a Triton kernel does not compile here (no such instruction)")

    def saved_size(queries: int, *_: Any) -> int:
        return 3 * queries

    def forward(x: torch.Tensor, memory: torch.Tensor, *rest: Any) -> Any:
        out, _ = chunks.forward(x, memory, *rest)
        count = saved_size(x.numel() // memory.shape[1]) if rest[-1] else 0
        return out, x.new_full((count,), float("nan"))

    backend = SimpleNamespace(forward=forward, backward=fail, saved_size=saved_size)
    setattr(backend, name, fail)
    return backend


@pytest.fixture(autouse=True)
def nothing_given_up() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    choice.GIVEN_UP.clear()


def choosing(backend: SimpleNamespace) -> Any:
    """In place of `choose`, which takes no Triton for tensors of a CPU."""

    def choose(wanted: str, x: torch.Tensor, *_: Any) -> Any:
        return chunks if wanted == "torch" else backend

    return choose


def run(backend: str) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    layer = BlockwiseMemory(20, (4, 2, 2), temperature=0.2, backend=backend)
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    out = layer(x)
    out.square().sum().backward()
    return out.detach(), x.grad, layer.memory.grad


@pytest.mark.parametrize("name", ["forward", "backward"])
def test_auto_goes_on_with_pytorch_and_warns_once(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run("torch")
    monkeypatch.setattr(choice, "choose", choosing(failing(name)))
    with pytest.warns(UserWarning, match="does not compile here .*backend 'auto' is PyTorch's"):
        found = run("auto")
    assert_close(found, expected)
    assert {CPU} == choice.GIVEN_UP
    assert_close(run("auto"), expected)  # and no warning, which would be an error


def test_what_triton_saved_is_not_given_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between a forward and its backward another call gives the device up."""
    expected = run("torch")
    monkeypatch.setattr(choice, "choose", choosing(failing("backward")))
    torch.manual_seed(0)
    layer = BlockwiseMemory(20, (4, 2, 2), temperature=0.2)
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    out = layer(x)
    choice.GIVEN_UP.add(CPU)
    out.square().sum().backward()
    assert_close((out.detach(), x.grad, layer.memory.grad), expected)


@pytest.mark.parametrize("name", ["forward", "backward"])
def test_triton_that_was_asked_for_says_why_it_cannot(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "choose", choosing(failing(name)))
    with pytest.raises(KernelFailure, match="no such instruction"):
        run("triton")
    assert not choice.GIVEN_UP


def test_a_device_that_is_given_up_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = failing("forward")
    backend.backward = lambda *_: pytest.fail("asked")
    monkeypatch.setattr(choice, "choose", choosing(backend))
    with pytest.warns(UserWarning, match="does not compile here"):
        expected = run("auto")
    backend.forward = lambda *_: pytest.fail("asked")
    assert_close(run("auto"), expected)


compiles = pytest.mark.filterwarnings(  # of the compiler's own code
    "ignore::DeprecationWarning", "ignore:dynamo_pgo force disabled"
)
# Or a graph might be taken from disk that was made for another backend
FRESH = torch.compiler.config.patch(force_disable_caches=True)


def read_gradients(read: Callable[..., torch.Tensor], temperature: float) -> Any:
    torch.manual_seed(0)
    x, memory = torch.randn(2, 4, 8, 8), torch.randn(20, 16)
    sources = x.requires_grad_(), memory.requires_grad_()
    out = read(x, memory, (4, 2, 2), temperature=temperature)
    return torch.autograd.grad(out.sin().sum(), sources)


@compiles
@pytest.mark.parametrize("annealed", [False, True])
@pytest.mark.parametrize("name", ["forward", "backward"])
def test_a_compiled_graph_that_was_made_for_triton_goes_on(
    annealed: bool, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its buffers are as large as what Triton would have saved, which is not what PyTorch saves."""
    temperatures = (0.2, 0.3, 0.4) if annealed else (0.2, 0.2)
    expected = [read_gradients(blockwise_memory, t) for t in temperatures]
    monkeypatch.setattr(choice, "choose", choosing(failing(name)))
    monkeypatch.setattr(choice, "unsupported_reason", lambda *_: None)
    compiled = torch.compile(blockwise_memory, fullgraph=True, dynamic=annealed)
    with FRESH, pytest.warns(UserWarning, match="does not compile .* 'auto' is PyTorch's"):
        found = [read_gradients(compiled, t) for t in temperatures]
    assert_close(found, expected)


@compiles
def test_a_compiled_graph_goes_on_where_the_temperature_becomes_too_low_for_triton(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    temperatures = (1.0, 0.5, 1 / 80)
    expected = [read_gradients(blockwise_memory, t) for t in temperatures]
    backend = failing("nothing")  # it computes, and what it saves is its own
    backend.backward = lambda *given: chunks.backward(
        *given[:3], chunks.forward(*given[1:3], *given[4:6], True)[1], *given[4:]
    )
    monkeypatch.setattr(choice, "choose", choosing(backend))
    monkeypatch.setattr(
        choice, "unsupported_reason", lambda *given: None if given[2].bounded else "too low"
    )
    compiled = torch.compile(blockwise_memory, fullgraph=True, dynamic=True)
    with FRESH:
        found = [read_gradients(compiled, t) for t in temperatures]
    assert_close(found, expected)
