"""Train, evaluate and segment as users do, from a folder that is not the bundle's."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from tests.commands import (
    CONFIGS,
    TINY,
    bundle_run,
    command,
    config_files,
    datalist,
    input_error,
    read_array,
    run,
    written,
)

pytestmark = pytest.mark.workflow

#: Rounding of three float32 probabilities and of the interpolation back to the scan's grid.
SUM_TOLERANCE = 1e-5

TASKS = {2: "task/phantom_cells", 3: "task/phantom_organ"}
NETWORK = {dims: {key: TINY[dims][key] for key in ("patch_size", "channels")} for dims in TINY}


def arguments(**overrides: object) -> list[str]:
    return [part for key, value in overrides.items() for part in (f"--{key}", str(value))]


@pytest.fixture(scope="module")
def cells_run(cells: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs on pictures, by the command, with relative data and output paths."""
    home = tmp_path_factory.mktemp("cells_home")
    (home / "data").symlink_to(cells)
    done = command(
        *bundle_run(
            *arguments(**TINY[2], dataset_dir="data", output_dir="out", max_epochs=2, val_interval=1),
            files=config_files("train", TASKS[2]),
        ),
        cwd=home,
    )
    assert done.returncode == 0, done.stderr
    return home


@pytest.fixture(scope="module")
def organ_run(organ: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs on volumes."""
    folder = tmp_path_factory.mktemp("organ_home")
    run(
        *("train", TASKS[3]),
        **TINY[3],
        dataset_dir=str(organ),
        output_dir=str(folder / "out"),
        max_epochs=2,
        val_interval=1,
    )
    return folder


def segment(home: Path, dims: int, images: Path, output: Path, **overrides: object) -> None:
    """Segment a folder of images with the network that a fixture trained."""
    run(
        *("inference", TASKS[dims]),
        **{**NETWORK[dims], **overrides},
        dataset_dir=str(images),
        output_dir=str(output),
        checkpoint=str(home / "out/model.pt"),
    )


def test_training_leaves_its_files_where_it_was_told(cells_run: Path) -> None:
    files = written(cells_run)
    events = [file for file in files if file.startswith("out/tensorboard/events.out.tfevents")]
    assert events
    assert [file for file in files if file not in events and not file.startswith("data/")] == [
        "out/checkpoints/last.pt",
        "out/inference.json",
        "out/learning_curve.csv",
        "out/learning_curve.png",
        "out/metadata.json",
        "out/model.pt",
        "out/model.safetensors",
        "out/pictures/epoch_0001.png",
        "out/pictures/epoch_0002.png",
    ]
    for picture in cells_run.glob("out/**/*.png"):
        assert np.asarray(Image.open(picture)).std() > 0


def test_learning_curve_has_a_row_for_each_epoch(cells_run: Path) -> None:
    with (cells_run / "out/learning_curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert np.isfinite([float(row["loss"]) for row in rows]).all()
    last = torch.load(cells_run / "out/checkpoints/last.pt", weights_only=True)
    assert last["best_metric"] == pytest.approx(max(float(row["val_ap50"]) for row in rows))


@pytest.mark.parametrize("dims", [2, 3])
def test_evaluation_writes_tables_and_pictures(
    dims: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    data: Path = request.getfixturevalue("cells" if dims == 2 else "organ")
    home: Path = request.getfixturevalue("cells_run" if dims == 2 else "organ_run")
    run(
        *("train", TASKS[dims], "evaluate"),
        **TINY[dims],
        dataset_dir=str(data),
        output_dir=str(tmp_path),
        checkpoint=str(home / "out/model.pt"),
    )
    names = ["cases.png", "scores.csv", "scores.png", "summary.csv", "summary.json"]
    assert written(tmp_path) == [f"evaluation/{name}" for name in names]
    with (tmp_path / "evaluation/scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    classes = ["interior", "border"] if dims == 2 else ["anterior", "posterior"]
    cases = sorted(image.name.split(".")[0] for image in (data / "imagesTs").iterdir())
    assert [(row["case"], row["class"]) for row in rows] == [
        (case, name) for case in cases for name in classes
    ]
    assert all(0 <= float(row["dice"]) <= 1 for row in rows)
    summary = json.loads((tmp_path / "evaluation/summary.json").read_text())["summary"]
    found = {entry["class"]: entry["mean"] for entry in summary if entry["score"] == "dice"}
    for name in classes:
        counted = [float(row["dice"]) for row in rows if row["class"] == name]
        assert found[name] == pytest.approx(sum(counted) / len(counted))


def test_segmenting_by_the_command(cells_run: Path, cells: Path, tmp_path: Path) -> None:
    """Relative paths again; the pictures are 64 by 96, so a swap of axes would show."""
    done = command(
        *bundle_run(
            *arguments(
                **NETWORK[2], dataset_dir="data/imagesTs", output_dir="seg", checkpoint="out/model.pt"
            ),
            files=config_files("inference", TASKS[2]),
        ),
        cwd=cells_run,
    )
    assert done.returncode == 0, done.stderr
    images = sorted((cells / "imagesTs").iterdir())
    assert written(cells_run / "seg") == [f"{image.stem}_seg.png" for image in images]
    for image in images:
        made = read_array(cells_run / f"seg/{image.stem}_seg.png")
        assert made.shape == read_array(image).shape == (64, 96)
    segment(cells_run, 2, cells / "imagesTs", tmp_path)
    for file in written(tmp_path):
        assert np.array_equal(read_array(tmp_path / file), read_array(cells_run / "seg" / file))


def test_volumes_come_back_on_their_own_grid(organ_run: Path, organ: Path, tmp_path: Path) -> None:
    """Oblique and anisotropic scans, and one stored with other axes: the same labels at the same place."""
    images = tmp_path / "images"
    images.mkdir()
    sources = sorted((organ / "imagesTs").iterdir())
    for source in sources:
        (images / source.name).symlink_to(source)
    oblique = nib.Nifti1Image.from_filename(sources[1])
    assert np.abs(nib.affines.obliquity(oblique.affine)).max() > 0.05
    stored = nib.io_orientation(oblique.affine)
    turned = oblique.as_reoriented(
        nib.orientations.ornt_transform(stored, nib.orientations.axcodes2ornt("PIL"))
    )
    nib.save(turned, images / "turned.nii.gz")

    segment(organ_run, 3, images, tmp_path / "seg")

    assert written(tmp_path / "seg") == [
        *(s.name.replace(".nii", "_seg.nii") for s in sources),
        "turned_seg.nii.gz",
    ]
    maps = {}
    for file in images.iterdir():
        image = nib.Nifti1Image.from_filename(file)
        made = nib.Nifti1Image.from_filename(tmp_path / "seg" / file.name.replace(".nii", "_seg.nii"))
        assert made.shape == image.shape
        assert np.allclose(made.affine, image.affine, atol=1e-4)
        assert made.get_data_dtype() == np.uint8
        maps[file.name] = made
    back = nib.as_closest_canonical(maps["turned.nii.gz"])
    direct = nib.as_closest_canonical(maps[sources[1].name])
    assert np.mean(np.asarray(back.dataobj) == np.asarray(direct.dataobj)) > 0.999
    assert len(np.unique(direct.dataobj)) > 1  # two empty maps would agree too


@pytest.mark.parametrize("dims", [2, 3])
def test_the_folder_of_a_run_segments_alone(
    dims: int, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From another folder, with either file of weights, it gives what the overlays give."""
    data: Path = request.getfixturevalue("cells" if dims == 2 else "organ")
    home: Path = request.getfixturevalue("cells_run" if dims == 2 else "organ_run")
    images = data / "imagesTs"
    segment(home, dims, images, tmp_path / "overlays", save_probabilities=True, runtime="torch")
    monkeypatch.chdir(home)
    options = {"dataset_dir": str(images), "save_probabilities": True, "runtime": "torch"}
    run("out/inference.json", **options, output_dir=str(tmp_path / "alone"))
    weights = str(home / "out/model.safetensors")
    run("out/inference.json", **options, output_dir=str(tmp_path / "safe"), checkpoint=weights)
    assert written(tmp_path / "overlays")
    for name in ("alone", "safe"):
        assert written(tmp_path / name) == written(tmp_path / "overlays")
        for file in written(tmp_path / name):
            found, expected = (read_array(tmp_path / which / file) for which in (name, "overlays"))
            np.testing.assert_array_equal(found, expected)


def test_the_recipe_names_the_training_and_no_place(organ_run: Path) -> None:
    facts = json.loads((organ_run / "out/metadata.json").read_text())
    assert facts["pytorch_version"] == torch.__version__
    assert facts["version"] == json.loads((CONFIGS / "metadata.json").read_text())["version"]
    assert (facts["data"]["training"], facts["data"]["validation"]) == (1, 1)
    assert facts["data"]["labels"] == {"background": 0, "anterior": 1, "posterior": 2}
    assert len(facts["data"]["spacing"]) == 3
    text = (organ_run / "out/inference.json").read_text() + (organ_run / "out/metadata.json").read_text()
    assert str(organ_run) not in text
    assert str(CONFIGS.parent) not in text
    assert "organ_0" not in text  # no case


@pytest.mark.parametrize("what", [("inference",), ("inference", "large_volume"), ("train", "evaluate")])
def test_a_config_that_contradicts_the_training_reads_no_image(
    what: tuple[str, ...], organ_run: Path, tmp_path: Path
) -> None:
    shared = {**NETWORK[3], "checkpoint": str(organ_run / "out/model.pt")}
    with pytest.raises(RuntimeError) as error:
        run(*what, **shared, dataset_dir=str(tmp_path / "none"), output_dir=str(tmp_path / "out"))
    sentence = "spacing was [1.0, 1.0, 1.5] and is [1.0, 1.0, 1.0]; segment with --config_file "
    assert sentence + str(organ_run / "out/inference.json") in input_error(error.value)
    assert not (tmp_path / "out").exists()


def test_tiff_in_png_out(cells_run: Path, cells: Path, tmp_path: Path) -> None:
    (tmp_path / "tiff").mkdir()
    for image in (cells / "imagesTs").iterdir():
        Image.open(image).save(tmp_path / "tiff" / f"{image.stem}.tif")
    segment(cells_run, 2, tmp_path / "tiff", tmp_path / "from_tiff")
    segment(cells_run, 2, cells / "imagesTs", tmp_path / "from_png")
    assert written(tmp_path / "from_tiff") == written(tmp_path / "from_png")
    for file in written(tmp_path / "from_png"):
        assert np.array_equal(
            read_array(tmp_path / "from_tiff" / file), read_array(tmp_path / "from_png" / file)
        )


@pytest.mark.parametrize("dims", [2, 3])
def test_probabilities_sum_to_one_and_agree_with_the_labels(
    dims: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    data: Path = request.getfixturevalue("cells" if dims == 2 else "organ")
    home: Path = request.getfixturevalue("cells_run" if dims == 2 else "organ_run")
    most_probable = {"_target_": "AsDiscreted", "keys": "pred", "argmax": True}
    labels = {"_target_": "scripts.transforms.ClassesToLabelsd", "keys": "pred", "labels": "@labels"}
    segment(
        home, dims, data / "imagesTs", tmp_path, save_probabilities=True, to_labels=[most_probable, labels]
    )
    ending = ".png" if dims == 2 else ".nii.gz"
    stems = sorted(image.name.split(".")[0] for image in (data / "imagesTs").iterdir())
    assert written(tmp_path) == sorted(
        [f"{s}_prob.nii.gz" for s in stems] + [f"{s}_seg{ending}" for s in stems]
    )
    for stem in stems:
        probabilities = read_array(tmp_path / f"{stem}_prob.nii.gz")
        labels = read_array(tmp_path / f"{stem}_seg{ending}")
        assert probabilities.min() >= 0
        assert np.allclose(probabilities.sum(-1), 1, atol=SUM_TOLERANCE)
        assert np.array_equal(probabilities.argmax(-1).squeeze(), labels)  # pictures are (rows, columns)


def test_several_checkpoints_are_averaged(cells_run: Path, cells: Path, tmp_path: Path) -> None:
    """Inference gives the mean of the probabilities of two networks; evaluation takes several too."""
    weights = torch.load(cells_run / "out/model.pt", weights_only=True)
    torch.save({name: weight * 1.2 for name, weight in weights.items()}, tmp_path / "other.pt")
    files = [str(cells_run / "out/model.pt"), str(tmp_path / "other.pt")]
    arguments = {**NETWORK[2], "save_probabilities": True, "dataset_dir": str(cells / "imagesTs")}
    for name, checkpoint in (("one", files[:1]), ("other", files[1:]), ("both", files)):
        run(
            *("inference", TASKS[2], "ensemble"),
            **{**arguments, "patch_size": [96, 64]},  # in one piece: windows blend logarithms
            output_dir=str(tmp_path / name),
            checkpoint=checkpoint,
            runtime="torch",
            amp=False,
        )
    for file in written(tmp_path / "both"):
        if file.endswith("_prob.nii.gz"):
            one, other, both = (read_array(tmp_path / name / file) for name in ("one", "other", "both"))
            assert np.abs(one - other).max() > 0.01
            assert np.allclose(both, (one + other) / 2, atol=1e-5)
    run(
        *("train", TASKS[2], "evaluate", "ensemble"),
        **NETWORK[2],
        dataset_dir=str(cells),
        output_dir=str(tmp_path / "scores"),
        checkpoint=files,
    )
    assert "evaluation/summary.json" in written(tmp_path / "scores")


def test_users_pictures_with_values_of_their_own(cells: Path, tmp_path: Path) -> None:
    """Folders of images and of 0/255 masks, by way of datalist: the results hold 0 and 255."""
    (tmp_path / "masks").mkdir()
    for label in (cells / "labelsTr").iterdir():
        mask = (read_array(label) > 0).astype(np.uint8) * 255
        Image.fromarray(mask).save(tmp_path / "masks" / label.name)
    datalist(
        tmp_path / "list",
        images=cells / "imagesTr",
        labels=tmp_path / "masks",
        label_name=["background=0", "cell=255"],
        folds=2,
    )
    task = str(tmp_path / "list/task.json")
    run(
        *("train", task),
        **TINY[2],
        dataset_dir=str(tmp_path / "list"),
        output_dir=str(tmp_path / "out"),
        learning_rate=0.02,
        max_epochs=3,
        val_interval=3,
    )
    run(
        *("inference", task),
        **NETWORK[2],
        dataset_dir=str(cells / "imagesTr"),
        output_dir=str(tmp_path / "seg"),
        checkpoint=str(tmp_path / "out/model.pt"),
    )
    maps = [read_array(tmp_path / "seg" / file) for file in written(tmp_path / "seg")]
    assert len(maps) == 4
    assert set(np.unique(maps)) == {0, 255}


def test_an_overlay_that_is_not_there_stops_the_run(cells: Path, tmp_path: Path) -> None:
    """It must not train something else in silence."""
    with pytest.raises(FileNotFoundError, match=r"phantom_cels\.json"):
        run("train", "task/phantom_cels", dataset_dir=str(cells), output_dir=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
