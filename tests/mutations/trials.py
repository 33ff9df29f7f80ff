"""What is broken, who reads it, and what would be right."""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import monai.bundle
import nibabel as nib
import numpy as np
import safetensors.torch
import tifffile
import torch
from PIL import Image

from bundle.__main__ import main
from scripts.data.nifti import read_nifti_header
from tests import dicom_phantom as phantom
from tests.commands import config_files
from tests.mutations import change
from tests.mutations.sandbox import run_in_child

LABELS = {"background": 0, "bright": 1}
SHAPE, SIZE = (10, 9, 8), (20, 16)
CODES = {"category": ["91723000", "SCT", "Anatomical Structure"], "type": ["5366008", "SCT", "Hippocampus"]}

#: A voxel whose intensity is as near to the mean, in standard deviations, may be of either class.
NEAR = 1e-4


@dataclass(frozen=True)
class Kind:
    """A kind of trial.

    Attributes:
        file: what is broken, below the folder of the material.
        change: breaks it; says what was done.
        enter: the command, in the folder of the material; its results go to "out".
        judge: says what is wrong with the results of a command that ended with status 0, or nothing.
        always: results that the command owes whatever the broken file is, below "out".
    """

    file: str
    change: Callable[[np.random.Generator, Path], str]
    enter: Callable[[Path], None]
    judge: Callable[[Path, Path], str]
    always: tuple[str, ...] = ()


def run(base: str, *overlays: str, **overrides: Any) -> None:
    """`python -m monai.bundle run`, which leaves the process as it changed it: it belongs to the command."""
    warnings.filterwarnings("ignore", "parsing config_file")
    monai.bundle.run(config_file=config_files(base, *overlays), **overrides)


def ball(seed: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Noise with a bright ball, and the ball."""
    grid = np.indices(shape)
    inside = sum((g - n * f) ** 2 for g, n, f in zip(grid, shape, (0.4, 0.6, 0.5), strict=False)) < 9
    return np.random.default_rng(seed).normal(0, 1, shape) + 20 * inside, inside


def network(dims: int) -> dict[str, Any]:
    """Ids of a network of one convolution, class 1 where a voxel is above the mean of its image."""
    about = {
        "labels": LABELS,
        "patch_size": [8] * dims,
        "amp": False,
        "runtime": "torch",
        "network_def": {
            "_target_": f"torch.nn.Conv{dims}d",
            "in_channels": 1,
            "out_channels": 2,
            "kernel_size": 1,
        },
    }
    return about if dims == 3 else {**about, "spatial_dims": 2, "output_ext": ".png", "geometry": []}


def make_material(folder: Path) -> None:
    """All inputs, sound."""
    for dims in (2, 3):
        layer: Any = torch.nn.Conv2d(1, 2, 1) if dims == 2 else torch.nn.Conv3d(1, 2, 1)
        with torch.no_grad():
            for values in layer.parameters():
                values.zero_()
            layer.weight[1] = 4.0
        torch.save(layer.state_dict(), folder / f"w{dims}.pt")
        safetensors.torch.save_file(layer.state_dict(), folder / f"w{dims}.safetensors")
    affine = np.diag([-1.0, 1.0, 1.0, 1.0])
    kinds = {"float32.nii": "f4", "int16.nii.gz": "i2", "uint8.nii": "u1", "second.nii.gz": "f4"}
    for name, dtype in kinds.items():
        values = ball(0, SHAPE)[0] * 10 + 50
        images = folder / name.split(".")[0]
        images.mkdir()
        for which in ("a", "b"):
            maker: Any = nib.Nifti2Image if name.startswith("second") else nib.Nifti1Image
            image = maker(values.clip(0, 255).astype(dtype), affine)
            if name.startswith("int16") and which == "a":
                image.header.set_slope_inter(0.5, -3)
            nib.save(image, images / f"{which}{name[name.index('.') :]}")
    for ext in (".png", ".tif"):
        (folder / ext[1:]).mkdir()
        for which in "ab":
            values = (ball(0, SIZE)[0] * 8 + 40).clip(0, 255).astype(np.uint8)
            Image.fromarray(values).save(folder / ext[1:] / f"{which}{ext}")
    tifffile.imwrite(folder / "tif/a.tif", (ball(0, SIZE)[0] * 90 + 900).astype(np.uint16))
    for name, ext, shape in (("volumes", ".nii", SHAPE), ("pictures", ".png", SIZE)):
        entries = []
        for seed, case in enumerate("abcdef"):
            values, inside = ball(seed, shape)
            for part, array in (("images", values * 8 + 40), ("labels", inside)):
                file = folder / name / part / f"{case}{ext}"
                file.parent.mkdir(parents=True, exist_ok=True)
                array = array.clip(0, 255).astype(np.uint8)
                if ext == ".nii":
                    nib.save(nib.Nifti1Image(array, affine), file)
                else:
                    Image.fromarray(array).save(file)
            entries.append({"image": f"images/{case}{ext}", "label": f"labels/{case}{ext}"})
        lists = {"training": entries[:3], "validation": entries[3:4], "testing": entries[4:]}
        about = {"name": name, "labels": {"0": "background", "1": "bright"}, **lists}
        (folder / name / "dataset.json").write_text(json.dumps(about))
    for which in "ab":
        values = np.rint(ball(0, SHAPE)[0] * 10 + 200).astype(np.int16)
        where = phantom.positions(SHAPE[2], phantom.AXIAL, 1.0)
        identifier = f"1.2.826.0.1.3680043.8.498.7{ord(which)}"
        images = phantom.series(
            values, where, phantom.AXIAL, (1.0, 1.0), "CT", [(1, -100)] * SHAPE[2], identifier
        )
        for index, image in enumerate(images):
            image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = f"{identifier}.{index}"
        phantom.write(images, folder / "study" / which)
    (folder / "task.json").write_text(json.dumps({**network(3), "spacing": [1.0, 1.0, 1.0]}))
    args = {"config_file": config_files("inference", str(folder / "task.json")), "dataset_dir": "float32"}
    args |= {"output_dir": "out", "checkpoint": "w3.pt", "seed": 3, "save_probabilities": False}
    (folder / "args.json").write_text(json.dumps(args))
    tune_args = {"config_file": config_files("train", str(folder / "tune_task.json")), "max_epochs": 1}
    (folder / "tune_args.json").write_text(json.dumps(tune_args))
    (folder / "tune_task.json").write_text(json.dumps(network(2)))
    ending = run_in_child(lambda: _train(folder, max_epochs=1), folder)
    assert ending.status == 0, ending.said
    (folder / "out").rename(folder / "run")


def _train(folder: Path, output_dir: str = "out", **more: Any) -> None:
    places = {"dataset_dir": str(folder / "volumes"), "output_dir": str(folder / output_dir)}
    run("train", **{**network(3), **places, "val_interval": 1, "cache_rate": 0.0, **more})


def _segment(folder: Path, images: str, dims: int, *overlays: str, **more: Any) -> None:
    places = {"dataset_dir": str(folder / images), "output_dir": str(folder / "out")}
    run(
        "inference",
        *overlays,
        **{**network(dims), **places, "checkpoint": str(folder / f"w{dims}.pt"), **more},
    )


def _first_batch(folder: Path, data: str, dims: int) -> None:
    about = {**network(dims), "dataset_dir": str(folder / data), "output_dir": str(folder / "out")}
    run("train", **{**about, "run": ["$@set_up", "$next(iter(@train::dataloader))"]})


def _workbench(*arguments: object) -> None:
    sys.argv = ["bundle", *map(str, arguments)]
    main()


def _datalist(folder: Path, data: str) -> None:
    places = ("--images", folder / data / "images", "--labels", folder / data / "labels")
    _workbench("datalist", *places, "--output_dir", folder / "out")


def _tune(folder: Path) -> None:
    places = ("--dataset_dir", folder / "pictures", "--checkpoint", folder / "w2.pt")
    _workbench("tune", "--args_file", folder / "tune_args.json", *places, "--output_dir", folder / "out")


def _by_args(folder: Path) -> None:
    monai.bundle.run(args_file=str(folder / "args.json"))


def _resume(folder: Path) -> None:
    shutil.move(folder / "run", folder / "out")
    _train(folder, max_epochs=2, resume=True)


def _above_mean(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where values lie above their mean, and where that is not beyond doubt."""
    values = values.astype(float)
    apart = values - values.mean()
    lost = np.abs(values).max() * np.finfo(np.float32).eps * 4  # the network computes in float32
    return apart > 0, np.abs(apart) <= NEAR * values.std() + lost


def right_volume(file: Path, seg: Path) -> str:
    """Compare a segmentation with its image as nibabel reads it."""
    try:
        image: Any = nib.load(file)
        values = np.asanyarray(image.dataobj)
    except Exception as error:
        return f"nibabel cannot read it ({error})"
    made: Any = nib.load(seg)
    labels = np.asanyarray(made.dataobj)
    values = values.reshape([n for n in values.shape if n > 1 or values.ndim <= 3])
    if labels.shape != values.shape[: labels.ndim]:
        return f"shape {labels.shape} of an image {values.shape}"
    if not set(np.unique(labels)) <= {0, 1}:
        return f"values {np.unique(labels)}"
    if not np.isfinite(values).all():
        return "voxels that are no numbers"
    header = read_nifti_header(file)
    resampled = not np.allclose(nib.affines.voxel_sizes(header.affine), 1, atol=1e-3)
    if resampled or not np.allclose(np.abs(header.affine[:3, :3]).max(0), 1, atol=1e-2):
        return ""  # it was resampled: only the voxels of the file's own grid are known by hand
    expected, unsure = _above_mean(values)
    wrong = int(((labels > 0) != expected)[~unsure].sum())
    return f"{wrong} voxels of the other class" if wrong else ""


def right_picture(file: Path, seg: Path) -> str:
    """Compare a segmentation with its picture, as Pillow or tifffile reads it."""
    try:
        values = tifffile.imread(file) if file.suffix == ".tif" else np.asarray(Image.open(file))
    except Exception as error:
        return f"another reader cannot read it ({error})"
    labels = np.asarray(Image.open(seg))
    if labels.shape != values.shape:
        return f"shape {labels.shape} of a picture {values.shape}"
    expected, unsure = _above_mean(values)
    wrong = int(((labels > 0) != expected)[~unsure].sum())
    return f"{wrong} pixels of the other class" if wrong else ""


def segmented(right: Callable[[Path, Path], str], ext: str) -> Callable[[Path, Path], str]:
    """Judges the segmentation of a broken image."""

    def judge(folder: Path, file: Path) -> str:
        seg = folder / f"out/{file.name.split('.')[0]}_seg{ext}"
        return right(file, seg) if seg.is_file() else f"{seg.name} is not there"

    return judge


def right_training(folder: Path, file: Path) -> str:
    """Whether a file of a data set may be trained on, as other readers see it."""
    label = file.parent.name == "labels"
    try:
        if file.suffix == ".png":
            values = np.asarray(Image.open(file))
        else:
            image: Any = nib.load(file)
            values = np.asanyarray(image.dataobj)
            mate: Any = nib.load(file.parents[1] / ("images" if label else "labels") / file.name)
            apart = np.abs(image.affine - mate.affine).max()
            micro = int(image.header["xyzt_units"]) & 7 != int(mate.header["xyzt_units"]) & 7
            if apart > 0.5 and not micro:
                return f"affines {apart} apart"
    except Exception as error:
        return f"another reader cannot read it ({error})"
    if values.size != np.prod(SIZE if file.suffix == ".png" else SHAPE):
        return f"shape {values.shape}"
    if not np.isfinite(values).all():
        return "voxels that are no numbers"
    near = np.round(np.unique(values).astype(float), 3)  # off a whole number by rounding
    return f"labels {near}" if label and not set(near) <= {0, 1} else ""


def right_listing(folder: Path, file: Path) -> str:
    """Whether the labels of a list are those of the files."""
    files = [path for path in file.parent.iterdir() if file.parent.name == "labels"]
    declared = json.loads((folder / "out/task.json").read_text())["labels"].values()
    found = set()
    for path in files:
        image: Any = nib.load(path) if path.suffix == ".nii" else None
        values = np.asarray(Image.open(path)) if image is None else np.asanyarray(image.dataobj)
        found |= set(np.unique(values).tolist())
    return f"labels {declared} of {found}" if files and set(declared) != found else ""


def right_list(folder: Path, file: Path) -> str:
    """Whether as many cases were taken as the list holds."""
    try:
        json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        return f"it is no JSON ({error})"
    return ""


def right_files(folder: Path, file: Path) -> str:
    """Whether both images were segmented, whatever the settings are."""
    outputs = list(folder.rglob("*_seg.nii*"))
    if len(outputs) != 2:
        return f"{len(outputs)} segmentations of 2 images"
    for path in outputs:
        made: Any = nib.load(path)
        if made.shape != SHAPE:
            return f"shape {made.shape}"
    return ""


def right_weights(folder: Path, file: Path) -> str:
    """Compare a segmentation with what the weights say, as another reader sees them."""
    try:
        weights = (
            safetensors.torch.load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, weights_only=True)
        )
        weights = weights.get("network", weights)
        weight, bias = (weights[name].double().numpy().reshape(2) for name in ("weight", "bias"))
    except Exception as error:
        return f"another reader cannot read it ({error})"
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        return "weights that are no numbers"
    image: Any = nib.load(folder / "float32/a.nii")
    values = np.asanyarray(image.dataobj).astype(float)
    score = (weight[1] - weight[0]) * (values - values.mean()) / values.std() + bias[1] - bias[0]
    made: Any = nib.load(folder / "out/a_seg.nii.gz")
    wrong = int(
        (np.asanyarray(made.dataobj) != (score > 0))[np.abs(score) > 1e-4 * np.abs(weight).max()].sum()
    )
    return f"{wrong} voxels of the other class" if wrong else ""


def right_resume(folder: Path, file: Path) -> str:
    """Whether the training came to its end, with weights that are numbers."""
    weights = torch.load(folder / "out/model.pt", weights_only=True)
    if not all(torch.isfinite(value).all() for value in weights.values()):
        return "weights that are no numbers"
    state = torch.load(folder / "out/checkpoints/last.pt", weights_only=True)
    rows = (folder / "out/learning_curve.csv").read_text().splitlines()[1:]
    epochs = [int(row.split(",")[0]) for row in rows]
    if state["epoch"] != 2 or epochs[-1:] != [2] or len(set(epochs)) != len(epochs):
        return f"epoch {state['epoch']} with a curve of {epochs}"
    return ""


def right_series(folder: Path, file: Path) -> str:
    """Whether both series were segmented."""
    names = sorted(path.name for path in (folder / "out").iterdir())
    return "" if len(names) == 6 else f"{len(names)} files of two series"


def _dicom(folder: Path) -> None:
    labels = {"background": 0, "bright": 1, "never": 2}
    layer = torch.nn.Conv3d(1, 3, 1)
    with torch.no_grad():
        for values in layer.parameters():
            values.zero_()
        layer.weight[1], layer.bias[2] = 4.0, -1000.0
    torch.save(layer.state_dict(), folder / "home/w.pt")
    three = {**network(3)["network_def"], "out_channels": 3}
    more = {"labels": labels, "segments": {"bright": CODES, "never": CODES}, "network_def": three}
    _segment(folder, "study", 3, "dicom", checkpoint=str(folder / "home/w.pt"), **more)


def _volumes(name: str, ext: str, *overlays: str, **more: Any) -> Kind:
    seg = ".nii" if overlays else ".nii.gz"
    return Kind(
        f"{name}/a{ext}",
        change.change_nifti,
        lambda folder: _segment(folder, name, 3, *overlays, **more),
        segmented(right_volume, seg),
        (f"b_seg{seg}",),
    )


def _pictures(name: str, how: Callable[[np.random.Generator, Path], str]) -> Kind:
    return Kind(
        f"{name}/a.{name}",
        how,
        lambda folder: _segment(folder, name, 2),
        segmented(right_picture, ".png"),
        ("b_seg.png",),
    )


def _trained(data: str, file: str, dims: int) -> Kind:
    how = change.change_nifti if dims == 3 else change.change_png
    return Kind(f"{data}/{file}", how, lambda folder: _first_batch(folder, data, dims), right_training)


def _listed(data: str, file: str, how: Callable[[np.random.Generator, Path], str]) -> Kind:
    return Kind(f"{data}/{file}", how, lambda folder: _datalist(folder, data), right_listing)


def _weights(name: str) -> Kind:
    return Kind(
        name,
        change.change_weights,
        lambda folder: _segment(folder, "float32", 3, checkpoint=str(folder / name)),
        right_weights,
    )


KINDS: dict[str, Kind] = {
    "NIfTI, float32": _volumes("float32", ".nii"),
    "NIfTI, packed and scaled": _volumes("int16", ".nii.gz"),
    "NIfTI, uint8": _volumes("uint8", ".nii"),
    "NIfTI-2, packed": _volumes("second", ".nii.gz"),
    "NIfTI, from disk to disk": _volumes("float32", ".nii", "large_volume"),
    "NIfTI to train on": _trained("volumes", "images/a.nii", 3),
    "NIfTI label": _trained("volumes", "labels/b.nii", 3),
    "NIfTI, listed": _listed("volumes", "labels/c.nii", change.change_nifti),
    "PNG": _pictures("png", change.change_png),
    "PNG to train on": _trained("pictures", "images/a.png", 2),
    "PNG label": _trained("pictures", "labels/b.png", 2),
    "PNG, listed": _listed("pictures", "images/c.png", change.change_png),
    "TIFF": _pictures("tif", change.change_tiff),
    "DICOM": Kind("study/a/IM0003", change.change_dicom, _dicom, right_series),
    "dataset.json, training": Kind(
        "volumes/dataset.json",
        change.change_json,
        lambda folder: _first_batch(folder, "volumes", 3),
        right_list,
    ),
    "dataset.json, inference": Kind(
        "volumes/dataset.json",
        change.change_json,
        lambda folder: _segment(folder, "volumes", 3, section="testing"),
        right_list,
    ),
    "task.json": Kind(
        "task.json",
        change.change_json,
        lambda folder: run(
            "inference",
            str(folder / "task.json"),
            dataset_dir=str(folder / "float32"),
            output_dir=str(folder / "out"),
            checkpoint=str(folder / "w3.pt"),
        ),
        right_files,
    ),
    "args file": Kind("args.json", change.change_json, _by_args, right_files),
    "args file of tune": Kind("tune_args.json", change.change_json, _tune, lambda folder, file: ""),
    "model.pt": _weights("w3.pt"),
    "model.safetensors": _weights("w3.safetensors"),
    "last.pt": Kind("run/checkpoints/last.pt", change.change_weights, _resume, right_resume),
}
