"""Video on disk: which clips and frames are found, whose labels they get, and what is refused."""

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from daad.form import Form
from daad.frames import excerpts
from daad.io import UserError
from daad.pictures import PictureFiles
from daad.video import LAYOUTS, all_frames, list_clips, load_labels, load_video
from tests.helpers.video_clips import make_clip, make_masks, make_video, save_frame

REAL = Path(os.environ.get("BLOCKMEM_DATA", Path(__file__).parents[3] / "shared" / "data"))
TRAINING, TESTING = LAYOUTS[0]
LENGTHS = {"01": 3, "02": 2}
LABELS = [[0, 1, 1], [0, 0]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_video(tmp_path / "ped", LENGTHS)


def labels_of(root: Path, source: Path | None = None) -> list[list[int]]:
    return [values.int().tolist() for values in load_video(root, source).labels]


# Clips and frames


def test_clips_and_frames_are_in_natural_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / TRAINING
    for name in ("10", "9", "2"):
        make_clip(folder / name, 11)
    listed = Path.iterdir

    def shuffled(path: Path) -> list[Path]:
        return random.Random(0).sample(paths := list(listed(path)), len(paths))

    monkeypatch.setattr(Path, "iterdir", shuffled)
    clips = list_clips(tmp_path, TRAINING)
    assert [clip.name for clip in clips] == ["2", "9", "10"]
    assert [path.stem for path in clips[0].frames] == [str(frame) for frame in range(11)]
    assert [path.parent.name for path in all_frames(clips)] == ["2"] * 11 + ["9"] * 11 + ["10"] * 11


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".bmp"])
def test_frames_of_each_format_are_read(tmp_path: Path, suffix: str) -> None:
    make_clip(tmp_path / TRAINING / "01", 2, suffix)
    (clip,) = list_clips(tmp_path, TRAINING)
    x = PictureFiles(clip.frames, Form(32)).batch(torch.tensor([1]), "cpu")
    # inside the square, and outside of it in a corner; JPEG rings at the square's edges
    assert ((x[0, :, 5, 5] + 1) * 127.5).tolist() == pytest.approx([200] * 3, abs=20)
    assert ((x[0, :, 31, 0] + 1) * 127.5).tolist() == pytest.approx([65] * 3, abs=3)


def test_what_is_no_clip_is_passed_over(root: Path) -> None:
    make_masks(root / TESTING / "01_gt", [0, 1, 1])
    make_masks(root / TESTING / "02_gt", [0, 0])
    (root / TESTING / ".cache").mkdir()
    (root / TESTING / "notes.txt").write_text("no clip")
    (root / TESTING / "01" / "._0.png").write_text("no frame")
    video = load_video(root)
    assert {clip.name: len(clip.frames) for clip in video.test} == LENGTHS
    assert [len(clip.frames) for clip in video.train] == [4, 4]
    assert video.name == "ped"


def test_a_video_has_the_name_it_is_given(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results are filed under it, so that of a link counts, not that of what it leads to."""
    make_masks(root / TESTING / "01_gt", [0, 1, 1])
    make_masks(root / TESTING / "02_gt", [0, 0])
    (tmp_path / "ped2").symlink_to(root)
    assert load_video(tmp_path / "ped2").name == "ped2"
    monkeypatch.chdir(root)
    assert load_video(Path(".")).name == "ped"


def test_an_excerpt_is_its_clip(root: Path) -> None:
    clips = list_clips(root, TESTING)
    for seed, path in enumerate(all_frames(clips)):
        save_frame(path, position=seed, side=4)  # no two frames alike
    pictures = PictureFiles(all_frames(clips), Form(32))
    parts = list(excerpts(pictures, [3, 2]))
    assert [len(part) for part in parts] == [3, 2]
    alone = PictureFiles(clips[1].frames, Form(32))
    for index in range(2):
        chosen = torch.tensor([index])
        got = parts[1].batch(chosen, torch.device("cpu"))
        assert torch.equal(got, alone.batch(chosen, "cpu"))


def test_clips_that_are_missing_are_named(tmp_path: Path, root: Path) -> None:
    with pytest.raises(UserError, match=r"none/training/frames: no clips; expected .*CLIP"):
        load_video(tmp_path / "none")
    (root / TESTING / "03").mkdir()
    with pytest.raises(UserError, match="testing/frames/03: no frames"):
        load_video(root)


# Labels


def test_labels_of_a_npz_go_to_the_clip_of_their_name(root: Path) -> None:
    # in another order, one as bool, and one of a clip that is not there
    arrays: dict[str, Any] = {"02": np.zeros(2, bool), "01": np.array([0, 1, 1]), "07": np.ones(9)}
    np.savez(root / "frame_labels.npz", **arrays)
    assert labels_of(root) == LABELS
    assert load_video(root).label_source == root / "frame_labels.npz"


@pytest.mark.parametrize("shape", [(5,), (1, 5), (5, 1)])
def test_labels_of_a_npy_are_cut_by_clip(root: Path, shape: tuple[int, ...]) -> None:
    np.save(root / "frame_labels.npy", np.array([0.0, 1, 1, 0, 0]).reshape(shape))
    assert labels_of(root) == LABELS


def test_labels_may_be_named_for_the_video_as_mnad_does(root: Path) -> None:
    np.save(root / f"frame_labels_{root.name}.npy", np.array([0, 1, 1, 0, 0]))
    assert labels_of(root) == LABELS


def test_ucsd_is_taken_as_it_was_published(tmp_path: Path) -> None:
    """Train/Train001/001.tif, Test/Test001/001.tif and its masks Test/Test001_gt/001.bmp."""
    root = tmp_path / "UCSDped2"
    make_clip(root / "Train" / "Train001", 4, ".tif")
    make_clip(root / "Test" / "Test001", 3, ".tif")
    make_masks(root / "Test" / "Test001_gt", [0, 1, 0])
    make_clip(root / "Test" / "Test002", 2, ".tif")
    make_masks(root / "Test" / "Test002_gt", [1, 1])
    video = load_video(root)
    assert [clip.name for clip in video.train] == ["Train001"]
    assert [clip.name for clip in video.test] == ["Test001", "Test002"]
    assert [labels.tolist() for labels in video.labels] == [[False, True, False], [True, True]]


@pytest.mark.parametrize("suffix", [".bmp", ".png"])
def test_labels_of_masks_are_whether_any_pixel_is_set(root: Path, suffix: str) -> None:
    for name, labels in zip(LENGTHS, LABELS, strict=True):
        make_masks(root / TESTING / f"{name}_gt", labels, suffix)
    assert labels_of(root) == LABELS


def test_labels_may_lie_elsewhere_and_a_file_goes_before_masks(tmp_path: Path, root: Path) -> None:
    for name, labels in zip(LENGTHS, LABELS, strict=True):
        make_masks(tmp_path / "masks" / f"{name}_gt", labels)
        make_masks(root / TESTING / f"{name}_gt", [1 - label for label in labels])
    assert labels_of(root, tmp_path / "masks") == LABELS
    np.save(tmp_path / "frame_labels_ped2.npy", np.array([[1, 0, 0, 0, 0]]))
    assert labels_of(root, tmp_path / "frame_labels_ped2.npy") == [[1, 0, 0], [0, 0]]
    np.savez(root / "frame_labels.npz", **{"01": [0, 0, 1], "02": [0, 1]})
    assert labels_of(root) == [[0, 0, 1], [0, 1]]


def refuse(root: Path, content: Any, *texts: str, name: str = "frame_labels.npz") -> None:
    path = root / name
    np.savez(path, **content) if name.endswith("z") else np.save(path, content)
    with pytest.raises(UserError) as error:
        load_video(root)
    for text in (name, *texts):
        assert text in str(error.value)
    path.unlink()


def test_labels_that_do_not_fit_are_refused(root: Path) -> None:
    good = {"01": [0, 1, 1], "02": [0, 0]}
    refuse(root, {"01": [0, 1, 1], "2": [0, 0]}, "no labels of clip 02", "01, 2")
    refuse(root, good | {"02": [0] * 4}, "clip 02 has 2 frames", "2 labels are expected", "4 were")
    refuse(root, good | {"01": [0, 1, 2]}, "clip 01 holds 0, 1, 2", "expected 0")
    refuse(root, good | {"01": [0, np.nan, 1]}, "clip 01 holds 0.0, 1.0, nan")
    refuse(root, good | {"01": ["a", "b", "c"]}, "clip 01 holds a, b, c")
    refuse(root, good | {"01": np.zeros((3, 2))}, "clip 01 has shape (3, 2)", "(T,)")
    refuse(root, good | {"01": [0, 0, 0]}, "all 5 test frames are normal")
    refuse(root, {"01": [1] * 3, "02": [1] * 2}, "all 5 test frames are abnormal")
    short = [0, 1, 1, 0]
    refuse(root, short, "5 labels", "01 has 3, 02 has 2", "4 were found", name="frame_labels.npy")
    refuse(root, [0, 1, 1, 0, 7], "the array holds 0, 1, 7", name="frame_labels.npy")


def test_masks_that_do_not_fit_are_refused(root: Path) -> None:
    make_masks(root / TESTING / "01_gt", [0, 1, 1])
    with pytest.raises(UserError, match=r"02_gt: clip 02 has 2 frames.* 0 were found"):
        load_video(root)
    make_masks(root / TESTING / "02_gt", [0, 0, 0])
    with pytest.raises(UserError, match=r"02_gt: clip 02 has 2 frames, so 2 masks .* 3 were found"):
        load_video(root)
    (root / TESTING / "02_gt" / "2.bmp").unlink()
    (root / TESTING / "02_gt" / "1.bmp").write_bytes(b"BM")
    with pytest.raises(UserError, match=r"02_gt/1.bmp: cannot be read"):
        load_video(root)


def test_no_labels_and_no_readable_ones(root: Path) -> None:
    with pytest.raises(UserError, match=r"no labels of the test frames; .*npz or .*_gt.*--labels"):
        load_video(root)
    with pytest.raises(UserError, match=r"labels.mat: no labels of a known kind"):
        load_video(root, root / "labels.mat")
    with pytest.raises(UserError, match=r"none.npy: cannot be read as labels .*No such file"):
        load_video(root, root / "none.npy")
    for name, content in (("a.npz", b"PK\x03\x04"), ("b.npy", b""), ("c.npy", b"0,1,1,0,0")):
        (root / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name}: cannot be read as labels"):
            load_video(root, root / name)


def test_one_array_and_clips_of_unlike_digits_are_ambiguous(tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", np.array([0, 1]))
    with pytest.raises(UserError, match=r"clips 2, 10 have another order by their text"):
        load_labels(tmp_path / "labels.npy", {"2": 1, "10": 1})


# The real one


@pytest.mark.skipif(not (REAL / "ped2").is_dir(), reason=f"no UCSD Ped2 at {REAL}")
def test_real_ped2() -> None:
    video = load_video(REAL / "ped2")
    assert (len(video.train), len(video.test)) == (16, 12)
    assert (len(all_frames(video.train)), len(all_frames(video.test))) == (2550, 2010)
    assert [len(labels) for labels in video.labels] == [len(clip.frames) for clip in video.test]
    assert [len(labels) for labels in video.labels] == [
        *(180, 180, 150, 180, 150, 180, 180, 180, 120, 150, 180, 180)
    ]
    # clip 01: normal up to where the bicycle comes in; 08 to 11 are abnormal throughout
    assert video.labels[0].nonzero().flatten().tolist() == list(range(60, 180))
    assert [clip.name for clip, labels in zip(video.test, video.labels, strict=True)
            if labels.all()] == ["08", "09", "10", "11"]  # fmt: skip
