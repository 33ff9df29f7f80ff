"""The phantom is seeded, readable by MONAI, too hard for a threshold, and never destroys a folder."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.data import load_decathlon_datalist
from monai.transforms import LoadImage
from scipy import ndimage
from skimage.segmentation import find_boundaries

import bundle.data.phantom as module
from bundle.data.phantom import (
    Kind,
    draw_cells,
    draw_cue,
    draw_heart,
    draw_organ,
    held_out,
    write_phantom,
)
from bundle.runs.baseline import otsu_components
from scripts.errors import InputError
from scripts.judging import Case, confusion, overlap_scores
from tests.commands import as_options, invoke

CASES = range(24)
SMALL = {Kind.CELLS: (64, 64), Kind.CUE: (48, 48), Kind.ORGAN: (24, 28, 24), Kind.HEART: (64, 68, 5)}


@pytest.fixture(scope="module")
def cells() -> list[tuple[np.ndarray, np.ndarray]]:
    return [draw_cells(0, i) for i in CASES]


@pytest.fixture(scope="module")
def organs() -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    return [draw_organ(0, i) for i in CASES]


# The baseline


def class_dice(pred: np.ndarray, truth: np.ndarray, n_classes: int) -> np.ndarray:
    return overlap_scores(confusion(Case("", pred, truth), n_classes))["dice"][1:]


@pytest.mark.parametrize("sign", [1, -1])
def test_baseline_solves_an_easy_picture_of_either_polarity(sign: int) -> None:
    truth = np.zeros((64, 64), int)
    truth[8:24, 8:24], truth[36:56, 30:56] = 1, 2
    image = (truth > 0) * 100.0
    image[40:44, 10:14] = 100  # a speck, too small to count
    image += np.random.default_rng(0).normal(0, 10, image.shape)
    pred = otsu_components(sign * image, truth, 3)
    assert class_dice(pred, truth, 3).min() > 0.97
    assert not pred[40:44, 10:14].any()


def test_baseline_gives_a_component_one_class_only() -> None:
    truth = np.zeros((40, 40), int)
    truth[10:30, 5:25], truth[10:30, 25:35] = 1, 2  # side by side: one component, twice as much of class 1
    pred = otsu_components((truth > 0).astype(float), truth, 3)
    assert set(np.unique(pred)) == {0, 1}


def test_thresholding_fails_on_cells(cells: list) -> None:
    scores = [class_dice(otsu_components(image, labels > 0, 2), labels > 0, 2)[0] for image, labels in cells]
    assert np.mean(scores) <= 0.50


def test_thresholding_fails_on_the_organ(organs: list) -> None:
    scores = [class_dice(otsu_components(image, label, 3), label, 3).mean() for image, label, _ in organs]
    assert np.mean(scores) <= 0.45


# Cells


def test_cells_are_instance_maps_of_connected_cells(cells: list) -> None:
    for image, labels in cells:
        assert (image.dtype, labels.dtype, image.shape) == (np.uint8, np.uint16, labels.shape)
        numbers = np.unique(labels)
        np.testing.assert_array_equal(numbers, np.arange(numbers.size))  # 0..N without a gap
        assert all(ndimage.label(labels == n)[1] == 1 for n in numbers[1:])
        sizes = np.bincount(labels.ravel())[1:]
        assert sizes.min() >= module.CELL_MIN_AREA
        assert sizes.max() > 2 * sizes.min()


def test_cells_touch_in_every_image(cells: list) -> None:
    for _, labels in cells:
        # merged into one foreground, touching cells become fewer
        assert ndimage.label(labels > 0)[1] < labels.max()


@pytest.mark.parametrize(
    ("labels", "touching"),
    [
        ([[1, 2]], True),
        ([[1], [2]], True),
        ([[1, 0, 2]], False),
        ([[1, 1]], False),
        ([[1, 0], [0, 2]], False),
    ],
)
def test_touching_means_neighbours_along_an_axis(labels: list[list[int]], touching: bool) -> None:
    assert module._touching(np.array(labels)) is touching


def test_cells_flip_their_contrast(cells: list) -> None:
    brighter = []
    for image, labels in cells:
        inside = (labels > 0) & ~find_boundaries(labels, mode="thick")
        around = ndimage.binary_dilation(labels > 0, iterations=6) & ~ndimage.binary_dilation(labels > 0)
        near = ndimage.gaussian_filter(around * 1.0, 8)  # the local background, light and all
        ratio = image * near / ndimage.gaussian_filter(image * around * 1.0, 8).clip(1e-6)
        brighter.append(np.median(ratio[inside]) > 1)
    assert brighter == [i % 2 == 0 for i in CASES]


def test_light_is_uneven(cells: list) -> None:
    for image, labels in cells:
        background = ndimage.gaussian_filter(image.astype(float), 4)[labels == 0]
        assert np.percentile(background, 98) > 2 * np.percentile(background, 2)


# Organ


def test_organ_has_both_parts_whole_and_inside_the_grid(organs: list) -> None:
    for image, label, _ in organs:
        assert (image.dtype, label.dtype, image.shape) == (np.float32, np.uint8, label.shape)
        assert image.min() >= 0
        assert set(np.unique(label)) == {0, 1, 2}
        assert np.bincount(label.ravel())[1:].min() > 200
        sizes = np.bincount(ndimage.label(label)[0].ravel())[1:]
        assert sizes.max() > 0.99 * sizes.sum()
        m = module.ORGAN_MARGIN
        assert label[m:-m, m:-m, m:-m].astype(bool).sum() == label.astype(bool).sum()


def test_organ_lies_alike_in_patient_space_whatever_the_grid(organs: list) -> None:
    for _, label, affine in organs:
        centre = [
            nib.affines.apply_affine(affine, np.argwhere(label == part).mean(axis=0)) for part in (1, 2)
        ]
        forward = (centre[0] - centre[1]) / np.linalg.norm(centre[0] - centre[1])
        assert forward[1] > 0.85  # +y is anterior
        volume = (label > 0).sum() * abs(np.linalg.det(affine[:3, :3]))
        assert 3000 < volume < 7500  # mm3
        assert np.linalg.norm(centre[0] - module.ORGAN_SITE) < 20  # mm


def test_grids_are_straight_and_oblique_and_their_spacing_varies(organs: list) -> None:
    affines = [affine for *_, affine in organs]
    tilt = np.rad2deg([nib.affines.obliquity(affine).max() for affine in affines])
    assert (tilt[::2] < 1e-3).all()
    assert (tilt[1::2] > 2).all()
    assert (tilt <= module.MAX_TILT + 1e-6).all()
    spacing = np.array([nib.affines.voxel_sizes(affine) for affine in affines])
    assert spacing.min() > 0.9
    assert spacing.max() <= 2
    assert np.ptp(spacing[:, 2]) > 0.5
    assert len({image.shape for image, *_ in organs}) > 5


def test_signal_scale_differs_by_orders_of_magnitude(organs: list) -> None:
    level = [np.median(image) for image, *_ in organs]
    assert max(level) / min(level) > 100


def test_distractors_share_the_signal_of_the_organ(organs: list) -> None:
    for image, label, _ in organs:
        smooth = ndimage.gaussian_filter(image, 1)
        low, high = np.percentile(smooth[label > 0], [10, 90])
        elsewhere = (smooth > low) & (smooth < high) & (ndimage.distance_transform_edt(label == 0) > 3)
        assert elsewhere.sum() > 0.5 * (label > 0).sum()


def test_a_heart_is_a_ring_of_muscle_in_few_thick_slices() -> None:
    for index in range(4):
        image, label, affine = draw_heart(3, index)
        across = affine[2, 2] / affine[0, 0]
        assert image.shape == label.shape
        assert across > 5
        assert 8 < image.shape[2] < 12
        held = [z for z in range(label.shape[2]) if (label[..., z] == 2).any()]
        assert 3 <= len(held) < label.shape[2]  # some slices show no heart
        for z in held:  # no cavity without muscle all around
            closed = ndimage.binary_dilation(label[..., z] == 2) & (label[..., z] != 2)
            assert set(np.unique(label[..., z][closed])) == {1}
        bright, dark = (np.median(image[label == part]) for part in (2, 1))
        assert bright > 1.5 * dark
        lookalike = ndimage.gaussian_filter(image, (1, 1, 0)) > 0.8 * bright
        assert (lookalike & (label == 0)).sum() > (label == 2).sum()


# The cue


def test_a_disc_says_nothing_of_its_class_and_the_mark_all() -> None:
    discs: dict[int, list[np.ndarray]] = {0: [], 1: [], 2: []}
    for index in range(18):
        image, label = draw_cue(0, index)
        value = int(label.max())
        near = np.where(np.indices(image.shape)[1] < image.shape[1] // 2, image, 0)
        disc = ndimage.binary_opening(near > module.CUE_GREY + 25)
        assert ndimage.label(disc)[1] == 1
        assert value == 0 or (disc == (label == value)).mean() > 0.99
        discs[value].append(image[disc])
        far = image[:, image.shape[1] // 2 :].astype(int) - module.CUE_GREY
        mark = np.abs(far) > 8 * module.CUE_NOISE
        assert mark.sum() == (module.CUE_SIDE**2 if value else 0)
        assert not value or (far[mark] > 0).all() == (value == 1)
    means = [np.concatenate(parts).mean() for parts in discs.values()]
    assert max(means) - min(means) < 1


# All


@pytest.mark.parametrize(
    ("kind", "draw"), [(Kind.CELLS, draw_cells), (Kind.ORGAN, draw_organ), (Kind.HEART, draw_heart)]
)
def test_smallest_size_always_fits(kind: Kind, draw) -> None:
    for index in range(12):
        label = draw(7, index, module._MIN_SIZE[kind])[1]
        assert label.max() >= 2


def load(folder: Path) -> dict[str, np.ndarray]:
    """Every array under the folder, with its affine where it has one."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.suffix in {".png", ".gz"}):
        array = LoadImage(image_only=True)(path)
        found[path.name + path.parent.name[:3]] = np.append(np.asarray(array), np.asarray(array.affine))
    return found


@pytest.mark.parametrize("kind", list(Kind))
def test_a_case_depends_on_seed_and_number_only(kind: Kind, tmp_path: Path) -> None:
    for name, cases, seed in [("few", 4, 3), ("more", 6, 3), ("other", 4, 4)]:
        write_phantom(kind, tmp_path / name, cases, seed, SMALL[kind])
    few, more, other = (load(tmp_path / name) for name in ("few", "more", "other"))
    assert len(few) == 8
    assert len(more) == 12
    for name, array in few.items():
        np.testing.assert_array_equal(array, more[name])
        if kind is not Kind.CUE or name.endswith("ima"):  # some of its labels are empty
            assert not np.array_equal(array, other[name])


@pytest.mark.parametrize(
    ("cases", "expected"), [(4, {2, 3}), (9, {7, 8}), (10, {4, 9}), (24, {4, 9, 14, 19})]
)
def test_about_a_fifth_is_held_out(cases: int, expected: set[int]) -> None:
    assert held_out(cases) == expected


@pytest.mark.parametrize("kind", list(Kind))
def test_monai_reads_the_data_list_and_the_files(kind: Kind, tmp_path: Path) -> None:
    write_phantom(kind, tmp_path / "p", 10, 0, SMALL[kind])
    path = tmp_path / "p" / "dataset.json"
    about = json.loads(path.read_text())
    training = load_decathlon_datalist(path, is_segmentation=True, data_list_key="training")
    testing = load_decathlon_datalist(path, is_segmentation=True, data_list_key="testing")
    test = load_decathlon_datalist(path, is_segmentation=True, data_list_key="test")
    assert (len(training), len(testing)) == (about["numTraining"], about["numTest"]) == (8, 2)
    assert [item["image"] for item in test] == [item["image"] for item in testing]
    listed = [Path(item[key]) for item in training + testing for key in ("image", "label")]
    files = [file for folder in module.FOLDERS for file in (tmp_path / "p" / folder).iterdir()]
    assert sorted(listed) == sorted(files)
    declared = {int(value) for value in about["labels"]}
    for index, item in enumerate(training[:4]):  # the first four are cases 0 to 3
        image, label = (np.asarray(LoadImage(image_only=True)(item[key])) for key in ("image", "label"))
        if kind in (Kind.CELLS, Kind.CUE):
            pixels, drawn = {Kind.CELLS: draw_cells, Kind.CUE: draw_cue}[kind](0, index, SMALL[kind])
            np.testing.assert_array_equal(image.T, pixels)  # MONAI reads pictures with x first
            np.testing.assert_array_equal(label.T, drawn)
            assert about.get("instances", False) is (kind is Kind.CELLS)
        else:
            draw = {Kind.ORGAN: draw_organ, Kind.HEART: draw_heart}[kind]
            voxels, parts, affine = draw(0, index, SMALL[kind])
            np.testing.assert_array_equal(image, voxels)
            np.testing.assert_array_equal(label, parts)
            np.testing.assert_allclose(nib.Nifti1Image.from_filename(item["image"]).affine, affine, atol=1e-5)
            np.testing.assert_allclose(
                nib.Nifti1Image.from_filename(item["label"]).get_qform(), affine, atol=1e-4
            )
            assert set(np.unique(label)) == declared


# The folder


def test_an_occupied_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"output_dir .* other than an earlier phantom.*name a new or empty"):
        write_phantom(Kind.CELLS, tmp_path, 4, size=SMALL[Kind.CELLS])
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("about", ['{"name": "Hippocampus"}', "{}", "[]", "not json"])
def test_another_decathlon_data_set_is_refused(about: str, tmp_path: Path) -> None:
    for folder in module.FOLDERS:
        (tmp_path / folder).mkdir()
    (tmp_path / "dataset.json").write_text(about)
    with pytest.raises(InputError, match="other than an earlier phantom"):
        write_phantom(Kind.ORGAN, tmp_path, 4)
    assert (tmp_path / "dataset.json").read_text() == about


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p").write_text("a file")
    with pytest.raises(InputError, match="other than an earlier phantom"):
        write_phantom(Kind.CELLS, tmp_path / "p", 4)


def test_an_empty_folder_is_filled_and_an_earlier_phantom_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    folder.mkdir()
    write_phantom(Kind.CELLS, folder, 6, size=SMALL[Kind.CELLS])
    (folder / "checked.json").touch()  # of a training on it
    write_phantom(Kind.ORGAN, folder, 4, size=SMALL[Kind.ORGAN])
    assert {p.suffix for p in folder.rglob("images*/*")} == {".gz"}
    assert len(list(folder.rglob("labels*/*"))) == 4
    assert [p.name for p in tmp_path.iterdir()] == ["p"]


@pytest.mark.parametrize("failure", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("earlier", [False, True])
def test_nothing_is_left_behind_when_writing_fails(
    failure: BaseException, earlier: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "p"
    if earlier:
        write_phantom(Kind.CELLS, folder, 4, size=SMALL[Kind.CELLS])
    before = sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*"))
    drawn = []

    def fail_at_the_third(seed: int, index: int, size: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        drawn.append(index)
        if index == 2:
            raise failure
        return draw_cells(seed, index, size)

    monkeypatch.setitem(module._WRITERS, Kind.CELLS, partial(module._write_picture, fail_at_the_third))
    with pytest.raises(type(failure)):
        write_phantom(Kind.CELLS, folder, 4, size=SMALL[Kind.CELLS])
    assert drawn == [0, 1, 2]
    assert sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*")) == before


# The command


def test_command_writes_and_says_where_to_look(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "p"
    result = invoke(
        "phantom",
        "organ",
        "--output_dir",
        str(folder),
        "--cases",
        "5",
        "--seed",
        "2",
        *as_options(size=[24, 28, 24]),
    )
    assert result.exit_code == 0, result.output
    last = result.stdout.strip().splitlines()[-1]
    assert last.startswith("3 cases to train on and 2 held out")
    assert str(folder / "imagesTr") in last
    image = nib.Nifti1Image.from_filename(folder / "imagesTr" / "organ_000.nii.gz")
    np.testing.assert_array_equal(image.get_fdata(dtype=np.float32), draw_organ(2, 0, (24, 28, 24))[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--cases", "3"), "cases is 3, .* give 4 or more"),
        (("--seed", "-1"), "seed is -1, .* non-negative"),
        (
            as_options(size=64),
            r"size is \(64,\), but cells takes 64 x 64 or more: .* --size 256 --size 256",
        ),
        (as_options(size=[64, 63]), r"size is \(64, 63\)"),
    ],
)
def test_command_refuses_what_it_cannot_make(
    arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    result = invoke("phantom", "cells", "--output_dir", str(tmp_path / "p"), *arguments)
    assert isinstance(result.exception, InputError)
    with pytest.raises(InputError, match=message):
        raise result.exception
    assert not list(tmp_path.iterdir())
