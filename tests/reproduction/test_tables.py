"""The paper's figures and settings, and what is trained for them at each scale."""

import statistics

import pytest

from daad.config import Config
from daad.io import UserError
from reproduction.scales import SCALES, Scale, memory_parameters, training_bytes
from reproduction.tables import DAAD, TABLES


def settings(name: str) -> dict[str, Config]:
    """The configuration of each row at the paper's scale."""
    rows = TABLES[name].rows
    return {row.label: row.setting.config("photographs", SCALES["paper"], 0) for row in rows}


def test_the_papers_columns_have_the_papers_means() -> None:
    """Sums show a figure that was copied wrongly."""
    for row in TABLES["table3"].rows:
        assert len(row.by_category) == 15
        assert statistics.fmean(row.by_category.values()) == pytest.approx(row.paper, abs=6e-4)
    daad = TABLES["table3"].rows[3]
    assert (daad.by_category["bottle"], daad.by_category["zipper"]) == (0.975, 0.906)


def test_the_papers_scale_is_the_papers() -> None:
    assert DAAD.config("photographs", SCALES["paper"], 3) == Config(seed=3).resolve()
    table3 = settings("table3")
    assert table3["DAAD+"] == Config(variant="daad+").resolve()
    assert (table3["MemAE"].division, table3["MemAE"].num_items) == ("pixel", 500)
    rates = {label: (c.division, c.num_items) for label, c in settings("table4").items()}
    assert rates == {f"r {r}": ((r, r, 1), 500) for r in (1, 2, 4, 8, 16)}
    assert [c.num_items for c in settings("figure7").values()] == [100, 250, 500, 1000, 2000]


def test_losses_and_scores_are_those_of_table_5() -> None:
    rows = TABLES["table5"].rows
    assert [row.score for row in rows] == ["R", "R", "R", "L", "R + L"] * 3
    assert [row.paper for row in rows[5:10]] == [0.802, 0.825, 0.835, 0.841, 0.853]
    for row in rows:
        config = row.setting.config("photographs", SCALES["paper"], 0)
        losses = (config.discriminator, config.discriminator and config.lambda_ali > 0)
        assert losses == ("L_adv" in row.label, "L_ali" in row.label)
        assert config.lambda_adv == 0.5
        assert config.lr == (2e-4 if config.discriminator else 1e-4)
        assert config.variant.rstrip("+").upper() == row.label.split(",")[0].split(":")[0].upper()


def test_what_is_left_open_differs_in_the_choices_it_names() -> None:
    plain = {"daad": Config(), "daad+": Config(variant="daad+")}
    changed = {}
    for label, config in settings("open").items():
        before = plain[config.variant].resolve().to_dict()
        changed[label] = [name for name, value in config.to_dict().items() if value != before[name]]
    assert list(changed.values()) == [
        *([], ["temperature"], ["temperature"], ["renormalize"], ["threshold"], ["distance"]),
        *([], ["distance"], ["lambda_rec", "distance"]),
        *(["lambda_rec", "distance", "alignment_distance"], ["alignment_trains_discriminator"]),
    ]


def test_one_name_is_one_setting() -> None:
    """Runs are shared by their names: another setting of the same name would be taken for it."""
    by_name: dict[str, Config] = {}
    for table in TABLES.values():
        for row in table.rows if table.kind == "photographs" else ():
            config = row.setting.config("photographs", SCALES["paper"], 0)
            assert by_name.setdefault(row.setting.run, config) == config
    assert len(set(by_name.values())) == len(by_name)


def test_the_small_scale() -> None:
    items = {}
    for name in ("table3", "table4", "figure7"):
        for row in TABLES[name].rows[:4]:
            config = row.setting.config("photographs", SCALES["small"], 0)
            items[row.label] = config.num_items
            assert (config.image_size, config.width, config.epochs) == (128, 16, 40)
            assert config.lr == 1e-3
    assert (items["DAAD"], items["MemAE"], items["r 1"]) == (125, 125, 125)
    assert (items["N 100"], items["N 500"], items["N 1000"]) == (25, 125, 250)
    with pytest.raises(UserError, match="division 16,16,1 does not fit level 4"):
        TABLES["table4"].rows[4].setting.config("photographs", SCALES["small"], 0)


def test_items_keep_the_papers_ratio_where_a_scale_names_none() -> None:
    narrow = {"photographs": {"image_size": 128, "width": 16}, "mnist": {"width": 16}}
    scale = Scale("narrow", narrow)
    assert DAAD.config("photographs", scale, 0).num_items == 31
    memae = TABLES["table3"].rows[1].setting
    assert memae.config("photographs", scale, 0).num_items == 125
    digits = DAAD.config("mnist", scale, 0)
    assert (digits.image_size, digits.division, digits.num_items) == (32, (1, 1, 1), 125)
    with pytest.raises(UserError, match="scale narrow is for photographs, mnist alone"):
        DAAD.config("video", scale, 0)


def test_memory_parameters_by_hand() -> None:
    # Each level's map is 64 C x 128 x 128, halved from level to level: 2**20 (1 + 1/2 + 1/4 + 1/8).
    whole = settings("table4")["r 1"]
    assert memory_parameters(whole) == 500 * 15 * 2**17 == 983_040_000
    assert training_bytes(whole) == 16 * 983_040_000
    assert memory_parameters(settings("table3")["DAAD"]) == 983_040_000 // 64
    assert memory_parameters(settings("table3")["MemAE"]) == 500 * 512
    assert memory_parameters(settings("table3")["AE"]) == 0
