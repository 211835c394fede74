"""Runs on a handful of small pictures: networks as they begin, and what they know of normal pictures."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from daad.config import Config
from daad.io import save_checkpoint
from daad.mvtec import Category
from daad.network import CHECKPOINT, Discriminator, Generator
from daad.run import fit_reference

CPU = torch.device("cpu")
SIZE = 32
NETWORK = {
    "image_size": SIZE,
    "width": 4,
    "levels": 2,
    "division": (2, 2, 1),
    "num_items": 4,
    "batch_size": 3,
}


def save_picture(path: Path, seed: int, spot: int = 0) -> None:
    """Noise, with a bright square of `spot` pixels."""
    pixels = np.random.default_rng(seed).integers(90, 130, (SIZE, SIZE, 3), dtype=np.uint8)
    pixels[4 : 4 + spot, 4 : 4 + spot] = 250
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def make_run(run: Path, variant: str = "daad", **settings: Any) -> Path:
    """The checkpoint of an untrained network; `history` goes into it."""
    history = settings.pop("history", [])
    config = Config(variant=variant, **NETWORK, **settings).resolve()
    torch.manual_seed(0)
    generator = Generator(config)
    discriminator = Discriminator(config).state_dict() if config.discriminator else None
    state = {
        "config": config.to_dict(),
        "epoch": 7,
        "generator": generator.state_dict(),
        "discriminator": discriminator,
        "history": history,
    }
    save_checkpoint(run / CHECKPOINT, state)
    return run


def make_measured_run(
    run: Path, category: Category, variant: str = "daad", **settings: Any
) -> Path:
    """The same, with what it knows of the normal pictures of `category`."""
    fit_reference(make_run(run, variant, **settings), category, CPU)
    return run
