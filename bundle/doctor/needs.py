"""The memory and the disk that a run is going to take, against what is there; nothing is computed yet."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import torch

from bundle.doctor.data import Cases
from bundle.doctor.environment import existing
from bundle.doctor.report import Finding, Report
from bundle.doctor.runs import Run
from scripts.compute.inferers import SlabInferer
from scripts.compute.memory import training_bytes
from scripts.labels import count_classes
from scripts.machine import gigabytes
from scripts.process import available_memory

PART = "memory"

#: What a training step takes over what its tensors take: memory that is free but in pieces, and layouts of
#: the library. Upper bound of what UNets of 0.5 to 2 million weights took in two and three dimensions.
STEP_FACTOR = 2.0

#: Copies of the weights beside them: gradients, two moments of AdamW.
STATE_COPIES = 3

#: Copies of the weights on disk: model.pt, model.safetensors, last.pt with the moments and the best weights,
#: and a new one of the largest beside it before it is renamed. Bytes of all else: pictures, curves and such.
DISK_COPIES, DISK_BESIDE = 10, 100e6

#: From this share of what is there on it is told.
NEARLY = 0.8

#: Batches of each worker that wait in shared memory.
PREFETCHED = 2


def check(report: Report, run: Run, cases: Cases) -> None:
    """What is needed, row by row, and all of it together."""
    report.begin(PART, "adding up")
    device = torch.device(run.part("device"))
    needs: dict[str, float] = {}
    if run.kind == "training":
        with report.check(PART, "step") as row:
            needs["step"] = _step(run, device, row)
        with report.check(PART, "cache") as row:
            needs["cache"] = _cache(run, cases, row)
        with report.check(PART, "shared memory") as row:
            _shared(run, row)
    with report.check(PART, "largest case") as row:
        needs["case"] = _case(run, cases, device, row)
    with report.check(PART, "all") as row:
        _all(needs, device, row)
    with report.check(PART, "disk") as row:
        _disk(run, cases, row)


def _judge(row: Finding, need: float, room: float, what: str, fix: str) -> None:
    """Hold a need against the room."""
    row.values |= {"needed_bytes": round(need), "available_bytes": None if math.isinf(room) else round(room)}
    if need > room:
        row.status, row.fix = "error", fix
    elif need > NEARLY * room:
        row.status, row.fix = "warning", fix
    there = "" if math.isinf(room) else f", {gigabytes(room)} are there"
    row.found = f"{what} {gigabytes(need)}{there}"


def _step(run: Run, device: torch.device, row: Finding) -> float:
    """A training step: the tensors of forward and backward pass, weights, gradients and moments."""
    network = run.changed(memory_format="channels_last").part("network")  # not tried before it fits
    size = (run.part("batch_size"), run.part("in_channels"), *run.part("patch_size"))
    network.train()
    weights = sum(weight.nbytes for weight in network.parameters())
    need = STEP_FACTOR * training_bytes(network, size, device) + (1 + STATE_COPIES) * weights
    fix = "lower --batch_size, then --patch_size, then --channels"
    room = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
    _judge(row, need, room, f"a step on {list(size)} takes up to", fix)
    return 0.0 if device.type == "cuda" else need


def _cache(run: Run, cases: Cases, row: Finding) -> float:
    """All cases that are kept after resampling, in files as far as these go and else in memory."""
    rate, prepared = float(run.part("cache_rate")), run.part("prepared")
    kept = sum(
        cases.grids[case["case"]].bytes_to_keep(labelled=True)
        for name in ("training", "validation")
        for case in cases.lists[name]
        if case["case"] in cases.grids
    )
    files = min(rate * kept, prepared.limit())
    held = rate * kept - files
    room = available_memory()
    part = min((room + files) / kept, 2) if kept else 2.0
    share = math.floor(50 * part) / 100  # half of it: a step needs some too
    what = f"cache_rate {rate:g}"
    what += " keeps all cases as the network sees them in" if rate == 1 else ":"
    what += f" {gigabytes(files)} of files in {prepared.place} and in memory" if files else ""
    fix = f"set --cache_rate {share:g}, a larger --cache_gb where the disk has room, or a larger --spacing"
    _judge(row, held, room, what, fix)
    row.values["file_bytes"] = round(files)
    return held


def _shared(run: Run, row: Finding) -> None:
    """Patches that workers hand over."""
    workers, place = run.part("num_workers"), Path("/dev/shm")
    if not workers or not place.is_dir():
        return
    voxels = run.part("batch_size") * math.prod(run.part("patch_size"))
    need = workers * PREFETCHED * 4.0 * (run.part("in_channels") + 1) * voxels
    what = f"batches of {workers} workers take up to"
    _judge(
        row,
        need,
        shutil.disk_usage(place).free,
        what,
        "start the container with --shm-size=2g, or lower --num_workers",
    )


def _case(run: Run, cases: Cases, device: torch.device, row: Finding) -> float:
    """The prediction of the largest case."""
    section = "validation" if run.kind == "training" else "images"
    known = cases.known(section)
    if not known:
        return 0.0
    case, grids = known[-1]
    classes = count_classes(run.part("labels"))
    about = classes, run.kind != "inference", cases.room.tile
    need = grids.bytes_to_segment(*about)
    if cases.beside:  # the last one is finished meanwhile and the next one loaded
        meanwhile = max(grids.bytes_to_load(about[1]), grids.bytes_to_finish(*about))
        need = grids.bytes_to_predict(*about) + meanwhile
    network, inferer = run.part("network_def").eval(), run.part("inferer")
    inner = getattr(inferer, "inferer", inferer)
    if isinstance(inner, SlabInferer) and device.type == "cpu":
        tile = inner.full_tile(grids.seen_shape)
        batch = inner.sw_batch_size
        if inner.memory_gb is None:
            batch = max(batch, inner.runtime.abreast(network, tile, torch.get_num_threads()))
        peak, _ = inner.runtime.peak_bytes(network, (batch, grids.channels, *tile))
        need += peak if inner.memory_gb is None else min(peak, 1e9 * inner.memory_gb)
    what = (
        f"{case['case']} of {list(grids.shape)} voxels, {list(grids.seen_shape)} for the network, takes up to"
    )
    fix = "crop it, set a larger --spacing, give --memory_gb, or segment it with configs/large_volume.json"
    room = available_memory()
    if device.type == "cuda":  # the image and its logits lie there
        room = min(room, torch.cuda.mem_get_info(device)[0])
    _judge(row, need, room, what, fix)
    row.values["case"] = case["case"]
    return need


def _all(needs: dict[str, float], device: torch.device, row: Finding) -> None:
    """What is there at the same time."""
    need = needs.get("cache", 0.0) + max(needs.get("step", 0.0), needs.get("case", 0.0))
    fix = "lower --cache_rate or --patch_size, set a larger --spacing, or end other programs"
    _judge(
        row, need, available_memory(), "main memory for all of it, beside the programs themselves: up to", fix
    )


def _disk(run: Run, cases: Cases, row: Finding) -> None:
    """What is going to be written."""
    place = existing(Path(run.part("output_dir")))
    if run.kind == "training":
        weights = sum(weight.nbytes for weight in run.part("network_def").parameters())
        need = DISK_COPIES * weights + DISK_BESIDE
    else:
        voxels = sum(math.prod(grids.shape) for grids in cases.grids.values())
        probabilities = _flag(run, "save_probabilities")
        need = voxels * (1 + 4.0 * count_classes(run.part("labels")) * probabilities)
    fix = "make room, or give another --output_dir"
    _judge(row, need, shutil.disk_usage(place).free, f"{place}: written, uncompressed, up to", fix)


def _flag(run: Run, name: str) -> bool:
    value: Any = run.part(name) if run.has(name) else False
    return bool(value)
