"""What is learnt of probabilities that are too sure, and the command on cases that were predicted before."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scipy.special import softmax

from bundle.runs.calibrate import Sample, draw_voxels, groups_of, learn
from scripts.judging.reliability import near_borders
from scripts.labels import IGNORE_LABEL
from tests.commands import as_options, workbench

#: How much too sure the made-up networks are.
SHARP = 2.5


def sample(count: int, seed: int, scale: np.ndarray, bias: np.ndarray) -> Sample:
    """Truths drawn by probabilities, and the logarithms of others, of which these are the calibrated ones."""
    rng = np.random.default_rng(seed)
    logs = np.log(softmax(4 * rng.standard_normal((count, 3)), axis=1))
    true = softmax(logs / scale + bias, axis=1)
    drawn = (rng.random(count)[:, None] > np.cumsum(true, 1)).sum(1).clip(0, 2)
    return Sample(logs, drawn, np.full(count, 1 / count))


def test_the_temperature_of_what_is_too_sure_is_found() -> None:
    samples = [sample(4000, seed, np.full(3, SHARP), np.zeros(3)) for seed in range(5)]
    assert learn(samples, classwise=False).temperature == pytest.approx((SHARP,), rel=0.05)
    assert learn(samples, classwise=False).bias == ()


def test_a_scale_and_a_bias_of_each_class_are_found() -> None:
    scale, bias = np.array([1.0, 2.0, 3.0]), np.array([0.4, -0.6, 0.2])
    found = learn([sample(20_000, seed, scale, bias) for seed in range(5)], classwise=True)
    np.testing.assert_allclose(found.temperature, scale, rtol=0.1)
    np.testing.assert_allclose(found.bias, bias, atol=0.1)


def test_voxels_are_drawn_of_each_kind_and_stand_for_the_others() -> None:
    truth = np.zeros((60, 50, 40), np.uint8)
    truth[20:30, 20:30, 20:30] = 1
    truth[:2] = IGNORE_LABEL
    pred = np.stack([0.75 - 0.5 * (truth == 1), 0.25 + 0.5 * (truth == 1)]).astype(np.float32)
    drawn = draw_voxels(pred, truth, 0)
    assert drawn.weights.sum() == pytest.approx(1)
    known = truth != IGNORE_LABEL
    assert drawn.weights[drawn.truth == 1].sum() == pytest.approx((truth == 1).sum() / known.sum())
    assert len(drawn.truth) == 3 * 500 + (~near_borders(pred.argmax(0)) & (truth == 1)).sum()
    np.testing.assert_allclose(np.exp(drawn.logs.max(1)), 0.75, atol=1e-6)
    assert np.array_equal(drawn.logs, draw_voxels(pred, truth, 0).logs)


@pytest.fixture
def predicted(tmp_path: Path) -> Path:
    """Pictures of 8 people in 4 folds, and probabilities of them that are too sure."""
    rng = np.random.default_rng(0)
    listed = []
    for number in range(8):
        field = np.kron(rng.standard_normal((6, 8)), np.ones((8, 8))) + 0.5 * rng.standard_normal((48, 64))
        logits = np.stack([-field, field])
        true = softmax(logits, axis=0)
        label = (rng.random((48, 64)) < true[1]).astype(np.uint8)
        name = f"p{number}"
        for kind, values in (("images", (255 * true[1]).astype(np.uint8)), ("labels", label)):
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.fromarray(values).save(tmp_path / kind / f"{name}.png")
        (tmp_path / "pred").mkdir(exist_ok=True)
        save(tmp_path / "pred" / f"{name}_prob.nii.gz", softmax(SHARP * logits, axis=0))
        entry = {"image": f"images/{name}.png", "label": f"labels/{name}.png"}
        listed.append({**entry, "case": name, "subject": f"s{number}", "fold": number % 4})
    (tmp_path / "dataset.json").write_text(json.dumps({"training": listed}))
    task = {"spatial_dims": 2, "labels": {"background": 0, "cell": 1}, "patch_size": [32, 32], "segments": {}}
    (tmp_path / "task.json").write_text(json.dumps(task))
    files = ["configs/train.json", str(tmp_path / "task.json")]
    (tmp_path / "experiment.json").write_text(json.dumps({"config_file": files}))
    return tmp_path


def save(path: Path, probabilities: np.ndarray) -> None:
    """Probabilities, (classes, rows, columns), as `save_probabilities` writes those of a picture."""
    values = np.moveaxis(probabilities, 0, -1)[:, :, None].astype(np.float32)
    nib.Nifti1Image(values, np.eye(4)[[1, 0, 2, 3]]).to_filename(path)


def calibrate(folder: Path, *more: str, **options: object) -> str:
    given = {"args_file": folder / "experiment.json", "output_dir": folder / "out", "dataset_dir": folder}
    given |= {"pred": folder / "pred", "section": "training"}
    return workbench("calibrate", *as_options(**given, **options), *more)


def test_the_command_learns_on_other_folds_than_it_judges(predicted: Path) -> None:
    said = calibrate(predicted)
    out = predicted / "out"
    overlay = json.loads((out / "calibration.json").read_text())
    assert overlay["calibration"]["temperature"] == pytest.approx(SHARP, rel=0.15), said
    assert overlay["_desc_"] == "learnt on 8 cases of 8 subjects"
    about = json.loads((out / "calibrate.json").read_text())
    assert about["changed_voxels"] == 0
    assert [row["fold"] for row in about["folds"]] == [0, 1, 2, 3]
    for row in about["folds"]:
        assert row["ece overall, after"] < row["ece overall, before"] / 2
        assert row["temperature"] != overlay["calibration"]["temperature"]
    with (out / "calibration.csv").open() as file:
        rows = {(row["region"], row["measure"]): row for row in csv.DictReader(file)}
    for row in rows.values():
        assert float(row["after"]) < float(row["before"])
        assert float(row["after_low"]) <= float(row["after_high"])
    assert np.asarray(Image.open(out / "reliability.png")).std() > 0
    assert "Each fold by what was learnt on the others" in said

    (out / "predicted_dice.csv").touch()
    assert "No predicted Dice" in calibrate(predicted, classwise=True)
    assert not (out / "predicted_dice.csv").exists()
    overlay = json.loads((out / "calibration.json").read_text())
    assert overlay["calibration"]["temperature"].keys() == {"background", "cell"}


def test_what_does_not_help_changes_nothing(predicted: Path) -> None:
    """Of probabilities that say nothing, the same everywhere."""
    for file in (predicted / "pred").iterdir():
        save(file, np.full((2, 48, 64), 0.5))
    assert "changes nothing" in calibrate(predicted)
    assert json.loads((predicted / "out" / "calibration.json").read_text())["calibration"] is None


def test_bad_input_is_a_sentence(predicted: Path) -> None:
    pred = predicted / "pred"
    wrong = softmax(np.random.default_rng(0).standard_normal((2, 48, 64)), axis=0)
    wrong[0, 0, 0], wrong[1, 0, 0] = -0.5, 1.5
    save(pred / "p0_prob.nii.gz", wrong)
    assert "1 of 8 cases were not judged: p0" in calibrate(predicted)
    assert "7 cases" in json.loads((predicted / "out" / "calibration.json").read_text())["_desc_"]
    for number in range(1, 5):
        (pred / f"p{number}_prob.nii.gz").unlink()
    said = calibrate(predicted)
    assert "3 cases of 3 subject(s) (p5, p6, p7) are too few to calibrate by, as 1 more are bad" in said
    assert "of 5 subjects or more" in said
    for file in (predicted / "out").iterdir():
        file.unlink()
    (predicted / "out").rmdir()
    calibrate(predicted)
    assert not (predicted / "out").exists()


def test_without_folds_subjects_are_left_out_together(predicted: Path) -> None:
    names = [f"p{number}" for number in range(8)]
    subjects = {name: f"s{index // 2}" for index, name in enumerate(names)}
    assert groups_of(names, predicted, 0, subjects) == {name: index % 4 for index, name in enumerate(names)}
    one_fold = groups_of(["p0", "p4"], predicted, 0, {"p0": "a", "p4": "b"})
    assert len(set(one_fold.values())) == 2
