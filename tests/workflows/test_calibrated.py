"""A calibration reaches every way to probabilities."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from PIL import Image
from scipy.special import softmax

from bundle.data.phantom import Kind, write_phantom
from bundle.runs.experiments import parser_of
from scripts.recipe import for_inference
from scripts.review import FEATURES
from tests.commands import TINY, input_error, read_array, run, workbench

pytestmark = pytest.mark.workflow

TASKS = {2: "task/phantom_cells", 3: "task/phantom_organ"}


def weights(folder: Path, dims: int, seed: int = 0) -> Path:
    """Of a network that nobody trained."""
    torch.manual_seed(seed)
    experiment = {"config_file": ["configs/train.json", f"configs/{TASKS[dims]}.json"], **TINY[dims]}
    network = ConfigParser(for_inference(parser_of(experiment).get())).get_parsed_content("network_def")
    torch.save(network.state_dict(), folder / f"model{seed}.pt")
    return folder / f"model{seed}.pt"


def segment(out: Path, images: Path, checkpoint: Any, dims: int, *overlays: str, **ids: Any) -> Path:
    network = {key: TINY[dims][key] for key in ("patch_size", "channels", "runtime")}
    places = {"dataset_dir": str(images), "output_dir": str(out), "checkpoint": checkpoint}
    run("inference", TASKS[dims], *overlays, **network, **places, amp=False, **ids)
    return out


@pytest.mark.parametrize("overlays", [(), ("inferer/orientations",), ("ensemble",)])
def test_probabilities_of_pictures(overlays: tuple[str, ...], cells: Path, tmp_path: Path) -> None:
    checkpoints = [str(weights(tmp_path, 2, seed)) for seed in range(2)]
    checkpoint = checkpoints if "ensemble" in overlays else checkpoints[0]
    given = (cells / "imagesTs", checkpoint, 2, *overlays)
    plain = segment(tmp_path / "plain", *given, save_probabilities=True)
    warm = segment(tmp_path / "warm", *given, save_probabilities=True, calibration={"temperature": 2.5})
    files = sorted(plain.glob("*_prob.nii.gz"))
    assert len(files) == 2
    for file in files:
        before, after = read_array(file), read_array(warm / file.name)
        np.testing.assert_allclose(after, softmax(np.log(before) / 2.5, axis=-1), atol=1e-5)
        assert np.array_equal(after.argmax(-1), before.argmax(-1))


def test_volumes_from_disk_to_disk_are_calibrated_too(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    values = np.random.default_rng(0).standard_normal((20, 18, 22)).astype(np.float32)
    nib.Nifti1Image(values, np.diag([-1.4, 1.2, 1.0, 1.0])).to_filename(images / "a.nii")
    checkpoint = str(weights(tmp_path, 3))
    names = json.loads((Path(__file__).parents[2] / "configs/train.json").read_text())["labels"]
    calibration = {
        "temperature": dict(zip(names, (1.0, 2.0, 0.7), strict=True)),
        "bias": dict(zip(names, (0.3, -0.2, -0.1), strict=True)),
    }
    found = {}
    for name, overlays, ids in [
        ("plain", (), {}),
        ("straight", (), {"calibration": calibration}),
        ("whole", (), {"calibration": calibration, "save_probabilities": True}),
        ("disk", ("large_volume",), {"calibration": calibration}),
    ]:
        out = segment(tmp_path / name, images, checkpoint, 3, *overlays, **ids)
        found[name] = np.asarray(nib.load(next(out.glob("a_seg.nii*"))).dataobj)
    assert np.array_equal(found["straight"], found["whole"])
    assert (found["disk"] != found["whole"]).mean() < 1e-3
    assert (found["plain"] != found["whole"]).mean() > 0.01


def test_the_overlay_goes_into_the_recipe_that_a_package_is_made_of(tmp_path: Path) -> None:
    overlay = tmp_path / "calibration.json"
    overlay.write_text(json.dumps({"_desc_": "learnt", "calibration": {"temperature": 1.4}}))
    config = for_inference(parser_of({"config_file": ["configs/train.json", str(overlay)]}).get())
    assert config["calibration"] == {"temperature": 1.4}
    assert ConfigParser(config).get_parsed_content("window_inferer").calibration.temperature == (1.4,)


@pytest.mark.parametrize(("dims", "ext"), [(2, ".png"), (3, ".nii.gz")])
def test_one_setting_writes_maps_and_the_table(
    dims: int, ext: str, cells: Path, organ: Path, tmp_path: Path
) -> None:
    checkpoints = [str(weights(tmp_path, dims, seed)) for seed in range(3)]
    images = (cells if dims == 2 else organ) / "imagesTs"
    weighed = {**dict.fromkeys(FEATURES, 0.0), "expected_dice": 0.7}
    ranges = {name: [-20.0, 20.0] for name in FEATURES}
    learnt = {"intercept": 0.2, "weights": weighed, "ranges": ranges, "half_width": 0.1, "margin": 2}
    names = {2: "interior", 3: "anterior"}
    review = {"coverage": 0.9, "covered": 0.99, "classes": {names[dims]: {**learnt, "look_below": 0.99}}}
    out = segment(tmp_path / "out", images, checkpoints, dims, "ensemble", save_spread=True, review=review)
    cases = sorted(file.name.removesuffix(f"_seg{ext}") for file in out.glob("*_seg*"))
    assert len(cases) == 2
    for case in cases:
        label, spread, mutual = (
            read_array(out / f"{case}_{kind}{ext}") for kind in ("seg", "spread", "mutual")
        )
        assert label.shape == spread.shape == mutual.shape
        largest = 255 if dims == 2 else 1
        assert mutual.min() >= 0
        assert mutual.max() <= largest
        assert (mutual <= spread + (1.0 if dims == 2 else 0.05)).all()
        assert mutual.max() > 0
    with (out / "review.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["case"] for row in rows) == cases
    assert [float(row["lowest"]) for row in rows] == sorted(float(row["lowest"]) for row in rows)
    assert {row["look"] for row in rows} == {"low"}
    unit = "pixels" if dims == 2 else "ml"
    assert all(float(row[f"{names[dims]} {unit} sd"]) >= 0 for row in rows)
    assert all(row[f"{names[dims]} margin"] == "2" for row in rows)
    segment(tmp_path / "alone", images, checkpoints[0], dims, save_spread=True)
    assert not list((tmp_path / "alone").glob("*_mutual*"))
    assert not (tmp_path / "alone" / "review.csv").exists()


def test_what_is_unlike_is_told_first_and_can_fail_the_run(tmp_path: Path) -> None:
    write_phantom(Kind.CELLS, tmp_path / "data", cases=33, size=(64, 72))
    files = [str(Path(__file__).parents[2] / "configs" / f"{name}.json") for name in ("train", TASKS[2])]
    (tmp_path / "experiment.json").write_text(json.dumps({"config_file": files, **TINY[2]}))
    images = tmp_path / "images"
    images.mkdir()
    listed = []
    for number, label in enumerate(sorted((tmp_path / "data").glob("labels*/*.png"))):
        name = label.name
        (picture,) = (tmp_path / "data").glob(f"images*/{name}")
        shutil.copyfile(picture, images / name)
        entry = {"image": str(picture), "label": str(label), "case": label.stem, "subject": label.stem}
        listed.append({**entry, "fold": number % 3})
    (tmp_path / "dataset.json").write_text(json.dumps({"training": listed}))
    checkpoint = str(weights(tmp_path, 2))
    pred = segment(tmp_path / "pred", images, checkpoint, 2, save_probabilities=True)
    said = workbench(
        *("calibrate", "--args_file", tmp_path / "experiment.json", "--output_dir", tmp_path / "learnt"),
        *("--dataset_dir", tmp_path, "--pred", pred, "--section", "training"),
    )
    assert "of 33 sound cases, each by what was learnt without its fold" in said
    overlay = json.loads((tmp_path / "learnt/calibration.json").read_text())
    learnt = {name: overlay[name] for name in ("calibration", "review")}

    new = tmp_path / "new"
    new.mkdir()
    shutil.copyfile(images / listed[0]["image"].rpartition("/")[2], new / "a_sound.png")
    values = np.asarray(Image.open(images / listed[1]["image"].rpartition("/")[2]))
    Image.fromarray(values.max() - values).save(new / "b_inverted.png")
    told = segment(tmp_path / "told", new, checkpoint, 2, **learnt)
    with (told / "review.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["look"]) for row in rows] == [("b_inverted", "unlike"), ("a_sound", "")]
    assert "in the cases learnt from: it may be" in rows[0]["unlike"]
    with pytest.raises(RuntimeError) as caught:
        segment(tmp_path / "failed", new, checkpoint, 2, **learnt, fail_on_unlike=True)
    assert "1 of 2 images are unlike those learnt from: b_inverted; " in input_error(caught.value)
    assert len(list((tmp_path / "failed").glob("*_seg.png"))) == 2
    with pytest.raises(RuntimeError) as caught:
        segment(tmp_path / "none", new, checkpoint, 2, fail_on_unlike=True)
    assert "nothing says what is unlike, as review is null" in input_error(caught.value)
