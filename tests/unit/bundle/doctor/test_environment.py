"""The environment part of the doctor: each row can fail, and none needs PyTorch."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from bundle.doctor import environment
from bundle.doctor.report import Finding, Report
from tests.commands import ROOT, invoke


@pytest.fixture
def report() -> Report:
    return Report(as_json=True, limit=60)


def only(report: Report) -> Finding:
    (row,) = report.rows
    return row


def test_an_old_python(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    environment.python(report)
    monkeypatch.setattr(environment, "PYTHON", (99, 0))
    environment.python(report)
    assert [row.status for row in report.rows] == ["ok", "error"]
    assert report.rows[1].fix == "use Python 99.0 or later"


@pytest.mark.parametrize(
    ("have", "status", "told"),
    [
        ({"a": "1.0", "b": "2.0"}, "ok", "all 2 packages of requirements.txt as pinned"),
        ({"a": "1.0", "b": "2.1"}, "warning", "other versions: b 2.1, not 2.0"),
        ({"a": "1.0", "b": None}, "error", "not installed: b"),
        ({"a": "9", "b": None}, "error", "not installed: b; other versions: a 9, not 1.0"),
    ],
)
def test_versions_against_pins(
    report: Report, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, have: dict, status: str, told: str
) -> None:
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    monkeypatch.setattr(environment, "installed", have.get)
    (tmp_path / "requirements.txt").write_text("-r other.txt\n# c==9\na==1.0    # why\nb==2.0\n")
    environment.versions(report)
    row = only(report)
    assert (row.status, row.found) == (status, told)
    assert bool(row.fix) == (status != "ok")


def test_pins_are_those_of_the_files_and_builds_do_not_count() -> None:
    pins = environment.pins("requirements.txt")
    assert {"torch", "monai", "numpy"} <= pins.keys()
    assert all("+" not in version and version[0].isdigit() for version in pins.values())
    assert "+" not in (environment.installed("torch") or "")  # 2.13.0+cpu
    assert environment.installed("no-such-package") is None


def test_extras_that_are_absent_or_of_another_version(
    report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "installed", lambda name: None if name != "zarr" else "1.0")
    environment.extras(report)
    rows = {row.check: row for row in report.rows}
    assert rows.keys() == environment.EXTRAS.keys()
    assert (rows["dicom"].status, rows["dicom"].fix) == ("ok", "")
    assert "without highdicom" in rows["dicom"].found
    assert "DICOM segmentations" in rows["dicom"].found
    assert "openvino" in rows["runtimes"].found
    assert (rows["runtimes"].status, rows["runtimes"].fix) == (
        "warning",
        "run pip install -r requirements-runtimes.txt",
    )


@pytest.mark.parametrize(
    ("flags", "status", "features"),
    [("fpu avx2 amx_tile", "ok", ["avx2", "amx_tile"]), ("fpu sse4_2", "warning", [])],
)
def test_features_of_the_processor(
    report: Report, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: str, status: str, features: list
) -> None:
    monkeypatch.setattr(environment, "CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: {flags}\n")
    environment.processor(report)
    assert (only(report).status, only(report).values["features"]) == (status, features)
    assert "Some CPU" in only(report).found


@pytest.mark.parametrize(
    ("given", "load", "status", "told"),
    [
        ("4", 0.0, "ok", ""),
        ("64", 0.0, "warning", "threads wait for each other: set OMP_NUM_THREADS to 4"),
        ("1", 0.0, "warning", "cores stay idle: set OMP_NUM_THREADS to 4"),
        ("4", 9.0, "warning", "wait until the others are done"),
    ],
)
def test_threads_against_cores(
    report: Report, monkeypatch: pytest.MonkeyPatch, given: str, load: float, status: str, told: str
) -> None:
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    monkeypatch.setattr(environment, "usable_cores", lambda: 4)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    environment.threads(report)
    assert (only(report).status, only(report).fix) == (status, told)


def test_fewer_cores_by_a_limit_than_pytorch_would_take(
    report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in environment.THREADS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(environment, "usable_cores", lambda: 2)
    monkeypatch.setattr(environment, "core_limit", lambda: 2.0)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    environment.threads(report)
    assert only(report).fix == "threads wait for each other: set OMP_NUM_THREADS to 2"


def test_little_memory_disk_and_shared_memory(
    report: Report, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(environment, "available_memory", lambda: 1e9)
    environment.memory(report)
    monkeypatch.setattr(environment, "SHARED", tmp_path)
    for name in ("LITTLE_DISK", "LITTLE_SHARED"):
        monkeypatch.setattr(environment, name, 1e18)
    environment.shared_memory(report)
    environment.place(report, "environment", "temporary", tmp_path / "not" / "there", "elsewhere")
    assert [row.status for row in report.rows] == ["warning"] * 3
    assert "1.0 GB available" in report.rows[0].found
    assert all(row.fix for row in report.rows)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(report: Report, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    environment.place(report, "environment", "temporary", tmp_path / "file", "elsewhere")
    environment.place(report, "environment", "cache", tmp_path / "file" / "in", "elsewhere", needed=False)
    environment.place(report, "environment", "output_dir", Path("/proc/in"), "elsewhere")
    assert [row.status for row in report.rows] == ["error", "warning", "error"]
    assert all(row.fix == "elsewhere" and "cannot be written" in row.found for row in report.rows)


def test_no_temporary_folder_ends_it_in_a_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def none() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr("tempfile.gettempdir", none)
    result = invoke("doctor", "--json", "--dataset_dir", tmp_path)
    rows = {row["check"]: row for row in json.loads(result.stdout)["checks"]}
    assert (result.exit_code, rows["temporary"]["status"]) == (1, "error")
    assert rows["temporary"]["found"].startswith("No usable temporary directory")
    assert "files" not in rows


@pytest.mark.parametrize(
    ("script", "status", "told"),
    [
        (
            "echo 'NVIDIA H100, 81559 MiB, 81000 MiB, 550.54'",
            "ok",
            "81000 MiB of 81559 MiB free, driver 550.54",
        ),
        ("echo 'NVIDIA-SMI has failed'; exit 9", "warning", "NVIDIA-SMI has failed"),
        ("sleep 5", "warning", "did not answer"),
        (None, "ok", "none"),
    ],
)
def test_gpus_by_their_driver(
    report: Report,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    script: str | None,
    status: str,
    told: str,
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin" if script else str(tmp_path))
    monkeypatch.setattr(environment, "DRIVER_SECONDS", 0.5)
    if script:
        file = tmp_path / "nvidia-smi"
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    environment.gpu(report)
    assert only(report).status == status
    assert told in only(report).found


def test_without_a_compiler(report: Report, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    environment.compiler(report)
    assert only(report).values == {"path": None}
    assert "compile" in only(report).found


@pytest.mark.parametrize("broken", ["torch", "monai"])
def test_pytorch_or_monai_that_does_not_import(tmp_path: Path, broken: str) -> None:
    (tmp_path / f"{broken}.py").write_text("raise ImportError('libsomething.so: wrong version')")
    if broken == "monai":
        (tmp_path / "torch.py").write_text("")  # spares the seconds of the real one
    done = subprocess.run(
        [sys.executable, "-m", "bundle", "doctor", "--json", "--dataset_dir", "x"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1, done.stderr
    content = json.loads(done.stdout)
    rows = {row["check"]: row for row in content["checks"]}
    assert content["status"] == rows["imports"]["status"] == "error"
    assert rows["imports"]["found"].startswith(f"{broken} cannot be imported (ImportError: libsomething")
    assert {"python", "versions", "threads", "memory", "gpu"} <= rows.keys()
    assert "Traceback" not in done.stderr


def test_a_gpu_that_this_pytorch_cannot_use(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert environment.imports(report)
    report.add("environment", "gpu", "one", devices=[{"name": "H100"}])
    assert environment.imports(report)
    assert [row.status for row in report.rows] == ["ok", "ok", "warning"]
    assert "sees no GPU" in report.rows[2].found
