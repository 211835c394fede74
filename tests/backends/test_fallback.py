"""Where a kernel does not compile, "auto" goes on with PyTorch and says so once."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from blockmem import BlockwiseMemory, _operator
from blockmem.backends import choice
from blockmem.backends.common import KernelFailure
from blockmem.backends.torch import chunks

CPU = torch.device("cpu")


def failing(name: str) -> SimpleNamespace:
    """A backend whose function `name` does not compile; others are PyTorch's, saved backwards."""

    def fail(*arguments: Any) -> Any:
        raise KernelFailure("a Triton kernel does not compile here (no such instruction)")

    def forward(*arguments: Any) -> Any:
        out, saved = chunks.forward(*arguments)
        return out, torch.full_like(saved, float("nan"))  # of use to no other backend

    backend = SimpleNamespace(forward=forward, backward=fail, saved_size=chunks.saved_size)
    setattr(backend, name, fail)
    return backend


@pytest.fixture(autouse=True)
def nothing_given_up() -> Iterator[None]:
    yield
    choice.GIVEN_UP.clear()


def choosing(backend: SimpleNamespace) -> Any:
    """In place of `choose`, which takes no Triton for tensors of a CPU."""

    def choose(wanted: str, x: torch.Tensor, *_: Any) -> Any:
        usual = wanted == "torch" or (wanted == "auto" and x.device in choice.GIVEN_UP)
        return chunks if usual else backend

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
    monkeypatch.setattr(_operator, "choose", choosing(failing(name)))
    with pytest.warns(UserWarning, match="does not compile here .*backend 'auto' is PyTorch's"):
        found = run("auto")
    assert_close(found, expected)
    assert {CPU} == choice.GIVEN_UP
    assert_close(run("auto"), expected)  # and no warning, which would be an error


def test_what_triton_saved_is_not_given_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between a forward and its backward another call gives the device up."""
    expected = run("torch")
    monkeypatch.setattr(_operator, "choose", choosing(failing("backward")))
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
    monkeypatch.setattr(_operator, "choose", choosing(failing(name)))
    with pytest.raises(KernelFailure, match="no such instruction"):
        run("triton")
    assert not choice.GIVEN_UP


def test_a_device_that_is_given_up_is_not_asked_again() -> None:
    x = torch.empty(1, 4, 4, 4, device="meta")
    gpu = SimpleNamespace(device=torch.device("cuda"), dtype=x.dtype)
    choice.GIVEN_UP.add(torch.device("cuda"))
    assert choice.choose("auto", gpu, x, None) is chunks
