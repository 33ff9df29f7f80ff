"""Segmentations and reports: written, read back by highdicom and by us, validated, or refused."""

from __future__ import annotations

import json
import logging
import resource
import shutil
import subprocess
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
import torch
from monai.data import MetaTensor
from pydicom import uid
from pydicom.sr.coding import Code

from scripts.dicom import SaveSegmentationd, Series, SeriesFinder, headers, read_segmentation
from scripts.dicom import segmentation as writing
from scripts.dicom.segmentation import make_segments, tell_missing_codes
from scripts.errors import Fault, InputError
from tests import dicom_phantom as phantom
from tests.commands import CONFIGS, written

LABELS = {"background": 0, "anterior": 1, "posterior": 7, "lesion": 300}
SEGMENTS = json.loads((CONFIGS / "inference.json").read_text(encoding="utf-8"))["segments"] | {
    "lesion": {
        "category": ["49755003", "SCT", "Morphologically Abnormal Structure"],
        "type": ["52988006", "SCT", "Lesion"],
    }
}
METADATA = CONFIGS / "metadata.json"


def saver(output: Path, **changed: Any) -> SaveSegmentationd:
    about = {"labels": LABELS, "segments": SEGMENTS, "metadata": METADATA, **changed}
    return SaveSegmentationd("pred", output, **about)


def label_map(series: Series, seed: int = 0) -> MetaTensor:
    """Random labels of every value on the grid of a series, as inference hands them over."""
    values = np.random.default_rng(seed).choice(list(LABELS.values()), series.shape)
    meta = {"filename_or_obj": str(series.path), "series_digest": series.digest}
    return MetaTensor(torch.from_numpy(values[None].astype(np.int32)), affine=series.affine, meta=meta)


def save(images: list[pydicom.Dataset], folder: Path, **changed: Any) -> tuple[Series, np.ndarray]:
    """Write images and random labels of them; the series, and its slices' labels, (N, rows, columns)."""
    series = SeriesFinder().open(phantom.write(images, folder / "study"))
    pred = label_map(series)
    saver(folder / "out", **changed)({"pred": pred})
    return series, series.slices_of(pred[0].numpy())


def files(folder: Path) -> tuple[Path, Path, Path]:
    """Segmentation, structured report and JSON below a folder."""
    (seg,), (report,), (plain,) = (
        folder.glob(f"out/*_{end}") for end in ("seg.dcm", "report.dcm", "report.json")
    )
    return seg, report, plain


def odd(name: str, multi: bool) -> list[pydicom.Dataset]:
    """Images with an oddity of geometry or values, twice, compressed, or as frames of one file."""
    images, _ = phantom.make_odd("oblique" if name in ("twice", *COMPRESSED) else name)
    if name == "twice":
        images += images[2:4]
    if multi:
        images = [phantom.multi_frame(images)]
    if name in COMPRESSED:
        for image in images:
            image.compress(COMPRESSED[name])
    return images


COMPRESSED = {"rle": uid.RLELossless, "jpegls": uid.JPEGLSLossless}
ODD = [(name, False) for name in (*phantom.odd_series(), "twice", *COMPRESSED)]
ODD += [(name, True) for name in ("plain", "missing_tilted", "uneven", "jpegls")]
each_oddity = pytest.mark.parametrize(("name", "multi"), ODD)


@each_oddity
def test_every_frame_lies_where_its_slice_lies(name: str, multi: bool, tmp_path: Path) -> None:
    """By the attributes of the file alone: position and source of each frame, and its pixels."""
    series, truth = save(odd(name, multi), tmp_path)
    seg = pydicom.dcmread(files(tmp_path)[0])
    assert seg.NumberOfFrames == 3 * len(series.slices)
    pixels = seg.pixel_array
    seen = set()
    for frame, group in zip(pixels, seg.PerFrameFunctionalGroupsSequence, strict=True):
        number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        position = np.array(group.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
        source = group.DerivationImageSequence[0].SourceImageSequence[0]
        apart = [np.abs(each.position - position).max() for each in series.slices]
        index = int(np.argmin(apart))
        assert apart[index] < 1e-6
        here = series.slices[index]
        assert source.ReferencedSOPInstanceUID == here.instance
        assert not multi or source.ReferencedFrameNumber == here.frame + 1
        assert np.array_equal(frame, truth[index] == list(LABELS.values())[number])
        seen.add((number, index))
    assert len(seen) == seg.NumberOfFrames
    orientation = seg.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient
    assert np.allclose(np.array(orientation, dtype=float).reshape(2, 3), series.slices[0].directions)
    spacing = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
    assert tuple(map(float, spacing)) == series.slices[0].spacing[::-1]


@each_oddity
def test_read_back_it_is_the_same(name: str, multi: bool, tmp_path: Path) -> None:
    series, truth = save(odd(name, multi), tmp_path)
    back = read_segmentation(files(tmp_path)[0], tmp_path / "study", LABELS)
    assert np.array_equal(back, truth.T)
    assert sorted(np.unique(back)) == sorted(LABELS.values())
    assert back.shape == (*series.shape[:2], len(series.slices))


@pytest.mark.parametrize("name", ["plain", "oblique", "signed"])
def test_highdicom_puts_it_at_the_same_place(name: str, tmp_path: Path) -> None:
    """As a volume in the patient's space, voxel for voxel."""
    series, truth = save(odd(name, False), tmp_path)
    volume = hd.seg.segread(files(tmp_path)[0]).get_volume(combine_segments=True)
    values = np.array(list(LABELS.values()))[volume.array]  # (slice, row, column)
    voxels = np.argwhere(np.ones(values.shape, bool))
    lps = voxels @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    ours = np.linalg.inv(series.affine) @ np.diag([-1.0, -1, 1, 1]) @ np.c_[lps, np.ones(len(lps))].T
    assert np.allclose(ours[:3], np.rint(ours[:3]), atol=1e-4)
    x, y, z = np.rint(ours[:3]).astype(int)
    assert np.array_equal(values.ravel(), truth[z, y, x])


@each_oddity
def test_validators_find_no_error(name: str, multi: bool, tmp_path: Path) -> None:
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed; it is in the Debian package dicom3tools")
    save(odd(name, multi), tmp_path)
    for file in files(tmp_path)[:2]:
        done = subprocess.run(["dciodvfy", file], capture_output=True, text=True, check=False)
        said = (done.stdout + done.stderr).splitlines()
        assert {"Segmentation", "ComprehensiveSR"} & set(said), "it did not know the kind of object"
        assert [line for line in said if line.startswith("Error")] == []


def test_codes_and_algorithm(tmp_path: Path) -> None:
    series, _ = save(odd("plain", False), tmp_path)
    seg = pydicom.dcmread(files(tmp_path)[0])
    about = json.loads(METADATA.read_text(encoding="utf-8"))
    found = []
    for segment in seg.SegmentSequence:
        kind = segment.SegmentedPropertyTypeCodeSequence[0]
        modifier = kind.get("SegmentedPropertyTypeModifierCodeSequence", [None])[0]
        category = segment.SegmentedPropertyCategoryCodeSequence[0]
        found.append(
            (
                segment.SegmentNumber,
                segment.SegmentLabel,
                category.CodeValue,
                kind.CodeValue,
                modifier and modifier.CodeMeaning,
            )
        )
        assert segment.SegmentAlgorithmType == "AUTOMATIC"
        (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
        assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == (about["name"], about["version"])
    assert found == [
        (1, "anterior", "91723000", "5366008", "Anterior"),
        (2, "posterior", "91723000", "5366008", "Posterior"),
        (3, "lesion", "49755003", "52988006", None),
    ]
    (referenced,) = seg.ReferencedSeriesSequence
    named = {item.ReferencedSOPInstanceUID for item in referenced.ReferencedInstanceSequence}
    assert named == {each.instance for each in series.slices}
    source = pydicom.dcmread(series.slices[0].source.path)
    for keyword in ("PatientName", "PatientID", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert seg[keyword].value == source[keyword].value, "it must be filed in the study it was made on"
    assert seg.SoftwareVersions == about["version"]


@pytest.mark.parametrize("name", ["plain", "tilted_oblique", "missing", "uneven"])
def test_report_has_the_volumes(name: str, tmp_path: Path) -> None:
    """Counted by brute force, for each class and slice, from positions and pixels."""
    images = odd(name, False)
    series, truth = save(images, tmp_path)
    normal = np.cross(*series.slices[0].directions)
    at = [float(np.array(image.ImagePositionPatient, dtype=float) @ normal) for image in images]
    expected = {}
    for label, value in list(LABELS.items())[1:]:
        volume = 0.0
        for index, plane in enumerate(truth):
            before = at[index] - at[index - 1] if index else at[1] - at[0]
            after = at[index + 1] - at[index] if index + 1 < len(at) else before
            volume += (plane == value).sum() * 0.8 * 1.3 * (before + after) / 2
        expected[label] = volume / 1000
    seg, report, plain = files(tmp_path)
    told = json.loads(plain.read_text(encoding="utf-8"))
    assert {part["name"]: part["volume_ml"] for part in told["segments"]} == pytest.approx(expected, rel=1e-6)
    if name in ("plain", "tilted_oblique"):
        voxel = abs(np.linalg.det(series.affine[:3, :3])) / 1000
        counts = {label: (truth == value).sum() * voxel for label, value in LABELS.items()}
        assert all(expected[label] == pytest.approx(counts[label]) for label in expected)
    content = hd.sr.srread(report)
    groups = content.content.get_volumetric_roi_measurement_groups()
    segmentation = pydicom.dcmread(seg)
    for group, (label, volume) in zip(groups, expected.items(), strict=True):
        (measured,) = group.get_measurements()
        assert (measured.name.value, measured.unit.value) == ("118565006", "mL")
        assert measured.value == pytest.approx(volume, rel=1e-6)
        assert group.referenced_segment.referenced_sop_instance_uid == segmentation.SOPInstanceUID
        (number,) = group.referenced_segment.referenced_segment_numbers
        segment = segmentation.SegmentSequence[number - 1]
        assert (segment.SegmentLabel, segment.TrackingUID) == (label, group.tracking_uid)
    assert content.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    evidence = {str(uid) for *_, uid, _ in content.get_evidence()}
    assert evidence == {segmentation.SOPInstanceUID, *(each.instance for each in series.slices)}


def test_missing_slices_get_no_frame_and_are_told(tmp_path: Path) -> None:
    series, _ = save(odd("missing", False), tmp_path)
    seg, _, plain = files(tmp_path)
    assert series.shape[2] == 11
    assert pydicom.dcmread(seg).NumberOfFrames == 3 * 8
    assert json.loads(plain.read_text())["notes"] == ["3 slices are missing and are interpolated"]


def test_an_empty_segmentation(tmp_path: Path) -> None:
    series = SeriesFinder().open(phantom.write(odd("plain", False), tmp_path / "study"))
    pred = label_map(series)
    saver(tmp_path / "out")({"pred": MetaTensor(torch.zeros_like(pred), meta=pred.meta)})
    seg, _, plain = files(tmp_path)
    assert not read_segmentation(seg, tmp_path / "study", LABELS).any()
    assert {part["volume_ml"] for part in json.loads(plain.read_text())["segments"]} == {0.0}


def test_empty_frames_say_that_a_slice_was_looked_at(tmp_path: Path) -> None:
    series = SeriesFinder().open(phantom.write(odd("plain", False), tmp_path / "study"))
    pred = MetaTensor(torch.zeros_like(label_map(series)), meta=label_map(series).meta)
    pred[0, 2, 3, 4] = 1
    saver(tmp_path / "out")({"pred": pred})
    assert pydicom.dcmread(files(tmp_path)[0]).NumberOfFrames == 3 * 8


@pytest.mark.parametrize("multi", [False, True], ids=["single", "multi"])
def test_one_segment(multi: bool, tmp_path: Path) -> None:
    """Of which highdicom says once, for all frames, which it is; also a name beyond ASCII."""
    labels, name = {"background": 0, "Läsion 病変": 300}, "Läsion 病変"
    study = phantom.write(odd("oblique", multi), tmp_path / "study")
    series = SeriesFinder().open(study)
    pred = label_map(series)
    pred[pred != 300] = 0
    truth = pred[0].numpy() == 300
    saver(tmp_path / "out", labels=labels, segments={name: SEGMENTS["lesion"]})({"pred": pred})
    seg, report, plain = files(tmp_path)
    made = pydicom.dcmread(seg)
    assert made.NumberOfFrames == 8
    assert [segment.SegmentLabel for segment in made.SegmentSequence] == [name]
    numbers = {
        group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        for group in (*made.SharedFunctionalGroupsSequence, *made.PerFrameFunctionalGroupsSequence)
        if "SegmentIdentificationSequence" in group
    }
    assert numbers == {1}
    for frame, group in zip(made.pixel_array, made.PerFrameFunctionalGroupsSequence, strict=True):
        position = np.array(group.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
        index = int(np.argmin([np.abs(each.position - position).max() for each in series.slices]))
        assert np.array_equal(frame.T, truth[..., index])
    assert np.array_equal(read_segmentation(seg, study, labels) == 300, truth)
    (part,) = json.loads(plain.read_text(encoding="utf-8"))["segments"]
    assert (part["name"], part["pixels"]) == (name, truth.sum())
    (group,) = hd.sr.srread(report).content.get_volumetric_roi_measurement_groups()
    assert group.get_measurements()[0].value == pytest.approx(truth.sum() * 0.8 * 1.3 * 2 / 1000)
    referred = [str(item.referenced_sop_instance_uid) for item in group.referenced_segment[1:]]
    assert referred == list(dict.fromkeys(each.instance for each in series.slices))
    assert list(group.referenced_segment.referenced_segment_numbers) == [1]


def test_segmentations_that_do_not_say_one_label_a_pixel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As others may have written them: segments that overlap; images that share their UID."""
    save(odd("plain", False), tmp_path / "overlap")
    seg = pydicom.dcmread(files(tmp_path / "overlap")[0])
    seg.PixelData = b"\xff" * len(seg.PixelData)
    seg.save_as(files(tmp_path / "overlap")[0])
    images = odd("plain", False)
    for image in images:
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    monkeypatch.setattr(headers, "_require_told_apart", lambda *_: None)
    save(images, tmp_path / "shared")
    for name in ("overlap", "shared"):
        with pytest.raises(InputError, match="does not say one label for each pixel of the images in"):
            read_segmentation(files(tmp_path / name)[0], tmp_path / name / "study", LABELS)


def test_padding_is_told(tmp_path: Path) -> None:
    images = odd("signed", False)
    for image in images:
        image.add_new("PixelPaddingValue", "SS", int(image.pixel_array[0, 0]))
    series = SeriesFinder().open(phantom.write(images, tmp_path / "study"))
    pred = label_map(series)
    pred.meta["padding_share"] = series.load()[1]
    saver(tmp_path / "out")({"pred": pred})
    (note,) = json.loads(files(tmp_path)[2].read_text(encoding="utf-8"))["notes"]
    assert note.endswith("of the pixels are padding and count as the lowest intensity that is none")


def test_zip_in_and_segmentation_out(tmp_path: Path) -> None:
    file = phantom.pack(phantom.write(odd("tilted", False), tmp_path / "plain"), tmp_path / "study.zip")
    series = SeriesFinder().open(file)
    pred = label_map(series)
    saver(tmp_path / "out")({"pred": pred})
    back = read_segmentation(files(tmp_path)[0], file, LABELS)
    assert np.array_equal(back, pred[0].numpy())


def identity_in(text: str) -> list[str]:
    return [part for part in phantom.IDENTITY if part in text]


@pytest.mark.parametrize(("sex", "born"), [("O", phantom.BORN), ("unknown", f"{phantom.BORN} or so")])
def test_nobody_is_named(
    sex: str,
    born: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    """Not in the log, the warnings, the JSON, the content of the report or the name of a file."""
    images = odd("missing", False)
    for image in images:
        image.PatientSex = sex  # highdicom refuses what is no sex
        image.PatientBirthDate = born  # pydicom cites what is no date
        image.PatientID = phantom.IDENTIFIER + "0" * 64  # too long, of which pydicom warns
    folder = phantom.write(images, tmp_path / "study" / phantom.NAME, names=phantom.NAME + "{:04d}")
    recwarn.clear()
    caplog.clear()
    capfd.readouterr()  # the phantom was written aloud, where an earlier test left a handler
    with caplog.at_level(logging.DEBUG):
        series = SeriesFinder().open(folder.parent)
        series.read()
        saver(tmp_path / "out")({"pred": label_map(series)})
    _, report, plain = files(tmp_path)
    printed = "".join(capfd.readouterr())
    assert "anterior" in caplog.text
    assert identity_in(caplog.text + printed + "".join(str(each.message) for each in recwarn)) == []
    assert identity_in(plain.read_text(encoding="utf-8")) == []
    assert identity_in("".join(written(tmp_path / "out"))) == []
    assert identity_in(str(pydicom.dcmread(report).ContentSequence)) == []
    assert identity_in(str(pydicom.dcmread(report)))  # the header does, or the test could not fail
    assert logging.getLogger("highdicom").level == logging.NOTSET


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    """The system refuses to write more than 10 kB into a file: all three files or none."""
    save(odd("plain", False), tmp_path)
    before = {name: (tmp_path / "out" / name).read_bytes() for name in written(tmp_path / "out")}
    assert max(map(len, before.values())) > 10_000
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    series = SeriesFinder().open(tmp_path / "study")
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(InputError, match=r"_seg\.dcm could not be written, as the disk of .* is full"):
            saver(tmp_path / "out")({"pred": label_map(series, seed=1)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {name: (tmp_path / "out" / name).read_bytes() for name in written(tmp_path / "out")} == before


def test_images_that_go_before_the_segmentation_is_written(tmp_path: Path) -> None:
    series = SeriesFinder().open(phantom.write(odd("plain", False), tmp_path / "study"))
    pred, save_it = label_map(series), saver(tmp_path / "out")
    save_it.finder.look(tmp_path / "study")
    (tmp_path / "study" / "IM0003").unlink()
    with pytest.raises(InputError, match="a file that is gone or has changed"):
        save_it({"pred": pred})
    others, _ = phantom.make_odd("plain", seed=1)
    shutil.rmtree(tmp_path / "study")
    phantom.write(others, tmp_path / "study")
    with pytest.raises(Fault, match="found no series of this name beside series_"):  # others can be done
        saver(tmp_path / "out")({"pred": pred})
    shutil.rmtree(tmp_path / "study")
    with pytest.raises(InputError, match="is not there: hand a folder"):
        saver(tmp_path / "out")({"pred": pred})
    assert not (tmp_path / "out").exists()


def test_a_segmentation_whose_source_is_gone(tmp_path: Path) -> None:
    images = odd("plain", False)
    save(images, tmp_path)
    seg, report, _ = files(tmp_path)
    others, _ = phantom.make_odd("plain", seed=1)
    for place, sentence in (
        (tmp_path / "nowhere" / "study", "the source of .*, is not there: put it back"),
        (phantom.write(others, tmp_path / "others"), "refers to 8 images, 8 of which are not in"),
        (phantom.write(images[:6], tmp_path / "part"), "refers to 8 images, 2 of which are not in"),
        (seg.parent, r"holds no DICOM images .*Segmentation Storage \(1\)"),
    ):
        with pytest.raises(InputError, match=sentence) as caught:
            read_segmentation(seg, place, LABELS)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="is no DICOM Segmentation that can be read"):
        read_segmentation(report, tmp_path / "study", LABELS)
    with pytest.raises(InputError, match="has a segment, number 3, whose label is none of background, an"):
        read_segmentation(seg, tmp_path / "study", {"background": 0, "anterior": 1, "posterior": 7})


def test_its_series_is_found_among_several(tmp_path: Path) -> None:
    images = odd("plain", False)
    _, truth = save(images, tmp_path)
    others, _ = phantom.make_odd("plain", seed=1)
    phantom.write(others, tmp_path / "study")
    assert np.array_equal(read_segmentation(files(tmp_path)[0], tmp_path / "study", LABELS), truth.T)


def test_label_maps_that_do_not_fit(tmp_path: Path) -> None:
    series = SeriesFinder().open(phantom.write(odd("plain", False), tmp_path / "study"))
    pred = label_map(series)
    moved = pred.clone()
    moved.affine = moved.affine + torch.eye(4, dtype=moved.affine.dtype) * 0.1
    numbered = pred.clone()
    numbered[0, 0, 0, 0] = 5
    for bad, sentence in (
        (pred[..., 1:], r"has the grid \(7, 6, 8\) and its label map \(7, 6, 7\)"),
        (moved, "0.1 apart in the affine: bring it back with Invertd"),
        (numbered, "the label value 5, which labels does not declare"),
        (torch.cat([pred, pred]), "has 2 channels where a class map has one"),
    ):
        with pytest.raises(InputError, match=sentence):
            saver(tmp_path / "out")({"pred": bad})
    assert not (tmp_path / "out").exists()


def coded(**changed: Any) -> dict[str, Any]:
    """The codes with others for the first label."""
    return SEGMENTS | {"anterior": SEGMENTS["anterior"] | changed}


def test_a_label_without_codes_is_a_tissue(caplog: pytest.LogCaptureFixture) -> None:
    only = {"posterior": SEGMENTS["posterior"]}
    labels = {"background": 0, "bright": 1, "posterior": 2}
    bright, posterior = make_segments(labels, SEGMENTS)
    assert caplog.text == ""
    tell_missing_codes(labels, SEGMENTS)
    assert (bright.category, bright.type, bright.modifier) == (Code("85756007", "SCT", "Tissue"),) * 2 + (
        None,
    )
    assert "no codes for bright (it has some for anterior, lesion, which labels does not name)" in caplog.text
    assert posterior.type == make_segments({"background": 0, "posterior": 2}, only)[0].type


def test_settings_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for changed, sentence in (
        ({"segments": coded(type=["5366008", "SCT"])}, "segments has 'type'.* for 'anterior'; it is a list"),
        ({"segments": coded(modifier="Anterior")}, "segments has 'modifier': 'Anterior' for 'anterior'"),
        ({"segments": coded(kind=["1", "SCT", "x"])}, "has category, type, modifier, kind for 'anterior'"),
        (
            {"labels": {"background": 0, "x" * 65: 1}, "segments": {"x" * 65: SEGMENTS["anterior"]}},
            "64 characters at most",
        ),
        ({"metadata": tmp_path / "none.json"}, r"none\.json does not identify the algorithm"),
    ):
        with pytest.raises(InputError, match=sentence):
            saver(tmp_path, **changed)
    monkeypatch.setattr(writing, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"need highdicom.*pip install -r requirements-dicom\.txt"):
        saver(tmp_path)


def test_background_and_what_nobody_annotated_are_no_segments() -> None:
    codes = dict.fromkeys(("bone", "skin"), SEGMENTS["lesion"])
    segments = make_segments({"air": 3, "bone": 1, "ignore": 255, "skin": 2}, codes)
    assert [(each.name, each.value, each.number) for each in segments] == [("bone", 1, 1), ("skin", 2, 2)]
    assert len({each.tracking for each in segments}) == 2
