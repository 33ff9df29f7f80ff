"""Cases kept in files: the same numbers as from memory, whatever happens to the files."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import pickle
import resource
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, MetaTensor
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    Invertd,
    Lambdad,
    LoadImaged,
    NormalizeIntensityd,
    Orientationd,
    RandGaussianNoised,
    Transform,
)
from monai.utils import TraceKeys

from scripts.data import LoadLabeld, Prepared, SeededCacheDataset, dataset, prepared, room
from scripts.data.prepared import HeldCase
from scripts.errors import CaseError, InputError
from scripts.transforms import (
    BorderWeightsd,
    CountClassesd,
    IsolatedSpacingd,
    LabelsToClassesd,
    RandSpatialPatchd,
)

LABELS = {"background": 0, "organ": 3, "far": 300}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The others are not there after a fork, and would be waited for."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def cases(tmp_path: Path) -> list[dict[str, Any]]:
    """Oblique volumes, stored with the left side last, and their labels."""
    generator = np.random.default_rng(0)
    affine = np.array([[-1.5, 0.1, 0, 5], [0.1, 1.2, 0, -3], [0, 0, 2.0, 1], [0, 0, 0, 1]])
    made = []
    for name in ("Smith", "Jones", "Brown"):
        image = generator.normal(100, 20, (14, 13, 9)).astype(np.float32)
        label = generator.choice([0, 3, 300], image.shape).astype(np.int16)
        case = {
            "case": name,
            "image": f"{tmp_path}/{name}.nii.gz",
            "label": f"{tmp_path}/{name}_label.nii.gz",
        }
        for key, values in (("image", image), ("label", label)):
            nib.save(nib.Nifti1Image(values, affine), case[key])  # type: ignore[attr-defined]
        made.append(case)
    return made


def steps(spacing: float = 1.0) -> list[Transform]:
    """Deterministic transforms, as train.json and border_weights.json have them."""
    both = ("image", "label")
    return [
        LoadImaged("image", reader="scripts.data.ImageReader"),
        EnsureChannelFirstd("image"),
        LoadLabeld("label", LABELS),
        Orientationd(both, axcodes="RAS", labels=None),
        IsolatedSpacingd(both, pixdim=[spacing] * 3, mode=("bilinear", "nearest")),
        LabelsToClassesd("label", LABELS),
        BorderWeightsd("label"),
        NormalizeIntensityd("image", channel_wise=True),
        CountClassesd("label"),
    ]


def patch() -> RandSpatialPatchd:
    return RandSpatialPatchd(
        ("image", "label", "weight"),
        ("bilinear", "nearest", "weight"),
        (6, 5, 4),
        foreground_prob=0.5,
        affine_prob=0.5,
        rotate_range=0.3,
        elastic_prob=0.3,
        elastic_std=1.0,
    )


def made(
    cases: list[dict[str, Any]], folder: Path | None, *random: Any, rate: float = 1.0, **ids: Any
) -> SeededCacheDataset:
    """A data set that keeps its cases in a folder, or in memory."""
    kept = Prepared(**{"cache_gb": 1.0 if folder else 0.0, "cache_dir": str(folder), **ids})
    after = random or (patch(), RandGaussianNoised("image", prob=0.5))
    return SeededCacheDataset(cases, Compose([*steps(), *after]), seed=4, cache_rate=rate, prepared=kept)


def files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def assert_same(one: Any, other: Any) -> None:
    """Bit by bit the same, with types and meta data, but for the places of transforms in a process."""
    assert type(one) is type(other) or (isinstance(one, str) and isinstance(other, str))
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert np.array_equal(one.numpy(), other.numpy(), equal_nan=True)
        if isinstance(one, MetaTensor) and isinstance(other, MetaTensor):
            assert_same(dict(one.meta), dict(other.meta))
            assert_same(list(one.applied_operations), list(other.applied_operations))
    elif isinstance(one, np.ndarray | np.generic):
        assert one.dtype == other.dtype
        assert np.array_equal(one, other, equal_nan=True)
    elif isinstance(one, dict):
        assert list(map(str, one)) == list(map(str, other))
        for key in one:
            if key != TraceKeys.ID:
                assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        for pair in zip(one, other, strict=True):
            assert_same(*pair)
    else:
        assert one == other or (one != one and other != other)


def samples(data: SeededCacheDataset, count: int = 9) -> list[dict[str, Any]]:
    return [data[index] for index in range(count)]


def assert_same_samples(one: SeededCacheDataset, other: SeededCacheDataset) -> None:
    for pair in zip(samples(one), samples(other), strict=True):
        for key in ("image", "label", "weight"):
            assert pair[0][key].dtype == pair[1][key].dtype
            assert torch.equal(pair[0][key], pair[1][key])


@pytest.mark.parametrize("rate", [1.0, 0.0])
@pytest.mark.parametrize("random", [(), (RandGaussianNoised("image", prob=1.0), patch())])
def test_samples_from_memory_fresh_files_and_old_files_are_the_same(
    cases: Any, tmp_path: Path, rate: float, random: Any
) -> None:
    memory = made(cases, None, *random)
    fresh = made(cases, tmp_path / "kept", *random, rate=rate)
    assert_same_samples(memory, fresh)
    written = files(tmp_path / "kept")
    assert len(written) == len(cases)
    old = made(cases, tmp_path / "kept", *random, rate=rate)
    assert_same_samples(memory, old)
    assert files(tmp_path / "kept") == written
    assert all(held.mapped for held in old._cache)
    assert not any(held.mapped for held in memory._cache)


def test_a_case_comes_back_with_types_affine_and_operations(cases: Any, tmp_path: Path) -> None:
    transforms = Compose(steps())
    expected = transforms(cases[0])
    for _ in range(2):  # written, and read
        data = SeededCacheDataset(cases, transforms, prepared=Prepared(1.0, str(tmp_path / "kept")))
        found = data[0]
        assert_same(expected, found)
        assert data._cache[0].mapped
        assert data._cache[0].item["label"].dtype == torch.uint8
        assert data._cache[0].item["weight"].dtype == torch.float32
        invert = Invertd("image", transforms)
        assert_same(invert(dict(expected))["image"].as_tensor(), invert(dict(found))["image"].as_tensor())


def test_a_training_that_changes_what_it_gets_changes_no_file(cases: Any, tmp_path: Path) -> None:
    def spoil(item: dict[str, Any]) -> dict[str, Any]:
        for key in ("image", "label", "weight"):
            item[key] *= 0
        return item

    samples(made(cases, tmp_path / "kept", spoil))
    assert samples(made(cases, tmp_path / "kept", spoil))[0]["image"].abs().max() == 0
    plain = SeededCacheDataset(cases, Compose(steps()), prepared=Prepared(1.0, str(tmp_path / "kept")))
    plain[0]["image"] *= 0  # mapped: in this process alone
    again = SeededCacheDataset(cases, Compose(steps()), prepared=Prepared(1.0, str(tmp_path / "kept")))
    assert_same(Compose(steps())(cases[0])["image"].as_tensor(), again[0]["image"].as_tensor())


@pytest.mark.parametrize(
    ("values", "dtype", "held"),
    [
        ([0, 255], torch.int32, torch.uint8),
        ([-1, 4], torch.int64, torch.int8),
        ([0, 256], torch.int32, torch.int16),
        ([0, 40000], torch.int64, torch.int32),
        ([0, 1 << 40], torch.int64, torch.int64),
        ([-5, 300], torch.int16, torch.int16),
        ([0.0, 1.0], torch.float32, torch.float32),
        ([], torch.int32, torch.int32),
    ],
)
def test_labels_are_held_in_the_smallest_type(values: list[int], dtype: Any, held: Any) -> None:
    label = torch.tensor(values, dtype=dtype)
    case = HeldCase.of({"label": label, "more": MetaTensor(label)})
    assert case.item["label"].dtype == case.item["more"].dtype == held
    for key, value in case.whole().items():
        assert value.dtype == dtype
        assert torch.equal(value, label)
        assert torch.equal(case.copy(["label"])[key], label)


def test_float16_rounds_the_image_alone_wherever_the_case_lies(cases: Any, tmp_path: Path) -> None:
    exact = made(cases, None)
    memory = made(cases, None, cache_dtype="float16")
    for _ in range(2):
        assert_same_samples(memory, made(cases, tmp_path / "kept", cache_dtype="float16"))
    for one, other in zip(samples(exact), samples(memory), strict=True):
        assert other["image"].dtype == torch.float32
        assert torch.allclose(one["image"], other["image"], rtol=2**-10, atol=2**-9)
        assert not torch.equal(one["image"], other["image"])
        assert torch.equal(one["label"], other["label"])
        assert torch.equal(one["weight"], other["weight"])
    bright = torch.tensor([0.1, 65520.0, torch.inf])
    assert HeldCase.of({"image": bright}, torch.float16).item["image"] is bright
    assert HeldCase.of({"image": bright[::2]}, torch.float16).item["image"].dtype == torch.float16


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def garble(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[:60] + b"X" * 40 + content[100:])


def another(file: Path) -> None:
    """A sound file of other content."""
    prepared.save_file({"weight": torch.zeros(3)}, file)


@pytest.mark.parametrize("spoil", [truncate, empty, garble, another])
def test_a_damaged_file_is_made_anew(
    cases: Any, tmp_path: Path, spoil: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    made(cases, tmp_path / "kept").fill()
    victim = files(tmp_path / "kept")[1]
    spoil(victim)
    assert_same_samples(made(cases, None), made(cases, tmp_path / "kept"))
    again = made(cases, tmp_path / "kept")
    with caplog.at_level(logging.INFO):
        caplog.clear()
        again.fill()
    assert "damaged" not in caplog.text
    assert len(files(tmp_path / "kept")) == len(cases)


def test_what_a_killed_process_left_is_no_case(cases: Any, tmp_path: Path) -> None:
    def die(tensors: Any, place: Path, **_: Any) -> None:
        Path(place).write_bytes(b"half")
        os._exit(9)

    def train() -> None:
        prepared.save_file = die  # type: ignore[assignment]
        made(cases, tmp_path / "kept").fill()

    child = multiprocessing.get_context("fork").Process(target=train)
    child.start()
    child.join()
    assert child.exitcode == 9
    assert [file.read_bytes() for file in files(tmp_path / "kept")] == [b"half"]
    assert_same_samples(made(cases, None), made(cases, tmp_path / "kept"))
    assert not any(file.read_bytes() == b"half" for file in files(tmp_path / "kept"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_disk_that_takes_no_more_is_told_once(
    cases: Any,
    tmp_path: Path,
    number: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    save, written = prepared.save_file, []

    def full(tensors: Any, place: Path, **settings: Any) -> None:
        if written:
            raise OSError(number, os.strerror(number), str(place))
        written.append(place)
        save(tensors, place, **settings)

    monkeypatch.setattr(prepared, "save_file", full)
    data = made(cases, tmp_path / "kept")
    with caplog.at_level(logging.WARNING):
        assert_same_samples(made(cases, None), data)
    assert [held.mapped for held in data._cache].count(True) == 1
    assert len(files(tmp_path / "kept")) == 1
    (said,) = [record.getMessage() for record in caplog.records if "held in memory" in record.getMessage()]
    assert str(tmp_path / "kept") in said


def test_a_disk_that_is_full_in_the_middle_of_a_file(cases: Any, tmp_path: Path) -> None:
    """As far as a limit of the system on files stands for it."""

    def train() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        data = made(cases, tmp_path / "kept")
        assert_same_samples(made(cases, None), data)
        assert not any(held.mapped for held in data._cache)
        os._exit(3)

    child = multiprocessing.get_context("fork").Process(target=train)
    child.start()
    child.join()
    assert child.exitcode == 3
    assert files(tmp_path / "kept") == []


def test_a_place_that_is_no_folder_stops_no_training(
    cases: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "kept").write_text("something else")
    assert_same_samples(made(cases, None), made(cases, tmp_path / "kept"))
    assert caplog.text.count("held in memory") == 1


def test_changed_files_settings_and_code_are_other_cases(
    cases: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def count(**ids: Any) -> int:
        made(cases, tmp_path / "kept", **ids).fill()
        return len(files(tmp_path / "kept"))

    assert count() == count() == 3
    with monkeypatch.context() as patched:
        patched.setattr(prepared, "sha256", lambda file: "other code")
        assert count() == 6
    with monkeypatch.context() as patched:
        patched.setattr(torch, "get_num_threads", lambda: 77)
        assert count() == 9
    assert count(cache_dtype="float16") == 12
    label = Path(cases[1]["label"])
    os.utime(label, ns=(0, label.stat().st_mtime_ns + 1))
    assert count() == 13
    Path(cases[1]["image"]).touch()
    assert count() == 14
    wide = Compose([*steps(2.0), patch()])
    SeededCacheDataset(cases, wide, prepared=Prepared(1.0, str(tmp_path / "kept"))).fill()
    assert len(files(tmp_path / "kept")) == 17


def test_random_transforms_are_never_kept(cases: Any, tmp_path: Path) -> None:
    made(cases, tmp_path / "kept", RandGaussianNoised("image", prob=1.0, std=9.0)).fill()
    before = files(tmp_path / "kept")
    other = made(cases, tmp_path / "kept")
    other.fill()
    assert files(tmp_path / "kept") == before
    assert_same(Compose(steps())(cases[0])["image"].as_tensor(), other._cache[0].whole()["image"].as_tensor())


def test_what_cannot_be_told_apart_is_not_kept(
    cases: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    transforms = Compose([*steps(), Lambdad("image", lambda image: image + 1)])
    with caplog.at_level(logging.INFO):
        data = SeededCacheDataset(cases, transforms, prepared=Prepared(1.0, str(tmp_path / "kept")))
    data.fill()
    assert "not kept on disk, as the transforms hold" in caplog.text
    assert not (tmp_path / "kept").exists()
    assert not any(held.mapped for held in data._cache)


def test_the_longest_unused_go_first_and_none_that_is_in_use(
    cases: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "kept"
    made(cases, folder).fill()
    size = max(file.stat().st_size for file in files(folder))
    before = files(folder)
    for age, file in enumerate(before):
        os.utime(file, (time.time() - 1000 * (age + 1),) * 2)  # the last one is the oldest
    room_for_four = {"cache_gb": 4.5 * size / 1e9}
    made(cases[:1], folder, cache_dtype="float16", **room_for_four).fill()
    assert len(files(folder)) == 4
    made(cases[1:2], folder, cache_dtype="float16", **room_for_four).fill()
    assert [file for file in before if file not in files(folder)] == before[-1:]
    small = made(cases, folder, cache_gb=1.5 * size / 1e9)
    assert_same_samples(made(cases, None), small)
    assert caplog.text.count("cache_gb is") == 1
    assert sum(held.mapped for held in small._cache) < len(cases)


def test_half_of_a_free_disk_is_left(cases: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = made(cases, tmp_path / "kept")
    data[0]
    size = files(tmp_path / "kept")[0].stat().st_size
    monkeypatch.setattr(prepared, "free_bytes", lambda folder: 2.5 * size)
    tight = made(cases, tmp_path / "kept")
    assert tight.prepared.limit() == pytest.approx(0.5 * 3.5 * size)
    tight.fill()
    assert sum(held.mapped for held in tight._cache) == 1


def test_the_user_alone_sees_them_and_no_name_names_a_patient(cases: Any, tmp_path: Path) -> None:
    made(cases, tmp_path / "a" / "kept").fill()
    assert stat.S_IMODE((tmp_path / "a" / "kept").stat().st_mode) == 0o700
    for file in files(tmp_path / "a" / "kept"):
        assert not any(case["case"].lower() in str(file.relative_to(tmp_path)).lower() for case in cases)


def test_two_trainings_prepare_the_same_cases_at_once(cases: Any, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    children = [
        context.Process(target=lambda: made(cases, tmp_path / "kept").fill(), daemon=True) for _ in range(3)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert len(files(tmp_path / "kept")) == len(cases)
    assert_same_samples(made(cases, None), made(cases, tmp_path / "kept"))


def test_other_processes_map_them_too(cases: Any, tmp_path: Path) -> None:
    data = made(cases, tmp_path / "kept")
    copied = pickle.loads(pickle.dumps(data))
    assert copied._cache == [None] * 3
    assert_same_samples(data, copied)
    batches = list(DataLoader(made(cases, tmp_path / "kept", rate=0.0), num_workers=1, batch_size=1))
    for index, batch in enumerate(batches):
        assert torch.equal(batch["image"][0], data[index]["image"])


def test_a_file_that_vanishes_or_changes_is_told(cases: Any, tmp_path: Path) -> None:
    made(cases, tmp_path / "kept").fill()
    data = made(cases, tmp_path / "kept", rate=0.0)
    Path(cases[0]["image"]).unlink()
    with pytest.raises(CaseError, match=r"Smith\.nii\.gz: found no such file"):
        data[0]
    os.utime(cases[1]["image"], ns=(0, 0))
    with pytest.raises(CaseError, match=r"Jones\.nii\.gz: found a file that was changed since"):
        data[1]


def test_more_cases_than_memory_train_from_files(
    cases: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [{**case, "case": f"{case['case']}{turn}"} for turn in range(4) for case in cases]
    expected = made(cases, None)
    monkeypatch.setattr(room, "available_memory", lambda: 400_000.0)
    with pytest.raises(InputError, match=r"cache_rate is 1\.0: 12 cases take .* of memory are there; set"):
        made(cases, None)
    data = made(cases, tmp_path / "kept")
    data.fill()
    assert_same_samples(expected, data)
    assert all(held.mapped for held in data._cache)
    # and where the disk turns out to be full, what has no room in memory is prepared for each draw
    monkeypatch.setattr(dataset, "available_memory", lambda: 0.0)
    full = made(cases, tmp_path / "other")
    full.spared = 1.0
    full.prepared.closed[0] = True
    assert_same_samples(expected, full)
    assert full._cache == [None] * 12
    assert [full.load_next() for _ in range(13)] == [*[True] * 12, False]
