"""The one form that all pictures of a run take: RGB of 8 bits, square, whatever the files are."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional

from daad.io import UserError

Mask = NDArray[np.bool_]
Fit = Literal["squeeze", "pad"]
# What the largest value of 10, 12, 14 or 16 bits can be; of 8 bits, which some store in 16.
DEPTHS = (255, 1023, 4095, 16383, 65535)
DARK = 64  # of 256: a picture of 16-bit colours whose upper bytes stay below has fewer bits


class Form(NamedTuple):
    """What a picture becomes.

    size: S, its height and width. fit: "squeeze" changes its proportions, "pad" adds black instead.
    white: the value that is white in gray pictures of 16 bits.
    """

    size: int
    fit: Fit = "squeeze"
    white: int = DEPTHS[-1]

    def square(self, image: Image.Image) -> NDArray[np.uint8]:
        """Resize RGB: uint8 (S, S, 3)."""
        shape = (self.size, self.size)
        if self.fit == "pad":
            return np.array(ImageOps.pad(image, shape, Image.Resampling.BICUBIC))
        return np.array(image.resize(shape, Image.Resampling.BICUBIC))

    def mask(self, mask: Mask) -> Mask:
        """Shrink a mask (h, w) to (S, S); a pixel is marked where any of its area is."""
        shares = Image.fromarray(mask.astype(np.float32))
        if self.fit == "pad":
            side = max(mask.shape)
            shares = ImageOps.pad(shares, (side, side), Image.Resampling.BOX)
        return np.asarray(shares.resize((self.size, self.size), Image.Resampling.BOX)) > 1e-6


def enlarge(scores: Tensor, shape: Sequence[int], fit: Fit) -> Tensor:
    """Enlarge a map (S, S), bilinearly, to the picture (h, w) that it is of."""
    height, width = shape
    square = (max(height, width),) * 2 if fit == "pad" else (height, width)
    large = functional.interpolate(scores[None, None].float(), square, mode="bilinear")[0, 0]
    top, left = (square[0] - height) // 2, (square[1] - width) // 2
    return large[top : top + height, left : left + width]


def to_rgb(image: Image.Image, white: int = DEPTHS[-1]) -> Image.Image:
    """Make 8-bit RGB: 16-bit gray by the value of `white`, transparency over white.

    ValueError where values have no known range, or lie above white.
    """
    if image.mode.startswith(("I", "F")):
        # Their own convert() clips at 255 instead of scaling.
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > DEPTHS[-1]:
            raise ValueError("32-bit values have no known range; save it with 8 or 16 bits")
        if values.max() > white:
            raise ValueError(
                f"it holds the value {values.max()}, and white is {white} by the normal pictures; "
                f"save all with the same number of bits"
            )
        scaled = (values.astype(np.float32) * (255 / white)).round()
        return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(ground, image)
    return image.convert("RGB")


def require_whole_depth(image: Image.Image) -> None:
    """Raise ValueError where a picture of 16 bits a colour holds fewer: it would be black.

    Pillow gives their upper bytes alone.
    """
    if np.asarray(image)[..., :3].max() < DARK:
        raise ValueError(
            "its colours have 16 bits and hold 14 or fewer, which come out nearly black; save it "
            "with 8 bits a colour"
        )


def is_deep(image: Image.Image) -> bool:
    """Say of an opened picture, before it is loaded, whether its colours have 16 bits."""
    tiles = getattr(image, "tile", [])  # what is to be decoded, and from what kind of pixels
    return image.mode in ("RGB", "RGBA") and any(";16" in str(tile[3]) for tile in tiles)


def find_white(paths: Iterable[Path]) -> int | None:
    """Find the value of white in gray pictures of 16 bits: the least of `DEPTHS` that holds them all.

    None where no picture has 16 bits. UserError with its path for a file that is no picture.
    """
    highest = None
    for path in paths:
        if path.suffix.lower() not in (".png", ".tif", ".tiff"):
            continue  # no other type has them
        try:
            with Image.open(path) as image:
                if image.mode.startswith("I"):
                    highest = max(highest or 0, int(np.asarray(image).max()))
        except (OSError, ValueError, SyntaxError) as error:
            raise UserError(
                f"{path}: cannot be read as a picture ({error}); replace or remove it"
            ) from error
    if highest is None:
        return None
    return next((depth for depth in DEPTHS if highest <= depth), DEPTHS[-1])
