"""What two processes do in test_tools: `python tests/helpers/distributed.py RANK FILE`, and `ok` if right."""

import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from blockmem import BlockwiseMemory, blockwise_memory

try:
    from torch.distributed.fsdp import fully_shard
except ImportError:  # torch 2.5
    from torch.distributed._composable.fsdp import fully_shard

WORLD = 2


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 1), BlockwiseMemory(10, (8, 2, 2)), nn.Conv2d(8, 3, 1))


def gradients(net: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    net(x).square().mean().backward()
    grads = [p.grad for p in net.parameters()]
    return [g.full_tensor() if hasattr(g, "full_tensor") else g for g in grads]


def check(rank: int) -> None:
    x = torch.randn(2 * WORLD, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    mine = x.chunk(WORLD)[rank]
    expected = gradients(model(), x)
    assert_close(gradients(DistributedDataParallel(model()), mine), expected)

    mesh = init_device_mesh("cpu", (WORLD,))
    net = model()
    fully_shard(net[1], mesh=mesh)
    fully_shard(net, mesh=mesh)
    assert_close(gradients(net, mine), expected)

    maps = torch.randn(2 * WORLD, 4, 4, 4, generator=torch.Generator().manual_seed(2))
    memory = torch.randn(6, 16, generator=torch.Generator().manual_seed(3))
    for placement in (Shard(0), Replicate()):
        for whose in (Replicate(), Shard(0)):
            plain = [t.clone().requires_grad_() for t in (maps, memory)]
            out = blockwise_memory(*plain, (4, 2, 2))
            wanted = [out, *torch.autograd.grad(out.square().sum(), plain)]
            shared = [
                distribute_tensor(maps, mesh, [placement]).requires_grad_(),
                distribute_tensor(memory, mesh, [whose]).requires_grad_(),
            ]
            out = blockwise_memory(*shared, (4, 2, 2))
            found = [out, *torch.autograd.grad(out.square().sum(), shared)]
            assert_close([t.full_tensor() for t in found], [t.detach() for t in wanted])


if __name__ == "__main__":
    rank = int(sys.argv[1])
    dist.init_process_group(
        "gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=WORLD
    )
    check(rank)
    print("ok", flush=True)
    dist.barrier()
    dist.destroy_process_group()
