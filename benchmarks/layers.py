"""A case of the layer alone: its inputs, its runs, and its float64 truth on a sample of blocks."""

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.devices import TORCH_DTYPES, Device, Run
from benchmarks.gate import Errors, relative_error, worst
from benchmarks.providers import Layer, eager
from benchmarks.workloads import FORWARD, Part, Workload, make_inputs
from blockmem import divide
from blockmem.addressing import Addressing, address, combine
from blockmem.division import grid_shape, grid_views

SAMPLE = 2048  # blocks of each part that the gate compares; all of them where there are no more
MARGIN = 0.02  # of the threshold; a weight closer to it may be kept or dropped


class Inputs(NamedTuple):
    """Of one part: the map, the memory, and the upstream gradient of what is timed."""

    part: Part
    x: Tensor
    memory: Tensor
    grad: Tensor

    @property
    def threshold(self) -> float:
        return 1 / self.part.items

    def rows(self, x: Tensor) -> Tensor:
        """All blocks of a map, `(B Q, D)`."""
        return divide(x, self.part.block_shape).flatten(0, 1)


class Sample(NamedTuple):
    """Blocks that keep clear of the threshold, and the upstream gradient of the gate.

    That gradient is zero elsewhere, so that the memory's gradient, a sum over all blocks, is a
    sum over those whose truth is known.
    """

    indices: Tensor
    probe: Tensor


class Truth(NamedTuple):
    """In float64: the sample's answers `(K, D)`, their gradients, and the memory's gradient."""

    output: Tensor
    grad_x: Tensor
    grad_memory: Tensor


class LayerCase:
    """One workload at one dtype, for any provider and mode."""

    images: int | None = None

    def __init__(self, workload: Workload, dtype: str, device: Device) -> None:
        self.inputs = [
            _inputs(part, TORCH_DTYPES[dtype], device.torch, seed)
            for seed, part in enumerate(workload.parts)
        ]
        self._truths: dict[bool, list[Truth]] = {}

    @cached_property
    def _samples(self) -> list[Sample]:
        return [_sample(inputs) for inputs in self.inputs]

    def runner(self, layer: Layer, mode: str) -> Run:
        """What is timed: the layer on every part, and for training both gradients of each."""
        return self._runner(layer, mode, [inputs.grad for inputs in self.inputs])

    def _runner(self, layer: Layer, mode: str, grads: list[Tensor]) -> Callable[[], list[Tensor]]:
        def forward() -> list[Tensor]:
            return [layer(i.x, i.memory, i.part.block_shape, i.threshold) for i in self.inputs]

        def inference() -> list[Tensor]:
            with torch.no_grad():
                return forward()

        def training() -> list[Tensor]:
            outs = forward()
            sources = [tensor for i in self.inputs for tensor in (i.x, i.memory)]
            return [*outs, *torch.autograd.grad(outs, sources, grads)]

        return inference if mode == FORWARD else training

    def errors(self, layer: Layer, mode: str, renormalize: bool) -> Errors:
        """A provider's, run at full size, against float64; the worst of all parts."""
        results = self._runner(layer, mode, [sample.probe for sample in self._samples])()
        outs, grads = results[: len(self.inputs)], results[len(self.inputs) :]
        found = []
        for index, truth in enumerate(self._truth(renormalize)):
            inputs, sample = self.inputs[index], self._samples[index]
            answers = inputs.rows(outs[index].detach())[sample.indices]
            errors = {"output": relative_error(answers, truth.output)}
            if mode != FORWARD:
                grad_x, grad_memory = grads[2 * index : 2 * index + 2]
                full = inputs.rows(grad_x)
                expected = torch.zeros_like(full, dtype=torch.float64)
                expected[sample.indices] = truth.grad_x
                errors["grad_x"] = relative_error(full, expected)
                errors["grad_memory"] = relative_error(grad_memory, truth.grad_memory)
            found.append(errors)
        return worst(found)

    def yardstick(self, mode: str, renormalize: bool) -> Errors:
        """Eager's at this dtype, on the sample as a map of its own so that it always fits."""
        found = []
        for inputs, sample, truth in zip(
            self.inputs, self._samples, self._truth(renormalize), strict=True
        ):
            size, (queries, memory, probe) = inputs.part.size, _leaves(inputs, sample)
            x = queries.unsqueeze(2)
            out = eager(x, memory, (size, 1), inputs.threshold, renormalize).squeeze(2)
            errors = {"output": relative_error(out, truth.output)}
            if mode != FORWARD:
                grad_x, grad_memory = torch.autograd.grad(out, (queries, memory), probe)
                errors["grad_x"] = relative_error(grad_x, truth.grad_x)
                errors["grad_memory"] = relative_error(grad_memory, truth.grad_memory)
            found.append(errors)
        return worst(found)

    def _truth(self, renormalize: bool) -> list[Truth]:
        if renormalize not in self._truths:
            self._truths[renormalize] = [
                _truth(inputs, sample, renormalize)
                for inputs, sample in zip(self.inputs, self._samples, strict=True)
            ]
        return self._truths[renormalize]


def _inputs(part: Part, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    x, memory = make_inputs(part, dtype, device, seed)
    random = torch.Generator(device).manual_seed(seed)
    grad = torch.randn(part.map_shape, generator=random, device=device).to(dtype)
    return Inputs(part, x.requires_grad_(), memory.requires_grad_(), grad)


def _sample(inputs: Inputs) -> Sample:
    part, device = inputs.part, inputs.x.device
    random = torch.Generator(device).manual_seed(0)
    indices = torch.randperm(part.queries, generator=random, device=device)[:SAMPLE]
    queries = inputs.rows(inputs.x.detach())[indices].double()
    no_threshold = Addressing(temperature=1.0, threshold=0.0, renormalize=False)
    weights = address(queries, inputs.memory.detach().double(), no_threshold)
    clear = ((weights / inputs.threshold - 1).abs() > MARGIN).all(dim=1)
    if clear.count_nonzero() < 0.9 * len(indices):
        raise RuntimeError(f"{part}: too many blocks have a weight close to the threshold")
    indices = indices[clear]
    chosen = torch.zeros(part.queries, dtype=torch.bool, device=device)
    chosen[indices] = True
    grid = (part.map_shape[0], *grid_shape(part.map_shape, part.block_shape))
    probe = inputs.grad.clone()
    grid_views(part.block_shape, probe)[0].mul_(chosen.view(*grid, *(1 for _ in part.block_shape)))
    return Sample(indices, probe)


def _truth(inputs: Inputs, sample: Sample, renormalize: bool) -> Truth:
    """By the reference formula in float64."""
    queries, memory, probe = _leaves(inputs, sample, torch.float64)
    addressing = Addressing(1.0, inputs.threshold, renormalize)
    out = combine(address(queries, memory, addressing), memory)
    return Truth(out.detach(), *torch.autograd.grad(out, (queries, memory), probe))


def _leaves(
    inputs: Inputs, sample: Sample, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The sample's queries `(K, D)`, the memory, and the queries' upstream gradient."""
    dtype = dtype or inputs.x.dtype
    queries = inputs.rows(inputs.x.detach())[sample.indices].to(dtype)
    probe = inputs.rows(sample.probe)[sample.indices].to(dtype)
    return queries.requires_grad_(), inputs.memory.detach().to(dtype).requires_grad_(), probe
