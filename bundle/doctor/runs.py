"""The configs of a run, evaluated id by id as `monai.bundle run` would, and their contradictions."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from monai.bundle import ConfigWorkflow
from monai.utils import ensure_tuple
from torch import nn

from bundle.doctor.environment import place
from bundle.doctor.report import SETTINGS, Finding, Report
from bundle.runs.experiments import parser_of
from scripts import locks, settings
from scripts.checkpoints import check_weights, read_weights
from scripts.compute.acceleration import can_compile, mixed_precision
from scripts.compute.memory import dry_run
from scripts.errors import InputError, nearest
from scripts.files import read_json
from scripts.labels import class_names, count_classes
from scripts.machine import usable_cores
from scripts.networks.heads import main_logits
from scripts.networks.sizes import Sizes
from scripts.process import bundle_root

PART = "configs"

#: An overlay for several processes, which one process cannot try.
SEVERAL = "multi_gpu_train.json"

#: The id that can be given without configs.
ALONE = "dataset_dir"

#: Checks without which the network cannot be looked at.
NEEDED = ("dimensions", "labels", "device")

Kind = Literal["training", "evaluation", "inference", "large volumes"]


@contextmanager
def quiet() -> Iterator[None]:
    """Let no library tell of what goes well, nor MONAI of where configs lie."""
    workflows = logging.getLogger("monai.bundle.workflows")
    level, below = workflows.level, logging.root.manager.disable
    workflows.setLevel(logging.ERROR)
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        workflows.setLevel(level)
        logging.disable(below)


class Run(ConfigWorkflow):
    """A run that is asked for its parts, and does nothing by itself.

    Args:
        experiment: "config_file", a list of paths, relative to the bundle or absolute, and ids.
    """

    def __init__(self, experiment: Mapping[str, Any]) -> None:
        files = [str(Path(bundle_root(), name)) for name in experiment["config_file"]]
        ids = {key: value for key, value in experiment.items() if key != "config_file"}
        super().__init__(files, logging_file=False, workflow_type=None, **ids)
        self.experiment = dict(experiment)

    @property
    def kind(self) -> Kind:
        """What the run does."""
        steps = str(self.parser.get("run"))
        if "@segmenter" in steps:
            return "large volumes"
        if "@train::trainer" in steps:
            return "training"
        return "evaluation" if "train" in self.parser else "inference"

    def has(self, name: str) -> bool:
        """Whether there is an id."""
        return name in self.parser

    def part(self, name: str) -> Any:
        """The value of an id, made anew unless it was asked for before."""
        return self.parser.get_parsed_content(name)

    def resampled(self) -> bool:
        """Whether volumes are brought to `spacing`."""
        return self.has("geometry") and "Spacing" in str(self.parser["geometry"])

    def changed(self, **ids: Any) -> Run:
        """The same run with other values of some ids."""
        return Run({**self.experiment, **ids})


def read(report: Report, args_file: Path | None, ids: Mapping[str, Any]) -> Run | None:
    """Read the configs and hold them against what is known; None where they cannot be read."""
    run = None
    experiment: dict[str, Any] = {}
    with report.check(PART, "files") as row:
        experiment = {**(read_json(args_file) if args_file else {}), **ids}
        files = [str(name) for name in ensure_tuple(experiment.get("config_file") or ())]
        if not files:
            raise InputError(
                f"{args_file} has no list under 'config_file': name an args file of an experiment"
            )
        several = [name for name in files if Path(name).name == SEVERAL]
        experiment["config_file"] = [name for name in files if name not in several]
        for name in (name for name in files if name.endswith(".json")):
            read_json(Path(bundle_root(), name))
        row.found = ", ".join(files)
        row.values = {"files": files}
        if several:
            row.status = "warning"
            row.fix = f"{SEVERAL} is left out here: what follows is true of one process alone"
    if report.worst(PART) == "error":
        return None
    with report.check(PART, SETTINGS) as row:
        try:
            run = Run(experiment)
        except (KeyError, ValueError):
            parser_of(experiment)  # has a sentence for it
            raise
        settings.check(run.parser)
        row.found = f"{run.kind}: ids, arguments, types and ranges are known"
        row.values = {"kind": run.kind}
    return run


def refuse_unread(report: Report, ids: Mapping[str, Any]) -> None:
    """An error for each id that nothing reads where there are no configs."""
    for name in ids.keys() - {ALONE}:
        known = nearest(name, ("args_file", "config_file", ALONE))
        report.add(
            PART,
            SETTINGS,
            f"--{name} {ids[name]}: without configs --{ALONE} is the only id{known}",
            "error",
            "correct the name, or give --args_file or --config_file too",
        )


def check(report: Report, run: Run) -> None:
    """All that the configs say by themselves, without a look at the data."""
    with report.check(PART, "dimensions") as row:
        _dimensions(run, row)
    with report.check(PART, "labels") as row:
        _labels(run, row)
    with report.check(PART, "device") as row:
        _device(run, row)
    with report.check(PART, "output_dir"):
        output = Path(run.part("output_dir"))
        place(report, PART, "output_dir", output, "give another --output_dir, or the right to write there")
        if output.is_dir():  # another run may be at work in it
            locks.hold(
                output, "inference" if run.kind == "large volumes" else run.kind, Finding(PART, "lock")
            )
    if run.kind == "training":
        with report.check(PART, "schedule") as row:
            _schedule(run, row)
        with report.check(PART, "resume") as row:
            _resume(run, row)
        with report.check(PART, "workers") as row:
            _workers(run, row)
    if not report.has_error(*NEEDED):
        with report.check(PART, "network") as row:
            _network(run, row)
        with report.check(PART, "inferer") as row:
            inferer = run.part("inferer")
            row.found = type(inferer).__name__
        if run.kind != "training":
            with report.check(PART, "weights") as row:
                _weights(run, row)
            with report.check(PART, "recipe") as row:
                run.part("recipe")
                row.found = "nothing in the configs contradicts it"


def _dimensions(run: Run, row: Finding) -> None:
    """spatial_dims against all that has a number for each axis."""
    dims = run.part("spatial_dims")
    for name in ["patch_size"] + ["spacing"] * run.resampled():
        value = run.part(name)
        if len(value) != dims:
            raise InputError(
                f"{name} is {value} and spatial_dims {dims}: give {dims} numbers, or set spatial_dims"
            )
        row.values[name] = list(value)
    row.values |= {"spatial_dims": dims, "in_channels": run.part("in_channels")}
    row.found = ", ".join(f"{name} {value}" for name, value in row.values.items())


def _labels(run: Run, row: Finding) -> None:
    """Names and values of classes, and the codes for DICOM."""
    labels = run.part("labels")
    if len(set(labels.values())) != len(labels) or len(class_names(labels)) < 2:
        raise InputError(
            f"labels is {labels}: give two classes or more, the background first, each a number of its own"
        )
    row.found = ", ".join(f"{name}={value}" for name, value in labels.items())
    row.values = {"labels": labels}
    segments = run.part("segments") if run.has("segments") else {}
    unknown = [name for name in segments if name not in labels]
    if unknown:
        row.status = "warning"
        row.found += f"; segments has codes for {', '.join(unknown)}, of which labels knows nothing"
        row.fix = "give them the names of labels, or set segments to {}"


def _device(run: Run, row: Finding) -> None:
    """Where the network runs, in which precision, compiled by what."""
    device = run.part("device")
    try:
        device = torch.device(device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, TypeError):
        raise InputError(
            f"device is {str(device)!r}, on which nothing can be computed here: use cpu, or cuda where "
            "PyTorch sees a GPU"
        ) from None
    dtype = mixed_precision(device) if run.has("amp") and run.part("amp") else None
    row.found = f"{device}, in {str(dtype or torch.float32).removeprefix('torch.')}"
    row.values = {"device": str(device), "precision": str(dtype or torch.float32).removeprefix("torch.")}
    if run.has("amp") and run.part("amp") and dtype is None:
        row.found += " (amp: no half precision in hardware)"
    compiles = (run.has("compile") and run.part("compile")) or run.part("runtime") == "compile"
    if compiles and not can_compile(device):
        row.status = "warning"
        row.found += "; compile is asked for, and there is no compiler"
        row.fix = "install a C++ compiler such as g++, or leave compile out: the run goes on without"


def _schedule(run: Run, row: Finding) -> None:
    """Minutes, or epochs, validations and patience."""
    if (minutes := run.part("minutes")) is not None:
        row.found = f"{minutes:g} minutes: max_epochs, steps_per_epoch and val_interval follow from a step"
        row.values = {"minutes": minutes}
        return
    epochs, interval, patience = (run.part(name) for name in ("max_epochs", "val_interval", "patience"))
    row.found = f"{epochs} epochs, a validation every {interval}"
    row.values = {"max_epochs": epochs, "val_interval": interval}
    if patience < min(interval, epochs):
        row.status = "warning"
        row.found += f", and patience {patience} ends the training at the first one without a better score"
        row.fix = "set patience to several times val_interval"


def _resume(run: Run, row: Finding) -> None:
    """What lies in output_dir already."""
    last = Path(run.part("output_dir")).expanduser() / "checkpoints" / "last.pt"
    if run.part("resume") and not last.exists():
        row.status, row.found = "warning", f"resume is set, and there is nothing to go on from: {last}"
        row.fix = "correct output_dir, or start without resume"
    elif not run.part("resume") and last.exists():
        row.status, row.found = "warning", f"{last} is of an earlier training, which starts afresh"
        row.fix = "add --resume True to go on, or give another --output_dir"
    else:
        row.found = f"goes on from {last}" if last.exists() else "starts afresh"


def _workers(run: Run, row: Finding) -> None:
    """Data workers against cores."""
    workers, cores = run.part("num_workers"), usable_cores()
    row.found = f"num_workers {workers} on {cores} core(s)"
    row.values = {"num_workers": workers, "cores": cores}
    if workers > cores:
        row.status, row.fix = "warning", f"workers wait for each other: set num_workers to {cores} or fewer"


def _network(run: Run, row: Finding) -> None:
    """The network, whether it takes a patch, and what it makes of it."""
    network: nn.Module = run.part("network_def")
    patch = run.part("patch_size")
    count = sum(weight.numel() for weight in network.parameters())
    predicted = Sizes(network, run.part("in_channels")).output(patch)
    logits = main_logits(dry_run(network, (2, run.part("in_channels"), *patch)))
    classes = count_classes(run.part("labels"))
    if logits.shape[1] != classes:
        raise InputError(
            f"network_def gives {logits.shape[1]} classes and labels has {classes}: set its out_channels to "
            "@out_channels"
        )
    sizes = f"{list(patch)} in, {list(predicted)} out"
    row.found = f"{type(network).__name__}, {count / 1e6:.1f} million weights, {sizes}"
    row.values = {"weights": count, "patch_size": list(patch), "output_size": list(predicted)}


def _weights(run: Run, row: Finding) -> None:
    """Whether the files of weights are there, whole and of this network."""
    checkpoint = run.part("checkpoint")
    paths = [Path(path) for path in ([checkpoint] if isinstance(checkpoint, str | Path) else checkpoint)]
    exported = "Exported" in str(run.parser["network"].get("_target_"))
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path}: no such checkpoint; train first, or name one with --checkpoint")
        if not exported:
            check_weights(run.part("network_def"), read_weights(path), path)
    row.found = ", ".join(map(str, paths))
