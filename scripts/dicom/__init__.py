"""DICOM: series in, segmentations and reports out."""

from scripts.dicom.reader import DICOM_READER, DicomReader
from scripts.dicom.save import SaveSegmentationd
from scripts.dicom.segmentation import read_segmentation
from scripts.dicom.series import Series, SeriesFinder

__all__ = [
    "DICOM_READER",
    "DicomReader",
    "SaveSegmentationd",
    "Series",
    "SeriesFinder",
    "read_segmentation",
]
