"""A run in one file: it says of pictures what the run says, in ONNX Runtime and by torch.export."""

import ast
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

import run_onnx
from daad.export import INPUT, METADATA, OUTPUTS, Format, export
from daad.io import UserError
from daad.mvtec import load_folders
from daad.predicting import Judge, find_pictures, predict
from tests.helpers.picture_files import one_line
from tests.helpers.picture_runs import CPU, SIZE, make_measured_run, make_run, save_picture
from tests.helpers.scripts import table

Program = Callable[[np.ndarray], list[np.ndarray]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for seed in range(9):
        save_picture(folder / "normal" / f"{seed}.png", seed)
    settings = {"false_alarms": 0.2, "fit": "pad"}
    return make_measured_run(folder / "run", load_folders(folder / "normal"), **settings)


def written(run: Path, path: Path, form: Format, *, even_light: bool) -> tuple[Judge, Program]:
    judge = Judge(run, CPU, even_light=even_light)
    assert export(judge, "parts", path, form) < 1e-4
    if form == "torch":
        module = torch.export.load(path).module()
        return judge, lambda pictures: [one.numpy() for one in module(torch.from_numpy(pictures))]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return judge, lambda pictures: session.run(list(OUTPUTS), {INPUT: pictures})


@pytest.fixture(scope="module", params=[("onnx", False), ("onnx", True), ("torch", True)])
def both(
    request: pytest.FixtureRequest, run: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Judge, Program]:
    form, even_light = request.param
    path = tmp_path_factory.mktemp("out") / "model"
    judge, program = written(run, path, form, even_light=even_light)
    assert [one.name for one in path.parent.iterdir()] == ["model"]  # one file
    return judge, program


@pytest.mark.parametrize("count", [1, 3])
def test_the_file_says_what_the_run_says(both: tuple[Judge, Program], count: int) -> None:
    judge, program = both
    random = np.random.default_rng(1)
    pictures = random.integers(90, 130, (count, SIZE, SIZE, 3), dtype=np.uint8)
    pictures[0, 4:16, 4:16] = 250
    rows, maps = judge(["a"] * count, torch.from_numpy(pictures).permute(0, 3, 1, 2))
    rebuilt, found, scores, p, anomalous = program(pictures)
    assert rebuilt.shape == (count, SIZE, SIZE, 3)
    assert (rebuilt.min(), rebuilt.max()) >= (0, 0)
    np.testing.assert_allclose(found, maps.numpy(), rtol=1e-4, atol=1e-4 * maps.abs().max().item())
    np.testing.assert_allclose(scores, [row.score for row in rows], rtol=1e-4)
    np.testing.assert_allclose(p, [row.p for row in rows], rtol=1e-6)
    assert [bool(one) for one in anomalous] == [row.verdict == "anomalous" for row in rows]
    assert anomalous[0]


def test_reconstructions_are_the_networks(run: Path, tmp_path: Path) -> None:
    judge, program = written(run, tmp_path / "model.pt2", "torch", even_light=False)
    pictures = np.random.default_rng(2).integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8)
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        x_hat = judge.networks.generator(x)
    expected = ((x_hat + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(program(pictures)[0], expected, atol=1e-5)


def test_files_describe_themselves(run: Path, tmp_path: Path) -> None:
    judge = Judge(run, CPU)
    export(judge, "parts", tmp_path / "model.onnx", "onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    described = session.get_modelmeta().custom_metadata_map
    assert described["trained_on"] == "parts"
    assert (described["size"], described["fit"]) == (str(SIZE), "pad")
    assert float(described["threshold"]) == judge.threshold.value
    assert "9 normal picture(s)" in described["verdicts"]
    export(judge, "parts", tmp_path / "model.pt2", "torch")
    extra = {METADATA: ""}
    torch.export.load(tmp_path / "model.pt2", extra_files=extra)
    assert json.loads(extra[METADATA]) == described


def test_what_cannot_be_exported_is_refused(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    path.touch()
    assert "model.pt2 exists" in one_line(lambda: export(Judge(run, CPU), "", path, "torch"))
    assert path.read_bytes() == b""
    with pytest.raises(UserError, match="knows no normal pictures"):
        Judge(make_run(tmp_path / "bare"), CPU)


def test_a_file_that_judges_otherwise_is_not_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = torch.export.load

    class Other:
        def __init__(self, path: Path) -> None:
            self.module = lambda: lambda x: [2 * one for one in load(path).module()(x)]

    monkeypatch.setattr(torch.export, "load", Other)
    with pytest.raises(UserError, match="gives other scores than the run"):
        export(Judge(run, CPU), "parts", tmp_path / "model.pt2", "torch")
    assert list(tmp_path.iterdir()) == []


# run_onnx.py


def test_pictures_are_judged_without_pytorch(run: Path, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    save_picture(parts / "a.png", 31, spot=12)
    save_picture(parts / "b.png", 32)
    wide = np.random.default_rng(3).integers(90, 130, (20, 50, 4), dtype=np.uint8)
    Image.fromarray(wide, "RGBA").save(parts / "c.png")
    deep = np.random.default_rng(4).integers(90, 130, (40, 40), dtype=np.uint16)
    Image.fromarray(256 * deep).save(parts / "d.png")
    (parts / "e.png").write_bytes(b"no picture")
    export(Judge(run, CPU), "parts", tmp_path / "model.onnx", "onnx")
    predict(
        Judge(run, CPU), find_pictures([str(parts)], tmp_path), tmp_path / "out", heatmaps=False
    )
    command = [sys.executable, run_onnx.__file__, str(tmp_path / "model.onnx")]
    names = [str(path) for path in sorted(parts.iterdir())]
    done = subprocess.run([*command, *names], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "skipped" in done.stderr
    assert "e.png" in done.stderr
    said = [line.split("\t") for line in done.stdout.splitlines()]
    rows = table(tmp_path / "out" / "predictions.csv")
    for (score, p, verdict, name), row in zip(said, rows, strict=True):
        assert Path(name).name == row["path"]
        assert float(score) == pytest.approx(float(row["score"]), rel=1e-4, abs=1e-4)
        assert float(p) == pytest.approx(float(row["p"]), abs=1e-4)
        assert verdict == row["verdict"]


def test_the_script_for_exported_runs_needs_little() -> None:
    tree = ast.parse(Path(run_onnx.__file__).read_text(encoding="utf-8"))
    names = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert names == {"sys", "numpy", "onnxruntime", "PIL"}
