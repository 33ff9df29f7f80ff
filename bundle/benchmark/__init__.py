"""`python -m bundle benchmark`: what the speed of this bundle is, beside its peers, on this machine."""

from __future__ import annotations

import importlib
import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import typer
from tqdm import tqdm

from scripts.compute.acceleration import limit, mixed_precision
from scripts.errors import InputError
from scripts.files import atomic_write
from scripts.machine import processor
from scripts.progress import progress

#: Packages whose versions are recorded.
PACKAGES = (
    *("torch", "monai", "numpy", "scipy", "openvino", "nncf", "onnx", "onnxruntime", "nnunetv2"),
    *("dynamic_network_architectures", "batchgeneratorsv2", "torchio", "surface-distance"),
)

#: Variables by which libraries compute as on a lesser processor.
LIMITS = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")


def benchmark(
    only: list[str],
    match: str,
    json_file: Path | None,
    rounds: int,
    small: bool,
    device: str,
    threads: int | None,
) -> None:
    """Carry out `bundle.cli.benchmark`, whose arguments these are."""
    threads = threads or torch.get_num_threads()
    place = _device(device)
    report: dict[str, Any] = {
        "machine": machine(place),
        "settings": {"rounds": rounds, "small": small, "device": device, "threads": threads},
        "contests": [],
    }
    typer.echo("\n".join(f"{key}: {value}" for key, value in report["machine"].items()))
    from bundle.benchmark import runner

    for name in dict.fromkeys(only):
        module = importlib.import_module(f"bundle.benchmark.{name}")
        for whole in module.contests(small, place):
            contest = runner.select(whole, match)
            turns = (rounds + 1) * sum(not runner.missing(entry.needs) for entry in contest.entries.values())
            with progress(total=turns, desc=contest.title, leave=False) as bar:

                def tick(entry: str, bar: tqdm = bar) -> None:
                    bar.set_postfix_str(entry)
                    bar.update()

                least = 0.0 if small else runner.LEAST_SECONDS
                results = runner.run(contest, rounds, place, threads, least, tick)
            summary = {"contest": name, **runner.summary(contest, results)}
            report["contests"].append(summary)
            typer.echo("\n" + runner.table(summary))
            if json_file:  # after each contest: an interrupted run leaves what it has
                with atomic_write(json_file) as temporary:
                    temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures depend on."""
    half = mixed_precision(torch.device("cpu"))
    description: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "processor": processor(),
        "cores": os.cpu_count(),
        "load": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        **{name: os.environ[name] for name in LIMITS if name in os.environ},
        "half precision in the processor": str(half).removeprefix("torch.") if half else "none",
        "instructions": f"PyTorch {torch.backends.cpu.get_cpu_capability()}, oneDNN at most {limit()}",
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
    }
    if device.type == "cuda":
        description["gpu"] = torch.cuda.get_device_name(device)
        description["cuda"] = torch.version.cuda
    return description


def _device(name: str) -> torch.device:
    device = torch.device(name)
    if device.type == "cpu":
        return device
    index = device.index or 0
    if index >= torch.cuda.device_count():
        raise InputError(f"--device is {name!r}, which PyTorch does not find here: give cpu")
    return torch.device("cuda", index)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
