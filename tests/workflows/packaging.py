"""A bundle that is packaged for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bundle.ship.package import ABOUT
from tests.commands import invoke

CARD: dict[str, Any] = {
    "folder": "cells_segmentation_unet",
    "modality": "phantom",
    "metadata": {**dict.fromkeys(ABOUT, "made up"), "references": ["A."], "changelog": {"0.0.1": "older"}}
    | {"pred_classes": "3 channels of logits: background, interior, border"},
    "data": ["Made up."],
    "limits": ["Knows nothing else."],
    "data_license": ["None."],
}


def package(workshop: Path, output: Path, **options: object) -> Any:
    given = {
        "args_file": workshop / "experiment.json",
        "card": workshop / "card.json",
        "checkpoint": workshop / "model.pt",
        "scores": workshop / "summary.json",
        "output_dir": output,
        **options,
    }
    return invoke("package", *(part for key, value in given.items() for part in (f"--{key}", value)))
