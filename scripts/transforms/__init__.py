"""Transforms that MONAI lacks; one file for each kind, dictionary transforms end in ``d``."""

from scripts.transforms.classes import AboveThresholdd, CleanClassesd
from scripts.transforms.directions import InstancesFromDirectionsd, InstancesToDirectionsd
from scripts.transforms.hosts import IsolatedSpacingd, ToLabelMapd
from scripts.transforms.instances import (
    ClassesToInstancesd,
    ComponentsToInstancesd,
    FindObjectsd,
    InstancesFromDistancesd,
    InstancesToClassesd,
    InstancesToDistancesd,
    SeparateInstancesd,
    WatershedInstancesd,
)
from scripts.transforms.labels import ClassesToLabelsd, LabelsToClassesd
from scripts.transforms.masking import MaskBlocksd, RandMaskBlocksd
from scripts.transforms.sparse import FarBackgroundd
from scripts.transforms.spatial import CountClassesd, RandSpatialPatchd
from scripts.transforms.stars import InstancesFromStarsd, InstancesToStarsd
from scripts.transforms.versions import TakeVersionsd
from scripts.transforms.weights import BorderWeightsd, border_weight_map, class_weight_map

__all__ = [
    "AboveThresholdd",
    "BorderWeightsd",
    "ClassesToInstancesd",
    "ClassesToLabelsd",
    "CleanClassesd",
    "ComponentsToInstancesd",
    "CountClassesd",
    "FarBackgroundd",
    "FindObjectsd",
    "InstancesFromDirectionsd",
    "InstancesFromDistancesd",
    "InstancesFromStarsd",
    "InstancesToClassesd",
    "InstancesToDirectionsd",
    "InstancesToDistancesd",
    "InstancesToStarsd",
    "IsolatedSpacingd",
    "LabelsToClassesd",
    "MaskBlocksd",
    "RandMaskBlocksd",
    "RandSpatialPatchd",
    "SeparateInstancesd",
    "TakeVersionsd",
    "ToLabelMapd",
    "WatershedInstancesd",
    "border_weight_map",
    "class_weight_map",
]
