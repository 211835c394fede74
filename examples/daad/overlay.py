"""Heat maps laid over pictures, at the pictures' own size, on a colour scale that is the run's."""

from pathlib import Path

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw
from scipy import ndimage
from torch import Tensor

from daad.form import Fit, Mask, enlarge
from daad.io import write_atomically

HEAT = "magma"  # perceptually uniform: an equal step in score is an equal step in lightness
OUTLINE = (0, 229, 255)  # of what is anomalous: a colour that neither the map nor most parts have
STRONGEST = 0.65  # share of the heat where it is highest
FULL = 2.0  # thresholds, at which the scale ends
LINE = 256  # pixels of a picture's smaller side for each pixel of the outline's width


def overlay(
    path: Path, picture: Image.Image, scores: Tensor, threshold: float, fit: Fit = "squeeze"
) -> None:
    """Write `picture` (RGB) with its standardised map (S, S) over it; outline what is above `threshold`."""
    write_atomically(
        path, lambda file: blend(picture, scores, threshold, fit).save(file, compress_level=1)
    )


def blend(
    picture: Image.Image, scores: Tensor, threshold: float, fit: Fit = "squeeze"
) -> Image.Image:
    """Lay a map (S, S) over a picture: from nothing at 0 to full heat at `FULL` thresholds."""
    large = enlarge(scores, picture.size[::-1], fit).numpy()
    shares = np.clip(large / (FULL * max(threshold, 1e-6)), 0, 1)
    heat = colormaps[HEAT](shares, bytes=True)[..., :3]
    strength = (STRONGEST * shares)[..., None]
    mixed = np.asarray(picture) * (1 - strength) + heat * strength
    return outlined(Image.fromarray(mixed.round().astype(np.uint8)), large > threshold)


def outlined(picture: Image.Image, mask: Mask) -> Image.Image:
    """Draw the inner border of `mask` (h, w) into a copy of a picture of that size."""
    inner = ndimage.binary_erosion(mask, iterations=max(1, min(picture.size) // LINE))
    pixels = np.array(picture)
    pixels[mask & ~inner] = OUTLINE
    return Image.fromarray(pixels)


def write_scale(path: Path, threshold: float) -> None:
    """Write the colours of all heat maps of a run, with the scores that they stand for."""
    bar = Image.new("RGB", (360, 56), "white")
    ramp = colormaps[HEAT](np.linspace(0, 1, 320), bytes=True)[None, :, :3]
    bar.paste(Image.fromarray(np.repeat(ramp, 20, axis=0)), (20, 8))
    draw = ImageDraw.Draw(bar)
    for share, text in (
        (0, "0"),
        (1 / FULL, f"{threshold:.3g}: anomalous"),
        (1, f"{FULL * threshold:.3g}"),
    ):
        x = 20 + round(share * 319)
        draw.line([(x, 28), (x, 33)], fill="black")
        draw.text((x, 36), text, fill="black", anchor="ma")
    write_atomically(path, bar.save)
