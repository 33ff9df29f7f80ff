"""A file is whole or not there at all."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from scripts.errors import InputError
from scripts.files import (
    atomic_write,
    atomic_writes,
    read_json,
    read_text,
    replace_folder,
    workshop,
)


def test_writes_the_file_and_makes_its_folder(tmp_path):
    path = tmp_path / "new" / "folder" / "table.csv"
    with atomic_write(path) as temporary:
        temporary.write_text("done")
        assert not path.exists()
        assert temporary.parent == path.parent
    assert path.read_text() == "done"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("name", ["scan.nii.gz", "weights.pt", "noextension"])
def test_name_beside_is_hidden_and_keeps_the_suffixes(tmp_path, name):
    with atomic_write(str(tmp_path / name)) as temporary:
        temporary.touch()
    assert temporary.name.startswith(".")
    assert temporary.name.endswith(name)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("old", ["what was there before", None])
def test_failure_leaves_what_was_there_before(tmp_path, error, old):
    path = tmp_path / "model.pt"
    if old is not None:
        path.write_text(old)

    def write() -> None:
        with atomic_write(path) as temporary:
            temporary.write_text("half of it")
            raise error("power cut")

    with pytest.raises(error, match="power"):
        write()
    assert [p.name for p in tmp_path.iterdir()] == ([] if old is None else ["model.pt"])
    assert old is None or path.read_text() == old


def test_a_body_that_writes_nothing_is_an_error_and_changes_nothing(tmp_path):
    path = tmp_path / "summary.json"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), atomic_write(path):
        pass
    assert path.read_text() == "old"


def test_replaces_the_file_only_at_the_end(tmp_path):
    path = tmp_path / "summary.json"
    path.write_text("old")
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_full_disk_is_one_sentence(tmp_path, number):
    path = tmp_path / "scores.csv"
    path.write_text("old")

    def write() -> None:
        with atomic_write(path):
            raise OSError(number, os.strerror(number))

    with pytest.raises(
        InputError, match=f"^{path} could not be written, as the disk of {tmp_path} is full: make"
    ):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_takes_no_files_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()

    def write() -> None:
        with atomic_write(tmp_path / "file" / "scores.csv"):
            pass

    with pytest.raises(
        InputError, match=r"scores\.csv could not be written \((Not a directory|File exists)\): correct"
    ):
        write()


def test_data_are_on_the_disk_before_the_name_and_the_name_before_it_returns(tmp_path, monkeypatch):
    path, done = tmp_path / "model.pt", []
    sync, replace = os.fsync, os.replace

    def synced(number: int) -> None:
        done.append(Path(os.readlink(f"/proc/self/fd/{number}")).name)
        sync(number)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("rename"), replace(*names)))
    with atomic_write(path) as temporary:
        temporary.write_text("new")
    assert done == [temporary.name, "rename", tmp_path.name]


def test_files_that_belong_together_are_all_there_or_none(tmp_path, monkeypatch):
    """The disk is full when the second is brought to it."""
    paths = [tmp_path / name for name in ("a", "b", "c")]
    for path in paths:
        path.write_text("old")
    calls, sync = [], os.fsync

    def full(number: int) -> None:
        calls.append(number)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "no room")
        sync(number)

    def write() -> None:
        with atomic_writes(*paths) as temporaries:
            for temporary in temporaries:
                temporary.write_text("new")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(InputError, match="is full"):
            write()
    assert sorted(tmp_path.iterdir()) == paths
    assert {path.read_text() for path in paths} == {"old"}
    write()
    assert {path.read_text() for path in paths} == {"new"}


def test_what_a_killed_process_left_goes_with_the_next_writing(tmp_path):
    """That of a living process, of another machine and of another file stays."""
    dead = subprocess.Popen(["true"])
    dead.wait()
    with atomic_write(tmp_path / "last.pt") as temporary:
        temporary.touch()
    host = temporary.name.partition("-")[0]
    kept = {f"{host}-{os.getppid()}.last.pt", f".00000000-{dead.pid}.last.pt", f"{host}-{dead.pid}.best.pt"}
    for name in (*kept, f"{host}-{dead.pid}.last.pt"):
        (tmp_path / name).touch()
    (tmp_path / f"{host}-{dead.pid}.abc.workshop").mkdir()
    with atomic_write(tmp_path / "last.pt") as temporary, workshop(tmp_path) as place:
        temporary.touch()
        (place / "half").touch()
    assert {file.name for file in tmp_path.iterdir()} == {*kept, "last.pt"}


def test_a_folder_is_put_in_the_place_of_another(tmp_path):
    (tmp_path / "package").mkdir()
    (tmp_path / "package/old").touch()
    with workshop(tmp_path) as place:
        (place / "made/sub").mkdir(parents=True)
        (place / "made/sub/new").touch()
        replace_folder(place / "made", tmp_path / "package")
    assert [file.name for file in tmp_path.rglob("*")] == ["package", "sub", "new"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MB."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", tmp_path], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.decode().strip()}")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def test_weights_on_a_full_disk_are_one_sentence(small_disk):
    (small_disk / "model.pt").write_text("old")

    def write() -> None:
        with atomic_write(small_disk / "model.pt") as temporary:
            torch.save({"weight": torch.zeros(1_000_000)}, temporary)

    with pytest.raises(InputError, match=r"model\.pt could not be written, as the disk of"):
        write()
    assert [file.name for file in small_disk.iterdir()] == ["model.pt"]
    assert (small_disk / "model.pt").read_text() == "old"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
def test_lists_in_the_encodings_that_editors_write(encoding, tmp_path):
    path = tmp_path / "list.json"
    text = '{"Ä": ["α"]}'
    path.write_bytes(("\ufeff" * (encoding == "utf-16-le") + text).encode(encoding))
    assert read_json(path) == {"Ä": ["α"]}
    assert read_text(path) == text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"Ä": 1}'.encode("latin-1"),
            r"list\.json is no text in UTF-8, from its byte 2 on; save it in this",
        ),
        (b'{"a": 1, "b": {"c": 2, "c": 3}}', r"list\.json cannot be read \(the key 'c' is there twice\)"),
        (b'{"a": 1,\n"b": [2,]}', r"list\.json cannot be read \(.*line 2 column \d"),
        (b'{"a": 1,\n}', r"list\.json cannot be read \(.*line \d column \d"),
        (b"[" * 100000, r"list\.json cannot be read \(maximum recursion"),
        (b"\xff\xfe{", r"list\.json is no text in UTF-8"),
        (b"", r"list\.json cannot be read \(Expecting value"),
    ],
)
def test_lists_that_are_none(content, message, tmp_path):
    path = tmp_path / "list.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_json(path)


@pytest.mark.parametrize("was_there", [False, True])
def test_a_workshop_leaves_no_empty_folder_that_it_made(was_there: bool, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    if was_there:
        folder.mkdir()
    with suppress(InputError), workshop(folder) as made:
        (made / "part").touch()
        raise InputError("refused")
    assert folder.exists() == was_there
    with workshop(folder):
        (folder / "result").touch()
    assert (folder / "result").is_file()
