"""What an experiment costs here, measured once and written down: steps in so many minutes, memory, seconds.

Networks are compared at equal compute: each trains as many steps as fit into the same minutes, by the time of
one step on this machine. The number is kept in a file and used again, so that neither a noisy moment nor a
second call changes a training that has begun.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import typer
from torch.utils.flop_counter import FlopCounterMode

from bundle.runs.commands import ROOT
from bundle.runs.experiments import parser_of, read_experiment
from scripts.compute.length import cut
from scripts.compute.memory import dry_run, training_bytes
from scripts.errors import InputError
from scripts.files import read_json, write_json
from scripts.machine import machine
from scripts.tables import Row


def read_plan(path: Path) -> dict[str, Row]:
    """What was measured before, by variant; nothing where there is no file."""
    return read_json(path) if path.is_file() else {}


def write_plan(path: Path, plan: Mapping[str, Row]) -> None:
    """Keep what was measured."""
    write_json(path, plan, indent=1)


def plan_training(args_file: Path, ids: Mapping[str, Any], minutes: float) -> Row:
    """Measure a training, and find how many steps fit.

    Args:
        args_file: the experiment.
        ids: on top of it, with "dataset_dir".
        minutes: of training steps alone.

    Returns:
        "parameters", "multiply_adds" (of a patch, forward), "step_bytes" (of tensors), "seconds_a_step",
        "steps", those of LENGTH, "minutes" and "machine".

    Raises:
        InputError: the doctor finds an error, or not one step fits.
    """
    experiment = read_experiment(args_file, ids)
    parser = parser_of(experiment)
    network = parser.get_parsed_content("network_def")
    parts = ("batch_size", "in_channels", "patch_size")
    batch, channels, patch = (parser.get_parsed_content(part) for part in parts)
    with FlopCounterMode(display=False) as operations:
        dry_run(network, (1, channels, *patch))
    step = ask_doctor(experiment)["seconds"]["step"]
    steps = math.floor(60 * minutes / step)
    if steps < 1:
        raise InputError(
            f"--minutes is {minutes:g}, and one step takes {step / 60:.2g} here: give more, or a smaller "
            "network, patch_size or batch_size"
        )
    length = cut(steps)
    return {
        "parameters": sum(weights.numel() for weights in network.parameters()),
        "multiply_adds": operations.get_total_flops() // 2,
        "step_bytes": training_bytes(network, (batch, channels, *patch)),
        "seconds_a_step": step,
        "steps": length.steps,
        **asdict(length),
        "minutes": minutes,
        "machine": machine(),
    }


def seconds_a_case(experiment: Mapping[str, Any]) -> float:
    """Seconds of a case of an inference, after the first, as `doctor` tries it."""
    return float(ask_doctor(experiment)["seconds"]["cases"][-1])


def ask_doctor(experiment: Mapping[str, Any]) -> Row:
    """What a trial by `python -m bundle doctor` found, in a process of its own.

    Raises:
        InputError: it found an error.
    """
    with TemporaryDirectory() as folder:
        file = Path(folder, "experiment.json")
        file.write_text(json.dumps(dict(experiment)), encoding="utf-8")
        command = ["-m", "bundle", "doctor", "--args_file", str(file), "--json"]
        typer.echo(f"$ python {' '.join(command)}")
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False
        )
    try:
        checks = json.loads(done.stdout)["checks"]
    except (ValueError, KeyError) as error:
        last = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise InputError(f"`python -m bundle doctor` broke off ({last}): run it for what it says") from error
    wrong = [f"{row['check']}: {row['found']} {row['fix']}" for row in checks if row["status"] == "error"]
    if wrong:
        raise InputError(f"`python -m bundle doctor` finds {len(wrong)} error(s): {' | '.join(wrong)}")
    (trial,) = [row["values"] for row in checks if "seconds" in row["values"]]
    return trial
