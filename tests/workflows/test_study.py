"""`python -m bundle study` on tiny data: trains, judges, averages, and goes on where it was cut."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import bundle.made_of
import bundle.runs.budget
import bundle.runs.study
from scripts import machine
from scripts.errors import InputError
from tests.commands import TINY, as_options, datalist, invoke

pytestmark = pytest.mark.workflow

RESIDUAL = "configs/network/residual.json"


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


@pytest.mark.long
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


@pytest.mark.long
def test_equal_minutes_and_data_that_no_training_saw(
    cells: Path, tmp_path: Path, commands: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps follow from the time of one, which is measured once; every variant is judged on all data."""
    experiment = {"config_file": ["configs/train.json", "configs/task/phantom_cells.json"], **TINY[2]}
    (tmp_path / "args.json").write_text(json.dumps(experiment))
    variants = {"plain": {}, "residual": {"config_file": [*experiment["config_file"], RESIDUAL]}}
    (tmp_path / "variants.json").write_text(json.dumps({"variants": variants}))
    asked: list[str] = []

    def ask_doctor(run: dict[str, Any]) -> dict[str, Any]:
        kind = "training" if "section" not in run else "inference"
        asked.append(kind)
        slow = RESIDUAL in run["config_file"]
        if kind == "training":
            return {"seconds": {"step": 2.0 if slow else 1.0}}
        return {"seconds": {"cases": [9.0, 0.25]}}

    monkeypatch.setattr(bundle.runs.budget, "ask_doctor", ask_doctor)
    monkeypatch.setattr(bundle.runs.study, "STRENGTHS", (2,))
    shutil.copytree(cells, tmp_path / "elsewhere")

    def study(*more: object, **options: object) -> str:
        given = {"args_file": tmp_path / "args.json", "dataset_dir": cells, "output_dir": tmp_path / "out"}
        given |= {"measure": "instances", "variants": tmp_path / "variants.json", "seed": 0, **options}
        result = invoke("study", *as_options(**given), *more)
        return str(result.exception) if result.exception else result.output

    assert "Tables and pictures" in study(minutes=0.2, corrupt="blur")
    commands.clear()
    output = study(minutes=0.2, other=tmp_path / "elsewhere", corrupt="blur")
    assert commands == ["segment", "score"] * 2  # what is new alone
    plan = json.loads((tmp_path / "out/plan.json").read_text())
    # 12 seconds: 12 steps of one second, 6 of two, each an epoch of its own
    assert {name: row["steps"] for name, row in plan.items()} == {"plain": 12, "residual": 6}
    assert plan["plain"]["parameters"] < plan["residual"]["parameters"]
    assert all(row["seconds_a_case"] == {"testing": 0.25} for row in plan.values())
    assert all(row["step_bytes"] > 0 for row in plan.values())
    assert asked == ["training"] * 2 + ["inference"] * 2
    for name, epochs in (("plain", 12), ("residual", 6)):
        curve = (tmp_path / f"out/{name}/seed0/learning_curve.csv").read_text()
        assert len(curve.splitlines()) == 1 + epochs
    with (tmp_path / "out/testing/comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    everywhere = ["own", "elsewhere", "blur 2"]
    assert [(row["data"], row["variant"]) for row in rows] == [
        (data, variant) for data in everywhere for variant in ("plain", "residual")
    ]
    by_place = {(row["data"], row["variant"]): row for row in rows}
    assert float(by_place["elsewhere", "plain"]["drop"]) == pytest.approx(0)  # it is a copy
    assert by_place["own", "plain"]["p"] == ""
    assert 0 < float(by_place["own", "residual"]["p_holm"]) <= 1
    assert (tmp_path / "out/testing/comparison.png").is_file()
    assert "elsewhere" in output
    assert "differs" in output

    commands.clear()
    study(minutes=0.2, other=tmp_path / "elsewhere", corrupt="blur")
    assert (commands, len(asked)) == ([], 4)  # nothing is measured, trained or judged again
    assert "max_epochs 5: the minutes say how long" in study("--max_epochs", 5, minutes=0.2)
    assert "more than 0" in study(minutes=-1)
    assert "one step takes 0.017 here" in study(minutes=0.01, output_dir=tmp_path / "new")
    twin = shutil.copytree(cells, tmp_path / "more/elsewhere")
    assert "several data sets have one name" in study(minutes=0.2, other=[twin, tmp_path / "elsewhere"])

    # what is changed between two calls is named, and nothing is done
    file = tmp_path / "inferer.json"
    file.write_text("{}")
    plan_file, before = tmp_path / "out/plan.json", json.dumps(plan)
    with monkeypatch.context() as patch:
        patch.setattr(machine, "processor", lambda: "another")
        output = study(minutes=0.2)
        assert "plan.json was measured on" in output
        assert "and this is another, " in output
        assert "machine was " in output
        three = json.dumps({"variants": {**variants, "third": {"alpha": 0.25}}})
        (tmp_path / "three.json").write_text(three)
        assert "equal minutes are not equal compute" in study(minutes=0.2, variants=tmp_path / "three.json")
    commands.clear()
    refused = {
        "minutes was 0.2 and is 0.4": {"minutes": 0.4},
        "minutes was 0.2 and is not set": {},
        "cases::training was 3 cases": {"minutes": 0.2, "dataset_dir": _other_labels(cells, tmp_path)},
        "measure was instances and is membranes": {"minutes": 0.2, "measure": "membranes"},
    }
    for sentence, options in refused.items():
        assert f"was made of something else ({sentence}" in study(**options)
    assert "config::batch_size was 4 and is 3" in study("--batch_size", 3, minutes=0.2)
    (tmp_path / "args.json").write_text(json.dumps({**experiment, "learning_rate": 0.5}))
    assert "config::learning_rate was 0.003 and is 0.5" in study(minutes=0.2)
    (tmp_path / "args.json").write_text(json.dumps(experiment))
    plan_file.write_text(before.replace('"max_epochs": 12', '"max_epochs": 13'))
    assert "plan.json does not have the steps that 'plain' was trained with" in study(minutes=0.2)
    plan_file.write_text(before)
    other_weights = tmp_path / "out/residual/seed0/model.pt"
    other_weights.rename(tmp_path / "kept.pt")
    shutil.copy(tmp_path / "out/plain/seed0/model.pt", other_weights)
    assert "residual/seed0/testing was made of something else (weights was" in study(minutes=0.2)
    (tmp_path / "kept.pt").rename(other_weights)
    assert commands == []
    assert "Tables and pictures" in study(minutes=0.2)


def _other_labels(cells: Path, folder: Path) -> Path:
    """A copy of the data set, one label of which is the label of another case."""
    made = shutil.copytree(cells, folder / "relabelled")
    first, second = sorted((made / "labelsTr").iterdir())[:2]
    shutil.copy(second, first)
    return made


@pytest.mark.long
def test_the_doctor_times_a_step_and_a_case(cells: Path, tmp_path: Path) -> None:
    """As it is, in a process of its own."""
    ids = {**TINY[2], "max_epochs": 1, "val_interval": 1, "output_dir": str(tmp_path / "out")}
    experiment = {"config_file": ["configs/train.json", "configs/task/phantom_cells.json"], **ids}
    found = bundle.runs.budget.ask_doctor({**experiment, "dataset_dir": str(cells)})
    assert 0 < found["seconds"]["step"] < 10


def test_what_the_doctor_finds_wrong_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {
        "check": "ids",
        "found": "chanels is no id",
        "fix": "write channels",
        "status": "error",
        "values": {},
    }
    said = {"stdout": json.dumps({"checks": [row]}), "stderr": ""}
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **how: SimpleNamespace(**said))
    with pytest.raises(InputError, match=r"doctor` finds 1 error.*ids: chanels is no id write channels"):
        bundle.runs.budget.ask_doctor({})
    said["stdout"] = ""
    with pytest.raises(InputError, match=r"doctor` broke off \(nothing\)"):
        bundle.runs.budget.ask_doctor({})
