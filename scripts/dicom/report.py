"""What a segmentation amounts to: volumes in mL, as JSON and as a Structured Report (PS3.16 TID 1500)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pydicom import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from scripts.dicom.segmentation import SERIES_NUMBER, Algorithm, Segment
from scripts.dicom.series import IMAGE_CLASSES, Series

if TYPE_CHECKING:
    from highdicom.sr import ComprehensiveSR

#: What was done, by the modality of the images (CID 100, PS3.16).
PROCEDURES = {
    "CT": Code("25045-6", "LN", "CT unspecified body region"),
    "MR": Code("25056-3", "LN", "MRI unspecified body region"),
    "PT": Code("44136-0", "LN", "PET unspecified body region"),
}

#: mm^3 in a mL.
MILLILITRE = 1000.0

_VOLUME = Code("118565006", "SCT", "Volume")
_ML = Code("mL", "UCUM", "milliliter")


def measure(series: Series, slices: np.ndarray, segments: Sequence[Segment]) -> dict[str, float]:
    """Volume of each segment in mL: its area on each slice, halfway to both neighbours.

    For evenly spaced slices that is the number of voxels times their size.

    Args:
        series: the images.
        slices: label values, (N, rows, columns), one for each slice.
        segments: what the values mean.
    """
    return {
        segment.name: float((slices == segment.value).sum((1, 2)) @ series.slice_volumes) / MILLILITRE
        for segment in segments
    }


def summary(
    series: Series,
    slices: np.ndarray,
    segments: Sequence[Segment],
    algorithm: Algorithm,
    files: Mapping[str, str],
    notes: Sequence[str],
) -> dict[str, Any]:
    """The report as JSON; nothing in it says whose images they are.

    Args:
        series: the images.
        slices: label values, (N, rows, columns), one for each slice.
        segments: what the values mean.
        algorithm: what made them.
        files: names of the files written beside it.
        notes: what is odd about the images, in words.
    """
    volumes = measure(series, slices, segments)
    return {
        "case": series.name,
        "algorithm": {"name": algorithm.name, "version": algorithm.version},
        "slices": len(series.slices),
        "notes": list(notes),
        "segments": [
            {
                "number": segment.number,
                "name": segment.name,
                "value": segment.value,
                "category": list(segment.category[:3]),
                "type": list(segment.type[:3]),
                "modifier": None if segment.modifier is None else list(segment.modifier[:3]),
                "pixels": int((slices == segment.value).sum()),
                "volume_ml": volumes[segment.name],
            }
            for segment in segments
        ],
        **files,
    }


def make_report(
    series: Series,
    headers: Sequence[Dataset],
    segmentation: Dataset,
    volumes: Mapping[str, float],
    segments: Sequence[Segment],
    algorithm: Algorithm,
) -> ComprehensiveSR:
    """A measurement report (TID 1500) with the volume of each segment; its content names no patient.

    Args:
        series: the images.
        headers: theirs, see `scripts.dicom.headers`.
        segmentation: the DICOM Segmentation.
        volumes: of each segment, in mL.
        segments: the segments.
        algorithm: what made them.
    """
    from highdicom import sr

    device = sr.DeviceObserverIdentifyingAttributes(
        uid=generate_uid(entropy_srcs=[algorithm.name, algorithm.version]),
        manufacturer_name=algorithm.manufacturer,
        model_name=algorithm.name,
    )
    observer = sr.ObserverContext(sr.CodedConcept("121007", "DCM", "Device"), device)
    groups = []
    for segment in segments:
        images = [sr.SourceImageForSegmentation(each.SOPClassUID, each.SOPInstanceUID) for each in headers]
        site = sr.FindingSite(segment.type, topographical_modifier=segment.modifier)
        groups.append(
            sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
                tracking_identifier=sr.TrackingIdentifier(segment.tracking, segment.name),
                referenced_segment=sr.ReferencedSegment(
                    segmentation.SOPClassUID,
                    segmentation.SOPInstanceUID,
                    segment.number,
                    source_images=images,
                ),
                finding_category=segment.category,
                finding_type=segment.type,
                finding_sites=None if segment.modifier is None else [site],
                algorithm_id=sr.AlgorithmIdentification(algorithm.name, algorithm.version),
                measurements=[sr.Measurement(_VOLUME, volumes[segment.name], _ML)],
            )
        )
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=PROCEDURES[IMAGE_CLASSES[headers[0].SOPClassUID]],
        imaging_measurements=groups,
    )
    return sr.ComprehensiveSR(
        evidence=[segmentation, *headers],
        content=content[0],
        series_instance_uid=generate_uid(),
        series_number=SERIES_NUMBER + 1,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer=algorithm.manufacturer,
        is_complete=True,
        series_description="Volumes of an automatic segmentation",
    )
