"""`python -m bundle study` on tiny data: trains, judges, averages, and goes on where it was cut."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import monai.bundle
import pytest

import bundle.runs.study
from tests.commands import ROOT, TINY, as_options, datalist, invoke, unchanged_process

pytestmark = pytest.mark.workflow


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids and commands that the study runs, here without a process for each."""
    done: list[str] = []
    monkeypatch.chdir(ROOT)

    def run_bundle(config_file: list[str] | None = None, **overrides: Any) -> None:
        done.append("segment" if config_file else "train")
        with unchanged_process():
            monai.bundle.run(config_file=config_file, **overrides)

    def run_python(*arguments: str) -> None:
        done.append(arguments[2])
        assert invoke(*arguments[2:]).exit_code == 0

    monkeypatch.setattr(bundle.runs.study, "run_bundle", run_bundle)
    monkeypatch.setattr(bundle.runs.study, "run_python", run_python)
    return done


@pytest.fixture
def nnunet_cells(cells: Path, tmp_path: Path) -> Path:
    """The same pictures listed from an nnU-Net folder, where an image is called x_0000 and its label x."""
    raw = tmp_path / "raw"
    for kind, ending in (("images", "_0000"), ("labels", "")):
        (raw / f"{kind}Tr").mkdir(parents=True)
        for file in (*(cells / f"{kind}Tr").iterdir(), *(cells / f"{kind}Ts").iterdir()):
            shutil.copy(file, raw / f"{kind}Tr" / f"{file.stem}{ending}.png")
    description = {"channel_names": {"0": "grey"}, "labels": {}, "file_ending": ".png"}
    (raw / "dataset.json").write_text(json.dumps(description))
    datalist(tmp_path / "listed", nnunet=raw, instances=True, folds=2, test_fraction=0.34)
    return tmp_path / "listed"


def test_study_of_two_seeds_and_two_variants(nnunet_cells: Path, tmp_path: Path, commands: list[str]) -> None:
    experiment = {"config_file": ["configs/train.json", "configs/task/phantom_cells.json"]}
    (tmp_path / "args.json").write_text(json.dumps({**experiment, "val_interval": 1}))
    variants = {"whole": {}, "One image": {"train::dataset::data": "$@split['training'][:1]"}}
    (tmp_path / "variants.json").write_text(json.dumps({"common": TINY[2], "variants": variants}))

    def study(*seeds: int, **more: object) -> str:
        options = {
            "args_file": tmp_path / "args.json",
            "dataset_dir": nnunet_cells,
            "output_dir": tmp_path / "out",
            "measure": "instances",
            "variants": tmp_path / "variants.json",
            **more,
        }
        result = invoke("study", *as_options(**options, seed=seeds), "--max_epochs", 2)
        assert result.exit_code == 0, result.output
        return result.output

    study(0)
    assert commands == ["train", "segment", "score"] * 2
    output = study(0, 1)  # the first two stand
    assert commands[6:] == ["train", "segment", "score"] * 2 + ["segment", "score"] * 2
    assert (tmp_path / "out/whole/ensemble_0_1/testing/summary.json").is_file()  # of these two seeds alone
    commands.clear()
    study(1, 0)
    assert not commands
    study(0, 1)
    with (tmp_path / "out/testing/study.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["variant"], row["seed"]) for row in rows] == [
        *(("whole", "0"), ("One image", "0"), ("whole", "1"), ("One image", "1")),
        *(("whole", "ensemble"), ("One image", "ensemble")),
    ]
    assert all(0 <= float(row["ap50"]) <= 1 for row in rows)
    assert all(float(row["minutes"]) > 0 for row in rows[:4])
    assert (tmp_path / "out/testing/study.png").is_file()
    table = [line.split() for line in output.splitlines() if "±" in line]
    assert [line[:2] for line in table] == [["whole", "2"], ["One", "image"]]
    curves = [tmp_path / f"out/{name}/seed0/learning_curve.csv" for name in ("whole", "one_image")]
    assert curves[0].read_text() != curves[1].read_text()
    study(0, inferer="configs/inferer/orientations.json")
    assert commands == ["train", "segment", "score"] * 2  # training has nothing left to do
    assert (tmp_path / "out/testing_orientations/study.csv").is_file()
    assert len(curves[0].read_text().splitlines()) == 3
