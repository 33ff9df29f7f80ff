"""What the data say of a training: an overlay on configs/train.json and configs/inference.json, with reasons.

A pure function of what `bundle.data.fingerprint` found and of what the user has: minutes, memory, cores. The
same data and arguments give the same file, on any machine.

Follows F. Isensee et al., "nnU-Net: a self-configuring method for deep learning-based biomedical image
segmentation", Nature Methods 18, 2021, in the median spacing, the patch in the shape of the median image,
kernels and strides along thick slices, and the normalisation of CT; sizes are those of a small machine.
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bundle.data.nnunet import Imported
from scripts.compute.memory import operations, training_bytes
from scripts.data.checks import Facts
from scripts.data.reader import round_size
from scripts.errors import InputError
from scripts.labels import IGNORE_NAME
from scripts.networks import UNet
from scripts.sides import sided_names

REASONS = "_reasons"
"""The id of the plan that says why, by id; what begins with _ is a note to `scripts.settings`."""

#: Voxels of a patch, and of one axis of it; along the slices of thick ones more.
PATCH_VOXELS = {2: 256 * 256, 3: 80 * 80 * 80}
PATCH_CAP = {2: 256, 3: 96}
PATCH_STEP = 16

#: An image below this along an axis is not halved there; most levels; fewest voxels of the smallest map.
MOST_LEVELS, SMALLEST_MAP = 5, 4

#: Slices are thick where a voxel is so much longer along one axis; few where there are less of them, which
#: halved twice leave a map with fewer than SMALLEST_MAP voxels along them.
THICK, FEW_SLICES = 3.0, 16

#: Millimetres between slices that are left as they are, whatever the median.
ANY_EDGE = 1e4

#: Widths: of the first level, and most of any.
BASE, MOST_CHANNELS = 16, {2: 512, 3: 320}

#: Floating point operations a second of one core that trains, for the choice of sizes alone: measured in
#: float32, 12 to 30 billion. Steps that a training should have, those from which on the network may be twice
#: as wide, and those without which there is no use in it.
RATE = 15e9
STEPS, MANY_STEPS, FEWEST_STEPS = 1000, 4000, 200

#: Gigabytes of a process beside the tensors of a step; bytes for each weight, with gradient and optimizer.
PROCESS_GB, WEIGHT_BYTES = 1.0, 16

#: A training of fewer steps than this within `EPOCHS` epochs gets more of them, up to the most.
ENOUGH_STEPS, EPOCHS, MOST_EPOCHS = 2000, 40, 400
MOST_SAMPLES = 8

#: Objects of a median width above this are learnt at a coarser resolution, at which they have about this
#: width: a network of five levels sees about 180 pixels. The smallest keep as many pixels as the second says.
OBJECT_WIDTH, LEAST_WIDTH = 60, 16

#: Labels are sparse around the objects alone where more of the voxels than this share are far from them.
MUCH_FAR = 0.05

#: Voxels that look alike have the same class in so many finest edges around each, where labels are scribbles.
NEIGHBOURS = 5

#: Where a scan ends and an error in the header begins: edges of a voxel in mm, and how often the edge of one
#: case may be that of the median case.
LONGEST_EDGE, SHORTEST_EDGE, MOST_RATIO = 100.0, 0.01, 20.0


ORIENT: dict[str, Any] = {
    "_target_": "Orientationd",
    "keys": "$list(@interpolation)",
    "axcodes": "RAS",
    "labels": None,
}
RESAMPLE: dict[str, Any] = {
    "_target_": "scripts.transforms.IsolatedSpacingd",
    "keys": "$list(@interpolation)",
    "pixdim": "@spacing",
    "mode": "$list(@interpolation.values())",
}


@dataclass(frozen=True)
class Size:
    """What a network sees and how large it is.

    Attributes:
        patch: voxels an axis.
        strides: of each down-step, one an axis that the network sees.
        kernels: of each level, one an axis that the network sees.
        channels: of each level.
        batch: patches in a step.
    """

    patch: list[int]
    strides: list[list[int]]
    kernels: list[list[int]]
    channels: list[int]
    batch: int


class _Plan:
    """Ids with their values and reasons, in the order in which they were decided."""

    def __init__(self) -> None:
        self.task: dict[str, Any] = {}
        self.reasons: dict[str, str] = {}

    def set(self, name: str, value: Any, why: str) -> None:
        self.task[name] = value
        self.reasons[name] = why


def plan_task(
    facts: Sequence[Facts],
    *,
    spatial_dims: int,
    in_channels: int,
    labels: Mapping[str, int],
    instances: bool = False,
    pictures: bool = False,
    modality: Sequence[str] = (),
    minutes: float | None = None,
    memory_gb: float | None = None,
    cores: int = 1,
    imported: Imported | None = None,
) -> dict[str, Any]:
    """Decide how to train on what was found.

    Args:
        facts: of all cases, with what `bundle.data.fingerprint.look_at` found; without it the defaults hold.
        spatial_dims: 2 or 3.
        in_channels: channels of an image.
        labels: name to value; not used for instances, which are learnt as interior and border.
        instances: labels number the instances.
        pictures: images are PNG, TIFF, BMP or JPEG, not NIfTI.
        modality: what the source calls its channels, such as "CT".
        minutes: of the training; None: no limit.
        memory_gb: of the training's process; None: no limit.
        cores: that train, by which `minutes` are judged.
        imported: resolution, sizes, network and normalisation that another tool planned; minutes and memory
            then change nothing.

    Returns:
        The overlay; under `REASONS` why, by id. `patch_size` in voxels along RAS axes in 3D and
        (width, height) in 2D, `spacing` in mm.

    Raises:
        InputError: spacings that cannot be; too little time or memory for any network.
    """
    _require_likely(facts)
    plan = _Plan()
    plan.set("spatial_dims", spatial_dims, "as the files have")
    plan.set("in_channels", in_channels, "as the files have, or the source says")
    if instances:
        plan.set("instances", True, "--instances: labels number the objects")
        plan.set("val_measure", "ap50", "the best epoch is the one whose objects are found best")
        named = {"background": 0, "interior": 1, "border": 2}
        why = "touching objects are told apart by a class of their border"
        if IGNORE_NAME in labels:
            named[IGNORE_NAME] = labels[IGNORE_NAME]
            why += f"; objects are never numbered {labels[IGNORE_NAME]}, where nobody annotated"
        plan.set("labels", named, why)
    else:
        ordered = dict(sorted(labels.items(), key=lambda label: label[1]))
        plan.set("labels", ordered, "names and values of the classes")
    plan.set("segments", {}, "to be filled with codes where results are to be DICOM")

    if imported is None:
        median, spacing, zoom = _resolution(plan, facts, spatial_dims, instances, pictures)
        classes = len(plan.task["labels"]) - (IGNORE_NAME in labels)
        slices = _slice_axis(median, spacing)
        size = _size(plan, median, spacing, slices, in_channels, classes, minutes, memory_gb, cores)
    else:
        median, spacing, slices, size = _import(plan, imported, facts, pictures)
        zoom = 1
    sides = sided_names(labels)
    shares = _shares(facts, labels, instances)
    _length(plan, median, size, len(facts))
    _loss(plan, shares, instances)
    if imported is None or imported.normalise is None:
        _normalisation(plan, facts, spatial_dims, modality)
    else:
        plan.set("normalise", imported.normalise, f"as {imported.name} has it")
    _augmentation(plan, size, spacing, slices, shares, sides)
    _sparse(plan, facts, labels, spacing, slices)
    if pictures:
        plan.set("output_ext", ".png", "results are pictures, as the images are")
    if instances:
        _objects(plan, facts, spatial_dims, zoom)
    return {**plan.task, REASONS: plan.reasons}


def guess_modality(facts: Sequence[Facts], spatial_dims: int, declared: Sequence[str]) -> tuple[str, str]:
    """What kind of images these are, and why that is thought.

    Returns:
        "CT", "MR", "fluorescence", "brightfield", "colour", "grey" (electron microscopy, phase contrast) or
        "unknown".
    """
    words = " ".join(map(str, declared))
    if re.search(r"\bCT\b", words, re.IGNORECASE):
        return "CT", f"the source calls it {words!r}"
    if re.search(r"\b(MRI?|T1|T2|FLAIR|T1w|T2w|T1gd|T1ce|ADC|DWI)\b", words, re.IGNORECASE):
        return "MR", f"the source calls it {words!r}"
    whole = [[channel["whole"] for channel in case.found["channels"]] for case in facts if case.found]
    if not whole:
        return "unknown", "nothing is known of intensities"
    if spatial_dims == 3:
        low = float(np.median([case[0]["percentiles"][0] for case in whole]))
        numbers = all(case.found["channels"][0]["whole_numbers"] for case in facts if case.found)
        if len(whole[0]) == 1 and numbers and -1200 <= low <= -500:
            return "CT", f"whole numbers from {low:g} on look like Hounsfield units"
        return "MR", f"a volume whose intensities begin at {low:g} is no CT, and is taken for MR"
    places = []
    for case in whole:
        low, middle, high = np.mean([channel["percentiles"] for channel in case], axis=0)
        places.append((middle - low) / (high - low) if high > low else 0.5)
    place = float(np.median(places))
    where = f"the median of a picture lies at {place:.0%} of its range".replace("%", " percent")
    if place < 0.25:
        return "fluorescence", f"{where}: bright on dark"
    if len(whole[0]) >= 3:
        return "colour", f"{len(whole[0])} channels; {where}"
    if place > 0.6:
        return "brightfield", f"{where}: a bright ground"
    return "grey", f"{where}: no dark and no bright ground, as in electron microscopy and phase contrast"


def _require_likely(facts: Sequence[Facts]) -> None:
    """Refuse spacings that no scanner has.

    Raises:
        InputError: says what is wrong, and with how many cases.
    """
    known = [case.spacing for case in facts if case.spacing is not None]
    if not known:
        return
    median = np.median(known, axis=0)
    if median.max() > LONGEST_EDGE:
        raise InputError(
            f"the voxels of the median case measure {_by(median)} mm; an edge is at most {LONGEST_EDGE:g} "
            "mm: write the right spacing, in mm, into the headers"
        )
    far = [edges for edges in known if max(np.max(edges / median), np.max(median / edges)) > MOST_RATIO]
    if far:
        raise InputError(
            f"{len(far)} of {len(known)} cases have voxels such as {_by(far[0])} mm, the median case "
            f"{_by(median)} mm; they may differ by {MOST_RATIO:g} times at most: write all headers in mm, or "
            "take those cases out"
        )


def _resolution(
    plan: _Plan, facts: Sequence[Facts], dims: int, instances: bool, pictures: bool
) -> tuple[list[float], list[float], int]:
    """Median size in voxels at the resolution of the training, its spacing, and how much coarser it is."""
    if dims == 3:
        return *_volumes(plan, facts), 1
    shape = np.median([case.shape for case in facts], axis=0)
    zoom, why = _zoom(facts, instances)
    if zoom == 1:
        plan.set("geometry", [], why)
        return shape.tolist(), [1.0, 1.0], 1
    edges = [case.spacing for case in facts if case.spacing is not None and not pictures] or [(1.0, 1.0)]
    plan.set("spacing", [round_size(edge * zoom) for edge in np.median(edges, axis=0)], why)
    plan.set("geometry", [RESAMPLE], "resampled to spacing; probabilities come back to the file's pixels")
    return (shape / zoom).tolist(), [1.0, 1.0], zoom


def _volumes(plan: _Plan, facts: Sequence[Facts]) -> tuple[list[float], list[float]]:
    """Median size in voxels at the resolution of the training, and its spacing."""
    as_filed = _as_filed(facts)
    grids = as_filed or [(case.shape, case.spacing or (1.0,) * 3) for case in facts]
    spacing = [round_size(size) for size in np.median([edges for _, edges in grids], axis=0)]
    median = (np.median([np.multiply(*grid) for grid in grids], axis=0) / spacing).tolist()
    why = "the median of each axis; volumes are resampled to it, and results back to the file's grid"
    if min(spacing) < SHORTEST_EDGE:
        why += f"; {_by(spacing)} mm is much for a microscope only: look whether the headers are in mm"
    thick, slices = _thick(spacing), _slice_axis(median, spacing)
    if slices is not None:
        why += f"; but along axis {slices}, where slices stay as they are"
    elif thick is not None:
        why += (
            f"; axis {thick} has thick slices ({max(spacing) / min(spacing):.3g} times the width): "
            "it is not made finer, and kernels and strides see to it"
        )
    plan.set("spacing", spacing, why)
    _geometry(plan, slices, bool(as_filed))
    return median, spacing


def _geometry(plan: _Plan, slices: int | None, as_filed: bool) -> None:
    """How volumes are brought to the spacing, where that is not as `train.json` has it.

    Args:
        plan: takes it.
        slices: the axis along which slices stay as they are, or None.
        as_filed: axes are those of the files, not of the body.
    """
    geometry, said = [ORIENT, RESAMPLE], []
    if as_filed:
        geometry = [RESAMPLE]
        said.append("axes are those of the files, which lie in the body one way here and another there")
    if slices is not None:
        low, high = ([edge if axis == slices else None for axis in range(3)] for edge in (0.0, ANY_EDGE))
        geometry[-1] = {**RESAMPLE, "min_pixdim": low, "max_pixdim": high}
        said.append("slices are resampled in their plane alone: between thick ones nothing is known")
    if said:
        plan.set("geometry", geometry, "; ".join(said))


def _import(
    plan: _Plan, imported: Imported, facts: Sequence[Facts], pictures: bool
) -> tuple[list[float], list[float], int | None, Size]:
    """What was planned elsewhere: median size in voxels, spacing, the axis of slices, and the sizes."""
    why = f"as {imported.name} has it"
    orders = {tuple(_order(case.found["axes"])) for case in facts if "axes" in case.found}
    as_filed = len(orders) > 1
    if len(orders) == 1:
        imported = imported.along(orders.pop())
    if len(imported.patch) == 3:
        plan.set("spacing", imported.spacing, why)
        _geometry(plan, imported.slices, as_filed)
    elif pictures:
        plan.set("geometry", [], "pictures are not resampled")
    else:
        plan.set("spacing", imported.spacing, why)
        plan.set("geometry", [RESAMPLE], "resampled to spacing")
    grids = [_filed(case) if as_filed else (case.shape, case.spacing) for case in facts]
    sizes = [np.multiply(shape, edges or imported.spacing) / imported.spacing for shape, edges in grids]
    size = Size(imported.patch, imported.strides, imported.kernels, imported.channels, imported.batch)
    plan.set("patch_size", size.patch, why)
    plan.set("channels", size.channels, why)
    plan.set("network_def", imported.network(), why)
    plan.set("batch_size", size.batch, why)
    plan.set("learning_rate", 0.001, "that of wide networks; nnU-Net's is of another optimizer")
    return np.median(sizes, axis=0).tolist(), imported.spacing, imported.slices, size


def _order(axes: str) -> list[int]:
    """For each axis of a file, named by where it leads, such as "LPS", which one of RAS it is."""
    return ["LPI".index(name) if name in "LPI" else "RAS".index(name) for name in axes]


def _filed(case: Facts) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Shape and edges of a volume along the axes of its file."""
    order, edges = _order(case.found["axes"]), case.spacing or (1.0,) * 3
    return tuple(case.shape[axis] for axis in order), tuple(edges[axis] for axis in order)


def _as_filed(facts: Sequence[Facts]) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
    """Shapes and edges along the axes of the files, where slices are thick along one of these in all cases,
    and along several axes of the body, as those of tilted scans are; else none."""
    of_body = {_thick(case.spacing or (1.0,)) for case in facts}
    if len(of_body) == 1 or None in of_body or not all("axes" in case.found for case in facts):
        return []
    grids = [_filed(case) for case in facts]
    return grids if len({_thick(edges) for _, edges in grids}) == 1 else []


def _zoom(facts: Sequence[Facts], instances: bool) -> tuple[int, str]:
    """By how much pictures are made smaller, so that what is in them fits into what the network sees."""
    if instances:
        widths = object_widths(facts, 2)
        what = "objects"
    else:
        listed = [case.found["widths"] for case in facts if case.found.get("widths")]
        values = {value for case in listed for value in case}
        medians = [np.median([case[value] for case in listed if value in case]) for value in sorted(values)]
        widths = np.array(sorted(medians)[:1])
        what = "the thinnest class"
    if not len(widths):
        return 1, "pictures are not resampled"
    middle, small = np.percentile(widths, (50, 10))
    zoom = max(min(round(middle / OBJECT_WIDTH), int(small / LEAST_WIDTH)), 1)
    said = f"{what}: {middle:.3g} pixels wide in the middle"
    if zoom == 1:
        return 1, f"pictures are not resampled ({said})"
    return zoom, f"{said}, more than a network sees well: pictures are made {zoom} times smaller"


def object_widths(facts: Sequence[Facts], dims: int) -> np.ndarray:
    """Diameters of the circles, or spheres, as large as the objects of all cases, in pixels or voxels."""
    voxels = np.array([n for case in facts for value, n in case.voxels.items() if value > 0], dtype=float)
    return 2 * np.sqrt(voxels / np.pi) if dims == 2 else np.cbrt(6 * voxels / np.pi)


def _thick(spacing: Sequence[float]) -> int | None:
    """The axis along which slices are thick."""
    return int(np.argmax(spacing)) if max(spacing) > THICK * min(spacing) else None


def _slice_axis(sizes: Sequence[float], spacing: Sequence[float]) -> int | None:
    """The axis along which slices are thick and few, so that each is segmented by itself."""
    thick = _thick(spacing)
    return thick if len(sizes) == 3 and thick is not None and sizes[thick] < FEW_SLICES else None


def _without(values: Sequence[Any], axis: int | None) -> list[Any]:
    return [value for n, value in enumerate(values) if n != axis]


def network_levels(
    sizes: Sequence[float], spacing: Sequence[float]
) -> tuple[list[list[int]], list[list[int]]]:
    """Strides of the down-steps and kernels of the levels for patches of about these sizes.

    Where slices are thick, kernels are 1 and strides are 1 along them until voxels are nearly isotropic.

    Args:
        sizes: voxels an axis.
        spacing: edges of a voxel, one an axis.
    """
    thick = _thick(spacing)
    size, edges = list(sizes), list(spacing)
    strides: list[list[int]] = []
    kernels: list[list[int]] = []
    seen = [axis != thick for axis in range(len(size))]
    while True:
        near = [edge <= 2 * min(edges) for edge in edges]
        seen = [old or new for old, new in zip(seen, near, strict=True)]
        kernels.append([3 if own else 1 for own in seen])
        halved = [
            size[axis] >= 2 * SMALLEST_MAP and (thick is None or near[axis]) for axis in range(len(size))
        ]
        if len(kernels) == MOST_LEVELS or (not any(halved) and len(kernels) > 1):
            return strides, kernels
        if not any(halved):  # the smallest network has two levels
            halved = [axis != thick for axis in range(len(size))]
        strides.append([2 if half else 1 for half in halved])
        size = [n // stride for n, stride in zip(size, strides[-1], strict=True)]
        edges = [edge * stride for edge, stride in zip(edges, strides[-1], strict=True)]


def _candidates(
    median: Sequence[float], spacing: Sequence[float], minutes: float | None
) -> Iterator[tuple[Size, int]]:
    """Networks from large to small, and the steps that each should have."""
    dims = len(median)
    batch = {2: 4, 3: 2}[dims]
    if minutes is not None:
        yield _sized(median, spacing, 1.0, 2 * BASE, batch), MANY_STEPS
    for share, base, patches in (
        *(
            (1.0, BASE, batch),
            (1.0, BASE, 2),
            (0.7, BASE, 2),
            (0.5, BASE, 2),
            (0.35, BASE, 2),
            (0.25, BASE, 2),
        ),
        *((0.25, BASE // 2, 2), (0.125, BASE // 2, 2), (0.0625, BASE // 2, 2), (0.0625, BASE // 2, 1)),
    ):
        yield _sized(median, spacing, share, base, patches), STEPS


def _sized(median: Sequence[float], spacing: Sequence[float], share: float, base: int, batch: int) -> Size:
    """A network with a patch of the median image's shape, of at most a share of PATCH_VOXELS."""
    dims = len(median)
    thick = _thick(spacing)
    caps = [PATCH_CAP[dims] if thick in (None, axis) else PATCH_CAP[2] for axis in range(dims)]
    wanted = [min(float(size), cap) for size, cap in zip(median, caps, strict=True)]
    while math.prod(wanted) > share * PATCH_VOXELS[dims] and max(wanted) > 2 * PATCH_STEP:
        wanted[wanted.index(max(wanted))] -= PATCH_STEP
    strides, kernels = network_levels(wanted, spacing)
    steps = np.prod(strides, axis=0).tolist()
    patch = [max(math.ceil(size / step - 0.5), 1) * step for size, step in zip(wanted, steps, strict=True)]
    channels = [min(base * 2**level, MOST_CHANNELS[dims]) for level in range(len(kernels))]
    return Size(patch, strides, kernels, channels, batch)


def _size(
    plan: _Plan,
    median: Sequence[float],
    spacing: Sequence[float],
    slices: int | None,
    in_channels: int,
    classes: int,
    minutes: float | None,
    memory_gb: float | None,
    cores: int,
) -> Size:
    """The first candidate that fits into time and memory, written into the plan.

    Args:
        plan: takes it.
        median: size of the median image in voxels.
        spacing: edges of a voxel, one an axis.
        slices: the axis along which each slice is segmented by itself, or None.
        in_channels: see `plan_task`, as are those not named here.
        classes: of the network.
    """
    seen, edges = _without(median, slices), _without(spacing, slices)
    dims = len(seen)
    limits = []
    for size, steps in _candidates(seen, edges, minutes):
        fits = True
        if minutes is not None or memory_gb is not None:
            need_gb, work = _needs(size, in_channels, classes)
            limits.append((need_gb, work))
            least = steps * work / (RATE * cores * 60)
            fits = (minutes is None or least <= minutes) and (memory_gb is None or need_gb <= memory_gb)
        if fits:
            break
    else:  # the last one, if it is of any use at all
        need_gb, work = limits[-1]
        least = FEWEST_STEPS * work / (RATE * cores * 60)
        if memory_gb is not None and need_gb > memory_gb:
            raise InputError(
                f"--memory_gb is {memory_gb:g}; the smallest network takes about {need_gb:.1f} GB: give "
                f"{math.ceil(10 * need_gb) / 10:g} or more"
            )
        if minutes is not None and least > minutes:
            raise InputError(
                f"--minutes is {minutes:g}; {FEWEST_STEPS} steps of the smallest network take about "
                f"{least:.2g} on {cores} core(s): give {math.ceil(10 * least) / 10:g} or more"
            )
    limits_told = [f"{minutes:g} minutes on {cores} core(s)"] if minutes is not None else []
    limits_told += [f"{memory_gb:g} GB"] if memory_gb is not None else []
    limit = " and ".join(limits_told)
    within = f", within {limit}" if limit else ""
    if slices is not None:
        size = replace(size, patch=[*size.patch[:slices], 1, *size.patch[slices:]])
    plan.set(
        "patch_size",
        size.patch,
        f"the median image has {_by(median)} voxels; a patch has its shape, about {math.prod(size.patch):,} "
        f"voxels of it{within}, in multiples of what the strides divide by",
    )
    plan.set(
        "channels",
        size.channels,
        f"{len(size.channels)} levels, as long as a map keeps {SMALLEST_MAP} voxels an axis; "
        f"{size.channels[0]} channels in the first{within}",
    )
    if slices is not None:
        plan.set(
            "network_def::slice_axis",
            slices,
            f"the median volume has {median[slices]:.3g} slices, {spacing[slices]:.3g} mm apart, which is "
            f"{spacing[slices] / min(spacing):.3g} times the width of a voxel: too few to halve them, "
            "and outlines differ from one to the next; a network of two dimensions sees each by itself",
        )
    thick = _thick(edges)
    default = len(size.strides) * [[2] * dims], len(size.kernels) * [[3] * dims]
    if size.strides != default[0]:
        why = "an axis is halved as long as it is long enough"
        why += ", and across thick slices where voxels are nearly isotropic" if thick is not None else ""
        plan.set("network_def::strides", size.strides, why)
    if size.kernels != default[1]:
        why = "slices are thick: kernels do not reach across them until voxels are nearly isotropic"
        plan.set("network_def::kernel_sizes", size.kernels, why)
    plan.set("batch_size", size.batch, f"patches in a step{within}")
    slow = size.channels[0] > BASE
    why = f"0.002, or 0.001 where the first level has more than {BASE} channels"
    plan.set("learning_rate", 0.001 if slow else 0.002, why)
    return size


def _needs(size: Size, in_channels: int, classes: int) -> tuple[float, float]:
    """Gigabytes of a training, and operations of a step; both grow with the voxels of a batch."""
    strides, kernels = (tuple(map(tuple, axes)) for axes in (size.strides, size.kernels))
    weights, held, work = _costs(in_channels, classes, tuple(size.channels), strides, kernels)
    voxels = size.batch * math.prod(size.patch)
    return PROCESS_GB + (WEIGHT_BYTES * weights + held * voxels) / 1e9, work * voxels


@functools.cache
def _costs(
    in_channels: int,
    classes: int,
    channels: tuple[int, ...],
    strides: tuple[tuple[int, ...], ...],
    kernels: tuple[tuple[int, ...], ...],
) -> tuple[int, float, float]:
    """Weights of a network, and for each voxel of a batch bytes and operations of a step."""
    network = UNet(len(kernels[0]), in_channels, classes, channels, strides, kernels)
    patch = [2 * step for step in np.prod(strides, axis=0).tolist()]
    batch = (1, in_channels, *patch)
    weights = sum(weight.numel() for weight in network.parameters())
    voxels = math.prod(patch)
    return (
        weights,
        training_bytes(network, batch) / voxels,
        operations(network, batch, training=True) / voxels,
    )


def _shares(facts: Sequence[Facts], labels: Mapping[str, int], instances: bool) -> list[float]:
    """What share of the known voxels each foreground class has; that of all objects for instances."""
    voxels = _voxels(facts)
    if instances:
        total = voxels.total()
        return [(total - voxels[0]) / total] if total else []
    named = {name: value for name, value in labels.items() if name != IGNORE_NAME}
    foreground = sorted(named.values())[1:]
    total = sum(voxels[value] for value in named.values()) + _far(facts)
    return [voxels[value] / total for value in foreground] if total else []


def _voxels(facts: Sequence[Facts]) -> Counter[int]:
    """Voxels of each value in all labels."""
    voxels: Counter[int] = Counter()
    for case in facts:
        voxels.update(case.voxels)
    return voxels


def _far(facts: Sequence[Facts]) -> int:
    """Voxels of all cases that nobody annotated and that lie where no foreground can be, if they are many."""
    far = sum(case.found.get("far", 0) for case in facts)
    return far if far > MUCH_FAR * sum(math.prod(case.shape) for case in facts) else 0


def _sparse(
    plan: _Plan,
    facts: Sequence[Facts],
    labels: Mapping[str, int],
    spacing: Sequence[float],
    slices: int | None,
) -> None:
    """Sparse labels that know nothing of most of the image, nor of the rims of objects.

    What lies far from all objects is background, and rims are laid where the image has edges.
    """
    far = _far(facts)
    if not far or IGNORE_NAME not in labels:
        return
    voxels = _voxels(facts)
    unknown = voxels.pop(labels[IGNORE_NAME])
    known = voxels.total()
    foreground = known - voxels[min(value for name, value in labels.items() if name != IGNORE_NAME)]
    steps = [
        {"_target_": "scripts.transforms.FarBackgroundd", "keys": "label"},
        {"_target_": "scripts.transforms.CountClassesd", "keys": "label"},
        "@patch",
        {"_target_": "ConcatItemsd", "keys": ["label", "image"], "name": "label"},
    ]
    total = known + unknown
    why = (
        f"{_percent(known / total)} of the voxels are annotated, and foreground is "
        f"{_percent(foreground / known)} of these, which it cannot be of the images: {_percent(far / total)} "
        "of all voxels lie further from every object than all that is annotated: these, and what lies beyond "
        "annotated background, are learnt as background, so that no objects are painted there; it "
        "holds where each object of a case is annotated in part, with background around it; where one may "
        "not be, take FarBackgroundd out; the image goes with the label into the loss"
    )
    plan.set("spatial", steps, why)
    finest = min(spacing)
    radius = [0 if axis == slices else round(NEIGHBOURS * finest / edge) for axis, edge in enumerate(spacing)]
    pairs = {"_target_": "scripts.losses.GatedCRFLoss", "loss": "@loss", "radius": radius}
    plan.set(
        "heads_loss",
        {"_target_": "scripts.losses.HeadsLoss", "loss": pairs},
        f"strokes do not show where an object ends: voxels that look alike, up to {_by(radius)} apart, are "
        "to have the same class, so that it ends where the image has an edge",
    )


def _length(plan: _Plan, median: Sequence[float], size: Size, cases: int) -> None:
    patches = max(round(math.prod(median) / math.prod(size.patch)), 1)
    samples = min(patches, MOST_SAMPLES)
    plan.set(
        "samples_per_case", samples, f"about {patches} patches fill a median image; at most {MOST_SAMPLES}"
    )
    steps = math.ceil(cases * samples / size.batch)
    epochs = min(max(5 * math.ceil(ENOUGH_STEPS / steps / 5), EPOCHS), MOST_EPOCHS)
    plan.set(
        "max_epochs", epochs, f"{EPOCHS}, or as many as make {ENOUGH_STEPS} steps, at most {MOST_EPOCHS}; an "
        f"epoch of all cases has {steps}"
    )  # fmt: skip
    plan.set("val_interval", max(epochs // 8, 5), "validated about eight times")


def _loss(plan: _Plan, shares: Sequence[float], instances: bool) -> None:
    much = not instances and sum(shares) > 0.5
    why = f"foreground is {_percent(sum(shares))} of what is known: "
    why += (
        "Dice, which leaves out class 0, is high wherever all is foreground: cross entropy has to tell"
        if much
        else "half Dice, which rare classes count in as much as others, and half cross entropy"
    )
    plan.set("alpha", 1.0 if much else 0.5, why)


def _normalisation(plan: _Plan, facts: Sequence[Facts], dims: int, declared: Sequence[str]) -> None:
    kind, because = guess_modality(facts, dims, declared)
    known = [case.found["channels"] for case in facts if case.found]
    scale: dict[str, Any] = {"_target_": "NormalizeIntensityd", "keys": "image", "channel_wise": True}
    normalise, why = [scale], "each channel by its own mean and standard deviation"
    foreground = [case[0]["foreground"] for case in known if case[0]["foreground"]]
    if kind == "CT" and len(known[0] if known else ()) == 1 and foreground:
        low, high = (round_size(np.median([own["percentiles"][n] for own in foreground])) for n in (0, 2))
        counts = np.array([own["voxels"] for own in foreground], dtype=float)
        means, stds = (np.array([own[key] for own in foreground]) for key in ("mean", "std"))
        mean = float(np.average(means, weights=counts))
        std = math.sqrt(float(np.average(stds**2 + (means - mean) ** 2, weights=counts)))
        if high > low and std > 0:
            clip = {
                "_target_": "ScaleIntensityRanged",
                "keys": "image",
                "a_min": low,
                "a_max": high,
                "b_min": round_size((low - mean) / std),
                "b_max": round_size((high - mean) / std),
                "clip": True,
            }
            normalise = [clip]
            why = (
                f"clipped to the 0.5th and 99.5th percentile of the foreground, then less its mean "
                f"({mean:.4g}) and divided by its standard deviation ({std:.4g})"
            )
    elif kind == "MR":
        empty = float(np.median([channel["zero"] for case in known for channel in case])) if known else 0.0
        if empty > 0.25:
            normalise = [{**scale, "nonzero": True}]
            why += f", within the body alone, as around it {_percent(empty)} of the voxels are 0"
    elif kind == "fluorescence":
        root = {"_target_": "AdjustContrastd", "keys": "image", "gamma": 0.5}
        normalise = [root, scale]
        why = f"the square root, for dim objects beside bright ones, then {why}"
    plan.set("normalise", normalise, f"{kind} ({because}): {why}")


def _augmentation(
    plan: _Plan,
    size: Size,
    spacing: Sequence[float],
    slices: int | None,
    shares: Sequence[float],
    sides: Sequence[str],
) -> None:
    dims, thick = len(size.patch), _thick(spacing)
    flat = dims == 2 or slices is not None
    free = dims == 2 and not sides
    if sides:
        flips: list[int] = []
        why = f"{', '.join(sides)} say left or right, and a mirrored image would show the other one"
    elif ORIENT not in plan.task.get("geometry", [ORIENT]) and dims == 3:
        flips, why = [], "along the axes of the files nothing says what is left and right"
    elif free:
        flips, why = [0, 1], "pictures are taken to have no up; where they have, take 1 out"
    else:
        flips, why = [0], "left and right of the body are mostly alike; for a heart take 0 out"
    plan.set("flip_axes", flips, why)

    rarest = min((share for share in shares if share > 0), default=1.0)
    attracted = 0.5 if rarest < 0.001 else 0.33 if dims == 3 or rarest < 0.02 else 0.0
    said = [f"foreground_prob {attracted:g}, as the rarest class has {_percent(rarest)} of the voxels"]
    said[0] += ", and volumes are mostly background" * (dims == 3 and attracted < 0.5)
    angle: float | list[float] = 3.14 if free else 0.2
    if thick is not None:
        angle = [0.5 if axis == thick else 0.0 for axis in range(dims)]
        said.append(f"rotations within the slices alone, about axis {thick}")
    else:
        said.append("rotated by any angle" if free else "rotated by up to 0.2 radians, as volumes have an up")
    points = 4
    apart = float(np.mean([n for axis, n in enumerate(size.patch) if axis != thick])) / (points - 1)
    elastic = round((0.07 if flat else 0.16) * apart, 1)
    said.append(f"elastic vectors of {elastic:g} where control points are {apart:.3g} voxels apart")
    patch = {
        "_target_": "scripts.transforms.RandSpatialPatchd",
        "keys": ["image", "label"],
        "modes": ["bilinear", "nearest"],
        "patch_size": "@patch_size",
        "label_size": "@label_size",
        "foreground_prob": attracted,
        "affine_prob": 0.7 if free else 0.5,
        "rotate_range": angle,
        "scale_range": [0.8, 1.25] if flat else [0.85, 1.18],
        "translate_range": 0.0 if flat else 3.0,
        "flip_axes": "@flip_axes",
        "elastic_prob": 0.3,
        "elastic_points": points,
        "elastic_std": elastic if thick is None else [elastic * (axis != thick) for axis in range(dims)],
        "outside": "@outside",
        "units": "pixel" if dims == 2 else "edge",
    }
    plan.set("patch", patch, "; ".join(said))


def _objects(plan: _Plan, facts: Sequence[Facts], dims: int, zoom: int) -> None:
    """How objects become classes, and classes objects: lengths of the one at the resolution of the training,
    of the other at that of the file."""
    widths = object_widths(facts, dims)
    if not len(widths):
        widths = np.array([20.0])
    middle, small = np.percentile(widths, (50, 1))
    thickness = int(np.clip(round(0.08 * middle / zoom), 2, 4)) if middle / zoom >= 12 else 1
    met = sum(case.found.get("touching", 0) for case in facts)
    share = met / len(widths)
    contacts = share >= 0.1
    targets = {
        "_target_": "scripts.transforms.InstancesToClassesd",
        "keys": "label",
        "thickness": thickness,
        "contacts": contacts,
    }
    wide = f"objects are {middle:.3g} voxels wide in the middle"
    why = f"{wide}: a border of {thickness}" + (f" at a resolution {zoom} times coarser" if zoom > 1 else "")
    why += f"; {_percent(share)} of them touch another: " + (
        "the border is where they do"
        if contacts
        else "too few to learn from, so that the border is all of the rim"
    )
    plan.set("targets", [targets], why)
    content = (math.pi / 4, math.pi / 6)[dims - 2]
    watershed = {
        "_target_": "scripts.transforms.WatershedInstancesd",
        "keys": "pred",
        "seed_threshold": 0.8,
        "neck": round(max(0.15 * middle, 1.0), 1),
        "max_hole": round(0.05 * content * middle**dims),
        "min_size": max(round(0.25 * content * small**dims), 10),
    }
    why = (
        f"{wide}: cut at necks that are thinner by 15 percent of it, holes of 5 percent of an object filled; "
        f"what is smaller than a quarter of the smallest ({small:.3g} wide) is none"
    )
    plan.set("to_labels", [watershed], why)


def _by(numbers: Sequence[float] | np.ndarray) -> str:
    return " x ".join(f"{number:.4g}" for number in numbers)


def _percent(share: float) -> str:
    return f"{100 * share:.2g} percent"  # MONAI reads a percent sign as a macro
