"""Pictures: found and decoded, made equally bright, and handed out in batches that are flipped at random."""

import math
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import torch
from PIL import Image, ImageFile, ImageOps
from torch import Tensor

from daad.form import Form, is_deep, require_whole_depth, to_rgb
from daad.io import UserError
from daad.machine import available_memory, count_cores

GOOD = "good"
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
TYPES = ", ".join(suffix.lstrip(".") for suffix in SUFFIXES)
HOST_SHARE = 0.5  # of the memory that is available, for decoded pictures
DEVICE_SHARE = 0.25  # of a GPU's free memory: the network's activations are still to come
# What each choice of `Config.flips` lets happen: left to right, upside down.
FLIPS = {"both": (True, True), "horizontal": (True, False), "none": (False, False)}
# Of a brightness: finer than a step of 8 bits, and coarse enough for pictures of even light to tie.
DECIMALS = 4
BATCH = 64  # pictures, of which nothing but the mean is kept

Read = TypeVar("Read")


@dataclass(frozen=True)
class Sample:
    """One picture; `defect` is the name of its folder, "good" for a normal one.

    mask: a file, or a folder of masks that belong together.
    folder: where its name begins; None for the third folder above it.
    """

    path: Path
    defect: str
    mask: Path | None
    folder: Path | None = field(default=None, kw_only=True)

    @property
    def label(self) -> int:
        """0 for good, 1 for anomalous."""
        return int(self.defect != GOOD)

    @property
    def name(self) -> str:
        """The path inside its folder, for a category such as `test/good/000.png`."""
        if self.folder is not None:
            return self.path.relative_to(self.folder).as_posix()
        return "/".join(self.path.parts[-3:])


class Pictures(Protocol):
    """Pictures to train on or to score: how many, and any of them as a batch.

    batch: takes indices (int64, on the CPU); gives `(B, 3, S, S)` float32 in [-1, 1] on `device`.
    """

    def __len__(self) -> int: ...
    def batch(self, indices: Tensor, device: torch.device | str) -> Tensor: ...


class Normals(NamedTuple):
    """Normal pictures: to learn from, and to make the scale of later scores by, if there is one.

    source: where `measured` come from, "held-out" or "train".
    """

    learned: Pictures
    measured: Pictures | None = None
    source: str = ""


class StoredPictures:
    """Decoded pictures, uint8 `(n, 3, S, S)`, as batches of floats.

    They move to a GPU with the first batch that is asked for there, if there is room.
    """

    def __init__(self, pixels: Tensor) -> None:
        self._pixels = pixels
        self._device_tried = False

    def __len__(self) -> int:
        return len(self._pixels)

    def batch(self, indices: Tensor, device: torch.device | str) -> Tensor:
        device = torch.device(device)
        if device.type == "cuda" and not self._device_tried:
            self._device_tried = True
            free, _ = torch.cuda.mem_get_info(device)
            if self._pixels.nbytes <= DEVICE_SHARE * free:
                self._pixels = self._pixels.to(device)
        return to_floats(self._pixels[_moved(indices, self._pixels.device)], device)


class PictureFiles:
    """Pictures in one `form`, decoded by one thread a core; UserError for broken ones.

    Where they fit in `memory_limit` bytes (None: half of what is available) they are decoded once
    and kept as uint8; otherwise each batch is decoded when it is asked for.
    """

    def __init__(
        self, paths: Sequence[Path], form: Form, *, memory_limit: int | None = None
    ) -> None:
        self._paths, self._form = list(paths), form
        self._workers = ThreadPoolExecutor(count_cores())
        limit = int(HOST_SHARE * available_memory()) if memory_limit is None else memory_limit
        fits = len(self._paths) * 3 * form.size**2 <= limit
        self._store = StoredPictures(self._decode(self._paths)) if fits else None

    def __len__(self) -> int:
        return len(self._paths)

    def batch(self, indices: Tensor, device: torch.device | str) -> Tensor:
        if self._store is not None:
            return self._store.batch(indices, device)
        pixels = self._decode([self._paths[index] for index in indices.tolist()])
        return to_floats(pixels, torch.device(device))

    def _decode(self, paths: Sequence[Path]) -> Tensor:
        """Make (n, 3, S, S) uint8; each worker fills its own rows, so that nothing is held twice."""
        size = self._form.size
        store = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)
        rows = store.numpy()

        def fill(row: int) -> None:
            rows[row] = self._form.square(read_rgb(paths[row], self._form)).transpose(2, 0, 1)

        for _ in self._workers.map(fill, range(len(paths))):
            pass  # map gives back a worker's exception only when its turn is asked for
        return store


@dataclass
class EvenLight:
    """`pictures`, each multiplied, black being 0, so that its brightness is `target`.

    What comes out brighter than white stays so, or the mean would not be met. A picture that is
    all black stays black.
    """

    pictures: Pictures
    target: float

    def __len__(self) -> int:
        return len(self.pictures)

    def batch(self, indices: Tensor, device: torch.device | str) -> Tensor:
        return even_light(self.pictures.batch(indices, device), self.target)


def even_light(x: Tensor, target: float) -> Tensor:
    """Give each picture of (B, 3, S, S) in [-1, 1] the brightness `target`, as `EvenLight` says."""
    light = (x + 1) / 2
    own = light.mean(dim=(1, 2, 3), keepdim=True)
    factor = torch.where(own > 0, round(target, DECIMALS) / own, 1.0)
    return light * factor * 2 - 1


def brightness(x: Tensor) -> Tensor:
    """Average each picture of (B, 3, S, S) in [-1, 1]: (B,) float64, 0 for black and 1 for white."""
    return ((x.mean(dim=(1, 2, 3)).cpu().double() + 1) / 2).round(decimals=DECIMALS)


def mean_brightness(pictures: Pictures) -> float:
    """Average the brightness of all `pictures`, one at least."""
    batches = torch.arange(len(pictures)).split(BATCH)
    return torch.cat([brightness(pictures.batch(batch, "cpu")) for batch in batches]).mean().item()


# Batches


def to_floats(pixels: Tensor, device: torch.device) -> Tensor:
    """Make uint8 pixels of any shape float32 in [-1, 1] on `device`, a tensor of the caller's own."""
    if device.type == "cuda" and pixels.device.type == "cpu":
        pixels = pixels.pin_memory()
    # Bytes travel, floats are made on the device: a quarter of the traffic.
    return _moved(pixels, device).to(torch.float32).div_(127.5).sub_(1)


def _moved(values: Tensor, device: torch.device) -> Tensor:
    """Copy to `device`, waiting where it must be: a GPU works in order, the CPU would read too early."""
    return values.to(device, non_blocking=device.type == "cuda")


def to_bytes(x: Tensor) -> Tensor:
    """Make pixels of any shape in [-1, 1] uint8, those beyond black or white; undo `to_floats`."""
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def epoch_order(
    count: int, random: torch.Generator, rank: int = 0, world_size: int = 1
) -> tuple[Tensor, Tensor]:
    """Draw this process's share of an epoch: indices `(n,)`, and whether to flip each `(n, 2)`.

    Every process draws the same and takes every `world_size`-th. Shares are of one length, as a step
    needs all processes; so some pictures may be seen twice.
    """
    order = torch.randperm(count, generator=random)
    padded = math.ceil(count / world_size) * world_size
    order = order[torch.arange(padded) % count]
    flips = torch.rand(padded, 2, generator=random) < 0.5
    return order[rank::world_size], flips[rank::world_size]


def split_batches(order: Tensor, batch_size: int, smallest: int) -> list[Tensor]:
    """Split indices `(n,)` into batches, the last one shorter where it must be.

    BatchNorm in training cannot take a single number a channel, so a batch of one picture is
    left out where the network's smallest map is `smallest` = 1 pixel wide.
    """
    return [batch for batch in order.split(batch_size) if len(batch) > 1 or smallest > 1]


def flip(x: Tensor, flips: Tensor) -> Tensor:
    """Mirror pictures `(B, 3, H, W)` left to right where `flips[:, 0]`, upside down by `[:, 1]`."""
    across, down = flips[:, :, None, None, None].unbind(1)
    x = torch.where(across, x.flip(-1), x)
    return torch.where(down, x.flip(-2), x)


# Finding and decoding files


def list_pictures(folder: Path) -> list[Path]:
    """List the pictures directly in `folder`, in natural order; none where there is no folder."""
    inside = folder.iterdir() if folder.is_dir() else ()
    return sorted(filter(is_picture, inside), key=lambda path: natural_order(path.name))


def pictures_below(folder: Path) -> list[Path]:
    """Find every picture in `folder` and below it, in natural order; UserError where there is none."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give one that holds pictures")
    paths = filter(is_picture, folder.rglob("*"))
    found = sorted(paths, key=lambda path: [natural_order(part) for part in path.parts])
    if not found:
        raise UserError(f"{folder}: no pictures in it or below; expected files of type {TYPES}")
    return found


def is_picture(path: Path) -> bool:
    """Tell whether a file is a picture by its name; hidden ones are not."""
    visible = path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    return visible and path.is_file()


def kind_of(name: str) -> str:
    """Name the kind of a file by its suffix."""
    return Path(name).suffix.lower() or "without a suffix"


def list_folders(folder: Path) -> list[str]:
    """Name the folders directly in `folder`, in no order; none where there is no folder."""
    inside = folder.iterdir() if folder.is_dir() else ()
    return [path.name for path in inside if path.is_dir() and not path.name.startswith(".")]


def natural_order(name: str) -> tuple[list[str | int], str]:
    """Give a sort key that puts 9 before 10; the name itself decides between 1 and 01."""
    parts = re.split(r"([0-9]+)", name)  # text and digits in turn, so that like meets like
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name


def read_picture(
    path: Path, convert: Callable[[Image.Image], Read], *, whole_depth: bool = False
) -> Read:
    """Open a picture, turn it upright and `convert` it; UserError with its path if it is broken.

    whole_depth: refuse colours of 16 bits of which the lower ones, which are lost, hold the picture.
    """
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # others may have set it; half a picture is an anomaly
    try:
        with Image.open(path) as image:
            deep = whole_depth and is_deep(image)
            image.load()
            if deep:
                require_whole_depth(image)
            return convert(ImageOps.exif_transpose(image))
    except MemoryError:
        raise
    except Exception as error:  # PIL's decoders raise whatever a broken file makes them
        text = f"{path}: cannot be read as a picture ({error}); replace or remove it"
        raise UserError(text) from error


def read_rgb(path: Path, form: Form) -> Image.Image:
    """Open a picture at its own size, as 8-bit RGB; UserError with its path if it cannot be."""
    return read_picture(path, lambda image: to_rgb(image, form.white), whole_depth=True)
