"""Training of one run on pictures that are flipped at random, with checkpoints that go on exactly."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from signal import SIGTERM
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from torch import Tensor

from blockmem import fill_memories
from daad.config import Config, known
from daad.io import Interrupted, OutOfTime, UserError, load_checkpoint, save_checkpoint
from daad.learner import MEMORY_FORMAT, Learner
from daad.machine import end_processes, start_fabric
from daad.network import CHECKPOINT, Networks, distances, recompute_statistics
from daad.pictures import FLIPS, Pictures, epoch_order, flip, split_batches
from daad.progress import Display, History
from daad.resuming import require_same_settings
from daad.stopping import Watch

if TYPE_CHECKING:
    from lightning_fabric import Fabric

FILLED_FROM = 64  # pictures whose blocks become items; more where these have too few
# What of a checkpoint nothing but more training needs: two thirds of its bytes.
OF_TRAINING = (
    *("optimizers", "scalers", "random", "random_torch", "random_cuda"),
    *("step", "totals", "seconds"),
)

Scorer = Callable[[Networks], float | None]


def train(
    config: Config,
    pictures: Pictures,
    folder: Path,
    *,
    device: str = "auto",
    devices: int = 1,
    num_nodes: int = 1,
    compile: bool = False,
    tensorboard: bool = False,
    resume: bool = False,
    held_out: Pictures | None = None,
    scorer: Scorer | None = None,
    deadline: float | None = None,
    advice: str = "",
) -> None:
    """Train `config` (resolved) on `pictures`; leave checkpoint.ckpt and history.csv in `folder`.

    With several devices each takes `config.batch_size` pictures a step, and only the first process
    returns. UserError for what cannot be trained, or when a loss is no longer finite.
    resume: go on from the folder's checkpoint, which every machine must see, as if never stopped.
    compile: by torch.compile. tensorboard: write the history for TensorBoard too.
    held_out: pictures that are not trained on, for the loss on them after each epoch, by which
    `config.patience` may end training early.
    scorer: gives the AUROC on the test set, for every `config.evaluate_every` epochs, and leaves the
    networks in the modes they came in.
    deadline: a time of `time.monotonic()`, for a single process. The epoch in which it passes is
    the last; OutOfTime then, with a checkpoint to go on from, unless all epochs are done.
    advice: a sentence that is said where training will take hours.

    A checkpoint is written every few minutes, whatever the epochs, and at the end. At Ctrl-C and
    SIGTERM the step at hand is finished and saved; Interrupted then.
    """
    if not len(pictures):
        raise UserError("no pictures to train on; put normal ones into train/good")
    logs = folder / "tensorboard" if tensorboard else None
    fabric = start_fabric(device, devices, num_nodes, config.precision, logs)
    state = checkpoint_to_resume(folder / CHECKPOINT, config) if resume else None
    console = Console(stderr=True) if fabric.is_global_zero else None
    if state is not None and is_over(config, state["epoch"], state["history"]):
        if console is not None:
            console.print(f"nothing left to train: {folder} is at epoch {state['epoch']}")
            History(folder / "history.csv", state["history"]).write(always=True)  # if it was lost
    else:
        Trainer(config, fabric, folder, state, compile=compile).fit(
            pictures, held_out, scorer, console, deadline, advice
        )
    end_processes(fabric)


def checkpoint_to_resume(path: Path, config: Config) -> dict[str, Any]:
    """Read the checkpoint at `path`, to train on from.

    UserError where it was trained with other settings than `config`, or holds no more than weights
    and has epochs to go.
    """
    state = load_checkpoint(path)
    require_same_settings(path, state["config"], config)
    over = is_over(config, state["epoch"], state.get("history", []))
    if not over and "optimizers" not in state:
        raise UserError(
            f"{path}: was finished with {state['epoch']} epochs and holds its weights alone, which "
            f"{config.epochs} epochs cannot go on from; train into a new folder"
        )
    return state


def is_over(config: Config, epoch: int, history: Sequence[Mapping[str, Any]]) -> bool:
    """Say whether training is at its end after `epoch` epochs, or has been stopped early."""
    return epoch >= config.epochs or stopped_early(config, history)


def stopped_early(config: Config, history: Sequence[Mapping[str, Any]]) -> bool:
    """Say whether the loss on held-out pictures has not fallen for `config.patience` epochs."""
    losses = [row["held_out"] for row in history if row.get("held_out") is not None]
    if not config.patience or not losses:
        return False
    return len(losses) - 1 - losses.index(min(losses)) >= config.patience


def keep_weights(path: Path) -> None:
    """Take out of the checkpoint at `path` what only more training would need."""
    state = load_checkpoint(path)
    if any(key in state for key in OF_TRAINING):
        save_checkpoint(path, {key: state[key] for key in state if key not in OF_TRAINING})


class Trainer:
    """The networks, their optimisers and everything else that a checkpoint holds."""

    def __init__(
        self,
        config: Config,
        fabric: "Fabric",
        folder: Path,
        state: dict[str, Any] | None,
        *,
        compile: bool = False,
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
        self.epoch = 0  # those that are done; below, what is done of the next
        self.step, self.totals, self.seconds = 0, dict[str, Tensor](), 0.0
        self.drawn = self.random.get_state()  # as the epoch began, whose order it decides
        self.history = History(folder / "history.csv", [])
        self.learner = Learner(config, fabric, self.networks, compile=compile)
        if state is not None:
            self._restore(state)

    def fit(
        self,
        pictures: Pictures,
        held_out: Pictures | None = None,
        scorer: Scorer | None = None,
        console: Console | None = None,
        deadline: float | None = None,
        advice: str = "",
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
        done = self.epoch * steps + self.step
        if config.memory_init == "blocks" and config.fewest_blocks() and not done:
            self._fill_memories(pictures)
        display = Display(config.epochs, steps, done, console, advice)
        with display, Watch(deadline) as watch:
            while not self.over:
                self.begun = time.monotonic() - self.seconds
                losses = self._run_epoch(pictures, display, watch)
                self.epoch += 1
                row = self.history.add(self.epoch, losses)
                if held_out is not None:
                    row["held_out"] = self._held_out_loss(held_out)
                if self.over and config.statistics == "recomputed":
                    # Every process does the same, so that all have the same networks as before.
                    recompute_statistics(self.networks, pictures, config)
                row["seconds"] = round(time.monotonic() - self.begun, 3)
                if scorer and config.evaluate_every and self.epoch % config.evaluate_every == 0:
                    row["auroc"] = scorer(self.networks) if self.fabric.is_global_zero else None
                    self.fabric.barrier()
                values = {name: value for name, value in row.items() if value is not None}
                self.fabric.log_dict(values, step=self.epoch)
                self._keep(watch)
                if watch.late and not self.over:
                    raise OutOfTime
        if console is not None and self.epoch < config.epochs:
            console.print(
                f"Stopped after epoch {self.epoch}: the loss on held-out pictures has not fallen for "
                f"{config.patience} epochs",
                soft_wrap=True,
            )

    @property
    def over(self) -> bool:
        """Whether training has come to its end, or to an early one."""
        return is_over(self.config, self.epoch, self.history.rows)

    @torch.no_grad()
    def _held_out_loss(self, pictures: Pictures) -> float:
        """Average the reconstruction loss over pictures that are not trained on, in eval mode.

        The first process computes it for all.
        """
        total = 0.0
        if self.fabric.is_global_zero:
            generator = self.networks.generator.eval()
            for indices in torch.arange(len(pictures)).split(self.config.batch_size):
                x = pictures.batch(indices, self.fabric.device)
                with self.fabric.autocast():
                    x_hat = generator(x.contiguous(memory_format=MEMORY_FORMAT))
                total += distances(x, x_hat, known(self.config.distance)).sum().item()
            generator.train()
        loss: float = self.fabric.broadcast(total / len(pictures))
        return loss

    def _run_epoch(self, pictures: Pictures, display: Display, watch: Watch) -> dict[str, float]:
        """Pass over the pictures once, or over those that are left of an epoch.

        Return the mean of each loss over the epoch and all devices.
        """
        self.drawn = self.random.get_state()
        order, flips = self._epoch_order(len(pictures), self.random)
        batches = split_batches(order, self.config.batch_size, self.config.smallest)
        flips = (flips & torch.tensor(FLIPS[known(self.config.flips)])).to(self.fabric.device)
        seen = sum(map(len, batches[: self.step]))
        for indices in batches[self.step :]:
            self.learner.set_learning_rate(
                (self.epoch + self.step / len(batches)) / self.config.epochs
            )
            x = pictures.batch(indices, self.fabric.device)
            x = flip(x, flips[seen : seen + len(indices)])
            losses = self.learner.step(x.contiguous(memory_format=MEMORY_FORMAT))
            for name, loss in losses.items():
                self.totals[name] = self.totals.get(name, 0.0) + len(indices) * loss
            seen += len(indices)
            self.step += 1
            display.step(losses)
            # Several devices would have to agree on it at each step; they do so after an epoch.
            if watch.due and self.step < len(batches) and self.fabric.world_size == 1:
                self.seconds = time.monotonic() - self.begun
                self._save(watch, stop=watch.signal is not None)
        # The one point of an epoch where the CPU waits for the device.
        means = self.fabric.all_reduce(torch.stack(list(self.totals.values())) / seen)
        assert isinstance(means, Tensor)
        values = dict(zip(self.totals, means.tolist(), strict=True))
        self._require_finite(values, self.epoch + 1)
        self.step, self.totals, self.seconds = 0, {}, 0.0
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

    def _keep(self, watch: Watch) -> None:
        """Write what is due after an epoch: the checkpoint, the history; all devices do the same."""
        stop = self._any_device(watch.signal is not None)
        if stop or self._any_device(watch.due) or watch.late or self.over:
            self._save(watch, stop=stop)
        elif self.fabric.is_global_zero:
            self.history.write()

    def _any_device(self, value: bool) -> bool:
        if self.fabric.world_size == 1:
            return value
        flag = torch.tensor(float(value), device=self.fabric.device)
        return bool(self.fabric.all_reduce(flag, reduce_op="sum"))

    def _save(self, watch: Watch, *, stop: bool) -> None:
        """Write the checkpoint and the history; Interrupted where training is to `stop`."""
        # The losses came from the weights before the last step.
        self._require_finite(self.learner.sums(), self.epoch + (self.step > 0))
        if self.fabric.is_global_zero:
            save_checkpoint(self.path, self._state())
            self.history.write(always=True)
        watch.saved()
        if stop and not self.over:
            raise Interrupted(
                f"stopped in epoch {self.epoch + 1} of {self.config.epochs}; {self.path} holds all "
                f"that was learned, and the same command with --resume goes on",
                watch.signal or SIGTERM,  # it may have reached another device's process
            )

    def _state(self) -> dict[str, Any]:
        generator, discriminator = self.networks
        return {
            "config": self.config.to_dict(),
            "epoch": self.epoch,
            "generator": generator.state_dict(),
            "discriminator": None if discriminator is None else discriminator.state_dict(),
            **self.learner.state(),
            "step": self.step,
            "totals": dict(self.totals),
            "seconds": self.seconds,
            "random": self.drawn if self.step else self.random.get_state(),
            "random_torch": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all(),
            "history": self.history.rows,
            # Evaluation fills this in; what earlier weights made of normal pictures would not fit.
            **dict.fromkeys(("reference", "reference_even", "brightness")),
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.learner.restore(state)
        # Checkpoints of earlier versions are all from between two epochs.
        self.epoch, self.step = state["epoch"], state.get("step", 0)
        self.totals, self.seconds = state.get("totals", {}), state.get("seconds", 0.0)
        self.random.set_state(state["random"])
        torch.set_rng_state(state["random_torch"])
        if len(state["random_cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["random_cuda"])
        self.history.rows = state["history"]
