"""What the Triton backend does not take: "auto" goes to PyTorch, "triton" says why."""

import pytest
import torch

from blockmem import blockwise_memory, kernels
from blockmem.addressing import Addressing
from blockmem.ops import choose

HOW = Addressing(1.0, 0.1, False)


def refusal(monkeypatch, x=None, items=10, how=HOW, device="cuda"):
    """For a tensor that says it is on a GPU."""
    monkeypatch.setattr(kernels, "_wrong_device", lambda x: None)
    x = torch.zeros(1, 4, 4, 4) if x is None else x
    return kernels.refusal(x, torch.zeros(items, 16), how)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"x": torch.zeros(1, 4, 4, 4).double()}, "float64 is not supported"),
        ({"how": Addressing(0.005, 0.1, False)}, "temperature 0.005 is below 0.0125"),
        ({"items": 20000}, "20000 items are more than 16384"),
    ],
)
def test_reasons(arguments, text, monkeypatch):
    assert text in refusal(monkeypatch, **arguments)


def test_what_it_takes(monkeypatch):
    assert refusal(monkeypatch) is None


@pytest.mark.parametrize(("found", "text"), [("3.2.0", "3.2.0 is older than 3.3"), (None, "not")])
def test_triton_is_old_or_missing(found, text, monkeypatch):
    def version(name):
        if found is None:
            raise kernels.PackageNotFoundError(name)
        return found

    kernels._no_triton.cache_clear()
    monkeypatch.setattr(kernels, "version", version)
    assert text in refusal(monkeypatch)
    kernels._no_triton.cache_clear()


def test_an_old_gpu(monkeypatch):
    kernels._wrong_gpu.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    assert kernels._wrong_gpu(0) == "GPU 0 is older than compute capability 8.0"
    kernels._wrong_gpu.cache_clear()


def test_on_the_cpu_it_is_refused_with_the_reason(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="backend 'triton': x is on cpu: .* TRITON_INTERPRET=1"):
        blockwise_memory(torch.zeros(1, 4, 4, 4), torch.zeros(10, 16), (4, 2, 2), backend="triton")


def test_auto_goes_to_pytorch_where_triton_refuses(monkeypatch):
    class OnGpu:
        device, dtype = torch.device("cuda", 0), torch.float64

    memory = torch.zeros(10, 16)
    assert choose("auto", OnGpu(), memory, HOW).__name__ == "blockmem.chunked"
    OnGpu.dtype = torch.float32
    monkeypatch.setattr(kernels, "_wrong_gpu", lambda index: None)
    assert choose("auto", OnGpu(), memory, HOW).__name__ == "blockmem.kernels.launch"
    assert choose("torch", OnGpu(), memory, HOW).__name__ == "blockmem.chunked"


def test_the_variable_must_be_set_before_the_kernels_are_imported(monkeypatch):
    kernels.load()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    text = kernels.refusal(torch.zeros(1, 4, 4, 4), torch.zeros(10, 16), HOW)
    assert "after the kernels had been imported" in text
