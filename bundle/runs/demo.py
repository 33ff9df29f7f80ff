"""`python -m bundle demo`: a 2D and a volumetric U-Net learn, are judged and segment, on generated data."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import typer

from bundle.runs.baseline import otsu_components
from bundle.runs.commands import run_bundle, run_python, say
from scripts.data.datalist import sections
from scripts.data.names import output_path
from scripts.data.reader import image_suffix
from scripts.errors import InputError
from scripts.files import read_json
from scripts.judging import mean_dice
from scripts.judging.files import Pair, read_image, read_values

#: Kind of phantom, and the experiment that learns it.
EXPERIMENTS = {"cells": "phantom_cells", "organ": "phantom_organ"}


def demo(output_dir: Path) -> None:
    """Carry out `bundle.cli.demo`, whose arguments these are."""
    started = time.monotonic()
    output_dir = output_dir.resolve()
    for kind in EXPERIMENTS:
        say(f"generating {kind}")
        run_python("-m", "bundle", "phantom", kind, "--output_dir", str(output_dir / "data" / kind))
    for kind, experiment in EXPERIMENTS.items():
        args_file, task = f"configs/experiments/{experiment}.json", f"configs/task/{experiment}.json"
        data, run = str(output_dir / "data" / kind), str(output_dir / experiment)
        say(f"{experiment}: training")
        run_bundle(args_file=args_file, dataset_dir=data, output_dir=run)
        say(f"{experiment}: judging on held-out cases")
        run_bundle(["configs/train.json", task, "configs/evaluate.json"], dataset_dir=data, output_dir=run)
        say(f"{experiment}: segmenting the held-out images")
        run_bundle(
            ["configs/inference.json", task],
            dataset_dir=f"{data}/imagesTs",
            checkpoint=f"{run}/model.pt",
            output_dir=f"{run}/segmentations",
        )
    typer.echo(f"\nDone in {(time.monotonic() - started) / 60:.1f} minutes. Dice on the held-out cases:\n")
    typer.echo(f"{'experiment':<16}{'U-Net':>8}{'Otsu + components':>20}")
    for kind, experiment in EXPERIMENTS.items():
        unet, otsu = compare_with_otsu(output_dir / "data" / kind, output_dir / experiment / "segmentations")
        typer.echo(f"{experiment:<16}{unet:>8.3f}{otsu:>20.3f}")
    typer.echo("\nLook at:")
    for experiment in EXPERIMENTS.values():
        for name in ("evaluation/cases.png", "evaluation/summary.csv", "learning_curve.png", "pictures"):
            typer.echo(f"  {output_dir / experiment / name}")


def compare_with_otsu(data: Path, segmentations: Path) -> tuple[float, float]:
    """Mean Dice of saved segmentations and of Otsu's threshold with components, over the held-out cases.

    Instance maps count as one class, cell or not.

    Args:
        data: the phantom's folder.
        segmentations: folder of `<case>_seg` files.

    Returns:
        (segmentations, Otsu), means over cases and foreground classes, in [0, 1].

    Raises:
        InputError: a held-out case has no segmentation.
    """
    description = read_json(data / "dataset.json")
    scores = []
    for listed in sections(data)["testing"]:
        found = output_path(segmentations, listed["case"], "seg", image_suffix(listed["image"]))
        if not found.is_file():
            raise InputError(f"{found}: no such segmentation; run inference on {data}/imagesTs first")
        case = read_values(Pair(listed["case"], found, Path(listed["label"])))
        if description.get("instances"):
            case = replace(case, pred=(case.pred > 0).astype(int), truth=(case.truth > 0).astype(int))
        otsu = otsu_components(read_image(Path(listed["image"])), case.truth, len(description["labels"]))
        scores.append([mean_dice(case), mean_dice(replace(case, pred=otsu))])
    unet, baseline = np.nanmean(scores, axis=0)
    return float(unet), float(baseline)
