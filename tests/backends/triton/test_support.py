"""What the Triton backend does not take: "auto" goes to PyTorch, "triton" says why."""

import pytest
import torch

from blockmem import blockwise_memory
from blockmem.addressing import Addressing
from blockmem.backends.choice import choose, load_triton
from blockmem.backends.triton import support

ADDRESSING = Addressing(1.0, 0.1, False)


def reason(monkeypatch, x=None, items=10, addressing=ADDRESSING, device="cuda"):
    """For a tensor that says it is on a GPU."""
    monkeypatch.setattr(support, "_wrong_device", lambda x: None)
    x = torch.zeros(1, 4, 4, 4) if x is None else x
    return support.unsupported_reason(x, torch.zeros(items, 16), addressing)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"x": torch.zeros(1, 4, 4, 4).double()}, "float64 is not supported"),
        ({"addressing": Addressing(0.005, 0.1, False)}, "temperature 0.005 is below 0.0125"),
        ({"addressing": Addressing(1.0, 0.1, False, "dot")}, "similarity 'dot' is not supported"),
        ({"items": 20000}, "20000 items are more than 16384"),
    ],
)
def test_reasons(arguments, text, monkeypatch):
    assert text in reason(monkeypatch, **arguments)


def test_what_it_takes(monkeypatch):
    assert reason(monkeypatch) is None


@pytest.mark.parametrize(("found", "text"), [("3.2.0", "3.2.0 is older than 3.3"), (None, "not")])
def test_triton_is_old_or_missing(found, text, monkeypatch):
    def version(name):
        if found is None:
            raise support.PackageNotFoundError(name)
        return found

    support._no_triton.cache_clear()
    monkeypatch.setattr(support, "version", version)
    assert text in reason(monkeypatch)
    support._no_triton.cache_clear()


def test_an_old_gpu(monkeypatch):
    support._wrong_gpu.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    assert support._wrong_gpu(0) == "GPU 0 is older than compute capability 8.0"
    support._wrong_gpu.cache_clear()


def test_on_the_cpu_it_is_refused_with_the_reason(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="backend 'triton': x is on cpu: .* TRITON_INTERPRET=1"):
        blockwise_memory(torch.zeros(1, 4, 4, 4), torch.zeros(10, 16), (4, 2, 2), backend="triton")


def test_auto_goes_to_pytorch_where_triton_refuses(monkeypatch):
    class OnGpu:
        device, dtype = torch.device("cuda", 0), torch.float64

    memory = torch.zeros(10, 16)
    assert choose("auto", OnGpu(), memory, ADDRESSING).__name__ == "blockmem.backends.torch.chunks"
    OnGpu.dtype = torch.float32
    monkeypatch.setattr(support, "_wrong_gpu", lambda index: None)
    assert choose("auto", OnGpu(), memory, ADDRESSING).__name__ == "blockmem.backends.triton.launch"
    assert choose("torch", OnGpu(), memory, ADDRESSING).__name__ == "blockmem.backends.torch.chunks"


def test_the_variable_must_be_set_before_the_kernels_are_imported(monkeypatch):
    load_triton()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    text = support.unsupported_reason(torch.zeros(1, 4, 4, 4), torch.zeros(10, 16), ADDRESSING)
    assert "after the kernels had been imported" in text
