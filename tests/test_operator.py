"""The operator under autograd, torch.compile, torch.func and the exporters."""

import io

import pytest
import torch
import torch.utils.checkpoint
from torch.testing import assert_close

from blockmem import BlockwiseMemory, blockwise_memory
from blockmem.addressing import Addressing, reference

SHAPES = {
    "1-d": ((2, 4, 6), (2, 3)),
    "2-d": ((2, 4, 4, 3), (2, 2, 3)),
    "3-d": ((1, 2, 2, 4, 2), (2, 2, 2, 1)),
}


def inputs(name, dtype=torch.float64, items=5):
    shape, block = SHAPES[name]
    size = torch.Size(block).numel()
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(shape, dtype=dtype, generator=generator, requires_grad=True)
    memory = torch.randn(items, size, dtype=dtype, generator=generator, requires_grad=True)
    return x, memory, block


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("name", SHAPES)
def test_gradients_to_second_order(name, temperature, renormalize):
    x, memory, block = inputs(name)

    def layer(x, memory):
        return blockwise_memory(x, memory, block, temperature=temperature, renormalize=renormalize)

    assert torch.autograd.gradcheck(layer, (x, memory))
    assert torch.autograd.gradgradcheck(layer, (x, memory), fast_mode=True)


@pytest.mark.parametrize("frozen", ["x", "memory"])
def test_second_order_with_one_side_frozen(frozen):
    x, memory, block = inputs("2-d")
    (x if frozen == "x" else memory).requires_grad_(False)
    assert torch.autograd.gradgradcheck(lambda x, m: blockwise_memory(x, m, block), (x, memory))


def test_a_gradient_penalty_trains():
    """Double backward as WGAN-GP uses it: the norm of an input gradient, differentiated."""
    x, memory, block = inputs("2-d")
    found, expected = [], []
    for layer, result in [
        (lambda: blockwise_memory(x, memory, block), found),
        (lambda: reference(x, memory, block, Addressing(1.0, 1 / 5, False)), expected),
    ]:
        (grad,) = torch.autograd.grad(layer().square().sum(), x, create_graph=True)
        result.extend(torch.autograd.grad(grad.square().sum(), (x, memory)))
    assert_close(found, expected)


@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_opcheck(dtype, needs):
    x, memory, block = inputs("2-d", dtype)
    x, memory = (t.detach().requires_grad_(n) for t, n in zip((x, memory), needs, strict=True))
    x = x.detach().to(memory_format=torch.channels_last).requires_grad_(needs[0])
    settings = (block, 1.0, 1 / 5, False, "cosine", "torch")
    inputs_of_forward = (x, memory, *settings, True)
    torch.library.opcheck(torch.ops.blockmem.blockwise_memory.default, inputs_of_forward)
    _, saved = torch.ops.blockmem.blockwise_memory(*inputs_of_forward)
    torch.library.opcheck(
        torch.ops.blockmem.blockwise_memory_backward.default,
        (torch.randn_like(x), x.detach(), memory.detach(), saved.detach(), *settings, *needs),
    )


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_as_one_graph(dynamic):
    layer = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), BlockwiseMemory(20, (4, 2, 2)))
    compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for size in (8, 12):
        x = torch.randn(2, 3, size, size, requires_grad=True)
        expected, found = layer(x), compiled(x)
        assert_close(found, expected)
        grads = [torch.autograd.grad(y.sum(), [x, *layer.parameters()]) for y in (found, expected)]
        assert_close(*grads)


def test_compiles_under_autocast():
    layer = BlockwiseMemory(20, (4, 2, 2))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, found = layer(x), compiled(x)
    assert found.dtype == torch.bfloat16
    assert_close(found, expected)
    grads = [torch.autograd.grad(y.float().sum(), (x, layer.memory)) for y in (found, expected)]
    assert_close(*grads)


def test_under_inference_mode_and_activation_checkpointing():
    layer, x = BlockwiseMemory(20, (4, 2, 2)), torch.randn(2, 4, 8, 8, requires_grad=True)
    expected = layer(x)
    with torch.inference_mode():
        assert torch.equal(layer(x), expected)
    again = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)
    grads = [torch.autograd.grad(y.sum(), (x, layer.memory)) for y in (again, expected)]
    assert_close(*grads)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own parts
def test_compiles_with_inductor():
    layer = BlockwiseMemory(20, (4, 2, 2))
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    compiled = torch.compile(lambda x: layer(x * 2).relu(), fullgraph=True)
    assert_close(compiled(x), layer(x * 2).relu())
    assert_close(
        torch.autograd.grad(compiled(x).sum(), x), torch.autograd.grad(layer(x * 2).relu().sum(), x)
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own parts
def test_torch_func():
    x, memory, block = inputs("2-d")

    def loss(x, memory):
        return blockwise_memory(x, memory, block).square().sum()

    expected = torch.autograd.grad(loss(x, memory), (x, memory))
    assert_close(torch.func.grad(loss, argnums=(0, 1))(x, memory), expected)
    per_sample = torch.func.vmap(torch.func.grad(loss, argnums=1), in_dims=(0, None))
    assert_close(per_sample(x[:, None], memory).sum(dim=0), expected[1])
    several = torch.stack([memory, 2 * memory])
    read = torch.func.vmap(lambda x, m: blockwise_memory(x, m, block), in_dims=(None, 0))
    assert_close(read(x, several), torch.stack([blockwise_memory(x, m, block) for m in several]))
    _, tangent = torch.func.jvp(lambda x: loss(x, memory), (x.detach(),), (torch.ones_like(x),))
    assert_close(tangent, expected[0].sum())


@pytest.mark.skipif(
    not hasattr(torch.compiler, "is_exporting"), reason="torch 2.6 cannot tell that it exports"
)
@pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch's own parts
def test_torch_export_needs_only_torch():
    layer = BlockwiseMemory(20, (4, 2, 2)).eval()
    x = torch.randn(2, 4, 8, 8)
    batch = torch.export.Dim("batch")
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: batch},))
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not any("blockmem" in target for target in targets)
    more = torch.randn(5, 4, 8, 8)
    assert_close(program.module()(more), layer(more))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch's own parts
def test_onnx_export_runs_elsewhere():
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    layer = BlockwiseMemory(20, (4, 2, 2), temperature=0.5).eval()
    x = torch.randn(2, 4, 8, 8)
    program = torch.onnx.export(layer, (x,), dynamo=True, verbose=False)
    session = runtime.InferenceSession(program.model_proto.SerializeToString())
    (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert_close(torch.from_numpy(out), layer(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own older exporter
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # sizes are checked as numbers
def test_the_older_onnx_exporter_runs_elsewhere():
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    layer = BlockwiseMemory(20, (4, 2, 2), temperature=0.5).eval()
    x, written = torch.randn(2, 4, 8, 8), io.BytesIO()
    torch.onnx.export(layer, (x,), written, dynamo=False)
    session = runtime.InferenceSession(written.getvalue())
    (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert_close(torch.from_numpy(out), layer(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit is on its way out
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("training", [False, True])
def test_a_trace_needs_only_torch(training):
    layer = BlockwiseMemory(20, (4, 2, 2)).train(training)
    traced = torch.jit.trace(layer, torch.randn(2, 4, 8, 8))
    assert "blockmem::" not in str(traced.graph)  # our operators
    more = torch.randn(5, 4, 8, 8)
    assert_close(traced(more), layer(more))
