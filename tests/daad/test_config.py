import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daad.command import parse_division
from daad.config import KINDS, VARIANTS, Config, items_at_paper_ratio
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


configs = st.builds(
    Config,
    variant=st.sampled_from(VARIANTS),
    image_size=st.sampled_from([16, 32, 64, 96, 256]),
    width=st.integers(1, 64),
    levels=st.integers(1, 4),
    division=st.none() | st.just("pixel") | st.tuples(*[st.integers(1, 16)] * 3),
    num_items=st.none() | st.integers(1, 600),
    threshold=st.none() | st.floats(0, 1),
    discriminator=st.none() | st.booleans(),
    distance=st.sampled_from([None, "squared", "l2"]),
    lr=st.none() | st.floats(1e-6, 1),
    flips=st.sampled_from([None, "both", "horizontal", "none"]),
    gamma=st.floats(0, 1),
    seed=st.integers(0, 2**63 - 1),
)


def outcome(call):
    """What a call gives, and the text of its refusal."""
    try:
        return call(), ""
    except UserError as error:
        return None, str(error)


@given(configs, st.sampled_from(sorted(KINDS)))
def test_what_is_resolved_is_whole_and_stays(config, kind):
    """Through JSON too; and a configuration that cannot be says so in a line that names an option."""
    resolved, refusal = outcome(lambda: config.resolve(kind))
    if resolved is None:
        assert "\n" not in refusal
        assert "--" in refusal
        return
    open_ = ("division", "num_items", "discriminator", "distance", "lr", "flips")
    assert all(getattr(resolved, name) is not None for name in open_)
    for name, value in config.to_dict().items():
        if value is not None:
            assert getattr(resolved, name) == value
    assert all(resolved.resolve(other) == resolved for other in KINDS)
    assert Config.from_dict(json.loads(json.dumps(resolved.to_dict()))) == resolved


@given(configs)
def test_a_division_fits_or_says_what_would(config):
    for level in range(1, config.levels + 1):
        whole = config.level_shape(level)
        block, text = outcome(lambda level=level: config.block_shape(level))
        if block is None:
            assert f"level {level}" in text
            assert f"{whole[0]} channels of {whole[1]}x{whole[2]}" in text
            advised = int(text.rsplit(" ", 1)[1])
            width = config.width * config.division[2]
            larger = dataclasses.replace(config, image_size=advised, width=width)
            assert larger.block_shape(level)
        else:
            if isinstance(config.division, tuple):
                counts = tuple(a // b for a, b in zip(whole, block, strict=True))
                r_h, r_w, r_c = config.division
                assert counts == (r_c, r_h, r_w)


@given(st.text() | st.lists(st.integers(-3, 40), max_size=4).map(lambda n: ",".join(map(str, n))))
def test_any_text_is_a_division_or_refused(text):
    division, refusal = outcome(lambda: parse_division(text))
    if division is None:
        assert "give r_h,r_w,r_c" in refusal
    else:
        assert division == "pixel" or (len(division) == 3 and min(division) >= 1)
