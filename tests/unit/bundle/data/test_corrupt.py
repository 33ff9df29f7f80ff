"""Changed cases: the same labels, images that are worse the stronger, and the same each time."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from bundle.cli import Corruption
from bundle.data.corrupt import KINDS, MOVES, STRENGTHS, changed, corrupted_of, write_corrupted
from bundle.data.phantom import Kind, write_phantom
from bundle.made_of import require_same
from scripts.data.datalist import sections
from scripts.errors import InputError
from tests.commands import read_array

HERE = [kind for kind in KINDS if kind not in ("ghosting", "motion") or find_spec("torchio")]


def blob(*shape: int) -> np.ndarray:
    """A bright blob with a sharp edge on a dark ground, whole numbers of 16 bits."""
    places = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    away = sum(place**2 for place in places)
    return (1000 + 400 * np.exp(-4 * away) + 800 * (away < 0.4)).astype(np.int16)


def test_every_kind_is_a_choice_of_the_command() -> None:
    assert [kind.value for kind in Corruption] == [*KINDS, *MOVES]


@pytest.mark.parametrize("kind", HERE)
@pytest.mark.parametrize("shape", [(24, 27), (16, 18, 20)], ids=["2D", "3D"])
def test_stronger_is_further_away(kind: str, shape: tuple[int, ...]) -> None:
    image = blob(*shape)
    made = [changed(image, False, "case", kind, strength) for strength in STRENGTHS]
    assert all(each.dtype == image.dtype and each.shape == image.shape for each in made)
    assert np.array_equal(made[1], changed(image, False, "case", kind, 2))
    away = [np.abs(each.astype(float) - image).mean() for each in made]
    assert 0 < away[0] < away[1] < away[2]


@pytest.mark.parametrize("kind", [kind for kind in HERE if kind != "inverted"])
@pytest.mark.parametrize("shape", [(24, 27), (16, 18, 20)], ids=["2D", "3D"])
def test_what_is_shown_stays_in_its_place(kind: str, shape: tuple[int, ...]) -> None:
    """The label lies on it still: no shift fits better than none."""
    image = blob(*shape)
    for name in "abc":
        made = changed(image, False, name, kind, 3).astype(float)
        one, other = (np.fft.fftn(values - values.mean()) for values in (image, made))
        fit = np.fft.ifftn(one.conj() * other).real
        assert np.unravel_index(fit.argmax(), fit.shape) == (0,) * len(shape)


def test_what_is_drawn_follows_from_case_kind_and_seed() -> None:
    image = blob(16, 17)
    same, case, seed = (
        changed(image, False, name, "noise", 2, seed) for name, seed in (("a", 0), ("b", 0), ("a", 1))
    )
    assert np.array_equal(same, changed(image, False, "a", "noise", 2))
    assert not np.array_equal(same, case)
    assert not np.array_equal(same, seed)


def test_noise_and_contrast_are_as_large_as_said() -> None:
    """Of the distance of the darkest from the brightest, which is 1000 here."""
    image = np.zeros((200, 200), np.float32)
    image[:, 100:] = 1000
    assert (changed(image, False, "a", "noise", 3) - image).std() == pytest.approx(200, rel=0.02)
    assert np.allclose(changed(image, False, "a", "inverted", 3), 1000 - image, atol=1)


def test_colours_stay_colours() -> None:
    image = np.stack([blob(16, 17) // 10, blob(16, 17) // 20, blob(16, 17) // 40], -1).astype(np.uint8)
    made = changed(image, True, "a", "blur", 2)
    assert made.shape == image.shape
    assert made.dtype == np.uint8
    assert np.abs(made.mean((0, 1)) - image.mean((0, 1))).max() < 3


@pytest.mark.parametrize("kind", [Kind.CELLS, Kind.ORGAN])
def test_labels_names_and_places_stay(kind: Kind, tmp_path: Path) -> None:
    size = (64, 64) if kind == Kind.CELLS else (24, 25, 26)
    write_phantom(kind, tmp_path / "data", cases=4, size=size)
    write_corrupted(tmp_path / "data", tmp_path / "worse", "blur", 2, "testing")
    before, after = (sections(tmp_path / name)["testing"] for name in ("data", "worse"))
    assert [case["case"] for case in after] == [case["case"] for case in before]
    assert [case["label"] for case in after] == [case["label"] for case in before]
    assert sections(tmp_path / "worse")["validation"] == sections(tmp_path / "data")["validation"]
    for one, other in zip(before, after, strict=True):
        values, made = read_array(Path(one["image"])), read_array(Path(other["image"]))
        assert made.shape == values.shape
        assert made.dtype == values.dtype
        assert not np.array_equal(made, values)
        if kind == Kind.ORGAN:
            assert np.allclose(nib.load(one["image"]).affine, nib.load(other["image"]).affine)
    made_of = corrupted_of(tmp_path / "data", "blur", 2, "testing")
    assert require_same(tmp_path / "worse", made_of) == ""
    with pytest.raises(InputError, match=r"made of something else \(seed was 0 and is 1\)"):
        require_same(tmp_path / "worse", {**made_of, "seed": 1})
    Path(before[0]["image"]).write_bytes(Path(before[1]["image"]).read_bytes())
    with pytest.raises(InputError, match=r"made of something else \(cases was \d cases"):
        require_same(tmp_path / "worse", corrupted_of(tmp_path / "data", "blur", 2, "testing"))
    about = json.loads((tmp_path / "worse/dataset.json").read_text())
    assert about["labels"] == json.loads((tmp_path / "data/dataset.json").read_text())["labels"]
    write_corrupted(tmp_path / "data", tmp_path / "val", "blur", 2, "validation")
    assert "val/images" in sections(tmp_path / "val")["validation"][0]["image"]
    with pytest.raises(InputError, match="is there already: name a new folder"):
        write_corrupted(tmp_path / "data", tmp_path / "worse", "blur", 2, "testing")


def test_a_broken_image_leaves_nothing(tmp_path: Path) -> None:
    write_phantom(Kind.CELLS, tmp_path / "data", cases=4, size=(64, 64))
    last = sections(tmp_path / "data")["testing"][-1]["image"]
    Path(last).write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"cannot be read .*mend it, or leave the case out"):
        write_corrupted(tmp_path / "data", tmp_path / "worse", "noise", 1, "testing")
    assert not (tmp_path / "worse").exists()
    Image.new("P", (64, 64)).save(last)
    with pytest.raises(InputError, match="palette picture"):
        write_corrupted(tmp_path / "data", tmp_path / "worse", "noise", 1, "testing")


def test_what_is_not_installed_is_named(tmp_path: Path) -> None:
    if find_spec("torchio"):
        pytest.skip("torchio is installed")
    write_phantom(Kind.CELLS, tmp_path / "data", cases=4, size=(64, 64))
    with pytest.raises(InputError, match=r"requirements-benchmark\.txt"):
        write_corrupted(tmp_path / "data", tmp_path / "worse", "motion", 1, "testing")


@pytest.mark.parametrize("kind", list(MOVES))
@pytest.mark.parametrize("drawn", [Kind.CELLS, Kind.ORGAN])
def test_labels_go_along_with_what_is_moved(drawn: Kind, kind: str, tmp_path: Path) -> None:
    """The first axis of a picture goes to the right, as in the grid of its probabilities."""
    write_phantom(drawn, tmp_path / "data", cases=4, size=(64, 72) if drawn == Kind.CELLS else (24, 25, 26))
    if kind == "spacing" and drawn == Kind.CELLS:
        with pytest.raises(InputError, match=r"a grey picture \(uint8\), which has no spacing"):
            write_corrupted(tmp_path / "data", tmp_path / "worse", kind, 1, "testing")
        return
    write_corrupted(tmp_path / "data", tmp_path / "worse", kind, 1, "testing")
    before, after = (sections(tmp_path / name)["testing"] for name in ("data", "worse"))
    for one, other in zip(before, after, strict=True):
        values, label, made, moved = (
            read_array(Path(case[key])).T if drawn == Kind.CELLS else read_array(Path(case[key]))
            for case in (one, other)
            for key in ("image", "label")
        )
        assert made.shape == moved.shape
        if kind == "flipped":
            assert np.array_equal(made, values[::-1])
            assert np.array_equal(moved, label[::-1])
        if kind == "rotated":
            assert np.array_equal(made, np.rot90(values))
            assert np.array_equal(moved, np.rot90(label))
        if kind in ("cropped", "padded"):
            assert (made.size < values.size) == (kind == "cropped")
            assert (moved > 0).sum() <= (label > 0).sum()
        if kind == "spacing":
            assert np.array_equal(made, values)
            affines = [nib.load(case["image"]).affine for case in (one, other)]
            assert np.linalg.det(affines[1]) / np.linalg.det(affines[0]) == pytest.approx(1.25, rel=1e-3)
