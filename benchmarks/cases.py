"""A case: one workload at one dtype on one device, ready for any provider.

Of the layer alone: inputs, runs, and the float64 truth on a sample of blocks. Of DAAD whole: the
network of examples/, its memories computed by a provider.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.optim import Adam

from benchmarks.machine import TORCH_DTYPES, Device, Run
from benchmarks.measure import Errors, relative_error, worst
from benchmarks.providers import Formula, Layer, eager
from benchmarks.workloads import FORWARD, AnyWorkload, ModelWorkload, Part, Workload, make_inputs
from blockmem import BlockwiseMemory, divide
from blockmem.addressing import Addressing, address, combine
from blockmem.division import grid_shape, grid_views
from daad.config import Config, known
from daad.network import Generator, reconstruction_loss

SAMPLE = 2048  # blocks of each part that the gate compares; all of them where there are no more
CLEAR = {"cosine": 0.9, "dot": 0.5}  # the share of blocks that have to keep clear of the threshold
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
        self._truths: dict[Formula, list[Truth]] = {}
        self._sampled: dict[str, list[Sample]] = {}

    def _samples(self, similarity: str) -> list[Sample]:
        if similarity not in self._sampled:
            self._sampled[similarity] = [_sample(inputs, similarity) for inputs in self.inputs]
        return self._sampled[similarity]

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

    def errors(self, layer: Layer, mode: str, formula: Formula) -> Errors:
        """A provider's, run at full size, against float64; the worst of all parts."""
        samples = self._samples(formula.similarity)
        results = self._runner(layer, mode, [sample.probe for sample in samples])()
        outs, grads = results[: len(self.inputs)], results[len(self.inputs) :]
        found = []
        for index, truth in enumerate(self._truth(formula)):
            inputs, sample = self.inputs[index], samples[index]
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

    def yardstick(self, mode: str, formula: Formula) -> Errors:
        """Eager's at this dtype, on the sample as a map of its own so that it always fits."""
        found = []
        for inputs, sample, truth in zip(
            self.inputs, self._samples(formula.similarity), self._truth(formula), strict=True
        ):
            size, (queries, memory, probe) = inputs.part.size, _leaves(inputs, sample)
            x = queries.unsqueeze(2)
            out = eager(x, memory, (size, 1), inputs.threshold, formula).squeeze(2)
            errors = {"output": relative_error(out, truth.output)}
            if mode != FORWARD:
                grad_x, grad_memory = torch.autograd.grad(out, (queries, memory), probe)
                errors["grad_x"] = relative_error(grad_x, truth.grad_x)
                errors["grad_memory"] = relative_error(grad_memory, truth.grad_memory)
            found.append(errors)
        return worst(found)

    def _truth(self, formula: Formula) -> list[Truth]:
        if formula not in self._truths:
            self._truths[formula] = [
                _truth(inputs, sample, formula)
                for inputs, sample in zip(
                    self.inputs, self._samples(formula.similarity), strict=True
                )
            ]
        return self._truths[formula]


def _inputs(part: Part, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    x, memory = make_inputs(part, dtype, device, seed)
    random = torch.Generator(device).manual_seed(seed)
    grad = torch.randn(part.map_shape, generator=random, device=device).to(dtype)
    return Inputs(part, x.requires_grad_(), memory.requires_grad_(), grad)


def _sample(inputs: Inputs, similarity: str) -> Sample:
    part, device = inputs.part, inputs.x.device
    random = torch.Generator(device).manual_seed(0)
    indices = torch.randperm(part.queries, generator=random, device=device)[:SAMPLE]
    queries = inputs.rows(inputs.x.detach())[indices].double()
    no_threshold = Addressing(1.0, 0.0, False, similarity)
    weights = address(queries, inputs.memory.detach().double(), no_threshold)
    clear = ((weights / inputs.threshold - 1).abs() > MARGIN).all(dim=1)
    if clear.count_nonzero() < CLEAR[similarity] * len(indices):
        raise RuntimeError(f"{part}: too many blocks have a weight close to the threshold")
    indices = indices[clear]
    chosen = torch.zeros(part.queries, dtype=torch.bool, device=device)
    chosen[indices] = True
    grid = (part.map_shape[0], *grid_shape(part.map_shape, part.block_shape))
    probe = inputs.grad.clone()
    grid_views(part.block_shape, probe)[0].mul_(chosen.view(*grid, *(1 for _ in part.block_shape)))
    return Sample(indices, probe)


def _truth(inputs: Inputs, sample: Sample, formula: Formula) -> Truth:
    """By the reference formula in float64."""
    queries, memory, probe = _leaves(inputs, sample, torch.float64)
    addressing = Addressing(1.0, inputs.threshold, *formula)
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


# Whole networks


MEMORY_FORMAT = torch.channels_last  # as DAAD's training and inference run


class ModelCase:
    """One workload at one dtype, for any provider. Half dtypes are autocast's, as in training.

    The gate compares the network with its shrinkage off (threshold 0), since one item dropped on
    one side alone would drown every other error, and a network's features cannot be kept clear of
    the threshold. With shrinkage, the layer passes its gate at the same shapes in `daad-levels`.
    """

    def __init__(self, workload: ModelWorkload, dtype: str, device: Device) -> None:
        self.config = Config(image_size=workload.image_size, width=workload.width).resolve()
        self.images: int | None = workload.batch(device.type)
        self.device = device
        self.dtype = TORCH_DTYPES[dtype]
        torch.manual_seed(0)
        self.model = Generator(self.config).to(device.torch)
        self.model.to(memory_format=MEMORY_FORMAT)  # type: ignore[call-overload]  # torch has it
        size = workload.image_size
        x = 2 * torch.rand(self.images, 3, size, size, device=device.torch) - 1
        self.x = x.contiguous(memory_format=MEMORY_FORMAT)
        _settle(self.model, self.x)
        self._truths: dict[str, dict[str, Tensor]] = {}

    def runner(self, layer: Layer, mode: str) -> Run:
        """What is timed: an inference pass, or a training step with its optimiser.

        It has run once: a first step makes the optimiser's state, and a threshold other than the
        gate's makes compiled code of its own.
        """
        model = self._model(layer, None)
        inference = mode == FORWARD
        run = self._inference_pass(model.eval()) if inference else self._step(model.train())
        run()
        return run

    def _inference_pass(self, model: Generator) -> Run:
        return partial(self._inference, model, self.x)

    def _step(self, model: Generator) -> Run:
        optimizer = Adam(model.parameters(), lr=1e-4, fused=True)

        def step() -> Tensor:
            optimizer.zero_grad()
            loss = self._loss(self._forward(model, self.x), self.x)
            loss.backward()
            optimizer.step()
            return loss.detach()

        return step

    def errors(self, layer: Layer, mode: str, formula: Formula) -> Errors:
        """Against float64. Renormalising changes nothing where nothing is dropped."""
        if formula.similarity != "cosine":
            raise ValueError("with dot products it would be another network")
        if mode not in self._truths:
            self._truths[mode] = self._results(
                self._model(eager, 0.0).double(), self.x.double(), mode
            )
        results = self._results(self._model(layer, 0.0), self.x, mode)
        truth = self._truths[mode]
        return {kind: relative_error(value, truth[kind]) for kind, value in results.items()}

    def yardstick(self, mode: str, formula: Formula) -> Errors:
        """Eager's, compared as a provider is."""
        return self.errors(eager, mode, formula)

    def _results(self, model: Generator, x: Tensor, mode: str) -> dict[str, Tensor]:
        """The reconstruction, and in training the gradients of all parameters."""
        if mode == FORWARD:
            return {"output": self._inference(model.eval(), x)}
        out = self._forward(model, x)
        named = dict(model.named_parameters())
        grads = torch.autograd.grad(self._loss(out, x), list(named.values()))
        memory: list[Tensor] = []
        rest: list[Tensor] = []
        for name, grad in zip(named, grads, strict=True):
            (memory if name.startswith("memories.") else rest).append(grad.flatten())
        return {
            "output": out.detach(),
            "grad_memory": torch.cat(memory),
            "grad_weights": torch.cat(rest),
        }

    def _inference(self, model: Generator, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self._forward(model, x)

    def _forward(self, model: Generator, x: Tensor) -> Tensor:
        half = self.dtype.itemsize == 2 and x.dtype == torch.float32
        with torch.autocast(self.device.type, self.dtype if half else None, enabled=half):
            out: Tensor = model(x)
        return out

    def _loss(self, out: Tensor, x: Tensor) -> Tensor:
        return self.config.lambda_rec * reconstruction_loss(x, out, known(self.config.distance))

    def _model(self, layer: Layer, threshold: float | None) -> Generator:
        """A copy of the network whose memories are computed by `layer`."""
        model = copy.deepcopy(self.model)
        for module in model.memories:
            assert isinstance(module, BlockwiseMemory)
            module.forward = partial(_read, layer, module, threshold)  # type: ignore[method-assign]  # of a copy
        return model


def _settle(model: Generator, x: Tensor) -> None:
    """Statistics of `x` for BatchNorm: at inference, its first ones would let the signal die away,
    and a wrong memory go unseen."""
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model(x)
    for norm in norms:
        norm.momentum = 0.1


def _read(layer: Layer, module: BlockwiseMemory, threshold: float | None, x: Tensor) -> Tensor:
    """The memory in the map's dtype, and autocast kept out, so that every provider gets the same."""
    threshold = 1 / module.num_items if threshold is None else threshold
    with torch.autocast(x.device.type, enabled=False):
        return layer(x, module.memory.to(x.dtype), module.block_shape, threshold)


# Both


class Case(Protocol):
    """What is asked of a layer alone and of a whole network alike."""

    images: int | None
    """Pictures a run, where a run has pictures."""

    def runner(self, layer: Layer, mode: str) -> Run:
        """What is timed."""

    def errors(self, layer: Layer, mode: str, formula: Formula) -> Errors:
        """A provider's errors against float64, by kind."""

    def yardstick(self, mode: str, formula: Formula) -> Errors:
        """Eager's errors at the same dtype, by kind."""


def make_case(workload: AnyWorkload, dtype: str, device: Device) -> Case:
    if isinstance(workload, ModelWorkload):
        return ModelCase(workload, dtype, device)
    return LayerCase(workload, dtype, device)
