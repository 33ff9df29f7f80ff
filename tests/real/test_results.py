"""What docs/results.md and docs/export.md report; hours on two cores, so not part of `make test`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.judging.tables import read_means

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"

pytestmark = pytest.mark.data


def run_python(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True)


def evaluate(configs: list[str], data: Path, output_dir: Path, *more: str) -> dict[tuple[str, str], float]:
    """Evaluate a training on the test split; the means by class and score."""
    names = repr([*configs, "configs/evaluate.json"])
    where = ["--dataset_dir", str(data), "--output_dir", str(output_dir)]
    run_python("-m", "monai.bundle", "run", "--config_file", names, *where, *more)
    summary = json.loads((output_dir / "evaluation" / "summary.json").read_text())["summary"]
    return {(entry["class"], entry["score"]): entry["mean"] for entry in summary}


def study(experiment: str, data: Path, output_dir: Path, measure: str, *more: str) -> dict[str, float]:
    """Train the experiment with seed 0 unless that is done, and score it on the test split."""
    files = ["--args_file", f"configs/experiments/{experiment}.json", "--dataset_dir", str(data)]
    options = ["--output_dir", str(output_dir), "--measure", measure, "--seed", "0", *more]
    run_python("-m", "bundle", "study", *files, *options)
    section = "testing" if not more else f"testing_{Path(more[1]).stem}"
    return read_means(output_dir / "unchanged/seed0" / section / "summary.json")


def need(folder: str) -> Path:
    if not (DATA / folder).is_dir():
        pytest.skip(f"{DATA / folder} is absent")
    return DATA / folder


def test_hippocampus_mean_dice(tmp_path):
    data = need("msd_task04_hippocampus")
    where = ["--dataset_dir", str(data), "--output_dir", str(tmp_path)]
    run_python("-m", "monai.bundle", "run", "--config_file", "configs/train.json", *where)
    assert evaluate(["configs/train.json"], data, tmp_path)["mean", "dice"] >= 0.885


def test_our_weights_reach_what_their_card_says(tmp_path):
    data = need("msd_task04_hippocampus")
    about = json.loads((ROOT / "configs/metadata.json").read_text(encoding="utf-8"))["eval_metrics"]
    found = evaluate(["configs/train.json"], data, tmp_path, "--checkpoint", str(ROOT / "models/model.pt"))
    for score, tolerance in {"dice": 0.001, "hd95": 0.02, "surface_dice": 0.002}.items():
        assert found["mean", score] == pytest.approx(about[score], abs=tolerance), score


def listed(folder: str, output_dir: Path, *options: str) -> Path:
    """The data set of a shared folder, in its split."""
    source = need(folder)
    files = ["--images", str(source / "images"), "--labels", str(source / "labels")]
    where = ["--splits", str(source / "splits.json"), "--output_dir", str(output_dir)]
    run_python("-m", "bundle", "datalist", *files, *where, *options)
    return output_dir


def test_em_membranes(tmp_path):
    names = ["--label_name", "membrane=0", "--label_name", "cell=255"]
    data = listed("isbi2012_em", tmp_path / "data", *names)
    scores = study("em_membrane", data, tmp_path, "membranes")
    assert scores["v_rand"] >= 0.97
    assert scores["v_info"] >= 0.98
    turned = study(
        "em_membrane", data, tmp_path, "membranes", "--inferer", "configs/inferer/orientations.json"
    )
    assert turned["v_rand"] >= 0.98
    assert turned["v_info"] >= 0.984
    configs = ["configs/train.json", "configs/task/em_membrane.json"]
    assert evaluate(configs, data, tmp_path / "unchanged/seed0")["cell", "error"] <= 0.08


def test_nuclei(tmp_path):
    data = listed("dsb2018_nuclei", tmp_path / "data", "--instances")
    assert study("nuclei", data, tmp_path, "instances")["ap50"] >= 0.83


def test_exported_hippocampus_model(tmp_path):
    """The table of docs/export.md, without its seconds."""
    data = need("msd_task04_hippocampus")
    chosen = [part for name in ("pt2", "onnx", "openvino", "torchscript") for part in ("--format", name)]
    judged = ["--dataset_dir", str(data), "--section", "testing", "--rounds", "1"]
    run_python("-m", "bundle", "export", "--bundle", ".", "--output_dir", str(tmp_path), *chosen, *judged)
    for row in json.loads((tmp_path / "export.json").read_text()):
        assert row["cases"] == 50
        assert abs(row["dice"] - 0.8887) < 0.0005
        assert row["dice difference"] < 0.0005
        assert row["largest difference"] < 0.005
