"""nnU-Net's plans (`nnUNetPlans.json`, version 2) as a plan of this bundle.

Follows the form that the experiment planner of nnU-Net 2 writes (https://github.com/MIC-DKFZ/nnUNet):
`UNet_class_name`, `conv_kernel_sizes` and so on until 2.1, `architecture` from 2.2 on.

Axes: nnU-Net reads a volume as (z, y, x) of its file and permutes these by `transpose_forward`; a 2D
configuration sees slices along the first axis that results. Here axes are those of the file, (x, y, z).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scripts.errors import InputError, few
from scripts.files import read_json

#: The networks that have a counterpart, and whether their encoder is residual.
NETWORKS = {"PlainConvUNet": False, "ResidualEncoderUNet": True}

#: What a plan may say of its layers without a difference to what is built here.
LAYERS = {
    "conv_bias": (True,),
    "norm_op": (
        "torch.nn.modules.instancenorm.InstanceNorm2d",
        "torch.nn.modules.instancenorm.InstanceNorm3d",
    ),
    "dropout_op": (None,),
    "nonlin": ("torch.nn.LeakyReLU",),
}

#: Keys of a configuration that have no counterpart, and what is done here.
OTHERWISE = {
    "batch_dice": "Dice is taken as `loss` says",
    "resampling_fn_data": "images are resampled linearly",
    "resampling_fn_seg": "labels are resampled to the nearest voxel",
    "resampling_fn_probabilities": "probabilities are resampled linearly",
}


@dataclass(frozen=True)
class Imported:
    """What plans say of a training. Axes are those of the files.

    Attributes:
        name: of the file and its configuration.
        patch: voxels an axis, 1 along `slices`.
        spacing: edges of a voxel in mm, one an axis.
        slices: the axis along which each slice is segmented by itself, or None.
        strides: of each down-step, one an axis that the network sees.
        kernels: of each level, one an axis that the network sees.
        channels: of each level.
        convs: convolutions, or residual blocks, of each level of the encoder.
        decoder_convs: convolutions of each level of the decoder, from high to low resolution.
        residual: the encoder is a residual one.
        batch: patches in a step.
        normalise: transforms; None where there is no counterpart.
        left: what has no counterpart, a phrase each.
    """

    name: str
    patch: list[int]
    spacing: list[float]
    slices: int | None
    strides: list[list[int]]
    kernels: list[list[int]]
    channels: list[int]
    convs: list[int]
    decoder_convs: list[int]
    residual: bool
    batch: int
    normalise: list[dict[str, Any]] | None
    left: list[str]

    def along(self, order: Sequence[int]) -> Imported:
        """The same along other axes: axis n of these is axis ``order[n]`` of those."""
        seen = [axis for n, axis in enumerate(order) if n != self.slices]
        within = [sorted(seen).index(axis) for axis in seen]
        return replace(
            self,
            patch=_put(self.patch, order),
            spacing=_put(self.spacing, order),
            slices=None if self.slices is None else order[self.slices],
            strides=[_put(level, within) for level in self.strides],
            kernels=[_put(level, within) for level in self.kernels],
        )

    def network(self) -> dict[str, Any]:
        """The network, for a config."""
        network: dict[str, Any] = {
            "_target_": "scripts.networks.UNet",
            **{name: f"@{name}" for name in ("spatial_dims", "in_channels", "out_channels", "channels")},
            "strides": self.strides,
            "kernel_sizes": self.kernels,
            "down": None,
            "norm": ["instance", {"affine": True}],
            "act": ["leakyrelu", {"negative_slope": 0.01}],
            "heads": _part("scripts.networks.heads.Heads", deep_supervision=None),
            "dropout": 0.0,
        }
        if self.slices is not None:
            network["slice_axis"] = self.slices
        if self.residual:
            network["encoder"] = _part("scripts.networks.resenc.ResidualEncoder", blocks_per_level=self.convs)
            network["block"] = _part("scripts.networks.resenc.PooledResidualBlock")
            network["decoder"] = _part("scripts.networks.resenc.PlainDecoder", convs=self.decoder_convs[0])
        else:
            network["convs_per_level"] = self.convs
            network["decoder_channels"] = [
                [width] * count for width, count in zip(self.channels, self.decoder_convs, strict=False)
            ]
        return network


def read_plans(file: Path, configuration: str, spatial_dims: int) -> Imported:
    """Read a configuration of nnU-Net's plans.

    Args:
        file: `nnUNetPlans.json`, or another of its form.
        configuration: such as "3d_fullres".
        spatial_dims: of the images.

    Raises:
        InputError: no plans, no such configuration, a cascade, a network that has no counterpart, or one of
            another number of axes.
    """
    plans = read_json(file)
    known = plans.get("configurations")
    if not isinstance(known, dict) or "transpose_forward" not in plans:
        raise InputError(
            f"--nnunet_plans {file} has no 'configurations' and 'transpose_forward'; nnU-Net 2 writes both; "
            "give an nnUNetPlans.json of nnUNet_preprocessed."
        )
    if configuration not in known:
        raise InputError(
            f"--configuration is {configuration}, and {file} has {few(sorted(known))}; give one of them."
        )
    chosen = _inherited(known, configuration, file)
    if chosen.get("previous_stage"):
        raise InputError(
            f"--configuration {configuration} of {file} sees the result of {chosen['previous_stage']}; a "
            "cascade has no counterpart here; give another configuration."
        )
    name = f"{file.name}, {configuration}"
    try:
        return _read(plans, chosen, name, spatial_dims)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(
            f"--nnunet_plans {file}: its configuration {configuration} cannot be read ({what}); give the "
            "file as nnU-Net wrote it."
        ) from error


def _inherited(known: Mapping[str, Any], name: str, file: Path) -> dict[str, Any]:
    """A configuration with what it inherits."""
    seen: set[str] = set()
    found: dict[str, Any] = {}
    while name:
        if name in seen or name not in known:
            raise InputError(f"--nnunet_plans {file}: a configuration inherits from {name}; correct it.")
        seen.add(name)
        found = {**known[name], **found}
        name = known[name].get("inherits_from")
    return found


def _read(plans: Mapping[str, Any], chosen: Mapping[str, Any], name: str, spatial_dims: int) -> Imported:
    left = [f"{key} = {chosen[key]}: {done}" for key, done in OTHERWISE.items() if chosen.get(key)]
    network, arguments = _architecture(chosen, name)
    for key, usual in LAYERS.items():
        if key in arguments and arguments[key] not in usual:
            left.append(f"{key} = {arguments[key]}: {usual[0]}")
    patch, edges = list(map(int, chosen["patch_size"])), list(map(float, chosen["spacing"]))
    axes = len(patch)
    if axes not in (2, spatial_dims):
        raise InputError(f"{name} has a patch of {axes} axes, and the images have 2; give 2d.")
    strides, kernels = ([list(level) for level in arguments[key]] for key in ("strides", "kernel_sizes"))
    if max(strides[0]) > 1:
        raise InputError(
            f"{name}: its network begins with a stride of {strides[0]}; a UNet here begins at the resolution "
            "of the image; give another configuration."
        )
    order = [2 - int(axis) for axis in plans["transpose_forward"]]  # of the file, (x, y, z)
    slices = None
    if spatial_dims == 2:
        order = [0, 1] if order.index(0) < order.index(1) else [1, 0]
    elif axes == 2:
        slices = 0  # of the permuted axes
        patch = [1, *patch]
        edges = [float(plans["original_median_spacing_after_transp"][0]), *edges]
    levels = len(arguments["features_per_stage"])
    residual = NETWORKS[network]
    convs = _counts(arguments["n_blocks_per_stage" if residual else "n_conv_per_stage"], levels)
    decoder = _counts(arguments["n_conv_per_stage_decoder"], levels - 1)[::-1]
    if residual and len(set(decoder)) > 1:
        left.append(f"n_conv_per_stage_decoder = {decoder[::-1]}: {decoder[0]} on each level")
    lengths = [len(strides), len(kernels), len(convs), len(decoder) + 1]
    if any(length != levels for length in lengths) or {len(level) for level in strides + kernels} != {axes}:
        raise ValueError(
            f"{levels} levels of {axes} axes do not have as many strides, kernels and convolutions"
        )
    normalise, why = _normalisation(plans, chosen)
    imported = Imported(
        name=name,
        patch=patch,
        spacing=edges,
        slices=slices,
        strides=strides[1:],
        kernels=kernels,
        channels=list(map(int, arguments["features_per_stage"])),
        convs=convs,
        decoder_convs=decoder,
        residual=residual,
        batch=int(chosen["batch_size"]),
        normalise=normalise,
        left=left + why,
    )
    return imported.along(order)


def _architecture(chosen: Mapping[str, Any], name: str) -> tuple[str, dict[str, Any]]:
    """The name of the network, and its arguments in the words of nnU-Net 2.2."""
    if "architecture" in chosen:
        network = str(chosen["architecture"]["network_class_name"])
        arguments = dict(chosen["architecture"]["arch_kwargs"])
    else:
        network = str(chosen["UNet_class_name"])
        kernels = chosen["conv_kernel_sizes"]
        most, base = chosen["unet_max_num_features"], chosen["UNet_base_num_features"]
        arguments = {
            "features_per_stage": [min(base * 2**level, most) for level in range(len(kernels))],
            "kernel_sizes": kernels,
            "strides": chosen["pool_op_kernel_sizes"],
            "n_conv_per_stage": chosen["n_conv_per_stage_encoder"],
            "n_blocks_per_stage": chosen["n_conv_per_stage_encoder"],
            "n_conv_per_stage_decoder": chosen["n_conv_per_stage_decoder"],
        }
    short = network.rpartition(".")[2]
    if short not in NETWORKS:
        raise InputError(
            f"{name}: its network is {network}; {' and '.join(NETWORKS)} have a counterpart here; give a "
            "configuration with one of them, or an overlay of configs/network without --nnunet_plans."
        )
    return short, arguments


def _normalisation(
    plans: Mapping[str, Any], chosen: Mapping[str, Any]
) -> tuple[list[dict[str, Any]] | None, list[str]]:
    """The transforms that normalise, or why the plan here keeps its own."""
    schemes, masked = chosen["normalization_schemes"], chosen["use_mask_for_norm"]
    told = [
        f"{scheme}{' within the mask' * bool(mask)}" for scheme, mask in zip(schemes, masked, strict=True)
    ]
    if len(set(told)) > 1:
        return None, [f"normalization_schemes = {', '.join(told)}: all channels alike, as planned here"]
    scheme = schemes[0]
    if scheme == "ZScoreNormalization":
        scale: dict[str, Any] = {"_target_": "NormalizeIntensityd", "keys": "image", "channel_wise": True}
        return [{**scale, "nonzero": True} if masked[0] else scale], []
    if scheme == "NoNormalization":
        return [], []
    if scheme == "RescaleTo01Normalization":
        return [{"_target_": "ScaleIntensityd", "keys": "image", "channel_wise": True}], []
    ends = {"a_min": 0.0, "a_max": 255.0, "b_min": 0.0, "b_max": 1.0, "clip": False}
    if scheme == "CTNormalization" and len(schemes) == 1:
        held = plans["foreground_intensity_properties_per_channel"]["0"]
        low, high, mean = (float(held[key]) for key in ("percentile_00_5", "percentile_99_5", "mean"))
        std = max(float(held["std"]), 1e-8)
        ends = {"a_min": low, "a_max": high, "clip": True}
        ends |= {"b_min": (low - mean) / std, "b_max": (high - mean) / std}
    elif scheme != "RGBTo01Normalization":
        return None, [f"normalization_schemes = {', '.join(told)}: as planned here"]
    return [{"_target_": "ScaleIntensityRanged", "keys": "image", **ends}], []


def _counts(value: int | Sequence[int], levels: int) -> list[int]:
    return [value] * levels if isinstance(value, int) else list(map(int, value))


def _part(target: str, **arguments: Any) -> dict[str, Any]:
    return {"_target_": target, "_mode_": "callable", **arguments}


def _put(values: Sequence[Any], order: Sequence[int]) -> list[Any]:
    """Values whose n-th goes to the place ``order[n]``."""
    return [value for _, value in sorted(zip(order, values, strict=True))]
