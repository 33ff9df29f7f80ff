"""`python -m bundle why`: for a class and a place of an image, what the network looked at.

What is explained are the log-odds of the class against all others, or against one, at a voxel or as the mean
over a component: what the network prefers there, which no softmax flattens. Each method says how much every
voxel of the input moves them:

- gradient: by how much they change with a little more signal (`monai.visualize.VanillaGrad`; K. Simonyan et
  al., "Deep Inside Convolutional Networks", 2013, arXiv 1312.6034);
- smoothgrad: the same, over noisy versions of the image (`SmoothGrad`; D. Smilkov et al., 2017,
  arXiv 1706.03825);
- occlusion: what is lost where a block is hidden by the mean (`OcclusionSensitivity`; M. Zeiler, R. Fergus,
  "Visualizing and Understanding Convolutional Networks", ECCV 2014).

MONAI's guided backpropagation is left out: it asks for ReLU by name, and its maps hardly change when the
weights are drawn anew (J. Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018). That check is
made here of each map: beside it stands what the same network says with the weights that it began with.

MONAI's methods are for networks that classify, (B, classes): `Preference` makes one of a network that
segments. They see one window of the image, as the network does.
"""

from __future__ import annotations

import copy
import json
import math
import sys
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd
from monai.utils import CommonKeys as Keys
from monai.utils import MetaKeys
from monai.visualize import OcclusionSensitivity, SmoothGrad, VanillaGrad
from scipy.ndimage import distance_transform_edt
from scipy.stats import spearmanr
from skimage.measure import label as components
from torch import Tensor, nn

from bundle.doctor.runs import Run, quiet
from bundle.runs.suggest import read_segmenter
from scripts.compute.acceleration import unwrap
from scripts.compute.exported import Exported
from scripts.compute.inferers import SlabInferer, Windows, read_tiles
from scripts.data import SaveCased
from scripts.data.checks import Problem
from scripts.data.datalist import case_id
from scripts.data.dataset import PROBLEM
from scripts.errors import InputError, nearest
from scripts.files import workshop, write_csv
from scripts.handlers import WeightsLoader
from scripts.labels import class_names
from scripts.networks.blocks import Axes
from scripts.networks.heads import main_logits
from scripts.pictures import draw_why, shown
from scripts.tables import Row, table
from scripts.transforms.labels import like

#: What it writes: a table of the methods, and a picture.
TABLE, PICTURE = "why.csv", "why.png"

#: Share of a window's edge that is hidden at once: what is larger is not lost where a block of it is. Then by
#: how much blocks overlap, by the dimensions, so that there are some hundreds.
HIDDEN, OVERLAP = 1 / 8, {2: 0.5, 3: 0.0}

#: Images that pass the network at once.
AT_ONCE = 4

#: Noise of `SmoothGrad`, as a share of the range of the window, and noisy versions.
NOISE, SAMPLES = 0.05, 25


class Preference(nn.Module):
    """The log-odds of a class against others, as the mean over a place: one number an image.

    Args:
        network: takes (B, C, *tile), gives logits, or logarithms of probabilities, (B, classes, *window).
        index: of the class.
        place: True where it is asked, (*window).
        other: index of the class that it is held against; None: all others.
    """

    def __init__(self, network: nn.Module, index: int, place: Tensor, other: int | None = None) -> None:
        super().__init__()
        self.network = network
        self.index = index
        self.other = other
        self.place = place
        self.eval()  # MONAI's methods put a module back to what it was, and so the network in it

    def forward(self, x: Tensor) -> Tensor:
        """The log-odds, (B, 1)."""
        logits = main_logits(self.network(x)).float()[:, :, self.place]  # (B, classes, voxels)
        if self.other is None:
            others = torch.cat([logits[:, : self.index], logits[:, self.index + 1 :]], 1).logsumexp(1)
        else:
            others = logits[:, self.other]
        return (logits[:, self.index] - others).mean(1, keepdim=True)


def gradient(asked: Preference, tile: Tensor) -> Tensor:
    """How much each voxel of a tile moves the answer, (1, C, *tile)."""
    return VanillaGrad(asked)(tile.clone(), index=0, retain_graph=False).abs()


def smoothgrad(asked: Preference, tile: Tensor) -> Tensor:
    """The same over noisy versions, always with the same noise."""
    method = SmoothGrad(asked, NOISE, SAMPLES, verbose=sys.stderr.isatty())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return method(tile.clone(), index=0, retain_graph=False)


def occlusion(asked: Preference, tile: Tensor) -> Tensor:
    """What the answer loses where a block around each voxel is hidden, (1, 1, *tile); below 0 it gains."""
    dims = tile.ndim - 2
    hidden = [max(round(HIDDEN * length), 1) for length in tile.shape[2:]]
    method = OcclusionSensitivity(
        asked, hidden, AT_ONCE, sys.stderr.isatty(), mode="mean_img", overlap=OVERLAP[dims], activate=False
    )
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using a non-tuple sequence")  # of MONAI's, for each block
        return asked(tile).view(1, 1, *[1] * dims) - torch.as_tensor(method(tile)[0])


#: By name, what makes a map of a tile.
METHODS: dict[str, Callable[[Preference, Tensor], Tensor]] = {
    "gradient": gradient,
    "smoothgrad": smoothgrad,
    "occlusion": occlusion,
}


@dataclass(frozen=True)
class Window:
    """What the network sees at once of an image.

    Attributes:
        layout: where all windows of the image lie.
        corner: where this one starts, in voxels of the image; it may stick out of it.
    """

    layout: Windows
    corner: Axes

    def of(self, image: Tensor) -> Tensor:
        """The tile, (1, C, *tile), of an image, (C, *spatial), as the inferer reads it."""
        return read_tiles(image, [self.corner], self.layout, image.device)

    def place(self, mask: np.ndarray) -> np.ndarray:
        """The part of a mask, (*spatial), that the window predicts, (*window)."""
        inside = np.zeros(self.layout.window, dtype=bool)
        low = [max(start, 0) for start in self.corner]
        sizes = zip(self.corner, self.layout.window, mask.shape, strict=True)
        high = [min(start + size, length) for start, size, length in sizes]
        ends = list(zip(low, high, self.corner, strict=True))
        inside[tuple(slice(a - start, b - start) for a, b, start in ends)] = mask[
            tuple(slice(a, b) for a, b, _ in ends)
        ]
        return inside

    def back(self, found: Tensor, image: Tensor) -> np.ndarray:
        """A map of the tile, (1, any, *tile), on the voxels of the image, (*spatial); of channels the norm.

        What was mirrored counts where it came from, and padding nowhere.
        """
        zeros = torch.zeros((found.shape[1], *image.shape[1:]), requires_grad=True, device=image.device)
        (folded,) = torch.autograd.grad(self.of(zeros), zeros, found.to(zeros))
        return (folded.norm(dim=0) if len(folded) > 1 else folded[0]).cpu().numpy()


def window_around(inferer: SlabInferer, network: nn.Module, spatial: Axes, at: Sequence[int]) -> Window:
    """Of the windows of an inferer that predict a voxel the one in whose middle it lies most."""
    layout = inferer.windows(network, spatial, inferer.full_tile(spatial))
    corner = tuple(
        min(
            (start for start in starts if start <= place < start + size),
            key=lambda start: abs(start + (size - 1) / 2 - place),
        )
        for starts, size, place in zip(layout.corners, layout.window, at, strict=True)
    )
    return Window(layout, corner)


def middle_of(mask: np.ndarray) -> Axes:
    """The voxel deepest within the largest component of a mask, (*spatial); of equals the most central."""
    parts = components(mask)
    largest = parts == 1 + np.bincount(parts.ravel())[1:].argmax()
    depth = distance_transform_edt(np.pad(largest, 1))[(slice(1, -1),) * mask.ndim]
    deepest = np.argwhere(depth == depth.max())
    centre = np.argwhere(largest).mean(0)
    return tuple(deepest[np.linalg.norm(deepest - centre, axis=1).argmin()].tolist())


def half_within(found: np.ndarray, place: np.ndarray, spacing: Sequence[float]) -> float:
    """How far from a place half of a map lies, by its absolute values.

    Args:
        found: the map, (*spatial).
        place: True where it was asked, (*spatial).
        spacing: edges of a voxel.

    Returns:
        In the unit of the spacing; NaN of a map of zeros.
    """
    weights = np.abs(found).ravel().astype(np.float64)
    if not weights.any():
        return math.nan
    away = distance_transform_edt(~place, sampling=spacing).ravel()
    order = np.argsort(away, kind="stable")
    summed = np.cumsum(weights[order])
    return float(away[order][np.searchsorted(summed, summed[-1] / 2)])


def seen_to(inferer: SlabInferer, network: nn.Module, layout: Windows) -> list[int | None]:
    """How many voxels to each side the network sees at most, along each axis; None: beyond the window.

    Norms are left out, see `scripts.networks.sizes.Sizes.margin`.
    """
    if layout.tile != layout.window:  # valid convolutions see what they leave out
        return [(tile - window) // 2 for tile, window in zip(layout.tile, layout.window, strict=True)]
    found: list[int | None] = []
    for axis in range(len(layout.tile)):
        try:
            found.append(inferer.sizes(network).margin(layout.tile, axis))
        except InputError:
            found.append(None)
    return found


@dataclass(frozen=True)
class Asked:
    """A question to a network.

    Attributes:
        case: id of the image.
        name: of the class.
        index: of it.
        other: index of the class that it is held against; None: all others.
        image: what the network sees, (C, *spatial), on the device of the network.
        classes: the most probable class, (*spatial).
        at: the voxel.
        place: True where it is asked, (*spatial): there, or the component that lies there.
        window: what the network sees at once.
    """

    case: str
    name: str
    index: int
    other: int | None
    image: MetaTensor
    classes: np.ndarray
    at: Axes
    place: np.ndarray
    window: Window

    @property
    def spacing(self) -> list[float]:
        """Edges of a voxel, mm; of pictures 1."""
        return [float(edge) for edge in self.image.pixdim]

    def map_of(self, network: nn.Module, method: str) -> np.ndarray:
        """The map of a method, (*spatial), 0 outside of the window."""
        place = torch.from_numpy(self.window.place(self.place)).to(self.image.device)
        image = self.image.as_tensor()
        found = METHODS[method](Preference(network, self.index, place, self.other), self.window.of(image))
        return self.window.back(found, image)

    def row(self, method: str, found: np.ndarray, untrained: np.ndarray) -> Row:
        """What is told of a map, and of that of the network as it was before its training."""
        alike = float(spearmanr(np.abs(found), np.abs(untrained), axis=None).statistic)
        strongest = [int(n) for n in np.unravel_index(np.abs(found).argmax(), found.shape)]
        total = float(np.abs(found).sum())
        on_it = float(np.abs(found[self.classes == self.index]).sum())
        return {
            "method": method,
            "case": self.case,
            "class": self.name,
            "at": _text(self.stored(self.at)),
            "half within": half_within(found, self.place, self.spacing),
            "untrained": half_within(untrained, self.place, self.spacing),
            "like untrained": alike,
            "on the class": on_it / total if total else math.nan,
            "strongest at": _text(self.stored(strongest)),
        }

    def stored(self, voxel: Sequence[int]) -> Axes:
        """A voxel as the file counts it."""
        return _moved(voxel, self.image.affine, _of_file(self.image))


def _of_file(image: MetaTensor) -> Any:
    """The affine of the file of an image; pictures, which nothing turns or resamples, have none."""
    return image.meta.get(MetaKeys.ORIGINAL_AFFINE, image.affine)


def _moved(voxel: Sequence[int], one: Any, other: Any) -> Axes:
    """The voxel of another grid that lies nearest, by their affines."""
    point = np.zeros(4)
    point[: len(voxel)], point[3] = voxel, 1
    found = np.linalg.solve(np.asarray(other, dtype=float), np.asarray(one, dtype=float) @ point)
    return tuple(int(value) for value in found[: len(voxel)].round())


def _text(voxel: Sequence[int]) -> str:
    return " ".join(map(str, voxel))


def why(
    recipe: Path,
    images: list[Path],
    output_dir: Path,
    label_name: str | None,
    rather_than: str | None,
    at: list[int] | None,
    component: bool,
    methods: list[Any],
    ids: dict[str, Any],
) -> None:
    """Carry out `bundle.cli.why`, whose arguments these are."""
    chosen = list(dict.fromkeys(str(method) for method in methods))
    output_dir = output_dir.resolve()
    with workshop(output_dir) as folder:
        listed = [str(image.expanduser().resolve()) for image in images]
        case = {"image": listed if len(listed) > 1 else listed[0], "case": case_id(images[0])}
        (folder / "dataset.json").write_text(json.dumps({"validation": [case]}), encoding="utf-8")
        places = {"dataset_dir": str(folder), "output_dir": str(output_dir), "section": "validation"}
        with quiet():
            run = Run(read_segmenter(recipe, {**ids, **places}))
            run.part("set_up")
            run.part("recipe")
            network, untrained = networks_of(run)
        inferer = run.part("window_inferer")
        if not isinstance(inferer, SlabInferer):
            raise InputError(
                f"window_inferer is a {type(inferer).__name__}: why asks one window of "
                "SlidingWindowSlabInferer or OverlapTileInferer; give a recipe with one of these"
            )
        loaded = run.part("dataset")[0]
        if PROBLEM in loaded:
            raise InputError(Problem(**loaded[PROBLEM]).sentence())
        device = torch.device(run.part("device"))
        with torch.no_grad():
            logits = run.part("inferer")(loaded[Keys.IMAGE][None].to(device), run.part("network"))[0]
        loaded[Keys.PRED] = logits.softmax(0)
        names = class_names(run.part("labels"))
        asked = ask(loaded, label_name, rather_than, at, component, names, inferer, network)
        maps, rows = {}, []
        for method in chosen:
            maps[method] = asked.map_of(network, method)
            rows.append(asked.row(method, maps[method], asked.map_of(untrained, method)))
        for earlier in output_dir.glob("*_why_*.nii.gz"):  # the answer to another question
            earlier.unlink()
        write_csv(output_dir / TABLE, rows)
        back = restored(run.part("preprocessing"), loaded, maps)
        for method in chosen:
            SaveCased(method, output_dir, f"why_{method}", ".nii.gz")(back)
        spot = asked.stored(asked.at)
        image = Compose(run.part("load"))(case)[Keys.IMAGE]
        draw_why(
            shown(image.numpy(), listed[0]),
            back[Keys.PRED].argmax(0).numpy(),
            spot,
            {method: back[method][0].numpy() for method in chosen},
            [float(edge) for edge in image.pixdim],
            f"{asked.name} at {_text(spot)} of {asked.case}",
            output_dir / PICTURE,
        )
    probability = float(back[Keys.PRED][(asked.index, *spot)])
    tell(asked, rows, probability, seen_to(inferer, network, asked.window.layout))
    typer.echo(f"Picture, table and maps: {output_dir}")


def networks_of(run: Run) -> tuple[nn.Module, nn.Module]:
    """The network with its weights and as it was before them, in single precision, for evaluation.

    Raises:
        InputError: weights of another network, or an exported one, which has no gradients.
    """
    accelerated = run.part("network").eval()
    network = unwrap(accelerated)
    if isinstance(network, Exported):
        raise InputError(
            "the network was exported, and why asks the layers of PyTorch: give the recipe beside its weights"
        )
    untrained = copy.deepcopy(network)
    WeightsLoader(run.part("checkpoint"), accelerated).load()  # `network` shares them
    for each in (network, untrained):
        each.eval().requires_grad_(False)
    return network, untrained


def ask(
    case: Mapping[str, Any],
    label_name: str | None,
    rather_than: str | None,
    at: Sequence[int] | None,
    component: bool,
    names: Sequence[str],
    inferer: SlabInferer,
    network: nn.Module,
) -> Asked:
    """The question that was meant.

    Args:
        case: "image" as the network sees it, and "pred", its probabilities, (classes, *spatial).
        label_name: the class; None: the most probable one at the place.
        rather_than: the class that it is held against; None: all others.
        at: the voxel as the file counts it; None: the middle of the largest component of the class.
        component: ask for all of the component that lies there.
        names: of the classes, the background first.
        inferer: says where windows lie.
        network: for its sizes.

    Raises:
        InputError: no such class or voxel, or the class is not found there.
    """
    image, probabilities = case[Keys.IMAGE], torch.as_tensor(case[Keys.PRED]).cpu()
    classes = np.asarray(probabilities.argmax(0))
    for option, name in (("label_name", label_name), ("rather_than", rather_than)):
        if name is not None and name not in names:
            raise InputError(
                f"--{option} {name} is no class of the network{nearest(name, names)}: give one of "
                f"{', '.join(names)}"
            )
    if at is None:
        if label_name is None:
            raise InputError(
                f"neither --label_name nor --at says what is asked: give a class ({', '.join(names)}) or a "
                "voxel"
            )
        if not (classes == names.index(label_name)).any():
            raise InputError(
                f"{case['case']}: the network finds no {label_name} in it; --at says where to ask all the "
                "same; give a voxel"
            )
        voxel = middle_of(classes == names.index(label_name))
    else:
        voxel = _voxel(at, image)
    index = int(classes[voxel]) if label_name is None else names.index(label_name)
    other = None if rather_than is None else names.index(rather_than)
    if other == index:
        raise InputError(
            f"--rather_than {rather_than} is the class that is asked for: give another, or leave it out"
        )
    place = np.zeros(classes.shape, dtype=bool)
    place[voxel] = True
    if component:
        if classes[voxel] != index:
            raise InputError(
                f"--component asks for the {names[index]} that lies at the voxel, where the network sees "
                f"{names[int(classes[voxel])]}: leave it out, or give another --at or --label_name"
            )
        parts = components(classes == index)
        place = parts == parts[voxel]
    window = window_around(inferer, network, classes.shape, voxel)
    device = next(network.parameters()).device
    return Asked(
        str(case["case"]), names[index], index, other, image.to(device), classes, voxel, place, window
    )


def _voxel(at: Sequence[int], image: MetaTensor) -> Axes:
    """The voxel that the network sees where the file has another.

    Raises:
        InputError: the file has no such voxel, or what the network sees leaves it out.
    """
    shape = [int(length) for length in image.meta[MetaKeys.SPATIAL_SHAPE]][: len(image.shape) - 1]
    if len(at) != len(shape) or not all(0 <= place < length for place, length in zip(at, shape, strict=True)):
        raise InputError(
            f"--at {_text(at)} is no voxel of the image, which has {' x '.join(map(str, shape))}: give one "
            "number an axis, from 0, of a picture column and row"
        )
    voxel = _moved(at, _of_file(image), image.affine)
    if not all(0 <= place < length for place, length in zip(voxel, image.shape[1:], strict=True)):
        raise InputError(f"--at {_text(at)} lies outside of what the network sees of the image: give another")
    return voxel


def restored(
    preprocessing: Compose, case: Mapping[Hashable, Any], maps: Mapping[str, np.ndarray]
) -> dict[Hashable, Any]:
    """Prediction and maps on the grid of the file."""
    image = case[Keys.IMAGE]
    made: dict[Hashable, Any] = {
        **case,
        **{name: like(found.astype(np.float32), image) for name, found in maps.items()},
    }
    back = Invertd([Keys.PRED, *maps], preprocessing, Keys.IMAGE, nearest_interp=False, to_tensor=True)
    return back(made)


def tell(asked: Asked, rows: Sequence[Row], probability: float, reach: Sequence[int | None]) -> None:
    """Print what was asked and what came out.

    Args:
        asked: the question.
        rows: of the methods.
        probability: of the class at the voxel.
        reach: see `seen_to`.
    """
    dims, unit = len(asked.at), "mm" if len(asked.at) == 3 else "pixels"
    sizes = " x ".join(map(str, asked.window.layout.tile))
    inside, count = int(asked.window.place(asked.place).sum()), int(asked.place.sum())
    over = "" if count == 1 else f", over the {count} voxels of it that hang together there"
    cut = "" if inside == count else f", of which the window holds {inside}"
    typer.echo(
        f"\n{asked.case}: why {asked.name} at {_text(asked.stored(asked.at))} (probability {probability:.2f})"
        f"{over}{cut}, of the window of {sizes} voxels whose first is {_text(asked.window.corner)} of the "
        f"{' x '.join(map(str, asked.image.shape[1:]))} that the network gets\n"
    )
    typer.echo(table([name for name in rows[0] if name not in ("case", "class", "at")], rows))
    far = [None if n is None else n * edge for n, edge in zip(reach, asked.spacing, strict=True)]
    known = [length for length in far if length is not None]
    seen = f"up to {max(known):.0f} {unit} to each side" if len(known) == dims else "all of the window"
    for row in rows:
        typer.echo(
            f"\nBy {row['method']} half of what moved the answer lies within {row['half within']:.1f} {unit} "
            f"of the place; before its training {row['untrained']:.1f} {unit}."
        )
    typer.echo(f"The network can see {seen}. What a map does not say: docs/trust.md.")
