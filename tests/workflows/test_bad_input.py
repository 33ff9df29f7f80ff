"""Wrong input is refused in one sentence that names it, before anything is written."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from tests.commands import (
    SHARED_DATA,
    TINY,
    bundle_run,
    config_files,
    forked,
    input_error,
    last_line,
    run,
    written,
)

pytestmark = pytest.mark.workflow

NETWORK = {dims: {key: TINY[dims][key] for key in ("patch_size", "channels")} for dims in TINY}
BAD = SHARED_DATA / "bad_inputs"
needs_bad_inputs = [
    pytest.mark.data,
    pytest.mark.skipif(not BAD.is_dir(), reason="the shared bad inputs are not here"),
]

IMAGE, LABEL = "imagesTr/organ_000.nii.gz", "labelsTr/organ_000.nii.gz"


def change(file: Path, edit: Callable[[np.ndarray], np.ndarray], shift: float = 0.0) -> None:
    """Store other voxels, and move the grid by some mm."""
    nifti = nib.Nifti1Image.from_filename(file)
    affine = nifti.affine.copy()
    affine[:3, 3] += shift
    nib.save(nib.Nifti1Image(edit(np.asarray(nifti.dataobj)), affine), file)


def with_voxel(value: float, dtype: type = np.float32) -> Callable[[np.ndarray], np.ndarray]:
    def edit(voxels: np.ndarray) -> np.ndarray:
        voxels = voxels.astype(dtype)
        voxels[3, 4, 5] = value
        return voxels

    return edit


def edit_list(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    file = folder / "dataset.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    edit(content)
    file.write_text(json.dumps(content), encoding="utf-8")


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def lfs_pointer(file: Path) -> None:
    oid = "0" * 64
    file.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize 123\n")


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-200])


#: What is wrong with a data set: how it gets there and what the sentence says.
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing folder": (shutil.rmtree, r"dataset_dir .*organ is no folder"),
    "empty folder": (empty, r"dataset_dir .*organ is empty"),
    "no dataset.json": (lambda d: (d / "dataset.json").unlink(), r"has no dataset\.json"),
    "dataset.json cut off": (lambda d: truncate(d / "dataset.json"), r"dataset\.json cannot be read"),
    "no label listed": (
        lambda d: edit_list(d, lambda c: c["training"][0].pop("label")),
        r"organ_000\.nii\.gz: found an image without a label",
    ),
    "no label file": (lambda d: (d / LABEL).unlink(), rf"{LABEL}: found no such file"),
    "label on another grid": (
        lambda d: change(d / LABEL, lambda v: v, shift=2.0),
        rf"{LABEL}: found a grid that lies up to .* mm away",
    ),
    "label of another shape": (lambda d: change(d / LABEL, lambda v: v[1:]), rf"{LABEL}: found shape"),
    "undeclared label": (
        lambda d: change(d / LABEL, with_voxel(7, np.uint8)),
        rf"{LABEL}: found label values 7 that are not declared",
    ),
    "fractional label": (
        lambda d: change(d / LABEL, with_voxel(0.5)),
        rf"{LABEL}: found 1 .*fractional.* 0\.5",
    ),
    "NaN voxel": (lambda d: change(d / IMAGE, with_voxel(np.nan)), rf"{IMAGE}: found 1 NaN voxels"),
    "LFS pointer": (lambda d: lfs_pointer(d / IMAGE), rf"{IMAGE}: found a Git LFS pointer"),
    "truncated file": (lambda d: truncate(d / IMAGE), rf"{IMAGE}: found a truncated or corrupt"),
    "4D image": (
        lambda d: change(d / IMAGE, lambda v: np.stack([v, v], -1)),
        rf"{IMAGE}: found 4 dimensions",
    ),
}

#: Arguments that do not fit, on sound data.
WRONG_ARGUMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "a fold that is not there": ({"fold": 9}, r"fold=9 does not exist in .*dataset\.json"),
    "labels of another task": (
        {"labels": {"background": 0, "organ": 9}},
        r"dataset\.json declares the labels .* and the config has",
    ),
    "a patch that the network cannot halve": ({"patch_size": [18, 16, 16]}, r"input size \(18, 16, 16\)"),
    "a patch with an axis too few": ({"patch_size": [16, 16]}, r"spatial axes"),
    "an id that nothing knows": ({"max_epoch": 1}, r"--max_epoch 1: no such id; did you mean max_epochs"),
    "an argument that nothing takes": ({"network_def::drop_out": 0.1}, r"did you mean dropout"),
    "no patch of any case": ({"samples_per_case": 0}, r"samples_per_case is 0: use a whole number of 1"),
    "a value that is missing": ({"max_epochs": True}, r"max_epochs is True: .*was the value forgotten"),
    "a loss weight above one": ({"alpha": 1.5}, r"alpha is 1\.5"),
}


def train_arguments(data: Path, output: Path) -> dict[str, Any]:
    return {
        **TINY[3],
        "dataset_dir": str(data),
        "output_dir": str(output),
        "max_epochs": 1,
        "val_interval": 1,
    }


def is_one_sentence(text: str) -> bool:
    return "\n" not in text and len(text.split()) > 5


@pytest.fixture
def spare(organ: Path, tmp_path: Path) -> Path:
    """A copy of the volumes that a test may spoil."""
    return Path(shutil.copytree(organ, tmp_path / "organ"))


@pytest.mark.parametrize("what", BROKEN)
def test_training_refuses_a_broken_data_set(what: str, spare: Path, tmp_path: Path) -> None:
    spoil, sentence = BROKEN[what]
    spoil(spare)
    with pytest.raises(RuntimeError) as caught:
        run("train", "task/phantom_organ", **train_arguments(spare, tmp_path / "out"))
    assert re.search(sentence, input_error(caught.value))
    assert is_one_sentence(input_error(caught.value))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", WRONG_ARGUMENTS)
def test_training_refuses_arguments_that_do_not_fit(what: str, organ: Path, tmp_path: Path) -> None:
    overrides, sentence = WRONG_ARGUMENTS[what]
    with pytest.raises(RuntimeError) as caught:
        run("train", "task/phantom_organ", **{**train_arguments(organ, tmp_path / "out"), **overrides})
    assert re.search(sentence, input_error(caught.value))
    assert is_one_sentence(input_error(caught.value))
    assert not list((tmp_path / "out").rglob("*.pt"))


def test_every_bad_case_is_named_at_once(spare: Path, tmp_path: Path) -> None:
    lfs_pointer(spare / IMAGE)
    change(spare / "labelsTs/organ_003.nii.gz", with_voxel(7, np.uint8))
    with pytest.raises(RuntimeError) as caught:
        run("train", "task/phantom_organ", **train_arguments(spare, tmp_path / "out"))
    message = input_error(caught.value)
    assert re.search(r"organ_000.*LFS pointer", message)
    assert re.search(r"organ_003.*label values 7", message)


def test_training_refuses_colour_pictures(cells: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(cells, tmp_path / "cells"))
    picture = data / "imagesTr/cells_000.png"
    Image.open(picture).convert("RGBA").save(picture)
    with pytest.raises(RuntimeError) as caught:
        run("train", "task/phantom_cells", **TINY[2], dataset_dir=str(data), output_dir=str(tmp_path / "out"))
    assert re.search(r"cells_000\.png: found a colour picture with alpha", input_error(caught.value))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", ["missing folder", "undeclared label"])
def test_the_command_ends_with_one_sentence(what: str, spare: Path, tmp_path: Path) -> None:
    spoil, sentence = BROKEN[what]
    spoil(spare)
    arguments = [f"--{k}={v}" for k, v in train_arguments(spare, tmp_path / "out").items()]
    done = forked(*bundle_run(*arguments, files=config_files("train", "task/phantom_organ")), cwd=tmp_path)
    assert done.returncode != 0
    assert last_line(done).startswith("error: ")
    assert re.search(sentence, last_line(done))
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def model(organ: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the tiny network, trained for an epoch."""
    folder = tmp_path_factory.mktemp("model")
    run("train", "task/phantom_organ", **train_arguments(organ, folder))
    return folder / "model.pt"


def segment(images: Path, output: Path, checkpoint: Path) -> None:
    run(
        *("inference", "task/phantom_organ"),
        **NETWORK[3],
        dataset_dir=str(images),
        output_dir=str(output),
        checkpoint=str(checkpoint),
    )


def test_text_means_what_it_says_and_results_are_no_images(model: Path, organ: Path, tmp_path: Path) -> None:
    """Twice into the folder of the images, the second time not of the results of the first."""
    images = Path(shutil.copytree(organ / "imagesTs", tmp_path / "images"))
    names = ("organ_002", "organ_003")
    expected = sorted(f"{name}{end}" for name in names for end in (".nii.gz", "_seg.nii.gz"))
    for _ in range(2):
        run(
            *("inference", "task/phantom_organ"),
            **{"channels": str(NETWORK[3]["channels"]), "patch_size": 16, "seed": "3"},
            **{"amp": "false", "save_probabilities": "false"},
            dataset_dir=str(images),
            output_dir=str(images),
            checkpoint=str(model),
        )
        assert written(images) == expected


def evaluate(data: Path, output: Path, checkpoint: Path) -> None:
    run(
        *("train", "task/phantom_organ", "evaluate"),
        **TINY[3],
        dataset_dir=str(data),
        output_dir=str(output),
        checkpoint=str(checkpoint),
    )


def other_network(file: Path) -> None:
    weights = torch.load(file, weights_only=True)
    torch.save({name: value[:1] for name, value in weights.items()}, file)


#: What is wrong with a checkpoint.
CHECKPOINTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda file: file.unlink(), r"model\.pt: no such checkpoint"),
    "truncated": (truncate, r"model\.pt: not a readable checkpoint"),
    "not weights": (lambda file: torch.save([1, 2], file), r"model\.pt: holds a list"),
    "another network": (other_network, r"model\.pt: a checkpoint of another network .* in the network"),
}


@pytest.mark.parametrize(("use", "data"), [(evaluate, "."), (segment, "imagesTs")], ids=["evaluate", "infer"])
@pytest.mark.parametrize("what", CHECKPOINTS)
def test_wrong_checkpoint_is_refused(
    use: Callable[[Path, Path, Path], None], data: str, what: str, model: Path, organ: Path, tmp_path: Path
) -> None:
    spoil, sentence = CHECKPOINTS[what]
    file = Path(shutil.copy(model, tmp_path))
    spoil(file)
    with pytest.raises(RuntimeError) as caught:
        use(organ / data, tmp_path / "out", file)
    assert re.search(sentence, input_error(caught.value))
    assert is_one_sentence(input_error(caught.value))
    assert not (tmp_path / "out").exists()


def test_wrong_network_by_the_command(model: Path, organ: Path, tmp_path: Path) -> None:
    done = forked(
        *bundle_run(
            *("--dataset_dir", str(organ / "imagesTs"), "--output_dir", "out", "--checkpoint", str(model)),
            files=config_files("inference", "task/phantom_organ"),
        ),
        cwd=tmp_path,
    )
    assert done.returncode != 0
    sentence = f"error: {model} was trained with other settings: channels was [4, 8, 8, 8] and is "
    assert last_line(done).startswith(sentence)
    assert "Traceback" not in done.stderr
    assert written(tmp_path) == []


def test_sound_images_are_segmented_among_bad_ones(model: Path, organ: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(organ / "imagesTs", images)
    lfs_pointer(images / "pointer.nii.gz")
    shutil.copy(organ / IMAGE, images / "series.nii.gz")
    change(images / "series.nii.gz", lambda v: np.stack([v, v], -1))
    done = forked(
        *bundle_run(
            *(f"--{key}={value}" for key, value in NETWORK[3].items()),
            *("--dataset_dir", "images", "--output_dir", "out", "--checkpoint", str(model)),
            files=config_files("inference", "task/phantom_organ"),
        ),
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert written(tmp_path / "out") == ["organ_002_seg.nii.gz", "organ_003_seg.nii.gz"]
    assert re.match(r"error: 2 of 4 images were not segmented: pointer, series;", last_line(done))
    assert "Traceback" not in done.stderr
    for reason in (r"pointer\.nii\.gz: found a Git LFS pointer", r"series\.nii\.gz: found 4 dimensions"):
        assert re.search(reason, done.stdout + done.stderr)


def test_no_sound_image_at_all(model: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    lfs_pointer(tmp_path / "images/pointer.nii.gz")
    with pytest.raises(RuntimeError) as caught:
        segment(tmp_path / "images", tmp_path / "out", model)
    assert re.search(r"pointer\.nii\.gz: found a Git LFS pointer", input_error(caught.value))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        pytest.param(file, sentence, marks=needs_bad_inputs)
        for file, sentence in [
            ("git_lfs_pointer/liver_0.nii.gz", "found a Git LFS pointer"),
            ("nonfinite/mtr_inf.nii.gz", "found 633 infinite voxels"),
            ("nonfinite/fmri_tsnr_nan.nii.gz", "found 408 NaN voxels"),
            ("wrong_dims/dmri_4d.nii.gz", "found 4 dimensions"),
            ("wrong_pixels/stained_rgba.png", "found a 2D picture"),
        ]
    ],
)
def test_real_bad_image(file: str, sentence: str, model: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / Path(file).name).symlink_to((BAD / file).resolve())
    with pytest.raises(RuntimeError) as caught:
        segment(tmp_path / "images", tmp_path / "out", model)
    assert re.search(rf"{Path(file).name}: {sentence}", input_error(caught.value))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("task", "image", "label", "sentence"),
    [
        pytest.param(*row, marks=needs_bad_inputs)
        for row in [
            (
                "organ",
                "soft_label/mt1.nii.gz",
                "soft_label/mt1_gmseg.nii.gz",
                r"gmseg\.nii\.gz .*fractional",
            ),
            (
                "organ",
                "wrong_dims/t2_60x55x52.nii.gz",
                "wrong_dims/mt1_seg_40x40x5.nii.gz",
                r"seg_40x40x5\.nii\.gz .*shape \(40, 40, 5\) where the image has \(60, 55, 52\)",
            ),
            (
                "organ",
                "hippocampus_planted/imagesTr/hippocampus_118.nii.gz",
                "hippocampus_planted/labelsTr/hippocampus_118.nii.gz",
                r"labelsTr/hippocampus_118\.nii\.gz .*no such file",
            ),
            (
                "cells",
                "wrong_pixels/stained_rgba.png",
                "wrong_pixels/mask_0_255_one_nucleus.png",
                r"stained_rgba.*RGBA",
            ),
        ]
    ],
)
def test_real_bad_pair(task: str, image: str, label: str, sentence: str, tmp_path: Path) -> None:
    pair = {"image": str((BAD / image).resolve()), "label": str((BAD / label).resolve())}
    listed = {"training": [{**pair, "case": "a"}, {**pair, "case": "b"}]}
    (tmp_path / "dataset.json").write_text(json.dumps(listed), encoding="utf-8")
    with pytest.raises(RuntimeError) as caught:
        run("train", f"task/phantom_{task}", dataset_dir=str(tmp_path), output_dir=str(tmp_path / "out"))
    assert re.search(sentence, input_error(caught.value))
    assert not (tmp_path / "out").exists()
