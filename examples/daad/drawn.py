"""A small data set drawn from a seed, in MVTec layout, for where no photographs are at hand.

Three categories: `gear`, a turned steel wheel on a plain bench; `weave`, a coarse cloth; and `cloth`,
the same at any angle, where no pixel means the same twice. Their normal pictures differ in position,
rotation, light, dust, machining marks or yarn, and sensor noise; their defects are small and of low
contrast, so that a plain autoencoder misses some.
Every number below is in pictures of [-1, 1] or in light of [0, 1], whatever the image size.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image

from daad.io import UserError
from daad.pictures import GOOD

Array = np.ndarray

DEFECTS = ("missing_part", "scratch", "spot")
OVERSAMPLE = 2  # drawn at twice the size, then averaged, so that edges are smooth
VISIBLE = 2.5 / 255  # a difference from the flawless twin that belongs in the mask


@dataclass
class Surface:
    """What is photographed: all arrays are (H, W), albedo (H, W, 3)."""

    height: Array  # in units of half a picture, shaded by its slope
    albedo: Array
    gloss: Array
    body: Array  # bool: where the product is, and a defect can be


def make_dataset(
    root: Path,
    *,
    image_size: int = 128,
    train: int = 80,
    test_good: int = 16,
    test_per_defect: int = 8,
    seed: int = 0,
    categories: Sequence[str] = ("gear", "weave"),
) -> list[str]:
    """Draw `categories` into `root` in MVTec layout; returns their names.

    The same arguments give the same bytes. The set is whole or absent; UserError where a folder
    of one of the names is there already.
    """
    for category in categories:
        if (root / category).exists():
            raise UserError(f"{root / category}: is there already; give a new folder, or remove it")
    counts = {"train/good": train, "test/good": test_good}
    counts |= {f"test/{defect}": test_per_defect for defect in DEFECTS}
    temporary = root / f".synthetic.{os.getpid()}"
    try:
        for category in categories:
            number = list(PRODUCTS).index(category)
            _write_category(temporary / category, image_size, counts, (seed, number))
        for category in categories:
            (temporary / category).rename(root / category)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return list(categories)


def draw(
    category: str, seed: Sequence[int], image_size: int, defect: str | None = None
) -> tuple[Array, Array]:
    """Draw a picture, uint8 (S, S, 3), and where it shows `defect`, bool (S, S).

    The picture with a defect and the one without are twins: same product, light and noise.
    """
    size = image_size * OVERSAMPLE

    def photograph(defect: str | None) -> Array:
        part, light, harm = (np.random.default_rng([*seed, stream]) for stream in range(3))
        surface = PRODUCTS[category](part, size, harm if defect == "missing_part" else None)
        if defect == "scratch":
            _scratch(harm, surface)
        if defect == "spot":
            _spot(harm, surface)
        return _photograph(light, surface)

    clean = seen = photograph(None)
    if defect is not None:
        seen = photograph(defect)
    mask = np.abs(seen - clean).max(-1) > VISIBLE
    return _expose(np.random.default_rng([*seed, 3]), seen), mask


def _write_category(
    folder: Path, image_size: int, counts: dict[str, int], seed: tuple[int, ...]
) -> None:
    """Write `counts` pictures into each place of `folder`, which is named for the category, and masks."""

    def write(group: int, place: str, index: int) -> None:
        defect = place.split("/")[1]
        own_seed = (*seed, group, index)
        wanted = None if defect == GOOD else defect
        picture, mask = draw(folder.name, own_seed, image_size, wanted)
        Image.fromarray(picture).save(folder / place / f"{index:03}.png")
        if defect != GOOD:
            path = folder / "ground_truth" / defect / f"{index:03}_mask.png"
            Image.fromarray(mask).convert("L").save(path)

    for place in counts:
        (folder / place).mkdir(parents=True)
    for defect in DEFECTS:
        (folder / "ground_truth" / defect).mkdir(parents=True)
    with ThreadPoolExecutor() as workers:  # NumPy frees the GIL; each picture has its own seed
        jobs = [
            workers.submit(write, group, place, index)
            for group, (place, count) in enumerate(counts.items())
            for index in range(count)
        ]
        for job in jobs:
            job.result()


# The products


def _gear(rng: Generator, size: int, harm: Generator | None) -> Surface:
    """Make a steel wheel of 10 teeth with a bore and four holes; `harm` breaks a tooth."""
    x, y = _placed(rng, size, shift=0.008, turn=1.2, scale=0.005)
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    teeth, holes = 10, 4
    wave = np.cos(teeth * angle)
    rim = 0.70 + 0.12 * _step(wave, -0.6, 0.6)
    hole_turn = 2 * np.pi / holes
    spread = (angle + hole_turn / 2) % hole_turn - hole_turn / 2
    hole = np.hypot(radius * np.cos(spread) - 0.50, radius * np.sin(spread)) - 0.075
    if harm is not None:
        broken = harm.integers(teeth) * 2 * np.pi / teeth
        near = np.abs((angle - broken + np.pi) % (2 * np.pi) - np.pi) < np.pi / teeth
        rough = 0.02 * _cloud(harm, size, 40)
        rim = np.where(near, np.minimum(rim, 0.70 + harm.uniform(0, 0.04) + rough), rim)
    depth = np.minimum.reduce([rim - radius, radius - 0.20, hole])
    body = depth > 0

    height = 0.035 * _step(depth, 0, 0.06)
    height += 0.015 * _step(radius, 0.38, 0.32)  # the hub stands out
    rings = np.interp(radius, np.linspace(0, 1.5, 180), rng.normal(size=180))
    steel = 0.55 * (1 + 0.03 * rings + 0.03 * _cloud(rng, size, 6))
    fan = np.cos(angle - rng.normal(0.8, 0.05)) ** 2  # turned metal shines in two sectors
    gloss = np.where(body, 0.05 + 0.12 * fan**6, 0)
    bench = 0.40 * (1 + 0.06 * _cloud(rng, size, 5) + 0.05 * _cloud(rng, size, size // 3))
    bench *= 1 - 0.4 * _blur(np.roll(body, (size // 40, size // 40), (0, 1)), size / 50)
    gray = np.where(body, steel, bench)
    tint = np.where(body[..., None], (1.0, 0.99, 0.95), (0.94, 0.98, 1.04))
    return Surface(height, gray[..., None] * tint, gloss, body)


def _cloth(rng: Generator, size: int, harm: Generator | None) -> Surface:
    """Make the weave as it comes: at any angle, anywhere, a little nearer or farther."""
    return _woven(rng, size, harm, _placed(rng, size, shift=0.2, turn=180, scale=0.03))


def _weave(rng: Generator, size: int, harm: Generator | None) -> Surface:
    """Make a plain weave that lies nearly straight."""
    return _woven(rng, size, harm, _placed(rng, size, shift=0.05, turn=0.8, scale=0.01))


def _woven(
    rng: Generator, size: int, harm: Generator | None, place: tuple[Array, Array]
) -> Surface:
    """Weave round yarns along x and y; `harm` takes a piece of one yarn out."""
    x, y = place
    pitch = 0.2
    u = x / pitch + 0.05 * _cloud(rng, size, 4)
    v = y / pitch + 0.05 * _cloud(rng, size, 4)
    column, row = np.floor(u).astype(int), np.floor(v).astype(int)
    # Each yarn waves up and down along its length: over one, under the next.
    warp = _yarn(u) + 0.4 * np.sin(np.pi * (v + column % 2))
    weft = _yarn(v) - 0.4 * np.sin(np.pi * (u + row % 2))
    if harm is not None:
        centre_u, centre_v = np.floor(_pick(harm, np.ones_like(u, bool), u, v))
        length = harm.uniform(1.5, 3.0)
        gone = (column == centre_u) & (np.abs(v - centre_v) < length)
        warp = np.where(gone, -1.5, warp)
    on_top = warp > weft
    height = 0.03 * np.maximum(np.maximum(warp, weft), -0.6)
    shades = rng.normal(1, 0.03, size=(2, 64))
    warp_shade, weft_shade = shades[0][column % 64], shades[1][row % 64]
    dye = np.where(on_top, 0.43 * warp_shade, 0.40 * weft_shade)
    dye = dye * (0.7 + 0.3 * _step(np.maximum(warp, weft), -0.7, 0.4))  # the gaps are dark
    dye *= 1 + 0.05 * _cloud(rng, size, 5) + 0.05 * _cloud(rng, size, size // 3)
    tint = np.where(on_top[..., None], (1.03, 0.98, 0.92), (0.99, 0.98, 0.97))
    body = np.ones_like(on_top)
    return Surface(height, dye[..., None] * tint, np.full_like(height, 0.02), body)


PRODUCTS: dict[str, Callable[[Generator, int, Generator | None], Surface]] = {
    "gear": _gear,
    "weave": _weave,
    "cloth": _cloth,
}


def _yarn(across: Array) -> Array:
    """Give the round profile of a yarn of width 1, from 0 at its edges to 1."""
    return np.sqrt(np.maximum(1 - (2 * (across % 1) - 1) ** 2, 0))


# The defects


def _scratch(rng: Generator, surface: Surface) -> None:
    """Add a thin, slightly bent furrow with a raised lip."""
    size = len(surface.height)
    x, y = _grid(size)
    centre_x, centre_y = _pick(rng, surface.body, x, y)
    turn, length = rng.uniform(0, np.pi), rng.uniform(0.22, 0.45)
    along = np.cos(turn) * (x - centre_x) + np.sin(turn) * (y - centre_y)
    across = np.cos(turn) * (y - centre_y) - np.sin(turn) * (x - centre_x)
    across += rng.uniform(-0.6, 0.6) * along**2 + 0.01 * _cloud(rng, size, 16)
    width = rng.uniform(0.015, 0.021)
    fade = _step(np.abs(along), length, 0.6 * length) * surface.body
    furrow = np.exp(-((across / width) ** 2)) * fade
    surface.height -= 0.004 * furrow
    surface.albedo *= 1 + rng.choice([-0.6, 0.7]) * furrow[..., None]


def _spot(rng: Generator, surface: Surface) -> None:
    """Add a soft stain, darker and browner."""
    size = len(surface.height)
    x, y = _grid(size)
    centre_x, centre_y = _pick(rng, surface.body, x, y)
    radius = rng.uniform(0.09, 0.14)
    reach = np.hypot(x - centre_x, y - centre_y) / radius + 0.25 * _cloud(rng, size, 16)
    stain = _step(reach, 1.1, 0.6) * surface.body * rng.uniform(0.65, 1.0)
    surface.albedo *= 1 - stain[..., None] * (0.45, 0.55, 0.65)
    surface.gloss *= 1 - 0.6 * stain


# The photograph


def _photograph(rng: Generator, surface: Surface) -> Array:
    """Compute the light that reaches the sensor, (S, S, 3) in about 0 to 1."""
    size = len(surface.height)
    x, y = _grid(size)
    azimuth, low = rng.normal(-2.3, 0.06), 0.75
    slope_y, slope_x = np.gradient(surface.height, 2 / size)
    up = 1 / np.sqrt(1 + slope_x**2 + slope_y**2)
    facing = (low - slope_x * np.cos(azimuth) - slope_y * np.sin(azimuth)) * up / np.hypot(1, low)
    light = 0.35 + 1.0 * np.maximum(facing, 0)
    gleam = surface.gloss * np.maximum(facing, 0) ** 4
    fall = rng.normal(0, 0.03, size=2)
    lamp = rng.normal(1, 0.02) * (1 + fall[0] * x + fall[1] * y - 0.08 * (x**2 + y**2))
    scene = (surface.albedo * light[..., None] + gleam[..., None]) * lamp[..., None]
    for _ in range(rng.poisson(2)):  # dust
        at_x, at_y, radius = *rng.uniform(-1, 1, size=2), rng.uniform(0.01, 0.018)
        speck = np.exp(-((x - at_x) ** 2 + (y - at_y) ** 2) / radius**2)
        scene += rng.uniform(0.02, 0.06) * speck[..., None]
    half = size // OVERSAMPLE
    scene = scene.reshape(half, OVERSAMPLE, half, OVERSAMPLE, 3).mean((1, 3))
    return np.stack([_blur(scene[..., channel], 1.0) for channel in range(3)], -1)


def _expose(rng: Generator, light: Array) -> Array:
    """Turn light into 8-bit values, with the noise of the photons and of the sensor."""
    strength = rng.uniform(0.012, 0.014)
    noise = rng.normal(size=light.shape) * strength * np.sqrt(np.maximum(light, 0) + 0.05)
    return np.clip(np.rint(255 * (light + noise)), 0, 255).astype(np.uint8)


# Tools


def _grid(size: int) -> tuple[Array, Array]:
    """Give x and y of every pixel's centre, (size, size), in [-1, 1]."""
    axis = (np.arange(size) + 0.5) * 2 / size - 1
    return np.meshgrid(axis, axis)


def _placed(
    rng: Generator, size: int, *, shift: float, turn: float, scale: float
) -> tuple[Array, Array]:
    """Give the grid in the coordinates of a product that lies a little off, turned by degrees."""
    x, y = _grid(size)
    move_x, move_y = rng.uniform(-shift, shift, size=2)
    angle = np.radians(rng.uniform(-turn, turn))
    factor = 1 + rng.uniform(-scale, scale)
    x, y = (x - move_x) / factor, (y - move_y) / factor
    return np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x


def _pick(rng: Generator, where: Array, x: Array, y: Array) -> tuple[float, float]:
    """Give the coordinates of a random pixel of `where`, away from the picture's border."""
    border = len(where) // 8
    inner = np.zeros_like(where)
    inner[border:-border, border:-border] = where[border:-border, border:-border]
    chosen = rng.choice(np.flatnonzero(inner))
    return x.flat[chosen], y.flat[chosen]


def _step(value: Array, start: float, end: float) -> Array:
    """Step smoothly from 0 at `start` to 1 at `end`, which may lie below it."""
    share = np.clip((value - start) / (end - start), 0, 1)
    return share * share * (3 - 2 * share)


def _cloud(rng: Generator, size: int, cells: int) -> Array:
    """Make smooth noise of about unit variance, with `cells` bumps to a side."""
    coarse = Image.fromarray(rng.normal(size=(cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float64)


def _blur(image: Array, sigma: float) -> Array:
    """Blur by a Gaussian, mirrored at the border, in pixels of `image`."""
    reach = int(np.ceil(3 * sigma))
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    taps /= taps.sum()
    for _ in range(2):  # rows, then columns
        padded = np.pad(image, ((reach, reach), (0, 0)), mode="symmetric")
        image = sum(tap * padded[k : k + len(image)] for k, tap in enumerate(taps)).T
    return image
