"""What transforms.py lists: right wherever PyTorch has a value for the formula, eager or compiled."""

import pytest
import torch
from torch.testing import assert_close

from blockmem.backends.torch import chunks
from tests.transforms import PAGE, ROWS, formula, inputs, layer, page

rows = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
COMPILED = ("a call", "`backward`, `torch.autograd.grad`", "`torch.func.grad`")  # in every run
compiled_rows = pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=row.name, marks=() if row.name in COMPILED else pytest.mark.slow)
        for row in ROWS
    ],
)
PINNED = torch.__version__.startswith("2.13")  # what the page was written for
quiet = pytest.mark.filterwarnings(  # all of torch's own parts
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
    "ignore:Attempted to insert a get_attr",
    "ignore:Skipping serialization",
)


def whole(row, f):
    """The transform and the function in it, as one graph."""
    function = torch.compile(
        lambda x, memory: row.run(f, x, memory), fullgraph=True, backend="aot_eager"
    )
    return function(*inputs())


def around(row, f):
    """The transform of a function that is compiled."""
    return row.run(torch.compile(f, fullgraph=True, backend="aot_eager"), *inputs())


def outcome(run, row, f):
    """What comes out, or the error."""
    torch._dynamo.reset()
    try:
        return run(row, f)
    except Exception as error:
        return error


@quiet
@rows
def test_eager(row, monkeypatch):
    expected = row.run(formula, *inputs())
    calls = []
    forward = chunks.forward
    monkeypatch.setattr(chunks, "forward", lambda *args: calls.append(args) or forward(*args))
    assert_close(row.run(layer, *inputs()), expected)
    if row.by == "operator":
        assert calls


@quiet
@compiled_rows
@pytest.mark.parametrize("run", [whole, around])
def test_compiled(run, row):
    """Where PyTorch refuses the formula, it refuses the layer in the same way."""
    expected = row.run(formula, *inputs())
    # A compiler that failed leaves modes behind, in torch 2.6
    with torch.inference_mode(False), torch.enable_grad():
        found = outcome(run, row, formula)
    works = not isinstance(found, Exception)
    if PINNED:
        assert works == getattr(row, run.__name__), found
    if works:
        assert_close(found, expected)
        assert_close(outcome(run, row, layer), expected)
    else:
        refused = outcome(run, row, layer)
        if isinstance(refused, Exception):
            assert type(refused) is type(found)
        else:  # torch 2.6 compiles some of the layer that it does not compile of the formula
            assert_close(refused, expected)


def test_the_page_has_the_table():
    text = PAGE.read_text(encoding="utf-8")
    assert text == page(text), "run python -m tests.transforms"
