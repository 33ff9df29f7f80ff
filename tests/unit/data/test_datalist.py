"""Splits from every form of data folder, and images to segment."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from scripts.data.cases import InferenceCases
from scripts.data.datalist import (
    _require_unique,
    assign_folds,
    case_id,
    cases_of,
    dataset_labels,
    group_channels,
    named_images,
    read_entries,
    read_folds,
    read_images,
    read_split,
    read_subjects,
    sections,
    split_images,
    without_results,
)
from scripts.data.names import output_name, output_path
from scripts.errors import InputError
from tests.commands import SHARED_DATA

LABELS = {"background": 0, "cell": 1}
DATA = SHARED_DATA
SETTINGS: dict[str, Any] = {"spatial_dims": 2, "in_channels": 1, "labels": LABELS}


def picture(path: Path, value: int = 1, mode: str = "L") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.zeros((6, 4), np.uint8)
    array[1, 1] = value
    Image.fromarray(array).convert(mode).save(path)
    return path


def dataset(folder: Path, names: str = "abcdefg", **keys: Any) -> Path:
    """A data folder with a picture and a label per name, all in the training list."""
    entries = []
    for name in names:
        picture(folder / f"images/{name}.png")
        picture(folder / f"labels/{name}.png")
        entries.append({"image": f"./images/{name}.png", "label": f"labels/{name}.png"})
    describe(folder, training=entries, **keys)
    return folder


def describe(folder: Path, **keys: Any) -> None:
    content = {"labels": {"0": "background", "1": "cell"}, **keys}
    (folder / "dataset.json").write_text(json.dumps(content))


def entries(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "dataset.json").read_text())["training"]


def ids(split: dict[str, list[dict[str, Any]]]) -> dict[str, str]:
    return {name: "".join(sorted(case["case"] for case in cases)) for name, cases in split.items()}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/b/case.nii.gz", "case"),
        ("case_0000.nii.gz", "case"),
        ("case_0001.nii.gz", "case_0001"),
        ("img.v2.PNG", "img.v2"),
        ("scan.nii", "scan"),
        ("x.tiff", "x"),
        ("scan.mha", "scan.mha"),
        ("1.2.840.113619.2.55.3.nii.gz", "1.2.840.113619.2.55.3"),
        ("run-1.0.png", "run-1.0"),
        ("1.2.840.113619.2.zarr", "1.2.840.113619.2"),
    ],
)
def test_case_id(name: str, expected: str) -> None:
    assert case_id(name) == expected


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["c1/imaging.nii.gz", "c2/imaging.nii.gz", "other/scan.nii.gz"], ["c1", "c2", "scan"]),
        (["s1/ses-1/anat/T1w.nii", "s1/ses-2/anat/T1w.nii"], ["ses-1", "ses-2"]),
        (["s1/ses-1/T1w.nii", "s1/ses-2/T1w.nii", "s2/ses-1/T1w.nii"], ["s1_ses-1", "s1_ses-2", "s2_ses-1"]),
        (["c1/t1.nii", "c1/t2.nii", "c2/t1.nii", "c2/t2.nii"], ["c1_t1", "c1_t2", "c2_t1", "c2_t2"]),
        (["a/x_0000.png", "b/x.png"], ["a", "b"]),
        (["x.png", "b/x.png"], ["x", "b"]),
        (["f_0000.png", "f_0001.png", "g_0000.png"], ["f_0000", "f_0001", "g"]),
        (["run-1.0.png", "run-1.5.png"], ["run-1.0", "run-1.5"]),
    ],
)
def test_ids_where_file_names_repeat(paths: list[str], expected: list[str], tmp_path: Path) -> None:
    """Without ids in dataset.json; the last case is one to test on, and takes part."""
    listed = [{"image": path} for path in paths]
    describe(tmp_path, training=listed[:-1], validation=[], testing=listed[-1:])
    found = read_entries(json.loads((tmp_path / "dataset.json").read_text()), tmp_path / "dataset.json")
    assert [entry["case"] for entry in found["training"] + found["testing"]] == expected


def test_id_of_channels_in_files_of_their_own(tmp_path: Path) -> None:
    listed = [{"image": [f"{case}/{name}.png" for name in ("flair", "t1")]} for case in ("p1", "p2")]
    found = read_entries({"training": listed}, tmp_path / "dataset.json")
    assert [entry["case"] for entry in found["training"]] == ["p1", "p2"]


@given(st.text(min_size=1, max_size=9), st.text(min_size=1, max_size=9))
def test_names_of_results(one: str, other: str) -> None:
    """What a file system holds stays; two ids with one name are refused."""
    folder = Path("/data")
    names = [output_name(case) for case in (one, other)]
    for case, name in zip((one, other), names, strict=True):
        path = output_path(folder, case, "seg", ".nii.gz")
        assert path.parent == folder
        assert path.name == f"{name}_seg.nii.gz"
        if not set(case) & set('/\\:*?"<>|') and case.isprintable() and not case.startswith("."):
            assert name == case
    if names[0] == names[1]:
        with pytest.raises(InputError, match="more than once, or their results would have one name"):
            _require_unique([one, other], folder)
    else:
        _require_unique([one, other], folder)


def test_splits_json_wins(tmp_path: Path) -> None:
    folder = dataset(tmp_path)
    describe(folder, training=entries(folder)[:5], validation=entries(folder)[5:])
    (folder / "splits.json").write_text(json.dumps({"train": ["g", "a"], "val": ["b"], "test": ["c", "f"]}))
    split = read_split(folder, **SETTINGS)
    assert ids(split) == {"training": "ag", "validation": "b", "testing": "cf"}
    assert split["training"][0] == {
        "image": str(folder / "images/g.png"),
        "label": str(folder / "labels/g.png"),
        "case": "g",
    }


def test_lists_of_dataset_json(tmp_path: Path) -> None:
    folder = dataset(tmp_path)
    all_entries = entries(folder)
    describe(
        folder,
        training=all_entries[:4],
        validation=all_entries[4:6],
        testing=all_entries[6:],
        test=["./imagesTs/unlabelled.png"],
    )
    assert ids(read_split(folder, **SETTINGS)) == {"training": "abcd", "validation": "ef", "testing": "g"}


def test_fixed_folds(tmp_path: Path) -> None:
    folder = dataset(tmp_path)
    describe(folder, training=[entry | {"fold": n % 3} for n, entry in enumerate(entries(folder))])
    assert ids(read_split(folder, fold=1, **SETTINGS)) == {
        "training": "acdfg",
        "validation": "be",
        "testing": "",
    }
    with pytest.raises(InputError, match=r"fold=3 does not exist in .*; it has \[0, 1, 2\]"):
        read_split(folder, fold=3, **SETTINGS)


def test_cases_by_fold(tmp_path: Path) -> None:
    folder = dataset(tmp_path)
    *training, held_out = entries(folder)
    listed = [entry | {"fold": 2 - n % 3, "subject": f"s{n % 3}"} for n, entry in enumerate(training)]
    describe(folder, training=listed, testing=[held_out])
    found = {fold: "".join(case["case"] for case in cases) for fold, cases in read_folds(folder).items()}
    assert found == {0: "cf", 1: "be", 2: "ad"}
    assert list(found) == [0, 1, 2]
    for fold in found:
        assert read_folds(folder)[fold] == read_split(folder, fold=fold, **SETTINGS)["validation"]
    assert read_subjects(folder) == {**dict(zip("abcdef", ["s0", "s1", "s2"] * 2, strict=True)), "g": "g"}
    describe(folder, training=training)
    assert sum(map(len, read_folds(folder, seed=3).values())) == 6
    for fold, cases in read_folds(folder, seed=3).items():
        assert cases == read_split(folder, fold=fold, seed=3, **SETTINGS)["validation"]
    describe(folder, training=training, validation=[held_out])
    assert read_folds(folder) == {}


def test_a_subject_in_two_folds_is_refused(tmp_path: Path) -> None:
    folder = dataset(tmp_path)
    listed = [entry | {"fold": n % 3, "subject": "ab"[n > 4]} for n, entry in enumerate(entries(folder))]
    listed[0]["subject"] = "c"
    describe(folder, training=listed)
    sentence = r"dataset.json has the subject 'a' in fold 0 \(d\) and in fold 1 \(b\)"
    with pytest.raises(InputError, match=sentence):
        read_folds(folder)
    with pytest.raises(InputError, match=r"the subject 'a' in training \(c\) and in validation \(b\)"):
        read_split(folder, fold=1, **SETTINGS)
    describe(folder, training=[{**entry, "subject": "a"} for entry in listed[:6:3]], testing=[listed[1]])
    with pytest.raises(InputError, match=r"'a' in fold 0 \(a\) and in testing \(b\)"):
        read_folds(folder)
    describe(folder, training=[listed[0] | {"subject": 7}, *listed[1:]])
    with pytest.raises(InputError, match="has the subject 7 under 'training'; an id is a text"):
        read_folds(folder)


def test_folds_made_on_the_fly(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = dataset(tmp_path)
    with caplog.at_level("INFO"):
        splits = [read_split(folder, fold=fold, seed=3, **SETTINGS) for fold in range(5)]
    assert sorted("".join(ids(split)["validation"] for split in splits)) == list("abcdefg")
    assert all(ids(split)["training"] + ids(split)["validation"] != "" for split in splits)
    for split in splits:
        assert not set(ids(split)["training"]) & set(ids(split)["validation"])
    assert "has no folds: made 5 with seed 3" in caplog.text
    assert "Checking data: 7 cases" in caplog.text
    assert ids(read_split(folder, seed=3, **SETTINGS)) == ids(splits[0])
    different = {
        ids(read_split(folder, seed=seed, check="never", **SETTINGS))["validation"] for seed in range(9)
    }
    assert len(different) > 1
    with pytest.raises(InputError, match="fold=5 does not exist"):
        read_split(folder, fold=5, **SETTINGS)


def test_a_fold_without_effect_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = dataset(tmp_path)
    (folder / "splits.json").write_text(json.dumps({"train": ["a"], "val": ["b"]}))
    read_split(folder, fold=2, **SETTINGS)
    assert "fold=2 has no effect" in caplog.text
    assert "leaves out 5 of 7 cases" in caplog.text


def test_a_relative_folder_from_any_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset(tmp_path / "deep/data")
    monkeypatch.chdir(tmp_path / "deep")
    relative = read_split("data", **SETTINGS)
    monkeypatch.chdir("/")
    assert relative == read_split(tmp_path / "deep/data", **SETTINGS)
    assert all(os.path.isabs(case["label"]) for case in relative["training"])


def test_channel_files_and_named_cases(tmp_path: Path) -> None:
    for name in "ab":
        for channel in range(2):
            picture(tmp_path / f"{name}_000{channel}.png")
        picture(tmp_path / f"{name}.png")
    training = [{"image": [f"{name}_0000.png", f"{name}_0001.png"], "label": f"{name}.png"} for name in "ab"]
    describe(tmp_path, training=training[:1], validation=[training[1] | {"case": "second"}])
    split = read_split(tmp_path, spatial_dims=2, in_channels=2, labels=LABELS)
    assert ids(split) == {"training": "a", "validation": "second", "testing": ""}
    assert split["training"][0]["image"] == [str(tmp_path / "a_0000.png"), str(tmp_path / "a_0001.png")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"dataset.json cannot be read"),
        ("[]", r"dataset.json holds a list; a JSON object"),
        ("{}", r"lists no cases under 'training'.*python -m bundle datalist"),
        ('{"training": ["a.png"]}', r"entry under 'training' without an image"),
        ('{"labels": ["a", "b"]}', r"'labels' that are a list; names with their values are expected"),
        ('{"training": [{"image": "a.png", "fold": "0"}]}', r"the fold '0' of a; a fold is a whole number"),
        ('{"training": [{"image": "a.png"}]}', r"lists 1 case under 'training' and none under 'validation'"),
        ('{"training": [{"image": "a.png"}, {"image": "b/x.png", "case": "a"}]}', r"lists a more than once"),
        ('{"training": [{"image": "a.png", "case": 7}]}', r"the case 7 under 'training'; an id is a text"),
        (
            '{"training": [{"image": "a.png", "case": "s/1"}, {"image": "b.png", "case": "s_1"}]}',
            r"lists s/1, s_1 more than once, or their results would have one name",
        ),
        ('{"training": [{"image": "a.png"}], "testing": [{"image": "a.png"}]}', r"lists a more than once"),
        ('{"training": [{"image": "a.png", "fold": 0}, {"image": "b.png"}]}', r"'fold' in 1 of 2"),
        ('{"labels": {"0": "x", "2": "y"}}', r"\{'x': 0, 'y': 2\} and the config has .*task.json"),
        ('{"labels": {"whole": [1, 2]}}', r"declares the label 'whole': \[1, 2\]"),
        ('{"labels": {"0": "x", "1": "x"}}', r"a label name or value twice"),
    ],
)
def test_bad_dataset_json(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(InputError, match=message):
        read_split(tmp_path, **SETTINGS)


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": ["a"], "val": ["zz"]}, r"names zz under 'val'"),
        ({"train": ["a", "b"], "val": ["b"]}, r"lists b more than once"),
        ({"train": ["a"]}, r"no cases under 'val'"),
        ({"train": "a", "val": ["b"]}, r"'train' that is no list"),
    ],
)
def test_bad_splits_json(tmp_path: Path, splits: Any, message: str) -> None:
    folder = dataset(tmp_path)
    (folder / "splits.json").write_text(json.dumps(splits))
    with pytest.raises(InputError, match=r"splits.json.*" + message):
        read_split(folder, **SETTINGS)


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none is no folder"):
        read_split(tmp_path / "none", **SETTINGS)
    with pytest.raises(InputError, match="is empty"):
        read_split(tmp_path, **SETTINGS)
    picture(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"has no dataset.json.*python -m bundle datalist --images DIR"):
        read_split(tmp_path, **SETTINGS)


def test_bad_files_are_refused_unless_unchecked(tmp_path: Path) -> None:
    folder = dataset(tmp_path)
    picture(folder / "labels/c.png", value=9)
    with pytest.raises(InputError, match=r"c\.png: found label values 9 that are not declared"):
        read_split(folder, **SETTINGS)
    assert len(read_split(folder, check="never", **SETTINGS)["training"]) == 5  # 7 in folds of 2, 2, 1, 1, 1
    assert read_split(folder, **(SETTINGS | {"labels": {"x": 3}}), instances=True)


def test_labels_are_compared_by_value(tmp_path: Path) -> None:
    folder = dataset(tmp_path)
    for labels in ({"other": 0, "names": 1}, LABELS | {"ignore": 255}):
        assert read_split(folder, spatial_dims=2, in_channels=1, labels=labels)["validation"]


def test_both_forms_of_declared_labels() -> None:
    expected = {"background": 0, "cell": 2}
    assert dataset_labels({"labels": {"2": "cell", "0": "background"}}, Path("d")) == expected
    assert dataset_labels({"labels": {"cell": 2, "background": 0}}, Path("d")) == expected
    assert dataset_labels({}, Path("d")) == {}


@given(
    subjects=st.dictionaries(st.text("abc123", min_size=1, max_size=4), st.integers(0, 8), min_size=9),
    folds=st.integers(2, 5),
    seed=st.integers(0, 99),
)
def test_no_subject_is_in_two_folds(subjects: dict[str, int], folds: int, seed: int) -> None:
    subject_of = {case: str(subject) for case, subject in subjects.items()}
    sizes = [list(subject_of.values()).count(subject) for subject in set(subject_of.values())]
    if len(sizes) < folds:
        with pytest.raises(InputError, match=f"{folds} folds cannot be made of {len(sizes)} subjects"):
            assign_folds(subject_of, folds, seed, subject_of)
        return
    fold_of = assign_folds(subject_of, folds, seed, subject_of)
    assert fold_of.keys() == subject_of.keys()
    assert set(fold_of.values()) == set(range(folds))
    for subject in set(subject_of.values()):
        assert len({fold_of[case] for case in subject_of if subject_of[case] == subject}) == 1
    counts = [list(fold_of.values()).count(fold) for fold in range(folds)]
    assert max(counts) - min(counts) <= max(sizes)


@given(number=st.integers(2, 40), folds=st.integers(2, 6), seed=st.integers(0, 9))
def test_folds_of_single_cases_are_even_and_do_not_depend_on_order(
    number: int, folds: int, seed: int
) -> None:
    if folds > number:
        return
    cases = [f"case{n}" for n in range(number)]
    fold_of = assign_folds(cases, folds, seed)
    counts = [list(fold_of.values()).count(fold) for fold in range(folds)]
    assert max(counts) - min(counts) <= 1
    assert assign_folds(reversed(cases), folds, seed) == fold_of


def test_images_are_sorted_and_other_files_skipped(tmp_path: Path) -> None:
    for name in ("b.png", "a.tif"):
        picture(tmp_path / name)
    for name in (".DS_Store", "notes.txt", "dataset.json"):
        (tmp_path / name).write_text("x")
    found = read_images(tmp_path, spatial_dims=2, in_channels=1)
    assert found.cases == [
        {"image": str(tmp_path / "a.tif"), "case": "a"},
        {"image": str(tmp_path / "b.png"), "case": "b"},
    ]
    assert found.problems == []
    found.finish()


def test_images_of_a_section(tmp_path: Path) -> None:
    folder = dataset(tmp_path)
    (folder / "splits.json").write_text(json.dumps({"train": ["g", "a"], "val": ["b"], "test": ["c", "f"]}))
    (folder / "images/f.png").write_text("x")
    found = read_images(folder, spatial_dims=2, in_channels=1, section="testing")
    assert found.cases == [{"image": str(folder / "images/c.png"), "case": "c"}]
    with pytest.raises(InputError, match=r"^1 of 2 images were not segmented: f;"):
        found.finish()
    with pytest.raises(InputError, match=r"section is 'test', which holds no case; .*set --section"):
        read_images(folder, spatial_dims=2, in_channels=1, section="test")
    with pytest.raises(InputError, match=r"has no dataset\.json"):
        read_images(folder / "images", spatial_dims=2, in_channels=1, section="testing")


def test_section_of_a_fold_is_that_of_the_training(tmp_path: Path) -> None:
    folder = dataset(tmp_path)
    for fold in (0, 2):
        validation = ids(read_split(folder, **SETTINGS, fold=fold, seed=3))["validation"]
        found = read_images(folder, spatial_dims=2, in_channels=1, section="validation", fold=fold, seed=3)
        assert "".join(case["case"] for case in found.cases) == validation


def test_bad_images_are_left_out_and_told_at_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    picture(tmp_path / "good.png")
    picture(tmp_path / "colour.png", mode="RGB")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:60])
    (tmp_path / "scan.mha").write_text("x")
    found = read_images(tmp_path, spatial_dims=2, in_channels=1)
    assert [case["case"] for case in found.cases] == ["good"]
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert errors == [problem.sentence() for problem in found.problems]
    assert "found a colour picture" in errors[0]
    with pytest.raises(
        InputError, match=r"^3 of 4 images were not segmented: colour, cut, scan.mha; the others are"
    ):
        found.finish()


def test_no_sound_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(InputError, match=r"a\.png: found an empty file"):
        read_images(tmp_path, spatial_dims=2, in_channels=1)
    (tmp_path / "b.png").touch()
    with pytest.raises(InputError, match=r"^None of the 2 images"):
        read_images(tmp_path, spatial_dims=2, in_channels=1)


def test_channel_files_are_grouped(tmp_path: Path) -> None:
    for name in ("b_0000", "b_0001", "a_0001", "a_0000", "short_0000"):
        picture(tmp_path / f"{name}.png")
    found = read_images(tmp_path, spatial_dims=2, in_channels=2)
    assert found.cases == [
        {"image": [str(tmp_path / f"{name}_000{channel}.png") for channel in range(2)], "case": name}
        for name in "ab"
    ]
    with pytest.raises(InputError, match="1 of 3 images were not segmented: short"):
        found.finish()


def test_one_channel_names(tmp_path: Path) -> None:
    picture(tmp_path / "a_0000.png")
    assert read_images(tmp_path, spatial_dims=2, in_channels=1).cases[0]["case"] == "a"
    picture(tmp_path / "a_0001.png")  # now they are frames of a series
    frames = read_images(tmp_path, spatial_dims=2, in_channels=1).cases
    assert [case["case"] for case in frames] == ["a_0000", "a_0001"]


def test_images_that_cannot_be_told_apart(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "a.tif")
    with pytest.raises(InputError, match=r"a\.png, .*a\.tif have the same case id"):
        read_images(tmp_path, spatial_dims=2, in_channels=1)


def test_colour_pictures_with_numbers_are_frames(tmp_path: Path) -> None:
    """Not the channels of one case, whatever the network takes."""
    for number in range(3):
        picture(tmp_path / f"frame_{number:04}.png", mode="RGB")
    found = group_channels(named_images(tmp_path, ""), 3)
    assert [case["case"] for case in found] == ["frame_0000", "frame_0001", "frame_0002"]


def test_channels_of_a_name_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a_0000", "a_0001", "b_0000", "b_0001"):
        picture(tmp_path / f"{name}.png")
    with caplog.at_level("INFO"):
        assert len(group_channels(named_images(tmp_path, ""), 2)) == 2
    assert "4 files are taken for the channels of 2 cases, by their names" in caplog.text
    caplog.clear()
    picture(tmp_path / "b_0002.png")
    with caplog.at_level("INFO"):
        assert len(group_channels(named_images(tmp_path, ""), 2)) == 5
    assert not caplog.records


def test_a_folder_for_each_image(tmp_path: Path) -> None:
    for name in ("s0000", "s1.2"):
        picture(tmp_path / name / "ct.png")
        (tmp_path / name / "about.json").touch()
    (tmp_path / ".cache").mkdir()
    (tmp_path / "dataset.json").touch()
    found = read_images(tmp_path, spatial_dims=2, in_channels=1)
    assert [(case["case"], case["image"]) for case in found.cases] == [
        ("s0000", str(tmp_path / "s0000/ct.png")),
        ("s1.2", str(tmp_path / "s1.2/ct.png")),
    ]
    picture(tmp_path / "s0000/seg.png")
    with pytest.raises(InputError, match=r"dataset_dir: .*s0000 holds 2 images; .* with --section"):
        read_images(tmp_path, spatial_dims=2, in_channels=1)


def test_what_is_called_like_an_image_and_is_none(tmp_path: Path) -> None:
    """Links to nothing, folders and pointers are told, not passed over."""
    picture(tmp_path / "ok.png")
    (tmp_path / "lost.png").symlink_to("../annex/objects/nowhere")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "fetched.png").symlink_to("ok.png")
    (tmp_path / "pointer.png").write_text("/annex/objects/MD5E-s12--0.png\n")
    (tmp_path / ("x" * 220 + ".png")).symlink_to("ok.png")
    (tmp_path / ".hidden.png").touch()
    found = read_images(tmp_path, spatial_dims=2, in_channels=1)
    assert [case["case"] for case in found.cases] == ["fetched", "ok"]
    said = {problem.case: problem.found for problem in found.problems}
    assert said.pop("x" * 220) == f"the case id {'x' * 20}... of 220 bytes"
    assert said == {
        "folder": "a folder",
        "lost": "a link to ../annex/objects/nowhere, which is not there",
        "pointer": "a git-annex pointer, not the image itself",
    }
    with pytest.raises(InputError, match="4 of 6 images were not segmented"):
        found.finish()


def test_names_as_people_have_them(tmp_path: Path) -> None:
    """Ids are the names without the suffix, with accents in one form."""
    for name in ("v1.2_image", "a.b.c.nii", "two words", "Cafe\u0301", "1.2.840.5", "\u5f71"):
        picture(tmp_path / f"{name}.png")
    found = read_images(tmp_path, spatial_dims=2, in_channels=1)
    assert {case["case"]: Path(case["image"]).name for case in found.cases} == {
        "v1.2_image": "v1.2_image.png",
        "a.b.c.nii": "a.b.c.nii.png",
        "two words": "two words.png",
        "Caf\u00e9": "Cafe\u0301.png",
        "1.2.840.5": "1.2.840.5.png",
        "\u5f71": "\u5f71.png",
    }
    picture(tmp_path / "Two Words.png")
    with pytest.raises(InputError, match="have the same case id, or ids that some file system takes for one"):
        read_images(tmp_path, spatial_dims=2, in_channels=1)


def test_paths_of_a_list_as_people_write_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, folder = tmp_path / "home", tmp_path / "data"
    monkeypatch.setenv("HOME", str(home))
    for path in (home / "a.png", folder / "sub/b.png", folder / "Cafe\u0301.png", folder / "~d.png"):
        picture(path)
    listed = ["~/a.png", ".\\sub\\b.png", "Caf\u00e9.png", "~d.png", str(folder / "sub/b.png"), "C:\\e.png"]
    describe(folder, training=[{"image": path, "case": f"c{n}"} for n, path in enumerate(listed)])
    described = json.loads((folder / "dataset.json").read_text())
    read = [Path(case["image"]) for case in read_entries(described, folder / "dataset.json")["training"]]
    expected = ["sub/b.png", "Cafe\u0301.png", "~d.png", "sub/b.png", "C:\\e.png"]
    assert read == [home / "a.png", *(folder / path for path in expected)]


def test_ids_with_accents_in_either_form(tmp_path: Path) -> None:
    listed = [{"image": f"{n}.png", "case": case} for n, case in enumerate(["Cafe\u0301", "b"])]
    describe(tmp_path, training=listed)
    (tmp_path / "splits.json").write_text(json.dumps({"train": ["Caf\u00e9"], "val": ["b"]}))
    assert sections(tmp_path)["training"][0]["image"] == str(tmp_path / "0.png")


@pytest.mark.parametrize(
    "entry", ["{}", '{"image": 5}', '{"image": []}', '{"image": "a", "label": [1]}', '{"image": ["a", 1]}']
)
def test_entries_that_are_none(entry: str, tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(f'{{"training": [{entry}]}}')
    with pytest.raises(InputError, match="an entry under 'training' without an image"):
        sections(tmp_path)


def test_two_files_of_one_channel_are_no_two_channels(tmp_path: Path) -> None:
    picture(tmp_path / "a_0000.png")
    picture(tmp_path / "a_0000.tif")
    with pytest.raises(InputError, match=r"a_0000\.png, .*a_0000\.tif have the same case id"):
        read_images(tmp_path, spatial_dims=2, in_channels=2)


def test_folders_without_images(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no folder"):
        read_images(tmp_path / "none", spatial_dims=2, in_channels=1)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match="holds no images"):
        read_images(tmp_path, spatial_dims=2, in_channels=1)
    (tmp_path / "imagesTs").mkdir()
    with pytest.raises(InputError, match=r"is a data set.*hand .*imagesTs"):
        read_images(tmp_path, spatial_dims=2, in_channels=1)


def test_finish_names_twenty_at_most() -> None:
    from scripts.data.checks import Problem

    problems = [Problem(f"c{n:02}", "f", "x", "r", "f") for n in range(25)]
    with pytest.raises(InputError, match=r"25 of 25 images .*c19 and 5 more; the others"):
        InferenceCases([], problems).finish()


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data sets are absent")
def test_hippocampus() -> None:
    labels = {"background": 0, "anterior": 1, "posterior": 2}
    folder = DATA / "msd_task04_hippocampus"
    split = read_split(folder, spatial_dims=3, in_channels=1, labels=labels)
    assert {name: len(cases) for name, cases in split.items()} == {
        "training": 180,
        "validation": 30,
        "testing": 50,
    }
    listed = json.loads((folder / "splits.json").read_text())
    assert [case["case"] for case in split["testing"]] == listed["test"]


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data sets are absent")
def test_planted_images() -> None:
    found = read_images(DATA / "bad_inputs/hippocampus_planted/imagesTr", spatial_dims=3, in_channels=1)
    assert [case["case"][-3:] for case in found.cases] == ["003", "011", "118", "210"]
    found.finish()


def test_cases_of_names_the_sections_that_hold_cases():
    split = {"training": [{"case": "a"}], "validation": [{"case": "b"}], "testing": []}
    assert cases_of(split, "validation") == [{"case": "b"}]
    with pytest.raises(InputError, match="holds no case; training and validation hold"):
        cases_of(split, "testing")


@pytest.mark.parametrize("pair", [("A", "a"), ("caf\u00e9", "cafe\u0301"), ("a/b", "a_b")])
def test_names_that_some_file_system_takes_for_one(tmp_path, pair):
    entries = [{"image": f"{i}.png", "label": f"{i}.png", "case": case} for i, case in enumerate(pair)]
    (tmp_path / "dataset.json").write_text(json.dumps({"training": entries}))
    with pytest.raises(InputError, match="their results would have one name"):
        sections(tmp_path)


def test_name_that_no_file_can_have(tmp_path):
    entries = [{"image": "a.png", "label": "a.png", "case": "x" * 300}]
    (tmp_path / "dataset.json").write_text(json.dumps({"training": entries}))
    with pytest.raises(InputError, match=r"the case id xxxxx.*of 300 bytes; .* has room for 200"):
        sections(tmp_path)


def test_results_beside_their_images_are_no_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where `output_dir` was the folder of the images; what is only called so is an image."""
    results = ("a_seg.png", "a_prob.nii.gz", "a_seg_seg.png", "a_spread.png")
    for name in ("a.png", *results, "b_seg.png", "c_segment.png"):
        (tmp_path / name).touch()
    found = without_results(named_images(tmp_path, ""))
    assert [file.name for file in found] == ["a.png", "b_seg.png", "c_segment.png"]
    left_out = "a_prob.nii.gz, a_seg.png, a_seg_seg.png, a_spread.png"
    assert f"left out, as results of the images beside them: {left_out}" in caplog.text


def test_results_beside_channel_files_do_not_part_them(tmp_path: Path) -> None:
    for name in ("a_0000.png", "a_0001.png", "a_seg.png"):
        picture(tmp_path / name)
    (case,) = read_images(tmp_path, spatial_dims=2, in_channels=2, reader="PILReader").cases
    assert (case["case"], len(case["image"])) == ("a", 2)


def test_images_to_learn_from_without_labels(tmp_path: Path) -> None:
    """Of a folder a share validates; of a data set what it says, without labels and testing cases."""
    folder = dataset(tmp_path)
    kind = {"spatial_dims": 2, "in_channels": 1}
    split = split_images(folder / "images", held_out=0.3, seed=1, **kind)
    assert {name: len(cases) for name, cases in split.items()} == {"training": 5, "validation": 2}
    assert sorted("".join(ids(split).values())) == list("abcdefg")
    assert split == split_images(folder / "images", held_out=0.3, seed=1, **kind)
    assert split != split_images(folder / "images", held_out=0.3, seed=2, **kind)
    listed = entries(folder)
    describe(folder, training=listed[:3], validation=listed[3:4], testing=listed[4:])
    for label in (folder / "labels").iterdir():
        label.unlink()
    split = split_images(folder, **kind)
    assert ids(split) == {"training": "abc", "validation": "d"}
    assert not any("label" in case for cases in split.values() for case in cases)


def test_one_bad_image_stops_no_learning_from_images(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = dataset(tmp_path)
    (folder / "images/b.png").write_bytes(b"none")
    kind = {"spatial_dims": 2, "in_channels": 1}
    split = split_images(folder / "images", held_out=0.3, seed=1, **kind)
    assert sorted("".join(ids(split).values())) == list("acdefg")
    assert "1 of 7 images are left out: b" in caplog.text
    assert "b.png" in caplog.text
    listed = entries(folder)
    describe(folder, training=listed[:3], validation=listed[3:4])
    assert ids(split_images(folder, **kind)) == {"training": "ac", "validation": "d"}
    describe(folder, training=listed[2:4], validation=listed[1:2])
    with pytest.raises(InputError, match=r"b\.png"):
        split_images(folder, **kind)


def test_images_to_learn_from_that_cannot_be(tmp_path: Path) -> None:
    kind = {"spatial_dims": 2, "in_channels": 1}
    picture(tmp_path / "images/a.png")
    with pytest.raises(InputError, match="holds one image; one to learn from and one to validate on"):
        split_images(tmp_path / "images", **kind)
    (tmp_path / "images/b.png").write_bytes(b"none")
    with pytest.raises(InputError, match=r"b\.png"):
        split_images(tmp_path / "images", **kind)
