"""The plan follows from the data and from what a training may take, and says why."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bundle.data import fingerprint
from bundle.data.fingerprint import look_at, touching
from bundle.data.plan import (
    PATCH_VOXELS,
    REASONS,
    guess_modality,
    network_levels,
    object_widths,
    plan_task,
)
from bundle.runs.experiments import parser_of, read_experiment
from scripts.data.checks import Facts
from scripts.data.grids import Grid
from scripts.errors import InputError
from tests.commands import CONFIGS, invoke

LABELS = {"background": 0, "organ": 1}
AFFINE = np.diag([1.0, 1.0, 1.0, 1.0])


def planned(
    shape: tuple[int, ...], spacing: tuple[float, ...] | None = None, **options: Any
) -> dict[str, Any]:
    """The plan for three cases of one shape, 5 % of which is organ."""
    voxels = {0: 95, 1: 5}
    dims = len(shape)
    facts = [Facts(shape, spacing or (1.0,) * dims, voxels)] * 3
    return plan_task(facts, **{"spatial_dims": dims, "in_channels": 1, "labels": LABELS, **options})


def seen(image: np.ndarray, label: np.ndarray, *, instances: bool = False, dims: int = 2) -> Facts:
    """The facts of a case of one channel."""
    grid = Grid(label.shape, AFFINE if dims == 3 else None)
    values, counts = np.unique(label, return_counts=True)
    voxels = dict(zip(values.tolist(), counts.tolist(), strict=True))
    spacing = (1.0,) * 3 if dims == 3 else None
    return Facts(label.shape, spacing, voxels, look_at([image[..., None]], label, grid, instances))


def test_the_hippocampus_gets_what_the_configs_have() -> None:
    train = json.loads((CONFIGS / "train.json").read_text())
    task = planned((35, 50, 36))
    for name in ("patch_size", "spacing", "channels", "batch_size", "learning_rate", "alpha", "flip_axes"):
        assert task[name] == train[name], name
    assert task["patch"] == train["patch"]
    assert task["normalise"] == train["normalise"]
    assert not [name for name in task if name.startswith("network_def")]


def test_every_choice_has_its_reason_and_the_same_data_the_same_plan() -> None:
    for task in (planned((300, 200), pictures=True), planned((256, 256, 9), (1.4, 1.4, 10.0))):
        assert list(task[REASONS]) == [name for name in task if name != REASONS]
        assert not [why for why in task[REASONS].values() if set(why) & set("@$%#")]
    assert json.dumps(planned((40, 50, 60))) == json.dumps(planned((40, 50, 60)))


@given(
    st.integers(2, 3).flatmap(lambda n: st.lists(st.integers(2, 3000), min_size=n, max_size=n)),
    st.sampled_from([(1.0, 1.0, 1.0), (0.5, 0.5, 5.0), (4.0, 1.0, 1.0), (1.0, 1.0, 2.5)]),
)
def test_any_patch_fits_its_network(shape: list[int], spacing: tuple[float, ...]) -> None:
    dims = len(shape)
    task = planned(tuple(shape), spacing[:dims])
    slices = task.get("network_def::slice_axis")
    seen = dims - (slices is not None)
    strides = task.get("network_def::strides", (len(task["channels"]) - 1) * [[2] * seen])
    steps = np.prod(strides, axis=0).tolist()
    if slices is not None:
        steps.insert(slices, 1)
        assert task["patch_size"][slices] == 1
    assert len(task["channels"]) == len(strides) + 1 >= 2
    assert all(n % step == 0 and n >= step for n, step in zip(task["patch_size"], steps, strict=True))
    assert math.prod(task["patch_size"]) <= 1.3 * PATCH_VOXELS[dims]
    assert 1 <= task["samples_per_case"] <= 8


def test_kernels_and_strides_along_thick_slices() -> None:
    strides, kernels = network_levels((128, 128, 40), (1.0, 1.0, 4.0))
    assert [stride[2] for stride in strides] == [1, 2, 2, 2]  # from edges of 2, 2, 4 mm on
    assert [kernel[2] for kernel in kernels] == [1, 3, 3, 3, 3]
    task = planned((256, 256, 40), (1.0, 1.0, 4.0))
    assert task["network_def::kernel_sizes"][0] == [3, 3, 1]
    assert task["patch"]["rotate_range"] == [0.0, 0.0, 0.5]
    assert task["patch"]["elastic_std"][2] == 0
    assert "geometry" not in task


def test_few_thick_slices_are_segmented_one_by_one() -> None:
    for axis in range(3):
        shape, spacing = [250, 250], [1.4, 1.4]
        shape.insert(axis, 9)
        spacing.insert(axis, 10.0)
        task = planned(tuple(shape), tuple(spacing))
        assert task["network_def::slice_axis"] == axis
        assert "9 slices, 10 mm apart" in task[REASONS]["network_def::slice_axis"]
        assert task["patch_size"] == [1 if n == axis else 256 for n in range(3)]
        assert (task["batch_size"], task["channels"]) == (4, [16, 32, 64, 128, 256])
        assert not [name for name in task if name in ("network_def::strides", "network_def::kernel_sizes")]
        patch = task["patch"]
        assert [angle > 0 for angle in patch["rotate_range"]] == [n == axis for n in range(3)]
        assert [std > 0 for std in patch["elastic_std"]] == [n != axis for n in range(3)]
        assert patch["translate_range"] == 0
        low, high = (task["geometry"][1][name] for name in ("min_pixdim", "max_pixdim"))
        assert low == [0.0 if n == axis else None for n in range(3)]
        assert [edge is None for edge in high] == [n != axis for n in range(3)]
    assert "network_def::slice_axis" not in planned((250, 250, 16), (1.4, 1.4, 10.0))
    assert "network_def::slice_axis" not in planned((250, 250, 9), (1.4, 1.4, 4.0))
    short = planned((250, 250, 9), (1.4, 1.4, 10.0), minutes=2)
    assert (short["patch_size"][2], short["patch_size"][0] < 256) == (1, True)


def test_axes_are_those_of_the_files_where_slices_lie_across_several_of_the_body() -> None:
    """Short-axis stacks of tilted hearts: the last axis of each file, another one of the body in each."""
    voxels = {0: 95, 1: 5}
    stacks = [("LPS", (200, 180, 9), (1.5, 1.4, 10.0)), ("PSR", (9, 200, 180), (10.0, 1.5, 1.4))]
    image, label = np.ones((4, 4, 4, 1)), np.zeros((4, 4, 4), np.uint8)
    found = look_at([image], label, Grid(label.shape, None))
    facts = [Facts(shape, spacing, voxels, {**found, "axes": axes}) for axes, shape, spacing in stacks * 2]
    options: dict[str, Any] = {"spatial_dims": 3, "in_channels": 1, "labels": LABELS}
    task = plan_task(facts, **options)
    assert (task["spacing"], task["network_def::slice_axis"]) == ([1.5, 1.4, 10.0], 2)
    assert [step["_target_"] for step in task["geometry"]] == ["scripts.transforms.IsolatedSpacingd"]
    assert "axes are those of the files" in task[REASONS]["geometry"]
    assert task["flip_axes"] == []
    assert plan_task(facts[::2], **options)["geometry"][0]["_target_"] == "Orientationd"


def test_time_and_memory_set_sizes() -> None:
    free, short = planned((512, 512)), planned((512, 512), minutes=20, cores=2)
    wide, small = planned((64, 64), minutes=600, cores=8), planned((512, 512), memory_gb=1.2)
    assert math.prod(short["patch_size"]) * short["batch_size"] < 4 * math.prod(free["patch_size"])
    assert "20 minutes on 2 core(s)" in short[REASONS]["patch_size"]
    assert (wide["channels"][0], wide["learning_rate"]) == (32, 0.001)
    assert math.prod(small["patch_size"]) * small["batch_size"] < 4 * math.prod(free["patch_size"])
    with pytest.raises(InputError, match=r"--minutes is 0.01; 200 steps .* give [\d.]+ or more"):
        planned((512, 512), minutes=0.01)
    with pytest.raises(InputError, match=r"--memory_gb is 0.5; the smallest network .* give 1.1 or more"):
        planned((512, 512), memory_gb=0.5)


def test_spacings_that_cannot_be() -> None:
    with pytest.raises(InputError, match="the median case measure 1000 x 1000 x 1000 mm"):
        planned((30, 30, 30), (1000.0, 1000.0, 1000.0))
    facts = [Facts((30, 30, 30), (1.0, 1.0, 1.0), {0: 9, 1: 1})] * 3
    facts.append(Facts((30, 30, 30), (0.001, 0.001, 0.001), {0: 9, 1: 1}))
    with pytest.raises(InputError, match=r"1 of 4 cases have voxels such as 0.001 x 0.001 x 0.001 mm"):
        plan_task(facts, spatial_dims=3, in_channels=1, labels=LABELS)
    assert "look whether the headers are in mm" in planned((9, 9, 9), (0.001,) * 3)[REASONS]["spacing"]


def test_sides_rare_classes_and_much_foreground() -> None:
    task = planned((64, 64), labels={"background": 0, "lung_L": 1, "lung_R": 2})
    assert (task["flip_axes"], task["patch"]["rotate_range"]) == ([], 0.2)
    facts = [Facts((64, 64), None, {0: 4000, 1: 3})]
    rare = plan_task(facts, spatial_dims=2, in_channels=1, labels=LABELS, pictures=True)
    facts = [Facts((64, 64), None, {0: 1000, 1: 3000})]
    much = plan_task(facts, spatial_dims=2, in_channels=1, labels=LABELS, pictures=True)
    assert (rare["patch"]["foreground_prob"], rare["alpha"]) == (0.5, 0.5)
    assert (much["patch"]["foreground_prob"], much["alpha"]) == (0.0, 1.0)


def test_normalisation_follows_the_modality() -> None:
    rng = np.random.default_rng(0)
    label = np.zeros((30, 30, 30), np.uint8)
    label[10:20, 10:20, 10:20] = 1
    ct = np.where(label == 1, rng.normal(60, 10, label.shape), -1000).round()
    task = plan_task([seen(ct, label, dims=3)], spatial_dims=3, in_channels=1, labels=LABELS)
    (clip,) = task["normalise"]
    inside = ct[label == 1]
    assert clip["_target_"] == "ScaleIntensityRanged"
    assert clip["clip"] is True
    assert clip["a_min"] == pytest.approx(np.percentile(inside, 0.5))
    assert clip["b_max"] == pytest.approx((clip["a_max"] - inside.mean()) / inside.std(), rel=1e-3)
    mr = np.where(label == 1, 100, 0) + (np.arange(30) < 12) * rng.uniform(1, 50, label.shape)
    task = plan_task([seen(mr, label, dims=3)], spatial_dims=3, in_channels=1, labels=LABELS)
    assert task["normalise"][0]["nonzero"] is True
    flat = label[15]
    kinds = {
        "fluorescence": 20 + 200.0 * flat,
        "brightfield": 200 - 150.0 * (flat == 1) + rng.normal(0, 3, flat.shape),
        "grey": rng.normal(100, 20, flat.shape),
    }
    for kind, image in kinds.items():
        assert guess_modality([seen(image, flat)], 2, [])[0] == kind
    assert guess_modality([], 3, ["CT"])[0] == "CT"


def disks(width: int, apart: int) -> np.ndarray:
    """Nine disks as numbered objects."""
    size = 3 * apart
    rows, columns = np.mgrid[:size, :size]
    label = np.zeros((size, size), np.uint16)
    for number in range(9):
        centre = (number // 3 + 0.5) * apart, (number % 3 + 0.5) * apart
        label[np.hypot(rows - centre[0], columns - centre[1]) <= width / 2] = number + 1
    return label


def test_objects_set_border_watershed_and_resolution() -> None:
    small, large = disks(20, 30), disks(130, 130)
    assert (touching(small), touching(large)) == (0, 9)
    facts = [seen(small.astype(float), small, instances=True)]
    assert object_widths(facts, 2) == pytest.approx([20] * 9, rel=0.05)
    options: dict[str, Any] = {"spatial_dims": 2, "in_channels": 1, "labels": {"background": 0}}
    task = plan_task(facts, **options, instances=True, pictures=True)
    assert task["geometry"] == []
    assert (task["targets"][0]["thickness"], task["targets"][0]["contacts"]) == (2, False)
    assert task["to_labels"][0]["neck"] == pytest.approx(3, abs=0.3)
    assert task["to_labels"][0]["min_size"] == pytest.approx(0.25 * 314, rel=0.1)
    task = plan_task(
        [seen(large.astype(float), large, instances=True)], **options, instances=True, pictures=True
    )
    assert task["spacing"] == [2.0, 2.0]
    assert task["geometry"][0]["_target_"] == "scripts.transforms.IsolatedSpacingd"
    assert task["targets"][0]["contacts"] is True
    assert task["to_labels"][0]["min_size"] == pytest.approx(0.25 * math.pi * 65**2, rel=0.05)


def cells(root: Path, number: int = 4) -> tuple[object, ...]:
    """Two folders of pictures of organs."""
    for folder, value in (("i", 200), ("l", 1)):
        (root / folder).mkdir(parents=True)
        for n in range(number):
            array = np.zeros((40, 30), np.uint8)
            array[5 : 20 + n, 5:20] = value
            Image.fromarray(array).save(root / folder / f"c{n}.png")
    return "--images", root / "i", "--labels", root / "l", "--folds", 2


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its plan is that of datalist, is told, and replaces nothing that somebody changed."""
    source = cells(tmp_path)
    out = tmp_path / "out"
    result = invoke("plan", *source, "--output_dir", out, "--explain", "--no-trial")
    assert result.exit_code == 0, result.output
    assert "patch_size" in result.output
    assert "multiples of what the strides divide by" in result.output
    assert "max_epochs" in result.output
    timed = ("--output_dir", tmp_path / "timed", "--explain", "--no-trial", "--minutes", 30)
    said = invoke("plan", *source, *timed).output
    assert "max_epochs" not in said  # which has no effect
    assert "as given: the training times its steps" in said
    first = (out / "task.json").read_bytes()
    assert invoke("datalist", *source, "--output_dir", tmp_path / "list").exit_code == 0
    assert (tmp_path / "list/task.json").read_bytes() == first
    parsed = parser_of(read_experiment(out / "experiment.json", {}))
    assert parsed["patch"]["flip_axes"] == "@flip_axes"

    read: list[str] = []
    monkeypatch.setattr(
        fingerprint, "inspect_cases", lambda cases, **_: read.extend(case["case"] for case in cases) or []
    )
    again = invoke("plan", *source, "--output_dir", out, "--no-trial")
    assert again.exit_code == 0, again.output
    assert (out / "task.json").read_bytes() == first
    assert read == []  # all was remembered

    changed = json.loads(first) | {"max_epochs": 3}
    (out / "task.json").write_text(json.dumps(changed))
    refused = invoke("plan", *source, "--output_dir", out, "--no-trial")
    assert "task.json would be replaced" in str(refused.exception)


def test_a_listed_data_set(tmp_path: Path) -> None:
    assert invoke("datalist", *cells(tmp_path), "--output_dir", tmp_path / "list").exit_code == 0
    listed = (tmp_path / "list/dataset.json").read_bytes()
    for _ in range(2):  # the second time it replaces its own
        result = invoke(
            "plan", "--dataset_dir", tmp_path / "list", "--output_dir", tmp_path / "out", "--no-trial"
        )
        assert result.exit_code == 0, result.output + str(result.exception)
    assert (tmp_path / "list/dataset.json").read_bytes() == listed
    assert (tmp_path / "out/task.json").read_text() == (tmp_path / "list/task.json").read_text()
    experiment = json.loads((tmp_path / "out/experiment.json").read_text())
    assert experiment["dataset_dir"] == str(tmp_path / "list")
    assert invoke("plan", "--dataset_dir", tmp_path / "list", "--no-trial").exit_code == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--dataset_dir", "d", "--msd", "m"), "give one"),
        (("--dataset_dir", "d", "--instances"), "leave out what sets others"),
        (("--msd", "m"), "--output_dir is missing"),
        (("--output_dir", "o"), "exactly one of .* or --dataset_dir"),
        (("--dataset_dir", "d", "--minutes", 0), "--minutes is 0; it takes more than 0"),
    ],
)
def test_arguments_that_do_not_fit(options: tuple[object, ...], said: str) -> None:
    result = invoke("plan", *options)
    assert isinstance(result.exception, InputError)
    with pytest.raises(InputError, match=said):
        raise result.exception


def test_the_label_is_turned_onto_its_image(tmp_path: Path) -> None:
    """What is found inside of a label is found there though its file lies the other way round."""
    image = np.zeros((12, 10, 8), np.float32)
    image[:4] = 100
    label = (image > 0).astype(np.uint8)
    turned_affine = np.diag([-1.0, 1.0, 1.0, 1.0])
    turned_affine[0, 3] = 11
    for folder in ("i", "l"):
        (tmp_path / folder).mkdir()
    for n in range(2):
        nib.save(nib.Nifti1Image(image, AFFINE), tmp_path / f"i/c{n}.nii.gz")
        nib.save(nib.Nifti1Image(label[::-1].copy(), turned_affine), tmp_path / f"l/c{n}.nii.gz")
    source = ("--images", tmp_path / "i", "--labels", tmp_path / "l", "--folds", 2)
    assert invoke("datalist", *source, "--output_dir", tmp_path / "out").exit_code == 0
    found = json.loads((tmp_path / "out/fingerprint.json").read_text())["cases"]["c0"]["found"]
    assert found["channels"][0]["foreground"]["mean"] == 100
    assert found["channels"][0]["background"]["mean"] == 0
    assert (found["axes"], found["components"]) == ("RAS", {"1": 1})
