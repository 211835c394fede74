"""The choices of one DAAD run: what the paper fixes, and what it leaves open, with our defaults."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from daad.form import DEPTHS, Fit, Form
from daad.io import UserError

Division = tuple[int, int, int]
Known = TypeVar("Known")
PIXEL: Literal["pixel"] = "pixel"

Variant = Literal["ae", "ae-skip", "memae", "memae-skip", "daad", "daad+"]
VARIANTS: tuple[str, ...] = get_args(Variant)
Distance = Literal["squared", "l2"]

# What is set otherwise than for photographs, by the kind of data.
_CLASSES: dict[str, Any] = {
    # Pictures of 28 and 32 pixels. A block of the paper shows 32x32 of its 256x256 pixels: all of one.
    # None: by the paper's D/N, see `items_at_paper_ratio`.
    **{"image_size": 32, "division": (1, 1, 1), "num_items": None},
    # As many steps of 5000 to 6000 pictures as the paper's 1000 epochs of bottle's 209, about.
    **{"epochs": 40},
}
KINDS: dict[str, dict[str, Any]] = {
    # A verdict goes by normal pictures that were not trained on.
    "photographs": {"held_out": 0.2, "scaling": "normals"},
    # Turned upside down and mirrored, a 6 is a 9: digits are anomalies of each other when flipped.
    "mnist": {**_CLASSES, "flips": "none"},
    "cifar10": _CLASSES,
    # The paper's appendix, "Experiments on Video Datasets". It does not name the flips of Section 4.1,
    # and the setting that it follows (MNAD) has none. The last entry is ours: an epoch is long.
    "video": {
        **{"division": (16, 16, 1), "num_items": 2000, "epochs": 60, "batch_size": 4},
        **{"lr": 2e-4, "flips": "none"},
    },
}
RETIRED = ("checkpoint_every",)  # settings of earlier versions, on which no result depends
# What a number must be, in code and in words.
_BOUNDS: dict[str, tuple[Callable[[float], bool], str]] = {
    **dict.fromkeys(
        ("image_size", "width", "num_items", "epochs", "batch_size", "lr", "temperature"),
        (lambda value: value > 0, "must be above 0, and finite"),
    ),
    **dict.fromkeys(
        (
            *("lambda_rec", "lambda_adv", "lambda_ali", "threshold"),
            *("patience", "evaluate_every"),
        ),
        (lambda value: value >= 0, "must be at least 0, and finite"),
    ),
    "levels": (lambda value: 1 <= value <= 4, "Table 7 has 4 levels; give 1, 2, 3 or 4"),
    "gamma": (lambda value: 0 <= value <= 1, "the weight of R in Eq. 7 lies in 0 to 1"),
    "false_alarms": (lambda value: 0 < value < 1, "a share above 0 and below 1"),
    "held_out": (lambda value: 0 <= value < 1, "a share of at least 0 and below 1"),
    "white": (lambda value: 0 < value <= DEPTHS[-1], "a value of 16 bits: 1 to 65535"),
    "seed": (lambda value: 0 <= value < 2**63, "give a whole number from 0 to 2^63 - 1"),
}


@dataclass(frozen=True)
class Config:
    """The choices of a run. Defaults are the paper's values, or our reading where it is silent.

    None stands for what the variant and the kind of data call for; see `resolve`.
    """

    # The network (Table 7, Eq. 1 and 2)
    variant: Variant = "daad"
    """Which network."""
    image_size: int = 256
    """Pictures get this height and width."""
    fit: Fit = "squeeze"
    """How pictures become square: squeeze changes their proportions, pad adds black instead."""
    white: int | None = None
    """The value of white in 16-bit gray pictures; if not given, of 10, 12, 14 or 16 bits by the largest."""
    width: int = 64
    """Channels of the first level; each level doubles them."""
    levels: int = 4
    """How often the encoder halves the map; fewer for MemAE at 8x, 4x, 2x (Figure 2)."""
    division: Division | Literal["pixel"] | None = None
    """Blocks along height, width, channels; 8,8,1 (video 16,16,1, classes 1,1,1), or pixel for MemAE."""
    num_items: int | None = None
    """N, the items of each memory; 500 (video 2000, classes by the paper's D/N)."""
    temperature: float = 1.0
    """Of the softmax; smaller is sparser."""
    threshold: float | None = None
    """Weights below it are dropped; 1/N if not given, 0 drops none."""
    renormalize: bool = False
    """Make the weights that are left sum to 1 (MemAE does, the text does not)."""
    memory_init: Literal["uniform", "normal", "blocks"] = "uniform"
    """Items at first: uniform in ±1/√D, normal with that deviation, or blocks of the network's own maps."""
    # The losses (Eq. 3 to 6)
    discriminator: bool | None = None
    """Train a discriminator beside the network; daad+ does."""
    lambda_rec: float = 50.0
    """Weight of the reconstruction loss."""
    lambda_adv: float = 0.5
    """Weight of the adversarial loss."""
    lambda_ali: float = 0.5
    """Weight of the alignment loss."""
    distance: Distance | None = None
    """In Eq. 4 and R: squared (mean of squares), or l2 (the norm, as printed); squared without a
    discriminator, l2 with one, whose losses squares outweigh only with a greater lambda_rec."""
    alignment_distance: Distance = "l2"
    """In Eq. 6 and L: l2 (the norm, as printed), or squared (mean of squares)."""
    gan_loss: Literal["non-saturating", "minimax"] = "non-saturating"
    """The network's: non-saturating, or minimax (Eq. 5 to the letter)."""
    alignment_trains_discriminator: bool = True
    """Whether the discriminator learns from the alignment loss too. If it does not, its features
    tell real from rebuilt, not normal from anomalous."""
    feature: Literal["classifier", "extractor"] = "classifier"
    """f_D: classifier (the 4x4 convolution's output) or extractor."""
    # The score (Eq. 7)
    gamma: float = 0.9
    """Weight of R against L."""
    scaling: Literal["test", "normals"] = "test"
    """Scale R and L over the test set, or over normals the checkpoint remembers."""
    held_out: float = 0.0
    """Share of normal pictures kept from training, for verdicts to go by."""
    false_alarms: float = 0.01
    """Share of normal pictures that may be called anomalous."""
    batch_norm: Literal["eval", "batch"] = "eval"
    """BatchNorm at test: eval (running statistics) or batch."""
    # Training
    epochs: int = 1000
    """Passes over the training pictures."""
    batch_size: int = 8
    """Pictures a step, on each device."""
    lr: float | None = None
    """Adam's learning rate; 1e-4, or 2e-4 with a discriminator and for video."""
    schedule: Literal["constant", "cosine"] = "constant"
    """The learning rate's: constant (the paper), or cosine, down to 0 at the last epoch."""
    flips: Literal["both", "horizontal", "none"] | None = None
    """Mirror pictures at random: both ways as the paper (mnist and video none)."""
    statistics: Literal["recomputed", "running"] = "recomputed"
    """BatchNorm's at the end: recomputed over the pictures, or running, as training left them."""
    seed: int = 0
    """Of weights, order and flips."""
    precision: Literal["32", "bf16", "16"] = "32"
    """32, or automatic mixed precision in bf16 or 16."""
    patience: int = 0
    """Epochs without a lower loss on held-out pictures, after which training stops; 0 is never."""
    evaluate_every: int = 0
    """Epochs between scores on the test set, for the oracle column; 0 is never."""

    @classmethod
    def of(cls, kind: str) -> "Config":
        """Give the defaults for a kind of data, a key of `KINDS`; `resolve` decides what is None."""
        open_ = {field.name for field in dataclasses.fields(cls) if field.default is None}
        return cls(**{name: value for name, value in KINDS[kind].items() if name not in open_})

    @property
    def form(self) -> Form:
        """What pictures become."""
        return Form(self.image_size, self.fit, self.white or DEPTHS[-1])

    @property
    def skip(self) -> bool:
        """Whether the decoder sees the encoder's levels by concatenation."""
        return self.variant not in ("ae", "memae")

    @property
    def smallest(self) -> int:
        """Height and width of the network's smallest map."""
        size: int = self.image_size // 2**self.levels
        return size

    def has_memory(self, level: int) -> bool:
        """Say whether `level` (1 is the largest map) goes through a memory."""
        if self.variant == "memae":
            return level == self.levels
        return self.variant in ("memae-skip", "daad", "daad+")

    @property
    def memory_levels(self) -> list[int]:
        """The levels that go through a memory."""
        return [level for level in range(1, self.levels + 1) if self.has_memory(level)]

    def level_shape(self, level: int) -> tuple[int, int, int]:
        """Give channels, height and width of the map that `level` hands on, after its max-pool."""
        size = self.image_size // 2**level
        return self.width * 2 ** (level - 1), size, size

    def block_shape(self, level: int) -> tuple[int, int, int]:
        """Give the shape of a memory block at `level`; UserError where the division does not fit."""
        shape = self.level_shape(level)
        if not isinstance(self.division, tuple):
            return shape[0], 1, 1
        r_h, r_w, r_c = self.division
        if shape[0] % r_c or shape[1] % r_h or shape[2] % r_w:
            raise UserError(
                f"division {r_h},{r_w},{r_c} does not fit level {level}: its map has "
                f"{shape[0]} channels of {shape[1]}x{shape[2]} (image size {self.image_size}, "
                f"width {self.width}); r_h and r_w must divide {shape[1]}, r_c {shape[0]}: "
                f"change --division, or use an image size that is a multiple of "
                f"{2**self.levels * math.lcm(r_h, r_w)}"
            )
        return shape[0] // r_c, shape[1] // r_h, shape[2] // r_w

    def fewest_blocks(self) -> int:
        """Count a picture's blocks at the level with a memory where they are fewest; 0 without one."""
        sizes = [(self.level_shape(level), self.block_shape(level)) for level in self.memory_levels]
        return min((math.prod(map_) // math.prod(block) for map_, block in sizes), default=0)

    def resolve(self, kind: str = "photographs") -> "Config":
        """Decide every `None` by the variant and the kind of data; UserError for a bad choice.

        kind: a key of `KINDS`. What is resolved already stays as it is.
        """
        own = KINDS[kind]
        pixels = self.variant.startswith("memae")
        plus = self.variant == "daad+"
        discriminator = plus if self.discriminator is None else self.discriminator
        config = dataclasses.replace(
            self,
            division=self.division or (PIXEL if pixels else own.get("division", (8, 8, 1))),
            discriminator=discriminator,
            distance=self.distance or ("l2" if discriminator else "squared"),
            lr=own.get("lr", 2e-4 if discriminator else 1e-4) if self.lr is None else self.lr,
            flips=self.flips or own.get("flips", "both"),
            num_items=own.get("num_items", 500) if self.num_items is None else self.num_items,
        )
        config._check()
        if config.num_items is None:
            return dataclasses.replace(config, num_items=items_at_paper_ratio(config))
        return config

    def _check(self) -> None:
        for name, choices in _WORDS.items():
            value = getattr(self, name)
            if isinstance(value, str) and value not in choices:
                option = name.replace("_", "-")
                raise UserError(f"--{option} {value}: choose one of {', '.join(choices)}")
        for name, (fits, words) in _BOUNDS.items():
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and fits(value)):
                text = f"{value:g}" if isinstance(value, float) else value
                raise UserError(f"--{name.replace('_', '-')} {text}: {words}")
        if self.patience and not self.held_out:
            raise UserError("--patience: goes by held-out pictures; give a --held-out above 0")
        if self.image_size % 2**self.levels:
            raise UserError(
                f"--image-size {self.image_size}: {self.levels} levels halve the picture "
                f"{self.levels} times, so its size must be a multiple of {2**self.levels}"
            )
        if self.discriminator and self.image_size < 32:
            raise UserError(
                f"--image-size {self.image_size}: the discriminator needs pictures of at least 32"
            )
        for level in self.memory_levels:
            self.block_shape(level)

    def to_dict(self) -> dict[str, Any]:
        """Give all fields by name."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, content: Any) -> "Config":
        """Read back what `to_dict` gave, or its JSON; UserError where it is no such thing.

        So nothing is computed, and no memory taken, by settings that no run can have.
        """
        if not isinstance(content, dict):
            raise _damaged("it is no table of settings")
        # Of runs from before flips could be chosen
        content = {"flips": "both"} | content
        content = {name: value for name, value in content.items() if name not in RETIRED}
        hints = get_type_hints(cls)
        unknown = sorted(set(content) - set(hints))
        if unknown:
            raise UserError(f"unknown settings in the run's configuration: {', '.join(unknown)}")
        if isinstance(content.get("division"), list):
            content["division"] = tuple(content["division"])
        for name, value in content.items():
            if not _is_of(value, hints[name]):
                raise _damaged(f"{name} is {value!r:.40}")
        try:
            config = cls(**content)
            config._check()
        except UserError as error:
            raise _damaged(str(error)) from error
        return config


def _damaged(reason: str) -> UserError:
    return UserError(
        f"the run's configuration is damaged ({reason}); restore it from a copy, or train again into "
        f"a new folder"
    )


def _is_of(value: Any, hint: Any) -> bool:
    """Say whether a stored value is of a field's type; a whole number is a float too, a bool is not."""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        return isinstance(value, tuple) and [type(one) for one in value] == list(kinds)
    if get_args(hint):
        return any(_is_of(value, one) for one in get_args(hint))
    return type(value) is hint or (hint is float and type(value) is int)


# The words that each field may be.
_WORDS = {
    name: [
        word
        for one in (hint, *get_args(hint))
        if get_origin(one) is Literal
        for word in get_args(one)
    ]
    for name, hint in get_type_hints(Config).items()
}


def known(setting: Known | None) -> Known:
    """Give a setting that `resolve` has decided."""
    assert setting is not None, "the configuration is not resolved"
    return setting


def items_at_paper_ratio(config: Config) -> int:
    """Compute the N that keeps the paper's numbers per item, D/N, for a resolved `config`; at least 1.

    They are 33, 16, 8 and 4 from level 1 to 4 for divided blocks, and 1 for MemAE's pixels at its last
    level. With N near D the memory lets everything through.
    """
    variant: Variant = "memae" if config.division == PIXEL else "daad"
    paper = Config(variant=variant, levels=config.levels, num_items=500).resolve()
    # D halves from level to level here as it does in the paper, so any one level decides.
    size, papers = (math.prod(c.block_shape(config.levels)) for c in (config, paper))
    return max(1, round(500 * size / papers))
