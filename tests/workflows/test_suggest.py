"""`python -m bundle suggest` and `rounds` on tiny data."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import monai.bundle
import pytest

import bundle.runs.rounds
import bundle.runs.suggest
from scripts.errors import InputError
from tests.commands import ROOT, TINY, as_options, input_error, invoke, run, unchanged_process

pytestmark = pytest.mark.workflow


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What is run, by its output folder, here without a process for each."""
    done: list[Path] = []
    monkeypatch.chdir(ROOT)

    def run_bundle(config_file: list[str] | None = None, warm: Any = None, **overrides: Any) -> None:
        done.append(Path(overrides["output_dir"]))
        try:
            with unchanged_process():
                monai.bundle.run(config_file=config_file, **overrides)
        except Exception as error:
            raise InputError(input_error(error)) from None

    for module in (bundle.runs.suggest, bundle.runs.rounds):
        monkeypatch.setattr(module, "run_bundle", run_bundle)
    return done


@pytest.fixture(scope="module")
def trained(organ: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of one epoch."""
    folder = tmp_path_factory.mktemp("trained")
    run(
        "train", "task/phantom_organ", dataset_dir=str(organ), output_dir=str(folder), max_epochs=1, **TINY[3]
    )
    return folder


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def test_images_without_label_are_ranked(
    trained: Path, organ: Path, tmp_path: Path, runs: list[Path]
) -> None:
    images = sorted((organ / "imagesTr").iterdir())
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / images[0].name).touch()
    places = {"images": organ / "imagesTr", "labels": tmp_path / "labels", "output_dir": tmp_path / "out"}
    result = invoke("suggest", *as_options(recipe=trained / "inference.json", **places), "--runtime", "torch")
    assert result.exit_code == 0, result.output
    rows = rows_of(tmp_path / "out/suggested.csv")
    assert {row["file"] for row in rows} == {str(image) for image in images[1:]}
    assert [row["rank"] for row in rows] == [str(rank) for rank in range(1, len(images))]
    found = {(row["case"], row["class"]): row["entropy"] for row in rows_of(tmp_path / "out/uncertainty.csv")}
    assert all(found[row["case"], row["class"]] == row["score"] for row in rows)
    assert all(row["case"] in result.output for row in rows)


def test_a_bad_image_is_told_and_the_others_are_ranked(
    trained: Path, organ: Path, tmp_path: Path, runs: list[Path]
) -> None:
    (tmp_path / "images").mkdir()
    good = min((organ / "imagesTr").iterdir())
    (tmp_path / "images" / good.name).write_bytes(good.read_bytes())
    (tmp_path / "images/bad.nii.gz").write_bytes(b"no image")
    options = as_options(
        recipe=trained / "inference.json", images=tmp_path / "images", output_dir=tmp_path / "out"
    )
    result = invoke("suggest", *options, "--runtime", "torch")
    assert isinstance(result.exception, InputError)
    assert "1 of 2 images were not segmented" in str(result.exception)
    assert [row["file"] for row in rows_of(tmp_path / "out/suggested.csv")] == [
        str(tmp_path / "images" / good.name)
    ]


@pytest.mark.long
def test_rounds_go_on_where_they_were_cut(organ: Path, tmp_path: Path, runs: list[Path]) -> None:
    experiment = {"config_file": ["configs/train.json", "configs/task/phantom_organ.json"], **TINY[3]}
    (tmp_path / "args.json").write_text(json.dumps(experiment))
    cases = [
        {"image": str(image), "label": str(organ / "labelsTr" / image.name)}
        for image in sorted((organ / "imagesTr").iterdir())
    ]
    held = [
        {"image": str(image), "label": str(organ / "labelsTs" / image.name)}
        for image in sorted((organ / "imagesTs").iterdir())
    ]
    data = {"training": cases[:2] + held[:1], "validation": cases[2:3], "testing": held[1:]}
    (tmp_path / "data").mkdir()
    (tmp_path / "data/dataset.json").write_text(json.dumps(data))

    def rounds(*seeds: int) -> str:
        places = {"args_file": tmp_path / "args.json", "dataset_dir": tmp_path / "data"}
        options = as_options(**places, output_dir=tmp_path / "out", size=[1, 2], seed=list(seeds))
        result = invoke("rounds", *options, "--max_epochs", 1)
        assert result.exit_code == 0, result.output
        return result.output

    said = rounds(0)
    own = tmp_path / "out/seed0"
    assert runs == [
        *(own / "start", own / "start/next_entropy", own / "entropy2", own / "entropy2"),
        *(own / "start/next_random", own / "random2", own / "random2"),
    ]
    chosen = {
        name: [
            case["case"]
            for case in json.loads((own / name / "cases.json").read_text())["train::dataset::data"]
        ]
        for name in ("start", "entropy2", "random2")
    }
    assert len(chosen["start"]) == 1
    for name in ("entropy2", "random2"):
        assert chosen[name][:1] == chosen["start"]
        assert chosen[name][1] == rows_of(own / f"start/next_{name[:-1]}/suggested.csv")[0]["case"]
    rows = rows_of(tmp_path / "out/rounds.csv")
    assert [(row["strategy"], row["cases"]) for row in rows] == [
        *(("entropy", "1"), ("entropy", "2"), ("random", "1"), ("random", "2"))
    ]
    assert [bool(row["testing"]) for row in rows] == [False, True, False, True]
    assert (tmp_path / "out/rounds.png").is_file()
    assert "random" in said
    runs.clear()
    rounds(0)
    assert rows_of(tmp_path / "out/rounds.csv") == rows
    assert not runs
