"""From a command to the first step of a training, and to the first segmented case, the imports with it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.networks.nets import UNet

from bundle.benchmark.runner import CEILING, OURS, Contest, Entry, largest_difference
from bundle.data.phantom import Kind, write_phantom
from scripts.process import bundle_root

#: Cases of the data set, of which a fifth is held out and a fifth of the others validates; voxels of a case,
#: and of a patch or window.
CASES, SIZE, PATCH = 100, (48, 56, 40), [32, 48, 32]
SMALL: tuple[int, tuple[int, ...], list[int]] = (6, (24, 25, 26), [16, 16, 16])

#: Seconds after which a command has failed, and between two looks at what it has done.
LONGEST, INTERVAL = 300.0, 0.01

#: What both sides segment with: MONAI's network, with weights as drawn.
NETWORK: dict[str, Any] = {
    "_target_": "monai.networks.nets.UNet",
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 3,
    "channels": [16, 32, 64, 128],
    "strides": [2, 2, 2],
    "num_res_units": 2,
}

#: The name of the entry that is all imports.
IMPORTS = "import monai.bundle"

#: What tells of a training's steps, in the same words on both sides.
TELL = {"_target_": "StatsHandler", "output_transform": "$lambda output: 0.0"}

#: Bundles of MONAI's components alone.
MONAI = Path(__file__).with_name("monai")


def contests(small: bool, device: torch.device) -> list[Contest]:
    """A training and an inference, as the configs have them; on the CPU, whatever the device.

    Args:
        small: few cases.
        device: not used.
    """
    cases, size, patch = SMALL if small else (CASES, SIZE, PATCH)
    sizes = [" x ".join(map(str, each)) for each in (size, patch)]
    training = {
        IMPORTS: Entry(partial(_imports), CEILING),
        "MONAI's components": Entry(partial(_start, "train", "monai", small), "MONAI", ceiling=IMPORTS),
        "configs/train.json": Entry(partial(_start, "train", "ours", small), OURS, ceiling=IMPORTS),
    }
    inference = {
        IMPORTS: Entry(partial(_imports), CEILING),
        "MONAI's components": Entry(
            partial(_start, "inference", "monai", small),
            "MONAI",
            ceiling=IMPORTS,
            reference="MONAI's components",
        ),
        "configs/inference.json": Entry(
            partial(_start, "inference", "ours", small),
            OURS,
            ceiling=IMPORTS,
            reference="MONAI's components",
        ),
    }
    return [
        Contest(
            "start: from the command to the first step of a training",
            f"{cases} volumes of {sizes[0]}, of which two thirds train and are cached, batch 2, patches of "
            f"{sizes[1]}; the files were read and checked before",
            training,
            agreement="steps off by",
            compare=largest_difference,
        ),
        Contest(
            "start: from the command to the first segmented case",
            f"a volume of {sizes[0]}, windows of {sizes[1]}, overlap 0.5, Gaussian, MONAI's UNet, weights as "
            "drawn",
            inference,
            agreement="same class",
            compare=lambda outcome, reference: float(np.mean(outcome == reference)),
        ),
    ]


def _imports() -> Callable[[], float]:
    """What `python -m monai.bundle` does before it reads a config."""

    def work() -> float:
        subprocess.run([sys.executable, "-c", "import monai.bundle"], env=_environment(), check=True)
        return 1.0

    return work


def _start(kind: str, whose: str, small: bool) -> Callable[[], Any]:
    """A command, up to the first step or case.

    Args:
        kind: "train" or "inference".
        whose: "ours" or "monai".
        small: see `contests`.
    """
    folder = tempfile.TemporaryDirectory()
    place = Path(folder.name)
    options = prepare(kind, whose, place, small)
    command = [sys.executable, "-m", "monai.bundle", "run"]
    command += [part for key, value in options.items() for part in (f"--{key}", str(value))]

    def work(folder: Any = folder) -> Any:
        output = Path(tempfile.mkdtemp(dir=place))
        with (output / "log").open("w") as log:
            process = subprocess.Popen(
                [*command, "--output_dir", str(output)],
                cwd=bundle_root(),
                env=_environment(),
                stdout=log,
                stderr=log,
            )
            try:
                return _wait(process, partial(DONE[kind], output), output / "log")
            finally:
                process.kill()
                process.wait()

    return work


def _wait(process: subprocess.Popen, found: Callable[[], Any], log: Path) -> Any:
    """What a command makes, as soon as it is there.

    Raises:
        RuntimeError: the command ends without it, or takes too long.
    """
    end = time.monotonic() + LONGEST
    while time.monotonic() < end:
        ended = process.poll() is not None
        if (made := found()) is not None:
            return made
        if ended:
            break
        time.sleep(INTERVAL)
    last = (log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""])[-1]
    raise RuntimeError(f"the command came to no result: {last}")


def _environment() -> dict[str, str]:
    """This process's, with as many threads."""
    return {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONWARNINGS": "ignore"}


def first_step(output: Path) -> float | None:
    """1.0 if the log tells of the first step of a training."""
    return 1.0 if "Iter: 1/" in (output / "log").read_text(encoding="utf-8", errors="replace") else None


def first_case(output: Path) -> np.ndarray | None:
    """The labels of the first file that an inference has written whole."""
    for file in output.rglob("*_seg.nii.gz"):
        try:
            return np.asarray(nib.load(file).dataobj)  # type: ignore[attr-defined]
        except (OSError, EOFError, ValueError, zlib.error, nib.filebasedimages.ImageFileError):
            return None  # it is being written
    return None


#: Of a folder: what a command has made there, or None.
DONE: dict[str, Callable[[Path], Any]] = {"train": first_step, "inference": first_case}


def prepare(kind: str, whose: str, place: Path, small: bool) -> dict[str, Any]:
    """Write data, weights and configs, and give the options of `monai.bundle run` but for `output_dir`.

    Args:
        kind: "train" or "inference".
        whose: "ours" or "monai".
        place: a folder.
        small: see `contests`.
    """
    place.mkdir(exist_ok=True)
    data = place / "data"
    cases, size, patch = SMALL if small else (CASES, SIZE, PATCH)
    write_phantom(Kind.ORGAN, data, cases=cases if kind == "train" else SMALL[0], size=size)
    torch.manual_seed(0)
    weights = place / "model.pt"
    torch.save(
        UNet(**{key: value for key, value in NETWORK.items() if key != "_target_"}).state_dict(), weights
    )
    overlay = place / "overlay.json"
    changed: dict[str, Any] = {"+train::handlers": [TELL]} if kind == "train" else {"network_def": NETWORK}
    changed = {"network": NETWORK} if whose == "monai" else changed
    overlay.write_text(json.dumps({**changed, "patch_size": patch}), encoding="utf-8")
    configs = MONAI if whose == "monai" else Path(bundle_root(), "configs")
    options = {"config_file": [str(configs / f"{kind}.json"), str(overlay)], "dataset_dir": str(data)}
    if kind == "inference":
        options.update(dataset_dir=str(_one_image(data, place / "one")), checkpoint=str(weights))
    return {**options, "logging_file": str(Path(bundle_root(), "configs", "logging.conf"))}


def _one_image(data: Path, folder: Path) -> Path:
    """A folder with one of the images that are held out."""
    folder.mkdir()
    shutil.copy(min((data / "imagesTs").iterdir()), folder)
    return folder
