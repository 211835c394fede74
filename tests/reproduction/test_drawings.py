"""The figures of the page: which are drawn from which runs and records, and which are not."""

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from daad.folder import METRICS, Hardware, write_settings
from daad.io import save_checkpoint, write_csv, write_json
from daad.mvtec import Category, load_category
from daad.network import CHECKPOINT, Generator
from daad.task import Task
from reproduction import drawings
from reproduction.drawings import Drawer, Series, curve_figure
from reproduction.records import Record, choices_of, collect, run_folder
from reproduction.scales import Setting
from reproduction.tables import DAAD, DAAD_PLUS, PAPER, TABLES, Paper, rows_that_fit
from tests.helpers.made_records import made
from tests.helpers.paper_data import SMALL_PAPER
from tests.helpers.picture_files import make_category

Subjects = dict[str, Task[Any]]
TINY = SMALL_PAPER.scales["small"]
# The label of its axis, ours, and the paper's.
Curve = tuple[str, list[Series], dict[float, float]]


@pytest.fixture(scope="module")
def categories(tmp_path_factory: pytest.TempPathFactory) -> Subjects:
    root = tmp_path_factory.mktemp("data")
    for name in ("bottle", "tile"):
        make_category(root / name)
    return {name: load_category(root, name) for name in ("bottle", "tile")}


def make_run(out: Path, setting: Setting, category: Category, seed: int = 0) -> Path:
    """The folder of a finished run, whose network is as it was before training."""
    config = setting.config("photographs", TINY, seed)
    run = run_folder(out, "small", setting.run, category.name, seed)
    torch.manual_seed(seed)
    state = {"config": config.to_dict(), "generator": Generator(config).state_dict()}
    if not config.discriminator:  # else nothing is drawn from it here but its scores
        save_checkpoint(run / CHECKPOINT, {"epoch": config.epochs, **state})
    write_settings(run, config, category.source, Hardware("cpu"))
    choices = {"gamma": config.gamma, "batch_norm": config.batch_norm, "scaling": config.scaling}
    anomalous = sum(one.label for one in category.test)
    counts = {"good": len(category.test) - anomalous, "anomalous": anomalous}
    write_json(run / METRICS, {"epoch": config.epochs, "counts": counts, **choices})
    header = ("path", "label", "defect", "reconstruction", "alignment", "eq7", "peak")
    scores = [(one.name, one.label, one.defect, 0.5, "", one.label, 0.5) for one in category.test]
    write_csv(run / "scores.csv", header, scores)
    write_csv(run / "history.csv", ("epoch", "seconds"), [(1, 0.5)])
    return run


def draw(
    folder: Path,
    out: Path,
    subjects: Subjects,
    *names: str,
    records: Sequence[Record] | None = None,
    paper: Paper = SMALL_PAPER,
) -> list[str]:
    """The files that are drawn of what is in `out`, or of the records that are given."""
    records = collect(out, paper.scales) if records is None else records
    device, scale = torch.device("cpu"), paper.scales["small"]
    Drawer(folder, out, paper, scale, records, subjects, device).draw(names)
    return sorted(path.name for path in folder.glob("*"))


def fitting(name: str) -> list[Setting]:
    table = TABLES[name]
    return [row.setting for row in rows_that_fit(table, TINY)[0]]


# Runs


def test_reconstructions_are_of_categories_with_all_networks(
    tmp_path: Path, categories: Subjects
) -> None:
    out = tmp_path / "out"
    for setting in fitting("figure2"):
        make_run(out, setting, categories["bottle"])
        if setting != DAAD:
            make_run(out, setting, categories["tile"])
    drawn = draw(tmp_path / "1", out, categories, "figure2", "figure5", "figure6", "figure7")
    assert drawn == ["figure2-small-bottle.png"]
    with Image.open(tmp_path / "1" / drawn[0]) as image:
        assert image.width > image.height  # nine columns, two rows
    make_run(out, DAAD, categories["tile"])
    drawn = draw(tmp_path / "2", out, categories, "figure2")
    assert drawn == ["figure2-small-bottle.png", "figure2-small-tile.png"]
    only = {"tile": categories["tile"]}  # where the data of the other is not there
    assert draw(tmp_path / "3", out, only, "figure2") == ["figure2-small-tile.png"]


def test_division_rates_are_those_that_fit(
    tmp_path: Path, categories: Subjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 and 16 do not; without r 1, nothing is drawn."""
    seen = []
    figure = drawings.reconstruction_figure

    def noted(*arguments: Any) -> Figure:
        seen.append(arguments[2])
        return figure(*arguments)

    monkeypatch.setattr(drawings, "reconstruction_figure", noted)
    out = tmp_path / "out"
    first, *rest = fitting("table4")
    for seed in (1, 2):
        for setting in rest:
            make_run(out, setting, categories["bottle"], seed)
    assert draw(tmp_path / "1", out, categories, "figure5") == []
    make_run(out, first, categories["bottle"], 3)
    assert draw(tmp_path / "2", out, categories, "figure5") == ["figure5-small-bottle.png"]
    (runs,) = seen
    # They share no seed: the lowest of each.
    folders = {"r 1": ("daad-r1", 3), "r 2": ("daad-r2", 1), "r 8": ("daad", 1)}
    assert runs == {
        label: run_folder(out, "small", setting, "bottle", seed)
        for label, (setting, seed) in folders.items()
    }


def test_scores_by_area_need_both_runs_evaluated(tmp_path: Path, categories: Subjects) -> None:
    out = tmp_path / "out"
    runs = [make_run(out, setting, categories["bottle"]) for setting in (DAAD, DAAD_PLUS)]
    records = collect(out, PAPER.scales)
    assert [record.setting for record in records] == ["daad", "daad+"]
    assert draw(tmp_path / "1", out, categories, "figure6") == ["figure6-small-bottle.png"]
    assert draw(tmp_path / "2", out, categories, "figure6", records=records[:1]) == []
    # What was measured elsewhere, and has begun here
    for name in (METRICS, "scores.csv"):
        (runs[1] / name).unlink()
    assert draw(tmp_path / "3", out, categories, "figure6", records=records) == []


def test_runs_side_by_side_are_of_one_seed(
    tmp_path: Path, categories: Subjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lowest that all have here: DAAD's seed 0 was run elsewhere, DAAD+'s seed 1 nowhere."""
    seen = []

    def noted(category: Category, runs: dict[str, Path]) -> Figure:
        seen.append([run.name for run in runs.values()])
        return Figure()

    monkeypatch.setattr(drawings, "area_figure", noted)
    out, bottle = tmp_path / "out", categories["bottle"]
    for setting, seeds in ((DAAD, (0, 1, 2, 3)), (DAAD_PLUS, (0, 2, 3))):
        runs = [make_run(out, setting, bottle, seed) for seed in seeds]
        if setting is DAAD:
            elsewhere = runs[0]
    records = collect(out, PAPER.scales)
    shutil.rmtree(elsewhere)
    draw(tmp_path / "1", out, categories, "figure6", records=records)
    assert seen == [["seed-2", "seed-2"]]


def test_reconstructions_need_the_networks(tmp_path: Path, categories: Subjects) -> None:
    out = tmp_path / "out"
    runs = [make_run(out, setting, categories["bottle"]) for setting in fitting("figure2")]
    records = collect(out, PAPER.scales)
    (runs[0] / CHECKPOINT).unlink()
    assert draw(tmp_path / "1", out, categories, "figure2", records=records) == []
    make_run(out, fitting("figure2")[0], categories["bottle"])
    (runs[3] / METRICS).unlink()
    assert draw(tmp_path / "2", out, categories, "figure2", records=records) == []
    none = tmp_path / "none"
    assert draw(tmp_path / "3", none, categories, "figure2", records=records) == []


def test_of_a_video_the_first_mixed_clip_of_daad_is_shown(tmp_path: Path) -> None:
    records = [like_the_scale("video", name, "ped2", 1) for name in ("ae", "daad")]
    out = tmp_path / "out"

    def draw_video(folder: str, abnormal: dict[str, int], records: list[Record]) -> list[str]:
        for setting in ("ae", "daad"):
            run = run_folder(out, "small", setting, "ped2", 1)
            clips = {name: {"frames": 2, "abnormal": count} for name, count in abnormal.items()}
            write_json(run / METRICS, {"clips": clips})
            for clip in clips:
                (run / "figures" / "curves").mkdir(parents=True, exist_ok=True)
                (run / "figures" / "curves" / f"{clip}.png").write_text(f"{setting} {clip}")
        return draw(tmp_path / folder, out, {}, "table6-ped2", "table6-avenue", records=records)

    mixed = {"1": 0, "2": 2, "3": 1, "4": 1}
    assert draw_video("0", mixed, records[:1]) == []  # of AE alone
    assert draw_video("1", mixed, records) == ["table6-ped2-small-3.png"]
    assert (tmp_path / "1" / "table6-ped2-small-3.png").read_text() == "daad 3"
    assert draw_video("2", {"1": 0, "2": 2}, records) == []  # no clip has both
    elsewhere = draw(tmp_path / "3", tmp_path, {}, "table6-ped2", records=records)
    assert elsewhere == []


def like_the_scale(kind: str, setting: str, subject: str, seed: int) -> Record:
    """A record that was trained as the scale has it now."""
    config = Setting(setting, {"variant": setting}).config(kind, TINY, seed)
    names = ("image_size", "width", "temperature", "epochs", "batch_size", "lr")
    choices = {name: getattr(config, name) for name in names}
    memory = {"division": "2x2x1", "num_items": config.num_items} if setting == "daad" else {}
    others = choices_of(config)[-1]
    return made(setting, subject, 0.9, seed, others=others, **choices, **memory)


# Records


@pytest.fixture
def curves(monkeypatch: pytest.MonkeyPatch) -> list[Curve]:
    """What curves are drawn of, at the small scale as it is."""
    seen: list[Curve] = []

    def noted(label: str, series: Sequence[Series], paper: dict[float, float]) -> Figure:
        seen.append((label, list(series), paper))
        return curve_figure(label, series, paper)

    monkeypatch.setattr(drawings, "curve_figure", noted)
    return seen


def test_curves_are_of_the_records(tmp_path: Path, curves: list[Curve]) -> None:
    """No run has to be there, nor any data."""
    records = [
        *[made("daad", "bottle", area, seed) for seed, area in enumerate((0.9, 0.8))],
        made("daad-r4", "bottle", 0.7, division="4x4x1"),
        made("daad-r4", "tile", 0.6, division="4x4x1"),
        made("daad-r2", "tile", 0.5, division="4x4x1"),  # trained otherwise than the row
        made("daad-r16", "tile", 0.5, division="16x16x1"),  # which does not fit the scale
        made("daad-n100", "tile", 0.4, num_items=25),
    ]
    drawn = draw(tmp_path, tmp_path / "out", {}, "table4", "figure7", records=records, paper=PAPER)
    assert drawn == ["table4-small.png"]
    ((label, series, paper),) = curves
    assert label == "division rate r"
    assert [(one.name, one.values) for one in series] == [
        ("tile", {4: [0.6]}),
        ("bottle", {4: [0.7], 8: [0.9, 0.8]}),
    ]
    assert paper == {1: 0.716, 2: 0.784, 4: 0.821, 8: 0.845, 16: 0.813}


def test_the_size_of_a_memory_is_the_papers(tmp_path: Path, curves: list[Curve]) -> None:
    records = [made("daad", "bottle", 0.9), made("daad-n2000", "bottle", 0.8, num_items=500)]
    drawn = draw(tmp_path, tmp_path / "out", {}, "figure7", records=records, paper=PAPER)
    assert drawn == ["figure7-small.png"]
    ((label, (bottle,), paper),) = curves
    assert label == "memory size, the paper's N"
    assert (bottle.values, paper) == ({500: [0.9], 2000: [0.8]}, {500: 0.845})


def test_a_point_alone_is_no_curve(tmp_path: Path, curves: list[Curve]) -> None:
    one = [made("daad", name, 0.9) for name in ("bottle", "tile")]
    assert draw(tmp_path, tmp_path / "out", {}, "table4", "figure7", records=one, paper=PAPER) == []
    other = dataclasses.replace(made("daad-r4", "tile", 0.9, division="4x4x1"), scale="paper")
    assert draw(tmp_path, tmp_path / "out", {}, "table4", records=[*one, other], paper=PAPER) == []
    assert curves == []


def test_only_what_is_asked_for_is_drawn(tmp_path: Path, curves: list[Curve]) -> None:
    records = [made("daad", "bottle", 0.9), made("daad-r4", "bottle", 0.7, division="4x4x1")]
    assert draw(tmp_path / "1", tmp_path / "out", {}, "figure1", records=records, paper=PAPER) == [
        "figure1.png"
    ]
    assert (
        draw(tmp_path / "2", tmp_path / "out", {}, "table3", "open", records=records, paper=PAPER)
        == []
    )
