"""The page of results: its tables by hand, and its words."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reproduction.page import SECTIONS, page
from reproduction.records import Record
from reproduction.tables import PAPER
from tests.helpers.made_records import DIGITS, NO_MEMORY, PAPER_PICTURE, PICTURE, VIDEO, made
from tests.helpers.paper_data import body, section, tables

# What DAAD+ has at the paper's scale.
OF_THE_PAPER = {
    "image_size": 256,
    "width": 64,
    "num_items": 500,
    "epochs": 1000,
    "batch_size": 8,
    "lr": 2e-4,
}


def show(*records: Record) -> str:
    return page(PAPER, records, {}, {}, "reproduction")


# Numbers


def test_means_and_deviations_over_seeds_by_hand() -> None:
    bottle = [made("daad", "bottle", area, seed) for seed, area in enumerate((0.9, 0.96, 0.93))]
    tile = [made("daad", "tile", area, seed) for seed, area in enumerate((0.7, 0.8))]
    one = made("ae", "tile", 0.5)
    found = body(section(show(*bottle, *tile, one), "Table 3"))
    # The textures are first. The mean is of seeds 0 and 1: (0.9 + 0.7) / 2 and (0.96 + 0.8) / 2.
    assert found == {
        "heads": ["N", "tile", "bottle", "mean", "paper, all 15"],
        "AE": ["-", "0.500 (0.696)", "", "", "0.794"],
        "DAAD": [
            *("125", "0.750 ± 0.071 (0.825)", "0.930 ± 0.030 (0.975)"),
            *("0.840 ± 0.057 [seeds 0, 1] (0.900)", "0.845"),
        ],
    }


def test_the_paper_is_beside_its_own_categories_alone() -> None:
    """Of `gear` it knows nothing, nor of a mean with it."""
    lines = body(section(show(made("daad", "gear", 0.7), made("daad", "bottle", 0.9)), "Table 3"))
    assert lines["heads"] == ["N", "bottle", "gear", "mean", "paper, all 15"]
    assert lines["DAAD"] == ["125", "0.900 (0.975)", "0.700", "0.800", "0.845"]
    (table_4, *_) = tables(section(show(made("daad", "bottle", 0.9)), "Table 4"))
    assert table_4[1:] == [["r 8", "125", "0.900", "0.845"]]  # no figures by category


def test_a_run_is_ranked_as_its_row_says() -> None:
    plus = made("daad+", "bottle", 0.8, auroc_r=0.6, auroc_l=0.7)
    found = body(section(show(plus), "Table 5"))
    own = {label: (cells[1], cells[2]) for label, cells in found.items() if label != "heads"}
    assert own == {
        "DAAD, L_adv, L_ali: R": ("0.600", "0.855"),
        "DAAD, L_adv, L_ali: L": ("0.700", "0.874"),
        "DAAD, L_adv, L_ali: R + L": ("0.800", "0.895"),
    }
    assert body(section(show(plus), "Table 3"))["DAAD+"][1] == "0.800 (0.976)"


def test_all_classes_have_a_column_and_their_mean_needs_all() -> None:
    digits = [made("daad", f"mnist-{digit}", digit / 10, **DIGITS) for digit in range(10)]
    plain = made("ae", "mnist-3", 0.5, **DIGITS | NO_MEMORY)
    found = body(section(show(*digits, plain), "Table 2, MNIST"))
    assert found["heads"] == ["N", *"0123456789", "mean", "paper"]
    assert found["AE"] == ["-", "", "", "", "0.500", *[""] * 7, "-"]
    areas = [f"0.{digit}00" for digit in range(10)]
    assert found["DAAD"] == ["125", *areas, "0.450 (0.990)", "0.990"]


def test_a_video_is_judged_by_its_frames_psnr() -> None:
    frames = {"auroc_r": 0.92, "auroc_global": 0.4, "auroc_within": 0.7, **VIDEO}
    found = body(section(show(made("daad", "ped2", 0.3, **frames)), "Table 6, UCSD Ped2"))
    assert found == {
        "heads": ["N", "ped2", "paper"],
        "DAAD": ["500", "0.920 (0.941)", "0.941"],
        "DAAD: R, scaled over all clips": ["500", "0.400", "-"],
        "DAAD: R, mean within clips": ["500", "0.700", "-"],
    }


def test_digits_and_videos_are_no_categories() -> None:
    """Even where they were trained just as a row of photographs."""
    others = [made("daad", name, 0.9) for name in ("mnist-3", "cifar10-cat", "ped2", "avenue")]
    assert show(*others) == show()
    found = body(section(show(*others, made("daad", "bottle", 0.9)), "Table 3"))
    assert found["heads"] == ["N", "bottle", "paper, all 15"]


areas = st.floats(0, 1)
records = st.builds(
    made,
    setting=st.sampled_from(["ae", "memae", "ae-skip", "daad", "daad+", "daad-r4", "daad-n100"]),
    subject=st.sampled_from(["bottle", "tile", "gear", "a|b"]),
    auroc=areas,
    seed=st.integers(0, 2),
    scale=st.sampled_from(["small", "small-120", "paper"]),
    auroc_l=st.none() | areas,
)
of_classes = st.builds(
    made, setting=st.sampled_from(["daad", "memae"]), auroc=areas, seed=st.integers(0, 2),
    subject=st.sampled_from([f"mnist-{digit}" for digit in range(10)]),
).map(lambda one: dataclasses.replace(one, **DIGITS))  # fmt: skip
of_videos = st.builds(
    made, setting=st.just("daad"), subject=st.sampled_from(["ped2", "avenue"]), auroc=areas,
    auroc_global=st.none() | areas,
).map(lambda one: dataclasses.replace(one, **VIDEO))  # fmt: skip


@settings(max_examples=15, deadline=None)
@given(st.lists(records | of_classes | of_videos, max_size=12, unique_by=lambda one: one.key))
def test_each_line_of_a_table_has_all_its_cells(found: list[Record]) -> None:
    for lines in tables(show(*found)):
        assert {len(line) for line in lines} == {len(lines[0])}


# Words


def test_rows_that_were_not_run_are_said() -> None:
    text = section(show(made("daad", "bottle", 0.9), made("ae", "bottle", 0.9)), "Table 3")
    assert text.endswith("\n\n- Not run at this scale: MemAE; AE+Skip; DAAD+.\n")
    networks = [made(name, "bottle", 0.9) for name in ("ae", "memae", "ae-skip", "daad", "daad+")]
    assert "Not run" not in section(show(*networks), "Table 3")


def test_the_words_are_those_of_the_data() -> None:
    digits = section(show(made("daad", "mnist-3", 0.9, **DIGITS)), "Table 2, MNIST")
    assert "**Scale `small`: fewer channels, fewer epochs.**" in digits
    assert "smaller pictures" not in digits
    assert "In parentheses" not in digits  # of one class of ten there is no figure
    photographs = show(made("daad", "bottle", 0.9))
    assert "In parentheses the paper's figure." in section(photographs, "Table 3")
    assert "In parentheses" not in section(photographs, "Table 4")
    assert "fewer channels, smaller pictures, fewer epochs" in section(photographs, "Table 3")


def test_what_was_not_run_is_said() -> None:
    assert show().count("Not run.") == len(SECTIONS) == 14
    titles = [part.splitlines()[0] for part in show().split("\n## ")[1:]]
    names = [title.partition(",")[0] for title in titles]
    assert names == [
        *("Figure 1", "Figure 2", "Table 2", "Table 2", "Table 3", "The networks of Table 3"),
        *("Table 4", "Figure 5", "Table 5"),
        *("Figure 6", "Table 6", "Table 6", "Figure 7", "What the paper leaves open"),
    ]  # fmt: skip
    page = show(made("ae", "ped2", 0.9, **VIDEO | NO_MEMORY))
    assert page.count("Not run.") == 13
    assert "Not run." not in section(page, "Table 6, UCSD Ped2")


def test_how_it_was_made_is_said() -> None:
    other = {"device": "a GPU", "minutes": 20.25}
    runs = [made("daad", "bottle", 0.9, 2), made("ae", "bottle", 0.9, 0, **other)]
    text = section(show(*runs, made("ae", "tile", 0.9)), "Table 3")
    assert (
        "Pictures of 128x128, width 16; 40 epochs of batches of 4, lr 0.001; seeds 0,2. 3 runs, "
        "29 minutes of training on a processor, 1 thread(s); a GPU."
    ) in text
    command = "python examples/reproduce.py --data DATA --only table3 --scale small"
    command += " --categories tile,bottle --seeds 0,2"
    assert f"\n```sh\n{command}\n```" in text


def test_how_many_seeds_a_figure_has_is_said() -> None:
    runs = [made("daad", "bottle", 0.9, seed) for seed in range(5)]
    runs += [made("ae", "bottle", 0.8, seed) for seed in range(3)]
    three = section(show(*runs), "Table 3")
    assert "seeds 0,1,2,3,4 (3 or 5 of them a figure). 8 runs" in three
    four = section(show(*runs, made("memae", "bottle", 0.7)), "Table 3")
    assert "seeds 0,1,2,3,4 (1, 3 or 5 of them a figure). 9 runs" in four


def test_scales_have_tables_of_their_own() -> None:
    runs = [
        made("daad+", "bottle", 0.9),
        made("daad+", "bottle", 0.8, scale="paper", **OF_THE_PAPER),
    ]
    text = section(show(*runs), "Table 3")
    papers, ours = tables(text)
    assert papers[1] == ["DAAD+", "500", "0.800 (0.976)", "0.895"]
    assert ours[1] == ["DAAD+", "125", "0.900 (0.976)", "0.895"]
    first, second = text.index("**At the paper's settings.**"), text.index("**Scale `small`: ")
    assert first < text.index("0.800") < second < text.index("0.900")
    assert "--scale paper --categories bottle --seeds 0\n" in text
    assert "--scale small --categories bottle --seeds 0\n" in text


def test_rows_that_do_not_fit_are_said() -> None:
    text = section(show(made("daad-r4", "bottle", 0.9, division="4x4x1")), "Table 4")
    assert list(body(text)) == ["heads", "r 4"]
    assert "- Does not fit this scale: r 16: division 16,16,1 does not fit level 4" in text
    assert "change --division" not in text
    # One that was run when it did fit
    old = made("daad-r16", "bottle", 0.9, division="16x16x1")
    assert show(old) == show()


@pytest.mark.parametrize(
    "choices",
    [
        *({"image_size": 64}, {"width": 8}, {"division": "4x4x1"}, {"num_items": 30}),
        *({"temperature": 0.5}, {"epochs": 39}, {"batch_size": 8}, {"lr": 2e-3}),
        *({"setting": "daad-old"}, {"scale": "medium"}, {"others": "variant=daad"}),
    ],
    ids=str,
)
def test_runs_of_other_settings_are_not_shown(choices: dict[str, object]) -> None:
    run = made("daad", "bottle", 0.9)
    assert show(run) != show()
    assert show(dataclasses.replace(run, **choices)) == show()


@pytest.mark.parametrize(
    ("scale", "choices"),
    [("small-256", {"image_size": 256, "width": 8}), ("small-120", {"epochs": 120})],
)
def test_a_scale_with_one_network_is_left_out_where_another_compares_several(
    scale: str, choices: dict[str, int]
) -> None:
    one = made("daad", "bottle", 0.95, scale=scale, **choices)
    several = [made("daad", "bottle", 0.9), made("ae", "bottle", 0.8)]
    (alone,) = tables(section(show(one), "Table 3"))
    assert alone[1][2] == "0.950 (0.975)"
    (table_3,) = tables(section(show(one, *several), "Table 3"))
    assert [line[0] for line in table_3] == ["", "AE", "DAAD"]
    assert len(tables(section(show(one, several[0]), "Table 3"))) == 2
    # The paper's is what one waits for: its first run is shown.
    first = made("daad+", "bottle", 0.8, scale="paper", **OF_THE_PAPER)
    assert len(tables(section(show(first, *several), "Table 3"))) == 2


def test_notes_and_pictures_are_where_they_belong() -> None:
    notes = {
        **{"introduction": "\nOf 2026.\n", "table4": "Why r 4 is low.\n", "table5": "Soon."},
        "table4-data": "Copies of the pictures.\n",
    }
    pictures = {"table4": [PAPER_PICTURE, PICTURE], "figure1": ["reproduction/figure1.png"]}
    run = made("daad", "bottle", 0.9)
    text = page(PAPER, [run], notes, pictures, "reproduction")
    introduction = text.partition("\n## ")[0]
    assert introduction.startswith("# ")
    assert introduction.endswith("\n\nOf 2026.\n")
    assert "[results.csv](reproduction/results.csv)" in introduction
    table_4 = section(text, "Table 4")
    # A picture stands below the table of its scale; one of a scale without a table comes after.
    order = ("Copies of", "| r 8", "```sh", PICTURE, PAPER_PICTURE, "Why r 4")
    places = [table_4.index(part) for part in order]
    assert places == sorted(places)
    title = "Table 4, division rates r_h and r_w"
    assert f"\n\n![{title}, paper]({PAPER_PICTURE})\n\nWhy r 4 is low.\n" in table_4
    figure_1 = section(text, "Figure 1")
    shown = "![Figure 1, the idea in one picture](reproduction/figure1.png)"
    command = "```sh\npython examples/reproduce.py --only figure1\n```"
    assert figure_1.endswith(f"\n\n{shown}\n\n{command}\n")
    assert "Not run." not in figure_1
    assert section(page(PAPER, [], notes, {}, "x"), "Table 5").endswith("\n\nNot run.\n\nSoon.\n")
    assert "\n\n\n" not in text


def test_a_picture_says_what_it_is_of() -> None:
    path = "reproduction/figure5-small-256-metal_nut.png"
    text = section(page(PAPER, [], {}, {"figure5": [path]}, "reproduction"), "Figure 5")
    title = "Figure 5, reconstructions by division rate, small-256, metal_nut"
    command = "--data DATA --only figure5 --scale small-256 --categories metal_nut"
    assert f"![{title}]({path})\n\n*metal_nut*\n" in text
    assert f"python examples/reproduce.py {command}\n" in text
    path = "reproduction/table6-ped2-small-01.png"
    text = section(page(PAPER, [], {}, {"table6-ped2": [path]}, "reproduction"), "Table 6, UCSD")
    assert text.endswith(f"![Table 6, UCSD Ped2, small, 01]({path})\n\n*clip 01*\n")
