"""The choices of one DAAD run: what the paper fixes, and what it leaves open, with our defaults."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from daad.batches import FLIPS
from daad.errors import UserError

VARIANTS = ("ae", "ae-skip", "memae", "memae-skip", "daad", "daad+")
PIXEL = "pixel"
DISTANCES = ("squared", "l2")

Division = tuple[int, int, int]


NETWORK, LOSSES = "The network (Table 7, Eq. 1 and 2)", "The losses (Eq. 3 to 6)"
SCORE, TRAINING = "The score (Eq. 7)", "Training"


def _option(default: Any, panel: str, help: str) -> Any:
    """A field, and all that the command line says of the option of its name."""
    return dataclasses.field(default=default, metadata={"panel": panel, "help": help})


@dataclass(frozen=True)
class Config:
    """One run. The defaults are the paper's values, or our reading where the paper is silent.

    `None` stands for "what the variant calls for"; see `resolve`.
    """

    variant: str = _option("daad", NETWORK, f"Which network: {', '.join(VARIANTS)}.")
    image_size: int = _option(256, NETWORK, "Pictures are resized to this height and width.")
    width: int = _option(64, NETWORK, "Channels of the first level; each level doubles them.")
    levels: int = _option(
        4,
        NETWORK,
        "How often the encoder halves the map; fewer for MemAE at 8x, 4x, 2x (Figure 2).",
    )
    division: Division | str | None = _option(
        None,
        NETWORK,
        "Blocks along height, width, channels; 8,8,1 (video 16,16,1), or pixel for MemAE.",
    )
    num_items: int = _option(500, NETWORK, "N, the items of each memory.")
    temperature: float = _option(1.0, NETWORK, "Of the softmax; smaller is sparser.")
    threshold: float | None = _option(
        None, NETWORK, "Weights below it are dropped; 1/N if not given, 0 drops none."
    )
    renormalize: bool = _option(
        False, NETWORK, "Make the weights that are left sum to 1 (MemAE does, the text does not)."
    )
    memory_init: str = _option(
        "uniform",
        NETWORK,
        "Items at first: uniform in +-1/sqrt(D), normal with that deviation, or blocks of the "
        "network's own maps.",
    )
    discriminator: bool | None = _option(
        None, LOSSES, "Train a discriminator beside the network; daad+ does."
    )
    lambda_rec: float = _option(50.0, LOSSES, "Weight of the reconstruction loss.")
    lambda_adv: float = _option(0.5, LOSSES, "Weight of the adversarial loss.")
    lambda_ali: float = _option(0.5, LOSSES, "Weight of the alignment loss.")
    distance: str | None = _option(
        None,
        LOSSES,
        "In Eq. 4 and R: squared (mean of squares), or l2 (the norm, as printed); squared without a "
        "discriminator, l2 with one, whose losses squares outweigh only with a greater lambda_rec.",
    )
    alignment_distance: str = _option(
        "l2", LOSSES, "In Eq. 6 and L: l2 (the norm, as printed), or squared (mean of squares)."
    )
    gan_loss: str = _option(
        "non-saturating", LOSSES, "The network's: non-saturating, or minimax (Eq. 5 to the letter)."
    )
    alignment_trains_discriminator: bool = _option(
        True,
        LOSSES,
        "Whether the discriminator learns from the alignment loss too: else its features tell real "
        "from rebuilt, not normal from not.",
    )
    feature: str = _option(
        "classifier", LOSSES, "f_D: classifier (the 4x4 convolution's output) or extractor."
    )
    gamma: float = _option(0.9, SCORE, "Weight of R against L.")
    scaling: str = _option(
        "test", SCORE, "Scale R and L over the test set, or over normals the checkpoint remembers."
    )
    held_out: float = _option(
        0.0, SCORE, "Share of train/good kept from training for --scaling normals and predict."
    )
    batch_norm: str = _option(
        "eval", SCORE, "BatchNorm at test: eval (running statistics) or batch."
    )
    epochs: int = _option(1000, TRAINING, "Passes over the training pictures.")
    batch_size: int = _option(8, TRAINING, "Pictures a step, on each device.")
    lr: float | None = _option(
        None, TRAINING, "Adam's learning rate; 1e-4, or 2e-4 with a discriminator and for video."
    )
    schedule: str = _option(
        "constant",
        TRAINING,
        "The learning rate's: constant (the paper), or cosine, down to 0 at the last epoch.",
    )
    flips: str = _option(
        "both", TRAINING, "Mirror pictures at random: both (ways, as the paper), horizontal, none."
    )
    statistics: str = _option(
        "recomputed",
        TRAINING,
        "BatchNorm's at the end: recomputed over the pictures, or running, as training left them.",
    )
    seed: int = _option(0, TRAINING, "Of weights, order and flips.")
    precision: str = _option("32", TRAINING, "32, or automatic mixed precision in bf16 or 16.")
    evaluate_every: int = _option(
        0, TRAINING, "Epochs between scores on the test set, for the oracle column; 0 is never."
    )
    checkpoint_every: int = _option(
        50, TRAINING, "Epochs between checkpoints; one is always written at the end."
    )

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

    def fewest_blocks(self) -> int:
        """How many blocks a picture has at the level with a memory where it has fewest; 0 without."""
        levels = [level for level in range(1, self.levels + 1) if self.has_memory(level)]
        sizes = [(self.level_shape(level), self.block_shape(level)) for level in levels]
        return min((math.prod(map_) // math.prod(block) for map_, block in sizes), default=0)

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
            distance=self.distance or ("l2" if discriminator else "squared"),
            lr=default_lr if self.lr is None else self.lr,
        )
        config._check()
        return config

    def _check(self) -> None:
        _check_choice("memory-init", self.memory_init, ("uniform", "normal", "blocks"))
        _check_choice("distance", self.distance or "", DISTANCES)
        _check_choice("alignment-distance", self.alignment_distance, DISTANCES)
        _check_choice("gan-loss", self.gan_loss, ("non-saturating", "minimax"))
        _check_choice("feature", self.feature, ("classifier", "extractor"))
        _check_choice("scaling", self.scaling, ("test", "normals"))
        _check_choice("batch-norm", self.batch_norm, ("eval", "batch"))
        _check_choice("statistics", self.statistics, ("recomputed", "running"))
        _check_choice("schedule", self.schedule, ("constant", "cosine"))
        _check_choice("flips", self.flips, tuple(FLIPS))
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
        if self.threshold is not None:
            _check_at_least("threshold", self.threshold, 0, strict=False)
        if not 0 <= self.seed < 2**63:
            raise UserError(f"--seed {self.seed}: give a whole number from 0 to 2^63 - 1")
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
    def from_dict(cls, content: Any) -> "Config":
        """Read back what `to_dict` gave (or its JSON, where tuples have become lists).

        UserError where it is no such thing.
        """
        if not isinstance(content, dict):
            raise UserError("the run's configuration is damaged; train again into a new folder")
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(content) - known)
        if unknown:
            raise UserError(f"unknown settings in the run's configuration: {', '.join(unknown)}")
        division = content.get("division")
        if isinstance(division, list):
            content = content | {"division": tuple(division)}
        return cls(**content)


def items_at_paper_ratio(config: Config) -> int:
    """N that keeps the paper's numbers per item, D/N, for a resolved `config`; at least 1.

    They are 33, 16, 8 and 4 from level 1 to 4 for divided blocks, and 1 for MemAE's pixels at its
    last level (256x256, width 64, N 500). With N near D the memory lets everything through.
    """
    variant = "memae" if config.division == PIXEL else "daad"
    paper = Config(variant=variant, levels=config.levels).resolve()
    # D halves from level to level here as it does in the paper, so any one level decides.
    size, papers = (math.prod(c.block_shape(config.levels)) for c in (config, paper))
    return max(1, round(paper.num_items * size / papers))


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
    if not math.isfinite(value) or value < low or (strict and value == low):
        option = name.replace("_", "-")
        bound = "above" if strict else "at least"
        raise UserError(f"--{option} {value:g}: must be {bound} {low:g}, and finite")
