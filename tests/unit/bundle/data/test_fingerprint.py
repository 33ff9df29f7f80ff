"""Labels that do not lie on their images are told from those that do."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bundle.data.fingerprint import edge_fit, flipped, look_at
from bundle.data.phantom import draw_cells, draw_heart, draw_organ
from scripts.data.checks import Facts
from scripts.data.grids import Grid
from tests.commands import SHARED_DATA, invoke

AXES = [axes for number in range(4) for axes in itertools.combinations(range(3), number)]


def facts_of(cases: list[tuple[np.ndarray, np.ndarray, np.ndarray | None]], axes: tuple[int, ...]) -> list:
    """The facts of cases whose labels are mirrored along axes of their arrays."""
    facts = []
    for image, label, affine in cases:
        wrong = np.flip(label, axes) if axes else label
        found = look_at([image.reshape(*label.shape, -1)], wrong, Grid(label.shape, affine))
        facts.append(Facts(label.shape, None, {}, found))
    return facts


@pytest.fixture(scope="module")
def hearts() -> list:
    return [draw_heart(0, index, (72, 72, 8)) for index in range(5)]


def test_labels_that_lie_right_are_no_news(hearts: list) -> None:
    assert flipped(facts_of(hearts, ())) is None
    organs = [draw_organ(0, index, (30, 34, 28)) for index in range(6)]
    assert flipped(facts_of(organs, ())) is None
    assert flipped(facts_of([(*draw_cells(0, index, (96, 96)), None) for index in range(5)], ())) is None
    rng = np.random.default_rng(0)
    noise = [(rng.random((30, 30)), rng.integers(0, 2, (30, 30)), None) for _ in range(9)]
    assert flipped(facts_of(noise, ())) is None


@pytest.mark.parametrize("axes", AXES[1:])
def test_mirrored_labels_are_told_by_their_axes(hearts: list, axes: tuple[int, ...]) -> None:
    said = flipped(facts_of(hearts, axes))
    assert said is not None
    many = "axes" if len(axes) > 1 else "axis"
    assert f"look flipped along {many} {' and '.join(map(str, axes))}: mirrored, 5 of 5 fit" in said


def test_axes_are_those_of_the_body() -> None:
    """Of files whose first axis leads from front to back axis 0 is axis 1."""
    turned = np.array([[0, 1.4, 0, 0], [-1.4, 0, 0, 0], [0, 0, 10, 0], [0, 0, 0, 1]])
    cases = [(*draw_heart(0, index, (72, 72, 8))[:2], turned) for index in range(4)]
    assert "flipped along axis 1:" in str(flipped(facts_of(cases, (0,))))
    assert flipped(facts_of(cases[:3], (0,))) is None  # three may be chance


def test_symmetric_and_faint_objects_look_like_nothing() -> None:
    """A disk in the middle fits either way; a faint one beside others that are bright is no flip."""
    rows, columns = np.mgrid[:60, :60]
    middle = np.hypot(rows - 29.5, columns - 29.5) < 15
    centred = [
        (middle + np.random.default_rng(n).normal(0, 0.1, (60, 60)), middle * 1, None) for n in range(5)
    ]
    assert flipped(facts_of(centred, ())) is None
    cases = []
    for n in range(6):
        rng = np.random.default_rng(n)
        faint = np.hypot(rows - 30, columns - 15) < 8 + n % 3
        bright = np.hypot(rows - 30 - n % 4, columns - 46) < 9
        cases.append((0.3 * faint + 3.0 * bright + rng.normal(0, 0.1, (60, 60)), faint * 1, None))
    assert flipped(facts_of(cases, ())) is None
    assert "axis 1:" in str(flipped(facts_of(cases, (1,))))


def test_edges_of_what_nobody_annotated_do_not_count() -> None:
    image = np.zeros((20, 20, 1))
    image[5:15, 5:12] = 1
    label = image[..., 0].astype(int)
    as_it_lies = edge_fit(image, label)[()]
    label[:, 16:] = 2
    assert edge_fit(image, label, ignored=2)[()] == pytest.approx(as_it_lies)
    assert edge_fit(image, np.zeros((20, 20), int)) == {}
    assert edge_fit(np.zeros((20, 20, 1)), label) == {}


@pytest.mark.data
@pytest.mark.parametrize("axes", [(), (0,), (1,), (2,), (0, 1)])
def test_the_command_on_the_hippocampus(tmp_path: Path, axes: tuple[int, ...]) -> None:
    folder = SHARED_DATA / "msd_task04_hippocampus"
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    for file in sorted((folder / "imagesTr").glob("h*.nii.gz"))[:6]:
        (tmp_path / "images" / file.name).symlink_to(file)
        label = nib.load(folder / "labelsTr" / file.name)
        wrong = np.flip(np.asarray(label.dataobj), axes) if axes else np.asarray(label.dataobj)
        nib.save(nib.Nifti1Image(wrong, label.affine), tmp_path / "labels" / file.name)
    result = invoke(
        *("datalist", "--images", tmp_path / "images", "--labels", tmp_path / "labels"),
        *("--folds", 2, "--output_dir", tmp_path / "out"),
    )
    assert result.exit_code == 0, result.output
    assert ("look flipped along ax" in result.output) == bool(axes)
