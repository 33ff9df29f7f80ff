"""`python -m bundle demo`: a 2D and a volumetric U-Net learn, are judged and segment, on generated data."""

from __future__ import annotations

import time
from pathlib import Path

import typer

from bundle.runs.commands import run_bundle, run_python, say
from bundle.runs.warm import imports_once

#: Kind of phantom, and the experiment that learns it.
EXPERIMENTS = {"cells": "phantom_cells", "organ": "phantom_organ"}


def demo(output_dir: Path) -> None:
    """Carry out `bundle.cli.demo`, whose arguments these are."""
    started = time.monotonic()
    output_dir = output_dir.resolve()
    with imports_once() as warm:
        for kind in EXPERIMENTS:
            say(f"generating {kind}")
            run_python("-m", "bundle", "phantom", kind, "--output_dir", str(output_dir / "data" / kind))
        for kind, experiment in EXPERIMENTS.items():
            args_file, task = f"configs/experiments/{experiment}.json", f"configs/task/{experiment}.json"
            data, run = str(output_dir / "data" / kind), str(output_dir / experiment)
            judged = ["configs/train.json", task, "configs/evaluate.json"]
            say(f"{experiment}: training")
            run_bundle(args_file=args_file, dataset_dir=data, output_dir=run, warm=warm)
            say(f"{experiment}: judging on held-out cases")
            run_bundle(judged, dataset_dir=data, output_dir=run, warm=warm)
            say(f"{experiment}: segmenting the held-out images")
            run_bundle(
                ["configs/inference.json", task],
                dataset_dir=f"{data}/imagesTs",
                checkpoint=f"{run}/model.pt",
                output_dir=f"{run}/segmentations",
                warm=warm,
            )
        for kind, experiment in EXPERIMENTS.items():
            say(f"{experiment}: beside Otsu's threshold")
            places = (str(output_dir / "data" / kind), str(output_dir / experiment / "segmentations"))
            run_python("-m", "bundle.runs.baseline", *places, warm=warm)
    typer.echo(f"\nDone in {(time.monotonic() - started) / 60:.1f} minutes. Look at:")
    for experiment in EXPERIMENTS.values():
        for name in ("evaluation/cases.png", "evaluation/summary.csv", "learning_curve.png", "pictures"):
            typer.echo(f"  {output_dir / experiment / name}")
