"""Rules of dtypes: how PyTorch is asked whether float32 may be multiplied in TensorFloat-32."""

import pytest
import torch

from blockmem._dtypes import tf32_allowed


@pytest.fixture
def settings():
    """Both ways to set it, put back as they were."""
    yield
    if hasattr(torch.backends, "fp32_precision"):
        torch.backends.cuda.matmul.fp32_precision = "none"
        torch.backends.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    assert not tf32_allowed()


@pytest.mark.filterwarnings("ignore:.*TF32")  # torch announces that the older way will go
@pytest.mark.parametrize(
    ("value", "allowed"), [("highest", False), ("high", True), ("medium", True)]
)
def test_the_older_way(value, allowed, settings):
    torch.set_float32_matmul_precision(value)
    assert tf32_allowed() == allowed


@pytest.mark.skipif(
    not hasattr(torch.backends, "fp32_precision"), reason="this PyTorch has the older way alone"
)
@pytest.mark.parametrize(("value", "allowed"), [("ieee", False), ("tf32", True)])
@pytest.mark.parametrize("general", [False, True])
def test_the_newer_way(general, value, allowed, settings):
    """After it the question in the older way raises, and with it every float32 call did."""
    torch.backends.cuda.matmul.fp32_precision = "none"  # so that the general setting counts
    place = torch.backends if general else torch.backends.cuda.matmul
    place.fp32_precision = value
    assert tf32_allowed() == allowed
