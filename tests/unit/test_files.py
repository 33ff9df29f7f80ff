"""A file is whole or not there at all."""

from __future__ import annotations

import pytest

from scripts.files import written_whole


def test_writes_the_file_and_makes_its_folder(tmp_path):
    path = tmp_path / "new" / "folder" / "table.csv"
    with written_whole(path) as beside:
        beside.write_text("done")
        assert not path.exists()
        assert beside.parent == path.parent
    assert path.read_text() == "done"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("name", ["scan.nii.gz", "weights.pt", "noextension"])
def test_name_beside_is_hidden_and_keeps_the_suffixes(tmp_path, name):
    with written_whole(str(tmp_path / name)) as beside:
        beside.touch()
    assert beside.name.startswith(".")
    assert beside.name.endswith(name)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("old", ["what was there before", None])
def test_failure_leaves_what_was_there_before(tmp_path, error, old):
    path = tmp_path / "model.pt"
    if old is not None:
        path.write_text(old)

    def write() -> None:
        with written_whole(path) as beside:
            beside.write_text("half of it")
            raise error("power cut")

    with pytest.raises(error, match="power"):
        write()
    assert [p.name for p in tmp_path.iterdir()] == ([] if old is None else ["model.pt"])
    assert old is None or path.read_text() == old


def test_a_body_that_writes_nothing_is_an_error_and_changes_nothing(tmp_path):
    path = tmp_path / "summary.json"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), written_whole(path):
        pass
    assert path.read_text() == "old"


def test_replaces_the_file_only_at_the_end(tmp_path):
    path = tmp_path / "summary.json"
    path.write_text("old")
    with written_whole(path) as beside:
        beside.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
