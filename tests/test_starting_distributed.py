"""`fill_memories` and several processes: fill first, then wrap."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from blockmem import fill_memories
from tests.helpers.filled import autoencoder


def test_distributed_data_parallel_comes_after(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(autoencoder())
        with pytest.raises(ValueError, match=r"model is DistributedDataParallel: fill the model"):
            fill_memories(model, torch.randn(4, 1, 8, 8))
        with pytest.raises(ValueError, match=r"model.0 is DistributedDataParallel"):
            fill_memories(nn.Sequential(model), torch.randn(4, 1, 8, 8))
    finally:
        torch.distributed.destroy_process_group()


TWO_PROCESSES = """
import sys
import torch
from torch import nn
from blockmem import BlockwiseMemory, fill_memories

def work(rank, folder):
    store = torch.distributed.FileStore(folder + "/store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    torch.manual_seed(rank)
    model = nn.Sequential(nn.Conv2d(1, 4, 1), BlockwiseMemory(6, (4, 2, 2)))
    fill_memories(model, torch.randn(4, 1, 4, 4))
    own = model[1].memory.detach().clone()
    model = nn.parallel.DistributedDataParallel(model)
    model(torch.randn(2, 1, 4, 4)).sum().backward()
    torch.save((own, model.module[1].memory.detach()), f"{folder}/{rank}.pt")
    torch.distributed.barrier()  # a process that ends before the other can take it along
    torch.distributed.destroy_process_group()

if __name__ == "__main__":
    torch.multiprocessing.spawn(work, (sys.argv[1],), nprocs=2)
"""


@pytest.mark.slow
def test_all_processes_train_the_items_of_the_first(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, str(script), str(tmp_path)], env=environment, check=True)
    (first, together), (second, also_together) = (
        torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)
    )
    assert not torch.equal(first, second)
    assert torch.equal(together, first)
    assert torch.equal(also_together, first)


def test_a_sharded_memory_is_refused(tmp_path):
    from torch.distributed.fsdp import fully_shard

    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        model = autoencoder()
        fully_shard(model, mesh=mesh)
        with pytest.raises(
            ValueError, match=r"memory '2': memory is a DTensor.* before fully_shard"
        ):
            fill_memories(model, torch.randn(4, 1, 8, 8))
        with pytest.raises(ValueError, match="memory is a DTensor"):
            model[2].fill_(torch.randn(1, 8, 8, 8))
    finally:
        torch.distributed.destroy_process_group()
