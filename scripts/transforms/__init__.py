"""Transforms that MONAI lacks; one file for each kind, dictionary transforms end in ``d``."""

from scripts.transforms.labels import (
    ClassesToInstancesd,
    ClassesToLabelsd,
    IgnoreToBackgroundd,
    InstancesToClassesd,
    LabelsToClassesd,
)
from scripts.transforms.spatial import RandSpatialPatchd

__all__ = [
    "ClassesToInstancesd",
    "ClassesToLabelsd",
    "IgnoreToBackgroundd",
    "InstancesToClassesd",
    "LabelsToClassesd",
    "RandSpatialPatchd",
]
