"""What looks at a model from outside: compilers, exporters, counters, copies, several processes.

Each test that `tool` marks is a line of docs/transforms.md (see transforms.py).
"""

import copy
import io
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from blockmem import BlockwiseMemory, blockwise_memory, entropy
from tests.transforms import tool

HERE = Path(__file__).parent
quiet = pytest.mark.filterwarnings(  # all of torch's own parts
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
    "ignore::torch.jit.TracerWarning",
    "ignore:Skipping serialization",
)


OLD = not hasattr(torch.compiler, "is_exporting")
cannot_tell = pytest.mark.skipif(OLD, reason="torch 2.6 cannot tell that it exports")


@pytest.fixture(autouse=True)
def forget_graphs():
    """The compiler remembers which numbers changed in the test before."""
    torch._dynamo.reset()


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), BlockwiseMemory(20, (4, 2, 2)))


def check_gradients(found, expected, inputs):
    assert_close(found, expected)
    grads = [torch.autograd.grad(y.float().square().sum(), inputs) for y in (found, expected)]
    assert_close(*grads)


@tool("`torch.compile`", "right, as one graph, for all sizes of a map with `dynamic=True`")
@pytest.mark.parametrize("dynamic", [False, True])
def test_one_graph(dynamic):
    net = network()
    compiled = torch.compile(net, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for size in (8, 12):
        x = torch.randn(2, 3, size, size, requires_grad=True)
        check_gradients(compiled(x), net(x), [x, *net.parameters()])


@quiet
@pytest.mark.parametrize("mode", [None, pytest.param("reduce-overhead", marks=pytest.mark.slow)])
def test_inductor(mode):
    layer = BlockwiseMemory(20, (4, 2, 2))
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    compiled = torch.compile(lambda x: layer(x * 2).relu(), fullgraph=True, mode=mode)
    check_gradients(compiled(x), layer(x * 2).relu(), [x, layer.memory])


@tool("a `temperature` or `threshold` that changes, compiled", "right, two graphs for all values")
@quiet
@pytest.mark.parametrize("name", ["temperature", "threshold"])
@pytest.mark.parametrize(
    "backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
)
def test_annealing_is_two_graphs(backend, name):
    layer, x = BlockwiseMemory(20, (4, 2, 2), threshold=0.02), torch.randn(2, 4, 8, 8)
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    for step in range(1, 12):
        setattr(layer, name, 0.004 * step)
        check_gradients(compiled(x), layer(x), [layer.memory])
    assert counter.frame_count == 2


@tool(
    "memories of many sizes, compiled",
    "right; one graph in one network, two for `blockwise_memory`, and one for each layer that is "
    "compiled by itself, as of `nn.Linear`",
)
@quiet
def test_memories_of_many_sizes_compile():
    x = torch.randn(2, 4, 8, 8)
    net = nn.Sequential(*(BlockwiseMemory(n, (4, 2, 2)) for n in range(20, 32)))
    counter = CompileCounterWithBackend("aot_eager")
    assert_close(torch.compile(net, fullgraph=True, backend=counter)(x), net(x))
    assert counter.frame_count == 1
    counter = CompileCounterWithBackend("aot_eager")
    function = torch.compile(
        lambda x, memory: blockwise_memory(x, memory, (4, 2, 2)), fullgraph=True, backend=counter
    )
    for items in range(20, 32):
        memory = torch.randn(items, 16, requires_grad=True)
        check_gradients(function(x, memory), blockwise_memory(x, memory, (4, 2, 2)), [memory])
    assert counter.frame_count == 2


@tool("`memory.read`, `address`, `entropy`, compiled", "right")
def test_what_tells_compiles():
    layer, x = BlockwiseMemory(20, (4, 2, 2), temperature=0.1), torch.randn(2, 4, 8, 8)

    def value(x):
        out, weights = layer.read(x)
        return out.square().mean() + entropy(weights) + layer.address(x).amax()

    compiled = torch.compile(value, fullgraph=True, backend="aot_eager")
    check_gradients(compiled(x), value(x), [layer.memory])


@tool("autocast, also compiled", "right, the result has autocast's dtype")
def test_autocast():
    layer = BlockwiseMemory(20, (4, 2, 2))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, found = layer(x), compiled(x)
    assert found.dtype == torch.bfloat16
    check_gradients(found, expected, [x, layer.memory])


@tool("`torch.func.functional_call`, `stack_module_state`", "right")
def test_other_parameters():
    layers, x = [BlockwiseMemory(20, (4, 2, 2)) for _ in range(3)], torch.randn(2, 4, 8, 8)
    call = torch.func.functional_call
    twice = {"memory": 2 * layers[0].memory}
    assert_close(call(layers[0], twice, x), 2 * layers[0](x))
    stacked, _ = torch.func.stack_module_state(layers)
    found = torch.vmap(lambda parameters: call(layers[0], parameters, x))(stacked)
    assert_close(found, torch.stack([layer(x) for layer in layers]))


@tool("`torch.fx.symbolic_trace`", "right; the layer is one node, a call of `blockwise_memory`")
def test_symbolic_trace():
    net, x = network(), torch.randn(2, 3, 8, 8)
    traced = torch.fx.symbolic_trace(net)
    assert blockwise_memory in [node.target for node in traced.graph.nodes]
    assert_close(traced(x), net(x))
    assert_close(pickle.loads(pickle.dumps(traced))(x), net(x))


@tool(
    "`torch.export`, AOTInductor on the CPU",
    "right; the program has the formula's operations, and needs torch alone",
)
@cannot_tell
@quiet
def test_export():
    layer, x = BlockwiseMemory(20, (4, 2, 2)).eval(), torch.randn(2, 4, 8, 8)
    batch = torch.export.Dim("batch")
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: batch},))
    assert "blockmem" not in str(program.graph)
    more = torch.randn(5, 4, 8, 8)
    assert_close(program.module()(more), layer(more))


@pytest.mark.slow
@cannot_tell
@quiet
def test_aot_inductor(tmp_path):
    layer, x = BlockwiseMemory(20, (4, 2, 2)).eval(), torch.randn(2, 4, 8, 8)
    path = str(tmp_path / "memory.pt2")
    with torch.no_grad():
        program = torch.export.export(layer, (x,))
        torch._inductor.aoti_compile_and_package(program, package_path=path)
        assert_close(torch._inductor.aoti_load_package(path)(x), layer(x))


@tool("`torch.onnx.export`, the newer and the older one", "right in ONNX Runtime; the formula")
@quiet
@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_onnx(similarity, dynamo):
    if OLD and dynamo:
        pytest.skip("torch 2.6 cannot tell that it exports, and refuses the operator")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    layer = BlockwiseMemory(20, (4, 2, 2), temperature=0.5, similarity=similarity).eval()
    x, written = torch.randn(2, 4, 8, 8), io.BytesIO()
    if dynamo:
        program = torch.onnx.export(layer, (x,), dynamo=True, verbose=False)
        written.write(program.model_proto.SerializeToString())
    else:
        torch.onnx.export(layer, (x,), written, dynamo=False)
    session = runtime.InferenceSession(written.getvalue())
    (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert_close(torch.from_numpy(out), layer(x))


@tool("`torch.jit.trace`", "right; the formula")
@quiet
@pytest.mark.parametrize("training", [False, True])
def test_jit_trace(training):
    layer = BlockwiseMemory(20, (4, 2, 2)).train(training)
    traced = torch.jit.trace(layer, torch.randn(2, 4, 8, 8))
    assert "blockmem::" not in str(traced.graph)
    more = torch.randn(5, 4, 8, 8)
    assert_close(traced(more), layer(more))


@tool("`torch.jit.script`", "PyTorch refuses it; trace or export instead")
@quiet
def test_jit_script():
    with pytest.raises(Exception, match="keyword-only arguments"):
        torch.jit.script(BlockwiseMemory(20, (4, 2, 2)))


@tool("`make_fx`, fake and meta tensors", "right; the layer is one operator")
def test_without_numbers():
    layer, x = BlockwiseMemory(20, (4, 2, 2)), torch.randn(2, 4, 8, 8)
    graph = torch.fx.experimental.proxy_tensor.make_fx(lambda x: layer(x))(x)
    assert "blockmem.blockwise_memory.default" in map(str, (n.target for n in graph.graph.nodes))
    assert_close(graph(x), layer(x))
    with torch._subclasses.FakeTensorMode():
        fake = BlockwiseMemory(20, (4, 2, 2))
        fake(torch.randn(2, 4, 8, 8)).sum().backward()
        assert fake.memory.grad.shape == (20, 16)
    meta = BlockwiseMemory(20, (4, 2, 2), device="meta")
    assert meta(x.to("meta")).shape == x.shape


@tool("`FlopCounterMode`", "counts the products of the formula")
def test_flops():
    layer, x = BlockwiseMemory(20, (4, 2, 2)), torch.randn(2, 4, 8, 8)
    product = 2 * x.numel() * 20  # of all blocks and all items

    def count(x):
        with FlopCounterMode(display=False) as counter:
            out = layer(x)
            if torch.is_grad_enabled():
                out.sum().backward()
        return counter.get_total_flops()

    with torch.no_grad():
        assert count(x) == 2 * product
    assert count(x.clone().requires_grad_()) == (2 + 4) * product
    assert count(x) == (2 + 3) * product  # the map needs no gradient
    layer.requires_grad_(False)
    assert count(x.clone().requires_grad_()) == (2 + 2) * product


def by_safetensors(layer):
    torch_tensors = pytest.importorskip("safetensors.torch")
    twin = BlockwiseMemory(10, (4, 2, 2), temperature=0.5)
    saved = torch_tensors.save(layer.state_dict())
    twin.load_state_dict(torch_tensors.load(saved))
    return twin


def by_state_dict(layer):
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    twin = BlockwiseMemory(10, (4, 2, 2), temperature=0.5)
    twin.load_state_dict(torch.load(buffer, weights_only=True))
    return twin


@tool("`deepcopy`, `pickle`, `state_dict`, safetensors", "right")
@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), by_state_dict, by_safetensors],
    ids=["deepcopy", "pickle", "state_dict", "safetensors"],
)
def test_a_copy_computes_the_same(copied):
    layer = BlockwiseMemory(10, (4, 2, 2), temperature=0.5)
    twin = copied(layer)
    x = torch.randn(2, 4, 4, 4)
    assert torch.equal(layer(x), twin(x))
    assert twin.memory.data_ptr() != layer.memory.data_ptr()


@tool("parametrizations, `AveragedModel`", "right")
def test_memories_that_are_computed():
    layer, x = BlockwiseMemory(10, (4, 2, 2)), torch.randn(2, 4, 4, 4)
    assert_close(torch.optim.swa_utils.AveragedModel(layer)(x), layer(x))
    other = torch.nn.utils.parametrizations.weight_norm(copy.deepcopy(layer), "memory")
    assert_close(other(x), layer(x))
    other(x).sum().backward()
    assert other.parametrizations.memory.original1.grad.abs().sum() > 0


@tool(
    "DistributedDataParallel, `fully_shard` (FSDP2), on gloo",
    "right",
)
@tool("DTensor, map or memory sharded or replicated", "right; the formula")
@pytest.mark.skipif(OLD, reason="fully_shard of torch 2.6 needs a GPU")
def test_two_processes(tmp_path):
    command = [sys.executable, "-W", "ignore", str(HERE / "helpers" / "distributed.py")]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    printed = [process.communicate(timeout=240)[0] for process in processes]
    # Not the last line, always: threads of gloo can complain when a process ends
    assert all("ok" in text.splitlines() for text in printed), printed


@tool("arrays of NumPy, lists", "refused: the error asks for a tensor")
def test_what_is_no_tensor():
    layer = BlockwiseMemory(10, (4, 2, 2))
    for x in (np.zeros((1, 4, 2, 2), dtype=np.float32), [1.0]):
        with pytest.raises(TypeError, match="expected a tensor, a map"):
            layer(x)
