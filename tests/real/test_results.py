"""What docs/results.md and docs/export.md report; hours on two cores, so not part of `make test`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"

pytestmark = pytest.mark.data


def run_python(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True)


def train_and_score(configs: list[str], data: Path, output_dir: Path) -> dict[tuple[str, str], float]:
    """Train, evaluate on the test split, and return the means by class and score."""
    for names in (configs, [*configs, "configs/evaluate.json"]):
        where = ["--dataset_dir", str(data), "--output_dir", str(output_dir)]
        run_python("-m", "monai.bundle", "run", "--config_file", repr(names), *where)
    summary = json.loads((output_dir / "evaluation" / "summary.json").read_text())["summary"]
    return {(entry["class"], entry["score"]): entry["mean"] for entry in summary}


def need(folder: str) -> Path:
    if not (DATA / folder).is_dir():
        pytest.skip(f"{DATA / folder} is absent")
    return DATA / folder


def test_hippocampus_mean_dice(tmp_path):
    scores = train_and_score(["configs/train.json"], need("msd_task04_hippocampus"), tmp_path / "run")
    assert scores["mean", "dice"] >= 0.885


def test_em_pixel_error(tmp_path):
    source, data = need("isbi2012_em"), tmp_path / "data"
    folders = ["--images", str(source / "images"), "--labels", str(source / "labels")]
    fixed = ["--splits", str(source / "splits.json"), "--label_names", "membrane=0,cell=255"]
    run_python("-m", "bundle", "datalist", *folders, *fixed, "--output_dir", str(data))
    scores = train_and_score(["configs/train.json", "configs/task/em_membrane.json"], data, tmp_path / "run")
    assert scores["cell", "error"] <= 0.08


def test_exported_hippocampus_model(tmp_path):
    """The table of docs/export.md, without its seconds."""
    data = need("msd_task04_hippocampus")
    chosen = [part for name in ("pt2", "onnx", "openvino", "torchscript") for part in ("--format", name)]
    judged = ["--dataset_dir", str(data), "--section", "testing", "--rounds", "1"]
    run_python("-m", "bundle", "export", ".", "--output_dir", str(tmp_path), *chosen, *judged)
    for row in json.loads((tmp_path / "export.json").read_text()):
        assert row["cases"] == 50
        assert abs(row["dice"] - 0.8887) < 0.0005
        assert row["dice difference"] < 0.0005
        assert row["largest difference"] < 0.005
