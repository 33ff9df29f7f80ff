"""`python -m bundle benchmark`: what the speed of this bundle is, beside its peers, on this machine."""

from __future__ import annotations

import importlib
import json
import os
import platform
import re
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from tqdm import tqdm

from scripts.compute.acceleration import mixed_precision
from scripts.errors import InputError
from scripts.files import atomic_write

#: Contests, each a module of this package.
CONTESTS = ("inference", "training", "augmentation", "weightmap", "metrics")

#: Packages whose versions are recorded.
PACKAGES = (
    *("torch", "monai", "numpy", "scipy", "openvino", "onnx", "onnxruntime", "nnunetv2"),
    *("dynamic_network_architectures", "batchgeneratorsv2", "torchio", "surface-distance"),
)


def benchmark(
    only: Annotated[
        list[str] | None, typer.Option("--only", help=f"One of {', '.join(CONTESTS)}; repeatable")
    ] = None,
    match: Annotated[str, typer.Option("--match", help="Regular expression for the entries' names")] = "",
    json_file: Annotated[Path | None, typer.Option("--json", help="Where to write all figures")] = None,
    rounds: Annotated[int, typer.Option("--rounds", help="Rounds that count, after one to warm up")] = 5,
    small: Annotated[bool, typer.Option("--small", help="Tiny sizes, to see that everything runs")] = False,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:1")] = "cpu",
    threads: Annotated[
        int | None, typer.Option("--threads", help="Threads of every entry; all cores by default")
    ] = None,
) -> None:
    """Time this bundle beside its peers, in turns; print medians, ratios and shares of the machine's best."""
    chosen = list(dict.fromkeys(only or CONTESTS))
    for name in chosen:
        if name not in CONTESTS:
            raise InputError(f"--only is {name!r}: give one of {', '.join(CONTESTS)}")
    try:
        re.compile(match)
    except re.error as error:
        raise InputError(f"--match is {match!r}, no regular expression ({error}): give one") from None
    if rounds < 1:
        raise InputError(f"--rounds is {rounds}: give 1 or more")
    if threads is not None and threads < 1:
        raise InputError(f"--threads is {threads}: give 1 or more")
    threads = threads or torch.get_num_threads()
    place = _device(device)
    report: dict[str, Any] = {
        "machine": machine(place),
        "settings": {"rounds": rounds, "small": small, "device": device, "threads": threads},
        "contests": [],
    }
    typer.echo("\n".join(f"{key}: {value}" for key, value in report["machine"].items()))
    from bundle.benchmark import runner

    for name in chosen:
        module = importlib.import_module(f"bundle.benchmark.{name}")
        for whole in module.contests(small, place):
            contest = runner.select(whole, match)
            turns = (rounds + 1) * sum(not runner.missing(entry.needs) for entry in contest.entries.values())
            with tqdm(total=turns, desc=contest.title, leave=False) as bar:

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
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "half precision in the processor": str(half).removeprefix("torch.") if half else "none",
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
    }
    if device.type == "cuda":
        description["gpu"] = torch.cuda.get_device_name(device)
        description["cuda"] = torch.version.cuda
    return description


def register(app: typer.Typer) -> None:
    """Add the command to the workbench."""
    app.command()(benchmark)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device is {name!r}: give cpu, cuda or cuda:1") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device is {name!r}: give cpu, cuda or cuda:1")
    if device.type == "cpu":
        return device
    index = device.index or 0
    if index >= torch.cuda.device_count():
        raise InputError(f"--device is {name!r}, which PyTorch does not find here: give cpu")
    return torch.device("cuda", index)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
