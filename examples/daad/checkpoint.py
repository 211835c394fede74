"""The file that a run is continued and judged from: `checkpoint.ckpt`, plain tensors and values."""

from pathlib import Path
from typing import Any

import torch

from daad.config import Config
from daad.errors import UserError
from daad.files import write_atomically
from daad.model import Discriminator, Generator

CHECKPOINT = "checkpoint.ckpt"
# What a run that goes on may set otherwise than before; epochs only at a constant learning rate.
RESUMABLE = ("epochs", "checkpoint_every", "evaluate_every")
# What of a checkpoint nothing but more training needs: two thirds of its bytes.
OF_TRAINING = ("optimizers", "scalers", "random", "random_torch", "random_cuda")


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, text, lists and dicts of them) whole or not at all.

    UserError where it cannot be written; the one of before stays.
    """
    try:
        write_atomically(path, lambda temporary: torch.save(state, temporary))
    except (OSError, RuntimeError) as error:  # a full disk is a RuntimeError of PyTorch's writer
        raise UserError(
            f"{path}: cannot be written ({str(error).splitlines()[0]}); make room on that disk, "
            f"or give a folder on another; what was written before is whole"
        ) from error


def load_checkpoint(path: Path, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """Read what `save_checkpoint` wrote; UserError where there is nothing, or nothing readable.

    Loads with `weights_only=True`: a checkpoint from elsewhere can hold no code.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint; train first, or give the folder of a run")
    try:
        state = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # a file of another kind fails in any way at all
        raise _unreadable(path) from error
    if not isinstance(state, dict) or not {"config", "epoch", "generator"} <= set(state):
        raise _unreadable(path)
    return state


def keep_weights(path: Path) -> None:
    """Take out of the checkpoint at `path` what only training on would need."""
    state = load_checkpoint(path)
    if any(key in state for key in OF_TRAINING):
        save_checkpoint(path, {key: state[key] for key in state if key not in OF_TRAINING})


def checkpoint_to_resume(path: Path, config: Config) -> dict[str, Any]:
    """The checkpoint at `path`, to train on from.

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


def settings_that_differ(stored: Any, config: Config) -> list[str]:
    """What a run with the settings `stored` cannot go on with in `config`: names and both values."""
    before, now = Config.from_dict(stored).to_dict(), config.to_dict()
    return [
        f"{name.replace('_', '-')} (was {before[name]}, now {now[name]})"
        for name in now
        if now[name] != before[name]
        and (name not in RESUMABLE or (name == "epochs" and config.schedule != "constant"))
    ]


def require_same_settings(path: Path, stored: Any, config: Config) -> None:
    """UserError where the settings `stored` in the file `path` are not those of `config`."""
    changed = settings_that_differ(stored, config)
    if changed:
        raise UserError(
            f"{path}: cannot go on with other settings: {', '.join(changed)}; "
            f"give the same ones, or train into a new folder"
        )


def load_models(
    run: Path, device: str | torch.device = "cpu"
) -> tuple[Config, Generator, Discriminator | None, dict[str, Any]]:
    """The configuration, networks (on `device`, in eval mode) and checkpoint of the run `run`."""
    path = run / CHECKPOINT
    state = load_checkpoint(path)
    config = Config.from_dict(state["config"])
    generator = Generator(config)
    discriminator = Discriminator(config) if config.discriminator else None
    load_state(path, state, generator, discriminator)
    if discriminator is not None:
        discriminator.to(device).eval()
    return config, generator.to(device).eval(), discriminator, state


def load_state(
    path: Path, state: dict[str, Any], generator: Generator, discriminator: Discriminator | None
) -> None:
    """Put the checkpoint's weights into the networks; UserError where they do not fit them."""
    try:
        generator.load_state_dict(state["generator"])
        if discriminator is not None:
            discriminator.load_state_dict(state["discriminator"])
    except (KeyError, RuntimeError, TypeError) as error:
        raise UserError(
            f"{path}: its weights do not fit its own configuration; "
            f"it was written by another version, so train again into a new folder"
        ) from error


def _unreadable(path: Path) -> UserError:
    return UserError(
        f"{path}: not a readable checkpoint (cut short, or another kind of file); "
        f"restore it from a copy, or delete it and train again"
    )
