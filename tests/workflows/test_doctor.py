"""The doctor on tiny data: a sound set passes, and each kind of planted fault is found before the work."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bundle.doctor import data, needs, runs, trial
from bundle.doctor.report import Finding, Report
from scripts.checkpoints import save_weights
from tests.commands import CONFIGS, ROOT, TINY, config_files, invoke, run, written

pytestmark = pytest.mark.workflow

PLAIN = {"max_epochs": 6, "val_interval": 4}


def told(report: Report) -> dict[str, Finding]:
    """The worst finding of each check, as "part: check"."""
    order = ("ok", "warning", "error")
    rows = sorted(report.rows, key=lambda row: order.index(row.status))
    return {f"{row.part}: {row.check}": row for row in rows}


def organ_run(organ: Path, output: Path, **ids: Any) -> dict[str, Any]:
    files = ids.pop("config_file", config_files("train", "task/phantom_organ"))
    places = {"config_file": files, "dataset_dir": str(organ), "output_dir": str(output)}
    return {**places, **TINY[3], **PLAIN, **ids}


def examine(ids: dict[str, Any], *modules: Any) -> dict[str, Finding]:
    """What the first steps of the doctor find in a run, the trial left out."""
    report = Report(as_json=True, limit=100)
    found = runs.read(report, None, ids)
    if found is not None:
        runs.check(report, found)
        if report.worst(runs.PART) != "error" and (cases := data.check(report, found)) is not None:
            for module in modules:
                module.check(report, found, cases)
    return told(report)


def as_options(ids: dict[str, Any]) -> list[str]:
    return [part for key, value in ids.items() for part in (f"--{key}", str(value))]


def doctor(*arguments: str) -> tuple[int, dict[str, Any], dict[str, dict]]:
    """Exit status, the whole object, and its rows by "part: check"."""
    result = invoke("doctor", "--json", *arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    content = json.loads(result.stdout)
    return result.exit_code, content, {f"{row['part']}: {row['check']}": row for row in content["checks"]}


@pytest.fixture(scope="module")
def trained(organ: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with weights and their recipe."""
    folder = tmp_path_factory.mktemp("trained")
    ids = organ_run(organ, folder)
    files = ids.pop("config_file")
    run(files[0], *files[1:], **{**ids, "max_epochs": 1})
    return folder


def test_a_sound_training_passes_and_leaves_nothing(
    organ: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "tmp").mkdir()
    before = written(organ)
    status, content, rows = doctor(*as_options(organ_run(organ, tmp_path / "out")))
    assert status == 0, content
    assert [row for row in content["checks"] if row["status"] == "error"] == []
    assert rows["data: files"]["values"]["cases"] == {"training": 1, "validation": 1, "testing": 2}
    values = rows["trial: training"]["values"]
    # 1 case once an epoch; validated after epoch 4 and the last one
    assert (values["steps"], values["epochs"], values["validations"]) == (1, 6, 2)
    seconds = values["seconds"]
    parts = seconds["start"] + seconds["caching"] + seconds["warm_up"]
    parts += 6 * (seconds["step"] + seconds["epoch_end"]) + 2 * seconds["validation"]
    assert seconds["total"] == pytest.approx(parts)
    assert len(values["losses"]) == trial.EPOCHS * trial.STEPS
    assert "6 epochs: about" in rows["trial: training"]["found"]
    assert rows["memory: step"]["values"]["needed_bytes"] > 0
    assert not (tmp_path / "out").exists()
    assert list((tmp_path / "tmp").iterdir()) == []
    assert set(written(organ)) - set(before) <= {"checked.json"}
    assert {row["part"] for row in content["checks"]} == {"environment", "configs", "data", "memory", "trial"}
    for row in content["checks"]:
        assert row.keys() == {"part", "check", "status", "found", "fix", "values"}


def test_a_sound_inference_passes_and_leaves_nothing(organ: Path, trained: Path, tmp_path: Path) -> None:
    report = invoke(
        "doctor",
        *("--config_file", trained / "inference.json", "--dataset_dir", organ / "imagesTs"),
        *("--output_dir", tmp_path / "out", "--runtime", "torch"),
    )
    assert report.exit_code == 0, report.output
    lines = report.stdout.splitlines()
    assert lines[-1].endswith("go on")
    assert any("2 case(s): about" in line for line in lines)
    assert any(line.startswith("ok") and "recipe" in line for line in lines)
    assert not (tmp_path / "out").exists()


def test_an_evaluation(organ: Path, trained: Path, tmp_path: Path) -> None:
    files = config_files("train", "task/phantom_organ", "evaluate")
    ids = organ_run(organ, tmp_path, config_file=files, checkpoint=str(trained / "model.pt"))
    status, content, rows = doctor(*as_options(ids))
    assert status == 0, content
    assert rows["data: files"]["values"]["cases"] == {"images": 2}
    assert "2 case(s): about" in rows["trial: evaluation"]["found"]
    assert written(tmp_path) == []


@pytest.mark.parametrize(
    ("option", "found"),
    [
        (
            "dataset_di",
            "--dataset_di x: without configs --dataset_dir is the only id; did you mean dataset_dir",
        ),
        ("config_files", "did you mean config_file"),
        ("max_epochs", "--max_epochs x: without configs --dataset_dir is the only id"),
    ],
)
def test_an_id_that_nothing_reads_without_configs(option: str, found: str) -> None:
    status, _, rows = doctor(f"--{option}", "x")
    assert status == 1
    assert rows["configs: settings"]["status"] == "error"
    assert found in rows["configs: settings"]["found"]


def test_a_data_folder_alone(organ: Path, cells: Path, tmp_path: Path) -> None:
    for folder, counts in (
        (organ, {"training": 1, "validation": 1, "testing": 2}),
        (cells, {"training": 3, "validation": 1, "testing": 2}),
        (cells / "imagesTs", {"images": 2}),
    ):
        status, content, rows = doctor("--dataset_dir", str(folder))
        assert (status, rows["data: files"]["values"]["cases"]) == (0, counts), content
    shutil.copytree(cells / "imagesTs", tmp_path / "images")
    first = next((tmp_path / "images").iterdir())
    first.write_bytes(first.read_bytes()[:200])
    status, content, rows = doctor("--dataset_dir", str(tmp_path / "images"))
    assert (status, content["status"], rows["data: files"]["status"]) == (1, "error", "error")
    assert "truncated or corrupt" in rows["data: files"]["found"]
    assert doctor("--dataset_dir", str(tmp_path / "none"))[0] == 1


def test_nothing_but_the_environment() -> None:
    status, content, _ = doctor()
    assert (status, {row["part"] for row in content["checks"]}) == (0, {"environment"})


@pytest.mark.parametrize(
    ("ids", "check", "status", "said"),
    [
        ({"max_epoch": 3}, "settings", "error", "did you mean max_epochs"),
        ({"config_file": ["configs/no_such.json"]}, "files", "error", "no_such.json does not exist"),
        ({"spatial_dims": 4}, "settings", "error", "spatial_dims is 4"),
        ({"spatial_dims": 2}, "dimensions", "error", "patch_size"),
        ({"patch_size": [16, 16]}, "dimensions", "error", "patch_size"),
        ({"spacing": [1.0, 1.0]}, "dimensions", "error", "spacing"),
        ({"labels": {"background": 0, "anterior": 0}}, "labels", "error", "two classes or more"),
        ({"labels": {"background": 0}}, "labels", "error", "two classes or more"),
        ({"segments": {"liver": {}}}, "labels", "warning", "liver"),
        ({"device": "cuda:63"}, "device", "error", "cuda:63"),
        ({"max_epochs": 0}, "settings", "error", "max_epochs is 0"),
        ({"batch_size": 0}, "settings", "error", "batch_size is 0"),
        ({"resume": "maybe"}, "settings", "error", "resume is 'maybe'"),
        ({"patience": 2}, "schedule", "warning", "patience 2"),
        ({"resume": True}, "resume", "warning", "nothing to go on from"),
        ({"num_workers": 99}, "workers", "warning", "num_workers 99"),
        ({"patch_size": [30, 16, 16]}, "network", "error", "24 or 32"),
        ({"network_def::strides": [2, 2]}, "network", "error", "strides"),
        ({"network_def::out_channels": 7}, "network", "error", "7 classes and labels has 3"),
        ({"runtime": "fast"}, "inferer", "error", "fast"),
    ],
)
def test_faults_of_the_configs(
    organ: Path, tmp_path: Path, ids: dict[str, Any], check: str, status: str, said: str
) -> None:
    rows = examine(organ_run(organ, tmp_path, **ids))
    row = rows[f"configs: {check}"]
    assert row.status == status, row
    assert said in row.found


def test_output_that_cannot_be_written_or_is_there(organ: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    rows = examine(organ_run(organ, tmp_path / "file"))
    assert rows["configs: output_dir"].status == "error"
    last = tmp_path / "out" / "checkpoints" / "last.pt"
    last.parent.mkdir(parents=True)
    last.write_bytes(b"")
    assert examine(organ_run(organ, tmp_path / "out"))["configs: resume"].status == "warning"
    assert examine(organ_run(organ, tmp_path / "out", resume=True))["configs: resume"].status == "ok"
    code = "import sys; from scripts.locks import hold; hold(sys.argv[1], 'training', run := set()); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "out")], cwd=ROOT, stdin=subprocess.PIPE
    ) as other:
        while not (lock := tmp_path / "out" / ".training.lock").exists() or not lock.read_text():
            assert other.poll() is None
            time.sleep(0.01)
        row = examine(organ_run(organ, tmp_path / "out"))["configs: output_dir"]
        other.kill()
    assert (row.status, "another training is at work" in row.found) == ("error", True)
    assert examine(organ_run(organ, tmp_path / "out"))["configs: output_dir"].status == "ok"


def test_compile_without_a_compiler(organ: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "can_compile", lambda device: False)
    assert examine(organ_run(organ, tmp_path))["configs: device"].status == "ok"
    assert examine(organ_run(organ, tmp_path, compile=True))["configs: device"].status == "warning"


def test_several_processes_are_not_tried(organ: Path, tmp_path: Path) -> None:
    files = config_files("train", "task/phantom_organ", "multi_gpu_train")
    row = examine(organ_run(organ, tmp_path, config_file=files))["configs: files"]
    assert (row.status, "one process" in row.fix) == ("warning", True)


def test_faults_of_the_data(organ: Path, tmp_path: Path) -> None:
    def found(check: str, **ids: Any) -> Finding:
        return examine(organ_run(folder, tmp_path / "out", **ids))[f"data: {check}"]

    folder = organ
    wide = found("spacing", spacing=[4.0, 1.0, 1.5])
    assert (wide.status, "axis 0" in wide.found) == ("warning", True)
    assert wide.fix.startswith("set --spacing")
    assert found("image size", patch_size=[64, 64, 64]).status == "warning"
    assert found("image size").status == found("spacing").status == "ok"
    labels = found("files", labels={"background": 0, "one": 1})
    assert (labels.status, "declares the labels" in labels.found) == ("error", True)
    folder = tmp_path / "copy"
    shutil.copytree(organ, folder)
    label = next((folder / "labelsTr").iterdir())
    label.write_bytes(label.read_bytes()[:300])
    assert found("files").status == "error"
    assert label.name.split(".")[0] in found("files").found
    description = json.loads((organ / "dataset.json").read_text())
    description |= {"validation": description["training"], "training": []}
    (tmp_path / "nothing").mkdir()
    folder = shutil.copytree(organ, tmp_path / "untrained")
    (folder / "dataset.json").write_text(json.dumps(description))
    assert found("split").status == "error"


def test_memory_and_disk_that_do_not_suffice(
    organ: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = organ_run(organ, tmp_path, num_workers=1)
    rows = examine(ids, needs)
    named = ("step", "cache", "largest case", "all", "disk", "shared memory")
    assert {rows[f"memory: {name}"].status for name in named} == {"ok"}
    # float32 image and label of both cases at 1 x 1 x 1.5 mm
    voxels = sum(
        float(np.prod(grids.seen_shape))
        for grids in [
            data.check(Report(True, 100), runs.read(Report(True, 100), None, ids)).room.grids(case)
            for case in json.loads((organ / "dataset.json").read_text())["training"]
            for case in [{**case, "case": "x", "image": str(organ / case["image"])}]
        ]
    )
    assert rows["memory: cache"].values["file_bytes"] == 8 * voxels
    assert rows["memory: cache"].values["needed_bytes"] == 0
    ids["cache_gb"] = 0
    assert examine(ids, needs)["memory: cache"].values["needed_bytes"] == 8 * voxels
    monkeypatch.setattr(needs, "available_memory", lambda: 1000.0)
    monkeypatch.setattr(needs.shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(2, 1, 1))
    rows = examine(ids, needs)
    assert {rows[f"memory: {name}"].status for name in named} == {"error"}
    assert all(rows[f"memory: {name}"].fix for name in named)


def test_a_run_without_memory_is_not_tried(
    organ: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(needs, "available_memory", lambda: 1000.0)
    status, content, rows = doctor(*as_options(organ_run(organ, tmp_path)))
    assert (status, content["status"]) == (1, "error")
    assert rows["trial: training"]["found"].startswith("not tried")


def test_wrong_configs_do_not_stop_the_data_from_being_checked(organ: Path, tmp_path: Path) -> None:
    status, _, rows = doctor(*as_options(organ_run(organ, tmp_path, patch_size="[30,16,16]")))
    assert status == 1
    assert rows["data: files"]["status"] == "ok"
    assert rows["trial: training"]["found"] == "not tried: the configs have errors"
    (tmp_path / "comma.json").write_text('{"spatial_dims": 3,}')
    status, _, rows = doctor("--config_file", str(tmp_path / "comma.json"), "--dataset_dir", str(organ))
    assert (status, rows["configs: files"]["status"], rows["data: files"]["status"]) == (1, "error", "ok")


def test_losses_that_are_not_finite(organ: Path, tmp_path: Path) -> None:
    rows = examine(organ_run(organ, tmp_path, learning_rate=1e30), Trial)
    assert rows["trial: training"].status == "error"
    assert "lower learning_rate" in rows["trial: training"].found


def test_a_trial_that_takes_too_long(organ: Path, tmp_path: Path) -> None:
    report = Report(as_json=True, limit=100)
    found = runs.read(report, None, organ_run(organ, tmp_path))
    cases = data.check(report, found)
    report.limit = 0.05
    trial.check(report, found, cases, started=0.0)
    row = told(report)["trial: training"]
    assert (row.status, row.fix) == ("warning", "give it more with --limit")
    assert "0.05 s" in row.found


def test_faults_of_weights(organ: Path, trained: Path, tmp_path: Path) -> None:
    def found(check: str, **ids: Any) -> Finding:
        given = {"config_file": [str(trained / "inference.json")], "dataset_dir": str(organ / "imagesTs")}
        return examine({**given, "output_dir": str(tmp_path / "out"), **ids})[f"configs: {check}"]

    assert found("weights").status == found("recipe").status == "ok"
    assert "no such checkpoint" in found("weights", checkpoint=str(tmp_path / "none.pt")).found
    weights = torch.load(trained / "model.pt", weights_only=True)
    weights[next(iter(weights))].fill_(torch.nan)
    save_weights(weights, tmp_path / "nan.pt")
    row = found("weights", checkpoint=str(tmp_path / "nan.pt"))
    assert (row.status, "no finite numbers" in row.found) == ("error", True)
    assert found("weights", channels=[4, 8, 8, 16]).status == "error"
    row = found("recipe", spacing=[2.0, 2.0, 2.0])
    assert (row.status, "trained with other settings" in row.found) == ("error", True)


def test_a_bad_image_among_good_ones(organ: Path, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(organ / "imagesTs", tmp_path / "images")
    (tmp_path / "images" / "bad.nii.gz").write_bytes(b"\x1f\x8b")
    status, _, rows = doctor(
        *("--config_file", str(trained / "inference.json"), "--dataset_dir", str(tmp_path / "images")),
        *("--output_dir", str(tmp_path / "out"), "--runtime", "torch"),
    )
    assert status == 1
    assert (rows["data: files"]["status"], "bad.nii.gz" in rows["data: files"]["found"]) == ("error", True)
    assert "2 case(s): about" in rows["trial: inference"]["found"]


def test_results_on_another_grid(organ: Path, trained: Path, tmp_path: Path) -> None:
    softmax = {"_target_": "Activationsd", "keys": "pred", "softmax": True}
    ids = {
        "config_file": [str(trained / "inference.json")],
        "dataset_dir": str(organ / "imagesTs"),
        "output_dir": str(tmp_path),
        "runtime": "torch",
        "restore": [softmax],
    }
    row = examine(ids, Trial)["trial: inference"]
    assert (row.status, "keep Invertd" in row.found) == ("error", True)


def test_volumes_on_disk_are_not_tried(organ: Path, trained: Path, tmp_path: Path) -> None:
    files = [str(trained / "inference.json"), str(CONFIGS / "large_volume.json")]
    import nibabel as nib

    for file in (organ / "imagesTs").iterdir():
        image = nib.load(file)
        nib.save(image, tmp_path / f"{file.name.split('.')[0]}.nii")
    status, content, rows = doctor("--config_file", str(files), "--dataset_dir", str(tmp_path))
    assert status == 0, content
    assert rows["trial: large volumes"]["status"] == "warning"


def test_seconds_of_all_cases_from_those_of_some(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = [{"case": str(index)} for index in range(10)]
    cases = data.Cases({"images": listed}, {}, None)
    chosen = [(case, None) for case in listed[:3]]
    # the first one warmed up for 4 s
    assert trial._of_cases(None, chosen, listed, cases, [5.0, 1.0, 1.0]) == pytest.approx(14.0)
    assert trial._of_cases(None, chosen, listed, cases, [2.0]) == pytest.approx(20.0)
    monkeypatch.setattr(trial, "tiles", lambda run, shape: shape)
    sized = data.Cases({"images": listed}, {str(index): Sized(index + 1) for index in range(10)}, None)
    chosen = [(listed[0], Sized(1)), (listed[3], Sized(4))]
    # 1 s a window, 3 s to warm up, 55 windows
    assert trial._of_cases(None, chosen, listed, sized, [4.0, 4.0]) == pytest.approx(58.0)


def test_pictures_are_tried_too(cells: Path, tmp_path: Path) -> None:
    places = {"dataset_dir": str(cells), "output_dir": str(tmp_path)}
    ids = {"config_file": config_files("train", "task/phantom_cells"), **places, **TINY[2], **PLAIN}
    rows = examine({**ids, "minutes": 600}, needs, Trial)
    assert {row.status for row in rows.values()} == {"ok"}, rows
    assert (
        "600 minutes: max_epochs, steps_per_epoch and val_interval follow" in rows["configs: schedule"].found
    )
    values = rows["trial: training"].values
    assert 20 <= values["epochs"] <= 60
    assert 0.9 * 36000 < values["seconds"]["total"] <= 36000
    assert not (tmp_path / "length.json").exists()
    width, height = Image.open(next((cells / "imagesTr").iterdir())).size
    assert rows["data: image size"].values["median_shape"] == [width, height]


class Trial:
    """`trial.check` with the arguments of the others."""

    @staticmethod
    def check(report: Report, found: runs.Run, cases: data.Cases) -> None:
        trial.check(report, found, cases, started=0.0)


class Sized:
    """A grid of so many windows."""

    def __init__(self, windows: int) -> None:
        self.seen_shape = windows
