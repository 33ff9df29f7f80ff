"""The command turns folders into a data list that the reader takes, or says all that is wrong."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bundle.data.datalist import hold_out
from bundle.runs.experiments import parser_of, read_experiment
from scripts.data.datalist import read_split, read_subjects
from scripts.errors import InputError
from tests.commands import ROOT, SHARED_DATA, invoke

DATA = SHARED_DATA
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the shared data sets are absent")
LABELS = {"background": 0, "label1": 1}


def call(*options: object) -> Any:
    return invoke("datalist", *options)


def make(output_dir: Path, *options: object) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Run the command; what says which cases and what task, and the output."""
    result = call("--output_dir", output_dir, *options)
    assert result.exit_code == 0, result.output
    dataset, task = ((output_dir / name).read_text() for name in ("dataset.json", "task.json"))
    assert sorted(file.name for file in output_dir.iterdir() if file.is_file()) == [
        "dataset.json",
        "experiment.json",
        "fingerprint.json",
        "task.json",
    ]
    return json.loads(dataset), json.loads(task), result.output


def refused(message: str, *options: object) -> None:
    result = call(*options)
    assert isinstance(result.exception, InputError), result.output
    with pytest.raises(InputError, match=message):
        raise result.exception


def picture(path: Path, value: int = 1, shape: tuple[int, ...] = (30, 20)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.zeros(shape, np.uint8)
    array[: shape[0] // 2] = value
    Image.fromarray(array).save(path)


def volume(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)


def folders(root: Path, number: int = 6, value: int = 1) -> tuple[object, ...]:
    for n in range(number):
        picture(root / f"i/c{n}.png")
        picture(root / f"l/c{n}.png", value)
    return "--images", root / "i", "--labels", root / "l"


def test_folders_by_equal_ids(tmp_path: Path) -> None:
    dataset, task, output = make(tmp_path, *folders(tmp_path), "--folds", 3)
    assert dataset["labels"] == {"0": "background", "1": "label1"}
    assert dataset["tensorImageSize"] == "2D"
    assert dataset["training"][0] == {
        "case": "c0",
        "image": "i/c0.png",
        "label": "l/c0.png",
        "fold": dataset["training"][0]["fold"],
    }
    assert sorted(entry["fold"] for entry in dataset["training"]) == [0, 0, 1, 1, 2, 2]
    assert (
        task.items()
        >= {
            "spatial_dims": 2,
            "in_channels": 1,
            "labels": LABELS,
            "segments": {},  # nobody knows the codes of these labels
            "patch_size": [20, 28],  # 20 x 30, in multiples of the strides
            "samples_per_case": 1,
            "geometry": [],
            "output_ext": ".png",
        }.items()
    )
    assert "6 cases: 6 training" in output
    assert "label label1 = 1: 50.00% of voxels" in output
    assert f"python -m monai.bundle run --args_file {tmp_path}/experiment.json" in output
    experiment = parser_of(read_experiment(tmp_path / "experiment.json", {"max_epochs": 3}))
    assert (experiment["patch_size"], experiment["max_epochs"]) == ([20, 28], 3)
    assert experiment.get_parsed_content("dataset_dir") == str(tmp_path)
    assert experiment.get_parsed_content("output_dir") == str(ROOT / "runs" / tmp_path.name)
    split = read_split(tmp_path, spatial_dims=2, in_channels=1, labels=task["labels"], fold=2)
    assert [len(split[name]) for name in split] == [4, 2, 0]


def test_paths_outside_the_output_folder_are_absolute(tmp_path: Path) -> None:
    dataset, _, _ = make(tmp_path / "out", *folders(tmp_path))
    assert dataset["training"][0]["image"] == str(tmp_path / "i/c0.png")


def test_folds_are_as_many_as_there_are_subjects(tmp_path: Path) -> None:
    """Unless they are given: 5, or fewer where there are fewer subjects."""
    source = folders(tmp_path)
    dataset, _, said = make(tmp_path / "five", *source)
    assert {case["fold"] for case in dataset["training"]} == set(range(5))
    assert "as there are no more" not in said
    dataset, _, said = make(tmp_path / "three", *source, "--test_fraction", 0.5)
    assert {case["fold"] for case in dataset["training"]} == {0, 1, 2}
    assert "3 folds of 1, 1, 1 cases, one for each case, as there are no more" in said
    (tmp_path / "who.csv").write_text("case,subject\n" + "".join(f"c{n},{'ab'[n % 2]}\n" for n in range(6)))
    dataset, _, said = make(tmp_path / "two", *source, "--subjects", tmp_path / "who.csv")
    assert {case["fold"] for case in dataset["training"]} == {0, 1}
    assert "2 folds of 3, 3 cases, one for each subject, as there are no more" in said
    alone = ("--output_dir", tmp_path / "alone", "--subject_pattern", "(c)")
    refused("2 folds cannot be made of 1 subjects", *alone, *source)


@pytest.mark.parametrize(
    ("image", "label", "name"),
    [
        ("img_{}.png", "img_{}_mask.png", "img_{}"),
        ("img_{}.png", "mask_{}.png", "img_{}"),
        ("image-{}.tif", "{}-gt.png", "image-{}"),
        ("{}_image.png", "{}_GT.tif", "{}"),
        ("case{}_0000.png", "case{}.png", "case{}"),
        ("a_{:04}.png", "a_{:04}.png", "a_{:04}"),
    ],
)
def test_usual_words_are_matched(tmp_path: Path, image: str, label: str, name: str) -> None:
    for n in range(5):
        picture(tmp_path / "i" / image.format(n))
        picture(tmp_path / "l" / label.format(n))
    dataset, _, _ = make(tmp_path, "--images", tmp_path / "i", "--labels", tmp_path / "l")
    assert [entry["case"] for entry in dataset["training"]] == [name.format(n) for n in range(5)]
    for n, entry in enumerate(dataset["training"]):
        assert entry["image"] == "i/" + image.format(n)
        assert entry["label"] == "l/" + label.format(n)


def test_a_folder_for_each_case(tmp_path: Path) -> None:
    """All images of one name, all labels of another: a case is called by its folder."""
    for n in range(5):
        picture(tmp_path / f"i/1.2.{n}/imaging.png")
        picture(tmp_path / f"l/1.2.{n}/segmentation.png")
    source = "--images", tmp_path / "i", "--labels", tmp_path / "l"
    dataset, _, _ = make(tmp_path, *source)
    assert [entry["case"] for entry in dataset["training"]] == [f"1.2.{n}" for n in range(5)]
    assert dataset["training"][3]["image"] == "i/1.2.3/imaging.png"
    assert dataset["training"][3]["label"] == "l/1.2.3/segmentation.png"
    picture(tmp_path / "i/1.2.3/second.png")
    refused(r"--images: .*1\.2\.3 holds 2 images; the folder", "--output_dir", tmp_path / "out", *source)


def test_all_problems_are_listed_and_nothing_is_written(tmp_path: Path) -> None:
    options = folders(tmp_path)
    picture(tmp_path / "i/lonely.png")
    picture(tmp_path / "l/orphan.png")
    picture(tmp_path / "i/two.png")
    picture(tmp_path / "l/two_mask.png")
    picture(tmp_path / "l/two_seg.png")
    (tmp_path / "i/c1.png").write_bytes((tmp_path / "i/c1.png").read_bytes()[:50])
    picture(tmp_path / "i/c2.png", shape=(30, 21))
    result = call("--output_dir", tmp_path / "out", *options, "--subject_pattern", "c([0-4])")
    assert result.exit_code == 1
    assert not (tmp_path / "out").exists()
    for line in (
        "lonely   | i/lonely.png   | an image without a label",
        "orphan   | l/orphan.png   | a label without an image",
        "two      | i/two.png      | an image without a label of its own (two_mask.png, two_seg.png could",
        "two_mask | l/two_mask.png | a label without an image of its own (two.png could",
        "c1       | i/c1.png       | a truncated or corrupt .png file",
        "c2       | l/c2.png       | shape (20, 30) where the image has (21, 30)",
        "c5       | i/c5.png       | no subject",
    ):
        assert line in result.output
    assert "8 problem(s), nothing was written" in result.output


def test_an_empty_label_is_told_and_allowed(tmp_path: Path) -> None:
    options = folders(tmp_path)
    picture(tmp_path / "l/c3.png", value=0)
    _, _, output = make(tmp_path / "out", *options)
    assert "(warning) an empty label" in output


def test_label_names_and_other_values(tmp_path: Path) -> None:
    options = folders(tmp_path, value=255)
    dataset, task, _ = make(tmp_path / "found", *options)
    assert task["labels"] == {"background": 0, "label1": 255}
    dataset, task, _ = make(
        tmp_path / "named", *options, "--label_name", "cell=255", "--label_name", "outer ring=0"
    )
    assert list(task["labels"].items()) == [("outer ring", 0), ("cell", 255)]
    assert dataset["labels"] == {"0": "outer ring", "255": "cell"}
    result = call(
        "--output_dir", tmp_path / "out", *options, "--label_name", "background=0", "--label_name", "cell=1"
    )
    assert "label values 255 that are not declared" in result.output
    assert result.exit_code == 1


def test_values_that_are_no_classes(tmp_path: Path) -> None:
    options = folders(tmp_path)
    Image.fromarray(np.arange(600, dtype=np.uint16).reshape(30, 20)).save(tmp_path / "l/c0.png")
    refused("hold 600 different value.*--instances", "--output_dir", tmp_path / "out", *options)
    _, task, output = make(tmp_path / "out", *options, "--instances")
    assert task["labels"] == {"background": 0, "interior": 1, "border": 2}
    assert "604 instances, 1 to 599 a case" in output


def test_subjects_stay_together(tmp_path: Path) -> None:
    for n in range(12):
        picture(tmp_path / f"i/p{n // 3}_s{n % 3}.png")
        picture(tmp_path / f"l/p{n // 3}_s{n % 3}.png")
    source = "--images", tmp_path / "i", "--labels", tmp_path / "l", "--folds", 3, "--test_fraction", 0.2
    with (tmp_path / "who.csv").open("w", newline="") as table:
        rows = [(f"p{n // 3}_s{n % 3}", f"p{n // 3}") for n in range(12)]
        csv.writer(table).writerows([("case", "subject"), *rows, ("absent", "p9")])
    by_pattern, _, output = make(tmp_path / "a", *source, "--subject_pattern", r"(p\d)_")
    by_table, _, _ = make(tmp_path / "b", *source, "--subjects", tmp_path / "who.csv")
    assert by_pattern["training"] == by_table["training"]
    assert "12 cases: 9 training, 3 testing" in output
    assert len({entry["case"][:2] for entry in by_pattern["testing"]}) == 1
    folds = {(entry["case"][:2], entry["fold"]) for entry in by_pattern["training"]}
    assert len(folds) == 3
    assert {fold for _, fold in folds} == {0, 1, 2}
    listed = [*by_table["training"], *by_table["testing"]]
    assert {entry["case"]: entry["subject"] for entry in listed} == dict(rows)
    assert read_subjects(tmp_path / "b") == dict(rows)
    assert not any("subject" in entry for entry in make(tmp_path / "c", *source)[0]["training"])


def test_a_fold_for_each_site(tmp_path: Path) -> None:
    """All cases of a site in one fold, the sites in order; those that are held out are of whole subjects."""
    rows = [f"c{n},s{n // 2},{'north' if n < 4 else 'east'},x" for n in range(6)]
    (tmp_path / "who.csv").write_text("\n".join(["case,subject,site,one", *rows]))
    source, by = folders(tmp_path), ("--folds_by", "site", "--attributes", tmp_path / "who.csv")
    dataset, _, said = make(tmp_path / "out", *source, *by, "--subjects", tmp_path / "who.csv")
    assert {entry["case"]: (entry["fold"], entry["fold_name"]) for entry in dataset["training"]} == {
        f"c{n}": (1, "site north") if n < 4 else (0, "site east") for n in range(6)
    }
    assert "fold 0: site east, 2 cases\nfold 1: site north, 4 cases" in said
    split = read_split(tmp_path / "out", spatial_dims=2, in_channels=1, labels=LABELS, fold=0)
    assert [case["case"] for case in split["validation"]] == ["c4", "c5"]

    options = (*source, "--output_dir", tmp_path / "no")
    table = ("--attributes", tmp_path / "who.csv")
    refused("--folds_by and --attributes go together", *options, "--folds_by", "site")
    refused("--folds_by and --attributes go together", *options, *table)
    refused("--folds_by site makes the folds, and so does --folds 2", *options, *by, "--folds", 2)
    refused(r"who\.csv has no such column, but site, one", *options, *table, "--folds_by", "place")
    refused("has the one x for all cases; --folds_by takes two values", *options, *table, "--folds_by", "one")
    refused("leaves site [a-z]+ alone", *options, *by, "--test_fraction", 0.9)
    pattern = ("--subject_pattern", "(c)")
    refused("has the subject c with site north and, in c4, east", *options, *by, *pattern)
    (tmp_path / "who.csv").write_text("\n".join(["case,site", "c0,north", "c1,n/a"]))
    refused("states no site of c1, c2, c3", *options, *by)
    assert not (tmp_path / "no").exists()


@given(
    subject_of=st.dictionaries(
        st.text("abcd12", min_size=1, max_size=4), st.sampled_from("PQRST"), min_size=1
    ),
    fraction=st.floats(0, 0.9),
)
def test_whole_subjects_are_held_out(subject_of: dict[str, str], fraction: float) -> None:
    held_out = hold_out(subject_of, fraction, 0)
    assert not {subject_of[c] for c in held_out} & {subject_of[c] for c in subject_of.keys() - held_out}
    wanted = round(fraction * len(subject_of))
    largest = max(list(subject_of.values()).count(subject) for subject in subject_of.values())
    assert wanted <= len(held_out) < wanted + largest or len(held_out) == wanted == 0


def test_fixed_splits(tmp_path: Path) -> None:
    options = folders(tmp_path)
    path = tmp_path / "splits.json"
    path.write_text(json.dumps({"train": ["c0", "c3"], "val": ["c1"], "test": ["c5"]}))
    dataset, _, output = make(tmp_path / "out", *options, "--splits", path)
    names = {name: [e["case"] for e in dataset[name]] for name in ("training", "validation", "testing")}
    assert names == {"training": ["c0", "c3"], "validation": ["c1"], "testing": ["c5"]}
    assert not any("fold" in entry for entry in dataset["training"])
    assert "2 cases are in no split" in output
    source = "--output_dir", tmp_path / "out2", *options, "--splits", path
    refused("--test_fraction 0.5 does not go", *source, "--test_fraction", 0.5)
    refused("cases of subject 'c' under training and validation", *source, "--subject_pattern", "(c)")
    refused("splits.json exists and would win", "--output_dir", tmp_path, *options)


def test_arguments_that_do_not_fit(tmp_path: Path) -> None:
    options = folders(tmp_path)
    out = "--output_dir", tmp_path / "out"
    refused("exactly one of", *out)
    refused("exactly one of", *out, *options[:2])
    refused("exactly one of", *out, *options, "--msd", tmp_path)
    refused("are both .* two folders", *out, "--images", tmp_path / "i", "--labels", tmp_path / "i")
    refused("--images: .*none is no folder", *out, "--images", tmp_path / "none", *options[2:])
    refused("does not go with --instances", *out, *options, "--instances", "--label_name", "a=0")
    refused("7 folds cannot be made of 6 subjects", *out, *options, "--folds", 7)
    refused(r"--test_fraction 1.0 is outside \[0, 1\)", *out, *options, "--test_fraction", 1)
    refused("is no regex", *out, *options, "--subject_pattern", "(")
    refused("has no group", *out, *options, "--subject_pattern", "c")
    refused("both say who is who", *out, *options, "--subject_pattern", "(c)", "--subjects", "t.csv")
    refused("t.csv does not exist", *out, *options, "--subjects", tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("name,who\nc0,a\n")
    refused("'case' and 'subject' are needed", *out, *options, "--subjects", tmp_path / "t.csv")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("version", [1, 2])
def test_nnunet_folders(tmp_path: Path, version: int) -> None:
    rng = np.random.default_rng(0)
    affine = np.array([[0, 0.5, 0, 0], [2, 0, 0, 0], [0, 0, -1, 0], [0, 0, 0, 1]])
    for n in range(5):
        truth = np.zeros((40, 60, 20), np.uint8)
        truth[:10] = 2
        volume(tmp_path / f"labelsTr/c{n}.nii.gz", truth, affine)
        for channel in range(2):
            image = rng.normal(size=truth.shape).astype(np.float32)
            volume(tmp_path / f"imagesTr/c{n}_000{channel}.nii.gz", image, affine)
    first = {"modality": {"0": "T1", "1": "T2"}, "labels": {"0": "background", "2": "tumour"}}
    second = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "tumour": 2}}
    description = first if version == 1 else second | {"file_ending": ".nii.gz", "name": "Brain"}
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    dataset, task, output = make(tmp_path / "out", "--nnunet", tmp_path)
    assert dataset["training"][0]["image"] == [str(tmp_path / f"imagesTr/c0_000{c}.nii.gz") for c in (0, 1)]
    assert dataset["name"] == ("out" if version == 1 else "Brain")
    assert (
        task.items()
        >= {
            "spatial_dims": 3,
            "in_channels": 2,
            "labels": {"background": 0, "tumour": 2},
            "segments": {},
            "patch_size": [56, 40, 20],  # axes 0 and 1 change places in RAS
            "samples_per_case": 1,
            "spacing": [0.5, 2.0, 1.0],
        }.items()
    )
    assert "the source calls it 'T1 T2'" in task["_reasons"]["normalise"]
    assert "label tumour = 2: 25.00% of voxels" in output
    read_split(tmp_path / "out", spatial_dims=3, in_channels=2, labels=task["labels"])
    (tmp_path / "imagesTr/c3_0001.nii.gz").unlink()
    (tmp_path / "labelsTr/c4.nii.gz").unlink()
    result = call("--output_dir", tmp_path / "out", "--nnunet", tmp_path)
    assert "imagesTr/c3_0001.nii.gz | no such file" in result.output
    assert "imagesTr/c4_0000.nii.gz | an image without a label" in result.output
    assert result.exit_code == 1


def test_nnunet_colour_pictures(tmp_path: Path) -> None:
    for n in range(5):
        picture(tmp_path / f"imagesTr/c{n}_0000.png", shape=(30, 20, 3))
        picture(tmp_path / f"labelsTr/c{n}.png")
    description = {"channel_names": {"0": "R", "1": "G", "2": "B"}, "file_ending": ".png"}
    (tmp_path / "dataset.json").write_text(json.dumps(description | {"labels": {"background": 0, "cell": 1}}))
    _, task, _ = make(tmp_path / "out", "--nnunet", tmp_path)
    assert (task["in_channels"], task["spatial_dims"]) == (3, 2)


def test_msd_folder_with_4d_images(tmp_path: Path) -> None:
    for n in range(5):
        volume(tmp_path / f"imagesTr/c{n}.nii.gz", np.ones((20, 20, 20, 4), np.int16))
        volume(tmp_path / f"labelsTr/c{n}.nii.gz", np.eye(20, dtype=np.uint8)[..., None].repeat(20, 2))
    entries = [{"image": f"./imagesTr/c{n}.nii.gz", "label": f"./labelsTr/c{n}.nii.gz"} for n in range(5)]
    (tmp_path / "dataset.json").write_text(json.dumps({"training": entries, "test": ["./imagesTs/x.nii.gz"]}))
    dataset, task, _ = make(tmp_path / "out", "--msd", tmp_path)
    assert task["in_channels"] == 4
    assert len(dataset["training"]) == 5
    again, _, _ = make(tmp_path / "again", "--msd", tmp_path / "out")
    assert again["training"] == dataset["training"]
    (tmp_path / "dataset.json").write_text(json.dumps({"training": entries + entries[:1]}))
    result = call("--output_dir", tmp_path / "third", "--msd", tmp_path)
    assert "the case id 'c0' more than once" in result.output
    refused("no cases under 'training'", "--output_dir", tmp_path, "--msd", _folder_without_cases(tmp_path))


def _folder_without_cases(root: Path) -> Path:
    (root / "none").mkdir()
    (root / "none/dataset.json").write_text("{}")
    return root / "none"


@pytest.mark.long
@needs_data
@pytest.mark.data
def test_hippocampus(tmp_path: Path) -> None:
    folder = DATA / "msd_task04_hippocampus"
    dataset, task, output = make(tmp_path / "out", "--msd", folder, "--splits", folder / "splits.json")
    assert [len(dataset[name]) for name in ("training", "validation", "testing")] == [180, 30, 50]
    assert "260 cases: 180 training, 30 validation, 50 testing" in output
    assert "median 35 x 50 x 36, from 31 x 40 x 24 to 43 x 59 x 47" in output  # as its README says
    assert task["labels"] == {"background": 0, "Anterior": 1, "Posterior": 2}
    assert (task["patch_size"], task["spacing"]) == ([32, 48, 32], [1.0, 1.0, 1.0])


@needs_data
@pytest.mark.data
def test_membranes(tmp_path: Path) -> None:
    source = "--images", DATA / "isbi2012_em/images", "--labels", DATA / "isbi2012_em/labels"
    dataset, task, output = make(tmp_path / "out", *source, "--test_fraction", 0.2)
    assert [len(dataset["training"]), len(dataset["testing"])] == [24, 6]
    assert task["labels"] == {"background": 0, "label1": 255}
    assert "label background = 0: 21.96% of voxels" in output  # its README: membrane 22.0 %
    assert task["samples_per_case"] == 4


@pytest.mark.long
@needs_data
@pytest.mark.data
def test_nuclei(tmp_path: Path) -> None:
    source = "--images", DATA / "dsb2018_nuclei/images", "--labels", DATA / "dsb2018_nuclei/labels"
    dataset, task, output = make(tmp_path / "out", *source, "--instances")
    assert len(dataset["training"]) == 541
    assert dataset["instances"] is task["instances"] is True
    assert "23096 instances, 1 to 375 a case" in output  # as its README says
    assert task["targets"][0]["_target_"] == "scripts.transforms.InstancesToClassesd"
    assert [step["_target_"] for step in task["to_labels"]] == ["scripts.transforms.WatershedInstancesd"]


@needs_data
@pytest.mark.data
def test_planted_pairs(tmp_path: Path) -> None:
    folder = DATA / "bad_inputs/hippocampus_planted"
    source = "--images", folder / "imagesTr", "--labels", folder / "labelsTr"
    result = call("--output_dir", tmp_path / "out", *source)
    assert result.exit_code == 1
    assert "hippocampus_118.nii.gz | an image without a label" in result.output
    assert "hippocampus_010.nii.gz | a label without an image" in result.output
    assert "hippocampus_281.nii.gz | a label without an image" in result.output
    assert ".DS_Store" not in result.output
    assert not (tmp_path / "out").exists()


def test_sides_are_not_mirrored(tmp_path: Path) -> None:
    source = folders(tmp_path)
    for n in range(6):
        array = np.zeros((30, 20), np.uint8)
        array[:9, :9], array[:9, 11:] = 1, 2
        Image.fromarray(array).save(tmp_path / f"l/c{n}.png")
    names = [part for pair in ("background=0", "lung_L=1", "lung_R=2") for part in ("--label_name", pair)]
    _, task, output = make(tmp_path / "out", *source, *names)
    assert task["flip_axes"] == []
    assert "lung_L, lung_R say left or right" in output
    _, task, output = make(tmp_path / "plain", *source)
    assert task["flip_axes"] == [0, 1]
    assert "left or right" not in output


def described(tmp_path: Path, arrays: list[list[int]], *options: object) -> str:
    """What is said about labels that hold these values, each in 10 pixels, the first one in all the rest."""
    for n, values in enumerate(arrays):
        picture(tmp_path / f"i/c{n}.png")
        array = np.full((30, 20), values[0], np.uint8)
        for row, value in enumerate(values[1:]):
            array[row, :10] = value
        (tmp_path / "l").mkdir(exist_ok=True)
        Image.fromarray(array).save(tmp_path / f"l/c{n}.png")
    source = ("--images", tmp_path / "i", "--labels", tmp_path / "l", "--folds", 2)
    return make(tmp_path / "out", *source, *options)[2]


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ([[0, 1], [0, 255]] * 2, "the values 1 (in 2 files such as that of c0) and 255 (in 2 files such as"),
        (
            [[0, 1, 2], [0, 127, 255]] * 2,
            "the values 1, 2 (in 2 files such as that of c0) and 127, 255 (in 2",
        ),
        ([[0, 1], [1, 2], [0, 1, 2]], "0, taken for the background, does not occur in the labels of c1"),
        ([[0, 1, 3], [0, 1], [0, 1]], "label2 = 3 occurs in one case only, c0"),
        ([[0], [0, 1], [0], [0, 1]], None),
        ([[0, 1, 2], [0, 2], [0, 1]], None),
        ([[0, 1]] * 4, None),
    ],
)
def test_what_looks_wrong_about_all_values_together(
    arrays: list[list[int]], said: str | None, tmp_path: Path
) -> None:
    output = described(tmp_path, arrays)
    if said:
        assert f"warning: {said}" in output
    else:
        assert not [
            line for line in output.splitlines() if line.startswith("warning:") and "fold" not in line
        ]
    if arrays[0] == [0, 1] and arrays[1] == [0, 255]:
        (tmp_path / "out/task.json").unlink()
        names = [part for pair in ("a=0", "b=1", "c=255") for part in ("--label_name", pair)]
        assert "never occur" not in described(tmp_path, arrays, *names)


def test_the_rim_of_a_smoothed_mask(tmp_path: Path) -> None:
    source = folders(tmp_path, value=255)
    soft = np.array(Image.open(tmp_path / "l/c0.png"))
    soft[0, :2] = 254, 1
    Image.fromarray(soft).save(tmp_path / "l/c0.png")
    Image.fromarray(soft).save(tmp_path / "l/c1.png")
    output = make(tmp_path / "out", *source)[2]
    assert "the values 1, 254 are less than 1% of 255 each and look like the rim of a smoothed mask" in output
    assert "threshold the masks, for example at 127.5" in output


def test_a_fold_without_foreground_is_told(tmp_path: Path) -> None:
    source = folders(tmp_path)
    for n in (0, 4):  # those of fold 0
        picture(tmp_path / f"l/c{n}.png", 0)
    assert (
        "warning: no case of fold 0 (c0, c4) shows anything but background"
        in make(tmp_path / "out", *source, "--folds", 3)[2]
    )


def test_a_class_that_is_declared_and_missing(tmp_path: Path) -> None:
    names = [part for pair in ("a=0", "b=1", "c=2") for part in ("--label_name", pair)]
    assert "warning: c = 2 is declared and occurs in no case" in described(tmp_path, [[0, 1]] * 4, *names)


def test_classes_of_large_values_are_refused_by_file(tmp_path: Path) -> None:
    for n in range(4):
        volume(tmp_path / f"i/c{n}.nii.gz", np.ones((4, 5, 6), np.float32))
        label = np.zeros((4, 5, 6), np.int32)
        label[1] = 2**24 + (n == 2)
        volume(tmp_path / f"l/c{n}.nii.gz", label)
    result = call("--images", tmp_path / "i", "--labels", tmp_path / "l", "--output_dir", tmp_path / "out")
    assert result.exit_code == 1
    assert "l/c2.nii.gz | label values 16777217" in result.output
    assert "1 problem(s), nothing was written" in result.output


@pytest.mark.parametrize("kind", ["nnunet", "msd"])
def test_what_others_wrote_is_not_replaced(kind: str, tmp_path: Path) -> None:
    for n in range(4):
        picture(tmp_path / f"imagesTr/c{n}_0000.png")
        picture(tmp_path / f"labelsTr/c{n}.png")
    listed = [{"image": f"imagesTr/c{n}_0000.png", "label": f"labelsTr/c{n}.png"} for n in range(4)]
    description = {"channel_names": {"0": "x"}, "labels": {"background": 0, "cell": 1}, "file_ending": ".png"}
    text = json.dumps({**description, "training": listed})
    (tmp_path / "dataset.json").write_text(text)
    refused(
        r"dataset\.json would be replaced, and neither 'datalist' nor 'plan' wrote that",
        f"--{kind}",
        tmp_path,
        "--output_dir",
        tmp_path,
        "--folds",
        2,
    )
    assert (tmp_path / "dataset.json").read_text() == text
    assert sorted(file.name for file in tmp_path.iterdir()) == ["dataset.json", "imagesTr", "labelsTr"]


@pytest.mark.parametrize("name", ["dataset.json", "task.json", "experiment.json"])
def test_own_files_are_replaced_unless_somebody_changed_them(name: str, tmp_path: Path) -> None:
    source = folders(tmp_path)
    make(tmp_path / "out", *source)
    dataset, *_ = make(tmp_path / "out", *source, "--folds", 3)
    assert len({entry["fold"] for entry in dataset["training"]}) == 3
    changed = json.loads((tmp_path / "out" / name).read_text()) | {"max_epochs": 7}
    (tmp_path / "out" / name).write_text(json.dumps(changed))
    refused(rf"{name} would be replaced", *source, "--output_dir", tmp_path / "out")
    assert json.loads((tmp_path / "out" / name).read_text()) == changed


def test_sets_of_which_no_image_can_be_read(tmp_path: Path) -> None:
    """The reason is that of a single file."""
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{0:064d}\nsize 12345\n"
    for n in range(4):
        volume(tmp_path / f"l/c{n}.nii.gz", np.ones((4, 5, 6), np.uint8))
        (tmp_path / "i").mkdir(exist_ok=True)
        (tmp_path / f"i/c{n}.nii.gz").write_text(pointer)
        for file in (f"n/imagesTr/c{n}_0000.nrrd", f"n/labelsTr/c{n}.nrrd"):
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).write_text("NRRD0004\n")
    description = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "x": 1}, "file_ending": ".nrrd"}
    (tmp_path / "n/dataset.json").write_text(json.dumps(description))
    result = call("--images", tmp_path / "i", "--labels", tmp_path / "l", "--output_dir", tmp_path / "out")
    assert result.output.count("a Git LFS pointer") == 4
    assert "run 'git lfs pull'" in result.output
    result = call("--nnunet", tmp_path / "n", "--output_dir", tmp_path / "out")
    assert result.output.count("the unknown suffix '.nrrd'") == 8
    assert result.exit_code == 1


@pytest.mark.parametrize(("delimiter", "encoding"), [(",", "utf-8"), (";", "utf-8-sig"), ("\t", "utf-16")])
def test_tables_of_subjects_as_programs_write_them(delimiter: str, encoding: str, tmp_path: Path) -> None:
    source = folders(tmp_path, 4)
    rows = [["Case", "Subject", "note"], *([f"c{n}", f" Zoë{n % 2}", ""] for n in range(4))]
    text = "\r\n".join(delimiter.join(row) for row in rows) + "\r\n"
    (tmp_path / "who.csv").write_bytes(text.encode(encoding))
    dataset, _, _ = make(tmp_path / "out", *source, "--subjects", tmp_path / "who.csv", "--folds", 2)
    fold_of = {entry["case"]: entry["fold"] for entry in dataset["training"]}
    assert fold_of["c0"] == fold_of["c2"] != fold_of["c1"] == fold_of["c3"]


def test_tables_of_subjects_that_are_none(tmp_path: Path) -> None:
    source = (*folders(tmp_path, 4), "--output_dir", tmp_path / "out", "--subjects", tmp_path / "who.csv")
    (tmp_path / "who.csv").write_bytes("case,subject\nc0,Zoë\n".encode("latin-1"))
    refused(r"who\.csv is no text in UTF-8, from its byte 18 on", *source)
    (tmp_path / "who.csv").write_text("case,subject\nc0,a\nc0,b\n")
    refused(r"who\.csv has the case c0 with the subjects a and b", *source)


@pytest.mark.parametrize(
    ("images", "labels", "cases"),
    [
        (["f_0000", "f_0001"], ["f_0000", "f_0001"], ["f_0000", "f_0001"]),
        (["f_0000", "f_0001"], ["f_0000_mask", "f_0001_mask"], ["f_0000", "f_0001"]),
        (["f_0000_image", "f_0001_image"], ["f_0000_mask", "f_0001_mask"], ["f_0000", "f_0001"]),
        (["f_0000", "g_0000"], ["f", "g"], ["f", "g"]),
        (["Cafe\u0301", "b"], ["Caf\u00e9", "b"], ["Caf\u00e9", "b"]),
        (["v1.2_image", "v1.3_image"], ["v1.2_mask", "v1.3_mask"], ["v1.2", "v1.3"]),
        (["1.3.6.1.0", "1.3.6.1.1"], ["1.3.6.1.0", "1.3.6.1.1"], ["1.3.6.1.0", "1.3.6.1.1"]),
    ],
)
def test_names_that_go_together(
    images: list[str], labels: list[str], cases: list[str], tmp_path: Path
) -> None:
    for image, label in zip(images, labels, strict=True):
        picture(tmp_path / f"i/{image}.png")
        picture(tmp_path / f"l/{label}.png")
    source = ("--images", tmp_path / "i", "--labels", tmp_path / "l", "--folds", 2)
    dataset, _, _ = make(tmp_path / "out", *source)
    assert [entry["case"] for entry in dataset["training"]] == sorted(cases)
    for entry in dataset["training"]:
        assert labels[images.index(Path(entry["image"]).stem)] == Path(entry["label"]).stem


def test_what_is_called_like_an_image_and_is_none(tmp_path: Path) -> None:
    source = folders(tmp_path, 4)
    (tmp_path / "i/c4.png").symlink_to("../annex/nowhere")
    (tmp_path / "i/c5.png").mkdir()
    for name in ("c4", "c5"):
        picture(tmp_path / f"l/{name}.png")
    result = call(*source, "--output_dir", tmp_path / "out")
    assert result.exit_code == 1
    assert "c4   | i/c4.png | a link to ../annex/nowhere, which is not there" in result.output
    assert "c5   | i/c5.png | a folder" in result.output


def test_a_class_that_one_fold_alone_holds(tmp_path: Path) -> None:
    arrays = [[0, 1, 2], [0, 1], [0, 1], [0, 1], [0, 1, 2], [0, 1]]
    names = [part for pair in ("a=0", "b=1", "c=2") for part in ("--label_name", pair)]
    source = ("--images", tmp_path / "i", "--labels", tmp_path / "l")
    described(tmp_path, arrays, *names)
    output = make(tmp_path / "three", *source, *names, "--folds", 3)[2]  # c0 and c4 are fold 0
    assert output.count("warning:") == 1
    assert "warning: c = 2 occurs in training cases of fold 0 alone: nothing trains it where" in output
    splits = {"train": ["c1", "c2"], "val": ["c0"], "test": ["c3", "c4", "c5"]}
    (tmp_path / "s.json").write_text(json.dumps(splits))
    output = make(tmp_path / "fixed", *source, *names, "--splits", tmp_path / "s.json")[2]
    assert "warning: c = 2 occurs in no training case, but in c0, c4; choose another split" in output


def test_folds_that_do_not_show_a_class_are_told(tmp_path: Path) -> None:
    arrays = [[0, 1, 2], [0, 1, 2], [0, 1], [0, 1], [0, 1, 2], [0, 1]]
    names = [part for pair in ("a=0", "b=1", "c=2") for part in ("--label_name", pair)]
    source = ("--images", tmp_path / "i", "--labels", tmp_path / "l")
    described(tmp_path, arrays, *names)
    dataset, _, output = make(tmp_path / "three", *source, *names, "--folds", 3)
    shown = {case["fold"] for case in dataset["training"] if case["case"] in ("c0", "c1", "c4")}
    (without,) = {0, 1, 2} - shown
    assert (
        f"warning: no case of fold {without} shows c = 2, which 3 cases have: it cannot be judged" in output
    )
    listed = invoke("plan", "--dataset_dir", tmp_path / "three", "--no-trial")
    assert f"warning: no case of fold {without} shows c = 2" in listed.output


def test_cases_thinner_than_the_patch_are_told(tmp_path: Path) -> None:
    source = folders(tmp_path, 6)
    for kind in ("i", "l"):
        array = np.array(Image.open(tmp_path / kind / "c5.png"))
        Image.fromarray(array[:3]).save(tmp_path / kind / "c5.png")
    output = make(tmp_path / "out", *source)[2]
    assert (
        "warning: 1 of 6 cases have less than half of the patch's voxels along an axis (c5 with 3 of"
        in output
    )


def test_masks_handed_as_instances_are_told(tmp_path: Path) -> None:
    said = "warning: no label numbers more than one object"
    assert said in described(tmp_path, [[0, 1]] * 4, "--instances")
    assert said not in described(tmp_path, [[0, 1], [0, 1, 2], [0], [0, 1]], "--instances")


@pytest.mark.parametrize("options", [(), ("--instances",), ("--label_name", "a=0", "--label_name", "b=1")])
def test_a_value_that_nobody_annotated(options: tuple[str, ...], tmp_path: Path) -> None:
    described(tmp_path, [[9, 0, 1], [0, 1, 9], [0, 1], [0, 1, 9]], *options, "--ignore", 9)
    dataset, task = (json.loads((tmp_path / f"out/{name}.json").read_text()) for name in ("dataset", "task"))
    first, second = ("a", "b") if "--label_name" in options else ("background", "label1")
    named = {"0": first} if options == ("--instances",) else {"0": first, "1": second}
    assert dataset["labels"] == {**named, "9": "ignore"}
    assert task["labels"]["ignore"] == 9
    assert len(task["labels"]) == (4 if options == ("--instances",) else 3)
    settings = {"spatial_dims": 2, "in_channels": 1, "instances": task.get("instances", False)}
    loaded = read_split(tmp_path / "out", labels=task["labels"], fold=0, **settings)
    assert len(loaded["training"]) == 2
    again = invoke("plan", "--dataset_dir", tmp_path / "out", "--no-trial")
    assert again.exit_code == 0, again.output
    assert json.loads((tmp_path / "out/task.json").read_text()) == task


def test_a_value_to_ignore_that_cannot_be_one(tmp_path: Path) -> None:
    described(tmp_path, [[0, 1, 9], [0, 1, 9], [9], [9, 0]])
    source = ("--images", tmp_path / "i", "--labels", tmp_path / "l", "--output_dir", tmp_path / "new")
    refused(r"--ignore is 8, which no label holds, but 0, 1, 9; it is the value", *source, "--ignore", 8)
    names = ("--label_name", "a=0", "--label_name", "b=1", "--label_name", "c=9")
    refused(
        r"--ignore is 9, and the labels have c=9; a value is a class, or that", *source, *names, "--ignore", 9
    )
    refused(r"--ignore is -1; label values are whole numbers of 0", *source, "--ignore", -1)
    refused(
        "--ignore is 8, and the labels have ignore=9",
        *source,
        *names[:4],
        "--label_name",
        "ignore=9",
        "--ignore",
        8,
    )
    result = call(*source, "--ignore", 9)
    assert result.exit_code == 1
    assert "c2   | l/c2.png | the value 9 everywhere, which" in result.output
    for n in (0, 1, 3):
        picture(tmp_path / f"l/c{n}.png", 9, (30, 20))
    for n in range(4):
        Image.fromarray(np.full((30, 20), 9, np.uint8)).save(tmp_path / f"l/c{n}.png")
    result = call(*source, "--ignore", 9)
    assert "error: 4 problem(s), nothing was written" in result.output
    for n in range(4):
        picture(tmp_path / f"l/c{n}.png", 9)
    refused(
        "the labels hold the value 0 wherever they do not hold 9, that of --ignore;", *source, "--ignore", 9
    )
