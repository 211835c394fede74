"""Training of one DAAD run: Eq. 3 on pictures, flipped at random, with checkpoints that continue exactly."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from rich.console import Console
from torch import Tensor, nn

from blockmem import fill_memories
from daad.batch_norm import recompute_statistics
from daad.batches import FLIPS, Pictures, epoch_order, flip, split_batches
from daad.checkpoint import CHECKPOINT, checkpoint_to_resume, load_state, save_checkpoint
from daad.config import Config
from daad.devices import start_fabric
from daad.errors import OutOfTime, UserError
from daad.losses import (
    alignment_loss,
    discriminator_loss,
    generator_adversarial_loss,
    reconstruction_loss,
)
from daad.model import Discriminator, Generator
from daad.progress import Display, History

# On the CPU too: a fifth to a third faster (128x128, width 16, batch 8, two cores).
MEMORY_FORMAT = torch.channels_last
FILLED_FROM = 64  # pictures whose blocks become items; more where these have too few

Scorer = Callable[[Generator, Discriminator | None], float]


def train(
    config: Config,
    pictures: Pictures,
    run: Path,
    *,
    device: str = "auto",
    devices: int = 1,
    num_nodes: int = 1,
    resume: bool = False,
    scorer: Scorer | None = None,
    deadline: float | None = None,
) -> None:
    """Train `config` (resolved) on `pictures`; leave checkpoint.ckpt and history.csv in `run`.

    `scorer` gives the AUROC on the test set, for every `config.evaluate_every` epochs.
    `resume` goes on from the run's checkpoint as if it had never stopped; `run` must then be
    seen by every machine. With several devices each takes `config.batch_size` pictures a step,
    and only the first process returns: the others end here, their work being done.
    deadline: a time of `time.monotonic()`, for a single process. The epoch in which it passes is
    the last; OutOfTime then, with a checkpoint to go on from, unless all epochs are done.
    UserError for what cannot be trained, or when a loss is no longer finite.
    """
    if not len(pictures):
        raise UserError("no pictures to train on; put normal ones into train/good")
    fabric = start_fabric(device, devices, num_nodes, config.precision)
    state = checkpoint_to_resume(run / CHECKPOINT, config) if resume else None
    console = Console(stderr=True) if fabric.is_global_zero else None
    if state is not None and state["epoch"] >= config.epochs:
        if console is not None:
            console.print(f"nothing left to train: {run} is at epoch {state['epoch']}")
            History(run / "history.csv", state["history"]).write(always=True)  # if it was lost
    else:
        trainer = Trainer(config, fabric, run, state)
        trainer.fit(pictures, scorer, console, deadline)
    _end_processes(fabric)


class Trainer:
    """The networks, their optimisers and everything else that a checkpoint holds."""

    def __init__(
        self, config: Config, fabric: Fabric, run: Path, state: dict[str, Any] | None
    ) -> None:
        self.config = config
        self.fabric = fabric
        self.path = run / CHECKPOINT
        # Built on the CPU, so that a seed means the same weights on every device.
        torch.manual_seed(config.seed)
        self.generator = Generator(config)
        self.discriminator = Discriminator(config) if config.discriminator else None
        if state is not None:
            load_state(self.path, state, self.generator, self.discriminator)
        # One stream of orders and flips for all processes, apart from PyTorch's own.
        self.random = torch.Generator().manual_seed(config.seed)
        self.epoch = 0
        self.history = History(run / "history.csv", [])
        self.modules: dict[str, nn.Module] = {}
        self.optimizers: dict[str, torch.optim.Adam] = {}
        self.scalers: dict[str, torch.amp.GradScaler] = {}
        self._set_up("generator", self.generator)
        if self.discriminator is not None:
            self._set_up("discriminator", _PairDiscriminator(self.discriminator))
        if state is not None:
            self._restore(state)

    def _set_up(self, name: str, module: nn.Module) -> None:
        module.to(memory_format=MEMORY_FORMAT)  # type: ignore[call-overload]
        self.modules[name] = self.fabric.setup_module(module)
        # The optimiser stays PyTorch's own: a scaler hands a fused optimiser its verdict through
        # attributes, which would stop at Fabric's wrapper.
        self.optimizers[name] = torch.optim.Adam(
            module.parameters(), lr=self.config.lr, betas=(0.9, 0.999), fused=True
        )
        self.scalers[name] = torch.amp.GradScaler(
            self.fabric.device.type, enabled=self.config.precision == "16"
        )

    def fit(
        self,
        pictures: Pictures,
        scorer: Scorer | None = None,
        console: Console | None = None,
        deadline: float | None = None,
    ) -> None:
        config = self.config
        smallest = config.image_size // 2**config.levels
        order, _ = self._epoch_order(len(pictures), torch.Generator())
        steps = len(split_batches(order, config.batch_size, smallest))
        if not steps:
            raise UserError(
                f"{len(order)} picture(s) a device at image size {config.image_size}: BatchNorm "
                f"cannot take a single picture where the last map is one pixel; use "
                f"--batch-size 2 or more, more pictures, or fewer --levels"
            )
        if config.memory_init == "blocks" and config.fewest_blocks() and self.epoch == 0:
            self._fill_memories(pictures, smallest)
        with Display(config, steps, self.epoch, console) as display:
            while self.epoch < config.epochs:
                start = time.monotonic()
                losses = self._run_epoch(pictures, smallest, display)
                self.epoch += 1
                if self.epoch == config.epochs and config.statistics == "recomputed":
                    self._recompute_statistics(pictures)
                row = self.history.add(self.epoch, losses, time.monotonic() - start)
                if scorer and config.evaluate_every and self.epoch % config.evaluate_every == 0:
                    row["auroc"] = self._score(scorer)
                late = deadline is not None and time.monotonic() >= deadline
                self._keep(always=late)
                if late and self.epoch < config.epochs:
                    raise OutOfTime

    def _run_epoch(self, pictures: Pictures, smallest: int, display: Display) -> dict[str, float]:
        """One pass over the pictures; the mean of each loss over them and all devices."""
        order, flips = self._epoch_order(len(pictures), self.random)
        batches = split_batches(order, self.config.batch_size, smallest)
        flips = (flips & torch.tensor(FLIPS[self.config.flips])).to(self.fabric.device)
        totals: dict[str, Tensor] = {}
        seen = 0
        for index, indices in enumerate(batches):
            self._set_learning_rate((self.epoch + index / len(batches)) / self.config.epochs)
            x = pictures.batch(indices, self.fabric.device)
            x = flip(x, flips[seen : seen + len(indices)])
            losses = self._step(x.contiguous(memory_format=MEMORY_FORMAT))
            for name, loss in losses.items():
                totals[name] = totals.get(name, 0.0) + len(indices) * loss
            seen += len(indices)
            display.step(losses)
        # The one point of an epoch where the CPU waits for the device.
        means = self.fabric.all_reduce(torch.stack(list(totals.values())) / seen)
        values = dict(zip(totals, means.tolist(), strict=True))
        self._require_finite(values, self.epoch + 1)
        return values

    def _fill_memories(self, pictures: Pictures, smallest: int) -> None:
        """Make the items blocks of the untrained network's maps; pictures and blocks by the seed.

        All processes get the items of the first: maps may differ by rounding between devices.
        """
        config = self.config
        random = torch.Generator().manual_seed(config.seed)
        needed = math.ceil(config.num_items / config.fewest_blocks())
        order = torch.randperm(len(pictures), generator=random)[: max(FILLED_FROM, needed)]
        batches = split_batches(order, config.batch_size, smallest)
        inputs = (pictures.batch(indices, self.fabric.device) for indices in batches)
        fill_memories(self.generator, *inputs, generator=random)
        with torch.no_grad():
            for parameter in self.generator.memories.parameters():
                parameter.copy_(self.fabric.broadcast(parameter.detach()))

    def _set_learning_rate(self, done: float) -> None:
        """By the share of training that is done; nothing to keep for a run that goes on."""
        if self.config.schedule == "cosine":
            rate = self.config.lr * (1 + math.cos(math.pi * done)) / 2  # type: ignore[operator]
            for optimizer in self.optimizers.values():
                for group in optimizer.param_groups:
                    group["lr"] = rate

    def _recompute_statistics(self, pictures: Pictures) -> None:
        """Every process does the same, so that all have the same networks as before."""
        device = self.fabric.device
        recompute_statistics(self.generator, self.discriminator, pictures, self.config, device)

    def _epoch_order(self, count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        fabric = self.fabric
        return epoch_order(count, random, fabric.global_rank, fabric.world_size)

    def _require_finite(self, values: dict[str, float], epoch: int) -> None:
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad:
            kept = f"; {self.path} holds the last good checkpoint" if self.path.exists() else ""
            raise UserError(
                f"epoch {epoch}: not finite any more: {', '.join(bad)}; try a smaller --lr "
                f"(now {self.config.lr:g}) or --precision 32{kept}"
            )

    def _step(self, x: Tensor) -> dict[str, Tensor]:
        """One step of D, where there is one, and one of G (Eq. 3), on pictures `(B, 3, S, S)`."""
        config = self.config
        x_hat = self.modules["generator"](x)
        losses = {"reconstruction": reconstruction_loss(x, x_hat, config.distance)}
        if self.discriminator is not None:
            discriminator = self._discriminator_step(x, x_hat.detach())
            losses |= self._judge(self.discriminator, x, x_hat)
            losses["discriminator"] = discriminator
        objective = config.lambda_rec * losses["reconstruction"]
        if "adversarial" in losses:
            objective = objective + config.lambda_adv * losses["adversarial"]
        if "alignment" in losses:
            objective = objective + config.lambda_ali * losses["alignment"]
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
        """G's losses by way of D, which is only a yardstick here: f_D(x) is a constant.

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

    def _score(self, scorer: Scorer) -> float | None:
        score = None
        if self.fabric.is_global_zero:
            networks = [net for net in (self.generator, self.discriminator) if net is not None]
            for network in networks:
                network.eval()
            with torch.no_grad():
                score = float(scorer(self.generator, self.discriminator))
            for network in networks:
                network.train()
        self.fabric.barrier()
        return score

    def _keep(self, *, always: bool) -> None:
        """Write what is due after an epoch, or all of it: the checkpoint, the history."""
        every = self.config.checkpoint_every
        due = always or self.epoch == self.config.epochs or (every and self.epoch % every == 0)
        if due:
            # The epoch's losses came from the weights before its last step.
            sums = {name: _sum(module).item() for name, module in self.modules.items()}
            self._require_finite(
                {f"{name}'s weights": sum for name, sum in sums.items()}, self.epoch
            )
        if self.fabric.is_global_zero:
            if due:
                save_checkpoint(self.path, self._state())
            self.history.write(always=bool(due))

    def _state(self) -> dict[str, Any]:
        discriminator = self.discriminator
        return {
            "config": self.config.to_dict(),
            "epoch": self.epoch,
            "generator": self.generator.state_dict(),
            "discriminator": None if discriminator is None else discriminator.state_dict(),
            "optimizers": {name: opt.state_dict() for name, opt in self.optimizers.items()},
            "scalers": {name: scaler.state_dict() for name, scaler in self.scalers.items()},
            "random": self.random.get_state(),
            "random_torch": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all(),
            "history": self.history.rows,
            # Evaluation fills this in; a scale of earlier weights would not fit these.
            "score_scale": None,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
            self.scalers[name].load_state_dict(state["scalers"][name])
        self.epoch = state["epoch"]
        self.random.set_state(state["random"])
        torch.set_rng_state(state["random_torch"])
        if len(state["random_cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["random_cuda"])
        self.history.rows = state["history"]


def _sum(module: nn.Module) -> Tensor:
    return torch.stack([value.detach().sum() for value in module.parameters()]).sum()


class _PairDiscriminator(nn.Module):
    """D on real and reconstructed pictures, each a batch of its own to BatchNorm.

    One module, since DDP wants one forward pass for each backward pass.
    """

    def __init__(self, discriminator: Discriminator) -> None:
        super().__init__()
        self.discriminator = discriminator

    def forward(self, x: Tensor, x_hat: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return *self.discriminator(x), *self.discriminator(x_hat)


def _end_processes(fabric: Fabric) -> None:
    if fabric.world_size == 1:
        return
    fabric.barrier()
    torch.distributed.destroy_process_group()
    if not fabric.is_global_zero:
        raise SystemExit(0)
