"""What a call depends on, and how a kernel is launched with little of Python in between."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.errors import TritonError

from blockmem.addressing import Addressing
from blockmem.backends.common import KernelFailure
from blockmem.backends.triton import tiles

# Which kernel Triton compiles depends on AMD's GPUs on the size of tensors too
DIRECT = not torch.version.hip
PLANS = 256  # kept of each kind
ALIGNED = 16  # bytes: what Triton asks of a pointer

Shape = tuple[int, ...]


class Call(NamedTuple):
    """All that a plan depends on."""

    shape: Shape
    strides: tuple[Shape, ...]  # of x and of the result, and of the upstream gradient
    memory_shape: Shape
    memory_stride: Shape
    block_shape: Shape
    dtype: torch.dtype
    device: torch.device
    family: str
    precision: str
    renormalize: bool

    @classmethod
    def of(
        cls, memory: Tensor, block_shape: Shape, addressing: Addressing, *maps: Tensor
    ) -> "Call":
        x = maps[0]
        return cls(
            tuple(x.shape), tuple([one.stride() for one in maps]), tuple(memory.shape),
            memory.stride(), block_shape, x.dtype, x.device, tiles.family_of(x.device),
            tiles.precision_of(x.dtype), addressing.renormalize,
        )  # fmt: skip

    def map(self, which: int) -> Tensor:
        """A map without data, with the strides of one of this call."""
        return torch.empty_strided(self.shape, self.strides[which], device="meta")


def numbers(addressing: Addressing, items: int) -> dict[str, float]:
    """The arguments of kernels that change from call to call, tensors aside."""
    return {"temperature": float(addressing.temperature), "cutoff": addressing.cutoff(items)}


class Launcher:
    """A kernel with its grid and all arguments that stay the same.

    Triton works out at each launch which of its compiled kernels fits the arguments, which takes
    20 to 30 us. Here all of them but tensors and floating-point numbers are fixed, so that it
    depends only on how tensors are aligned; what was compiled is launched at once the next time.
    A launcher belongs to one device.
    """

    def __init__(self, kernel: Any, grid: Sequence[int], **constants: Any) -> None:
        self.kernel = kernel
        self.grid = (*grid, *(1,) * (3 - len(grid)))
        self.constants = constants
        self.compiled: dict[tuple[bool, ...], Any] = {}
        self.names: list[str] = []  # of the kernel's arguments, in order

    def __call__(self, **varying: Tensor | float) -> None:
        aligned = tuple(
            [not v.data_ptr() % ALIGNED for v in varying.values() if isinstance(v, Tensor)]
        )
        compiled = self.compiled.get(aligned)
        if compiled is not None:
            arguments = varying | self.constants
            compiled[self.grid](*[arguments[name] for name in self.names])
            return
        try:
            compiled = self.kernel[self.grid](**varying, **self.constants)
        except TritonError as error:  # of the compiler: what a launch itself meets is none
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise KernelFailure(f"a Triton kernel does not compile here ({lines[-1]})") from error
        if DIRECT and isinstance(self.kernel, triton.JITFunction):
            self.names = self.kernel.arg_names
            self.compiled[aligned] = compiled
