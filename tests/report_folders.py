"""Folders as the commands leave them, for reports, written by hand: nothing is trained."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image

from scripts.files import write_csv
from scripts.judging import SCORES, class_scores
from scripts.judging.files import Pair, read_classes
from scripts.judging.tables import summarize, write_scores

#: A name that would run if it were not escaped, and one with all that HTML minds.
BAD_CASE, BAD_CLASS = "<script>alert('x')</script>", 'in & "out" </td>'

LABELS = {"background": 0, BAD_CLASS: 1, "outer": 2}
CASES = [BAD_CASE, "b", "c", "d", "e"]

CONFIG: dict[str, Any] = {
    "spatial_dims": 3,
    "labels": LABELS,
    "instances": False,
    "patch_size": [16, 16, 8],
    "spacing": [1.0, 1.0, 2.0],
    "geometry": [{"_target_": "Orientationd"}],
    "normalise": [{"_target_": "NormalizeIntensityd"}],
    "channels": [4, 8],
    "network_def": {"_target_": "scripts.networks.UNet", "channels": "@channels"},
    "batch_size": 2,
    "max_epochs": 3,
    "learning_rate": 0.002,
    "weight_decay": 0.01,
    "alpha": 0.5,
    "loss": {"_target_": "scripts.losses.WeightedDiceCELoss"},
    "optimizer": {"_target_": "torch.optim.AdamW"},
    "lr_scheduler": {"_target_": "torch.optim.lr_scheduler.CosineAnnealingLR"},
    "_reasons": {"patch_size": "as the median image", "batch_size": "patches <b>in</b> a step"},
}


def written(file: Path, content: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


def volume(file: Path, values: np.ndarray) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.diag([1.0, 1.0, 2.0, 1.0])), file)
    return file


def write_training(folder: Path, epochs: int) -> None:
    """What a training of three epochs leaves after some of them."""
    rows = [
        {"epoch": n, "loss": 1 / n, "val_mean_dice": 0.5 + n / 10 if n % 2 else None, "minutes": 0.25}
        for n in range(1, epochs + 1)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / "learning_curve.csv", rows)
    (folder / "model.pt").write_bytes(b"")
    written(folder / "inference.json", {**CONFIG, "save_spread": False})
    facts = {"version": "0.8.0", "monai_version": "1.6.1", "pytorch_version": "2.13.0"}
    written(folder / "metadata.json", {**facts, "data": {"training": 3, "validation": 2}})


def judge(folder: Path, pred: Path, cases: list[dict[str, Any]]) -> None:
    """Score segmentations as an evaluation does."""
    rows = []
    for case in cases:
        file = next(pred.glob(f"{case['file']}_seg.*"))
        judged = read_classes(Pair(case["case"], file, Path(case["label"])), LABELS)
        names = list(LABELS)[1:]
        scores = class_scores(judged, len(LABELS), 1.0)
        rows += [{"case": case["case"], "class": n, **s} for n, s in zip(names, scores, strict=True)]
    about = {"measure": "classes", "cases": len(cases), "not_scored": 0, "tolerance": 1.0}
    write_scores(folder, rows, {**about, "summary": summarize(rows, SCORES)})


def write_data(tmp_path: Path) -> Path:
    """Five volumes of two people and one in two folds; a folder of a data set, with its plan."""
    folder, rng = tmp_path / "data", np.random.default_rng(0)
    entries = []
    for n, case in enumerate(CASES):
        label = np.zeros((20, 18, 10), np.uint8)
        label[4 + n : 12, 4:12, 2:8] = 1
        label[4 + n : 12, 12:15, 2:8] = 2
        image = label * 50 + rng.normal(100, 10, label.shape)
        volume(folder / f"images/{n}.nii.gz", image.astype(np.float32))
        volume(folder / f"labels/{n}.nii.gz", label)
        places = {"image": f"images/{n}.nii.gz", "label": f"labels/{n}.nii.gz"}
        entries.append({"case": case, **places, "fold": n // 2 % 2, "subject": f"s{n // 2}"})
    about = {"name": "Tiny & small", "licence": "CC0 <1.0>", "labels": {str(v): k for k, v in LABELS.items()}}
    written(folder / "dataset.json", {**about, "training": entries})
    written(folder / "task.json", {**CONFIG, "batch_size": 4})
    return folder


def listed(data: Path) -> list[dict[str, Any]]:
    """The cases of that folder, with the names of their results."""
    entries = json.loads((data / "dataset.json").read_text())["training"]
    return [
        {
            **entry,
            "label": str(data / entry["label"]),
            "file": entry["case"].translate(str.maketrans("<>/", "___")),
        }
        for entry in entries
    ]


def write_crossval(data: Path, tmp_path: Path) -> Path:
    """A cross-validation of two folds that came to its end."""
    folder, rng = tmp_path / "folds", np.random.default_rng(1)
    cases = listed(data)
    for n, case in enumerate(cases):
        label = np.asarray(nib.load(case["label"]).dataobj)  # type: ignore[attr-defined]
        pred = np.roll(label, n, axis=1)
        volume(folder / f"out_of_fold/{case['file']}_seg.nii.gz", pred)
        probabilities = rng.dirichlet([1, 1, 1], label.shape).astype(np.float32)
        volume(folder / f"out_of_fold/{case['file']}_prob.nii.gz", probabilities)
    judge(folder / "scores", folder / "out_of_fold", cases)
    with (folder / "scores/scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    of = {case["case"]: {"fold": case["fold"], "subject": case["subject"]} for case in cases}
    write_csv(folder / "crossval.csv", [{"case": row["case"], **of[row["case"]], **row} for row in rows])
    for fold in (0, 1):
        write_training(folder / f"fold{fold}", 3)
    made_of = {"config": CONFIG, "cases": {"fold 0": "3 cases (1)", "fold 1": "2 cases (2)"}}
    written(folder / "made_of.json", made_of)
    written(folder / "ensemble.json", {"config_file": []})
    return folder


def write_pictures(tmp_path: Path) -> tuple[Path, Path]:
    """Three pictures in colour with numbered objects, and what an inference alone leaves."""
    images, out, rng = tmp_path / "images", tmp_path / "out", np.random.default_rng(2)
    images.mkdir()
    out.mkdir()
    for n in range(3):
        label = np.zeros((30, 40), np.uint8)
        for number in range(1, n + 2):
            label[5:15, 10 * number - 8 : 10 * number - 1] = number
        Image.fromarray(rng.integers(0, 255, (30, 40, 3), np.uint8)).save(images / f"p{n}.png")
        Image.fromarray(label).save(out / f"p{n}_seg.png")
        Image.fromarray(rng.integers(0, 255, (30, 40), np.uint8)).save(out / f"p{n}_spread.png")
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(images / "left.png")
    return images, out
