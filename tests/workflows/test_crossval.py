"""`python -m bundle crossval` on tiny data: all folds, all cases, one ensemble, and on where it was cut."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import bundle.runs.crossval
from tests.commands import as_options, datalist, invoke, read_array, run, written

pytestmark = pytest.mark.workflow


@pytest.fixture
def folds(cells: Path, tmp_path: Path) -> Path:
    """The pictures as those of three people, in two folds, and one of the three held out."""
    for kind in ("images", "labels"):
        shutil.copytree(cells / f"{kind}Tr", tmp_path / kind)
        for file in (cells / f"{kind}Ts").iterdir():
            shutil.copy(file, tmp_path / kind)
    people = [f"cells_{n:03},{'aabbcc'[n]}" for n in range(6)]
    (tmp_path / "who.csv").write_text("\n".join(["case,subject", *people]) + "\n")
    source = {"images": tmp_path / "images", "labels": tmp_path / "labels", "subjects": tmp_path / "who.csv"}
    datalist(tmp_path / "listed", **source, instances=True, folds=2, test_fraction=0.3)
    return tmp_path / "listed"


def test_crossval_of_two_folds(
    folds: Path, tmp_path: Path, commands: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def crossval(*more: object) -> str:
        options = {"args_file": folds / "experiment.json", "output_dir": out}
        ids = ("--channels", "[4,8]", "--patch_size", "[32,32]", "--val_interval", 1, *more)
        result = invoke("crossval", *as_options(**options), "--max_epochs", 1, *ids)
        return str(result.exception) if result.exception else result.output

    # cut before the second fold is segmented
    whole = bundle.runs.crossval.run_bundle

    def cut(**run: object) -> None:
        if run.get("fold") == 1 and run.get("section"):
            raise SystemExit(143)
        whole(**run)

    with monkeypatch.context() as patch:
        patch.setattr(bundle.runs.crossval, "run_bundle", cut)
        assert crossval() == "143"
    assert commands == ["train", "segment", "train"]
    commands.clear()
    output = crossval()
    # of the first command a training that is at its end
    assert commands == ["train", "segment", "score", "tune", "segment", "score"]
    assert "fold 1 (2 of 2): training on the cases of the others; a fold takes" in output
    assert "4 cases of 2 subject(s), each judged by the network that did not see it" in output
    assert "2 cases of 1 subject(s), held out from all folds" in output
    assert f"--args_file {out}/ensemble.json --dataset_dir FOLDER --output_dir OUT" in output

    with (out / "crossval.csv").open() as file:
        rows = {row["case"]: row for row in csv.DictReader(file)}
    listed = {entry["case"]: entry for entry in json.loads((folds / "dataset.json").read_text())["training"]}
    assert {case: (row["subject"], int(row["fold"])) for case, row in rows.items()} == {
        case: (entry["subject"], entry["fold"]) for case, entry in listed.items()
    }
    assert written(out / "out_of_fold") == sorted(
        f"{case}_{kind}" for case in rows for kind in ("prob.nii.gz", "seg.png")
    )
    found = json.loads((out / "summary.json").read_text())
    assert {row["score"]: row["mean"] for row in found["out_of_fold"]}["ap50"] == pytest.approx(
        np.mean([float(row["ap50"]) for row in rows.values()])
    )
    assert found["folds"] == {"0": 2, "1": 2}
    assert [row["cases"] for row in found["testing"]] == [2] * 4
    assert found["data"] == {"name": "listed", "cases": 4, "subjects": 2, "held_out": 2}
    assert found["versions"].keys() >= {"version", "monai_version", "pytorch_version"}
    assert (out / "crossval.png").is_file()
    overlays = json.loads((out / "ensemble.json").read_text())["config_file"]
    assert overlays[-1] == str(out / "tuned" / "postprocessing.json")
    assert "to_labels" in json.loads(Path(overlays[-1]).read_text())

    # nothing is done twice, another training is refused, and a fold that is removed is made again
    commands.clear()
    assert "4 cases of 2 subject(s)" in crossval()
    assert commands == []
    assert "was made of something else (config::alpha was 0.5 and is 0.25)" in crossval("--alpha", 0.25)
    shutil.rmtree(out / "fold0")
    crossval()
    assert commands == ["train", "segment"]  # gives the same weights, whose scores stand

    # each case is what the network of its fold makes of it
    images = tmp_path / "one"
    images.mkdir()
    case = next(case for case, entry in listed.items() if entry["fold"] == 1)
    shutil.copy(tmp_path / "images" / f"{case}.png", images)
    made = {}
    for fold in (0, 1):
        results = tmp_path / f"by{fold}"
        run(
            str(out / f"fold{fold}/inference.json"),
            dataset_dir=str(images),
            output_dir=str(results),
            save_probabilities=True,
        )
        made[fold] = read_array(results / f"{case}_prob.nii.gz")
    kept = read_array(out / "out_of_fold" / f"{case}_prob.nii.gz")
    assert np.array_equal(kept, made[1])
    assert not np.array_equal(kept, made[0])
