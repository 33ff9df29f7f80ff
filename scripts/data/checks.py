"""Read the files of a case whole and say what is wrong with them, before any training or prediction starts.

A case is `{"image": path or list of paths (a file per channel), "label": path, "case": id}`. The files are
read by `scripts.data.reader`; here they are judged.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from tqdm import tqdm

from scripts.data.grids import Grid, turn_onto, turned
from scripts.data.names import require_short
from scripts.data.nifti import Nifti, read_nifti_header
from scripts.data.pictures import Picture
from scripts.data.reader import grid_of, is_picture, read_dims, read_file
from scripts.dicom import SeriesFinder, padding_note, try_headers
from scripts.errors import Fault, InputError, few
from scripts.labels import IGNORE_NAME, WHOLE_TOLERANCE, class_names, nearest_whole, show_value

logger = logging.getLogger(__name__)

BACKGROUND_ALONE = "an empty label (nothing but background)"
"""What is found in a label without foreground."""

MAX_ROWS = 20
"""Rows of a problem table in an error message or a log entry."""

INTENSITIES = (1e-30, 1e30)
"""Limits of the largest intensity of an image: float32, in which it is normalised, holds sums of such."""

_THREADS = 2
_COUNTED_SPAN, _COUNTED_AT_ONCE = 1 << 16, 1 << 20  # values that are counted in a table, voxels at once
_Result = TypeVar("_Result")

Look = Callable[[Sequence[np.ndarray], np.ndarray, Grid], dict[str, Any]]
"""What else is to be found in a sound case: of its channel files, (*spatial, channel), its label, (*spatial),
both in the order of the first file, and where that lies."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with one file.

    Args:
        case: id of the case.
        file: path of the file.
        found: what the file holds, to follow the word "found".
        rule: what is asked for.
        fix: what the user can do.
        severity: an error stops the work, a warning is told.
    """

    case: str
    file: str
    found: str
    rule: str
    fix: str
    severity: Literal["error", "warning"] = "error"

    def sentence(self) -> str:
        """The whole problem in one sentence."""
        return str(Fault(self.found, self.rule, self.fix, self.file))


@dataclass(frozen=True)
class Facts:
    """What a sound case looks like.

    Args:
        shape: voxels per axis; in 3D after reorientation to RAS, in 2D (width, height).
        spacing: voxel edge in mm per axis of `shape`; None for pictures.
        voxels: number of label voxels of each value.
        found: what a `Look` found.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...] | None
    voxels: dict[int, int]
    found: dict[str, Any] = field(default_factory=dict)


def check_image(case: Mapping[str, Any], *, spatial_dims: int, in_channels: int) -> list[Problem]:
    """Check the image of a case and leave out its label, if it has one.

    Args:
        case: see the module.
        spatial_dims: 2 or 3.
        in_channels: channels that the network takes.

    Returns:
        All problems found.
    """
    return _inspect_image(case, spatial_dims, in_channels, None)[0]


def check_form(name: str, path: str) -> list[Problem]:
    """A warning for what the header of a NIfTI file says otherwise than where its voxels are taken to lie.

    Args:
        name: id of the case.
        path: a file that can be read.
    """
    notes = [] if is_picture(path) else read_nifti_header(path).notes()
    said = (note.args for note in notes)
    return [Problem(name, path, found, rule, fix, "warning") for found, rule, fix in said]


def check_series(
    case: Mapping[str, Any], finder: SeriesFinder, *, spatial_dims: int, in_channels: int, to_dicom: bool
) -> list[Problem]:
    """`check_image` for a DICOM series; what is odd about it and can be coped with is logged.

    Args:
        case: its image is what `finder` opens.
        finder: where series are looked for.
        spatial_dims: 2 or 3.
        in_channels: channels that the network takes.
        to_dicom: whether a segmentation must be able to refer to it.

    Returns:
        The first problem found, or none.
    """
    name, path = str(case["case"]), str(case["image"])
    try:
        series = finder.open(path)
        left_empty = try_headers(series) if to_dicom else ()
        values, padding = series.load()
        _require_dimensions(values.shape, values.shape, None, spatial_dims, in_channels)
        _finite(values)
        _in_range(values)
    except Fault as fault:
        return [Problem(name, path, *fault.args)]
    for note in (*series.notes, *padding_note(padding), *left_empty):
        logger.warning("%s: %s", path, note)
    return []


def check_case(
    case: Mapping[str, Any],
    *,
    spatial_dims: int,
    in_channels: int,
    labels: Mapping[str, int] | None,
    instances: bool = False,
) -> list[Problem]:
    """Check the image and the label of a case.

    Args:
        case: see the module.
        spatial_dims: 2 or 3.
        in_channels: channels that the network takes.
        labels: name to value of all values that a label may hold, an entry `ignore` for voxels that nobody
            annotated; None, or that entry alone, where the values are not known yet. Of instances only that
            entry is used.
        instances: labels number the instances from 1.

    Returns:
        All problems found; a label without foreground is a warning, one that nobody annotated an error.
    """
    return _inspect_case(case, spatial_dims, in_channels, labels, instances)[0]


def check_cases(
    cases: Sequence[Mapping[str, Any]],
    *,
    spatial_dims: int,
    in_channels: int,
    labels: Mapping[str, int] | None,
    instances: bool = False,
    progress: str = "Checking data",
) -> list[Problem]:
    """`check_case` for many cases, in their order, with a progress bar named `progress`."""
    inspected = inspect_cases(
        cases,
        spatial_dims=spatial_dims,
        in_channels=in_channels,
        labels=labels,
        instances=instances,
        progress=progress,
    )
    return [problem for problems, _ in inspected for problem in problems]


def inspect_cases(
    cases: Sequence[Mapping[str, Any]],
    *,
    spatial_dims: int,
    in_channels: int,
    labels: Mapping[str, int] | None,
    instances: bool = False,
    progress: str = "Checking data",
    look: Look | None = None,
) -> list[tuple[list[Problem], Facts | None]]:
    """As `check_cases`, with the facts of each case; None for a case with errors.

    Args:
        cases: see `check_cases`, and so are those not named here.
        look: what else is to be found in them, while they are read.
    """
    return map_cases(
        lambda case: _inspect_case(case, spatial_dims, in_channels, labels, instances, look), cases, progress
    )


def map_cases(
    function: Callable[[Mapping[str, Any]], _Result], cases: Sequence[Mapping[str, Any]], progress: str
) -> list[_Result]:
    """Call `function` on each case, two at a time, and tell the log; a bar on a terminal; keeps the order."""
    logger.info("%s: %d cases", progress, len(cases))
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(tqdm(pool.map(function, cases), total=len(cases), desc=progress, disable=None))


def format_table(problems: Sequence[Problem]) -> str:
    """A plain-text table of case, file, what was found and the fix; warnings are marked."""
    rows = [("case", "file", "found", "fix")]
    for problem in problems:
        found = problem.found if problem.severity == "error" else f"(warning) {problem.found}"
        rows.append((problem.case, "/".join(Path(problem.file).parts[-2:]), found, problem.fix))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    rows.insert(1, ("-" * widths[0], "-" * widths[1], "-" * widths[2], "---"))
    return "\n".join(
        " | ".join([cell.ljust(width) for cell, width in zip(row, widths, strict=False)] + [row[3]])
        for row in rows
    )


def describe(problems: Sequence[Problem], headline: str) -> str:
    """One problem as its sentence; more as a headline and a table of at most `MAX_ROWS` rows."""
    if len(problems) == 1:
        return problems[0].sentence()
    more = f"\nand {len(problems) - MAX_ROWS} more" if len(problems) > MAX_ROWS else ""
    return f"{headline}\n{format_table(problems[:MAX_ROWS])}{more}"


def log_problems(problems: Sequence[Problem]) -> None:
    """Say what is wrong with each of several files, of which the sound ones are used.

    Warnings that differ in numbers alone are one line, with the names of the cases that they are about.
    """
    alike: dict[tuple[str, str, str], list[Problem]] = {}
    for problem in problems:
        if problem.severity == "error":
            logger.error(problem.sentence())
        else:
            kind = re.sub(r"[\d.]+", "0", problem.found), problem.rule, problem.fix
            alike.setdefault(kind, []).append(problem)
    for first, *others in alike.values():  # marked, as an inference without a logging file shows no levels
        more = f" So it is with {len(others)} more: {few([other.case for other in others])}" if others else ""
        logger.warning("(warning) %s%s", first.sentence(), more)


def require_sound(problems: Sequence[Problem]) -> None:
    """Log the warnings and refuse the errors.

    Raises:
        InputError: if there is an error among the problems; it lists them.
    """
    warnings = [problem for problem in problems if problem.severity == "warning"]
    errors = [problem for problem in problems if problem.severity == "error"]
    if warnings:
        logger.warning(describe(warnings, f"{len(warnings)} warnings about the data:"))
    if errors:
        raise InputError(describe(errors, f"{len(errors)} problems in the data, mend them and run again:"))


def read_label(
    path: Path,
    labels: Mapping[str, int] | None = None,
    instances: bool = False,
    onto: Grid | None = None,
    name: str = "image",
) -> tuple[np.ndarray, Grid]:
    """Read a label file whole.

    Args:
        path: picture or NIfTI file, 2D or 3D.
        labels: as for `check_case`.
        instances: as for `check_case`.
        onto: a grid of the same voxels, in whose order of axes the label is given.
        name: what has that grid, for messages.

    Returns:
        Whole numbers, (x, y[, z]), pictures (width, height), and where they lie.

    Raises:
        Fault: what `check_case` would find wrong with it.
    """
    try:
        dims = read_dims(path)
        values, grid, _ = _load_label(str(path), dims[0] if dims else 2)
        if onto is not None:
            values, grid = turned(values, turn_onto(grid, onto, name)), onto
    except Fault as fault:
        raise fault.of(path) from None
    for problem in _inspect_label_values("", str(path), values, labels, instances)[0]:
        if problem.severity == "error":
            raise Fault(problem.found, problem.rule, problem.fix, path)
    return values, grid


def _load_label(path: str, spatial_dims: int) -> tuple[np.ndarray, Grid, bool]:
    """Whole numbers of a label file, (*spatial), where they lie, and whether viewers show them inverted."""
    file = read_file(path)
    grid = _spatial_grid(file, spatial_dims, 1, label=True)
    if isinstance(file, Picture) and file.jpeg:
        raise Fault(
            "a label stored as JPEG",
            "JPEG changes pixel values, so it cannot hold labels",
            "export the label again as PNG",
        )
    inverted = isinstance(file, Picture) and file.inverted
    return _whole(file.values.reshape(grid.shape)), grid, inverted


def _whole(values: np.ndarray) -> np.ndarray:
    """Label values as integers."""
    _finite(values)
    whole, broken = nearest_whole(values)
    if broken.size:
        raise Fault(
            f"{broken.size} different fractional values such as {show_value(broken[0])}",
            f"a label holds whole numbers, one per class, to within {WHOLE_TOLERANCE}",
            "threshold a soft mask or resample the label with nearest neighbour",
        )
    return whole


def _inspect_case(
    case: Mapping[str, Any],
    spatial_dims: int,
    in_channels: int,
    labels: Mapping[str, int] | None,
    instances: bool,
    look: Look | None = None,
) -> tuple[list[Problem], Facts | None]:
    channels: list[np.ndarray] = []
    problems, grid = _inspect_image(case, spatial_dims, in_channels, channels if look else None)
    name = str(case["case"])
    if not case.get("label"):
        problems.append(
            Problem(
                name,
                _files(case)[0] if case.get("image") else name,
                "an image without a label",
                "every case to train or judge on needs a label",
                "add its label or take the image out of the data set",
            )
        )
        return problems, None
    path = str(case["label"])
    try:
        values, label_grid, inverted = _load_label(path, spatial_dims)
    except Fault as fault:
        return [*problems, Problem(name, path, *fault.args)], None
    if inverted:
        problems.append(
            Problem(
                name,
                path,
                "a label that is WhiteIsZero",
                "its numbers are read as they are stored, and viewers show 0 as white",
                "make sure that the background is 0",
                "warning",
            )
        )
    try:
        if grid is not None:
            turn = turn_onto(label_grid, grid, "image")
        problems += check_form(name, path)
    except Fault as fault:
        problems.append(Problem(name, path, *fault.args))
    found, voxels = _inspect_label_values(name, path, values, labels, instances)
    problems += found
    if grid is None or any(problem.severity == "error" for problem in problems):
        return problems, None
    found_too = look(channels, turned(values, turn), grid) if look else {}
    return problems, Facts(*grid.canonical(), voxels, found_too)


def _inspect_image(
    case: Mapping[str, Any], spatial_dims: int, in_channels: int, kept: list[np.ndarray] | None
) -> tuple[list[Problem], Grid | None]:
    """Problems of all channel files, and the grid of the first one that can be read.

    Args:
        case: see the module.
        spatial_dims: 2 or 3.
        in_channels: channels that the network takes.
        kept: gets the voxels of each file in the order of the first one's axes; None: nobody wants them.
    """
    name = str(case["case"])
    if not case.get("image"):
        found = Problem(
            name,
            str(case.get("label", name)),
            "a label without an image",
            "every label needs the image that it was drawn on",
            "add its image or take the label out of the data set",
        )
        return [found], None
    files = _files(case)
    problems: list[Problem] = []
    try:
        require_short(name)
    except Fault as fault:
        problems.append(Problem(name, files[0], *fault.args))
    if len(files) not in (1, in_channels):
        problems.append(
            Problem(
                name,
                files[0],
                f"{len(files)} channel files",
                f"in_channels={in_channels} asks for as many, or for one file with all channels",
                "add the missing channels or set --in_channels to their number",
            )
        )
    grid = None
    for path in files:
        try:
            file = read_file(path)
            here = _spatial_grid(file, spatial_dims, in_channels if len(files) == 1 else 1, label=False)
            turn = None if grid is None else turn_onto(here, grid, "first channel")
            grid = grid or here
            problems += check_form(name, path)
            _finite(file.values)
            _in_range(file.values)
            if kept is not None:
                kept.append(turned(_channels_last(file.values, here), turn))
        except Fault as fault:
            problems.append(Problem(name, path, *fault.args))
    return problems, grid


def _channels_last(values: np.ndarray, grid: Grid) -> np.ndarray:
    """(*spatial, channel), of a file that may hold axes of one voxel."""
    return values.reshape(*grid.shape, -1)


def _files(case: Mapping[str, Any]) -> list[str]:
    image = case["image"]
    return [str(path) for path in image] if isinstance(image, list | tuple) else [str(image)]


def _spatial_grid(file: Nifti | Picture, spatial_dims: int, channels: int, label: bool) -> Grid:
    """The grid of a file, if it has the dimensions and the channels that are asked for."""
    if isinstance(file, Picture):
        return _picture_grid(file, spatial_dims, channels, label)
    header = file.header
    _require_dimensions(header.stored, header.shape, header.channels, spatial_dims, channels, label)
    return grid_of(file)


def _require_dimensions(
    stored: tuple[int, ...],
    shape: tuple[int, ...],
    found: int | None,
    spatial_dims: int,
    channels: int,
    label: bool = False,
) -> None:
    """Refuse other dimensions and channels than those asked for.

    Args:
        stored: axes as they lie in the file, for the message.
        shape: voxels per spatial axis.
        found: channels after these axes, None where there is no such axis.
        spatial_dims: 2 or 3.
        channels: that are asked for.
        label: whether it is a label.
    """
    if spatial_dims == 3 and (len(shape) == 2 < len(stored) or 1 in shape):
        raise Fault(
            f"a single slice {stored}",
            "a 3D volume has more than one voxel on each axis",
            "save the slices as PNG and work in 2D",
        )
    if len(shape) != spatial_dims or found not in (None, channels):
        fix = "save one of its volumes to a file of its own, or set --spatial_dims and --in_channels right"
        if (len(shape), spatial_dims) == (3, 2):
            fix = "save its slices as PNG, or work in 3D"
        elif (len(shape), spatial_dims) == (2, 3):
            fix = "save all slices of a volume in one file, or work in 2D"
        raise Fault(
            f"{len(stored)} dimensions {stored}",
            f"a {spatial_dims}D {'label' if label else 'image'} with {channels} channel(s) is expected",
            fix,
        )
    if found is None and channels > 1:
        raise Fault(
            f"one channel {stored}",
            f"in_channels={channels} is expected",
            "hand a file per channel or a 4D file with the channels last, or set --in_channels 1",
        )


def _picture_grid(picture: Picture, spatial_dims: int, channels: int, label: bool) -> Grid:
    if spatial_dims != 2:
        raise Fault("a 2D picture", "a 3D volume is expected", "save the stack as one .nii.gz file")
    palette_image = picture.mode == "P" and not label  # the palette indices of a label are its values
    if picture.channels == channels and not palette_image:
        return grid_of(picture)
    wanted = {1: "L", 3: "RGB"}.get(channels)
    if label:
        rule = "a label has one channel with an integer per class"
        fix = "turn each colour into its integer and save a grey PNG"
    elif channels == 1:
        rule = "a grey image (in_channels=1) is expected"
        fix = "save one of its channels or their mean as a grey TIFF, or set --in_channels"
    else:
        rule = f"{channels} channels (in_channels={channels}) are expected"
        fix = "save it with as many channels, or set --in_channels"
    if not label and wanted and picture.mode and picture.values.dtype == np.uint8:
        fix = f"convert it with Pillow: Image.open(file).convert('{wanted}').save(file), or set --in_channels"
    if palette_image:
        fix += "; where its numbers are meant, give it grey colours first (ImageJ: Lookup Tables, Grays)"
    raise Fault(picture.kind, rule, fix)


def _finite(values: np.ndarray) -> None:
    if values.dtype.kind != "f":
        return
    nan = int(np.isnan(values).sum())
    infinite = int(np.isinf(values).sum())
    counts = [f"{count} {kind}" for count, kind in ((nan, "NaN"), (infinite, "infinite")) if count]
    if counts:
        raise Fault(
            f"{' and '.join(counts)} voxels",
            "every voxel must be a finite number",
            "replace them, for example with numpy.nan_to_num, and save the file again",
        )


def _in_range(values: np.ndarray) -> None:
    """Refuse intensities that become infinite, NaN or 0 in float32, in which they are normalised."""
    if values.dtype.kind != "f" or not values.size:
        return
    largest = max(abs(float(values.min())), abs(float(values.max())))
    low, high = INTENSITIES
    if largest > high or 0 < largest < low:
        raise Fault(
            f"intensities up to {largest:.3g}",
            f"the largest of an image lies between {low:g} and {high:g}, which 32-bit real numbers hold",
            "look whether they are meant, and save them in another unit",
        )


def _count_values(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`numpy.unique` with counts, several times as fast for numbers that lie close together.

    Args:
        values: integers of any shape.
    """
    flat = values.ravel(order="K")
    if not flat.size or int(flat.max()) - int(flat.min()) >= _COUNTED_SPAN:
        return np.unique(flat, return_counts=True)
    low = int(flat.min())
    counts = np.zeros(int(flat.max()) - low + 1, dtype=np.int64)
    for start in range(0, flat.size, _COUNTED_AT_ONCE):
        part = flat[start : start + _COUNTED_AT_ONCE].astype(np.int64)
        counts += np.bincount(part - low, minlength=len(counts))
    found = counts.nonzero()[0]
    return found + low, counts[found]


def _inspect_label_values(
    name: str, path: str, values: np.ndarray, labels: Mapping[str, int] | None, instances: bool
) -> tuple[list[Problem], dict[int, int]]:
    """Problems of a label's values, integers, and the number of voxels of each value."""
    voxels = {int(value): int(count) for value, count in zip(*_count_values(values), strict=True)}
    problems = []
    negative = [value for value in voxels if value < 0]
    if negative:
        problems.append(
            Problem(
                name,
                path,
                f"negative values {few(negative)}",
                "label values start at 0",
                "give those voxels a value from 0 up and declare it",
            )
        )
    ignored = (labels or {}).get(IGNORE_NAME)
    if ignored is not None and set(voxels) == {ignored}:
        problems.append(
            Problem(
                name,
                path,
                f"the value {ignored} everywhere, which is that of ignore",
                "somebody has annotated some of each case",
                "annotate some of it, or leave the case out",
            )
        )
        return problems, voxels
    if instances and 255 in voxels and ignored != 255 and set(voxels) <= {0, 255}:
        problems.append(
            Problem(
                name,
                path,
                "only the values 0 and 255, a mask, not an instance map",
                "an instance map numbers the objects 1, 2, 3, ...",
                "number them, for example with skimage.measure.label, or leave out --instances",
            )
        )
    declared = {} if instances or not class_names(dict(labels or {})) else dict(labels or {})
    undeclared = sorted(value for value in voxels if value >= 0 and value not in declared.values())
    if declared and undeclared:
        known = ", ".join(f"{key}={value}" for key, value in declared.items())
        problems.append(
            Problem(
                name,
                path,
                f"label values {few(undeclared)} that are not declared",
                f"the declared labels are {known}",
                "correct the file or declare the values in 'labels'",
            )
        )
    background = next((value for key, value in declared.items() if key != IGNORE_NAME), 0)
    if set(voxels) <= {background, ignored}:
        problems.append(
            Problem(
                name,
                path,
                BACKGROUND_ALONE,
                "most labels should show something",
                "make sure that the structure is really absent",
                "warning",
            )
        )
    return problems, voxels
