"""nnU-Net's plans, in both of their forms, become a plan whose axes are those of the images."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from bundle.data.nnunet import read_plans
from bundle.data.plan import REASONS, plan_task
from bundle.runs.experiments import parser_of, read_experiment
from scripts.data.checks import Facts
from scripts.errors import InputError
from scripts.networks.heads import main_logits
from tests.commands import invoke

#: Of a data set whose slices are thick along z: (z, y, x), nothing permuted.
KERNELS = [[1, 3, 3], [3, 3, 3], [3, 3, 3]]
STRIDES = [[1, 1, 1], [1, 2, 2], [2, 2, 4]]
INTENSITIES = {
    "max": 2500.0, "mean": 100.0, "median": 90.0, "min": -900.0,
    "percentile_00_5": -50.0, "percentile_99_5": 250.0, "std": 50.0,
}  # fmt: skip
COMMON = {
    "data_identifier": "nnUNetPlans_3d_fullres",
    "preprocessor_name": "DefaultPreprocessor",
    "batch_size": 2,
    "patch_size": [8, 16, 32],
    "median_image_size_in_voxels": [20.0, 100.0, 120.0],
    "spacing": [4.0, 1.0, 0.5],
    "normalization_schemes": ["CTNormalization"],
    "use_mask_for_norm": [False],
    "resampling_fn_data": "resample_data_or_seg_to_shape",
    "resampling_fn_seg": "resample_data_or_seg_to_shape",
    "batch_dice": True,
}
OLD = {
    **COMMON,
    "UNet_class_name": "PlainConvUNet",
    "UNet_base_num_features": 8,
    "unet_max_num_features": 20,
    "n_conv_per_stage_encoder": [2, 3, 2],
    "n_conv_per_stage_decoder": [1, 2],
    "num_pool_per_axis": [1, 2, 3],
    "pool_op_kernel_sizes": STRIDES,
    "conv_kernel_sizes": KERNELS,
}
ARCHITECTURE = {
    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "arch_kwargs": {
        "n_stages": 3,
        "features_per_stage": [8, 16, 20],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": KERNELS,
        "strides": STRIDES,
        "n_conv_per_stage": [2, 3, 2],
        "n_conv_per_stage_decoder": [1, 2],
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    },
    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
}
NEW = {**COMMON, "architecture": ARCHITECTURE}
FLAT = {
    **COMMON,
    "patch_size": [16, 32],
    "spacing": [1.0, 0.5],
    "batch_size": 12,
    "UNet_class_name": "PlainConvUNet",
    "UNet_base_num_features": 8,
    "unet_max_num_features": 512,
    "n_conv_per_stage_encoder": [2, 2],
    "n_conv_per_stage_decoder": [2],
    "pool_op_kernel_sizes": [[1, 1], [2, 4]],
    "conv_kernel_sizes": [[3, 3], [3, 1]],
}
FACTS = [Facts((120, 100, 20), (0.5, 1.0, 4.0), {0: 95, 1: 5}, {"axes": "LPS"})] * 3
OPTIONS: dict[str, Any] = {
    "spatial_dims": 3,
    "in_channels": 1,
    "labels": {"background": 0, "organ": 1},
    "modality": ["CT"],
}


def plans(file: Path, configuration: dict[str, Any], **others: Any) -> Path:
    """An nnUNetPlans.json."""
    content = {
        "dataset_name": "Dataset001_Organ",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [4.0, 1.0, 0.5],
        "original_median_shape_after_transp": [20, 100, 120],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {
            "2d": FLAT,
            "3d_fullres": configuration,
            "3d_lowres": {"inherits_from": "3d_fullres", "spacing": [4.0, 2.0, 1.0]},
            "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        },
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": INTENSITIES},
        **others,
    }
    file.write_text(json.dumps(content))
    return file


def test_both_forms_say_the_same_along_the_axes_of_the_file(tmp_path: Path) -> None:
    old = read_plans(plans(tmp_path / "old.json", OLD), "3d_fullres", 3)
    new = read_plans(plans(tmp_path / "new.json", NEW), "3d_fullres", 3)
    assert old.network() == new.network()
    for found in (old, new):
        assert (found.patch, found.spacing, found.batch) == ([32, 16, 8], [0.5, 1.0, 4.0], 2)
        assert found.strides == [[2, 2, 1], [4, 2, 2]]
        assert found.kernels == [[3, 3, 1], [3, 3, 3], [3, 3, 3]]
        assert found.channels == [8, 16, 20]
        assert (found.convs, found.decoder_convs) == ([2, 3, 2], [2, 1])  # high to low
        (clip,) = found.normalise or []
        assert (clip["a_min"], clip["b_max"]) == (-50, (250 - 100) / 50)
        assert [phrase.partition(" =")[0] for phrase in found.left] == [
            "batch_dice",
            "resampling_fn_data",
            "resampling_fn_seg",
        ]
    assert read_plans(tmp_path / "new.json", "3d_lowres", 3).spacing == [1.0, 2.0, 4.0]


def test_permuted_axes_are_put_back(tmp_path: Path) -> None:
    """(z, y, x) permuted by [2, 0, 1] is (x, z, y)."""
    file = plans(tmp_path / "p.json", NEW, transpose_forward=[2, 0, 1])
    found = read_plans(file, "3d_fullres", 3)
    assert found.patch == [8, 32, 16]
    assert found.spacing == [4.0, 0.5, 1.0]
    assert found.strides[1] == [2, 4, 2]


def test_the_plan_is_along_the_axes_of_the_body(tmp_path: Path) -> None:
    """A file that leads from left to right last has its x last of RAS."""
    imported = read_plans(plans(tmp_path / "p.json", NEW), "3d_fullres", 3)
    task = plan_task(FACTS, **OPTIONS, imported=imported)
    assert (task["patch_size"], task["spacing"]) == ([32, 16, 8], [0.5, 1.0, 4.0])
    assert "geometry" not in task
    turned = [Facts((20, 120, 100), (4.0, 0.5, 1.0), {0: 95, 1: 5}, {"axes": "ASL"})] * 3
    task = plan_task(turned, **OPTIONS, imported=imported)
    assert (task["patch_size"], task["spacing"]) == ([8, 32, 16], [4.0, 0.5, 1.0])
    assert task["network_def"]["strides"][1] == [2, 4, 2]
    mixed = plan_task([*FACTS, *turned], **OPTIONS, imported=imported)
    assert mixed["patch_size"] == [32, 16, 8]
    assert [step["_target_"] for step in mixed["geometry"]] == ["scripts.transforms.IsolatedSpacingd"]
    for found in (task, mixed):
        assert list(found[REASONS]) == [name for name in found if name != REASONS]


def test_slices_of_volumes_and_pictures(tmp_path: Path) -> None:
    file = plans(tmp_path / "p.json", NEW)
    task = plan_task(FACTS, **OPTIONS, imported=read_plans(file, "2d", 3))
    assert (task["patch_size"], task["batch_size"]) == ([32, 16, 1], 12)
    assert task["network_def"]["slice_axis"] == 2
    assert task["network_def"]["strides"] == [[4, 2]]
    assert task["network_def"]["kernel_sizes"] == [[3, 3], [1, 3]]
    assert task["spacing"] == [0.5, 1.0, 4.0]
    assert task["geometry"][1]["max_pixdim"][2] > 1000
    assert task["patch"]["elastic_std"][2] == 0
    picture = read_plans(file, "2d", 2)
    assert (picture.patch, picture.slices, picture.strides) == ([32, 16], None, [[4, 2]])
    with pytest.raises(InputError, match=r"has a patch of 3 axes, and the images have 2; give 2d"):
        read_plans(file, "3d_fullres", 2)


def test_residual_encoders_and_what_has_no_counterpart(tmp_path: Path) -> None:
    residual = copy.deepcopy(NEW)
    arguments = residual["architecture"]["arch_kwargs"]
    residual["architecture"]["network_class_name"] = "a.b.ResidualEncoderUNet"
    arguments["n_blocks_per_stage"] = arguments.pop("n_conv_per_stage")
    arguments |= {"nonlin": "torch.nn.ReLU", "n_conv_per_stage_decoder": [1, 1]}
    residual |= {"normalization_schemes": ["ZScoreNormalization"], "use_mask_for_norm": [True]}
    found = read_plans(plans(tmp_path / "p.json", residual), "3d_fullres", 3)
    assert "nonlin = torch.nn.ReLU: torch.nn.LeakyReLU" in found.left
    assert found.normalise == [
        {"_target_": "NormalizeIntensityd", "keys": "image", "channel_wise": True, "nonzero": True}
    ]
    assert found.network()["encoder"]["blocks_per_level"] == [2, 3, 2]
    residual |= {"normalization_schemes": ["CTNormalization", "ZScoreNormalization"]}
    residual |= {"use_mask_for_norm": [False, False]}
    found = read_plans(plans(tmp_path / "p.json", residual), "3d_fullres", 3)
    assert found.normalise is None
    assert any(phrase.startswith("normalization_schemes") for phrase in found.left)


@pytest.mark.parametrize(
    ("change", "configuration", "said"),
    [
        ({}, "3d", "--configuration is 3d, and .* has '?2d"),
        ({}, "3d_cascade_fullres", "sees the result of 3d_lowres; a cascade has no counterpart"),
        ({"UNet_class_name": "a.UMambaBot"}, "3d_fullres", "its network is a.UMambaBot; PlainConvUNet and"),
        ({"batch_size": None}, "3d_fullres", "cannot be read"),
        ({"conv_kernel_sizes": [[3, 3, 3]]}, "3d_fullres", "cannot be read"),
        ({"pool_op_kernel_sizes": [[2, 2, 2]] * 3}, "3d_fullres", "begins with a stride of"),
    ],
)
def test_what_is_refused(tmp_path: Path, change: dict[str, Any], configuration: str, said: str) -> None:
    file = plans(tmp_path / "p.json", {**OLD, **change})
    with pytest.raises(InputError, match=said):
        read_plans(file, configuration, 3)


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text('{"labels": {}}')
    with pytest.raises(InputError, match="has no 'configurations' and 'transpose_forward'"):
        read_plans(tmp_path / "p.json", "2d", 3)


@pytest.mark.parametrize("configuration", ["3d_fullres", "2d"])
def test_the_command_makes_a_network_that_runs(tmp_path: Path, configuration: str) -> None:
    file = plans(tmp_path / "p.json", NEW)
    for folder in ("i", "l"):
        (tmp_path / folder).mkdir()
    image = np.zeros((40, 24, 10), np.float32)
    image[10:20, 5:15, 2:8] = 1
    for n in range(3):
        for folder, array in (("i", image), ("l", image.astype(np.uint8))):
            nifti = nib.Nifti1Image(array, np.diag([0.5, 1, 4, 1]))
            nib.save(nifti, tmp_path / folder / f"c{n}.nii.gz")
    source = ("--images", tmp_path / "i", "--labels", tmp_path / "l", "--folds", 3, "--no-trial")
    out = tmp_path / "out"
    half = invoke("plan", *source, "--output_dir", out, "--nnunet_plans", file)
    assert "go together" in str(half.exception)
    asked = ("--nnunet_plans", file, "--configuration", configuration)
    result = invoke("plan", *source, "--output_dir", out, *asked)
    assert result.exit_code == 0, result.output + str(result.exception)
    assert re.search(r"not as in p.json, \w+: batch_dice = True: Dice is taken as `loss` says", result.output)
    parser = parser_of(read_experiment(out / "experiment.json", {}))
    network = parser.get_parsed_content("network_def")
    patch = parser["patch_size"]
    logits = main_logits(network.train()(torch.rand(2, 1, *patch)))
    assert logits.shape == (2, 2, *patch)
