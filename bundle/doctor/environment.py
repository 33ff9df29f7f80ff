"""The machine and what is installed on it, by the standard library alone: PyTorch and MONAI may be broken."""

from __future__ import annotations

import importlib
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bundle.doctor.report import Finding, Report
from scripts.machine import available_memory, core_limit, gigabytes, usable_cores

PART = "environment"
ROOT = Path(__file__).resolve().parents[2]

#: What Python runs this, at least.
PYTHON = (3, 11)

#: Requirements beside requirements.txt, and what is not there without them.
EXTRAS = {
    "runtimes": "inference in OpenVINO and ONNX Runtime, `export` to their formats, volumes in Zarr",
    "dicom": "DICOM segmentations, reports, compressed images, `fetch` and `store`",
    "zoo": "`verify` and `package`",
    "benchmark": "the peers of `benchmark`",
}

#: Features of the processor that count here, as Linux calls them.
FEATURES = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16")

#: Where Linux tells of the processor, and keeps what processes share.
CPUINFO, SHARED = Path("/proc/cpuinfo"), Path("/dev/shm")

#: Variables that set the number of threads.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")

#: Less than this is told: memory for Python, PyTorch and a small network; a run's weights, checkpoint and
#: pictures; a batch of each data worker. Bytes.
LITTLE_MEMORY, LITTLE_DISK, LITTLE_SHARED = 2e9, 1e9, 256e6

#: Seconds that the driver of a GPU may take to answer.
DRIVER_SECONDS = 20.0


def look(report: Report) -> bool:
    """Check the environment, and say whether what the checks to come import can be imported."""
    python(report)
    versions(report)
    extras(report)
    processor(report)
    threads(report)
    memory(report)
    places(report)
    shared_memory(report)
    gpu(report)
    compiler(report)
    return imports(report)


def python(report: Report) -> None:
    """The interpreter."""
    found = ".".join(map(str, sys.version_info[:3]))
    enough = sys.version_info[:2] >= PYTHON
    report.add(
        PART,
        "python",
        f"{found} ({sys.executable})",
        "ok" if enough else "error",
        "" if enough else f"use Python {'.'.join(map(str, PYTHON))} or later",
        version=found,
    )


def pins(name: str) -> dict[str, str]:
    """Packages of a requirements file and their exact versions."""
    text = (ROOT / name).read_text(encoding="utf-8") if (ROOT / name).is_file() else ""
    return dict(re.findall(r"^([\w.-]+)==([^\s#;]+)", text, re.MULTILINE))


def installed(package: str) -> str | None:
    """The version of a package without what says how it was built, or None."""
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        return None


@dataclass(frozen=True)
class Compared:
    """A requirements file against what is installed.

    Attributes:
        wanted: packages and their versions.
        found: the same with the versions installed, None where there is none.
    """

    wanted: dict[str, str]
    found: dict[str, str | None]

    @classmethod
    def of(cls, name: str) -> Compared:
        """That of a file."""
        wanted = pins(name)
        return cls(wanted, {package: installed(package) for package in wanted})

    @property
    def absent(self) -> str:
        """What is not installed."""
        return ", ".join(package for package, version_ in self.found.items() if version_ is None)

    @property
    def other(self) -> str:
        """What is installed in another version, and in which."""
        return "; ".join(
            f"{package} {self.found[package]}, not {version_}"
            for package, version_ in self.wanted.items()
            if self.found[package] not in (None, version_)
        )


def versions(report: Report) -> None:
    """What requirements.txt asks for against what is installed."""
    name = "requirements.txt"
    here = Compared.of(name)
    told = [f"not installed: {here.absent}"] * bool(here.absent)
    told += [f"other versions: {here.other}"] * bool(here.other)
    report.add(
        PART,
        "versions",
        "; ".join(told) or f"all {len(here.wanted)} packages of {name} as pinned",
        "error" if here.absent else "warning" if here.other else "ok",
        f"run pip install -r {name}" if told else "",
        installed=here.found,
        pinned=here.wanted,
    )


def extras(report: Report) -> None:
    """Requirements that only some commands need; absent ones are no fault."""
    for extra, without in EXTRAS.items():
        name = f"requirements-{extra}.txt"
        here = Compared.of(name)
        if here.absent:
            told = f"{name}: without {here.absent} there is no, or not all of: {without}"
        elif here.other:
            told = f"{name}: other versions: {here.other}"
        else:
            told = f"{name}: all {len(here.wanted)} packages as pinned"
        fix = f"run pip install -r {name}" if here.other else ""
        report.add(PART, extra, told, "warning" if here.other else "ok", fix, installed=here.found)


def processor(report: Report) -> None:
    """Features that make convolutions fast."""
    text = CPUINFO.read_text(encoding="utf-8", errors="replace") if CPUINFO.is_file() else ""
    names = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^flags\s*:\s*(.+)$", text, re.MULTILINE)
    has = [name for name in FEATURES if flags and name in flags[1].split()]
    model = names[1].strip() if names else "processor"
    slow = bool(flags) and "avx2" not in has
    report.add(
        PART,
        "processor",
        f"{model}: {', '.join(has) or ('none of ' + ', '.join(FEATURES) if flags else 'features unknown')}",
        "warning" if slow else "ok",
        "without AVX2 networks are several times slower: use another machine" if slow else "",
        features=has,
    )


def threads(report: Report) -> None:
    """Threads of the computation against the cores for this process, and what others take of them."""
    cores, limit = usable_cores(), core_limit()
    row = Finding(PART, "threads", values={"cores": cores, "core_limit": limit})
    row.found = f"{cores} core(s)" + (f" by the limit of its group, {limit:g}" if limit else "")
    given = {name: os.environ[name] for name in THREADS if name in os.environ}
    row.values |= given
    row.found += "".join(f", {name}={value}" for name, value in given.items())
    counts = [int(value) if value.isdecimal() else 0 for value in given.values()] or [os.cpu_count() or 1]
    if any(count != cores for count in counts):
        row.status = "warning"
        waste = "cores stay idle" if min(counts) < cores else "threads wait for each other"
        row.fix = f"{waste}: set {' and '.join(given) or THREADS[0]} to {cores}"
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    row.values["load"] = busy
    if busy > cores:
        row.status = "warning"
        row.found += f", and {busy:.1f} programs that want them: times given here can be far off"
        row.fix = "; ".join(filter(None, [row.fix, "wait until the others are done"]))
    report.rows.append(row)


def memory(report: Report) -> None:
    """Main memory that is left, within the limit of a container."""
    room = available_memory()
    little = room < LITTLE_MEMORY
    report.add(
        PART,
        "memory",
        "unknown on this system" if math.isinf(room) else f"{gigabytes(room)} available",
        "warning" if little else "ok",
        "end other programs, or give the container more" if little else "",
        available_bytes=None if math.isinf(room) else round(room),
    )


def places(report: Report) -> None:
    """Where everything writes beside its output."""
    fix = "set TMPDIR to a folder that can be written"
    try:
        place(report, PART, "temporary", Path(tempfile.gettempdir()), fix)
    except FileNotFoundError as error:  # no place that Python knows can be written
        report.add(PART, "temporary", f"{error.strerror}: nothing else was checked", "error", fix)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    fix = (
        "set XDG_CACHE_HOME, or the memory format of a training is tried each time, and checks are not "
        "remembered of data whose folder cannot be written"
    )
    place(report, PART, "cache", cache, fix, needed=False)


def place(report: Report, part: str, name: str, path: Path, fix: str, needed: bool = True) -> None:
    """Whether a folder, or the nearest one above it that is there, can be written, and how much room it has.

    Args:
        report: gets the finding.
        part: of the finding.
        name: of the finding.
        path: the folder.
        fix: what to do where it cannot be written.
        needed: that is an error.
    """
    row = Finding(part, name, values={"path": str(path)})
    there = existing(path)
    try:
        if not there.is_dir():
            raise NotADirectoryError(0, f"{there} is a file")
        with tempfile.TemporaryFile(dir=there):
            free = shutil.disk_usage(there).free
    except OSError as error:
        row.found = f"{path} cannot be written ({error.strerror or error})"
        row.status, row.fix = "error" if needed else "warning", fix
    else:
        row.found = f"{path}: {gigabytes(free)} free"
        row.values["free_bytes"] = free
        if free < LITTLE_DISK and needed:
            row.status, row.fix = "warning", "make room: a full disk ends a training"
    report.rows.append(row)


def existing(place: Path) -> Path:
    """A folder, or the nearest one above it that is there."""
    place = place.expanduser().absolute()
    return next((path for path in (place, *place.parents) if path.exists()), place)


def shared_memory(report: Report) -> None:
    """What data workers hand patches over in."""
    if not SHARED.is_dir():
        return
    free = shutil.disk_usage(SHARED).free
    little = free < LITTLE_SHARED
    report.add(
        PART,
        "shared memory",
        f"{SHARED}: {gigabytes(free)} free",
        "warning" if little else "ok",
        "data workers hand patches over there: start the container with --shm-size=2g, or keep num_workers 0"
        if little
        else "",
        free_bytes=free,
    )


def gpu(report: Report) -> None:
    """GPUs as their driver sees them."""
    asked = [
        "nvidia-smi",
        "--query-gpu=name,memory.total,memory.free,driver_version",
        "--format=csv,noheader",
    ]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=DRIVER_SECONDS, check=False)
    except FileNotFoundError:
        report.add(PART, "gpu", "none (no nvidia-smi): networks run on the processor", devices=[])
        return
    except subprocess.TimeoutExpired:
        found = f"nvidia-smi did not answer in {DRIVER_SECONDS:g} s"
        report.add(PART, "gpu", found, "warning", "look after the driver, or use --device cpu", devices=[])
        return
    lines = [line for line in done.stdout.splitlines() if line.count(",") >= 3]
    if done.returncode or not lines:
        words = (done.stdout + done.stderr).strip().splitlines()
        found = f"nvidia-smi sees none ({words[0] if words else 'no word'})"
        report.add(PART, "gpu", found, "warning", "look after the driver, or use --device cpu", devices=[])
        return
    devices = [
        dict(zip(("name", "total", "free", "driver"), re.split(r",\s*", line), strict=False))
        for line in lines
    ]
    found = "; ".join(
        "{name}, {free} of {total} free, driver {driver}".format(**device) for device in devices
    )
    report.add(PART, "gpu", found, devices=devices)


def compiler(report: Report) -> None:
    """What `compile` generates code with on a processor."""
    names = (os.environ.get("CXX", ""), "g++", "clang++", "c++", "cl")
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    report.add(
        PART,
        "compiler",
        found or "none: compile and runtime 'compile' go on without on a processor",
        path=found,
    )


def imports(report: Report) -> bool:
    """Whether what the checks to come need can be imported; a wrong version often cannot."""
    for name in ("numpy", "torch", "monai", "ignite", "bundle.doctor.examine"):
        try:
            importlib.import_module(name)
        except Exception as error:
            told = (str(error).strip().splitlines() or [""])[0]
            report.add(
                PART,
                "imports",
                f"{name} cannot be imported ({type(error).__name__}: {told}): nothing else was checked",
                "error",
                "run pip install -r requirements.txt in a new environment",
            )
            return False
    import torch

    row = Finding(PART, "imports", values={"threads": torch.get_num_threads()})
    row.found = f"PyTorch {torch.__version__} on {torch.get_num_threads()} thread(s), MONAI and this bundle"
    seen = any(found.check == "gpu" and found.values.get("devices") for found in report.rows)
    if seen and not torch.cuda.is_available():
        row.status = "warning"
        row.found += "; this PyTorch sees no GPU"
        row.fix = "install the build of PyTorch for the driver's CUDA version, see https://pytorch.org"
    report.rows.append(row)
    return True
