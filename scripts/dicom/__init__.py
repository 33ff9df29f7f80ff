"""DICOM: series in, segmentations and reports out."""

from scripts.dicom.reader import DICOM_READER, DicomReader
from scripts.dicom.save import SaveMapsd, SaveSegmentationd, try_headers
from scripts.dicom.segmentation import read_segmentation
from scripts.dicom.series import Series, SeriesFinder, padding_note

__all__ = [
    "DICOM_READER",
    "DicomReader",
    "SaveMapsd",
    "SaveSegmentationd",
    "Series",
    "SeriesFinder",
    "padding_note",
    "read_segmentation",
    "try_headers",
]
