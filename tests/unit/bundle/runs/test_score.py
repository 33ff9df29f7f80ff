"""The command scores folders and files, says what is wrong with a case, and does the others."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from scripts.errors import InputError
from scripts.judging import (
    INSTANCE_SCORES,
    MEMBRANE_SCORES,
    SCORES,
    Case,
    InstanceCounts,
    best_membrane_scores,
    class_scores,
    confusion,
    instance_counts,
    instance_scores,
    membrane_curves,
    membrane_scores,
    overlap_scores,
    ranking,
    roc_auc,
    section,
)
from scripts.judging.tables import summarize
from tests.commands import SHARED_DATA, as_options, invoke

DATA = SHARED_DATA
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the shared data sets are absent")


def call(*options: object) -> Any:
    return invoke("score", *options)


def score(output_dir: Path, *options: object, failed: int = 0) -> tuple[list[dict], dict[str, Any], str]:
    """Run the command; scores.csv, summary.json and the output."""
    result = call(*options, "--output_dir", output_dir)
    assert result.exit_code == (1 if failed else 0), result.output
    summary = json.loads((output_dir / "summary.json").read_text())
    assert summary["not_scored"] == failed
    names = ["scores.csv", "summary.csv", "summary.json"]
    assert sorted(file.name for file in output_dir.iterdir()) == names
    with (output_dir / "scores.csv").open(newline="") as file:
        return list(csv.DictReader(file)), summary, result.output


def refused(message: str, *options: object) -> None:
    result = call(*options)
    assert isinstance(result.exception, InputError), result.output
    with pytest.raises(InputError, match=message):
        raise result.exception


def picture(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def volume(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)


def draw(seed: int, values: int = 3, shape: tuple[int, ...] = (12, 10)) -> tuple[np.ndarray, np.ndarray]:
    """A prediction that is often right and its truth, of blocks of two voxels along each axis."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, values, [size // 2 for size in shape])
    truth = np.kron(blocks, np.ones((2,) * len(shape), int))
    pred = np.where(rng.random(shape) < 0.2, 0, truth)
    return pred.astype(np.uint8), truth.astype(np.uint8)


def assert_scores(row: dict, expected: dict[str, float]) -> None:
    for name, value in expected.items():
        assert float(row[name]) == pytest.approx(value, nan_ok=True), name


def test_classes_of_volumes(tmp_path: Path) -> None:
    affine = np.diag([1.0, 2.0, 0.5, 1.0])
    expected = []
    for seed in range(3):
        pred, truth = draw(seed, shape=(6, 8, 4))
        volume(tmp_path / f"p/c{seed}_seg.nii.gz", pred, affine)
        volume(tmp_path / f"t/c{seed}.nii", truth, affine)
        rows = class_scores(Case("a", pred, truth, spacing=(1.0, 2.0, 0.5)), 3, 0.7)
        expected += [
            {"case": f"c{seed}", "class": name, **row} for name, row in zip(("a", "b"), rows, strict=True)
        ]
    names = as_options(label_name=["background=0", "a=1", "b=2"])
    options = tmp_path / "p", tmp_path / "t", *names, "--tolerance", 0.7
    rows, summary, output = score(tmp_path / "out", *options)
    assert [(row["case"], row["class"]) for row in rows] == [(row["case"], row["class"]) for row in expected]
    for row, wanted in zip(rows, expected, strict=True):
        assert_scores(row, {name: wanted[name] for name in SCORES})
    assert (summary["measure"], summary["cases"], summary["tolerance"]) == ("classes", 3, 0.7)
    assert summary["summary"] == json.loads(json.dumps(summarize(expected, SCORES)))
    lines = output.splitlines()
    assert lines[0].split() == ["case", "class", *SCORES]
    assert [line.split()[:2] for line in lines[-5:-2]] == [["mean", "a"], ["mean", "b"], ["mean", "all"]]
    assert [line.split()[:3] for line in lines[-2:]] == [["all", "voxels", "a"], ["all", "voxels", "b"]]
    pred, truth = (
        np.concatenate(maps) for maps in zip(*(draw(s, shape=(6, 8, 4)) for s in range(3)), strict=True)
    )
    pooled = overlap_scores(confusion(Case("all", pred, truth), 3))
    for index, row in enumerate(summary["together"], start=1):
        assert_scores(row, {name: values[index] for name, values in pooled.items()})


@pytest.mark.parametrize("shape", [(12, 10), (6, 8, 4)])
def test_classes_with_probabilities_beside_them(shape: tuple[int, ...], tmp_path: Path) -> None:
    judged = []
    for seed in range(2):
        pred, truth = draw(seed, shape=shape)
        probabilities = (0.2 + 0.6 * (pred == np.arange(3).reshape(3, *[1] * len(shape)))) / 1.2
        probabilities += np.random.default_rng(seed).random(probabilities.shape) / 10
        volume(tmp_path / f"p/c{seed}_seg.nii.gz", pred)
        volume(tmp_path / f"p/c{seed}_prob.nii.gz", np.moveaxis(probabilities, 0, -1).astype(np.float32))
        volume(tmp_path / f"t/c{seed}.nii.gz", truth)
        judged.append(ranking(Case("a", pred, truth, None, probabilities.astype(np.float32))))
    names = as_options(label_name=["background=0", "a=1", "b=2"])
    rows, summary, output = score(tmp_path / "out", tmp_path / "p", tmp_path / "t", *names)
    assert output.split("\n")[0].split()[-1] == "auc"
    for row, (seed, index) in zip(rows, [(0, 1), (0, 2), (1, 1), (1, 2)], strict=True):
        assert float(row["auc"]) == pytest.approx(roc_auc(judged[seed][index]))
    for index, row in enumerate(summary["together"], start=1):
        assert row["auc"] == pytest.approx(roc_auc(sum(judged)[index]))
    (tmp_path / "p/c1_prob.nii.gz").unlink()
    assert "auc" not in score(tmp_path / "out", tmp_path / "p", tmp_path / "t", *names)[0][0]
    volume(tmp_path / "p/c1_prob.nii.gz", np.zeros((*shape, 2), np.float32))
    _, _, output = score(tmp_path / "out", tmp_path / "p", tmp_path / "t", *names, failed=1)
    assert "one channel a class" in output


def test_probabilities_beside_pictures_have_their_rows_first(tmp_path: Path) -> None:
    pred, truth = draw(0, shape=(12, 10))
    probabilities = (0.2 + 0.6 * (pred == np.arange(3)[:, None, None])) / 1.2
    probabilities += np.random.default_rng(0).random(probabilities.shape) / 10
    picture(tmp_path / "p/c_seg.png", pred)
    picture(tmp_path / "t/c.png", truth)
    stored = np.moveaxis(probabilities, 0, -1).astype(np.float32)[:, :, None]  # (rows, columns, 1, classes)
    rows_first = np.eye(4)[:, [1, 0, 2, 3]]
    nib.Nifti1Image(stored, rows_first).to_filename(tmp_path / "p/c_prob.nii.gz")
    names = as_options(label_name=["background=0", "a=1", "b=2"])
    rows, _, _ = score(tmp_path / "out", tmp_path / "p", tmp_path / "t", *names)
    judged = ranking(Case("a", pred, truth, None, probabilities.astype(np.float32)))
    assert [float(row["auc"]) for row in rows] == pytest.approx([roc_auc(judged[1]), roc_auc(judged[2])])


def test_cases_to_train_on_are_those_of_all_folds(tmp_path: Path) -> None:
    """A data set with folds trains on all of them, each but the fold that validates."""
    entries = []
    for n in range(4):
        pred, truth = draw(n)
        picture(tmp_path / f"p/c{n}_seg.png", pred)
        picture(tmp_path / f"d/l/c{n}.png", truth)
        entries.append({"case": f"c{n}", "image": f"i/c{n}.png", "label": f"l/c{n}.png", "fold": n % 2})
    folder = tmp_path / "d"
    (folder / "dataset.json").write_text(json.dumps({"training": entries[:3], "testing": entries[3:]}))
    options = tmp_path / "p", folder, "--section"
    rows, _, output = score(tmp_path / "all", *options, "training", failed=1)
    assert [row["case"] for row in rows[::2]] == ["c0", "c1", "c2"]
    assert "no truth 'c3'" in output
    (folder / "dataset.json").write_text(json.dumps({"training": entries[:2], "validation": entries[2:]}))
    rows, _, _ = score(tmp_path / "fixed", *options, "training", failed=2)
    assert [row["case"] for row in rows[::2]] == ["c0", "c1"]


def test_classes_are_found_in_the_truths(tmp_path: Path) -> None:
    pred, truth = draw(0, values=2)
    picture(tmp_path / "p/x.tif", 200 * pred)
    picture(tmp_path / "t/x.png", 200 * truth)
    rows, _, _ = score(tmp_path / "out", tmp_path / "p", tmp_path / "t")
    assert [row["class"] for row in rows] == ["label1"]
    assert_scores(rows[0], class_scores(Case("a", pred, truth), 2, 1.0)[0])


def test_what_nobody_annotated_counts_nowhere(tmp_path: Path) -> None:
    pred, truth = draw(1, values=2)
    truth[:4] = 255
    picture(tmp_path / "p.png", pred)
    picture(tmp_path / "t.png", truth)
    names = as_options(label_name=["background=0", "cell=1", "ignore=255"])
    (row,), _, _ = score(tmp_path / "out", tmp_path / "p.png", tmp_path / "t.png", *names)
    assert_scores(row, class_scores(Case("a", pred, truth, truth != 255), 2, 1.0)[0])
    assert float(row["error"]) == np.mean(pred[4:] != truth[4:])


def test_instances_and_their_sum(tmp_path: Path) -> None:
    cases = [draw(seed, values=9) for seed in range(3)]
    cases.append((cases[0][0] * 0, cases[0][1] * 0))  # it says nothing
    for name, (pred, truth) in zip("abcd", cases, strict=True):
        picture(tmp_path / f"p/{name}.png", pred.astype(np.uint16))
        picture(tmp_path / f"t/{name}.tif", truth)
    rows, summary, output = score(tmp_path / "out", tmp_path / "p", tmp_path / "t", "--measure", "instances")
    for row, (pred, truth) in zip(rows, cases, strict=True):
        assert_scores(row, instance_scores(Case("a", pred, truth)))
    counts = sum((instance_counts(Case("a", *case)) for case in cases), InstanceCounts())
    found = summary["together"]
    assert {name: found[name] for name in INSTANCE_SCORES} == pytest.approx(counts.scores())
    assert (found["predicted"], found["true"]) == (counts.predicted, counts.true)
    means = [instance_scores(Case("a", *case))["pq"] for case in cases[:3]]
    (pq,) = (entry for entry in summary["summary"] if entry["score"] == "pq")
    assert (pq["class"], pq["cases"], pq["mean"]) == ("mean", 3, pytest.approx(np.mean(means)))
    assert "all instances" in output.splitlines()[-1]
    assert output.splitlines()[4].split()[1:] == ["-"] * len(INSTANCE_SCORES) + ["0", "0"]


def test_three_cases_are_drawn_with_what_is_wrong(tmp_path: Path) -> None:
    truth = np.zeros((20, 16), np.uint8)
    truth[2:8, 2:14], truth[10:18, 2:14] = 1, 2
    glued = truth.clip(max=1)
    glued[8:10, 2:14] = 1
    empty = truth * 0
    cases = {"good": (truth, truth), "half": (np.where(truth == 1, 1, 0), truth), "glued": (glued, truth)}
    for name, (pred, true) in {**cases, "empty": (empty, empty)}.items():
        picture(tmp_path / f"p/{name}.png", pred.astype(np.uint8))
        picture(tmp_path / f"t/{name}.png", true)
        picture(tmp_path / f"i/{name}.tif", np.stack([true * 40 + 20] * 3, axis=-1))
    options = (tmp_path / "p", tmp_path / "t", "--measure", "instances", "--output_dir", tmp_path / "out")
    result = call(*options, "--images", tmp_path / "i")
    assert result.exit_code == 0, result.output
    said = [line for line in result.output.splitlines() if ".png: " in line]  # MONAI logs between them
    assert said == [
        f"{tmp_path}/out/worst.png: glued, 1 merged, 0 split, 0 missed, 0 invented",
        f"{tmp_path}/out/median.png: half, 0 merged, 0 split, 1 missed, 0 invented",
        f"{tmp_path}/out/best.png: good, 0 merged, 0 split, 0 missed, 0 invented",
    ]
    for name in ("worst", "median", "best"):
        with Image.open(tmp_path / f"out/{name}.png") as drawn:
            assert drawn.width > 3 * drawn.height  # four panels side by side
    picture(tmp_path / "i/glued.tif", truth[:10])
    result = call(*options, "--images", tmp_path / "i")
    assert result.exit_code == 1
    assert re.search(r"glued.tif: found shape \(16, 10\) where .*glued.png has \(16, 20\)", result.output)
    assert "best.png: good" in result.output
    (tmp_path / "i/glued.tif").write_bytes(b"")
    assert "glued.tif: found an empty file (0 bytes)" in call(*options, "--images", tmp_path / "i").output
    (tmp_path / "i/glued.tif").unlink()
    refused("has no image of glued, 1 missing in all", *options, "--images", tmp_path / "i")
    refused("'.*none' is no folder; it holds", *options, "--images", tmp_path / "none")
    refused("goes with --measure instances", *options[:2], "--images", tmp_path / "i")


def test_membranes_and_the_challenge_s_mean(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    curves = []
    for name in "ab":
        truth = draw(ord(name), values=2, shape=(16, 14))[1]
        grey = np.clip(255 * truth * 0.6 + rng.normal(50, 40, truth.shape), 0, 255).astype(np.uint8)
        picture(tmp_path / f"p/{name}.png", grey)
        picture(tmp_path / f"t/{name}.png", 255 * truth)
        curves.append(membrane_curves(section("a", (grey / 255).T, truth.T)))
    rows, summary, output = score(tmp_path / "out", tmp_path / "p", tmp_path / "t", "--measure", "membranes")
    for row, curve in zip(rows, curves, strict=True):
        assert_scores(row, best_membrane_scores(curve))
    for name in MEMBRANE_SCORES:
        both = [best_membrane_scores(curve)[name] for curve in curves]
        (found,) = (entry for entry in summary["summary"] if entry["score"] == name)
        assert found["mean"] == pytest.approx(np.mean(both))
    shared = (curves[0]["v_rand"] + curves[1]["v_rand"]) / 2
    assert summary["together"]["v_rand"] == pytest.approx(shared.max())
    assert summary["together"]["threshold"] == (1 + shared.argmax()) / 10
    assert output.splitlines()[-1].startswith("one threshold")


def test_forms_of_membrane_predictions_agree(tmp_path: Path) -> None:
    """The same cells as a mask, numbered, as floats, and as the probabilities that inference saves."""
    truth = draw(0, values=2, shape=(16, 14))[1]
    cells = np.where(np.random.default_rng(0).random(truth.shape) < 0.1, 0, truth)
    picture(tmp_path / "t.png", 255 * truth)
    files = [
        tmp_path / name
        for name in ("a.png", "b.png", "c_seg.png", "d.tif", "e_prob.nii.gz", "f_prob.nii", "g_prob.nii.gz")
    ]
    picture(files[0], cells)
    picture(files[1], 255 * cells)
    picture(files[2], 200 * cells)
    picture(files[3], cells.astype(np.float32))
    channels = np.stack([1 - cells, cells], axis=-1).swapaxes(0, 1)  # (x, y, classes)
    volume(files[4], channels[:, :, None].astype(np.float32))
    volume(files[5], channels[..., 1:].astype(np.float32))
    rows_first = np.eye(4)[:, [1, 0, 2, 3]]
    nib.Nifti1Image(channels.swapaxes(0, 1)[:, :, None].astype(np.float32), rows_first).to_filename(files[6])
    for number, file in enumerate(files):
        out = tmp_path / f"out{number}"
        (row,), _, _ = score(out, file, tmp_path / "t.png", "--measure", "membranes")
        assert_scores(row, membrane_scores(section("a", cells.T, truth.T)))


def test_probabilities_before_labels_before_bare_names(tmp_path: Path) -> None:
    truth = np.zeros((8, 9), np.uint8)
    truth[:, :4] = truth[:, 5:] = 1
    for folder in ("p", "t"):
        picture(tmp_path / folder / "x.png", truth)
    picture(tmp_path / "p/x_seg.png", 1 - truth)
    picture(tmp_path / "p/x_spread.png", truth)  # is no prediction
    volume(tmp_path / "p/x_prob.nii.gz", np.full((9, 8), 0.5, np.float32))
    options = tmp_path / "p", tmp_path / "t", "--measure"
    (row,), _, _ = score(tmp_path / "a", *options, "membranes")
    assert float(row["pixel_error"]) == pytest.approx(8 / (72 + 64))
    (row,), _, _ = score(tmp_path / "b", *options, "classes")
    assert float(row["dice"]) == 0


def test_touching_numbers_are_membranes(tmp_path: Path) -> None:
    truth = np.full((8, 9), 255, np.uint8)
    truth[:, 4] = 0
    numbered = np.ones((8, 9), np.uint16)
    numbered[:, 5:] = 2
    picture(tmp_path / "t.png", truth)
    picture(tmp_path / "p.png", numbered)
    (row,), _, _ = score(tmp_path / "out", tmp_path / "p.png", tmp_path / "t.png", "--measure", "membranes")
    assert [float(row[name]) for name in MEMBRANE_SCORES] == [1, 1, 0, 0, 0]


def test_bad_cases_are_told_and_the_others_done(tmp_path: Path) -> None:
    p, t = tmp_path / "p", tmp_path / "t"
    numbered = np.zeros((8, 9), np.uint8)
    numbered[1:3, 1:3], numbered[5:7, 5:7] = 1, 2
    for name in ("good", "half", "lost", "mask", "size", "twice", "unread"):
        picture(t / f"{name}.png", numbered)
        picture(p / f"{name}.png", numbered)
    picture(t / "unpredicted.png", numbered)
    (t / "lost.png").unlink()
    picture(p / "mask.png", np.minimum(numbered, 1))
    picture(p / "size.png", numbered[:7])
    picture(p / "twice.tif", numbered)
    (p / "unread.png").write_bytes((p / "unread.png").read_bytes()[:40])
    (p / "half.png").unlink()
    volume(p / "half.nii.gz", np.full((9, 8), 0.5, np.float32))
    rows, summary, output = score(tmp_path / "out", p, t, "--measure", "instances", failed=6)
    assert [row["case"] for row in rows] == ["good"]
    assert summary["cases"] == 1
    for sentence in (
        f"{p}/half.nii.gz: found 1 different fractional values such as 0.5; a label holds whole numbers",
        f"{p}/lost.png: found no truth 'lost' in {t}; each prediction needs one; add it.",
        f"{p}/mask.png: found 2 separate objects that all have the number 1; instances have a number each",
        f"{p}/size.png: found shape (9, 7) where the truth {t}/size.png has (9, 8); both must lie",
        f"{p}/twice.png: found 2 files of one case (twice.png, twice.tif); one is expected; keep one.",
        f"{p}/unread.png: found a truncated or corrupt .png file",
        f"1 file(s) of {t} have no prediction and count nowhere",
        "error: 6 case(s) were not scored, 1 were",
    ):
        assert sentence in output


def test_one_mask_of_one_object_is_an_instance(tmp_path: Path) -> None:
    one = np.zeros((8, 9), np.uint8)
    one[2:5, 3:6] = 7
    picture(tmp_path / "t.png", one)
    (row,), _, _ = score(tmp_path / "out", tmp_path / "t.png", tmp_path / "t.png", "--measure", "instances")
    assert float(row["ap"]) == 1


def test_volumes_on_two_grids_are_refused(tmp_path: Path) -> None:
    pred, truth = draw(0, shape=(6, 8, 4))
    moved = np.eye(4)
    moved[0, 3] = 3
    volume(tmp_path / "p.nii", pred, moved)
    volume(tmp_path / "t.nii", truth)
    result = call(tmp_path / "p.nii", tmp_path / "t.nii")
    assert result.exit_code == 1
    assert (
        f"{tmp_path}/p.nii: found a grid that lies up to 3 mm away from that of the truth {tmp_path}/t.nii"
        in result.output
    )


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((9, 8), 7.0, np.float32), "cell_probability holds 7: give numbers from 0 to 1"),
        (np.full((9, 8, 4), 0.4, np.float32), "found shape (9, 8, 4); a section has one grey channel"),
        (np.full((9, 8, 3, 2), 0.5, np.float32), "found shape (9, 8, 3, 2); a section has one grey channel"),
    ],
)
def test_what_is_no_probability_is_told(tmp_path: Path, array: np.ndarray, message: str) -> None:
    picture(tmp_path / "t.png", np.eye(8, 9).astype(np.uint8))
    volume(tmp_path / "t_prob.nii", array)
    result = call(tmp_path / "t_prob.nii", tmp_path / "t.png", "--measure", "membranes")
    assert result.exit_code == 1
    assert f"{tmp_path}/t_prob.nii" in result.output
    assert message in result.output


def test_volumes_have_no_membrane_scores(tmp_path: Path) -> None:
    volume(tmp_path / "t.nii", draw(0, shape=(6, 8, 4))[1])
    result = call(tmp_path / "t.nii", tmp_path / "t.nii", "--measure", "membranes")
    assert result.exit_code == 1
    assert "t.nii: found 3 dimensions; membranes are scored in 2D; save each section" in result.output


def test_options_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    picture(tmp_path / "p/a.png", draw(0)[0])
    picture(tmp_path / "t/b.png", draw(0)[1])
    p, t = tmp_path / "p", tmp_path / "t"
    refused(r"no file of .*p \(a\.png\) goes with a truth of .*t \(b\)", p, t)
    refused("none does not exist; PRED and TRUTH are two folders or two files", tmp_path / "none", t)
    refused("are a file and a folder; both are of one kind", p / "a.png", t)
    refused(
        "--label_name names classes", p, t, "--measure", "instances", *as_options(label_name=["a=0", "b=1"])
    )
    refused("--label_name a is not understood", p / "a.png", t / "b.png", *as_options(label_name="a"))
    refused("--tolerance is -1.0; it is a distance of 0 or more", p, t, "--tolerance", -1)
    picture(tmp_path / "n.png", np.zeros((4, 5), np.uint8))
    refused("the labels hold the value 0 everywhere", tmp_path / "n.png", tmp_path / "n.png")


def test_truths_in_a_folder_for_each_case_and_accents_in_either_form(tmp_path: Path) -> None:
    """Floats off by rounding are whole numbers here too."""
    truth = np.zeros((4, 5, 6), np.uint8)
    truth[1:3] = 1
    for case in ("s0", "Cafe\u0301", "1.2.3"):
        volume(tmp_path / f"truth/{case}/seg.nii.gz", truth)
    for case in ("s0", "Caf\u00e9", "1.2.3"):
        volume(tmp_path / f"pred/{case}_seg.nii.gz", truth.astype(np.float32) * np.float32(0.9999999))
    rows, _, _ = score(tmp_path / "out", tmp_path / "pred", tmp_path / "truth")
    assert {row["case"]: float(row["dice"]) for row in rows} == dict.fromkeys(("s0", "Caf\u00e9", "1.2.3"), 1)


def test_objects_with_the_largest_numbers(tmp_path: Path) -> None:
    """No float holds them apart."""
    truth = np.zeros((8, 9, 5), np.uint64)
    truth[1:4, 1:8, 1:4], truth[4:7, 1:8, 1:4] = 2**63, 2**63 + 1
    for kind in ("pred", "truth"):
        (tmp_path / kind).mkdir()
        nib.save(nib.Nifti1Image(truth, np.eye(4), dtype=np.uint64), tmp_path / kind / "a.nii.gz")
    rows, _, _ = score(tmp_path / "out", tmp_path / "pred", tmp_path / "truth", "--measure", "instances")
    assert (float(rows[0]["ap"]), rows[0]["predicted"], rows[0]["true"]) == (1, "2", "2")


@pytest.mark.parametrize("measure", ["classes", "instances"])
def test_the_value_to_ignore_is_given_or_listed(measure: str, tmp_path: Path) -> None:
    """By --ignore, and by the dataset.json whose section is judged."""
    truth = np.zeros((20, 30), np.uint8)
    truth[2:8, 2:8] = 1
    truth[:, 15:] = 9
    pred = np.where(truth == 1, 1, 0).astype(np.uint8)
    pred[2:8, 20:28] = 2 if measure == "instances" else 1
    picture(tmp_path / "pred/a.png", pred)
    picture(tmp_path / "truth/a.png", truth)
    options = ("--measure", measure)
    name = "ap50" if measure == "instances" else "dice"
    rows, _, _ = score(tmp_path / "with", tmp_path / "pred", tmp_path / "truth", *options, "--ignore", 9)
    assert float(rows[0][name]) == 1
    entry = {"case": "a", "image": "../pred/a.png", "label": "a.png"}
    labels = {"0": "background", "1": "label1", "9": "ignore"}
    others = {name: [{**entry, "case": name}] for name in ("training", "validation")}
    description = {"labels": labels, **others, "testing": [entry]}
    (tmp_path / "truth/dataset.json").write_text(json.dumps(description))
    section = (*options, "--section", "testing")
    rows, _, _ = score(tmp_path / "listed", tmp_path / "pred", tmp_path / "truth", *section)
    assert float(rows[0][name]) == 1
    refused(
        "--ignore 9 goes with classes", tmp_path / "pred", tmp_path, "--measure", "membranes", "--ignore", 9
    )
