"""Training of one run: Eq. 3 on pictures that are flipped at random, with checkpoints that go on exactly."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from torch import Tensor, nn

from blockmem import fill_memories
from daad.config import Config, known, require_same_settings
from daad.io import OutOfTime, UserError, load_checkpoint, save_checkpoint
from daad.machine import end_processes, start_fabric
from daad.network import (
    CHECKPOINT,
    Discriminator,
    Networks,
    alignment_loss,
    discriminator_loss,
    generator_adversarial_loss,
    recompute_statistics,
    reconstruction_loss,
)
from daad.pictures import FLIPS, Pictures, epoch_order, flip, split_batches
from daad.progress import Display, History

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# On the CPU too: a fifth to a third faster (128x128, width 16, batch 8, two cores).
MEMORY_FORMAT = torch.channels_last
FILLED_FROM = 64  # pictures whose blocks become items; more where these have too few
# What of a checkpoint nothing but more training needs: two thirds of its bytes.
OF_TRAINING = ("optimizers", "scalers", "random", "random_torch", "random_cuda")

Scorer = Callable[[Networks], float | None]


def train(
    config: Config,
    pictures: Pictures,
    folder: Path,
    *,
    device: str = "auto",
    devices: int = 1,
    num_nodes: int = 1,
    resume: bool = False,
    scorer: Scorer | None = None,
    deadline: float | None = None,
) -> None:
    """Train `config` (resolved) on `pictures`; leave checkpoint.ckpt and history.csv in `folder`.

    With several devices each takes `config.batch_size` pictures a step, and only the first process
    returns. UserError for what cannot be trained, or when a loss is no longer finite.
    resume: go on from the folder's checkpoint, which every machine must see, as if never stopped.
    scorer: gives the AUROC on the test set, for every `config.evaluate_every` epochs, and leaves the
    networks in the modes they came in.
    deadline: a time of `time.monotonic()`, for a single process. The epoch in which it passes is
    the last; OutOfTime then, with a checkpoint to go on from, unless all epochs are done.
    """
    if not len(pictures):
        raise UserError("no pictures to train on; put normal ones into train/good")
    fabric = start_fabric(device, devices, num_nodes, config.precision)
    state = checkpoint_to_resume(folder / CHECKPOINT, config) if resume else None
    console = Console(stderr=True) if fabric.is_global_zero else None
    if state is not None and state["epoch"] >= config.epochs:
        if console is not None:
            console.print(f"nothing left to train: {folder} is at epoch {state['epoch']}")
            History(folder / "history.csv", state["history"]).write(always=True)  # if it was lost
    else:
        Trainer(config, fabric, folder, state).fit(pictures, scorer, console, deadline)
    end_processes(fabric)


def checkpoint_to_resume(path: Path, config: Config) -> dict[str, Any]:
    """Read the checkpoint at `path`, to train on from.

    UserError where it was trained with other settings than `config`, or holds no more than weights
    and has epochs to go.
    """
    state = load_checkpoint(path)
    require_same_settings(path, state["config"], config)
    if state["epoch"] < config.epochs and not set(OF_TRAINING) <= set(state):
        raise UserError(
            f"{path}: was finished with {state['epoch']} epochs and holds its weights alone, which "
            f"{config.epochs} epochs cannot go on from; train into a new folder"
        )
    return state


def keep_weights(path: Path) -> None:
    """Take out of the checkpoint at `path` what only more training would need."""
    state = load_checkpoint(path)
    if any(key in state for key in OF_TRAINING):
        save_checkpoint(path, {key: state[key] for key in state if key not in OF_TRAINING})


class Trainer:
    """The networks, their optimisers and everything else that a checkpoint holds."""

    def __init__(
        self, config: Config, fabric: "Fabric", folder: Path, state: dict[str, Any] | None
    ) -> None:
        """Start from the checkpoint's `state`, or with None from the seed."""
        self.config = config
        self.fabric = fabric
        self.path = folder / CHECKPOINT
        # Built on the CPU, so that a seed means the same weights on every device.
        torch.manual_seed(config.seed)
        self.networks = Networks.build(config)
        if state is not None:
            self.networks.restore(self.path, state)
        # One stream of orders and flips for all processes, apart from PyTorch's own.
        self.random = torch.Generator().manual_seed(config.seed)
        self.epoch = 0
        self.history = History(folder / "history.csv", [])
        self.modules: dict[str, nn.Module] = {}
        self.optimizers: dict[str, torch.optim.Adam] = {}
        self.scalers: dict[str, torch.amp.GradScaler] = {}
        self._set_up("generator", self.networks.generator)
        if self.networks.discriminator is not None:
            self._set_up("discriminator", _PairDiscriminator(self.networks.discriminator))
        if state is not None:
            self._restore(state)

    def _set_up(self, name: str, module: nn.Module) -> None:
        module.to(memory_format=MEMORY_FORMAT)  # type: ignore[call-overload]
        self.modules[name] = self.fabric.setup_module(module)
        # The optimiser stays PyTorch's own: a scaler hands a fused optimiser its verdict through
        # attributes, which would stop at Fabric's wrapper.
        lr, half = known(self.config.lr), self.config.precision == "16"
        self.optimizers[name] = torch.optim.Adam(module.parameters(), lr, (0.9, 0.999), fused=True)
        self.scalers[name] = torch.amp.GradScaler(self.fabric.device.type, enabled=half)

    def fit(
        self,
        pictures: Pictures,
        scorer: Scorer | None = None,
        console: Console | None = None,
        deadline: float | None = None,
    ) -> None:
        """Train from where it stands to the last epoch, as `train` says."""
        config = self.config
        order, _ = self._epoch_order(len(pictures), torch.Generator())
        steps = len(split_batches(order, config.batch_size, config.smallest))
        if not steps:
            raise UserError(
                f"{len(order)} picture(s) a device at image size {config.image_size}: BatchNorm "
                f"cannot take a single picture where the last map is one pixel; use "
                f"--batch-size 2 or more, more pictures, or fewer --levels"
            )
        if config.memory_init == "blocks" and config.fewest_blocks() and self.epoch == 0:
            self._fill_memories(pictures)
        with Display(config.epochs, steps, self.epoch, console) as display:
            while self.epoch < config.epochs:
                start = time.monotonic()
                losses = self._run_epoch(pictures, display)
                self.epoch += 1
                if self.epoch == config.epochs and config.statistics == "recomputed":
                    # Every process does the same, so that all have the same networks as before.
                    recompute_statistics(self.networks, pictures, config)
                row = self.history.add(self.epoch, losses, time.monotonic() - start)
                if scorer and config.evaluate_every and self.epoch % config.evaluate_every == 0:
                    row["auroc"] = scorer(self.networks) if self.fabric.is_global_zero else None
                    self.fabric.barrier()
                late = deadline is not None and time.monotonic() >= deadline
                self._keep(always=late)
                if late and self.epoch < config.epochs:
                    raise OutOfTime

    def _run_epoch(self, pictures: Pictures, display: Display) -> dict[str, float]:
        """Pass over the pictures once; return the mean of each loss over them and all devices."""
        order, flips = self._epoch_order(len(pictures), self.random)
        batches = split_batches(order, self.config.batch_size, self.config.smallest)
        flips = (flips & torch.tensor(FLIPS[known(self.config.flips)])).to(self.fabric.device)
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
        assert isinstance(means, Tensor)
        values = dict(zip(totals, means.tolist(), strict=True))
        self._require_finite(values, self.epoch + 1)
        return values

    def _fill_memories(self, pictures: Pictures) -> None:
        """Make the items blocks of the untrained network's maps; pictures and blocks by the seed.

        All processes get the items of the first: maps may differ by rounding between devices.
        """
        config = self.config
        random = torch.Generator().manual_seed(config.seed)
        needed = math.ceil(known(config.num_items) / config.fewest_blocks())
        order = torch.randperm(len(pictures), generator=random)[: max(FILLED_FROM, needed)]
        batches = split_batches(order, config.batch_size, config.smallest)
        inputs = (pictures.batch(indices, self.fabric.device) for indices in batches)
        fill_memories(self.networks.generator, *inputs, generator=random)
        with torch.no_grad():
            for parameter in self.networks.generator.memories.parameters():
                parameter.copy_(self.fabric.broadcast(parameter.detach()))

    def _set_learning_rate(self, done: float) -> None:
        """Set it by the share of training that is `done`: a run that goes on need not remember it."""
        if self.config.schedule == "cosine":
            rate = known(self.config.lr) * (1 + math.cos(math.pi * done)) / 2
            for group in (group for one in self.optimizers.values() for group in one.param_groups):
                group["lr"] = rate

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

    def _keep(self, *, always: bool) -> None:
        """Write what is due after an epoch, or all of it: the checkpoint, the history."""
        every = self.config.checkpoint_every
        due = always or self.epoch == self.config.epochs or (every and self.epoch % every == 0)
        if due:
            sums = {}  # of weights: the epoch's losses came from those before its last step
            for name, module in self.modules.items():
                parts = [value.detach().sum() for value in module.parameters()]
                sums[f"{name}'s weights"] = torch.stack(parts).sum().item()
            self._require_finite(sums, self.epoch)
        if self.fabric.is_global_zero:
            if due:
                save_checkpoint(self.path, self._state())
            self.history.write(always=bool(due))

    def _state(self) -> dict[str, Any]:
        generator, discriminator = self.networks
        return {
            "config": self.config.to_dict(),
            "epoch": self.epoch,
            "generator": generator.state_dict(),
            "discriminator": None if discriminator is None else discriminator.state_dict(),
            "optimizers": {name: opt.state_dict() for name, opt in self.optimizers.items()},
            "scalers": {name: scaler.state_dict() for name, scaler in self.scalers.items()},
            "random": self.random.get_state(),
            "random_torch": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all(),
            "history": self.history.rows,
            # Evaluation fills this in; what earlier weights made of normal pictures would not fit.
            **dict.fromkeys(("reference", "reference_even", "brightness")),
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


class _PairDiscriminator(nn.Module):
    """D on real and reconstructed pictures, each a batch of its own to BatchNorm.

    One module, since DDP wants one forward pass for each backward pass.
    """

    def __init__(self, discriminator: Discriminator) -> None:
        super().__init__()
        self.discriminator = discriminator

    def forward(self, x: Tensor, x_hat: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return *self.discriminator(x), *self.discriminator(x_hat)
