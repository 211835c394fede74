"""A launcher: what Triton compiled is launched again with the arguments in the kernel's order."""

from unittest import mock

import pytest
import torch
from triton.runtime.errors import PTXASError

from blockmem.backends.common import KernelFailure
from blockmem.backends.triton import launcher


class Kernel:
    """As much of a JITFunction as a launcher needs; each compiled kernel is a list of its calls."""

    arg_names = ("x", "size", "cutoff", "y", "PRECISION")

    def __init__(self):
        self.compiled = []

    def __getitem__(self, grid):
        def compile_and_launch(**arguments):
            self.compiled.append(Compiled())
            self.compiled[-1].calls.append((grid, arguments))
            return self.compiled[-1]

        return compile_and_launch


class Compiled:
    def __init__(self):
        self.calls = []

    def __getitem__(self, grid):
        return lambda *arguments: self.calls.append((grid, arguments))


def test_what_is_fixed_is_worked_out_once():
    kernel = Kernel()
    launch = launcher.Launcher(kernel, (3, 2), size=7, PRECISION="x", num_warps=4)
    base = torch.empty(64)
    x, y = base[:8], base[16:24]
    with mock.patch.object(launcher.triton, "JITFunction", Kernel):
        launch(y=y, cutoff=0.5, x=x)
        launch(cutoff=0.25, y=x, x=y)
        assert kernel.compiled[0].calls == [
            (
                (3, 2, 1),
                {"y": y, "cutoff": 0.5, "x": x, "size": 7, "PRECISION": "x", "num_warps": 4},
            ),
            ((3, 2, 1), (y, 7, 0.25, x, "x")),
        ]
        launch(y=y, cutoff=0.5, x=base[1:9])  # compiled for pointers of other alignment
    assert len(kernel.compiled) == 2


def test_a_kernel_that_does_not_compile_is_told_from_other_errors():
    class Broken(Kernel):
        def __init__(self, error):
            self.error = error

        def __getitem__(self, grid):
            def compile_and_launch(**arguments):
                raise self.error

            return compile_and_launch

    launch = launcher.Launcher(Broken(PTXASError("ptxas: error\nno such instruction")), (1,))
    with pytest.raises(KernelFailure, match=r"does not compile here \(.*no such instruction"):
        launch(x=torch.empty(4))
    launch = launcher.Launcher(Broken(RuntimeError("an illegal memory access")), (1,))
    with pytest.raises(RuntimeError, match="^an illegal memory access"):
        launch(x=torch.empty(4))


def test_nothing_is_kept_of_what_is_interpreted():
    kernel = Kernel()
    launch = launcher.Launcher(kernel, (1,), size=7, PRECISION="x")
    for _ in range(2):
        launch(x=torch.empty(4), y=torch.empty(4), cutoff=0.5)
    assert len(kernel.compiled) == 2
