"""`python -m bundle phantom`: made-up cells or discs (2D), an organ or hearts (3D) to train on at once.

The folder follows the Medical Segmentation Decathlon (Antonelli et al. 2022, "The Medical Segmentation
Decathlon"), with two additions: "testing" lists the held-out cases together with their labels, and
"instances" is true where a label image numbers its objects. Every array depends on the seed, the case number
and the size alone, so a larger phantom repeats the cases of a smaller one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import typer
from PIL import Image
from scipy import ndimage
from scipy.spatial.transform import Rotation
from skimage.draw import disk, line_aa
from skimage.segmentation import find_boundaries

from scripts.errors import InputError
from scripts.files import replace_folder, workshop
from scripts.progress import progress

FOLDERS = ("imagesTr", "labelsTr", "imagesTs", "labelsTs")
HELD_OUT_EVERY = 5  # one case in five is held out
MIN_CASES = 4  # two to train on, two held out

CELLS_SIZE = (256, 256)  # rows, columns
CELLS_MIN_SIZE = (64, 64)
CELL_RADIUS = (7.0, 16.0)  # pixels
CELL_MAX_HIDDEN = 0.25  # the share of a new cell that may lie behind earlier ones
CELL_MIN_AREA = 40  # pixels
PHOTONS_PER_GREY = 2.0

ORGAN_SIZE = (48, 56, 40)  # voxels along right, anterior, superior
ORGAN_MIN_SIZE = (24, 24, 24)
ORGAN_MARGIN = 2  # voxels between the organ and the end of the grid
ORGAN_BORDER = 0.1  # where anterior meets posterior, on an axis from -1 (tail) to 1 (head)
ORGAN_SITE = (26.0, -22.0, -14.0)  # mm in patient space (RAS+): about where a right hippocampus lies
MAX_TILT = 20.0  # degrees
GREY, WHITE, FLUID = 0.62, 1.0, 0.2  # relative signal of the tissues on a T1-weighted image

HEART_SIZE = (128, 128, 10)  # voxels in the plane of the slices, and slices
HEART_MIN_SIZE = (64, 64, 5)
HEART_RADIUS, HEART_WALL = 30.0, 9.0  # mm: of the muscle's outside at its base, and how thick it is
BLOOD, MUSCLE, BODY, FAT, LUNG = 1.0, 0.34, 0.5, 0.85, 0.08  # relative signal on a bright-blood image

CUE_SIZE = (64, 64)  # rows, columns
CUE_MIN_SIZE = (48, 48)
CUE_RADIUS, CUE_SIDE = 5.0, 5  # pixels: of a disc, and the edge of its mark
CUE_GREY, CUE_NOISE, CUE_DISC, CUE_MARK = 110, 5.0, 160, 90  # grey values; a mark is brighter or darker


class Kind(StrEnum):
    """What the phantom shows."""

    CELLS = "cells"
    CUE = "cue"
    ORGAN = "organ"
    HEART = "heart"


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], sigma: float | np.ndarray) -> np.ndarray:
    """Gaussian noise blurred by `sigma` (grid steps), brought back to mean 0 and deviation 1."""
    noise = ndimage.gaussian_filter(rng.standard_normal(shape), sigma, mode="reflect", truncate=3.0)
    return (noise - noise.mean()) / noise.std()


def _touching(labels: np.ndarray) -> bool:
    """True where two different cells are neighbours along a row or a column."""
    pairs = ((labels[1:], labels[:-1]), (labels[:, 1:], labels[:, :-1]))
    return any(bool(np.any((a != b) & (a > 0) & (b > 0))) for a, b in pairs)


def _cell_blob(
    rng: np.random.Generator, size: tuple[int, ...], centre: np.ndarray, radius: float
) -> tuple[tuple[slice, ...], np.ndarray]:
    """An ellipse with a smoothly irregular outline: its window in the picture and its mask there."""
    reach = 2 * radius
    window = tuple(
        slice(max(0, int(c - reach)), max(0, min(n, int(c + reach) + 1)))
        for c, n in zip(centre, size, strict=True)
    )
    rows, columns = np.ogrid[window]
    y, x = rows - centre[0], columns - centre[1]
    tilt, stretch = rng.uniform(0, np.pi), rng.uniform(1.0, 1.3)
    along = (x * np.cos(tilt) + y * np.sin(tilt)) / stretch
    across = (y * np.cos(tilt) - x * np.sin(tilt)) * stretch
    angle = np.arctan2(across, along)
    outline = np.ones_like(angle)
    for order in range(2, 6):
        outline += rng.normal(0, 0.14 / order) * np.cos(order * angle + rng.uniform(0, 2 * np.pi))
    return window, np.hypot(along, across) < radius * outline


def _cell_labels(rng: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
    """Clusters of cells, numbered from 1, until they cover the wanted share and two of them touch."""
    labels = np.zeros(size, np.uint16)
    count = 0
    share = rng.uniform(0.17, 0.27)
    while np.mean(labels > 0) < share or not _touching(labels):
        cluster: list[tuple[np.ndarray, float]] = []
        for _ in range(rng.integers(2, 8)):
            radius = rng.uniform(*CELL_RADIUS)
            centre = rng.uniform(0, size)
            if cluster:
                neighbour, reach = cluster[rng.integers(len(cluster))]
                direction = rng.uniform(0, 2 * np.pi)
                step = 0.88 * (reach + radius)
                centre = neighbour + step * np.array([np.sin(direction), np.cos(direction)])
            window, blob = _cell_blob(rng, size, centre, radius)
            cell = blob & (labels[window] == 0)
            seen = cell.sum()
            if (
                seen >= CELL_MIN_AREA
                and seen >= (1 - CELL_MAX_HIDDEN) * blob.sum()
                and ndimage.label(cell)[1] == 1
            ):
                count += 1
                labels[window][cell] = count
                cluster.append((centre, radius))
    return labels


def _debris(rng: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
    """Specks and thin streaks, brighter or darker than what they lie on (relative signal, 0 for none)."""
    dirt = np.zeros(size)
    area = size[0] * size[1]
    for _ in range(rng.poisson(area / 3000)):
        speck = disk(rng.uniform(0, size), rng.uniform(0.8, 2.2), shape=size)
        dirt[speck] += rng.choice([-0.5, 0.7])
    for _ in range(rng.poisson(area / 16000)):
        start, direction = rng.uniform(0, size), rng.uniform(0, 2 * np.pi)
        end = start + rng.uniform(15, 50) * np.array([np.sin(direction), np.cos(direction)])
        rows, columns, weight = line_aa(*(int(v) for v in (*start, *end)))
        inside = (rows >= 0) & (rows < size[0]) & (columns >= 0) & (columns < size[1])
        dirt[rows[inside], columns[inside]] += rng.choice([-0.5, 0.7]) * weight[inside]
    return dirt


def draw_cells(seed: int, index: int, size: tuple[int, ...] = CELLS_SIZE) -> tuple[np.ndarray, np.ndarray]:
    """One picture of crowded cells under uneven light.

    Cells are brighter than their surroundings in even cases and darker in odd ones; their rims go the other
    way. The light varies several times over the picture, so no single threshold finds them.

    Args:
        seed: of the phantom, 0 or more.
        index: of the case, 0 or more.
        size: rows and columns, 64 or more each.

    Returns:
        The image (H, W), uint8, 0..255; the instance map (H, W), uint16, 0 for background, 1..N for cells.
    """
    rng = np.random.default_rng([seed, index])
    labels = _cell_labels(rng, size)
    sign = 1.0 if index % 2 == 0 else -1.0

    inside = labels > 0
    depth = ndimage.distance_transform_edt(inside & ~find_boundaries(labels, mode="inner"))
    rim = inside * np.exp(-((depth / 1.5) ** 2))
    body = inside * (1 - np.exp(-depth / 2.0))
    stain = rng.uniform(0.75, 1.25, labels.max() + 1)[labels]  # some cells take up more than others
    contrast = rng.uniform(0.45, 0.6) if sign > 0 else rng.uniform(0.32, 0.42)
    signal = 1 + sign * contrast * (stain * body * (1 + 0.15 * _smooth_noise(rng, size, 2.0)) - 0.7 * rim)
    signal *= 1 + 0.05 * _smooth_noise(rng, size, 4.0)
    signal = ndimage.gaussian_filter(signal + _debris(rng, size), rng.uniform(0.7, 1.2))

    direction = rng.uniform(0, 2 * np.pi)
    rows, columns = np.meshgrid(*(np.linspace(-1, 1, n) for n in size), indexing="ij")
    slope = rows * np.sin(direction) + columns * np.cos(direction)
    light = np.exp(rng.uniform(0.6, 0.9) * slope + 0.35 * _smooth_noise(rng, size, 0.15 * min(size)))
    clean = signal.clip(0.05) * light
    clean *= rng.uniform(190, 230) / np.percentile(clean, 99.5)

    noisy = rng.poisson(PHOTONS_PER_GREY * clean) / PHOTONS_PER_GREY + rng.normal(0, 2.0, size)
    return noisy.round().clip(0, 255).astype(np.uint8), labels


def draw_cue(seed: int, index: int, size: tuple[int, ...] = CUE_SIZE) -> tuple[np.ndarray, np.ndarray]:
    """One picture of a disc, whose class a mark on the other side of the picture decides.

    All discs are alike. With a bright mark a disc has class 1, with a dark one class 2, and in every third
    case there is no mark and the disc is background, so that neither class is what is left without a cue.
    What a network looked at is known here: disc and mark.

    Args:
        seed: of the phantom, 0 or more.
        index: of the case, 0 or more.
        size: rows and columns, 48 or more each.

    Returns:
        The image (H, W), uint8; the label (H, W), uint8, 0 background, 1 bright, 2 dark.
    """
    rng = np.random.default_rng([seed, index])
    height, width = size
    row, mark = rng.uniform(0.25, 0.75, 2) * height
    column, far = rng.uniform(0.15, 0.25) * width, rng.uniform(0.75, 0.85) * width
    image = CUE_GREY + rng.normal(0, CUE_NOISE, size)
    within = disk((row, column), CUE_RADIUS, shape=size)
    image[within] += CUE_DISC - CUE_GREY
    kind = (index + 1) % 3  # the first two have a mark
    top, left = int(mark) - CUE_SIDE // 2, int(far) - CUE_SIDE // 2
    image[top : top + CUE_SIDE, left : left + CUE_SIDE] += (0, 1, -1)[kind] * CUE_MARK
    label = np.zeros(size, np.uint8)
    label[within] = kind
    return image.round().clip(0, 255).astype(np.uint8), label


def _organ_axis(rng: np.random.Generator, scale: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The bent axis of one organ, from tail to head.

    Returns:
        Position on the axis (P,) from -1 to 1; points (P, 3) in mm about the organ's middle; radius (P,), mm.
    """
    along = np.linspace(-1, 1, 31)  # a point about every mm
    length, bend, rise = rng.normal((15.5, 6.0, 4.0), 0.8)  # mm
    points = np.stack([-bend * (along**2 - 0.3), length * along - 1.5, -rise * along * abs(along)], axis=1)
    head = 1 / (1 + np.exp(-(along - ORGAN_BORDER) / 0.06))  # the head swells where anterior begins
    radius = (5.3 + 0.5 * along + 2.0 * head) * rng.normal(1, 0.05)
    return along, scale * points, scale * radius


def _organ_grid(
    rng: np.random.Generator, index: int, size: tuple[int, ...], scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """A sampling grid: shape (3,) in voxels and affine (4, 4) from voxel to patient space in mm.

    Odd cases are tilted by up to 20 degrees. Thicker slices come in smaller numbers, as scanners have it.
    """
    spacing = np.array([*rng.uniform(0.95, 1.15, 2), rng.uniform(1.0, 2.0)])
    shape = np.array(size) + rng.integers(-2, 3, 3)
    shape[2] = round(shape[2] * (1.2 - 0.2 * spacing[2]))
    axis = rng.standard_normal(3)
    angle = np.deg2rad(rng.uniform(5, MAX_TILT)) if index % 2 else 0.0
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_rotvec(angle * axis / np.linalg.norm(axis)).as_matrix() * spacing
    centre = np.array(ORGAN_SITE) + scale * rng.normal(0, 1.5, 3)
    affine[:3, 3] = centre - affine[:3, :3] @ ((shape - 1) / 2)
    return shape, affine


def _organ_distance(
    world: np.ndarray, points: np.ndarray, radius: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Distance from the axis in radii (1 is the surface) and the nearest axis point, both (X, Y, Z)."""
    x, y, z = world
    nearest = np.full(x.shape, np.inf)  # squared
    which = np.zeros(x.shape, int)
    for i, (point, r) in enumerate(zip(points, radius, strict=True)):
        squared = (x - point[0]) ** 2 + (y - point[1]) ** 2 + 1.3 * (z - point[2]) ** 2  # a flattened tube
        squared /= r**2
        closer = squared < nearest
        np.copyto(nearest, squared, where=closer)
        np.copyto(which, i, where=closer)
    return np.sqrt(nearest), which


def _offset_from_random_voxel(rng: np.random.Generator, world: np.ndarray) -> np.ndarray:
    """Position relative to a voxel drawn at random, (3, X, Y, Z) in mm."""
    i, j, k = rng.integers(0, world.shape[1:])
    return world - world[:, i, j, k].reshape(3, 1, 1, 1)


def draw_organ(
    seed: int, index: int, size: tuple[int, ...] = ORGAN_SIZE
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One T1-like volume with a bent, tapered organ of two parts amid tissue of the same signal.

    The organ lies alike in patient space in every case; in odd cases the grid that samples it is tilted.
    Folded sheets, balls and thin vessels share its signal and are not organ.

    Args:
        seed: of the phantom, 0 or more.
        index: of the case, 0 or more.
        size: voxels along x, y and z, 24 or more each; a case departs from it a little, and has fewer slices
            where they are thick. The organ shrinks or grows with it.

    Returns:
        The image (X, Y, Z), float32, non-negative, its scale different from case to case by orders of
        magnitude; the label (X, Y, Z), uint8, 0 background, 1 anterior, 2 posterior; the affine (4, 4) from
        voxel to patient space (RAS+) in mm.
    """
    rng = np.random.default_rng([seed, index])
    # the margin does not shrink with the grid, so the organ shrinks faster
    scale = min((n - 8) / (usual - 8) for n, usual in zip(size, ORGAN_SIZE, strict=True))
    inner = (slice(ORGAN_MARGIN, -ORGAN_MARGIN),) * 3
    while True:  # until the organ fits the grid
        along, points, radius = _organ_axis(rng, scale)
        points = points + ORGAN_SITE
        shape, affine = _organ_grid(rng, index, size, scale)
        i, j, k = np.ogrid[: shape[0], : shape[1], : shape[2]]
        world = np.stack([r[0] * i + r[1] * j + r[2] * k + r[3] for r in affine[:3]])  # (3, X, Y, Z) in mm
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        distance, which = _organ_distance(world, points, radius)
        distance = distance + 0.05 * _smooth_noise(rng, distance.shape, 3.0 * scale / spacing)
        organ = distance < 1
        if organ.sum() == organ[inner].sum():
            break
    label = (organ * np.where(along[which] > ORGAN_BORDER, 1, 2)).astype(np.uint8)

    folds = _smooth_noise(rng, organ.shape, 4.5 * scale / spacing)
    folds += 3 * np.exp(-((distance - 1).clip(0) / 0.4))  # white matter surrounds the organ
    tissue = np.where(folds > 0.25, WHITE, np.where(folds > -0.55, GREY, FLUID))
    free = distance > 1.12
    for _ in range(rng.poisson(8)):  # balls
        offset = _offset_from_random_voxel(rng, world)
        squared = sum(rng.uniform(0.7, 1.4) * d**2 for d in offset)
        tissue[(squared < (scale * rng.uniform(3, 6)) ** 2) & free] = GREY
    for _ in range(rng.poisson(4)):  # vessels
        offset = _offset_from_random_voxel(rng, world)
        course = rng.standard_normal(3)
        course /= np.linalg.norm(course)
        squared = sum(d**2 for d in offset) - sum(c * d for c, d in zip(course, offset, strict=True)) ** 2
        tissue[(squared < (scale * rng.uniform(1.0, 1.8)) ** 2) & free] = GREY
    tissue[organ] = GREY

    tissue = ndimage.gaussian_filter(tissue + 0.03 * _smooth_noise(rng, organ.shape, 1.0), 0.6)
    bias = np.exp(0.2 * _smooth_noise(rng, organ.shape, 16 * scale / spacing))
    sigma = rng.uniform(0.04, 0.08)
    noise = rng.normal(0, sigma, (2, *organ.shape))
    magnitude = np.hypot(tissue * bias + noise[0], noise[1])  # Rician: the modulus of a noisy complex signal
    return (magnitude * 10 ** rng.uniform(1, 4)).astype(np.float32), label, affine


def _outline(
    rng: np.random.Generator, place: np.ndarray, centre: np.ndarray, radius: float, roughness: float = 0.05
) -> np.ndarray:
    """A disk with a smoothly irregular outline, (X, Y).

    Args:
        rng: draws the outline.
        place: of each pixel, (2, X, Y), mm.
        centre: of the disk, mm.
        radius: of the disk, mm.
        roughness: of the outline, as a share of the radius.
    """
    x, y = place - centre.reshape(2, 1, 1)
    angle = np.arctan2(y, x)
    edge = 1 + sum(
        rng.normal(0, roughness / order) * np.cos(order * angle + rng.uniform(0, 2 * np.pi))
        for order in range(2, 6)
    )
    return np.hypot(x, y) < radius * edge


def _direction(angle: float) -> np.ndarray:
    return np.array([np.cos(angle), np.sin(angle)])


def draw_heart(
    seed: int, index: int, size: tuple[int, ...] = HEART_SIZE
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One stack of few thick slices across a heart, as in cine MR: a ring of muscle, a cavity, a crescent.

    The muscle narrows to its apex, beyond which there is none; above its base follows a cavity without ring,
    which is no part of it. Slices are shifted against each other, as breath-holds differ. A vessel, a hollow
    organ with a wall of the same signal and a solid one beside the heart look like parts of it.

    Args:
        seed: of the phantom, 0 or more.
        index: of the case, 0 or more.
        size: pixels of a slice, 64 or more each, and slices, 5 or more; a case departs from it a little. The
            heart has its size in mm.

    Returns:
        The image (X, Y, Z), float32, non-negative; the label (X, Y, Z), uint8, 0 background, 1 muscle,
        2 cavity, 3 crescent; the affine (4, 4) from voxel to patient space (RAS+) in mm.
    """
    rng = np.random.default_rng([seed, index])
    shape = np.array(size) + rng.integers((-4, -4, -1), (5, 5, 2))
    spacing = np.array([*rng.uniform(1.3, 1.6, 1).repeat(2), rng.uniform(9.0, 10.0)])
    i, j = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in shape[:2]), indexing="ij")
    place = np.stack([i, j]) * spacing[0]  # (2, X, Y), mm

    outer = HEART_RADIUS * rng.normal(1, 0.1)
    wall = HEART_WALL * rng.normal(1, 0.15)
    middle, drift, turn = rng.normal(0, 10, 2), rng.normal(0, 1.5, 2), rng.uniform(-0.9, 0.9)
    first, beyond = rng.uniform(0.5, 2), rng.uniform(1.5, 3.5)
    length = max(shape[2] - beyond, first + 2)  # two slices of it at least
    vessel = middle + (outer + 24) * _direction(turn + rng.uniform(-0.8, 0.8))
    hollow = middle - (outer + 26) * _direction(turn + rng.uniform(-0.8, 0.8))
    solid = middle + (outer + 40) * _direction(turn + 1.6 + rng.uniform(-0.4, 0.4))
    chest = rng.uniform(0.85, 1.0, 2) * np.abs(place).max(axis=(1, 2))

    across = np.hypot(*place / chest.reshape(2, 1, 1))  # 1 at the skin
    tissue, label = np.zeros(shape), np.zeros(shape, np.uint8)
    for z in range(shape[2]):
        along = (z - first) / (length - first)  # 0 at the base, 1 at the apex
        centre = middle + drift * z + rng.normal(0, 1.5, 2)
        inside = across < 1
        plane = np.where(inside, BODY, 0.0)
        plane[inside & (across > 0.9)] = FAT
        for side in (-1, 1):
            lung = np.array([0.45 * side * chest[0], 0.1 * chest[1]])
            plane[_outline(rng, place, lung, 0.38 * chest[0], 0.1) & inside] = LUNG
        plane[_outline(rng, place, solid + 2 * drift * z, 30.0, 0.1) & inside] = MUSCLE
        plane[_outline(rng, place, hollow, 17.0 + wall / 2) & inside] = MUSCLE
        plane[_outline(rng, place, hollow, 17.0 - wall / 3) & inside] = rng.uniform(0.7, 1.0)
        plane[_outline(rng, place, vessel, 15.0) & inside] = MUSCLE
        plane[_outline(rng, place, vessel, 12.0) & inside] = BLOOD
        around = plane.copy()
        if along < 0:  # above the base
            plane[_outline(rng, place, centre, 0.85 * outer, 0.1)] = BLOOD
        elif along < 1:
            radius = outer * np.sqrt(1 - along**2)
            muscle = _outline(rng, place, centre, radius)
            cavity = _outline(rng, place, centre, radius - wall * (1 - 0.3 * along)) & muscle
            beside = centre + 0.95 * radius * _direction(turn + 0.3 * along)
            crescent = _outline(rng, place, beside, 0.95 * radius * (1 - 0.4 * along), 0.08) & ~muscle
            crescent &= along < 0.85
            rim = ndimage.binary_dilation(crescent, iterations=2) & ~muscle
            for part, signal in ((rim, MUSCLE), (crescent, BLOOD), (muscle, MUSCLE), (cavity, BLOOD)):
                plane[part] = signal
            for _ in range(2):  # the small muscles within belong to the cavity
                spot = centre + 0.5 * (radius - wall) * _direction(rng.uniform(0, 2 * np.pi))
                plane[_outline(rng, place, spot, rng.uniform(2, 4)) & cavity] = MUSCLE
            label[..., z] = np.select([cavity, muscle, crescent], [2, 1, 3], 0)
        tissue[..., z] = 0.85 * plane + 0.15 * around  # a thick slice holds some of its neighbours
    tissue *= 1 + 0.08 * _smooth_noise(rng, tuple(shape), np.array([2.0, 2.0, 0.5]))
    tissue = ndimage.gaussian_filter(tissue, (0.7, 0.7, 0))
    bias = np.exp(0.3 * _smooth_noise(rng, tuple(shape), np.array([25.0, 25.0, 3.0])))
    noise = rng.normal(0, rng.uniform(0.06, 0.12), (2, *shape))
    image = np.hypot(tissue * bias + noise[0], noise[1]) * 10 ** rng.uniform(1, 4)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -spacing * (shape - 1) / 2
    return image.astype(np.float32), label, affine


def _write_picture(
    draw: Callable[..., tuple[np.ndarray, np.ndarray]],
    stem: str,
    seed: int,
    index: int,
    size: tuple[int, ...],
    image: Path,
    label: Path,
) -> str:
    """Write one case that is drawn as two PNG files and return their name."""
    pixels, labels = draw(seed, index, size)
    Image.fromarray(pixels).save(image / f"{stem}.png")
    Image.fromarray(labels).save(label / f"{stem}.png")
    return f"{stem}.png"


def _write_volume(
    draw: Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray]],
    stem: str,
    seed: int,
    index: int,
    size: tuple[int, ...],
    image: Path,
    label: Path,
) -> str:
    """Write one case that is drawn as two NIfTI files and return their name."""
    voxels, labels, affine = draw(seed, index, size)
    for folder, array in ((image, voxels), (label, labels)):
        nifti = nib.Nifti1Image(array, affine)
        nifti.header.set_xyzt_units("mm")
        nifti.set_sform(affine, code="scanner")
        nifti.set_qform(affine, code="scanner")
        nib.save(nifti, folder / f"{stem}.nii.gz")
    return f"{stem}.nii.gz"


_WRITERS: dict[Kind, Callable[[str, int, int, tuple[int, ...], Path, Path], str]] = {
    Kind.CELLS: partial(_write_picture, draw_cells),
    Kind.CUE: partial(_write_picture, draw_cue),
    Kind.ORGAN: partial(_write_volume, draw_organ),
    Kind.HEART: partial(_write_volume, draw_heart),
}
_USUAL_SIZE = {
    Kind.CELLS: CELLS_SIZE,
    Kind.CUE: CUE_SIZE,
    Kind.ORGAN: ORGAN_SIZE,
    Kind.HEART: HEART_SIZE,
}
_MIN_SIZE = {
    Kind.CELLS: CELLS_MIN_SIZE,
    Kind.CUE: CUE_MIN_SIZE,
    Kind.ORGAN: ORGAN_MIN_SIZE,
    Kind.HEART: HEART_MIN_SIZE,
}
_ABOUT: dict[Kind, dict[str, Any]] = {
    Kind.CELLS: {
        "name": "phantom cells",
        "description": "Generated pictures of touching cells under uneven light",
        "licence": "CC0-1.0",
        "tensorImageSize": "2D",
        "modality": {"0": "microscopy"},
        "labels": {"0": "background", "1": "cell"},
        "instances": True,
    },
    Kind.CUE: {
        "name": "phantom cue",
        "description": "Generated pictures of discs whose class a mark elsewhere decides",
        "licence": "CC0-1.0",
        "tensorImageSize": "2D",
        "modality": {"0": "none"},
        "labels": {"0": "background", "1": "bright", "2": "dark"},
    },
    Kind.ORGAN: {
        "name": "phantom organ",
        "description": "Generated T1-like volumes of a bent organ in two parts",
        "licence": "CC0-1.0",
        "tensorImageSize": "3D",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "anterior", "2": "posterior"},
    },
    Kind.HEART: {
        "name": "phantom heart",
        "description": "Generated stacks of few thick slices across a heart, as in cine MR",
        "licence": "CC0-1.0",
        "tensorImageSize": "3D",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "muscle", "2": "cavity", "3": "crescent"},
    },
}


def held_out(cases: int) -> set[int]:
    """The case numbers kept for testing: every fifth, or the last two of fewer than ten."""
    every = set(range(HELD_OUT_EVERY - 1, cases, HELD_OUT_EVERY))
    return every if len(every) >= 2 else {cases - 2, cases - 1}


def _is_phantom(folder: Path) -> bool:
    """True where the folder holds what write_phantom wrote, perhaps the checks of a training, and no more."""
    if {entry.name for entry in folder.iterdir()} - {"checked.json"} != {*FOLDERS, "dataset.json"}:
        return False
    try:
        about = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        return about["name"] in {known["name"] for known in _ABOUT.values()}
    except (ValueError, KeyError, TypeError):
        return False


def write_phantom(
    kind: Kind, output_dir: Path, cases: int = 24, seed: int = 0, size: tuple[int, ...] | None = None
) -> dict[str, Any]:
    """Write a phantom data set, all of it or nothing.

    Args:
        kind: cells or cue (2D), organ or heart (3D).
        output_dir: a new or empty folder, or an earlier phantom, which is replaced.
        cases: how many, held-out ones included, 4 or more.
        seed: 0 or more; the same seed gives the same arrays.
        size: (rows, columns) of cells, 64 or more each, or of a cue, 48 or more each, (x, y, z) voxels of
            the organ, 24 or more each, or of the heart, 64 or more in the plane and 5 slices or more;
            256 x 256, 64 x 64, 48 x 56 x 40 or 128 x 128 x 10 by default.

    Returns:
        The contents of dataset.json.

    Raises:
        InputError: an argument is out of range, or output_dir holds something other than an earlier phantom.
    """
    usual, least = _USUAL_SIZE[kind], _MIN_SIZE[kind]
    size = usual if size is None else size
    if cases < MIN_CASES:
        raise InputError(f"cases is {cases}, but 2 to train on and 2 held out are needed: give 4 or more.")
    if seed < 0:
        raise InputError(f"seed is {seed}, but a seed is 0 or more: give a non-negative whole number.")
    if len(size) != len(usual) or any(n < fewest for n, fewest in zip(size, least, strict=True)):
        raise InputError(
            f"size is {size}, but {kind.value} takes {' x '.join(map(str, least))} or more: "
            f"give for example {' '.join(f'--size {n}' for n in usual)}."
        )
    output_dir = output_dir.resolve()
    if output_dir.exists() and not (
        output_dir.is_dir() and (not any(output_dir.iterdir()) or _is_phantom(output_dir))
    ):
        raise InputError(
            f"output_dir {str(output_dir)!r} holds something other than an earlier phantom, "
            "which would be lost: name a new or empty folder."
        )

    with workshop(output_dir.parent) as place:
        made = place / "made"
        for folder in FOLDERS:
            (made / folder).mkdir(parents=True)
        kept = held_out(cases)
        pairs: dict[str, list[dict[str, str]]] = {"Tr": [], "Ts": []}
        for index in progress(range(cases), desc=f"phantom {kind.value}", unit="case"):
            part = "Ts" if index in kept else "Tr"
            images, labels = made / f"images{part}", made / f"labels{part}"
            name = _WRITERS[kind](f"{kind.value}_{index:03d}", seed, index, size, images, labels)
            pairs[part].append({"image": f"./images{part}/{name}", "label": f"./labels{part}/{name}"})
        about = {
            **_ABOUT[kind],
            "numTraining": len(pairs["Tr"]),
            "numTest": len(pairs["Ts"]),
            "training": pairs["Tr"],
            "testing": pairs["Ts"],
            "test": [pair["image"] for pair in pairs["Ts"]],
        }
        (made / "dataset.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        replace_folder(made, output_dir)
    return about


def phantom(
    kind: str,
    output_dir: Path,
    cases: int,
    seed: int,
    size: list[int] | None,
) -> None:
    """Carry out `bundle.cli.phantom`, whose arguments these are."""
    about = write_phantom(Kind(kind), output_dir, cases, seed, tuple(size) if size else None)
    typer.echo(
        f"{about['numTraining']} cases to train on and {about['numTest']} held out: "
        f"look at {output_dir / 'imagesTr'} beside {output_dir / 'labelsTr'}; "
        f"{output_dir / 'dataset.json'} lists them."
    )
