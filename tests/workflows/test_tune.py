"""`python -m bundle tune` on tiny data: what it reads, chooses and writes, and that inference agrees."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from PIL import Image
from scipy.ndimage import binary_erosion, maximum_filter
from skimage.measure import label as connected_components

from bundle.data.phantom import Kind, write_phantom
from bundle.runs import speed
from bundle.runs.tune import Store, predict
from scripts.data import read_split
from scripts.errors import InputError
from scripts.judging import Case, instance_scores, mean_dice
from scripts.transforms import InstancesToClassesd
from scripts.transforms.classes import Cleaning, clean_classes
from tests.commands import (
    CONFIGS,
    as_options,
    config_files,
    datalist,
    input_error,
    invoke,
    read_array,
    run,
    written,
)

pytestmark = pytest.mark.workflow

LABELS = {"background": 0, "interior": 1, "border": 2}
ORGAN = {"background": 0, "anterior": 1, "posterior": 2}


@pytest.fixture(autouse=True)
def _hook(monkeypatch: pytest.MonkeyPatch) -> None:
    """`set_up` replaces the hook for uncaught errors; this puts it back."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)


def overlay(folder: Path, **ids: Any) -> str:
    (folder / "overlay.json").write_text(json.dumps(ids), encoding="utf-8")
    return str(folder / "overlay.json")


def tune(folder: Path, *files: str, **options: object) -> Any:
    args_file = folder / "experiment.json"
    args_file.write_text(json.dumps({"config_file": files}), encoding="utf-8")
    return invoke("tune", "--args_file", args_file, *as_options(**options))


@pytest.fixture(scope="module")
def trained(cells: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder without its held-out files, the overlay of a tiny network, and the network trained."""
    folder = tmp_path_factory.mktemp("tune")
    shutil.copytree(cells, folder / "data")
    settings = {"patch_size": [32, 32], "channels": [8, 16, 16]}
    files = config_files("train", "task/phantom_cells", overlay(folder, **settings))
    run(
        files[0],
        *files[1:],
        dataset_dir=str(folder / "data"),
        output_dir=str(folder / "run"),
        samples_per_case=8,
        max_epochs=30,
        amp=False,  # the same weights on every processor, but for the last digits
        val_interval=3,
        learning_rate=0.01,
    )
    for name in ("imagesTs", "labelsTs"):
        shutil.rmtree(folder / "data" / name)
    return folder


def test_tune_chooses_on_validation_alone_and_inference_agrees(trained: Path, tmp_path: Path) -> None:
    """The held-out files are gone, so a look at them would be an error."""
    files = config_files("train", "task/phantom_cells", str(trained / "overlay.json"))
    places = {"dataset_dir": trained / "data", "checkpoint": trained / "run/model.pt"}
    done = tune(tmp_path, *files, **places, output_dir=tmp_path / "out", measure="ap50")
    assert done.exit_code == 0, done.exception
    assert written(tmp_path / "out") == ["postprocessing.json", "tune.csv", "tune.png"]
    assert np.asarray(Image.open(tmp_path / "out/tune.png")).std() > 0
    with (tmp_path / "out/tune.csv").open() as file:
        rows = list(csv.DictReader(file))
    scores = [float(row["ap50"]) for row in rows]
    assert scores[1:] == sorted(scores[1:], reverse=True)
    assert scores[0] >= max(scores) - 0.05  # equals are told apart by other things
    facts = {"ap50", "f1 at 0.5", "objects"}
    assert len({tuple(row.values()) for row in rows}) == len(rows) <= 101
    assert f"{scores[0]:.4f} with the best of {len(rows)} combinations" in done.output
    assert "with the defaults of WatershedInstancesd" in done.output
    assert "with to_labels as it stands in the configs" in done.output
    chosen = json.loads((tmp_path / "out/postprocessing.json").read_text())
    (step,) = chosen["to_labels"]
    assert {name: str(step[name]) for name in rows[0] if name not in facts} == {
        name: value for name, value in rows[0].items() if name not in facts
    }

    cases = read_split(
        trained / "data", spatial_dims=2, in_channels=1, labels=LABELS, instances=True, check="never"
    )["validation"]
    (tmp_path / "images").mkdir()
    for case in cases:
        shutil.copy(case["image"], tmp_path / "images")
    run(
        *("inference", "task/phantom_cells", str(trained / "overlay.json")),
        str(tmp_path / "out/postprocessing.json"),
        dataset_dir=str(tmp_path / "images"),
        output_dir=str(tmp_path / "seg"),
        checkpoint=str(trained / "run/model.pt"),
        runtime="torch",
    )
    found = [
        instance_scores(
            Case(
                case["case"],
                read_array(tmp_path / "seg" / f"{Path(case['image']).stem}_seg.png").astype(int),
                read_array(Path(case["label"])).astype(int),
            )
        )["ap50"]
        for case in cases
    ]
    assert np.mean(found) == pytest.approx(scores[0])
    assert scores[0] > 0  # a network that found nothing would agree as well

    segment = {"dataset_dir": str(trained / "data"), "section": "validation", "save_probabilities": True}
    run(
        *("inference", "task/phantom_cells", str(trained / "overlay.json")),
        **segment,
        output_dir=str(tmp_path / "pred"),
        checkpoint=str(trained / "run/model.pt"),
        runtime="torch",
    )
    places = {"dataset_dir": trained / "data", "pred": tmp_path / "pred"}
    again = tune(tmp_path, *files, **places, output_dir=tmp_path / "again")
    assert again.exit_code == 0, again.exception
    assert json.loads((tmp_path / "again/postprocessing.json").read_text()) == chosen


@pytest.mark.long
def test_speed_is_tuned_on_validation_alone_and_inference_takes_the_overlays(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The held-out files are gone. What an overlay says of Dice is what inference with it gives."""
    monkeypatch.setattr(speed, "OVERLAPS", (0.0, 0.5))
    monkeypatch.setattr(speed, "TILES", (1.0,))
    monkeypatch.setattr(speed, "ROUNDS", 1)
    files = config_files("train", "task/phantom_cells", str(trained / "overlay.json"))
    places = {"dataset_dir": trained / "data", "checkpoint": trained / "run/model.pt"}
    done = tune(tmp_path, *files, **places, output_dir=tmp_path / "out", speed=True, cases=2)
    assert done.exit_code == 0, done.exception
    names = ["balanced.json", "best.json", "fast.json", "speed.csv", "speed.png"]
    assert written(tmp_path / "out") == names
    with (tmp_path / "out/speed.csv").open() as file:
        rows = list(csv.DictReader(file))
    took = {row["setting"]: row["auto took"] for row in rows}
    assert took["as configured"].split(" in ")[0] in ("openvino", "torch")
    assert took["torch, float32"] == ""
    assert sorted(" ".join(row["overlay"] for row in rows).split()) == ["balanced", "best", "fast"]
    highest = max(float(row["dice"]) for row in rows)
    for row in rows:
        assert float(row["loss"]) == pytest.approx(highest - float(row["dice"]))
        for name in row["overlay"].split():
            assert float(row["loss"]) <= speed.LOSSES[name]

    (row,) = (row for row in rows if "best" in row["overlay"].split())
    best = str(tmp_path / "out/best.json")
    assert f"mean Dice {float(row['dice']):.4f}" in json.loads(Path(best).read_text())["recipe"]["_desc_"]
    cases = read_split(
        trained / "data", spatial_dims=2, in_channels=1, labels=LABELS, instances=True, check="never"
    )["validation"][:2]
    (tmp_path / "images").mkdir()
    for case in cases:
        shutil.copy(case["image"], tmp_path / "images")
    classes = overlay(tmp_path, to_labels=json.loads((CONFIGS / "inference.json").read_text())["to_labels"])
    settings = ("inference", "task/phantom_cells", str(trained / "overlay.json"), classes, best)
    folders = {"dataset_dir": str(tmp_path / "images"), "output_dir": str(tmp_path / "seg")}
    run(*settings, **folders, checkpoint=str(trained / "run/model.safetensors"))
    found = []
    for case in cases:
        pred = read_array(tmp_path / "seg" / f"{Path(case['image']).stem}_seg.png").T
        cells = torch.as_tensor(read_array(Path(case["label"])).T.astype(np.int64))[None]
        truth = InstancesToClassesd("label", thickness=2)({"label": cells})["label"][0]
        found.append(mean_dice(Case("", pred, np.asarray(truth))))
    assert np.mean(found) == pytest.approx(float(row["dice"]), abs=2e-3)

    other = torch.load(trained / "run/model.pt", weights_only=True)
    torch.save({name: value + 1e-3 for name, value in other.items()}, tmp_path / "other.pt")
    with pytest.raises(RuntimeError) as caught:
        run(*settings, **folders, checkpoint=str(tmp_path / "other.pt"))
    assert input_error(caught.value).startswith(f"{tmp_path / 'other.pt'}: not the weights that the overlay")


@pytest.fixture
def random_network(tmp_path: Path) -> Callable[..., ConfigParser]:
    """Makes the parser of a training on a data folder, and a checkpoint of a network that learned nothing."""

    def make(*files: str, data: Path) -> ConfigParser:
        parser = ConfigParser()
        parser.read_config([str(CONFIGS / "train.json"), *files])
        parser["dataset_dir"], parser["checkpoint"] = str(data), str(tmp_path / "random.pt")
        torch.save(parser.get_parsed_content("network_def").state_dict(), tmp_path / "random.pt")
        return parser

    return make


def predicted(parser: ConfigParser, folder: Path, numbered: bool) -> np.ndarray:
    """The truth of the only validation case, as objects, -1 where nobody annotated."""
    store = Store(folder, objects=True, numbered=numbered)
    predict(parser, store)
    (case,) = store.cases
    probabilities, truth = np.load(case.pred), np.load(case.truth)
    assert probabilities.shape[1:] == truth.shape
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-5)
    return truth


def test_two_classes_are_compared_as_components(
    cells: Path, tmp_path: Path, random_network: Callable[..., ConfigParser]
) -> None:
    (tmp_path / "masks").mkdir()
    masks = {}
    for label in (cells / "labelsTr").iterdir():
        mask = (read_array(label) > 0).astype(np.uint8) * 255
        mask[:5] = 7
        masks[label.stem] = mask
        Image.fromarray(mask).save(tmp_path / "masks" / label.name)
    datalist(
        tmp_path / "list",
        images=cells / "imagesTr",
        labels=tmp_path / "masks",
        label_name=["background=0", "cell=255", "ignore=7"],
        folds=4,
    )
    settings = overlay(tmp_path, patch_size=[32, 32], channels=[4, 8, 8])
    parser = random_network(str(tmp_path / "list/task.json"), settings, data=tmp_path / "list")
    truth = predicted(parser, tmp_path, numbered=False)
    (listed,) = read_split(
        tmp_path / "list",
        spatial_dims=2,
        in_channels=1,
        labels={"a": 0, "b": 255, "ignore": 7},
        check="never",
    )["validation"]
    mask = masks[Path(listed["label"]).stem].T  # pictures are read as (width, height)
    parts = connected_components(mask == 255, connectivity=1)
    np.testing.assert_array_equal(truth, np.where(mask == 7, -1, parts))


def test_volumes_are_compared_on_the_grid_of_their_files(
    organ: Path, tmp_path: Path, random_network: Callable[..., ConfigParser]
) -> None:
    """Two parts of an organ as two objects, in files that are oblique and anisotropic."""
    settings = overlay(tmp_path, instances=True, labels=LABELS, patch_size=[16, 16, 16], channels=[4, 8, 8])
    parser = random_network(str(CONFIGS / "task/phantom_organ.json"), settings, data=organ)
    truth = predicted(parser, tmp_path, numbered=True)
    listed = read_split(organ, spatial_dims=3, in_channels=1, labels=LABELS, instances=True, check="never")
    label = nib.Nifti1Image.from_filename(listed["validation"][0]["label"])
    np.testing.assert_array_equal(truth, np.asarray(label.dataobj))


@pytest.fixture(scope="module")
def out_of_fold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Volumes with folds, and the probabilities of a network that is right but for specks and a hole."""
    folder = tmp_path_factory.mktemp("folds")
    write_phantom(Kind.ORGAN, folder / "data", cases=8, size=(24, 25, 26))
    (folder / "pred").mkdir()
    for number, label in enumerate(sorted((folder / "data/labelsTr").iterdir())):
        truth = nib.Nifti1Image.from_filename(label)
        classes = np.asarray(truth.dataobj).astype(int)
        middle = np.argwhere(binary_erosion(classes == 1))[number]
        classes[tuple(middle)] = 0
        random = np.random.default_rng(number)
        far = np.argwhere(maximum_filter(classes > 0, 7) == 0)
        for corner in far[random.choice(len(far), 9)]:
            classes[tuple(corner)] = 2
        values = 0.05 + 0.85 * np.eye(3)[classes]
        nib.Nifti1Image(values.astype(np.float32), truth.affine).to_filename(
            folder / f"pred/{label.name.removesuffix('.nii.gz')}_prob.nii.gz"
        )
    return folder


def test_classes_are_cleaned_by_what_helps_out_of_fold(
    out_of_fold: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No network is needed, nor a fold named: all cases that folds are made of have a prediction."""
    place = overlay(tmp_path, dataset_dir=str(out_of_fold / "data"))
    files = config_files("train", "task/phantom_organ", place)
    pred = {"pred": out_of_fold / "pred", "section": "training"}
    done = tune(tmp_path, *files, **pred, output_dir=tmp_path / "out", fold=1)
    assert done.exit_code == 0, done.exception
    assert written(tmp_path / "out") == ["postprocessing.json", "tune.csv", "tune.png"]
    found = json.loads((tmp_path / "out/postprocessing.json").read_text())
    assert found["threshold"] is None
    assert found["clean"]["anterior"]["max_hole"] >= 1
    posterior = found["clean"]["posterior"]
    assert posterior.get("largest") or posterior.get("min_size", 0) > 1
    assert "dice, mean over 6 cases" in done.output
    with (tmp_path / "out/tune.csv").open() as file:
        best = [row for row in csv.DictReader(file) if row["kept"]]
    assert [float(row["dice"]) for row in best] == [1, 1]
    last = done.output.strip().splitlines()[-1]
    assert f"configs/evaluate.json','{tmp_path / 'out/postprocessing.json'}'" in last

    fewer = shutil.copytree(out_of_fold / "pred", tmp_path / "pred")
    first, second, third, fourth, *_ = sorted(fewer.iterdir())
    first.unlink()
    second.write_bytes(second.read_bytes()[:1000])
    smaller = read_array(third)[1:]
    nib.Nifti1Image(smaller, nib.Nifti1Image.from_filename(third).affine).to_filename(third)
    moved = nib.Nifti1Image.from_filename(fourth)
    nib.Nifti1Image(moved.get_fdata(dtype=np.float32), np.diag([5.0, 5, 5, 1])).to_filename(fourth)
    pred["pred"] = fewer
    caplog.clear()
    some = tune(tmp_path, *files, **pred, output_dir=tmp_path / "some")
    assert f"note: 1 case(s) have no prediction in {fewer}: organ_000" in some.output
    sentence = input_error(some.exception)
    assert sentence.startswith(
        "3 of 5 cases were not judged: organ_001, organ_002, organ_003; the others are"
    )
    assert "dice, mean over 2 of 5 cases" in some.output
    assert "that changes nothing, chosen on 2 of 5 cases." in some.output
    label = out_of_fold / "data/labelsTr/organ_002.nii.gz"
    told = {record.getMessage() for record in caplog.records if record.levelname == "ERROR"}
    whole = nib.Nifti1Image.from_filename(label).shape
    assert (
        f"{third}: found shape {smaller.shape[:3]} where the label {label} has {whole}; the probabilities of "
        "a case lie on the grid of its label; segment the case again with --save_probabilities True, or name "
        "the folder of the predictions of these cases." in told
    )
    (far,) = (text for text in told if text.startswith(f"{fourth}: found a grid that lies up to"))
    assert f"mm away from that of the label {out_of_fold}" in far
    found = json.loads((tmp_path / "some/postprocessing.json").read_text())
    assert found == {"_desc_": "chosen on 2 of 5 cases", "threshold": None, "clean": None}
    for file in fewer.iterdir():
        file.unlink()
    none = tune(tmp_path, *files, **pred, output_dir=tmp_path / "none")
    assert "has the probabilities of none of the 6 cases of the section" in input_error(none.exception)


def test_overlay_is_used_by_inference_and_evaluation(
    organ: Path, tmp_path: Path, random_network: Callable[..., ConfigParser]
) -> None:
    """A network that learned nothing paints specks of both classes."""
    small = overlay(tmp_path, patch_size=[16, 16, 16], channels=[4, 8, 8], runtime="torch", amp=False)
    task = str(CONFIGS / "task/phantom_organ.json")
    random_network(task, small, data=organ)
    cleaning = {"anterior": {"largest": True}, "posterior": {"min_size": 30, "max_hole": 9}}
    clean = tmp_path / "postprocessing.json"
    clean.write_text(json.dumps({"threshold": None, "clean": cleaning}))
    places = {"checkpoint": str(tmp_path / "random.pt"), "dataset_dir": str(organ)}

    def segment(name: str, *more: str, **ids: Any) -> Path:
        out = tmp_path / name
        run("inference", task, small, *more, **{**places, "section": "testing", **ids}, output_dir=str(out))
        return out

    plain, cleaned = segment("plain"), segment("cleaned", str(clean))
    cleanings = {1: Cleaning(largest=True), 2: Cleaning(min_size=30, max_hole=9)}
    dice = []
    for case in read_split(organ, spatial_dims=3, in_channels=1, labels=ORGAN, check="never")["testing"]:
        before, after = (read_array(out / f"{case['case']}_seg.nii.gz") for out in (plain, cleaned))
        np.testing.assert_array_equal(after, clean_classes(before.astype(np.int32), cleanings))
        assert (after != before).any()
        dice.append(mean_dice(Case("", after, read_array(Path(case["label"])).astype(int))))
    run("train", task, small, "evaluate", str(clean), **places, output_dir=str(tmp_path / "evaluated"))
    summary = json.loads((tmp_path / "evaluated/evaluation/summary.json").read_text())["summary"]
    (told,) = (row["mean"] for row in summary if row["class"] == "mean" and row["score"] == "dice")
    assert told == pytest.approx(np.mean(dice))

    def refused(*more: str, **ids: Any) -> str:
        with pytest.raises((InputError, RuntimeError)) as caught:
            segment("refused", *more, **ids)
        return input_error(caught.value)

    said = refused(str(clean), labels={"background": 0, "organ": 1, "vessel": 2})
    assert "clean is for the classes anterior, posterior, and labels names organ, vessel" in said
    assert "clean is {'anterior'" in refused(str(clean), str(CONFIGS / "large_volume.json"), section=None)
    assert refused(threshold=0.4).startswith("threshold is 0.4 (labels names 3 classes): use a probability")
    watershed = [{"_target_": "scripts.transforms.WatershedInstancesd", "keys": "pred"}]
    assert "to_labels of the configs numbers objects" in refused(str(clean), to_labels=watershed)
    assert not (tmp_path / "refused").exists()


def test_a_threshold_is_found_in_pictures_and_used(
    cells: Path, tmp_path: Path, random_network: Callable[..., ConfigParser]
) -> None:
    """The same from the checkpoint and from probabilities that inference wrote."""
    (tmp_path / "masks").mkdir()
    for label in (cells / "labelsTr").iterdir():
        Image.fromarray((read_array(label) > 0).astype(np.uint8) * 255).save(tmp_path / "masks" / label.name)
    datalist(
        tmp_path / "list",
        images=cells / "imagesTr",
        labels=tmp_path / "masks",
        label_name=["background=0", "cell=255"],
        folds=2,
    )
    small = overlay(tmp_path, patch_size=[32, 32], channels=[4, 8, 8], runtime="torch", amp=False)
    task = str(tmp_path / "list/task.json")
    random_network(task, small, data=tmp_path / "list")
    places = {"dataset_dir": str(tmp_path / "list"), "checkpoint": str(tmp_path / "random.pt")}
    files = config_files("train", task, small)
    first = tune(tmp_path, *files, **places, output_dir=tmp_path / "out", measure="surface_dice")
    assert first.exit_code == 0, first.exception
    segment = {**places, "section": "validation", "save_probabilities": True}
    run("inference", task, small, **segment, output_dir=str(tmp_path / "pred"))
    places = {"dataset_dir": tmp_path / "list", "pred": tmp_path / "pred"}
    second = tune(tmp_path, *files, **places, output_dir=tmp_path / "again", measure="surface_dice")
    assert second.exit_code == 0, second.exception
    tables = [(tmp_path / name / "tune.csv").read_text() for name in ("out", "again")]
    assert tables[0] == tables[1]
    assert "threshold" in tables[0]
    assert "2 case(s) tell no gain from chance" in first.output
    run("inference", task, small, **segment, output_dir=str(tmp_path / "low"), threshold=0.3)
    for file in (tmp_path / "low").glob("*_prob.nii.gz"):
        above = read_array(file).squeeze()[..., 1] > 0.3  # (rows, columns), as Pillow has the picture
        segmented = read_array(file.with_name(file.name.replace("_prob.nii.gz", "_seg.png")))
        np.testing.assert_array_equal(segmented, above * 255)


def test_bad_input_is_one_sentence(trained: Path, organ: Path, tmp_path: Path) -> None:
    files = config_files("train", "task/phantom_cells", str(trained / "overlay.json"))
    good = {
        "dataset_dir": trained / "data",
        "checkpoint": trained / "run/model.pt",
        "output_dir": tmp_path / "out",
    }
    (tmp_path / "file").write_text("")

    def refused(*files: str, **options: object) -> str:
        result = tune(tmp_path, *files, **{**good, **options})
        assert result.exception is not None, result.output
        return input_error(result.exception)

    assert "no such checkpoint" in refused(*files, checkpoint=tmp_path / "none.pt")
    assert refused(*files, output_dir=tmp_path / "file").endswith("is a file: give a folder")
    assert refused(*files, max_epoch=3).startswith("--max_epoch 3: no such id; did you mean max_epochs;")
    assert "channels was [8, 16, 16] and is [4, 8, 8]; segment" in refused(*files, channels="[4,8,8]")
    bare = shutil.copy(good["checkpoint"], tmp_path / "bare.pt")  # without its recipe
    sentence = refused(files[0], checkpoint=bare, measure="seg")
    assert sentence.startswith("labels names 3 classes and instances is false: --measure seg needs label")
    assert refused(*files, measure="dice").startswith("--measure dice judges classes and instances is true")
    assert "a checkpoint of another network" in refused(*files, channels="[4,8,8]", checkpoint=bare)
    nothing = overlay(tmp_path, split={"training": [1], "validation": [], "testing": []})
    assert refused(*files, nothing).startswith("section is 'validation', which holds no case")

    empty = shutil.copytree(trained / "data", tmp_path / "empty")
    for label in (empty / "labelsTr").iterdir():
        Image.fromarray(np.zeros_like(read_array(label))).save(label)
    assert "cases are empty: there is nothing to compare with" in refused(*files, dataset_dir=empty)
    for label in (empty / "labelsTr").iterdir():
        mask = np.zeros_like(read_array(label))
        mask[:10, :10] = mask[20:30, 20:30] = 255
        Image.fromarray(mask).save(label)
    assert "number them, for example with skimage.measure.label" in refused(*files, dataset_dir=empty)
    assert not (tmp_path / "out").exists() or written(tmp_path / "out") == []
