"""What the tests of the library share: backends and where they run, the reference, and inputs
that keep clear of the kink."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from blockmem import blockwise_memory, divide
from blockmem.addressing import Addressing, address, reference
from blockmem.backends.choice import load_triton

# Set for the process in which Triton's interpreter runs the kernels on the CPU
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@dataclass(frozen=True)
class Place:
    """A backend, where it runs, and for Triton which of its kernels: those for small or for large
    blocks, whatever D is."""

    backend: str
    device: str
    largest_small: int | None = None

    @property
    def id(self) -> str:
        kind = {None: "", 0: "-large"}.get(self.largest_small, "-small")
        return f"{self.backend}{kind}-{self.device}"

    @contextmanager
    def __call__(self) -> Iterator[None]:
        if self.largest_small is None:
            yield
            return
        with mock.patch.object(load_triton(), "largest_small", return_value=self.largest_small):
            yield


def _places() -> Iterator[object]:
    triton = [("triton", 4096), ("triton", 0)]
    if INTERPRETED:
        for backend, largest in triton:
            yield pytest.param(Place(backend, "cpu", largest), id=Place(backend, "cpu", largest).id)
        return
    yield pytest.param(Place("torch", "cpu"), id="torch-cpu")
    no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    for backend, largest in [("torch", None), ("triton", None), ("triton", 0)]:
        place = Place(backend, "cuda", largest)
        yield pytest.param(place, id=place.id, marks=[pytest.mark.gpu, no_gpu])


places = pytest.mark.parametrize("place", list(_places()))


def clear_threshold(
    x: Tensor,
    memory: Tensor,
    block_shape: tuple[int, ...],
    temperature: float,
    similarity: str = "cosine",
) -> float:
    """A threshold among this input's probabilities, in the widest gap of their middle half.

    An item whose weight is close to the threshold is kept or dropped by rounding, and no two
    dtypes need agree. Values and gradients are compared where none is close.
    """
    addressing = Addressing(temperature, 0.0, False, similarity)
    blocks = divide(x.double().cpu(), block_shape)
    probabilities = address(blocks, memory.double().cpu(), addressing).flatten().sort().values
    if len(probabilities) < 4:
        return 0.5 / memory.shape[0]
    quarter = len(probabilities) // 4
    middle = probabilities[quarter : len(probabilities) - quarter]
    widest = middle.diff().argmax()
    return ((middle[widest] + middle[widest + 1]) / 2).item()


def reference_gradients(
    x: Tensor, memory: Tensor, grad: Tensor, block_shape: tuple[int, ...], addressing: Addressing
) -> tuple[Tensor, Tensor, Tensor]:
    """Value and both gradients of the reference in float64."""
    x, memory = (t.detach().cpu().double().requires_grad_() for t in (x, memory))
    out = reference(x, memory, block_shape, addressing)
    return (out.detach(), *torch.autograd.grad(out, (x, memory), grad.cpu().double()))


def gradients(
    x: Tensor, memory: Tensor, block_shape: tuple[int, ...], **settings: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The layer's value, and both gradients of its sum."""
    x, memory = x.detach().requires_grad_(), memory.detach().requires_grad_()
    out = blockwise_memory(x, memory, block_shape, **settings)
    return (out.detach(), *torch.autograd.grad(out, (x, memory), torch.ones_like(out)))
