"""Learning, step by step: Eq. 3, with an optimiser for each network."""

import math
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from daad.config import Config, known
from daad.network import (
    Discriminator,
    Networks,
    alignment_loss,
    discriminator_loss,
    generator_adversarial_loss,
    reconstruction_loss,
)

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# On the CPU too: a fifth to a third faster (128x128, width 16, batch 8, two cores).
MEMORY_FORMAT = torch.channels_last


class Learner:
    """The networks with all that a step of training changes."""

    def __init__(
        self, config: Config, fabric: "Fabric", networks: Networks, *, compile: bool = False
    ) -> None:
        self.config = config
        self._compile = compile
        self.fabric = fabric
        self.networks = networks
        self.modules: dict[str, nn.Module] = {}
        self.optimizers: dict[str, torch.optim.Adam] = {}
        self.scalers: dict[str, torch.amp.GradScaler] = {}
        self._set_up("generator", networks.generator)
        if networks.discriminator is not None:
            self._set_up("discriminator", _PairDiscriminator(networks.discriminator))

    def _set_up(self, name: str, module: nn.Module) -> None:
        module.to(memory_format=MEMORY_FORMAT)  # type: ignore[call-overload]
        # What is compiled has the same parameters; weights are read from the module itself.
        compiled = cast(nn.Module, torch.compile(module)) if self._compile else module
        self.modules[name] = self.fabric.setup_module(compiled)
        # The optimiser stays PyTorch's own: a scaler hands a fused optimiser its verdict through
        # attributes, which would stop at Fabric's wrapper.
        lr, half = known(self.config.lr), self.config.precision == "16"
        self.optimizers[name] = torch.optim.Adam(module.parameters(), lr, (0.9, 0.999), fused=True)
        self.scalers[name] = torch.amp.GradScaler(self.fabric.device.type, enabled=half)

    def set_learning_rate(self, done: float) -> None:
        """Set it by the share of training that is `done`: a run that goes on need not remember it."""
        if self.config.schedule == "cosine":
            rate = known(self.config.lr) * (1 + math.cos(math.pi * done)) / 2
            for group in (group for one in self.optimizers.values() for group in one.param_groups):
                group["lr"] = rate

    def step(self, x: Tensor) -> dict[str, Tensor]:
        """Train D, where there is one, then G (Eq. 3), on pictures `(B, 3, S, S)`; return the losses."""
        config = self.config
        x_hat = self.modules["generator"](x)
        losses = {"reconstruction": reconstruction_loss(x, x_hat, known(config.distance))}
        if self.networks.discriminator is not None:
            discriminator = self._discriminator_step(x, x_hat.detach())
            losses |= self._judge(self.networks.discriminator, x, x_hat)
            losses["discriminator"] = discriminator
        weights = {"adversarial": config.lambda_adv, "alignment": config.lambda_ali}
        objective = config.lambda_rec * losses["reconstruction"]
        for name in (name for name in weights if name in losses):  # in one order: sums round
            objective = objective + weights[name] * losses[name]
        self._update("generator", objective)
        return {name: loss.detach() for name, loss in losses.items()}

    def _discriminator_step(self, x: Tensor, x_hat: Tensor) -> Tensor:
        config = self.config
        real, feature, fake, feature_hat = self.modules["discriminator"](x, x_hat)
        loss = objective = discriminator_loss(real, fake)
        if config.alignment_trains_discriminator:
            alignment = alignment_loss(feature, feature_hat, config.alignment_distance)
            objective = loss + config.lambda_ali * alignment
        self._update("discriminator", objective)
        return loss

    def _judge(self, discriminator: Discriminator, x: Tensor, x_hat: Tensor) -> dict[str, Tensor]:
        """Compute G's losses by way of D, which is only a yardstick here: f_D(x) is a constant.

        Through the bare network: DDP would count this as a pass to synchronise D's gradients for.
        """
        config = self.config
        losses: dict[str, Tensor] = {}
        if not (config.lambda_adv or config.lambda_ali):
            return losses
        discriminator.requires_grad_(False)
        with self.fabric.autocast():
            fake, feature_hat = discriminator(x_hat)
            if config.lambda_ali:
                with torch.no_grad():
                    _, feature = discriminator(x)
        discriminator.requires_grad_(True)
        if config.lambda_adv:
            losses["adversarial"] = generator_adversarial_loss(fake, config.gan_loss)
        if config.lambda_ali:
            losses["alignment"] = alignment_loss(feature, feature_hat, config.alignment_distance)
        return losses

    def _update(self, name: str, loss: Tensor) -> None:
        optimizer, scaler = self.optimizers[name], self.scalers[name]
        optimizer.zero_grad()
        self.fabric.backward(scaler.scale(loss))
        scaler.step(optimizer)
        scaler.update()

    def sums(self) -> dict[str, float]:
        """Sum each network's weights, to see whether they are finite."""
        return {
            f"{name}'s weights": torch.stack([p.detach().sum() for p in module.parameters()])
            .sum()
            .item()
            for name, module in self.modules.items()
        }

    def state(self) -> dict[str, Any]:
        """Give what a checkpoint needs beside the weights."""
        return {
            "optimizers": {name: opt.state_dict() for name, opt in self.optimizers.items()},
            "scalers": {name: scaler.state_dict() for name, scaler in self.scalers.items()},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
            self.scalers[name].load_state_dict(state["scalers"][name])


class _PairDiscriminator(nn.Module):
    """D on real and reconstructed pictures, each a batch of its own to BatchNorm.

    One module, since DDP wants one forward pass for each backward pass.
    """

    def __init__(self, discriminator: Discriminator) -> None:
        super().__init__()
        self.discriminator = discriminator

    def forward(self, x: Tensor, x_hat: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return *self.discriminator(x), *self.discriminator(x_hat)
