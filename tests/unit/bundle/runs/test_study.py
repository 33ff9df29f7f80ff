"""Seeds and variants of a training: what is read, handed on, and summed up."""

from __future__ import annotations

import csv
import json
from inspect import signature
from pathlib import Path
from pydoc import locate

import pytest
from monai.bundle import ConfigParser

from bundle.runs.study import (
    ENSEMBLE,
    UNCHANGED,
    folder_name,
    read_variants,
    summary_table,
    write,
)
from scripts.errors import InputError
from tests.commands import CONFIGS, ROOT, workbench

ROWS = [
    {"variant": "whole", "seed": 0, "v_rand": 0.9, "v_info": 0.8, "minutes": 2.0},
    {"variant": "less", "seed": 0, "v_rand": 0.5, "v_info": None, "minutes": 3.0},
    {"variant": "whole", "seed": 1, "v_rand": 0.7, "v_info": 0.8, "minutes": 4.0},
    {"variant": "whole", "seed": ENSEMBLE, "v_rand": 0.95, "v_info": 0.9, "minutes": None},
]
for row in ROWS:
    row |= {"data": "own", "pixel_error": 0.1, "warping_error": 0.000131}


def written(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def study(folder: Path, *options: str) -> str:
    """What the command says of an experiment a.json and data in one folder."""
    places = ("--args_file", folder / "a.json", "--dataset_dir", folder, "--output_dir", folder / "out")
    return workbench("study", *places, "--measure", "classes", *options)


def test_variants_have_what_is_common_and_their_own(tmp_path: Path) -> None:
    file = written(
        tmp_path / "v.json", {"common": {"a": 1, "b": 2}, "variants": {"whole": {}, "less b": {"b": 0}}}
    )
    assert read_variants(file) == {"whole": {"a": 1, "b": 2}, "less b": {"a": 1, "b": 0}}
    assert read_variants(None) == {UNCHANGED: {}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"whole": {}}, "lists no variants: write"),
        ({"variants": {}}, "lists no variants"),
        ({"variants": {"whole": 1}}, "lists no variants"),
        ({"common": [], "variants": {"whole": {}}}, "lists no variants"),
        ({"variants": {"Less B": {}, "less b": {}}}, "several variants for the folder 'less_b'"),
    ],
)
def test_bad_variants(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_variants(written(tmp_path / "v.json", content))


def test_a_misspelt_id_of_a_variant_is_refused_before_the_first_training(tmp_path: Path) -> None:
    content = {"variants": {"whole": {}, "slow": {"learning_rat": 0.1}}}
    variants = written(tmp_path / "v.json", content)
    args_file = written(tmp_path / "a.json", {"config_file": ["configs/train.json"]})
    options = ("--args_file", str(args_file), "--variants", str(variants))
    assert study(tmp_path, *options).startswith("--learning_rat 0.1: no such id; did you mean learning_rate")


def test_folder_names_are_plain() -> None:
    assert folder_name("Without w0 = 10/5, elastic") == "without_w0_10_5_elastic"


@pytest.mark.parametrize(
    "file", sorted((ROOT / "bundle/runs/variants").glob("*.json")), ids=lambda file: file.stem
)
def test_our_variants_change_what_is_there(file: Path) -> None:
    """Each file is for the experiment that its name begins with; MONAI would add a misspelt id in silence."""
    names = [args for args in (CONFIGS / "experiments").iterdir() if file.stem.startswith(args.stem)]
    experiment = json.loads(max(names, key=lambda args: len(args.stem)).read_text())
    for overrides in read_variants(file).values():
        ids = {**experiment, **overrides}
        parser = ConfigParser()
        parser.read_config([ROOT / name for name in ids.pop("config_file")])
        for key in ids:
            parent, _, leaf = key.rpartition("::")
            known = parser[parent] if parent else parser.get()
            assert leaf in known or leaf in signature(locate(known["_target_"])).parameters, key


def test_unknown_experiment(tmp_path: Path) -> None:
    written(tmp_path / "a.json", {"config_file": "configs/train.json"})
    assert "a.json has no list under 'config_file'" in study(tmp_path)


def test_table_has_mean_spread_and_ensemble() -> None:
    header, whole, less = summary_table(ROWS, "membranes").splitlines()
    assert header.split()[:3] == ["variant", "seeds", "v_rand"]
    assert "0.8000 ± 0.1414" in whole
    assert "0.9500" in whole
    assert "0.000131 ± 0.000000" in whole
    assert "3.0" in whole
    assert whole.split()[:2] == ["whole", "2"]
    assert "±" not in less
    assert less.split()[:4] == ["less", "1", "0.5000", "-"]


def test_rows_and_picture_are_written(tmp_path: Path) -> None:
    write(ROWS, tmp_path, "membranes")
    with (tmp_path / "study.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["variant"], row["seed"]) for row in rows][-1] == ("whole", "ensemble")
    assert rows[1]["v_info"] == ""
    assert (tmp_path / "study.png").stat().st_size > 5000
