"""What goes in and out: data lists, checks of cases, seeded samples, writers."""

from scripts.data.datalist import cases_of, read_images, read_split, sound_cases, split_images
from scripts.data.dataset import CachedCases, CaseDataset, CaseLoader, EpochSampler, SeededCacheDataset
from scripts.data.labels import LoadLabeld
from scripts.data.prepared import Prepared
from scripts.data.reader import ImageReader
from scripts.data.writers import SaveCased, SaveSpreadd

__all__ = [
    "CachedCases",
    "CaseDataset",
    "CaseLoader",
    "EpochSampler",
    "ImageReader",
    "LoadLabeld",
    "Prepared",
    "SaveCased",
    "SaveSpreadd",
    "SeededCacheDataset",
    "cases_of",
    "read_images",
    "read_split",
    "sound_cases",
    "split_images",
]
