"""What is trained for the paper's results: the scales, and the settings of a table's rows at them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from daad.config import KINDS, Config, items_at_paper_ratio, known
from daad.io import UserError

Choices = Mapping[str, Any]  # fields of `Config`
# The paper trains on all normal pictures, and scales scores over the test set.
PAPERS: Choices = {"held_out": 0.0, "scaling": "test"}


@dataclass(frozen=True)
class Scale:
    """What is set otherwise than in the paper, by kind of data; it has no other kinds.

    words: what the page says of it, for data whose pictures it makes smaller. Empty at the paper's.
    """

    name: str
    choices: Mapping[str, Choices]
    words: str = ""


@dataclass(frozen=True)
class Setting:
    """What is trained, in a folder named `run`: fields of `Config` beside those of the scale.

    items: N, in multiples of the scale's.
    """

    run: str
    choices: Choices
    items: float = 1

    def config(self, kind: str, scale: Scale, seed: int) -> Config:
        """Give the resolved configuration for a kind of data at a scale.

        N is the scale's if it names one. Else N keeps the paper's D/N at the scale's own division,
        and stays so for a row that divides otherwise. UserError where the division does not fit the
        scale, or the scale has no such data.
        """
        if kind not in scale.choices:
            raise UserError(f"scale {scale.name} is for {', '.join(scale.choices)} alone")
        chosen = {**KINDS[kind], **PAPERS, **scale.choices[kind]}
        if self.choices["variant"] not in ("daad", "daad+"):
            chosen.pop("num_items", None)
        if self.choices["variant"].startswith("memae"):
            chosen.pop("division", None)  # by pixels
        if self.choices["variant"].startswith("ae"):
            chosen.pop("memory_init", None)
        plain = Config(**chosen, variant=self.choices["variant"]).resolve(kind)
        items = chosen.get("num_items") or items_at_paper_ratio(plain)
        chosen["num_items"] = max(1, round(items * self.items))
        return Config(**{**chosen, **self.choices, "seed": seed}).resolve(kind)


def memory_parameters(config: Config) -> int:
    """Count the numbers in the memories of a resolved `config`: N x D, summed over the levels."""
    sizes = [math.prod(config.block_shape(level)) for level in config.memory_levels]
    return known(config.num_items) * sum(sizes)


def training_bytes(config: Config) -> int:
    """Count the bytes of the memories in training, in float32: values, gradients, Adam's two moments."""
    return 4 * 4 * memory_parameters(config)


# A tenth of the paper's steps at ten times its learning rate, which must then come to rest.
_SMALL: Choices = {"width": 16, "lr": 1e-3, "schedule": "cosine"}
_DIGITS: Choices = {"epochs": 5, "batch_size": 16, "temperature": 0.1, **_SMALL}
# N and the first items were chosen on bottle: docs/reproduction.md, Table 3.
_PHOTOGRAPHS: Choices = {
    **{"image_size": 128, "epochs": 40, "batch_size": 4, **_SMALL},
    **{"num_items": 125, "memory_init": "blocks"},
}
# D/N is 2 at the first level, as in the paper with 16,16,1 and N 2000.
_VIDEO: Choices = {
    **{"image_size": 128, "division": (8, 8, 1), "epochs": 5, **_SMALL},
    **{"num_items": 500, "memory_init": "blocks"},
}
# `small` takes one core 5 to 12 minutes a run. `small-256`, at half its width, has the paper's size of
# pictures: every division of Table 4 fits, where 16,16,1 wants a last map of 16x16. `small-120`, 15 to
# 20 minutes a run, is for textures such as grid, of which 40 epochs teach little.
SCALES = {
    scale.name: scale
    for scale in (
        Scale(
            "paper",
            {kind: {} for kind in KINDS},
        ),
        Scale(
            "small",
            {"photographs": _PHOTOGRAPHS, "mnist": _DIGITS, "cifar10": _DIGITS, "video": _VIDEO},
            "fewer channels, smaller pictures, fewer epochs",
        ),
        Scale(
            "small-256",
            {"photographs": {**_PHOTOGRAPHS, "image_size": 256, "width": 8}},
            "pictures of its size, but an eighth of the channels, fewer epochs",
        ),
        Scale(
            "small-120",
            {"photographs": {**_PHOTOGRAPHS, "epochs": 120}},
            "fewer channels, smaller pictures, an eighth of the epochs",
        ),
    )
}
