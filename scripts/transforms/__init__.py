"""Transforms that MONAI lacks; one file for each kind, dictionary transforms end in ``d``."""

from scripts.transforms.labels import (
    ClassesToInstancesd,
    ClassesToLabelsd,
    IgnoreToBackgroundd,
    InstancesToClassesd,
    LabelsToClassesd,
)
from scripts.transforms.spatial import RandSpatialPatchd
from scripts.transforms.weights import BorderWeightsd, border_weight_map, class_weight_map

__all__ = [
    "BorderWeightsd",
    "ClassesToInstancesd",
    "ClassesToLabelsd",
    "IgnoreToBackgroundd",
    "InstancesToClassesd",
    "LabelsToClassesd",
    "RandSpatialPatchd",
    "border_weight_map",
    "class_weight_map",
]
