import dataclasses
import json
import math

import pytest

from daad.config import VARIANTS, Config, items_at_paper_ratio, parse_division
from daad.io import UserError


def test_the_defaults_are_the_papers():
    daad, plus = Config().resolve(), Config(variant="daad+").resolve()
    assert (daad.image_size, daad.width, daad.num_items, daad.division) == (256, 64, 500, (8, 8, 1))
    assert (daad.batch_size, daad.epochs, daad.gamma, daad.temperature) == (8, 1000, 0.9, 1.0)
    assert (plus.lambda_rec, plus.lambda_adv, plus.lambda_ali) == (50.0, 0.5, 0.5)
    assert (daad.lr, plus.lr) == (1e-4, 2e-4)
    assert (daad.distance, plus.distance, plus.alignment_distance) == ("squared", "l2", "l2")
    assert (daad.discriminator, plus.discriminator) == (False, True)


@pytest.mark.parametrize(
    ("choices", "distance"),
    [
        ({"variant": "daad"}, "squared"),
        ({"variant": "ae", "discriminator": True}, "l2"),
        ({"variant": "daad+", "discriminator": False}, "squared"),
        ({"variant": "daad+", "distance": "squared"}, "squared"),
        ({"variant": "daad", "distance": "l2"}, "l2"),
    ],
)
def test_a_norm_stands_beside_a_discriminators_losses(choices, distance):
    assert Config(**choices).resolve().distance == distance


@pytest.mark.parametrize(
    ("variant", "skip", "memories"),
    [
        ("ae", False, []),
        ("ae-skip", True, []),
        ("memae", False, [4]),
        ("memae-skip", True, [1, 2, 3, 4]),
        ("daad", True, [1, 2, 3, 4]),
        ("daad+", True, [1, 2, 3, 4]),
    ],
)
def test_what_a_variant_is_made_of(variant, skip, memories):
    config = Config(variant=variant).resolve()
    assert config.skip == skip
    assert [level for level in range(1, 5) if config.has_memory(level)] == memories


def test_block_shapes_are_the_papers():
    daad, memae = Config().resolve(), Config(variant="memae").resolve()
    assert [daad.block_shape(level) for level in range(1, 5)] == [
        (64, 16, 16),
        (128, 8, 8),
        (256, 4, 4),
        (512, 2, 2),
    ]
    assert memae.block_shape(4) == (512, 1, 1)  # r = 16 at 16x, one pixel


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_configuration_survives_json(variant):
    config = Config(variant=variant, division=(4, 4, 2)).resolve()
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.resolve() == config


@pytest.mark.parametrize(
    ("choices", "text"),
    [
        ({"variant": "vae"}, "--variant vae: choose one of ae, ae-skip, memae"),
        ({"image_size": 64}, r"division 8,8,1 does not fit level 4: .* 512 channels of 4x4 .* 128"),
        ({"division": (8, 8, 3)}, "does not fit level 1: .* r_c 64"),
        ({"image_size": 100}, "--image-size 100: 4 levels .* a multiple of 16"),
        ({"levels": 5}, "--levels 5: Table 7 has 4 levels"),
        ({"epochs": 0}, "--epochs 0: must be above 0"),
        ({"lr": -1.0}, "--lr -1: must be above 0"),
        ({"lr": 0.0}, "--lr 0: must be above 0"),
        ({"lr": math.nan}, "--lr nan: must be above 0, and finite"),
        ({"temperature": math.nan}, "--temperature nan: must be above 0, and finite"),
        ({"lambda_rec": math.inf}, "--lambda-rec inf: must be at least 0, and finite"),
        ({"seed": 2**63}, "--seed 9223372036854775808: give a whole number from 0"),
        ({"lambda_ali": -1.0}, "--lambda-ali -1: must be at least 0"),
        ({"threshold": -1.0}, "--threshold -1: must be at least 0"),
        ({"held_out": 1.0}, "--held-out 1: a share of at least 0 and below 1"),
        ({"gamma": 1.5}, "--gamma 1.5: the weight of R"),
        ({"scaling": "max"}, "--scaling max: choose one of test, normals"),
        ({"gan_loss": "wgan"}, "--gan-loss wgan: choose one of"),
        ({"flips": "vertical"}, "--flips vertical: choose one of both, horizontal, none"),
        ({"image_size": 16, "variant": "daad+", "division": (1, 1, 1)}, "pictures of at least 32"),
    ],
)
def test_bad_choices_are_named(choices, text):
    with pytest.raises(UserError, match=text):
        Config(**choices).resolve()


def test_a_run_of_before_flips_could_be_chosen_had_both():
    content = Config(variant="ae", flips="none").resolve().to_dict()
    del content["flips"]
    assert Config.from_dict(content).flips == "both"


def test_settings_of_another_version_are_named():
    content = dataclasses.asdict(Config()) | {"colour": "red"}
    with pytest.raises(UserError, match="unknown settings .*: colour"):
        Config.from_dict(content)


@pytest.mark.parametrize(
    ("choices", "items"),
    [
        ({}, 500),
        ({"levels": 2}, 500),
        ({"image_size": 128, "width": 16}, 31),
        ({"image_size": 32, "division": (1, 1, 1)}, 500),  # one block a map: the paper's D
        ({"image_size": 32, "division": (2, 2, 1), "width": 16}, 31),
        ({"image_size": 32, "division": (2, 2, 8), "width": 8}, 2),
        ({"image_size": 16, "division": (8, 8, 8), "width": 8, "levels": 1}, 1),
        ({"variant": "memae"}, 500),
        ({"variant": "memae", "width": 16}, 125),
        ({"variant": "memae", "division": (8, 8, 1)}, 500),
    ],
)
def test_items_keep_the_papers_ratio_to_the_size_of_a_block(choices, items):
    assert items_at_paper_ratio(Config(**choices).resolve()) == items


def test_division_as_text():
    assert parse_division("8,4,2") == (8, 4, 2)
    assert parse_division("pixel") == "pixel"
    for text in ("8,8", "8,8,0", "a,b,c", "8x8x1", ""):
        with pytest.raises(UserError, match="give r_h,r_w,r_c"):
            parse_division(text)
