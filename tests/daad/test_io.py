import pytest

from daad.io import clear_strays, write_atomically, write_csv, write_json


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text("old")

    def fail(temporary):
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_temporary_name_keeps_the_suffix_and_folders_are_made(tmp_path):
    seen = []
    write_atomically(tmp_path / "a" / "b.png", lambda path: seen.append(path) or path.touch())
    assert seen[0].suffix == ".png"
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b.png"]


def test_text_formats(tmp_path):
    write_csv(tmp_path / "t.csv", ("name", "score"), [("a,b", 0.1), ("c", None)])
    assert (tmp_path / "t.csv").read_text() == 'name,score\n"a,b",0.1\nc,\n'
    write_json(tmp_path / "t.json", {"ä": None})
    assert (tmp_path / "t.json").read_text() == '{\n  "\\u00e4": null\n}\n'


def test_strays_of_killed_processes_are_cleared_and_nothing_else(tmp_path):
    strays = [tmp_path / ".123.456.ckpt", tmp_path / "figures" / ".1.2.png", tmp_path / ".7.8"]
    others = [tmp_path / name for name in (".gitignore", ".123.txt", "123.456.ckpt", ".a.1.ckpt")]
    (tmp_path / "figures").mkdir()
    for path in strays + others:
        path.touch()
    clear_strays(tmp_path)
    assert not any(path.exists() for path in strays)
    assert all(path.exists() for path in others)
