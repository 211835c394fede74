"""`fill_memories`: every memory of a model starts with blocks of the maps that reach it."""

import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from blockmem._filling import check_memory, fill_items
from blockmem.layer import BlockwiseMemory


def fill_memories(
    model: nn.Module, *inputs: Any, generator: torch.Generator | None = None
) -> dict[str, int]:
    """Fill every memory of `model` from the maps that reach it, and return how many items each got.

    The model runs once on each of `inputs`, without gradients. Each `BlockwiseMemory` in it is
    filled just before it answers, as by `BlockwiseMemory.fill_`, so the maps behind it come from
    its new items already. Do this before the training, and before a checkpoint is loaded: what
    the memories held is overwritten.

    **Several inputs.** The first fills what it can. Each later one fills the items that are still
    missing, and replaces as many others as is its part of all blocks seen so far. So the items come
    evenly from all inputs, as if drawn from all their blocks at once.

    **The model stays as it is** but for the memories. It runs in the mode it is in: call this in
    the mode that it will train in, since BatchNorm gives other maps in `eval`. Buffers, such as
    BatchNorm's running statistics, are put back. Dropout draws from PyTorch's own generators.

    **Memories of special kinds.** One that is called several times in a forward, or whose parameter
    several layers share, takes blocks from all those maps, as from several inputs. A frozen one
    (`memory.requires_grad` is False) is left as it is, and does not count. One that
    gets fewer items than it has, or that the forward never reaches, is a warning with its name;
    the other items stay as they were.

    **Several processes.** Fill before DistributedDataParallel wraps the model: it then gives all
    processes the items of the first. fully_shard does not; there, fill before it, with the same
    inputs and a `generator` of the same seed in every process. A compiled model runs uncompiled here.

    Args:
        model: any module; may itself be a `BlockwiseMemory`.
        inputs: one or more batches. A tuple holds positional arguments of the model, a dict keyword
            arguments; anything else is the only argument.
        generator: draws the blocks; on any device. None is PyTorch's own, on the CPU.

    Returns:
        Of each memory that is not frozen: its name in `model.named_modules()`, and how many of its
        items are blocks now.

    Raises:
        ValueError: for no inputs, a model without a memory that can be filled, one that is wrapped
            already or has uninitialised (lazy) parameters, and as of `fill_`, with the memory's name.
        TypeError: for a model that is no module.

    After any error, also one of the model, the memories are as they were before.

    Examples:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), BlockwiseMemory(16, (8, 2, 2)))
        >>> fill_memories(model, torch.randn(4, 3, 10, 10))
        {'2': 16}
    """
    _check_model(model)
    if not inputs:
        raise ValueError("no inputs: expected at least one batch, as in fill_memories(model, x)")
    memories = _memories(model)
    samples = {layer.memory: _Sample(layer.memory, generator) for layer in memories.values()}
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(_uncompiled())
        stack.enter_context(_buffers_put_back(model))
        stack.enter_context(_put_back_on_error(list(samples)))
        for name, layer in memories.items():
            stack.enter_context(_taking(layer, name, samples[layer.memory]))
        for batch in inputs:
            if isinstance(batch, tuple):
                model(*batch)
            elif isinstance(batch, Mapping):
                model(**batch)
            else:
                model(batch)
    counts = {name: samples[layer.memory].count() for name, layer in memories.items()}
    for name, layer in memories.items():
        _warn_if_short(name, counts[name], layer.num_items, samples[layer.memory].seen)
    return counts


class _Sample:
    """A memory as an even sample of all the blocks that it has been shown."""

    def __init__(self, memory: Tensor, generator: torch.Generator | None) -> None:
        self.memory = memory
        self.generator = generator
        self.filled = torch.zeros(len(memory), dtype=torch.bool, device=memory.device)
        self.seen = 0

    def add(self, x: Tensor, block_shape: tuple[int, ...]) -> None:
        fresh = x.numel() // self.memory.shape[1]
        self.seen += fresh
        missing = (~self.filled).nonzero().flatten()
        share = round(len(self.memory) * fresh / max(self.seen, 1))
        replaced = self._some_filled(max(0, share - len(missing)))
        rows = torch.cat([missing, replaced])
        rows = fill_items(self.memory, x, block_shape, rows, self.generator)
        self.filled[rows] = True

    def _some_filled(self, count: int) -> Tensor:
        filled = self.filled.nonzero().flatten()
        device = "cpu" if self.generator is None else self.generator.device
        order = torch.randperm(len(filled), generator=self.generator, device=device)
        return filled[order[:count].to(filled.device)]

    def count(self) -> int:
        return int(self.filled.sum())


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {type(model).__name__}: expected a torch.nn.Module")
    for name, module in model.named_modules():
        if isinstance(module, nn.parallel.DistributedDataParallel | nn.DataParallel):
            where = f"model.{name}" if name else "model"
            raise ValueError(
                f"{where} is {type(module).__name__}: fill the model before it is wrapped; "
                "DistributedDataParallel then gives all processes the items of the first"
            )
    tensors = [*model.named_parameters(), *model.named_buffers()]
    lazy = [name for name, tensor in tensors if is_lazy(tensor)]
    if lazy:
        raise ValueError(
            f"{', '.join(lazy)} not initialised yet: call the model once on an input before this"
        )


def _memories(model: nn.Module) -> dict[str, BlockwiseMemory]:
    """Return the memories to be filled, by name; ValueError where there is none."""
    layers = {n: m for n, m in model.named_modules() if isinstance(m, BlockwiseMemory)}
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no BlockwiseMemory: expected a model with at least one"
        )
    for name, layer in layers.items():
        with _named(name):
            check_memory(layer.memory)
    trained = {name: layer for name, layer in layers.items() if layer.memory.requires_grad}
    if not trained:
        raise ValueError(
            f"every memory is frozen ({', '.join(map(repr, layers))}): unfreeze those to be filled "
            "with requires_grad_(True), or call fill_ on each"
        )
    return trained


@contextmanager
def _taking(layer: BlockwiseMemory, name: str, sample: _Sample) -> Iterator[None]:
    """Meanwhile `layer` adds each map that it is called with to `sample`, before it answers."""

    def take(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        with _named(name):
            sample.add(args[0] if args else kwargs["x"], layer.block_shape)

    read = layer.read

    def take_and_read(x: Tensor) -> tuple[Tensor, Tensor]:
        take(layer, (x,), {})
        return read(x)

    hook = layer.register_forward_pre_hook(take, with_kwargs=True)
    layer.read = take_and_read  # type: ignore[method-assign]  # hooks know nothing of this call
    try:
        yield
    finally:
        hook.remove()
        del layer.read


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Errors say of which memory they speak."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise type(error)(f"memory {name!r}: {error}") from error


@contextmanager
def _buffers_put_back(model: nn.Module) -> Iterator[None]:
    held = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        for module, name, buffer, before in held:
            module._buffers[name] = buffer  # some modules write, some assign others
            buffer.copy_(before)


@contextmanager
def _put_back_on_error(memories: list[nn.Parameter]) -> Iterator[None]:
    held = [memory.detach().clone() for memory in memories]
    try:
        yield
    except BaseException:
        for memory, before in zip(memories, held, strict=True):
            memory.copy_(before)
        raise


@contextmanager
def _uncompiled() -> Iterator[None]:
    """Compiled code does not call hooks that are added later."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and the import takes seconds
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def _warn_if_short(name: str, count: int, num_items: int, seen: int) -> None:
    if count == num_items:
        return
    if not seen:
        reason = "the model's forward does not reach it; the others stay as constructed"
    else:
        reason = (
            f"the inputs have no more blocks that differ and are not zero ({seen} blocks in all); "
            "give more inputs, or the memory fewer items"
        )
    warnings.warn(
        f"memory {name!r}: {count} of {num_items} items were filled: {reason}", stacklevel=3
    )
