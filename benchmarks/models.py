"""A case of DAAD whole: the network of examples/, its memories computed by a provider."""

import copy
from functools import partial

import torch
from torch import Tensor
from torch.optim import Adam

from benchmarks.devices import TORCH_DTYPES, Device, Run
from benchmarks.gate import Errors, relative_error
from benchmarks.providers import Layer, eager
from benchmarks.workloads import FORWARD, ModelWorkload
from blockmem import BlockwiseMemory
from daad.config import Config, known
from daad.network import Generator, reconstruction_loss

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

    def errors(self, layer: Layer, mode: str, renormalize: bool) -> Errors:
        """Against float64. Renormalising changes nothing where nothing is dropped."""
        if mode not in self._truths:
            self._truths[mode] = self._results(
                self._model(eager, 0.0).double(), self.x.double(), mode
            )
        results = self._results(self._model(layer, 0.0), self.x, mode)
        truth = self._truths[mode]
        return {kind: relative_error(value, truth[kind]) for kind, value in results.items()}

    def yardstick(self, mode: str, renormalize: bool) -> Errors:
        """Eager's, compared as a provider is."""
        return self.errors(eager, mode, renormalize)

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
