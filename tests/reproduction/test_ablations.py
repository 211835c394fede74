"""The ablations: the paper's figures and settings, and the script from outside, stopped and started."""

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

import daad_ablations
from daad.config import Config
from daad.errors import UserError
from daad.runs import run_category
from daad.synthetic import make_dataset
from daad.training import Trainer
from paper import jobs
from paper.settings import SCALES
from paper.tables import ABLATIONS, DAAD, memory_parameters, training_bytes
from tests.helpers.scripts import Done, area, call, refused, table
from tests.helpers.training_runs import break_off

# In place of `small`: a second a run. r 4, 8 and 16 do not fit the last level's 2x2.
TINY = {
    **{"image_size": 32, "width": 2, "division": (2, 2, 1), "batch_size": 4},
    **{"epochs": 1, "lr": 1e-3, "checkpoint_every": 1},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two categories, one by a name of the paper's."""
    root = tmp_path_factory.mktemp("data")
    make_dataset(root, image_size=32, train=6, test_good=3, test_per_defect=2)
    (root / "gear").rename(root / "screw")
    return root


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCALES, "small", {"photographs": TINY})


def script(*arguments: Any, cwd: Path, scale: str = "small") -> Done:
    arguments = (*arguments, "--scale", scale, "--device", "cpu", "--out", "out")
    return call(daad_ablations.run, *arguments, cwd=cwd)


def settings(name: str) -> dict[str, Config]:
    """The configuration of each row at the paper's scale."""
    return {
        row.label: row.setting.config("photographs", "paper", 0) for row in ABLATIONS[name].rows
    }


# The tables


def test_the_papers_columns_have_the_papers_means() -> None:
    """Sums show a figure that was copied wrongly."""
    for row in ABLATIONS["table3"].rows:
        assert len(row.by_category) == 15
        assert statistics.fmean(row.by_category.values()) == pytest.approx(row.paper, abs=6e-4)
    daad = ABLATIONS["table3"].rows[3]
    assert (daad.by_category["bottle"], daad.by_category["zipper"]) == (0.975, 0.906)


def test_the_papers_scale_is_the_papers() -> None:
    assert DAAD.config("photographs", "paper", 3) == Config(seed=3).resolve()
    table3 = settings("table3")
    assert table3["DAAD+"] == Config(variant="daad+").resolve()
    assert (table3["MemAE"].division, table3["MemAE"].num_items) == ("pixel", 500)
    rates = {label: (c.division, c.num_items) for label, c in settings("table4").items()}
    assert rates == {f"r {r}": ((r, r, 1), 500) for r in (1, 2, 4, 8, 16)}
    assert [c.num_items for c in settings("figure7").values()] == [100, 250, 500, 1000, 2000]


def test_losses_and_scores_are_those_of_table_5() -> None:
    rows = ABLATIONS["table5"].rows
    assert [row.score for row in rows] == ["R", "R", "R", "L", "R + L"] * 3
    assert [row.paper for row in rows[5:10]] == [0.802, 0.825, 0.835, 0.841, 0.853]
    for row in rows:
        config = row.setting.config("photographs", "paper", 0)
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
    for ablation in ABLATIONS.values():
        for row in ablation.rows:
            config = row.setting.config("photographs", "paper", 0)
            assert by_name.setdefault(row.setting.run, config) == config
    assert len(set(by_name.values())) == len(by_name)


def test_the_small_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    items = {}
    for name in ("table3", "table4", "figure7"):
        for row in ABLATIONS[name].rows[:4]:
            config = row.setting.config("photographs", "small", 0)
            items[row.label] = config.num_items
            assert (config.image_size, config.width, config.epochs) == (128, 16, 40)
            assert config.lr == 1e-3
    assert (items["DAAD"], items["MemAE"], items["r 1"]) == (125, 125, 125)
    assert (items["N 100"], items["N 500"], items["N 1000"]) == (25, 125, 250)
    with pytest.raises(UserError, match="division 16,16,1 does not fit level 4"):
        ABLATIONS["table4"].rows[4].setting.config("photographs", "small", 0)


def test_items_keep_the_papers_ratio_where_a_scale_names_none() -> None:
    monkey = {"image_size": 128, "width": 16}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SCALES, "small", {"photographs": monkey, "mnist": {"width": 16}})
        assert DAAD.config("photographs", "small", 0).num_items == 31
        memae = ABLATIONS["table3"].rows[1].setting
        assert memae.config("photographs", "small", 0).num_items == 125
        digits = DAAD.config("mnist", "small", 0)
    assert (digits.image_size, digits.division, digits.num_items) == (32, (1, 1, 1), 125)


def test_memory_parameters_by_hand() -> None:
    # Each level's map is 64 C x 128 x 128, halved from level to level: 2**20 (1 + 1/2 + 1/4 + 1/8).
    whole = settings("table4")["r 1"]
    assert memory_parameters(whole) == 500 * 15 * 2**17 == 983_040_000
    assert training_bytes(whole) == 16 * 983_040_000
    assert memory_parameters(settings("table3")["DAAD"]) == 983_040_000 // 64
    assert memory_parameters(settings("table3")["MemAE"]) == 500 * 512
    assert memory_parameters(settings("table3")["AE"]) == 0


# The script


def test_a_table_is_of_what_was_scored(data: Path, tmp_path: Path) -> None:
    common = ("--root", data, "--only", "table5", "--settings", "daad,daad+")
    done = script(*common, "--seeds", "0,1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = table(tmp_path / "out" / "results.csv")
    runs = {
        (run, category, seed)
        for run in ("daad", "daad+") for category in ("screw", "weave") for seed in "01"
    }  # fmt: skip
    assert {(n["setting"], n["subject"], n["seed"]) for n in lines} == runs
    assert len(lines) == len(runs)
    columns = {"auroc_r": "reconstruction", "auroc_l": "alignment", "auroc": "score"}
    for line in lines:
        folder = tmp_path / "out" / "small" / line["setting"] / line["subject"]
        scores = table(folder / f"seed-{line['seed']}" / "scores.csv")
        for name, column in columns.items():
            if name == "auroc_l" and line["setting"] == "daad":
                assert line[name] == ""
            else:
                assert float(line[name]) == pytest.approx(area(scores, column), abs=1e-6)
        choices = (line["width"], line["division"], line["epochs"])
        assert (line["scale"], *choices) == ("small", "2", "2x2x1", "1")
        assert "thread" in line["device"]
        assert float(line["minutes"]) < 1

    printed = done.stdout
    rows = {"DAAD: R": ("daad", "auroc_r"), "DAAD, L_adv, L_ali: L": ("daad+", "auroc_l")}
    for row, (setting, column) in rows.items():
        own = [n for n in lines if n["setting"] == setting]
        means = [statistics.fmean(float(n[column]) for n in own if n["seed"] == s) for s in "01"]
        mean, deviation = statistics.fmean(means), statistics.stdev(means)
        assert f"{mean:.3f} ± {deviation:.3f}" in printed, row
    assert "0.874" in printed  # the paper's for L
    assert "Not the paper's settings" in " ".join(printed.split())


def test_the_paper_beside_the_same_categories(data: Path, tmp_path: Path) -> None:
    common = ("--root", data, "--only", "table3", "--settings", "ae", "--categories")
    done = script(*common, "screw", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (line,) = table(tmp_path / "out" / "results.csv")
    one, mean = ([part.strip() for part in row.split("│")[1:-1]] for row in rows_of(done.stdout))
    ours = f"{float(line['auroc']):.3f}"
    assert one == ["AE", "screw", "-", ours, "1", "0.956", ""]
    assert mean == ["", "mean of 1", "", ours, "1", "0.956", "0.794"]


def without_time(line: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in line.items() if name != "minutes"}


def rows_of(printed: str) -> list[str]:
    """The lines of a printed table's body."""
    return [line for line in printed.splitlines() if line.startswith("│")]


def test_stopped_and_started(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ae is finished, memae breaks off between two checkpoints, daad has not begun."""
    monkeypatch.setitem(TINY, "epochs", 2)
    common = ("--root", data, "--only", "table3", "--settings", "ae,memae,daad")
    common = (*common, "--categories", "weave")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    assert script(*common, cwd=whole).returncode == 0

    with monkeypatch.context() as patch:
        break_off(patch, epoch=4)
        assert script(*common, cwd=broken).returncode != 0
    out = broken / "out"
    assert [line["setting"] for line in table(out / "results.csv")] == ["ae"]
    kept = out / "small" / "ae" / "weave" / "seed-0" / "checkpoint.ckpt"
    before = kept.stat().st_mtime_ns
    assert len(table(out / "small" / "memae" / "weave" / "seed-0" / "history.csv")) == 1

    trained = []
    epochs = 0
    run_epoch = Trainer._run_epoch

    def noted(config: Config, *rest: Any, **choices: Any) -> dict[str, Any]:
        trained.append(config.variant)
        return run_category(config, *rest, **choices)

    def counted(*arguments: Any) -> dict[str, float]:
        nonlocal epochs
        epochs += 1
        return run_epoch(*arguments)

    monkeypatch.setattr(jobs, "run_category", noted)
    monkeypatch.setattr(Trainer, "_run_epoch", counted)
    done = script(*common, cwd=broken)
    assert done.returncode == 0, done.stderr
    assert "3 runs: 1 finished before, kept" in done.stdout
    assert trained == ["memae", "daad"]
    assert epochs == 1 + 2  # memae goes on at its second epoch
    assert kept.stat().st_mtime_ns == before
    resumed, straight = (table(folder / "results.csv") for folder in (out, whole / "out"))
    assert [without_time(line) for line in resumed] == [without_time(line) for line in straight]

    again = script(*common, cwd=broken)
    assert "3 runs: 3 finished before, kept" in again.stdout
    assert trained == ["memae", "daad"]
    assert rows_of(again.stdout) == rows_of(done.stdout)


def test_what_does_not_fit_the_scale_is_said(data: Path, tmp_path: Path) -> None:
    common = ("--root", data, "--only", "table4", "--categories", "weave")
    done = script(*common, "--settings", "daad-r2,daad-r4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "Left out of table4 at scale small: r 4: division 4,4,1 does not fit level 4" in said
    assert [line["setting"] for line in table(tmp_path / "out" / "results.csv")] == ["daad-r2"]
    refused(script(*common, "--settings", "daad-r4", cwd=tmp_path), "none of the rows fits it")


def test_a_memory_that_does_not_fit_is_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []

    def start(config: Config, *_: Any, **__: Any) -> None:
        started.append(config.division)
        raise SystemExit(0)

    monkeypatch.setattr(jobs, "run_category", start)
    monkeypatch.setattr(jobs, "available_memory", lambda: int(15.7e9))
    common = ("--root", data, "--only", "table4", "--categories", "weave")
    done = script(*common, cwd=tmp_path, scale="paper")
    refused(done, "daad-r1: 983 M memory parameters", "15.7 GB", "--settings", "--yes")
    assert started == []
    assert not (tmp_path / "out").exists()
    assert script(*common, "--yes", cwd=tmp_path, scale="paper").returncode == 0
    others = script(*common, "--settings", "daad-r2", cwd=tmp_path, scale="paper")
    assert "daad-r2: 246 M memory parameters" in others.stdout
    monkeypatch.setattr(jobs, "available_memory", lambda: int(15.8e9))
    assert "983 M" in script(*common, cwd=tmp_path, scale="paper").stdout
    assert started == [(1, 1, 1), (2, 2, 1), (1, 1, 1)]


def test_refusals_before_anything_is_written(data: Path, tmp_path: Path) -> None:
    common = ("--root", data)
    refused(script("--root", tmp_path / "none", cwd=tmp_path), "none: no such folder")
    refused(
        script(*common, "--only", "table9", cwd=tmp_path), "no table9", "table3, table4, table5"
    )
    refused(script(*common, "--categories", "zipper", cwd=tmp_path), "no zipper", "screw, weave")
    refused(script(*common, "--settings", "daad-r3", cwd=tmp_path), "no daad-r3", "daad-r16")
    refused(script(*common, "--seeds", "0,x", cwd=tmp_path), "--seeds 0,x", "whole numbers")
    refused(script(*common, cwd=tmp_path, scale="tiny"), "--scale tiny", "paper, small")
    assert list(tmp_path.iterdir()) == []


def test_runs_of_other_settings_are_refused_and_kept(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "out" / "small" / "daad" / "weave" / "seed-0"
    common = ("--root", data, "--only", "table3", "--categories", "weave", "--settings", "ae,daad")
    assert script(*common[:-1], "daad", cwd=tmp_path).returncode == 0
    stored = json.loads((run / "config.json").read_text())
    stored["config"]["lr"] = 5e-4
    (run / "config.json").write_text(json.dumps(stored))
    done = script(*common, cwd=tmp_path)
    refused(
        done, "seed-0/config.json: cannot go on with other settings: lr (was 0.0005, now 0.001)"
    )
    assert not (tmp_path / "out" / "small" / "ae").exists()
