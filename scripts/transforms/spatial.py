"""Random patches: crop, flip, rotation, scaling, translation and elastic deformation in one resampling.

Sources:
    O. Ronneberger, P. Fischer, T. Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation",
    MICCAI 2015, section 3.1: random displacement vectors on a coarse 3 x 3 grid, Gaussian with a standard
    deviation of 10 pixels, bicubic interpolation to every pixel.
    O. Cicek et al., "3D U-Net: Learning Dense Volumetric Segmentation from Sparse Annotation", MICCAI 2016,
    section 3: random vectors on a grid with a spacing of 32 voxels in each direction, Gaussian with a
    standard deviation of 4, B-spline interpolation.

Departures: the smooth interpolation is a natural cubic spline through the drawn vectors, in 2D and in 3D.
A deformation that would fold space is weakened until it does not; the papers say nothing of it.
What the patch takes from outside the scan carries ``ignore_label`` in the label, as nobody annotated it; in
the image it is zero, or the scan mirrored as in the paper's overlap-tile strategy.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable
from monai.utils import ensure_tuple_rep
from scipy.interpolate import CubicSpline
from scipy.spatial.transform import Rotation

from scripts.errors import InputError
from scripts.labels import IGNORE_LABEL, whole_numbers
from scripts.transforms.labels import source_of

#: What CountClassesd appends to the key of a label.
COUNTS_POSTFIX = "_counts"

#: The volume that a voxel of a patch takes from the source is at least this share of what it takes without
#: elastic deformation; 0 would be folded.
SMALLEST_VOLUME = 0.1

#: Between two control points along each axis the volume is looked at so many times, or at every voxel.
LOOKS = 4

#: How F.grid_sample interpolates each mode of RandSpatialPatchd.
INTERPOLATION = {"bilinear": "bilinear", "nearest": "nearest", "weight": "bilinear"}


@dataclass
class SpatialParameters:
    """Where a patch comes from. Lengths are voxels, or in the unit of the spacing that is given beside them.

    Attributes:
        centre: source position of the patch's centre, in voxels, one number an axis.
        matrix: (dims, dims), takes an offset from the patch's centre to an offset from ``centre``.
        displacements: (dims, *control points), added to the offsets, or None for no elastic deformation.
    """

    centre: np.ndarray
    matrix: np.ndarray
    displacements: np.ndarray | None = None


def spline_matrix(control_points: int, size: int, share: float = 1.0, order: int = 0) -> np.ndarray:
    """Weights of a natural cubic spline from evenly spaced control points to evenly spaced places of an axis.

    Args:
        control_points: at least 2.
        size: number of places.
        share: the part of the way from the first to the last control point that the places span, around the
            same centre, in [0, 1]; with 1 the first and the last place are control points.
        order: 0 for the values of the spline, 1 for its slope from one control point to the next.

    Returns:
        (size, control_points), float32.
    """
    middle = (control_points - 1) / 2
    places = np.linspace(middle * (1 - share), middle * (1 + share), size) if size > 1 else np.array([middle])
    spline = CubicSpline(np.arange(control_points), np.eye(control_points), bc_type="natural")
    return spline(places, order).astype(np.float32)


def control_positions(
    extent: Sequence[float],
    points: Sequence[int],
    parameters: SpatialParameters,
    spacing: Sequence[float] | np.ndarray,
) -> np.ndarray:
    """Source position of every control point of a patch.

    A point at offset p (voxels) from the patch's centre takes its value from
    ``centre + (matrix @ (spacing * p) + displacement(p)) / spacing``. The spline through straight lines is
    straight: interpolated from here to every voxel, matrix and displacements need no second pass.

    Args:
        extent: voxels from the first to the last control point, one number an axis.
        points: control points, one number an axis.
        parameters: see SpatialParameters.
        spacing: size of a voxel, one number an axis, in the unit of the displacements (ones for voxels).

    Returns:
        (*points, dims), in voxels of the source; 0 is the centre of its first voxel.
    """
    axes = [np.linspace(-e / 2, e / 2, p) for e, p in zip(extent, points, strict=True)]
    offsets = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)  # (*points, dims)
    moved = (offsets * spacing) @ parameters.matrix.T
    if parameters.displacements is not None:
        moved += np.moveaxis(parameters.displacements, 0, -1)
    return moved / spacing + parameters.centre


def interpolate(values: np.ndarray, weights: Sequence[np.ndarray]) -> torch.Tensor:
    """From control points to voxels, one axis after the other.

    Args:
        values: (*control points, dims).
        weights: see spline_matrix, one matrix an axis.

    Returns:
        (*size, dims), float32.
    """
    matrices = [torch.from_numpy(w) for w in weights]
    field = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
    for axis in reversed(range(1, len(matrices))):
        # (*points before the axis, size[axis], all that is done)
        field = matrices[axis] @ field.flatten(axis + 1)
    # slice by slice: one product of matrices with so few points takes four times as long
    rows = matrices[0].unsqueeze(1)  # (size[0], 1, points)
    slices = torch.bmm(rows, field.flatten(1).expand(len(rows), -1, -1))  # (size[0], 1, rest)
    return slices.view(*[len(m) for m in matrices], values.shape[-1])


def resample(volume: torch.Tensor, grid: torch.Tensor, mode: str, outside: float = 0.0) -> torch.Tensor:
    """Values of a volume at given positions.

    Args:
        volume: (channels, *source size).
        grid: (*size, dims), positions as F.grid_sample counts them: last axis first, from -1 to 1, the outer
            faces of the end voxels.
        mode: "bilinear" (trilinear in 3D) or "nearest".
        outside: the value of everything beyond the volume.

    Returns:
        (channels, *size), float32.
    """
    shifted = volume.float() - outside if outside else volume.float()
    # grid_sample shares a batch among the threads, not an image: each slice of the patch is one of a batch
    batch = shifted.expand(len(grid), *shifted.shape)
    sampled = F.grid_sample(batch, grid.unsqueeze(1), mode=mode, padding_mode="zeros", align_corners=False)
    sampled += outside
    return sampled.squeeze(2).movedim(0, 1).contiguous()  # (size[0], channels, 1, *rest) before


def fold(positions: torch.Tensor, length: int) -> torch.Tensor:
    """Positions along an axis that is mirrored at both ends, again and again, as positions on the axis.

    A mirrored axis runs 0 .. last .. 0 .. last: what counts is the distance from the nearest repetition of 0.
    """
    last = length - 1
    return last - (positions % max(2 * last, 1) - last).abs()


def crop(
    volume: torch.Tensor, start: Sequence[int], size: Sequence[int], outside: float | None = 0.0
) -> torch.Tensor:
    """Cut a block out of a volume; it may reach beyond.

    Args:
        volume: (channels, *source size).
        start: first voxel of the block, one number an axis.
        size: voxels of the block, one number an axis.
        outside: the value of everything beyond the volume, or None for the volume mirrored at its end voxels.

    Returns:
        (channels, *size), float32.
    """
    if outside is None:
        for axis, (first, n) in enumerate(zip(start, size, strict=True), start=1):
            volume = volume.index_select(axis, fold(torch.arange(first, first + n), volume.shape[axis]))
        return volume.float()
    block = torch.full((len(volume), *size), float(outside))
    inside = [np.clip([s, s + p], 0, n) for s, p, n in zip(start, size, volume.shape[1:], strict=True)]
    target = tuple(slice(*(ends - s)) for ends, s in zip(inside, start, strict=True))
    block[(slice(None), *target)] = volume[(slice(None), *(slice(*ends) for ends in inside))]
    return block


def class_counts(label: torch.Tensor) -> dict[int, np.ndarray]:
    """How many voxels of each class the slices along the first axis hold.

    Args:
        label: (1, *spatial), class indices.

    Returns:
        (slices,) for each class present, in ascending order of the classes.

    Raises:
        InputError: a fractional or negative class.
    """
    length = int(label.max()) + 1
    slices = [np.asarray(whole_numbers(np.asarray(part), source_of(label, "label"))) for part in label[0]]
    counts = np.stack([np.bincount(part.ravel(), minlength=length) for part in slices], axis=1)
    return {int(index): counts[index] for index in np.flatnonzero(counts.any(axis=1))}


class CountClassesd(MapTransform):
    """Count the classes of a label for RandSpatialPatchd, which takes the counts out of the case again.

    A data set that caches what comes before the first random transform counts each case once. To be named
    right before RandSpatialPatchd, which counts at every draw what was not counted before.

    Args:
        keys: labels, (1, *spatial), class indices; the counts of "label" go to "label_counts".

    Raises:
        InputError: a fractional or negative class.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        return {**data, **{f"{key}{COUNTS_POSTFIX}": class_counts(data[key]) for key in self.keys}}


class RandSpatialPatchd(Randomizable, MapTransform):
    """Take one random patch from a case, image and label deformed by the same field in one resampling.

    The label's patch is drawn within the case wherever it fits: every annotated voxel gets its turn, and the
    image of a network that predicts less than it sees may reach beyond the scan. Where CountClassesd finds
    voxels that nobody annotated, patches are centred on those that somebody did, as far as the case allows.

    Args:
        keys: the image and the label, channel first, on one grid.
        modes: one for each key: "bilinear" for images; "nearest" for labels, which carry ``ignore_label``
            where the patch leaves the scan; "weight" for weight maps, interpolated linearly, which are zero
            there and as large as the label.
        patch_size: voxels of the image's patch, one number an axis.
        label_size: voxels of the label's patch, at the centre of the image's; None for ``patch_size``.
            Networks with valid convolutions predict less than they see.
        label_key: the key whose foreground attracts patches; needed when ``foreground_prob`` is not 0.
        foreground_prob: share of patches centred, as far as the case allows, on a voxel of a class drawn
            among the foreground classes present, in [0, 1].
        affine_prob: share of patches rotated, scaled and translated, in [0, 1].
        rotate_range: largest angle in radians; in 3D one number for each axis, in 2D one number.
        scale_range: smallest and largest magnification, drawn uniformly in the logarithm.
        translate_range: largest shift along every axis, in ``units``.
        flip_axes: spatial axes that are flipped in half of the patches.
        elastic_prob: share of patches deformed elastically, in [0, 1].
        elastic_points: control points of the coarse grid, one number or one an axis, at least 2; the
            outermost lie on the patch's border voxels. 3 where ``elastic_spacing`` is None too.
        elastic_spacing: instead of ``elastic_points``, voxels of the patch from one control point to the
            next, one number or one an axis, above 0. The grid is centred on the patch, with as few points as
            reach its border voxels: the outermost lie on them, or less than half a spacing beyond.
        elastic_std: standard deviation of the displacement vectors, in ``units``, one number or one an axis.
            A field of vectors that would fold space is made as much smaller as SMALLEST_VOLUME asks for.
        units: of lengths: "pixel", on each axis its own; or, to honour the shape of the image's voxels (its
            MetaTensor's affine), "edge", the smallest edge of a voxel, whatever its size, or "mm".
        ignore_label: value of label voxels outside the scan.
        outside: what images show there: "zeros", or "mirror" for the scan mirrored at its end voxels, which
            is the context that `scripts.compute.inferers.OverlapTileInferer` gives.

    Raises:
        InputError: an argument breaks its rule; a case has another number of axes than ``patch_size``, or its
            keys have different sizes; a label was changed after CountClassesd.
    """

    def __init__(
        self,
        keys: KeysCollection,
        modes: Sequence[str],
        patch_size: Sequence[int],
        label_size: Sequence[int] | None = None,
        label_key: Hashable = "label",
        foreground_prob: float = 0.0,
        affine_prob: float = 0.0,
        rotate_range: float | Sequence[float] = 0.0,
        scale_range: Sequence[float] = (1.0, 1.0),
        translate_range: float = 0.0,
        flip_axes: Sequence[int] = (),
        elastic_prob: float = 0.0,
        elastic_points: int | Sequence[int] | None = None,
        elastic_spacing: float | Sequence[float] | None = None,
        elastic_std: float | Sequence[float] = 0.0,
        units: str = "pixel",
        ignore_label: int = IGNORE_LABEL,
        outside: str = "zeros",
    ) -> None:
        MapTransform.__init__(self, keys)
        if len(patch_size) not in (2, 3) or min(patch_size) < 1:
            raise InputError(
                f"patch_size is {list(patch_size)}: give 2 or 3 numbers of 1 or more, one for each axis"
            )
        if len(modes) != len(self.keys) or set(modes) - set(INTERPOLATION):
            raise InputError(
                f"modes is {list(modes)}: give 'bilinear', 'nearest' or 'weight' for each of the keys "
                f"{list(self.keys)}"
            )
        if outside not in ("zeros", "mirror"):
            raise InputError(f"outside is {outside!r}: give 'zeros' or 'mirror'")
        if units not in ("pixel", "edge", "mm"):
            raise InputError(f"units is {units!r}: give 'pixel', 'edge' or 'mm'")
        if len(scale_range) != 2 or not 0 < scale_range[0] <= scale_range[1]:
            raise InputError(
                f"scale_range is {list(scale_range)}: give smallest and largest magnification, above 0"
            )
        for name, prob in (
            ("foreground_prob", foreground_prob),
            ("affine_prob", affine_prob),
            ("elastic_prob", elastic_prob),
        ):
            if not 0 <= prob <= 1:
                raise InputError(f"{name} is {prob}: give a share of the patches from 0 to 1")
        self.dims = len(patch_size)
        self.modes = tuple(modes)
        self.patch_size = tuple(int(n) for n in patch_size)
        self.label_size = self.patch_size if label_size is None else tuple(int(n) for n in label_size)
        if len(self.label_size) != self.dims or any(
            not 1 <= n <= p for n, p in zip(self.label_size, self.patch_size, strict=True)
        ):
            raise InputError(
                f"label_size is {list(self.label_size)}: "
                f"give sizes from 1 to patch_size {list(self.patch_size)}"
            )
        if any(not 0 <= axis < self.dims for axis in flip_axes):
            raise InputError(f"flip_axes is {list(flip_axes)}: give axes from 0 to {self.dims - 1}")
        self.margins = tuple((p - n) // 2 for p, n in zip(self.patch_size, self.label_size, strict=True))
        self.window = tuple(slice(m, m + n) for m, n in zip(self.margins, self.label_size, strict=True))
        self.label_key = label_key
        self.foreground_prob = foreground_prob
        self.affine_prob = affine_prob
        self.rotate_range = ensure_tuple_rep(rotate_range, 3 if self.dims == 3 else 1)
        self.scale_range = tuple(scale_range)
        self.translate_range = translate_range
        self.flip_axes = tuple(flip_axes)
        self.elastic_prob = elastic_prob
        if elastic_spacing is None:
            self.elastic_points = ensure_tuple_rep(3 if elastic_points is None else elastic_points, self.dims)
            if min(self.elastic_points) < 2:
                raise InputError(f"elastic_points is {elastic_points}: give 2 or more points for each axis")
            self.extent = tuple(max(n - 1, 1) for n in self.patch_size)
        else:
            steps = ensure_tuple_rep(elastic_spacing, self.dims)
            if elastic_points is not None:
                raise InputError(
                    f"elastic_points is {elastic_points} and elastic_spacing {elastic_spacing}: "
                    "give one of them, and None for the other"
                )
            if min(steps) <= 0:
                raise InputError(f"elastic_spacing is {elastic_spacing}: give voxels above 0 for each axis")
            intervals = [max(math.ceil((n - 1) / s), 1) for n, s in zip(self.patch_size, steps, strict=True)]
            self.elastic_points = tuple(count + 1 for count in intervals)
            self.extent = tuple(count * s for count, s in zip(intervals, steps, strict=True))
        axes = list(zip(self.elastic_points, self.patch_size, self.extent, strict=True))
        self.weights = [spline_matrix(p, n, (n - 1) / e) for p, n, e in axes]
        # the same at fewer places, and the slopes there from one voxel of the patch to the next
        looks = [(p, min(n, LOOKS * (p - 1) + 1), (n - 1) / e) for p, n, e in axes]
        self.values = [spline_matrix(*look) for look in looks]
        self.slopes = [
            spline_matrix(*look, 1) * np.float32((p - 1) / e if n > 1 else 0)
            for look, (p, n, e) in zip(looks, axes, strict=True)
        ]
        # a spline exceeds the largest of its control points by no more than its absolute weights add up to
        self.overshoot = np.prod([np.abs(w).sum(1).max() for w in self.weights])
        deviations = ensure_tuple_rep(elastic_std, self.dims)
        self.elastic_std = np.reshape(deviations, (-1, *(1,) * self.dims))  # of the vectors' components
        self.units = units
        self.ignore_label = ignore_label
        self.mirrored = outside == "mirror"

    def randomize(  # type: ignore[override]
        self,
        label: torch.Tensor | None,
        shape: Sequence[int],
        spacing: np.ndarray,
        counts: Mapping[int, np.ndarray] | None = None,
    ) -> SpatialParameters:
        """Draw where the patch comes from.

        Args:
            label: (1, *shape) or None; attracts patches to its foreground, and to what somebody annotated.
            shape: voxels of the case, one number an axis.
            spacing: size of a voxel, in ``units``.
            counts: those of the label (see class_counts), or None to count now.
        """
        start = np.array([self._draw_start(n, p) for n, p in zip(shape, self.label_size, strict=True)])
        if label is not None and self.R.random() < self.foreground_prob:
            start = self._start_around(self._draw_foreground(label, counts), shape, start)
        elif label is not None and counts is not None and self.ignore_label in counts:
            start = self._start_around(self._draw_annotated(label, counts), shape, start)
        centre = start - np.array(self.margins) + (np.array(self.patch_size) - 1) / 2
        matrix = np.eye(self.dims)
        if self.R.random() < self.affine_prob:
            angles = [self.R.uniform(-limit, limit) for limit in self.rotate_range]
            matrix = self._rotation(angles) / np.exp(self.R.uniform(*np.log(self.scale_range)))
            centre = centre + self.R.uniform(-self.translate_range, self.translate_range, self.dims) / spacing
        for axis in self.flip_axes:
            if self.R.random() < 0.5:
                matrix[:, axis] *= -1
        displacements = None
        if self.R.random() < self.elastic_prob:
            displacements = self.R.normal(0, self.elastic_std, (self.dims, *self.elastic_points))
            displacements = displacements * self._unfolded(displacements, matrix * spacing)
        return SpatialParameters(centre, matrix, displacements)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Draw and apply; images and labels are (channels, *spatial) tensors."""
        image = data[self.keys[0]]
        if len(image.shape) != self.dims + 1:
            raise InputError(
                f"{self.keys[0]} has the shape {tuple(image.shape)}: patch_size {list(self.patch_size)} asks "
                f"for channels and {self.dims} axes; give patch_size as many numbers as the images have axes"
            )
        spacing = self._spacing(image)
        out = dict(data)
        counts = out.pop(f"{self.label_key}{COUNTS_POSTFIX}", None)
        attracts = self.foreground_prob or self.ignore_label in (counts or ())
        label = data[self.label_key] if attracts else None
        return self.apply(out, self.randomize(label, image.shape[1:], spacing, counts), spacing)

    def apply(
        self, data: Mapping[Hashable, Any], parameters: SpatialParameters, spacing: np.ndarray
    ) -> dict[Hashable, Any]:
        """Take every key's patch by one set of parameters.

        A patch that is cut out and flipped, no more, is copied voxel by voxel; any other is resampled.
        """
        out = dict(data)
        shape = tuple(data[self.keys[0]].shape[1:])
        start = parameters.centre - (np.array(self.patch_size) - 1) / 2
        copied = (
            parameters.displacements is None
            and np.array_equal(np.abs(parameters.matrix), np.eye(self.dims))
            and np.array_equal(start, np.round(start))
        )
        if not copied:
            first, size, grid = self._locate(parameters, spacing, shape)
            box = (slice(None), *(slice(f, f + n) for f, n in zip(first, size, strict=True)))
        for key, mode in zip(self.keys, self.modes, strict=True):
            volume = torch.as_tensor(data[key])
            volume = volume.as_tensor() if isinstance(volume, MetaTensor) else volume
            if tuple(volume.shape[1:]) != shape:
                raise InputError(
                    f"{key} has {tuple(volume.shape[1:])} voxels where {self.keys[0]} has {shape}: "
                    "resample both to one grid"
                )
            window = () if mode == "bilinear" else self.window
            beyond = float(self.ignore_label) if mode == "nearest" else 0.0
            outside = None if mode == "bilinear" and self.mirrored else beyond
            if copied:
                flipped = [axis + 1 for axis in range(self.dims) if parameters.matrix[axis, axis] < 0]
                patch = crop(volume, start.astype(int).tolist(), self.patch_size, outside).flip(flipped)
                out[key] = patch[(slice(None), *window)].contiguous()
            else:
                block = crop(volume, first, size, outside) if self.mirrored else volume[box]
                out[key] = resample(block, grid[window], INTERPOLATION[mode], beyond)
        return out

    def _locate(
        self, parameters: SpatialParameters, spacing: np.ndarray, shape: Sequence[int]
    ) -> tuple[list[int], list[int], torch.Tensor]:
        """The box that the patch can reach, start and size, and the patch's grid within it (see resample).

        The box ends with the source, unless what lies beyond is mirrored.
        """
        reach = np.abs(parameters.matrix) @ (spacing * (np.array(self.patch_size) - 1) / 2)
        if parameters.displacements is not None:
            reach += np.abs(parameters.displacements).reshape(self.dims, -1).max(1) * self.overshoot
        reach = reach / spacing + 1  # one voxel more: positions are rounded to single precision
        first = np.floor(parameters.centre - reach).astype(int)
        end = np.ceil(parameters.centre + reach).astype(int) + 1
        if not self.mirrored:
            first = np.clip(first, 0, np.array(shape) - 1)
            end = np.clip(end, first + 1, shape)
        positions = control_positions(self.extent, self.elastic_points, parameters, spacing)
        # grid_sample counts from -1 to 1, the outer faces of the end voxels, and wants the last axis first
        relative = (2 * (positions - first) + 1) / (end - first) - 1
        return first.tolist(), (end - first).tolist(), interpolate(relative[..., ::-1], self.weights)

    def _draw_start(self, voxels: int, patch: int) -> int:
        """First voxel of the label's patch along one axis; a patch larger than the case is centred on it."""
        return int(self.R.randint(voxels - patch + 1)) if voxels >= patch else -((patch - voxels) // 2)

    def _draw_foreground(
        self, label: torch.Tensor, counts: Mapping[int, np.ndarray] | None
    ) -> np.ndarray | None:
        """A voxel of a class drawn among the foreground classes present, or None where there is none."""
        counts = class_counts(label) if counts is None else counts
        classes = [index for index in counts if index not in (0, self.ignore_label)]
        if not classes:
            return None
        return self._draw_voxel(label, classes[self.R.randint(len(classes))], counts)

    def _draw_annotated(self, label: torch.Tensor, counts: Mapping[int, np.ndarray]) -> np.ndarray | None:
        """A voxel that somebody annotated, or None where nobody did."""
        classes = [index for index in counts if index != self.ignore_label]
        if not classes:
            return None
        ends = np.cumsum([counts[index].sum() for index in classes])
        place = int(np.searchsorted(ends, self.R.randint(ends[-1]), side="right"))
        return self._draw_voxel(label, classes[place], counts)

    def _draw_voxel(self, label: torch.Tensor, index: int, counts: Mapping[int, np.ndarray]) -> np.ndarray:
        """A voxel of a class."""
        ends = np.cumsum(counts[index])
        voxel = self.R.randint(ends[-1])  # of the class, in the order of the axes
        place = int(np.searchsorted(ends, voxel, side="right"))
        found = np.flatnonzero(np.asarray(label[0, place : place + 1]) == index)
        if len(found) != counts[index][place]:
            raise InputError(
                f"{self.label_key} is not the label that was counted: name CountClassesd right before "
                "RandSpatialPatchd"
            )
        within = found[voxel - ends[place]]  # counted from the slice's last
        return np.array([place, *np.unravel_index(within, label.shape[2:])])

    def _unfolded(self, displacements: np.ndarray, matrix: np.ndarray) -> float:
        """The factor, 1 or less, that keeps displacements from folding the space of the patch.

        A displacement of f times the drawn one takes a voxel's volume times det(1 + f A), where A are the
        slopes of the displacements in voxels of the patch. With the sums s_k of the eigenvalues' k-th powers,
        the traces of A^k, it is 1 + f e_1 + f^2 e_2 + f^3 e_3 by Newton's identities; e_3 is 0 in 2D.

        Args:
            displacements: (dims, *control points), in ``units``.
            matrix: (dims, dims), takes voxels of the patch to ``units`` of the source.
        """
        vectors = np.tensordot(np.linalg.inv(matrix), displacements, 1)
        columns = []
        for axis in range(self.dims):
            column = vectors
            for other, (value, slope) in enumerate(zip(self.values, self.slopes, strict=True)):
                # the last axis gives way to the next, and after all of them they stand in order again
                column = np.moveaxis(column, 1, -1) @ (slope if other == axis else value).T
            columns.append(column.reshape(self.dims, -1))
        slopes = np.stack(columns, axis=1)  # (vector, axis, places)
        square = np.einsum("ijp,jkp->ikp", slopes, slopes)
        first = np.einsum("iip->p", slopes)
        second = np.einsum("iip->p", square)
        third = np.einsum("ijp,jip->p", square, slopes)
        terms = np.stack([first, (first**2 - second) / 2, (first**3 - 3 * first * second + 2 * third) / 6])

        def folds(factor: float) -> bool:
            return bool((factor ** np.arange(1, 4) @ terms).min() < SMALLEST_VOLUME - 1)

        if not folds(1.0):
            return 1.0
        low, high = 0.0, 1.0
        for _ in range(8):  # halvings: within 1/256 of the largest factor
            middle = (low + high) / 2
            low, high = (low, middle) if folds(middle) else (middle, high)
        return low

    def _start_around(self, voxel: np.ndarray | None, shape: Sequence[int], start: np.ndarray) -> np.ndarray:
        """The start that centres the label's patch on a voxel, moved so that it stays within the case."""
        if voxel is None:
            return start
        spare = np.array(shape) - np.array(self.label_size)
        wanted = np.clip(voxel - np.array(self.label_size) // 2, 0, np.maximum(spare, 0))
        return np.where(spare >= 0, wanted, start)

    def _rotation(self, angles: Sequence[float]) -> np.ndarray:
        if self.dims == 3:
            return Rotation.from_euler("xyz", angles).as_matrix()
        cos, sin = np.cos(angles[0]), np.sin(angles[0])
        return np.array([[cos, -sin], [sin, cos]])

    def _spacing(self, image: torch.Tensor) -> np.ndarray:
        if self.units == "pixel" or not isinstance(image, MetaTensor):
            return np.ones(self.dims)
        sizes = np.asarray(image.pixdim)[: self.dims]
        return sizes if self.units == "mm" else sizes / sizes.min()
