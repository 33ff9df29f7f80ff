"""`python -m bundle figures`: the pictures of docs/unet2015.md, from generated data and untrained networks.

They show what the components do that follow O. Ronneberger, P. Fischer, T. Brox, "U-Net: Convolutional
Networks for Biomedical Image Segmentation", MICCAI 2015: the network (its figure 1), the overlap-tile
strategy (figure 2), the weight map (figure 3) and the elastic deformation (section 3.1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import typer
from matplotlib.figure import Figure
from PIL import Image

from bundle.figures.diagram import configured, draw_architecture
from bundle.figures.mechanisms import corrupt_cells, draw_elastic, draw_tiles, draw_weights, even_cells
from bundle.runs.experiments import parser_of, read_experiment
from scripts.errors import InputError
from scripts.files import atomic_write
from scripts.judging import Case
from scripts.networks import UNet
from scripts.pictures import draw_instances, save_figure

DPI = 100
LARGEST = 250_000  # bytes of a PNG; a larger one is reduced to 256 colours


def _write_instances(path: Path) -> None:
    image, truth = even_cells(0, (192, 192))
    _, others = even_cells(1, (192, 192))
    draw_instances(image.T, Case("cells", corrupt_cells(truth, others).T, truth.T), path)


def _writes(draw: Callable[[], Figure]) -> Callable[[Path], None]:
    return lambda path: save_figure(draw(), path, DPI)


def _architecture(*overlays: str, **overrides: Any) -> Callable[[Path], None]:
    return _writes(lambda: draw_architecture(*configured(*overlays, **overrides)))


#: Name of each picture, and what writes it.
FIGURES: dict[str, Callable[[Path], None]] = {
    "unet2015": _architecture("task/em_membrane", "network/unet2015", patch_size=[572, 572]),
    "unet3d": _architecture(),
    "residual": _architecture("network/residual"),
    "tiles": _writes(draw_tiles),
    "weights": _writes(draw_weights),
    "elastic": _writes(draw_elastic),
    "instances": _write_instances,
}


def write_figures(names: Sequence[str], output_dir: Path) -> list[Path]:
    """Write pictures as PNG files.

    Args:
        names: keys of FIGURES.
        output_dir: made where missing; files of the same names are replaced.

    Returns:
        The files.
    """
    paths = []
    for name in names:
        path = output_dir / f"{name}.png"
        FIGURES[name](path)
        if path.stat().st_size > LARGEST:
            with Image.open(path) as picture:
                reduced = picture.convert("RGB").quantize(
                    256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
                )
            with atomic_write(path) as temporary:
                reduced.save(temporary, optimize=True)
        paths.append(path)
    return paths


def draw_network(args_file: Path, ids: dict[str, Any]) -> Figure:
    """The network of an experiment, for its patch.

    Raises:
        InputError: see `parser_of`; a network that is not assembled of parts.
    """
    parser = parser_of(read_experiment(args_file, ids))
    with torch.device("meta"):
        network = parser.get_parsed_content("network_def")
    if not isinstance(network, UNet):
        raise InputError(
            f"network_def is {type(network).__name__}, whose parts are not known: only networks that are a "
            "scripts.networks.UNet are drawn"
        )
    return draw_architecture(network, parser.get_parsed_content("patch_size"))


def figures(only: list[str], output_dir: Path, args_file: Path | None, ids: dict[str, Any]) -> None:
    """Carry out `bundle.cli.figures`, whose arguments these are."""
    if args_file is not None:
        path = output_dir / f"{args_file.stem}.png"
        save_figure(draw_network(args_file, ids), path, DPI)
        typer.echo(path)
        return
    for path in write_figures(only, output_dir):
        typer.echo(path)
