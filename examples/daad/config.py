"""The choices of one DAAD run: what the paper fixes, and what it leaves open, with our defaults."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daad.errors import UserError

VARIANTS = ("ae", "ae-skip", "memae", "memae-skip", "daad", "daad+")
PIXEL = "pixel"

Division = tuple[int, int, int]


@dataclass(frozen=True)
class Config:
    """One run. The defaults are the paper's values, or our reading where the paper is silent.

    `None` stands for "what the variant calls for"; see `resolve`.
    """

    variant: str = "daad"
    # The network (Table 7) and its memories (Eq. 1 and 2)
    image_size: int = 256
    width: int = 64  # channels of the first level; Table 7 doubles them at each level
    levels: int = 4  # down-sampling by 2**levels; fewer for MemAE at 8x, 4x and 2x (Figure 2)
    division: Division | str | None = None  # r_h, r_w, r_c, or "pixel"
    num_items: int = 500
    temperature: float = 1.0
    threshold: float | None = None  # None is 1/N
    renormalize: bool = False
    memory_init: str = "uniform"  # or "normal"; either of scale 1/sqrt(D)
    # The losses (Eq. 3 to 6)
    discriminator: bool | None = None
    lambda_rec: float = 50.0
    lambda_adv: float = 0.5
    lambda_ali: float = 0.5
    distance: str = "squared"  # mean of squares, or "l2" for the norm, in Eq. 4, 6 and the scores
    gan_loss: str = "non-saturating"  # or "minimax", Eq. 5 to the letter
    alignment_trains_discriminator: bool = False
    feature: str = "classifier"  # f_D is the 4x4 conv's 100-vector; or "extractor", what feeds it
    # The score (Eq. 7)
    gamma: float = 0.9
    scaling: str = "test"  # R and L to [0, 1] over the test set; or "normals", by the checkpoint's
    held_out: float = 0.0  # share of train/good kept from training, to scale the scores by
    batch_norm: str = "eval"  # BatchNorm at test: running statistics, or "batch"
    # Training
    epochs: int = 1000
    batch_size: int = 8
    lr: float | None = None
    seed: int = 0
    precision: str = "32"  # or "bf16", "16": automatic mixed precision
    evaluate_every: int = 0  # epochs between test scores, for the oracle column; 0 is never
    checkpoint_every: int = 50  # epochs between checkpoints; one is always written at the end

    @property
    def skip(self) -> bool:
        """Whether the decoder sees the encoder's levels by concatenation."""
        return self.variant not in ("ae", "memae")

    def has_memory(self, level: int) -> bool:
        """Whether `level` (1 is the largest map) goes through a memory."""
        if self.variant == "memae":
            return level == self.levels
        return self.variant in ("memae-skip", "daad", "daad+")

    def level_shape(self, level: int) -> tuple[int, int, int]:
        """Channels, height and width of the map that `level` hands on (after its max-pool)."""
        size = self.image_size // 2**level
        return self.width * 2 ** (level - 1), size, size

    def block_shape(self, level: int) -> tuple[int, int, int]:
        """Shape of a memory block at `level`; UserError where the division does not fit."""
        shape = self.level_shape(level)
        if self.division == PIXEL:
            return shape[0], 1, 1
        r_h, r_w, r_c = self.division  # type: ignore[misc]
        if shape[0] % r_c or shape[1] % r_h or shape[2] % r_w:
            raise UserError(
                f"division {r_h},{r_w},{r_c} does not fit level {level}: its map has "
                f"{shape[0]} channels of {shape[1]}x{shape[2]} (image size {self.image_size}, "
                f"width {self.width}); r_h and r_w must divide {shape[1]}, r_c {shape[0]}: "
                f"change --division, or use an image size that is a multiple of "
                f"{2**self.levels * max(r_h, r_w)}"
            )
        return shape[0] // r_c, shape[1] // r_h, shape[2] // r_w

    def resolve(self) -> "Config":
        """The same choices with every `None` decided by the variant, checked; UserError if bad."""
        _check_choice("variant", self.variant, VARIANTS)
        pixel = self.variant.startswith("memae")
        plus = self.variant == "daad+"
        discriminator = plus if self.discriminator is None else self.discriminator
        default_lr = 2e-4 if discriminator else 1e-4
        config = dataclasses.replace(
            self,
            division=self.division or (PIXEL if pixel else (8, 8, 1)),
            discriminator=discriminator,
            lr=self.lr or default_lr,
        )
        config._check()
        return config

    def _check(self) -> None:
        _check_choice("memory-init", self.memory_init, ("uniform", "normal"))
        _check_choice("distance", self.distance, ("squared", "l2"))
        _check_choice("gan-loss", self.gan_loss, ("non-saturating", "minimax"))
        _check_choice("feature", self.feature, ("classifier", "extractor"))
        _check_choice("scaling", self.scaling, ("test", "normals"))
        _check_choice("batch-norm", self.batch_norm, ("eval", "batch"))
        _check_choice("precision", self.precision, ("32", "bf16", "16"))
        for name in (
            "image_size",
            "width",
            "num_items",
            "epochs",
            "batch_size",
            "lr",
            "temperature",
        ):
            _check_at_least(name, getattr(self, name), 0, strict=True)
        for name in (
            "evaluate_every",
            "checkpoint_every",
            "lambda_rec",
            "lambda_adv",
            "lambda_ali",
        ):
            _check_at_least(name, getattr(self, name), 0, strict=False)
        if not 0 <= self.held_out < 1:
            raise UserError(f"--held-out {self.held_out:g}: a share of at least 0 and below 1")
        if not 0 <= self.gamma <= 1:
            raise UserError(f"--gamma {self.gamma:g}: the weight of R in Eq. 7 lies in 0 to 1")
        if not 1 <= self.levels <= 4:
            raise UserError(f"--levels {self.levels}: Table 7 has 4 levels; give 1, 2, 3 or 4")
        if self.image_size % 2**self.levels:
            raise UserError(
                f"--image-size {self.image_size}: {self.levels} levels halve the picture "
                f"{self.levels} times, so its size must be a multiple of {2**self.levels}"
            )
        if self.discriminator and self.image_size < 32:
            raise UserError(
                f"--image-size {self.image_size}: the discriminator needs pictures of at least 32"
            )
        for level in range(1, self.levels + 1):
            if self.has_memory(level):
                self.block_shape(level)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Config":
        """Read back what `to_dict` gave (or its JSON, where tuples have become lists)."""
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(content) - known)
        if unknown:
            raise UserError(f"unknown settings in the run's configuration: {', '.join(unknown)}")
        division = content.get("division")
        if isinstance(division, list):
            content = content | {"division": tuple(division)}
        return cls(**content)

    @classmethod
    def load(cls, path: Path) -> "Config":
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8"))["config"])
        except (OSError, KeyError, ValueError) as error:
            raise UserError(f"{path}: not the configuration of a run ({error})") from error


def parse_division(text: str) -> Division | str:
    """`"8,8,1"` to `(8, 8, 1)`; `"pixel"` stays. UserError for anything else."""
    if text == PIXEL:
        return PIXEL
    try:
        r_h, r_w, r_c = (int(part) for part in text.split(","))
    except ValueError:
        r_h = r_w = r_c = 0
    if min(r_h, r_w, r_c) < 1:
        raise UserError(f"--division {text}: give r_h,r_w,r_c (such as 8,8,1) or {PIXEL}")
    return r_h, r_w, r_c


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"--{name} {value}: choose one of {', '.join(choices)}")


def _check_at_least(name: str, value: Any, low: float, *, strict: bool) -> None:
    if value < low or (strict and value == low):
        option = name.replace("_", "-")
        raise UserError(
            f"--{option} {value:g}: must be {'above' if strict else 'at least'} {low:g}"
        )
