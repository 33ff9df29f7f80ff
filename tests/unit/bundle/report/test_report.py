"""The report of folders as commands leave them: whole, cut, without a truth, with names that try to run."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import bundle.report
import bundle.report.layers
import bundle.report.page
from bundle.report import words
from bundle.report.page import SCRIPT, VENDORED, as_script, vendored_script
from bundle.runs.compare import comparison, interval
from scripts.errors import InputError
from scripts.files import read_json, sha256, write_csv
from scripts.tables import number
from tests.commands import workbench
from tests.html_page import Page
from tests.report_folders import (
    BAD_CASE,
    BAD_CLASS,
    CASES,
    CONFIG,
    write_crossval,
    write_data,
    write_pictures,
    write_training,
    written,
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path)


@pytest.fixture
def crossval(data: Path, tmp_path: Path) -> Path:
    return write_crossval(data, tmp_path)


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[Path, Path]:
    return write_pictures(tmp_path)


def made(run: Path, *options: object) -> tuple[Page, str]:
    """The report of a run, and what the command said."""
    said = workbench("report", run, *options)
    assert (run / "report.html").is_file(), said
    return Page((run / "report.html").read_text(encoding="utf-8")), said


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross-validation with its report, which stays as it is."""
    folder = tmp_path_factory.mktemp("whole")
    data = write_data(folder)
    run = write_crossval(data, folder)
    made(run, "--dataset_dir", data)
    return run


@pytest.fixture(scope="module")
def page(whole: Path) -> Page:
    return Page((whole / "report.html").read_text(encoding="utf-8"))


def shown_case(page: Page) -> dict[str, Any]:
    """What the viewer gets."""
    (content,) = [text for given, text in page.scripts if given.get("id") == "viewer-data"]
    return json.loads(content)


def test_nothing_is_loaded_and_every_link_leads_somewhere(page: Page) -> None:
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)
    assert len(page.links) > 6
    assert page.sources
    assert all(source.startswith("data:") for source in page.sources)
    policy = page.meta["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "http" not in policy
    assert "unsafe-inline" not in policy.split("style-src")[0]
    run = [text for given, text in page.scripts if "type" not in given]
    for text in run:
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert len(run) == 3  # the viewer, ours, and that of the page


def test_every_number_is_that_of_the_table(page: Page, whole: Path) -> None:
    with (whole / "scores/scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    scores = [name for name in rows[0] if name not in ("case", "class")]
    by_score = {
        table.attributes["data-score"]: table for table in page.tables if "data-score" in table.attributes
    }
    assert sorted(by_score) == sorted(scores)
    subjects = {case: f"s{n // 2}" for n, case in enumerate(CASES)}
    for score, table in by_score.items():
        values: dict[str, dict[str, float]] = {}
        for row in rows:
            values.setdefault(row["class"], {})[row["case"]] = float(row[score] or math.nan)
        names = list(values)
        values["all classes"] = {case: np.nanmean([values[name][case] for name in names]) for case in CASES}
        records = {record["class"]: record for record in table.records()}
        assert list(records) == [BAD_CLASS, "outer", "all classes"]
        for name, column in values.items():
            known = {case: value for case, value in column.items() if not math.isnan(value)}
            low, high = interval(list(known.values()), [subjects[case] for case in known])
            assert records[name]["mean"] == number(score, float(np.mean(list(known.values()))))
            assert records[name]["95 % interval"] == f"{number(score, low)} to {number(score, high)}"
            assert records[name]["least"] == number(score, min(known.values()))
            assert records[name]["cases"] == str(len(known))
            fold = [value for case, value in known.items() if CASES.index(case) // 2 % 2 == 1]
            assert records[name]["fold 1"] == number(score, float(np.mean(fold)))
    (all_cases,) = [table for table in page.tables if table.caption == "Scores of each case"]
    found = {(record["case"], record["class"]): record for record in all_cases.records()}
    assert len(found) == len(rows)
    for row in rows:
        for score in scores:
            value = float(row[score] or math.nan)
            text = "–" if math.isnan(value) else number(score, value)
            assert found[row["case"], row["class"]][score] == text
    summary = page.texts["summary"]
    assert by_score["dice"].records()[-1]["mean"] in summary
    assert "5 cases of 3 subjects, each judged by the network that did not see it" in summary


def test_names_are_texts(page: Page) -> None:
    assert BAD_CASE in page.texts["scores"]
    assert BAD_CLASS in page.texts["scores"]
    assert "patches <b>in</b> a step" in page.texts["plan"]
    assert "CC0 <1.0>" in page.texts["how"]
    assert BAD_CASE in {case["id"] for case in shown_case(page)["cases"]}
    assert all("alert('x')" not in text for given, text in page.scripts if "type" not in given)


def test_what_was_set_by_hand_and_how_it_was_done(page: Page) -> None:
    (plan,) = [table for table in page.tables if table.caption == "Choices"]
    rows = {row[0]: row for row in plan.rows[1:]}
    batch = next(row for name, row in rows.items() if "batch_size" in name)
    assert batch[1].startswith("2")
    assert "set by hand; planned was 4" in batch[1]
    how = page.texts["how"]
    for part in (
        "3D network, U-Net (Ronneberger et al., 2015",
        "with 4 and 8 feature maps",
        "resampled to voxels of 1 x 1 x 2 mm",
        "trained on 3 cases in the first fold and validated on 2 cases",
        "random patches of 16 x 16 x 8 voxels, 2 in a step, for 3 epochs (0.8 minutes)",
        "AdamW with a learning rate of 0.002 and a weight decay of 0.01, which followed half a cosine",
        "By 2-fold cross-validation, 5 cases of 3 subjects",
        "unet-bundle 0.8.0 with MONAI 1.6.1 and PyTorch 2.13.0",
        "trained by version 0.8.0, and this report is made by",
    ):
        assert part in how, part


def test_the_viewer_has_the_worst_median_and_best(page: Page) -> None:
    content = shown_case(page)
    assert [case["role"] for case in content["cases"]] == ["worst", "median", "best"]
    assert content["cases"][2]["id"] == BAD_CASE  # which was found exactly
    assert "Dice 1.0000" in content["cases"][2]["said"]
    for case in content["cases"]:
        assert set(case["layers"]) == {"image", "prediction", "truth", "uncertainty"}
        assert all(0 < share < 1 for share in case["at"])
    assert "class" in page.texts["cases"] or BAD_CLASS in page.texts["cases"]


def test_a_report_keeps_within_its_size(
    whole: Path, crossval: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = (whole / "report.html").stat().st_size - 20_000
    monkeypatch.setattr(bundle.report.layers, "SHORT_AXIS", 4)
    monkeypatch.setattr(bundle.report.page, "SPARE", 0)
    monkeypatch.setattr(bundle.report.page, "MOST_BYTES", most)
    page, _ = made(crossval, "--dataset_dir", data)
    assert (crossval / "report.html").stat().st_size <= most
    assert "voxels along each long axis" in page.texts["cases"]


def test_a_run_that_was_cut_says_what_is_missing(crossval: Path, data: Path) -> None:
    for name in ("scores", "crossval.csv", "ensemble.json", "fold1/model.pt"):
        path = crossval / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_training(crossval / "fold0", 2)
    (crossval / "fold1/learning_curve.csv").unlink()
    page, said = made(crossval, "--dataset_dir", data)
    for sentence in (
        "fold 0: 2 of 3 epochs were trained; it was cut",
        "fold 1: no epoch is behind it",
        "the cases of the folds were not judged yet",
        "there is no ensemble",
    ):
        assert sentence in page.texts["summary"]
        assert sentence in said
    assert "curves" in page.texts
    assert "scores" not in page.texts
    assert [case["role"] for case in shown_case(page)["cases"]] == ["smallest", "median", "largest"]
    shutil.rmtree(crossval / "out_of_fold")
    page, _ = made(crossval)
    assert "cases" not in page.texts
    assert len(page.scripts) == 1


def test_a_training_alone(tmp_path: Path, crossval: Path) -> None:
    run = tmp_path / "run"
    write_training(run, 3)
    written(run / "checkpoints/last.pt", {})  # no checkpoint
    page, _ = made(run)
    assert "no case was judged" in page.texts["summary"]
    assert "as its checkpoint cannot be read" in page.texts["summary"]
    assert "Where the data lie is not written beside these results" in page.texts["how"]
    shutil.copytree(crossval / "scores", run / "evaluation")
    (run / "model.pt").unlink()
    page, said = made(run)
    assert "there are neither segmentations nor weights" in said
    assert "5 cases: Dice is" in page.texts["summary"]


def test_results_that_nobody_judged(pictures: tuple[Path, Path], tmp_path: Path) -> None:
    images, out = pictures
    config = {"spatial_dims": 2, "in_channels": 3, "labels": {"background": 0, "cell": 1}, "channels": [4]}
    objects = {"to_labels": [{"_target_": "scripts.transforms.WatershedInstancesd"}]}
    recipe = written(tmp_path / "r/inference.json", {**config, **objects})
    page, _ = made(out, "--dataset_dir", images, "--recipe", recipe)
    (found,) = [table for table in page.tables if table.section == "found"]
    assert [(row["case"], row["objects"], row["all objects, pixels"]) for row in found.records()] == [
        (f"p{n}", str(n + 1), str(70 * (n + 1))) for n in range(3)
    ]
    assert "Nobody has judged how well" in page.texts["summary"]
    assert "left" in page.texts["failures"]
    assert [(case["role"], case["id"]) for case in shown_case(page)["cases"]] == [
        ("smallest", "p0"),
        ("median", "p1"),
        ("largest", "p2"),
    ]
    layers = [source for source in page.sources if source.startswith("data:image/png")]
    assert len(layers) == 3 * 4  # image, prediction and uncertainty of each; and its picture
    page, said = made(out)  # without the images and the names of classes
    assert "is shown without its image" in said
    (found,) = [table for table in page.tables if table.section == "found"]
    assert found.rows[0] == ["case", "value 1, pixels", "value 2, pixels", "value 3, pixels"]
    assert "give --recipe" in page.texts["how"]


def test_files_of_other_commands_have_their_sections(crossval: Path) -> None:
    (crossval / "review.csv").write_text("case,why,score\n<b>b</b>,unsure,0.25\nc,small,\n", encoding="utf-8")
    (crossval / "calibrated").mkdir()
    Image.new("RGB", (40, 30)).save(crossval / "calibrated/reliability.png")
    (crossval / "why_b").mkdir()
    (crossval / "why_b/why.csv").write_text("method,half within\nocclusion,4.5\n", encoding="utf-8")
    page, _ = made(crossval)
    (asked,) = [table for table in page.tables if table.section == "why"]
    assert asked.rows == [["method", "half within"], ["occlusion", "4.5000"]]
    (review,) = [table for table in page.tables if table.section == "review"]
    assert review.rows == [["case", "why", "score"], ["<b>b</b>", "unsure", "0.2500"], ["c", "small", "–"]]
    assert "calibration" in page.texts
    assert "groups" not in page.texts


def test_groups_and_what_is_said_of_them(crossval: Path, tmp_path: Path) -> None:
    rows = [
        f"{case},{site}" for case, site in zip(CASES, ("<i>a</i>", "<i>a</i>", "b", "b", "b"), strict=True)
    ]
    (tmp_path / "sites.csv").write_text("\n".join(["case,site", *rows]), encoding="utf-8")
    workbench("groups", "--scores", crossval, "--attributes", tmp_path / "sites.csv", "--class", "outer")
    page, _ = made(crossval)
    (found,) = [table for table in page.tables if table.section == "groups"]
    assert [row[:2] for row in found.rows[1:]] == [["site", "<i>a</i>"]] * 3 + [["site", "b"]] * 3
    assert "site: no two groups have 5 subjects, so that nothing can be said" in page.texts["groups"]


def test_an_ensemble_is_told_as_what_a_user_runs(crossval: Path, tmp_path: Path) -> None:
    page, _ = made(crossval)
    assert "the mean of 2 networks, one of each fold; each is a 3D network" in page.texts["how"]
    assert "Probabilities were not calibrated, and nothing was cleaned." in page.texts["how"]
    learnt = written(tmp_path / "calibration.json", {"calibration": {"temperature": 1.25}})
    cleaned = {"threshold": None, "clean": {"outer": {"largest": True, "max_hole": 7}, BAD_CLASS: {}}}
    files = ["inference.json", str(learnt), str(written(tmp_path / "postprocessing.json", cleaned))]
    written(crossval / "ensemble.json", {"config_file": files})
    said = workbench("report", crossval, "--output", tmp_path / "shown.html")
    assert "open it" in said
    page = Page((tmp_path / "shown.html").read_text(encoding="utf-8"))
    for told in (
        "divided by a temperature (1.25)",
        "of outer the largest component alone was kept and holes of up to 7 voxels were filled",
        f"--output {tmp_path / 'shown.html'}",
    ):
        assert told in page.texts["how"]


def test_one_bad_file_leaves_the_others(crossval: Path, data: Path) -> None:
    (crossval / "out_of_fold/b_seg.nii.gz").write_bytes(b"no volume")
    (crossval / "out_of_fold/e_seg.nii.gz").unlink()
    page, said = made(crossval, "--dataset_dir", data)
    assert "no picture of e: its segmentation is not there" in said
    assert len(shown_case(page)["cases"]) == 2


@pytest.mark.parametrize(
    ("run", "told"),
    [
        ("nowhere", r"nowhere is no folder; RUN is what a command wrote"),
        ("empty", r"empty holds nothing to report; a run has crossval or data"),
        ("folds", r"scores\.csv cannot be read .*have it written again"),
        ("summary", r"summary\.json is no summary of scores"),
    ],
)
def test_what_is_no_run_is_refused(crossval: Path, tmp_path: Path, run: str, told: str) -> None:
    (tmp_path / "empty").mkdir()
    if run == "folds":
        (crossval / "scores/scores.csv").write_text("case,class,dice\nb,outer,much\n")
    if run == "summary":
        (crossval / "scores/summary.json").write_text("{}")
        run = "folds"
    assert re.search(told, workbench("report", tmp_path / run))
    assert not (tmp_path / run / "report.html").exists()


def test_arguments_are_looked_at_first(crossval: Path, tmp_path: Path) -> None:
    assert "does not end with .html" in workbench("report", crossval, "--output", tmp_path / "a.pdf")
    assert "is no folder; it has dataset.json" in workbench(
        "report", crossval, "--dataset_dir", tmp_path / "x"
    )
    assert "is no file; it is an inference.json" in workbench("report", crossval, "--recipe", tmp_path / "x")
    args = written(tmp_path / "args.json", {"config_file": ["configs/inference.json"]})
    assert "args.json is an args file, which names configs" in workbench("report", crossval, "--recipe", args)


def test_the_viewer_is_the_file_that_was_vendored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    facts = read_json(VENDORED)
    assert facts["sha256"] == sha256(SCRIPT)
    assert facts["licence"] == "BSD-2-Clause"
    assert SCRIPT.stat().st_size < 3_000_000
    assert "Redistribution" in bundle.report.page.LICENCE.read_text(encoding="utf-8")
    assert facts["version"] in SCRIPT.read_text(encoding="utf-8")
    other = tmp_path / "other.js"
    other.write_text("alert(1)")
    monkeypatch.setattr(bundle.report.page, "SCRIPT", other)
    with pytest.raises(InputError, match=r"is not the file that .* names by its SHA-256"):
        vendored_script()


def test_a_script_does_not_end_within_itself() -> None:
    text = as_script('const a = "</script>", b = "<!-- <script>", c = "</SCRIPT>";')
    assert not re.search(r"</script|<!--", text, re.IGNORECASE)
    assert not re.search(r"</script|<!--", as_script(vendored_script()), re.IGNORECASE)


def test_a_study_has_its_variants_side_by_side(crossval: Path, data: Path, tmp_path: Path) -> None:
    study, cases = tmp_path / "study", {case: 0.5 + n / 20 for n, case in enumerate(CASES)}
    for variant in ("plain", "two_by_two"):
        write_training(study / variant / "seed0", 3 if variant == "plain" else 2)
        written(study / variant / "made_of.json", {"config": {**CONFIG, "minutes": 2}})
    shutil.copytree(crossval / "scores", study / "plain/seed0/training")
    shutil.copytree(crossval / "out_of_fold", study / "plain/seed0/training", dirs_exist_ok=True)
    scores = {"dice": 0.5, "iou": 0.25, "hd95": 4.0, "minutes": 1.0}
    rows = [{"variant": variant, "seed": 0, "data": "own", **scores} for variant in ("plain", "two by two")]
    write_csv(study / "training/study.csv", rows)
    better = {case: value + 0.25 for case, value in cases.items()}
    compared = comparison({"own": {"plain": cases, "two by two": better}}, {})
    write_csv(study / "training/comparison.csv", compared)
    written(study / "plan.json", {"two by two": {"max_epochs": 7}})
    page, said = made(study, "--dataset_dir", data)
    assert "two by two, seed 0: 2 of 7 epochs were trained" in said
    (each, differences) = [table for table in page.tables if table.section == "compared"]
    assert [row["variant"] for row in each.records()] == ["plain", "two by two"]
    first, second = differences.records()
    assert (first["mean"], first["difference"]) == ("0.6000", "–")
    assert (second["difference"], second["low of it"]) == ("0.2500", "0.2500")
    assert second["differs"] == ("yes" if compared[1]["differs"] else "no")
    assert "Of 1 variant beside plain" in page.texts["summary"]
    assert [case["role"] for case in shown_case(page)["cases"]] == ["worst", "median", "best"]
    plan = next(table for table in page.tables if table.caption == "Choices")
    assert "minutes of a training" in plan.rows[-1][0]


def test_ranges_of_each_axis_are_worded() -> None:
    """As plans for few thick slices have them."""
    patch = {"rotate_range": [0.0, 0.0, 3.14], "scale_range": [0.8, [1.2, 1.2, 1.0]]}
    (said,) = words._augmentation({"patch": patch})
    assert said.startswith(
        "Patches were randomly rotated by up to 0, 0, 3.14 radians and scaled by 0.8 to 1.2,"
    )
