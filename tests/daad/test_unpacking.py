"""CUHK Avenue as it is published, made into frames and labels."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from daad import unpacking
from daad.unpacking import read_frames, unpack
from daad.video import load_video
from tests.helpers.picture_files import one_line

LENGTHS = {"training_videos/01": 3, "testing_videos/01": 4, "testing_videos/02": 2}


def frames_of(path: Path) -> Iterator[Image.Image]:
    """In place of a decoder: as many gray frames as the file's text says."""
    for index in range(int(path.read_text())):
        yield Image.new("RGB", (40, 30), (40 * index,) * 3)


def save_labels(folder: Path, name: str, labels: list[int]) -> None:
    volume = np.empty((1, len(labels)), dtype=object)
    for frame, label in enumerate(labels):
        volume[0, frame] = np.zeros((30, 40), np.uint8)
        volume[0, frame][3, 4] = label
    folder.mkdir(parents=True, exist_ok=True)
    savemat(folder / f"{name}_label.mat", {"volLabel": volume})


@pytest.fixture
def avenue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    source = tmp_path / "Avenue Dataset"
    for name, count in LENGTHS.items():
        path = source / f"{name}.avi"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(count))
    labels = tmp_path / "Avenue Dataset" / "ground_truth_demo" / "testing_label_mask"
    save_labels(labels, "1", [0, 1, 1, 0])
    save_labels(labels, "2", [0, 0])
    monkeypatch.setattr(unpacking, "read_frames", frames_of)
    return source


def test_videos_become_clips_with_labels(avenue: Path, tmp_path: Path) -> None:
    counts = unpack(avenue, tmp_path / "avenue")
    assert counts == {f"{name}.avi": count for name, count in LENGTHS.items()}
    video = load_video(tmp_path / "avenue")
    assert [len(clip.frames) for clip in video.train] == [3]
    assert {clip.name: len(clip.frames) for clip in video.test} == {"01": 4, "02": 2}
    assert [one.tolist() for one in video.labels] == [[False, True, True, False], [False] * 2]
    with Image.open(video.test[0].frames[2]) as image:
        assert image.size == (40, 30)
        assert abs(np.asarray(image).mean() - 80) < 2


def test_what_does_not_fit_leaves_nothing(avenue: Path, tmp_path: Path) -> None:
    out = tmp_path / "avenue"
    save_labels(avenue / "ground_truth_demo" / "testing_label_mask", "2", [0, 0, 1])
    assert "3 masks, and 02.avi has 2 frames" in one_line(lambda: unpack(avenue, out))
    labels = next(avenue.rglob("2_label.mat"))
    labels.write_bytes(b"no labels")
    assert "2_label.mat: cannot be read" in one_line(lambda: unpack(avenue, out))
    labels.unlink()
    assert "no 2_label.mat" in one_line(lambda: unpack(avenue, out))
    assert "no .avi files" in one_line(lambda: unpack(tmp_path, out))
    assert [path.name for path in tmp_path.iterdir()] == ["Avenue Dataset"]
    out.mkdir()
    assert "exists" in one_line(lambda: unpack(avenue, out))


def test_a_video_is_decoded(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    path = tmp_path / "01.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(5):
            picture = Image.new("RGB", (64, 48), (50 * index,) * 3)
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode(None))
    frames = list(read_frames(path))
    assert [frame.size for frame in frames] == [(64, 48)] * 5
    means = [np.asarray(frame).mean() for frame in frames]
    assert np.abs(np.array(means) - 50 * np.arange(5)).max() < 8
    path.write_bytes(b"no video")
    assert "cannot be read as a video" in one_line(lambda: list(read_frames(path)))
