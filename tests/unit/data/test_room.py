"""Cases that ask for more memory than there is are found by their headers, and nothing sound is refused."""

from __future__ import annotations

import dataclasses
import multiprocessing
import resource
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd, Spacingd
from PIL import Image

from scripts.data import CachedCases, SeededCacheDataset
from scripts.data import room as room_module
from scripts.data.room import Grids, Room, require_room, seen_grid
from scripts.errors import Fault, InputError
from scripts.process import available_memory, require_memory


def preprocessing(spacing: float = 1.0, *keys: str) -> Compose:
    names = keys or ("image",)
    return Compose(
        [
            LoadImaged(names),
            EnsureChannelFirstd(names),
            Orientationd(names, axcodes="RAS", labels=None),
            Spacingd(names, pixdim=[spacing] * 3),
        ]
    )


def volume(path: Path, edges: tuple[float, ...], shape: tuple[int, ...] = (6, 5, 4)) -> dict[str, Any]:
    nib.save(nib.Nifti1Image(np.ones(shape, np.float32), np.diag([*edges, 1.0])), path)
    return {"image": str(path), "case": path.name.split(".")[0]}


def sentence(case: dict[str, Any], spacing: float = 1.0, classes: int = 2) -> str:
    (problem,) = Room(preprocessing(spacing), classes).problems(case)
    assert problem.severity == "error"
    return problem.sentence()


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("spacing", [0.5, 1.3, 4.0])
def test_grid_is_that_of_the_transforms_themselves(axes: tuple[int, ...], spacing: float) -> None:
    affine = np.eye(4)
    affine[:3, :3] = np.diag([1.0, -2.0, 1.5])[:, list(axes)]
    image = MetaTensor(torch.rand(1, 7, 6, 5), affine=torch.from_numpy(affine))
    steps = preprocessing(spacing, "image", "label").transforms[2:]
    data: Any = {"image": image, "label": image}
    for step in steps:
        data = step(data)
    shape, seen = seen_grid((7, 6, 5), affine, steps)
    assert shape == tuple(data["image"].shape[1:])
    np.testing.assert_allclose(seen, data["image"].affine, atol=1e-9)


def test_voxels_of_100_mm_are_refused(tmp_path: Path) -> None:
    """6, 5 and 4 voxels of 100 mm become 501, 401 and 301 of 1 mm, by the centres of the outer ones."""
    said = sentence(volume(tmp_path / "a.nii.gz", (100, 100, 100)))
    assert said.startswith(f"{tmp_path / 'a.nii.gz'}: found voxels of 100 x 100 x 100 mm, ")
    assert "501 x 401 x 301 voxels of 1 x 1 x 1 mm where the network sees it" in said
    assert f"would become {501 * 401 * 301 / 120:.0f}; correct the voxel size in its header" in said


def test_axis_of_100_mm_is_not(tmp_path: Path) -> None:
    case = volume(tmp_path / "a.nii.gz", (1, 1, 100))
    assert Room(preprocessing(), 2).problems(case) == []


def test_image_that_shrinks_to_one_voxel_is_refused(tmp_path: Path) -> None:
    case = volume(tmp_path / "a.nii.gz", (0.01, 0.01, 0.01))
    assert "it has 1 x 1 x 1 voxels of 1 x 1 x 1 mm where the network sees it; a single" in sentence(case)
    (problem,) = Room(preprocessing(), 2).problems(volume(tmp_path / "b.nii.gz", (0.001, 1, 1)))
    assert problem.severity == "warning"
    assert "1 x 5 x 4 voxels" in problem.found


def test_memory_that_is_not_there_is_asked_for_in_no_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room_module, "available_memory", lambda: 1e6)
    case = volume(tmp_path / "a.nii.gz", (2, 2, 2), (20, 20, 20))
    seen = 39**3
    needed = seen * 56 + 12 * 8000  # where each voxel lies, and the file twice
    assert needed < Grids(1, (20,) * 3, (2.0,) * 3, (39,) * 3, (1.0,) * 3).bytes_to_segment(2) * 1.0001
    assert "39 x 39 x 39 voxels" in sentence(case)
    assert "its work takes 3.4 MB of memory, and 1.0 MB are there" in sentence(case)
    assert Room(preprocessing(2.0), 2).problems(case) == []


def test_a_header_that_cannot_be_read_is_the_matter_of_the_check(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "a.nii", "a.png", "a.txt"):
        (tmp_path / name).write_bytes(b"nothing")
        assert Room(preprocessing(), 2).problems({"image": str(tmp_path / name), "case": "a"}) == []
    assert Room(preprocessing(), 2).problems({"image": str(tmp_path / "none.nii"), "case": "a"}) == []
    Image.fromarray(np.zeros((5, 4), np.uint8)).save(tmp_path / "a.png")
    grids = Room(None, 2).grids({"image": [str(tmp_path / "a.png")] * 3, "case": "a"})
    assert grids == Grids(3, (4, 5), (1.0, 1.0), (4, 5), (1.0, 1.0))


def _peak(case: dict[str, Any], connection: Any) -> None:
    torch.set_num_threads(1)  # the others of the parent are not there after a fork, and would be waited for
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts anew
    before = _high()
    image = preprocessing(0.5)(case)["image"]
    connection.send((_high() - before, tuple(image.shape[1:])))


def _high() -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system tells no peak")
def test_estimate_is_near_the_peak_that_the_system_counts(tmp_path: Path) -> None:
    case = volume(tmp_path / "a.nii.gz", (1, 1, 1), (90, 90, 90))
    preprocessing(0.5)(volume(tmp_path / "b.nii.gz", (1, 1, 1)))  # what is imported only once
    here, there = multiprocessing.Pipe()
    context = multiprocessing.get_context("fork")
    child = context.Process(target=_peak, args=(case, there), daemon=True)
    child.start()
    assert here.poll(60)
    peak, shape = here.recv()
    child.join()
    grids = Room(preprocessing(0.5), 0).grids(case)
    assert grids is not None
    assert shape == grids.seen_shape
    assert grids.bytes_to_load(labelled=False) == pytest.approx(peak, rel=0.25)


def test_training_refuses_what_it_cannot_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [
        {**volume(tmp_path / f"{name}.nii.gz", (1, 1, 1), (20, 20, 20)), "label": "none"} for name in "abcd"
    ]
    require_room(cases, preprocessing(), 1.0)
    monkeypatch.setattr(room_module, "available_memory", lambda: 200_000.0)
    with pytest.raises(
        InputError, match=r"cache_rate is 1\.0: 4 cases take 0\.3 MB .* set --cache_rate 0\.39"
    ):
        CachedCases(cases, preprocessing())  # image and label: 4 x 64,000 bytes
    require_room(cases, preprocessing(), 0.5)
    cases.append({**volume(tmp_path / "far.nii.gz", (99, 99, 99)), "label": "none"})
    with pytest.raises(InputError, match=r"far\.nii\.gz: found voxels of 99 x 99 x 99 mm"):
        SeededCacheDataset(cases, preprocessing(), cache_rate=0.0)


def test_hosts_and_tests_may_hand_in_anything() -> None:
    require_room([1, {"image": np.zeros(3)}, {}], lambda item: item, 1.0)


def test_limit_of_the_address_space_counts() -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    available_memory()  # gives back what earlier tests freed
    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + 300_000_000, before[1]))
    try:
        assert 200e6 < available_memory() < 310e6
        require_memory(100e6, "numbers")
        with pytest.raises(
            Fault, match=r"^found numbers, which take 0\.4 GB of memory; 0\.3 GB are there; crop"
        ):
            require_memory(400e6, "numbers")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_a_hundred_classes_take_a_slab_of_logits() -> None:
    grids = Grids(1, (384,) * 3, (1.0,) * 3, (384,) * 3, (1.0,) * 3)
    voxels, plane = 384**3, 384**2
    slab = 4 * 102 * 96 * plane  # 100 classes and the weights of windows, of 96 planes
    by_hand = slab + 4 * 100 * 5 * plane + (4 + 16) * voxels
    assert grids.bytes_to_segment(100, tile=lambda shape: (96, 96, 96)) == by_hand < 8e9
    assert grids.bytes_to_segment(100) > 8 * 100 * voxels
    sheared = dataclasses.replace(grids, parallel=False)
    assert sheared.bytes_to_segment(100, tile=lambda shape: (96, 96, 96)) == sheared.bytes_to_segment(100)


def test_a_cohort_is_done_side_by_side_where_the_memory_holds_it(tmp_path: Path) -> None:
    cases = [volume(tmp_path / f"{name}.nii.gz", (1, 1, 1), (n, 20, 20)) for name, n in (("a", 9), ("b", 20))]
    room = Room(preprocessing(1.0), 2)
    assert not room.beside()  # nothing is known of any case
    assert [room.problems(case) for case in cases] == [[], []]
    largest = 20**3
    predict, load = (4 + 8 * 2) * largest, 12 * largest
    finish = (4 + 8 * 2) * largest
    room.bytes = predict + max(load, finish)
    assert room.beside()
    room.bytes -= 1
    assert not room.beside()
