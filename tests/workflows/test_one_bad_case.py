"""One case that fails leaves itself out; the others are done rightly, and the exit status says so."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader
from monai.transforms import Transform

from scripts.errors import Fault, InputError
from tests import dicom_phantom as phantom
from tests.commands import input_error, invoke, read_array, run, written

pytestmark = pytest.mark.workflow

#: A network of one convolution that says class 1 where a voxel is above the mean of its image.
THRESHOLD: dict[str, Any] = {
    "labels": {"background": 0, "bright": 1},
    "patch_size": [8, 8, 8],
    "amp": False,
    "runtime": "torch",
    "network_def": {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 2, "kernel_size": 1},
}

#: Errors that one case can bring about: what is raised, and what the log says of it.
OF_A_CASE: dict[str, tuple[Callable[[], Exception], str]] = {
    "memory": (lambda: MemoryError(), "found an image that takes more memory than there is"),
    "allocator": (
        lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        "found an image that takes more memory than there is",
    ),
    "fault": (lambda: Fault("a hole", "there is none", "fill it"), "found a hole; there is none; fill it."),
    "shape": (lambda: RuntimeError("shape '[2]' is invalid"), "RuntimeError: shape '[2]' is invalid"),
    "unknown": (lambda: KeyError("nobody thought of it"), "KeyError: 'nobody thought of it'"),
}

#: Errors that every case would meet, when they come after its loading.
OF_ALL: dict[str, Callable[[], Exception]] = {
    "argument": lambda: InputError("an argument breaks its rule"),
    "place": lambda: PermissionError(13, "Permission denied", "out"),
    "device": lambda: RuntimeError("CUDA error: an illegal memory access was encountered"),
}


class Fails(Transform):
    """Raises an error of a kind when the case comes by."""

    def __init__(self, case: str, kind: str) -> None:
        self.case = case
        self.kind = kind

    def __call__(self, data: Mapping[Hashable, Any]) -> Mapping[Hashable, Any]:
        if data["case"] == self.case:
            raise OF_A_CASE[self.kind][0]() if self.kind in OF_A_CASE else OF_ALL[self.kind]()
        return data


class FailsInside(torch.nn.Conv3d):
    """The network of one convolution; it does not take an image whose voxels lie far from 0."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.amax() > 20:
            raise RuntimeError("Given groups=1, expected input to have 2 channels")
        return super().forward(x)


def fails(kind: str, case: str = "b") -> dict[str, Any]:
    return {"_target_": f"{__name__}.Fails", "case": case, "kind": kind}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    network = torch.nn.Conv3d(1, 2, 1)
    with torch.no_grad():
        for values in network.parameters():
            values.zero_()
        network.weight[1] = 4.0
    file = tmp_path_factory.mktemp("weights") / "threshold.pt"
    torch.save(network.state_dict(), file)
    return str(file)


def volume(file: Path, seed: int, edge: float = 1.0, shape: tuple[int, ...] = (9, 8, 7)) -> np.ndarray:
    """Write noise; returns the voxels above its mean."""
    file.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    nib.save(nib.Nifti1Image(values, np.diag([edge, edge, edge, 1])), file)
    return values > values.mean()


@pytest.fixture
def three(tmp_path: Path) -> dict[str, np.ndarray]:
    """Images called a, b and c, below "images"; what is above the mean of each."""
    return {name: volume(tmp_path / f"images/{name}.nii.gz", seed) for seed, name in enumerate("abc")}


def segment(folder: Path, weights: str, *overlays: str, **more: Any) -> None:
    places = {"dataset_dir": str(folder / "images"), "output_dir": str(folder / "out"), "checkpoint": weights}
    run("inference", *overlays, **{**THRESHOLD, **places, **more})


def assert_a_and_c_are_done(folder: Path, truth: dict[str, np.ndarray], suffix: str = ".nii.gz") -> None:
    assert written(folder / "out") == [f"a_seg{suffix}", f"c_seg{suffix}"]
    for name in "ac":
        file = folder / f"out/{name}_seg{suffix}"
        np.testing.assert_array_equal(np.asarray(nib.Nifti1Image.from_filename(file).dataobj), truth[name])


def left_out(caught: Any) -> None:
    said = input_error(caught.value)
    assert said.startswith("1 of 3 images were not segmented: b; the others are done"), said


@pytest.mark.parametrize("overlays", [(), ("large_volume",)], ids=["in memory", "from disk"])
def test_voxels_of_100_mm(overlays: tuple[str, ...], weights: str, tmp_path: Path, capsys: Any) -> None:
    suffix = ".nii" if overlays else ".nii.gz"
    truth = {
        name: volume(tmp_path / f"images/{name}{suffix}", 0, edge)
        for name, edge in (("a", 1), ("b", 100), ("c", 1))
    }
    with pytest.raises(RuntimeError) as caught:
        segment(tmp_path, weights, *overlays)
    left_out(caught)
    said = capsys.readouterr().out
    assert f"b{suffix}: found voxels of 100 x 100 x 100 mm, so that it has 801 x 701 x 601" in said
    assert_a_and_c_are_done(tmp_path, truth, suffix)


@pytest.mark.parametrize("stage", ["normalise", "to_labels"])
@pytest.mark.parametrize("kind", OF_A_CASE)
def test_an_error_of_one_case(
    kind: str, stage: str, three: dict[str, np.ndarray], weights: str, tmp_path: Path, capsys: Any
) -> None:
    step = {"_target_": "NormalizeIntensityd", "keys": "image", "channel_wise": True}
    values = [
        {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
        {"_target_": "scripts.transforms.ClassesToLabelsd", "keys": "pred", "labels": "@labels"},
    ]
    steps = [step, fails(kind)] if stage == "normalise" else [fails(kind), *values]
    with pytest.raises(RuntimeError) as caught:
        segment(tmp_path, weights, **{stage: steps})
    left_out(caught)
    said = capsys.readouterr().out
    assert OF_A_CASE[kind][1] in said
    assert "/images/b.nii.gz: found " in said
    assert ("Traceback" in said) == (kind in ("shape", "unknown"))
    assert_a_and_c_are_done(tmp_path, three)


@pytest.mark.parametrize("kind", OF_ALL)
def test_an_error_that_every_case_would_meet_ends_the_run(
    kind: str, three: dict[str, np.ndarray], weights: str, tmp_path: Path
) -> None:
    steps = [fails(kind), {"_target_": "AsDiscreted", "keys": "pred", "argmax": True}]
    with pytest.raises(RuntimeError):
        segment(tmp_path, weights, to_labels=steps)
    assert written(tmp_path / "out") == ["a_seg.nii.gz"]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_network_that_does_not_take_one(workers: int, weights: str, tmp_path: Path, capsys: Any) -> None:
    """The image is sound, its intensities are such that the network fails."""
    truth = {name: volume(tmp_path / f"images/{name}.nii.gz", seed) for seed, name in enumerate("abc")}
    spike = np.zeros((9, 8, 7), np.float32)
    spike[1, 2, 3] = 1
    nib.save(nib.Nifti1Image(spike, np.eye(4)), tmp_path / "images/b.nii.gz")
    network = {**THRESHOLD["network_def"], "_target_": f"{__name__}.FailsInside"}
    with pytest.raises(RuntimeError) as caught:
        segment(tmp_path, weights, network_def=network, **{"dataloader::num_workers": workers})
    left_out(caught)
    said = capsys.readouterr().out
    assert "found something that went wrong (RuntimeError: Given groups=1, expected" in said
    assert_a_and_c_are_done(tmp_path, truth)


def test_a_file_that_goes_while_the_others_are_done(
    three: dict[str, np.ndarray], weights: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def iterate(loader: DataLoader) -> Any:  # it is sound when it is checked, and gone when it is its turn
        (tmp_path / "images/b.nii.gz").unlink()
        return torch.utils.data.DataLoader.__iter__(loader)

    monkeypatch.setattr(DataLoader, "__iter__", iterate, raising=False)
    with pytest.raises(RuntimeError) as caught:
        segment(tmp_path, weights)
    left_out(caught)
    said = capsys.readouterr().out
    assert "/images/b.nii.gz: found no such file" in said
    assert_a_and_c_are_done(tmp_path, three)


def test_volumes_on_disk_are_done_one_by_one(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scripts.compute import streaming

    truth = {name: volume(tmp_path / f"images/{name}.nii", seed) for seed, name in enumerate("abc")}
    opened = streaming.open_volume

    def open_volume(path: Path, in_channels: int) -> Any:
        if path.name == "b.nii":
            raise MemoryError
        return opened(path, in_channels)

    monkeypatch.setattr(streaming, "open_volume", open_volume)
    with pytest.raises(RuntimeError) as caught:
        segment(tmp_path, weights, "large_volume")
    left_out(caught)
    assert_a_and_c_are_done(tmp_path, truth, ".nii")


def test_a_series_whose_result_cannot_be_saved(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All three files or none, and the other series is done."""
    from scripts.dicom import save

    for name in "ab":
        values = np.random.default_rng(ord(name)).integers(0, 900, (12, 11, 6)).astype(np.int16)
        images = phantom.series(values, phantom.positions(6, phantom.AXIAL, 1.0), phantom.AXIAL)
        phantom.write(images, tmp_path / "images" / name)
    made, bad = save.make_report, []

    def make_report(series: Any, *arguments: Any) -> Any:
        bad[:] = bad or [series.name]
        if series.name == bad[0]:
            raise ValueError("no such attribute")
        return made(series, *arguments)

    monkeypatch.setattr(save, "make_report", make_report)
    labels, codes = {"background": 0, "bright": 1, "other": 2}, ["91723000", "SCT", "Anatomical Structure"]
    segments = {name: {"category": codes, "type": ["5366008", "SCT", "Hippocampus"]} for name in labels}
    network = torch.nn.Conv3d(1, 3, 1)
    torch.save(network.state_dict(), tmp_path / "three.pt")
    with pytest.raises(RuntimeError) as caught:
        segment(
            tmp_path,
            str(tmp_path / "three.pt"),
            "dicom",
            labels=labels,
            segments={name: segments[name] for name in ("bright", "other")},
            network_def={**THRESHOLD["network_def"], "out_channels": 3},
        )
    assert input_error(caught.value).startswith(f"1 of 2 images were not segmented: {bad[0]};")
    names = written(tmp_path / "out")
    assert [name.split("_", 2)[2] for name in names] == ["report.dcm", "report.json", "seg.dcm"]
    assert not any(name.startswith(bad[0]) for name in names)


def data_set(folder: Path) -> None:
    """Six cases: two to train, one to validate, three to test, of which the middle one, e, is broken."""
    entries = []
    for seed, name in enumerate("abcdef"):
        truth = volume(folder / f"images/{name}.nii.gz", seed)
        (folder / "labels").mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(truth.astype(np.uint8), np.eye(4)), folder / f"labels/{name}.nii.gz")
        entries.append({"image": f"images/{name}.nii.gz", "label": f"labels/{name}.nii.gz"})
    lists = {"training": entries[:2], "validation": entries[2:3], "testing": entries[3:]}
    labels = {"0": "background", "1": "bright"}
    (folder / "dataset.json").write_text(json.dumps({"labels": labels, **lists}))


def evaluate(folder: Path, weights: str, **more: Any) -> None:
    places = {"dataset_dir": str(folder), "output_dir": str(folder / "out"), "checkpoint": weights}
    run("train", "evaluate", **{**THRESHOLD, **places, **more})


def judged(folder: Path) -> dict[str, float]:
    with (folder / "out/evaluation/scores.csv").open() as file:
        return {row["case"]: float(row["dice"]) for row in csv.DictReader(file)}


def test_the_others_are_judged(weights: str, tmp_path: Path) -> None:
    data_set(tmp_path)
    (tmp_path / "images/e.nii.gz").write_bytes(b"")
    (tmp_path / "images/a.nii.gz").write_bytes(b"")  # of another section, which nobody asks for
    with pytest.raises(RuntimeError) as caught:
        evaluate(tmp_path, weights)
    assert input_error(caught.value).startswith("1 of 3 images were not judged: e;")
    assert judged(tmp_path) == {"d": 1, "f": 1}
    summary = json.loads((tmp_path / "out/evaluation/summary.json").read_text())
    assert (summary["cases"], summary["not_scored"]) == (2, 1)


def test_the_others_are_judged_when_one_fails_in_the_middle(weights: str, tmp_path: Path) -> None:
    data_set(tmp_path)
    step = {"_target_": "NormalizeIntensityd", "keys": "image", "channel_wise": True}
    with pytest.raises(RuntimeError) as caught:
        evaluate(tmp_path, weights, normalise=[step, fails("memory", "e")])
    assert input_error(caught.value).startswith("1 of 3 images were not judged: e;")
    assert judged(tmp_path) == {"d": 1, "f": 1}
    assert not list((tmp_path / "out").rglob(".*"))


def test_nothing_is_left_when_every_case_fails(weights: str, tmp_path: Path) -> None:
    data_set(tmp_path)
    network = {**THRESHOLD["network_def"], "_target_": f"{__name__}.FailsInside"}
    spike = np.zeros((9, 8, 7), np.float32)
    spike[1, 2, 3] = 1
    for name in "def":
        nib.save(nib.Nifti1Image(spike, np.eye(4)), tmp_path / f"images/{name}.nii.gz")
    with pytest.raises(RuntimeError) as caught:
        evaluate(tmp_path, weights, network_def=network)
    assert input_error(caught.value).startswith("3 of 3 images were not judged: d, e, f;")
    assert written(tmp_path / "out") == []


def test_the_others_are_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bundle.runs import score

    for name in "abc":
        volume(tmp_path / f"images/{name}.nii.gz", 0)
        for folder in ("pred", "truth"):
            (tmp_path / folder).mkdir(exist_ok=True)
            values = (read_array(tmp_path / f"images/{name}.nii.gz") > 0).astype(np.uint8)
            nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / folder / f"{name}.nii.gz")
    read = score.read_classes

    def read_classes(pair: Any, labels: Any) -> Any:
        if pair.case == "b":
            raise MemoryError
        return read(pair, labels)

    monkeypatch.setattr(score, "read_classes", read_classes)
    labels = ("--label_name", "none=0", "--label_name", "x=1")
    said = invoke("score", tmp_path / "pred", tmp_path / "truth", *labels).output
    assert "pred/b.nii.gz: found an image that takes more memory than there is" in said
    assert "error: 1 case(s) were not scored, 2 were" in said


def test_training_names_what_it_cannot_hold_before_anything_is_lost(tmp_path: Path) -> None:
    data_set(tmp_path)
    about = {**THRESHOLD, "dataset_dir": str(tmp_path), "output_dir": str(tmp_path / "out"), "max_epochs": 1}
    edges = np.diag([100.0, 100.0, 100.0, 1.0])
    for folder in ("images", "labels"):
        file = tmp_path / folder / "b.nii.gz"
        nib.save(nib.Nifti1Image(np.asarray(nib.Nifti1Image.from_filename(file).dataobj), edges), file)
    with pytest.raises(RuntimeError) as caught:
        run("train", **about)
    assert "b.nii.gz: found voxels of 100 x 100 x 100 mm, so that it has 801 x 701" in input_error(
        caught.value
    )
    assert written(tmp_path / "out") == []
