"""Write segmentations of DICOM series."""

from __future__ import annotations

import json
import logging
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.transforms import MapTransform
from pydicom import Dataset

from scripts.dicom.headers import AS_NIFTI, source_headers
from scripts.dicom.report import make_report, measure, summary
from scripts.dicom.segmentation import (
    LONG_STRING,
    TISSUE,
    Algorithm,
    Segment,
    make_maps,
    make_segmentation,
    make_segments,
    require_highdicom,
    tell_missing_codes,
)
from scripts.dicom.series import PADDING_SHARE, SERIES_DIGEST, Series, SeriesFinder, gone, padding_note
from scripts.dicom.silence import silence_pydicom
from scripts.errors import Fault, InputError
from scripts.files import atomic_write
from scripts.labels import IGNORE_NAME, class_names, whole_numbers
from scripts.transforms.labels import class_map, source_of
from scripts.uncertainty import unsure_of

logger = logging.getLogger(__name__)

#: How far the affines of a label map and of its series may differ, in mm a voxel and in mm.
AFFINE_TOLERANCE = 1e-3

#: What the entropy of probabilities is called.
ENTROPY = "predictive entropy"


class SaveSegmentationd(MapTransform):
    """Write a label map as a DICOM Segmentation, a Structured Report and JSON: all three or none.

    The files are called after the series: `series_0123456789ab_seg.dcm`, `..._report.dcm`, `..._report.json`.
    The two DICOM files name the patient in their header, as every object of a study does; nothing else does.

    Args:
        keys: label maps, (1, x, y, z), on the grid of the series that they were made on.
        output_dir: folder of the files.
        labels: name to value, the background first.
        segments: codes of the labels, see `scripts.dicom.segmentation.make_segments`.
        metadata: the bundle's metadata.json, whose name and version identify the algorithm.

    Raises:
        InputError: highdicom is not installed; a code or the metadata is not usable; a label map is not on
            the grid, or has a value that `labels` does not declare; its series is gone; a file cannot be
            written.
    """

    def __init__(
        self,
        keys: KeysCollection,
        output_dir: str | Path,
        labels: Mapping[str, int],
        segments: Mapping[str, Mapping[str, Sequence[str]]],
        metadata: str | Path,
    ) -> None:
        super().__init__(keys)
        require_highdicom()
        make_segments(labels, segments)
        tell_missing_codes(labels, segments)
        self.output_dir = Path(output_dir)
        self.labels = dict(labels)
        self.codes = segments
        self.algorithm = _algorithm(Path(metadata))
        self.finder = SeriesFinder()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.keys:
            tensor = class_map(out[key], key)
            series = self.finder.open(source_of(tensor, key))
            if getattr(tensor, "meta", {}).get(SERIES_DIGEST, series.digest) != series.digest:
                raise gone(series.path)
            grid = whole_numbers(tensor[0].cpu().numpy(), f"{key} of {series.path}")
            _require_grid(series, tensor)
            self._require_declared(series, grid)
            padding = float(getattr(tensor, "meta", {}).get(PADDING_SHARE, 0))
            self._write(series, series.slices_of(grid), padding)
        return out

    def _require_declared(self, series: Series, grid: np.ndarray) -> None:
        """Refuse a map that means nothing."""
        declared = [self.labels[name] for name in class_names(self.labels)]
        declared += [self.labels[IGNORE_NAME]] if IGNORE_NAME in self.labels else []
        undeclared = sorted(set(np.unique(grid).tolist()) - set(declared))
        if undeclared:
            raise InputError(
                f"{series.path} was given the label value {undeclared[0]}, which labels does not declare: "
                "numbered objects have no codes, so save classes"
            )

    def _write(self, series: Series, slices: np.ndarray, padding: float) -> None:
        segments = make_segments(self.labels, self.codes)
        files = {"segmentation": f"{series.name}_seg.dcm", "structured_report": f"{series.name}_report.dcm"}
        with silence_pydicom(), _without_its_text(series):
            headers, left_empty = source_headers(series)
            written = _referring(series, headers, slices, segments, self.algorithm)
        notes = (*series.notes, *padding_note(padding), *left_empty)
        told = summary(series, slices, segments, self.algorithm, files, notes)
        contents = dict(zip(files.values(), written, strict=True))
        contents[f"{series.name}_report.json"] = (json.dumps(told, indent=1) + "\n").encode()
        try:
            with ExitStack() as stack:  # renamed when all of them are there
                for name, content in contents.items():
                    stack.enter_context(atomic_write(self.output_dir / name)).write_bytes(content)
        except OSError as error:
            raise InputError(
                f"{self.output_dir / files['segmentation']} and its report cannot be written "
                f"({error.strerror}): make room or name another --output_dir and run again; what was "
                "finished before is there"
            ) from error
        listed = ", ".join(f"{part['name']} {part['volume_ml']:.3f} mL" for part in told["segments"])
        logger.info("%s: %s", series.name, listed)


class SaveMapsd(MapTransform):
    """Write how unsure a segmentation is as a DICOM Segmentation with fractions.

    The file is called after the series, `series_0123456789ab_spread.dcm`. It has a segment "predictive
    entropy" and, where there are several versions of the prediction, "mutual information",
    0 to 1 in steps of 1/255.

    Args:
        keys: probabilities, (classes, x, y, z), or maps, (1, x, y, z), on the grid of the series; what a case
            lacks is left out.
        output_dir: folder of the files.
        metadata: see `SaveSegmentationd`.

    Raises:
        InputError: see `SaveSegmentationd`.
    """

    def __init__(self, keys: KeysCollection, output_dir: str | Path, metadata: str | Path) -> None:
        super().__init__(keys, allow_missing_keys=True)
        require_highdicom()
        self.output_dir = Path(output_dir)
        self.algorithm = _algorithm(Path(metadata))
        self.finder = SeriesFinder()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        maps: dict[str, np.ndarray] = {}
        for key in self.key_iterator(data):
            tensor = data[key]
            series = self.finder.open(source_of(tensor, key))
            _require_grid(series, tensor)
            name = ENTROPY if len(tensor) > 1 else str(key).replace("_", " ")
            maps[name] = series.slices_of(unsure_of(tensor.as_tensor())[0].cpu().numpy())
        if maps:
            with silence_pydicom(), _without_its_text(series):
                written = _encoded(make_maps(series, source_headers(series)[0], maps, self.algorithm))
            with atomic_write(self.output_dir / f"{series.name}_spread.dcm") as temporary:
                temporary.write_bytes(written)
        return dict(data)


def _require_grid(series: Series, tensor: Any) -> None:
    """Refuse a map, (channels, x, y, z), that would end up at another place."""
    shape, apart = tuple(tensor.shape[1:]), np.abs(np.asarray(tensor.affine.cpu()) - series.affine).max()
    if shape != series.shape or apart > AFFINE_TOLERANCE:
        raise InputError(
            f"{series.path} has the grid {series.shape} and its label map {shape}, "
            f"{apart:.3g} apart in the affine: bring it back with Invertd before it is saved"
        )


@silence_pydicom()
def try_headers(series: Series) -> tuple[str, ...]:
    """Find out before the work whether a segmentation and a report can refer to the images.

    Both are made of one pixel a slice, by what makes the whole ones later.

    Returns:
        What will be left empty in them, in words.

    Raises:
        InputError: highdicom is not installed.
        Fault: they cannot refer to the images.
    """
    require_highdicom()
    segments = make_segments({"background": 0, "any": 1}, {"any": TISSUE})
    slices = np.ones((len(series.slices), 1, 1), np.uint8)
    with _without_its_text(series):
        headers, left_empty = source_headers(series)
        for header in headers:
            header.Rows = header.Columns = 1
        _referring(series, headers, slices, segments, Algorithm("any", "1", "any"))
    return left_empty


@contextmanager
def _without_its_text(series: Series) -> Iterator[None]:
    """Turn whatever the libraries raise into a Fault that does not repeat it: it may tell of the patient."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise Fault(
            f"images that a segmentation cannot refer to ({type(error).__name__})",
            "their headers must be complete (PS3.3 C.7)",
            f"export the images again, or {AS_NIFTI}",
            series.path,
        ) from None


def _referring(
    series: Series,
    headers: Sequence[Dataset],
    slices: np.ndarray,
    segments: Sequence[Segment],
    algorithm: Algorithm,
) -> tuple[bytes, bytes]:
    """A segmentation that refers to the images, and its report, as files."""
    segmentation = make_segmentation(series, headers, slices, segments, algorithm)
    volumes = measure(series, slices, segments)
    report = make_report(series, headers, segmentation, volumes, segments, algorithm)
    return _encoded(segmentation), _encoded(report)


def _encoded(dataset: Dataset) -> bytes:
    """A DICOM file."""
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _algorithm(path: Path) -> Algorithm:
    """Name, version and authors of a bundle.

    Raises:
        InputError: the file is not there, or lacks one of them.
    """
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        return Algorithm(*(about[key][:LONG_STRING] for key in ("name", "version", "authors")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} does not identify the algorithm ({type(error).__name__}): it must be JSON with name, "
            "version and authors"
        ) from error
