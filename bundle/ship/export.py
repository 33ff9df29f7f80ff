"""`python -m bundle export`: a trained network in formats that others compute, and how well they agree.

TorchScript, ONNX and TensorRT are written by MONAI's own commands (`ckpt_export`, `onnx_export`,
`trt_export`). MONAI has none for torch.export, nor for OpenVINO, which is made from the ONNX file. Every file
is then run by the runtime of its format and compared with the network in PyTorch, in float32: on tiles of
several sizes, and on real cases as inference would segment them.
"""

from __future__ import annotations

import io
import json
import logging
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import monai.bundle
import numpy as np
import torch
import torch.fx.experimental._config
import typer
from matplotlib.figure import Figure
from monai.bundle import ConfigParser
from monai.transforms import ResizeWithPadOrCrop
from monai.utils import CommonKeys as Keys
from torch import Tensor, nn

from bundle.runs.experiments import Evaluation, parser_of, read_evaluation, read_experiment, with_ids
from bundle.ship.audit import audit_experiment
from bundle.ship.package import data_format, segmenting
from bundle.ship.quantise import calibration_tiles, quantise
from scripts.checkpoints import check_weights, read_weights
from scripts.compute.exported import Exported
from scripts.compute.quantised import FORMAT as INT8
from scripts.compute.quantised import int8_files
from scripts.compute.runtimes import openvino_core
from scripts.errors import InputError, root_cause
from scripts.files import atomic_write, read_json, write_csv
from scripts.judging import case_of, mean_dice
from scripts.judging.tables import mean_of
from scripts.networks.sizes import Sizes
from scripts.pictures import save_figure
from scripts.progress import progress
from scripts.recipe import Recipe, for_inference, read_recipe, write_recipe
from scripts.settings import CONFIGS
from scripts.tables import Row, table

#: What stands in the table for the network as it was, and its weights.
REFERENCE = "PyTorch"

#: Columns of the table that is printed, of export.csv and export.json.
COLUMNS = (
    *("format", "file", "MB", "largest difference", "other label", "dice", "dice difference"),
    "seconds a case",
)

#: Names of input and output in the files that have names for them, as in metadata.json.
INPUT, OUTPUT = "image", "pred"

#: Loggers that tell about each step of an export.
CHATTY = ("torch.onnx", "onnxscript", "onnx_ir", "monai.bundle.scripts")


@dataclass(frozen=True)
class Model:
    """What is exported, and the files that MONAI's commands read of it.

    Attributes:
        network: float32, on the CPU, with its weights, in evaluation mode.
        size: (B, C, *spatial) of an example, the spatial size of it that of a patch in training.
        experiment: the configs of the training, and the ids on top of them.
        config: the resolved inference.json.
        metadata: metadata.json of the bundle; for an experiment the data format of its network.
        weights: a plain state dictionary.
        checkpoint: where the weights come from.
        recipe: the resolved inference.json, and what the weights were trained with.
        tiles: what int8 is calibrated on, each (1, C, *spatial).
    """

    network: nn.Module
    size: tuple[int, ...]
    experiment: Row
    config: Path
    metadata: Path
    weights: Path
    checkpoint: Path
    recipe: Recipe
    tiles: Sequence[Tensor] = ()

    def given(self) -> Row:
        """What all of MONAI's commands take."""
        return {
            "net_id": "network_def",
            "config_file": str(self.config),
            "ckpt_file": str(self.weights),
            "meta_file": str(self.metadata),
        }

    def any_size(self) -> tuple[dict[int, Any]]:
        """Every axis but that of the channels takes what sizes the layers allow, for torch.export."""
        return ({axis: torch.export.Dim.AUTO for axis in range(len(self.size)) if axis != 1},)


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        files: what is written; the first is what is loaded.
        write: writes them into a folder.
        needs: packages, beyond requirements.txt, that write and run it.
        any_size: whether it takes tiles of other sizes than that of the example.
        rounded: whether it costs accuracy: it is made on request alone, from training tiles, and lies beside
            the weights, whose name it takes, for `precision` "fast".
    """

    files: tuple[str, ...]
    write: Callable[[Model, Path], None]
    needs: tuple[str, ...] = ()
    any_size: bool = True
    rounded: bool = False


@dataclass
class Result:
    """What became of a format; None for what was not measured.

    Attributes:
        files: written files.
        difference: largest absolute difference of a logit.
        other_label: share of the voxels of each case that have another label.
        dice: mean Dice of each case; NaN for one that says nothing.
        seconds: for each round, of each case.
        note: why it is not there, or not measured.
    """

    files: list[Path] = field(default_factory=list)
    difference: float | None = None
    other_label: list[float] = field(default_factory=list)
    dice: list[float] = field(default_factory=list)
    seconds: list[list[float]] = field(default_factory=list)
    note: str = ""

    def compare(self, logits: Tensor, reference: Tensor) -> None:
        """Take the largest difference of these logits into account; NaN is the largest."""
        self.difference = float(np.maximum(self.difference or 0.0, (logits - reference).abs().max()))


def write_torch_export(model: Model, folder: Path) -> None:
    """model.pt2: the graph of torch.export, for batches and images of any legal size, and the configs."""
    example = (torch.rand(model.size),)
    with lengths_of_one():
        program = torch.export.export(model.network, example, dynamic_shapes=model.any_size(), strict=False)
    program.module()(example[0][:1])  # raises where it would take several tiles alone
    configs = {file.name: file.read_text("utf-8") for file in (model.config, model.metadata)}
    with in_memory(folder / "model.pt2") as stream:
        torch.export.save(program, stream, extra_files=configs)


def write_onnx(model: Model, folder: Path) -> None:
    """model.onnx, by MONAI's `onnx_export`, for batches and images of any legal size."""
    shutil.copyfile(onnx_of(model), folder / "model.onnx")


def write_openvino(model: Model, folder: Path) -> None:
    """model.xml and model.bin, in float32, from the ONNX file."""
    import openvino

    converted = openvino_core().read_model(onnx_of(model))
    openvino.save_model(converted, folder / "model.xml", compress_to_fp16=False)


def write_int8(model: Model, folder: Path) -> None:
    """model.int8.xml and model.int8.bin, from the ONNX file."""
    quantise(onnx_of(model), model.network, model.tiles, folder)


def onnx_of(model: Model) -> Path:
    """The network as an ONNX file, which is made once."""
    file = model.config.with_name("model.onnx")
    if not file.is_file():
        with lengths_of_one():
            monai.bundle.onnx_export(
                **model.given(),
                filepath=str(file),
                use_trace=True,  # which hands the arguments below on to torch.onnx.export
                input_shape=model.size,
                converter_kwargs={
                    "dynamic_shapes": model.any_size(),
                    "input_names": [INPUT],
                    "output_names": [OUTPUT],
                    "external_data": False,
                    "verbose": False,
                },
            )
    return file


def lengths_of_one() -> Any:
    """A context in which torch.export treats lengths of one as any other.

    It would else fix an axis that has one voxel on the lowest level of the example, or refuse it later.
    """
    return torch.fx.experimental._config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]


def write_torchscript(model: Model, folder: Path) -> None:
    """model.ts, by MONAI's `ckpt_export`, with the configs."""
    with in_memory(folder / "model.ts") as stream:
        monai.bundle.ckpt_export(**model.given(), filepath=stream)


def write_tensorrt(model: Model, folder: Path) -> None:
    """model_trt.ts, by MONAI's `trt_export`, for one or two patches in float32."""
    with in_memory(folder / "model_trt.ts") as stream:
        monai.bundle.trt_export(
            **model.given(),
            filepath=stream,
            precision="fp32",
            input_shape=[1, *model.size[1:]],
            dynamic_batchsize=[1, 1, 2],
        )


@contextmanager
def in_memory(file: Path) -> Iterator[Any]:
    """A stream for PyTorch, and then the file: on a full disk its own writers may abort the process."""
    stream = io.BytesIO()
    yield stream
    file.write_bytes(stream.getvalue())


#: In the order of the table.
FORMATS = {
    "pt2": Format(("model.pt2",), write_torch_export),
    "onnx": Format(("model.onnx",), write_onnx, ("onnx", "onnxscript", "onnxruntime")),
    "openvino": Format(("model.xml", "model.bin"), write_openvino, ("openvino", "onnx", "onnxscript")),
    INT8: Format(
        ("model.int8.xml", "model.int8.bin"),
        write_int8,
        ("openvino", "nncf", "onnx", "onnxscript"),
        rounded=True,
    ),
    "tensorrt": Format(("model_trt.ts",), write_tensorrt, ("torch_tensorrt",), any_size=False),
    "torchscript": Format(("model.ts",), write_torchscript),
}


def export(
    output_dir: Path,
    args_file: Path | None,
    bundle: Path | None,
    checkpoint: Path | None,
    formats: list[str] | None,
    dataset_dir: Path | None,
    section: str,
    cases: int | None,
    rounds: int,
    ids: dict[str, Any],
) -> None:
    """Carry out `bundle.cli.export`, whose arguments these are."""
    chosen = [name for name in FORMATS if (name in formats if formats else not FORMATS[name].rounded)]
    rounded = any(FORMATS[name].rounded and not unavailable(name) for name in chosen)
    if rounded and dataset_dir is None:
        raise InputError(
            f"--format {INT8} is calibrated on training tiles: give --dataset_dir, the data that the network "
            "was trained on"
        )
    warnings.simplefilter("ignore")  # PyTorch says at each call that TorchScript is old
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    with _writing(output_dir), tempfile.TemporaryDirectory() as workshop:
        output_dir.mkdir(parents=True, exist_ok=True)
        model = read_model(cast(Path, bundle or args_file), ids, checkpoint, Path(workshop))
        evaluation = (
            None if dataset_dir is None else read_evaluation(model.experiment, dataset_dir, section, cases)
        )
        if rounded:
            seen = read_evaluation(model.experiment, cast(Path, dataset_dir), "training", None)
            tiles = calibration_tiles(model.network, seen.dataset, seen.inferer, model.size[2:])
            model = replace(model, tiles=tiles)
        results = {
            REFERENCE: Result([model.checkpoint]),
            **{name: write(name, model, output_dir) for name in chosen},
        }
    networks = {REFERENCE: model.network, **load(model, results)}
    compare_sizes(model, networks, evaluation, results)
    if evaluation is not None:
        judge(evaluation, networks, rounds, results)
    rows = [row_of(name, result, results[REFERENCE]) for name, result in results.items()]
    typer.echo(summary_table(rows))
    for name, result in results.items():
        if result.note:
            typer.echo(f"{name}: {result.note}")
    if evaluation is None:
        typer.echo("Compared on random tiles alone: --dataset_dir adds what real cases say.")
    with _writing(output_dir):
        write_tables(rows, output_dir)
        if made := [f for name in chosen for f in results[name].files if not FORMATS[name].rounded]:
            alone = read_json(CONFIGS / "exported.json")
            write_recipe(Recipe({**model.recipe.config, **alone}, model.recipe.facts), made)
    for name in chosen:
        if FORMATS[name].rounded and (beside := results[name].files):
            typer.echo(f"{name}, beside the weights: {beside[0]}")
    typer.echo(f"Files and tables: {output_dir}")
    failed = [name for name in chosen if results[name].note and (formats or not unavailable(name))]
    if failed:
        raise InputError(f"--format {', '.join(failed)} failed: what is wrong and what to do stands above")


def read_model(source: Path, ids: Row, checkpoint: Path | None, workshop: Path) -> Model:
    """The network of a bundle or experiment with its weights.

    Args:
        source: folder of a bundle in the form of this repository, or an args file.
        ids: on top of its configs.
        checkpoint: its weights, if others than `models/model.pt` of the bundle or those of the training.
        workshop: where the files for MONAI's commands go.

    Raises:
        InputError: neither bundle nor experiment; configs from elsewhere that would execute what ours do not;
            no weights or those of another network; a network that cannot be built, or that refuses a patch.
    """
    if source.is_dir():
        for name in ("inference.json", "metadata.json"):
            if not (source / "configs" / name).is_file():
                raise InputError(
                    f"{source} has no configs/{name}: name the folder of a bundle, or an args file such as "
                    "those of configs/experiments"
                )
        checkpoint = checkpoint or source / "models" / "model.pt"
        configs = source.resolve() / "configs"
        train = configs / "train.json"
        config = train if train.is_file() else configs / "inference.json"
        experiment = with_ids({"config_file": [str(config)]}, ids)
        audit_experiment(experiment, ids, configs / "metadata.json", configs / "inference.json")
    else:
        experiment, configs = read_experiment(source, ids), CONFIGS
        audit_experiment(experiment, ids)
        if checkpoint is None and isinstance(experiment.get("checkpoint"), list):
            raise InputError(
                f"{source} names the checkpoints of an ensemble: make one network of them with python -m "
                "bundle package, and give its folder as --bundle"
            )
    try:
        given = parser_of(experiment).get()
        inference = for_inference(given, configs) if "train" in given else segmenting(given)
        checkpoint = checkpoint or Path(parser_of(experiment).get_parsed_content("checkpoint"))
        parser = ConfigParser(dict(inference))
        network: nn.Module = parser.get_parsed_content("network_def").eval()
        size = (2, parser.get_parsed_content("in_channels"), *parser.get_parsed_content("patch_size"))
    except Exception as error:
        raise InputError(
            f"{source}: its network cannot be built ({_reason(error)}): correct its configs"
        ) from error
    weights = read_weights(checkpoint)
    trained = read_recipe(checkpoint, inference)
    check_weights(network, weights, checkpoint)
    network.load_state_dict(weights)
    try:
        _logits(network, torch.zeros(size))
    except Exception as error:
        raise InputError(
            f"patch_size is {list(size[2:])}, which the network refuses ({_reason(error)}): set a legal one"
        ) from error
    config, metadata, plain = (workshop / name for name in ("inference.json", "metadata.json", "model.pt"))
    about = {"name": source.stem, "network_data_format": data_format(inference, network, "not stated")}
    if source.is_dir():
        about = read_json(source / "configs" / "metadata.json")
    for file, content in ((config, inference), (metadata, about)):
        file.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")
    with in_memory(plain) as stream:
        torch.save(dict(weights), stream)
    recipe = Recipe(inference, {} if trained is None else trained.facts)
    return Model(network, size, experiment, config, metadata, plain, checkpoint, recipe)


def unavailable(name: str) -> str:
    """What a format lacks on this machine and how to get it; empty where nothing does."""
    absent = [package for package in FORMATS[name].needs if not find_spec(package)]
    if name == "tensorrt" and not torch.cuda.is_available():
        return "not made: TensorRT needs a GPU of NVIDIA, and PyTorch finds none: export where there is one"
    if name == "tensorrt" and absent:
        return "not made: torch_tensorrt is not installed: install the release that goes with your PyTorch"
    if absent:
        return f"not made: {absent[0]} is not installed: run pip install -r requirements-runtimes.txt"
    return ""


def write(name: str, model: Model, output_dir: Path) -> Result:
    """Write the files of a format, all of them whole or none; earlier ones stay where that fails.

    Args:
        name: of FORMATS.
        model: what is exported.
        output_dir: where the files go.

    Returns:
        The files, or a note that says in a sentence what is wrong.
    """
    made = FORMATS[name]
    places = int8_files(model.checkpoint) if made.rounded else [output_dir / file for file in made.files]
    if reason := unavailable(name):
        return Result(note=reason)
    with tempfile.TemporaryDirectory() as workshop:
        try:
            made.write(model, Path(workshop))
        except InputError as error:
            return Result(note=str(error))
        except Exception as error:  # every library has its own
            return Result(
                note=f"{made.files[0]} could not be made in {workshop} ({_reason(error)}): name the "
                "other formats with --format, or free space if the disk is full"
            )
        try:
            with ExitStack() as stack:
                for file, place in zip(made.files, places, strict=True):
                    temporary = stack.enter_context(atomic_write(place))
                    shutil.copyfile(Path(workshop) / file, temporary)
        except InputError as error:  # the disk is full
            return Result(note=str(error))
        except OSError as error:
            return Result(
                note=f"{places[0]} could not be written ({error.strerror}): give another "
                f"{'--checkpoint' if made.rounded else '--output_dir'}, or mend its rights"
            )
    return Result(list(places))


def load(model: Model, results: Mapping[str, Result]) -> dict[str, nn.Module]:
    """The files that were written, each in its runtime; of one that is refused the note says so."""
    networks: dict[str, nn.Module] = {}
    for name, result in results.items():
        if result.files and name != REFERENCE:
            device = "cuda" if name == "tensorrt" else "cpu"
            try:
                precision = "fast" if FORMATS[name].rounded else "exact"
                networks[name] = Exported(str(result.files[0]), model.network, device, precision)
            except InputError as error:
                result.note = str(error)
    return networks


def tile_sizes(model: Model) -> list[tuple[int, ...]]:
    """Sizes of tiles that are tried, (B, *spatial): the patch, and with longer axes, one or two at a time.

    Longer ones only where the network takes them: some have one size.
    """
    patch = model.size[2:]
    sizes = Sizes(model.network)
    tried = [(1, *patch), (2, *patch)]
    try:
        longer = sizes.covering([length + 1 for length in sizes.output(patch)], patch)
    except InputError:
        return tried
    return [*tried, (2, longer[0], *patch[1:]), (1, *longer)]


def compare_sizes(
    model: Model,
    networks: Mapping[str, nn.Module],
    evaluation: Evaluation | None,
    results: Mapping[str, Result],
) -> None:
    """Compare logits of tiles of several sizes: those at the centre of the first cases, or random ones.

    Args:
        model: what was exported.
        networks: by name, REFERENCE first; one that fails is not tried again.
        evaluation: where the cases are.
        results: what is found goes there.
    """
    generator = torch.Generator().manual_seed(0)
    images = [] if evaluation is None else [evaluation.dataset[i][Keys.IMAGE] for i in (0, -1)]
    for number, *size in tile_sizes(model):
        if images:
            crop = ResizeWithPadOrCrop(size)
            tiles = torch.stack([torch.as_tensor(crop(image)) for image in images[:number]])
        else:
            tiles = torch.randn((number, *model.size[1:2], *size), generator=generator)
        reference = _logits(networks[REFERENCE], tiles)
        for name, result in results.items():
            any_size = name == REFERENCE or FORMATS[name].any_size
            if name not in networks or result.note or not (any_size or tuple(size) == model.size[2:]):
                continue
            try:
                result.compare(_logits(networks[name], tiles), reference)
            except Exception as error:
                result.note = (
                    f"refuses {number} tile(s) of {size} voxels ({_reason(error)}): do not use this file"
                )


def judge(
    evaluation: Evaluation, networks: Mapping[str, nn.Module], rounds: int, results: Mapping[str, Result]
) -> None:
    """Segment every case with every network in turns, and compare with the first one and with the labels.

    Args:
        evaluation: the cases.
        networks: by name, REFERENCE first.
        rounds: how often; in each another one begins.
        results: what is found goes there.
    """
    names = [name for name in networks if not results[name].note]
    for name in names:
        results[name].seconds = [[] for _ in range(rounds)]
    for case in progress(evaluation.sound(), "judging", total=len(evaluation.dataset)):
        image = case[Keys.IMAGE].as_tensor()[None]
        logits: dict[str, Tensor] = {}
        for index in range(rounds):
            for name in [*names[index % len(names) :], *names[: index % len(names)]]:
                start = time.perf_counter()
                logits[name] = evaluation.inferer(image, networks[name])
                results[name].seconds[index].append(time.perf_counter() - start)
        found = {name: evaluation.postprocessing({**case, Keys.PRED: logits[name][0]}) for name in names}
        judged = {name: case_of(name, found[name][Keys.PRED], found[name][Keys.LABEL]) for name in names}
        for name in names:
            results[name].compare(logits[name], logits[REFERENCE])
            results[name].other_label.append(float(np.mean(judged[name].pred != judged[REFERENCE].pred)))
            results[name].dice.append(mean_dice(judged[name]))


def row_of(name: str, result: Result, reference: Result) -> Row:
    """A row of the table; None for what was not measured."""
    measured = [statistics.fmean(times) for times in result.seconds]
    # a case says nothing where no foreground is asked for and none is found, which is right
    both = [pair for pair in zip(result.dice, reference.dice, strict=False) if not np.isnan(pair).all()]
    pairs = np.nan_to_num(np.array(both), nan=1.0)
    return {
        "format": name,
        "file": " ".join(file.name for file in result.files) or None,
        "MB": sum(file.stat().st_size for file in result.files) / 1e6 if result.files else None,
        "largest difference": result.difference,
        "other label": statistics.fmean(result.other_label) if result.other_label else None,
        "dice": mean_of(result.dice) if result.dice else None,
        "dice difference": float(np.abs(pairs[:, 0] - pairs[:, 1]).max()) if len(pairs) else None,
        "seconds a case": statistics.median(measured) if measured else None,
        "seconds of each round": measured,
        "cases": len(result.dice),
        "note": result.note,
    }


def summary_table(rows: Sequence[Row]) -> str:
    """The rows as a plain table."""
    forms = dict.fromkeys(("largest difference", "other label", "dice difference"), "{:.1e}")
    forms["MB"] = "{:.2f}"
    lines = [
        {
            key: forms[key].format(row[key]) if key in forms and row[key] is not None else row[key]
            for key in COLUMNS
        }
        for row in rows
    ]
    return table(COLUMNS, lines, names=2)


def write_tables(rows: Sequence[Row], output_dir: Path) -> None:
    """Write export.csv, export.json and, where cases were segmented, export.png."""
    with atomic_write(output_dir / "export.json") as temporary:
        temporary.write_text(json.dumps(list(rows), indent=1) + "\n", encoding="utf-8")
    write_csv(output_dir / "export.csv", rows, [*COLUMNS, "note"])
    if any(row["seconds of each round"] for row in rows):
        draw(rows, output_dir / "export.png")


def draw(rows: Sequence[Row], path: Path) -> None:
    """Save seconds a case of every format that was measured, a line for each, from top to bottom.

    Args:
        rows: of `row_of`.
        path: the PNG to write.
    """
    shown = {row["format"]: row["seconds of each round"] for row in rows if row["seconds of each round"]}
    figure = Figure(figsize=(6, 1.2 + 0.35 * len(shown)), layout="constrained")
    axis = figure.subplots()
    for line, times in enumerate(shown.values()):
        axis.scatter(times, [line] * len(times), s=18, color="#0072b2", alpha=0.7)
        axis.vlines(statistics.median(times), line - 0.3, line + 0.3, color="black")
    axis.set_yticks(range(len(shown)), list(shown))
    axis.set_ylim(len(shown) - 0.5, -0.5)
    axis.set_xlim(left=0)
    axis.set_xlabel("seconds a case: each round, and their median")
    axis.grid(axis="x", alpha=0.3)
    save_figure(figure, path)


def _logits(network: nn.Module, tiles: Tensor) -> Tensor:
    with torch.no_grad():
        return network(tiles)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Say in a sentence that nothing can be written."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{error.filename or folder} cannot be written ({error.strerror}): give another --output_dir, or "
            "mend its rights"
        ) from error


def _reason(error: BaseException) -> str:
    """The first line of what the error at the root says."""
    root = root_cause(error)
    lines = str(root).strip().splitlines()
    return lines[0] if lines else type(root).__name__
