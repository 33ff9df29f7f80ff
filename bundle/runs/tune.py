"""`python -m bundle tune`: what makes segmentations of a network's probabilities, chosen by scores.

Of objects it chooses how they are numbered; of classes what is cleaned of specks and holes and, of two, the
threshold. With `--speed` what makes inference fast, see `bundle.runs.speed`.

The network predicts every validation case once, or predictions that are there are read (`--pred`), those of a
cross-validation as a rule. Then parameters are tried, one at a time, and judged by what comes out
(`bundle.runs.search`). The test cases are never read: a parameter chosen on those would make their scores
worthless. The score of the best parameters flatters, as they were chosen by it.

Sources: F. Isensee et al., "nnU-Net: a self-configuring method for deep learning-based biomedical image
segmentation", Nature Methods 18, 2021: post-processing by components, where cross-validation is the better
for it.
"""

from __future__ import annotations

import inspect
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import typer
from ignite.engine import Engine, Events
from matplotlib.figure import Figure
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose, Transform
from monai.utils import CommonKeys as Keys
from monai.utils import MetaKeys
from scipy.ndimage import find_objects
from skimage.measure import label as connected_components
from tqdm import tqdm

from bundle.runs.experiments import parser_of, read_experiment
from bundle.runs.search import (
    FEWEST_CASES,
    Grid,
    Judge,
    Trial,
    Values,
    best_of,
    gain,
    holes_to_try,
    kept,
    notes,
    search,
    sizes_to_try,
    values_tried,
)
from bundle.runs.speed import tune_speed
from scripts.checkpoints import read_checkpoint
from scripts.data import grids
from scripts.data.cases import InferenceCases
from scripts.data.datalist import sections
from scripts.data.names import output_path
from scripts.data.reader import columns_first, grid_of, is_picture, read_file, read_header
from scripts.errors import Fault, InputError, few
from scripts.files import workshop, write_csv, write_json
from scripts.judging import Case, InstanceCounts, case_of, instance_counts, objects_of, v_rand
from scripts.judging.classes import surface_scores
from scripts.judging.files import SUM_TOLERANCE
from scripts.labels import IGNORE_LABEL, UNKNOWN_OBJECT, class_names, count_classes
from scripts.pictures import save_figure
from scripts.progress import progress
from scripts.recipe import Ids, for_inference, read_recipe
from scripts.tables import table
from scripts.transforms import (
    InstancesFromDirectionsd,
    InstancesFromDistancesd,
    InstancesFromStarsd,
    WatershedInstancesd,
)
from scripts.transforms.classes import Cleaning, background_holes, clean_classes

#: How far thresholds may go beyond those that are tried at first.
SHARES = (0.01, 0.99)

#: Values tried for each parameter of what makes instances of probabilities, in the order in which they are
#: tried; then sizes, which follow those of the true objects. The first kind is taken where to_labels of the
#: configs is none of them.
GRIDS: dict[type[Any], Grid] = {
    WatershedInstancesd: {
        "seed_threshold": Values((0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), *SHARES),
        "neck": Values((0, 0.5, 1, 2, 3, 5), 0, 40),
        "threshold": Values((0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8), 0.0, 0.99),
    },
    InstancesFromDistancesd: {
        "height": Values((0.02, 0.05, 0.1, 0.15, 0.2, 0.3), 0.005, 0.99),
        "smoothing": Values((0, 0.5, 1, 1.5, 2, 3), 0, 20),
        "threshold": Values((0.3, 0.4, 0.5, 0.6, 0.7, 0.8), *SHARES),
    },
    InstancesFromDirectionsd: {
        "smoothing": Values((0.5, 1, 1.5, 2, 3), 0.1, 20),
        "drop": Values((1.1, 1.2, 1.5, 2, 3, 5), 1.02, 40),
        "agreement": Values((0, 0.3, 0.4, 0.5, 0.6, 0.7), 0, 0.99),
        "threshold": Values((0.3, 0.4, 0.5, 0.6, 0.7, 0.8), *SHARES),
    },
    InstancesFromStarsd: {
        "seed_threshold": Values((0.3, 0.4, 0.5, 0.6, 0.7, 0.8), *SHARES),
        "overlap": Values((0.05, 0.1, 0.15, 0.25, 0.4), *SHARES),
        "threshold": Values((0.3, 0.4, 0.5, 0.6, 0.7, 0.8), *SHARES),
        "grow": Values((0, 2, 4, 6), 0, 40),
    },
}

#: Of the foreground of two classes; it is the most probable class at the middle one.
THRESHOLDS = Values((0.3, 0.4, 0.5, 0.6, 0.7), 0.05, 0.95)
MOST_PROBABLE = 0.5

#: Foreground less probable than this lies below every threshold that is tried.
IMPROBABLE = 0.04

#: Measures of classes; the first is the default. A distance such as hd95 is none: it says nothing of a case
#: in which a class is gone.
CLASS_MEASURES = ("dice", "surface_dice")

#: Distance within which surfaces agree, in mm, pixels for pictures: that of evaluate.json.
TOLERANCE = 1.0

#: Rows of the table that is printed.
TABLE_ROWS = 10


@dataclass(frozen=True)
class Predicted:
    """A case on the grid of its file, on disk.

    Attributes:
        case: its id.
        pred: file of probabilities, (classes, *spatial), float32, or of a class map, (1, *spatial), uint8.
        truth: file of classes or object numbers, (*spatial), int32; UNKNOWN_OBJECT where nobody annotated.
        spacing: edges of a voxel.
    """

    case: str
    pred: Path
    truth: Path
    spacing: tuple[float, ...]

    def judged(self, found: np.ndarray) -> Case:
        """The case with what was made of the prediction, (*spatial)."""
        return objects_of(self.case, found, np.load(self.truth), self.spacing)


class Taker(Protocol):
    """Takes predicted cases.

    Attributes:
        objects: probabilities are wanted, not class maps.
        numbered: the truth is to number objects.
    """

    objects: bool
    numbered: bool

    def put(self, case: str, pred: torch.Tensor, label: torch.Tensor) -> None:
        """Take a case, see `Store.put`."""


@dataclass
class Store:
    """Puts predicted cases on disk, and remembers how large true objects are.

    Args:
        folder: where the files go.
        objects: the truth numbers objects, or has two classes, of which the connected parts of the second
            are the objects; else it has classes.
        numbered: the truth numbers objects.

    Attributes:
        cases: what was put there.
        failed: how many others could not be.
        sizes: voxels of each true object, or component of a class, by class; objects have class 1.
        holes: voxels of each hole in them.
    """

    folder: Path
    objects: bool
    numbered: bool = False
    cases: list[Predicted] = field(default_factory=list)
    failed: int = 0
    sizes: dict[int, list[int]] = field(default_factory=dict)
    holes: dict[int, list[int]] = field(default_factory=dict)

    def put(self, case: str, pred: torch.Tensor, label: torch.Tensor) -> None:
        """Add a case.

        Args:
            case: its id.
            pred: probabilities, (classes, *spatial), or a class map, (1, *spatial).
            label: classes, IGNORE_LABEL where nobody annotated, or object numbers, (1, *spatial).
        """
        read = case_of(case, label, label)
        truth = read.truth.astype(np.int32)
        found = np.asarray(pred.detach().cpu(), dtype=np.float32 if len(pred) > 1 else np.uint8)
        if not self.numbered:
            unknown = truth == IGNORE_LABEL
            if self.objects:
                truth = connected_components(truth == 1, connectivity=1).astype(np.int32)
            truth[unknown] = UNKNOWN_OBJECT
        if not self.objects:
            box = _around((found[1] > IMPROBABLE if len(found) > 1 else found[0] > 0) | (truth != 0))
            found, truth = found[:, *box], truth[box]
        self._measure(np.maximum(truth, 0))
        files = [self.folder / f"{len(self.cases)}_{name}.npy" for name in ("pred", "truth")]
        for file, values in zip(files, (found, truth), strict=True):
            np.save(file, values)
        self.cases.append(Predicted(case, files[0], files[1], read.spacing or (1.0,) * truth.ndim))

    def _measure(self, truth: np.ndarray) -> None:
        """Add the sizes of a truth, (*spatial), to the others."""
        classes = (truth > 0).astype(np.int32) if self.objects else truth
        _, sizes, around = background_holes(classes)
        for index in np.unique(classes[classes > 0]).tolist():
            parts = truth if self.objects else connected_components(classes == index)
            self.sizes.setdefault(index, []).extend(
                np.unique(parts[parts > 0], return_counts=True)[1].tolist()
            )
            self.holes.setdefault(index, []).extend(sizes[around == index].tolist())

    def counted(self) -> str:
        """How many cases are judged, and of how many where others could not be."""
        total = f" of {len(self.cases) + self.failed}" if self.failed else ""
        return f"{len(self.cases)}{total} cases"

    def grid(self, index: int, least: int) -> Grid:
        """Values of `min_size` and `max_hole` for a class, see `sizes_to_try`."""
        sizes, holes = self.sizes.get(index, []), self.holes.get(index, [])
        return {"min_size": sizes_to_try(sizes, least), "max_hole": holes_to_try(sizes, holes)}


def _around(mask: np.ndarray) -> tuple[slice, ...]:
    """The box around a mask and a voxel more on all sides, as components and holes see no further."""
    boxes = find_objects(mask.view(np.uint8)) or [(slice(0, 1),) * mask.ndim]
    return tuple(slice(max(side.start - 1, 0), side.stop + 1) for side in boxes[0])


def judge_objects(cases: Sequence[Predicted], transform: Transform, measure: str, parameters: Ids) -> Trial:
    """The scores of the objects that a transform makes of probabilities.

    Equals are told apart by the F1 score at IoU 0.5 of all objects together, then by how few objects there
    are, then by the larger `min_size`.

    Args:
        cases: at least one.
        transform: takes {"pred": (classes, *spatial)}, gives {"pred": (1, *spatial)}.
        measure: one of INSTANCE_SCORES, or "v_rand".
        parameters: of the transform, for the trial.
    """
    scores, together = [], InstanceCounts()
    for case in cases:
        made = transform({Keys.PRED: torch.from_numpy(np.load(case.pred))})[Keys.PRED][0].numpy()
        judged = case.judged(made)
        counts = instance_counts(judged)
        together += counts
        scores.append(v_rand(*judged.annotated()) if measure == "v_rand" else counts.scores()[measure])
    f1 = together.scores()["f1_50"]
    aside = (0.0 if math.isnan(f1) else f1, -together.predicted, parameters.get("min_size", 0))
    return Trial(parameters, tuple(scores), aside, {"f1 at 0.5": f1, "objects": together.predicted})


def judge_class(cases: Sequence[Predicted], index: int, measure: str, parameters: Ids) -> Trial:
    """The scores of a class that is cleaned, and for two classes taken by a threshold.

    A case with the class neither in the truth nor in what is found counts 1, so that what is invented in an
    empty image and removed again is worth something. Equals are told apart by how few voxels are found that
    are not of the class, then by the larger `min_size`.

    Args:
        cases: at least one, with class maps or, where there is a `threshold`, probabilities of two classes.
        index: of the class.
        measure: one of CLASS_MEASURES.
        parameters: of the `Cleaning`, and perhaps `threshold`.
    """
    settings = dict(parameters)
    threshold = settings.pop("threshold", None)
    scores, invented = [], 0
    for case in cases:
        pred = np.load(case.pred)
        classes = pred[0] if threshold is None else (pred[1] > threshold).view(np.uint8)
        judged = case.judged(clean_classes(classes, {index: Cleaning(**settings)}))
        found, true = (values == index for values in judged.annotated())
        both, hits = int(found.sum() + true.sum()), int((found & true).sum())
        invented += int(found.sum()) - hits
        if not both:
            scores.append(1.0)
        elif measure == "surface_dice":
            masks = judged.pred == index, judged.truth == index
            surfaces = surface_scores(*masks, judged.spacing or (), TOLERANCE, judged.mask)
            scores.append(surfaces.surface_dice)
        else:
            scores.append(2 * hits / both)
    aside = (-invented, parameters["min_size"])
    return Trial(parameters, tuple(scores), aside, {"false positive voxels": invented})


def predict(parser: ConfigParser, store: Taker) -> InferenceCases:
    """Predict the validation cases, on the grid of their files.

    Bad cases are logged and left out.

    Args:
        parser: the configs of the training; changed on the way.
        store: gets the cases.

    Raises:
        InputError: no or bad validation cases; a checkpoint of another network.
    """
    instances, labels = parser.get_parsed_content("instances"), parser.get_parsed_content("labels")
    keys = ("split", "dataset_dir", "spatial_dims", "in_channels", "check")
    parser["split::check"] = "never"  # that would read the test cases too
    parser["cases"] = {
        "_target_": "scripts.data.sound_cases",
        **{key: f"@{key}" for key in keys},
        "section": "validation",
        "labels": labels,
        "instances": instances,
        "preprocessing": "@validate::preprocessing",
        "classes": "@out_channels",
        "work": "predicted",
    }
    softmax = {"_target_": "Activationsd", "keys": "pred", "softmax": True}
    back = {"_target_": "Invertd", "keys": "pred", "orig_keys": "image", "nearest_interp": False}
    back |= {"transform": "@validate::preprocessing", "to_tensor": True}
    argmax = {"_target_": "AsDiscreted", "keys": "pred", "argmax": True}
    probabilities = store.objects or count_classes(labels) == 2
    weights = {
        "_target_": "scripts.handlers.WeightsLoader",
        "network": "@network",
        "load_path": "@checkpoint",
    }
    changes = {
        "interpolation": {"image": "bilinear"},  # the truth stays on the grid of its file
        "validate::dataset": {
            "_target_": "scripts.data.CaseDataset",
            "data": "$@cases.cases",
            "transform": "@validate::preprocessing",
        },
        "validate::evaluator::iteration_update": {
            "_target_": "scripts.compute.steps.CaseByCase",
            "cases": "@cases",
            "postprocessing": "@validate::postprocessing",
        },
        "validate::evaluator::postprocessing": None,
        "validate::postprocessing": {
            "_target_": "Compose",
            "transforms": [softmax, back] if probabilities else [softmax, back, argmax],
        },
        "validate::key_metric": None,
        "validate::handlers": [weights, {"_target_": "scripts.handlers.ProgressBar", "desc": "predicting"}],
    }
    if store.numbered:
        changes["targets"] = []
    for key, value in changes.items():
        parser[key] = value
    evaluator = parser.get_parsed_content("validate::evaluator")

    def keep(engine: Engine) -> None:
        for case, output in zip(engine.state.batch, engine.state.output, strict=True):  # type: ignore
            store.put(case["case"], output[Keys.PRED], output[Keys.LABEL])

    evaluator.add_event_handler(Events.ITERATION_COMPLETED, keep)
    evaluator.run()
    return parser.get_parsed_content("cases")


def read_predictions(parser: ConfigParser, folder: Path, section: str, store: Taker) -> InferenceCases:
    """Read the probabilities of cases that were predicted before.

    Bad cases are logged and left out. A case without a file is passed over.

    Args:
        parser: the configs of the training.
        folder: of CASE_prob.nii.gz, as `save_probabilities` writes them; `calibration` of the configs scales
            them.
        section: "validation", or "training": with those that validate, what folds are made of.
        store: gets the cases.

    Raises:
        InputError: no folder, or none of its files is of a case.
    """
    if not folder.is_dir():
        raise InputError(f"--pred {folder} is no folder; it holds CASE_prob.nii.gz of each case; correct it.")
    if store.numbered:
        parser["targets"] = []
    places = [parser.get_parsed_content(key) for key in ("dataset_dir", "fold", "seed")]
    listed = sections(*places)
    cases = [case for name in dict.fromkeys((section, "validation")) for case in listed[name]]
    files = {case["case"]: output_path(folder, case["case"], "prob", ".nii.gz") for case in cases}
    there = InferenceCases(
        [case for case in cases if files[case["case"]].is_file()], work="judged", noun="cases"
    )
    if not there.cases:
        raise InputError(
            f"--pred {folder} has the probabilities of none of the {len(cases)} cases of the section "
            f"'{section}' of {places[0]}, called CASE_prob.nii.gz: "
            "segment them with --save_probabilities True, or correct --pred, --section or --fold"
        )
    without = [case["case"] for case in cases if not files[case["case"]].is_file()]
    if without:
        typer.echo(f"note: {len(without)} case(s) have no prediction in {folder}: {few(without)}", err=True)
    load = Compose([*parser.get_parsed_content("load_label"), *parser.get_parsed_content("targets")])
    classes, dims = (parser.get_parsed_content(key) for key in ("out_channels", "spatial_dims"))
    calibrated = parser.get_parsed_content("calibrated") if "calibrated" in parser else None
    for case in tqdm(there.cases, desc="reading", disable=None):
        with there.attempt(case):
            pred = read_probabilities(files[case["case"]], classes, dims, is_picture(case["label"]))
            if calibrated is not None:
                pred = calibrated.of_probabilities(pred)
            _require_grid(pred, files[case["case"]], case["label"])
            label = load({Keys.LABEL: case["label"], Keys.IMAGE: pred})[Keys.LABEL]
            keep = store.objects or classes == 2
            store.put(case["case"], pred if keep else pred.argmax(0, keepdim=True), label)
    return there


def read_probabilities(path: Path, classes: int, dims: int, of_picture: bool = False) -> MetaTensor:
    """The probabilities of a file.

    Args:
        path: NIfTI, as `save_probabilities` writes it.
        classes: of the network.
        dims: spatial dimensions, 2 or 3.
        of_picture: they lie on the grid of a picture.

    Returns:
        (classes, *spatial), float32, with the place of its voxels.

    Raises:
        Fault: other classes or dimensions, or numbers that are no probabilities.
    """
    file = read_file(path)
    grid, values = grid_of(file), columns_first(file) if of_picture else file.values
    if values.ndim != dims + 1 or values.shape[-1] != classes or len(grid.shape) != dims:
        raise Fault(
            f"shape {values.shape}",
            f"the network has {classes} classes in {dims} dimensions, and the file a channel for each",
            "name the folder of the predictions of this network",
            path,
        )
    pred = torch.from_numpy(np.ascontiguousarray(np.moveaxis(values, -1, 0), dtype=np.float32))
    if not ((pred.sum(0) - 1).abs().max() < SUM_TOLERANCE and pred.min() > -SUM_TOLERANCE):
        raise Fault(
            "channels that do not add up to 1, or are below 0",
            "they are the probabilities of the classes",
            "segment the case again with --save_probabilities True",
            path,
        )
    affine = np.eye(4) if of_picture or grid.affine is None else grid.affine
    meta = {MetaKeys.ORIGINAL_AFFINE: affine, MetaKeys.SPATIAL_SHAPE: np.array(pred.shape[1:])}
    return MetaTensor(pred, affine=torch.as_tensor(affine, dtype=torch.float64), meta=meta)


def _require_grid(pred: MetaTensor, path: Path, label: str) -> None:
    """Refuse probabilities, (classes, *spatial), of other voxels than those of their label.

    Raises:
        Fault: which names their file; the label is read next, and told of by itself.
    """
    header = read_header(label)
    if header is None:
        return
    try:
        here = grids.Grid(tuple(pred.shape[1:]), pred.meta[MetaKeys.ORIGINAL_AFFINE])
        grids.turn_onto(here, header[0], f"label {label}")
    except Fault as fault:
        raise Fault(
            fault.args[0],
            "the probabilities of a case lie on the grid of its label",
            "segment the case again with --save_probabilities True, or name the folder of the predictions of "
            "these cases",
            path,
        ) from None


def opened(
    args_file: Path, output_dir: Path, dataset_dir: Path | None, checkpoint: Path | None, ids: Ids
) -> tuple[Ids, ConfigParser, Path]:
    """The experiment of a training whose predictions are to be judged, its configs, and the data folder.

    Args:
        args_file: the experiment.
        output_dir: where the results go.
        dataset_dir: that of the experiment if None.
        checkpoint: held against the configs; None where predictions are there.
        ids: of the experiment.

    Raises:
        InputError: configs of no training, a checkpoint of another one, a file in place of the folder.
    """
    experiment = read_experiment(args_file, ids)
    parser = parser_of(experiment)
    missing = sorted({"set_up", "split", "validate", "network_def"} - parser.get().keys())
    if missing:
        raise InputError(
            f"{args_file} names configs without {', '.join(missing)}: put configs/train.json first under "
            "'config_file'"
        )
    if checkpoint is not None:
        read_checkpoint(checkpoint)
        read_recipe(checkpoint, for_inference(parser.get()))
    if output_dir.exists() and not output_dir.is_dir():
        raise InputError(f"--output_dir {output_dir} is a file: give a folder")
    dataset_dir = dataset_dir or Path(parser.get_parsed_content("dataset_dir"))
    for key, path in {"dataset_dir": dataset_dir, "checkpoint": checkpoint, "output_dir": output_dir}.items():
        if path is not None:
            parser[key] = str(path)
    return experiment, parser, dataset_dir


def tune(
    args_file: Path,
    output_dir: Path,
    dataset_dir: Path | None,
    checkpoint: Path | None,
    pred: Path | None,
    section: str | None,
    measure: str | None,
    speed: bool,
    cases: int | None,
    ids: Ids,
) -> None:
    """Carry out `bundle.cli.tune`, whose arguments these are."""
    experiment, parser, dataset_dir = opened(args_file, output_dir, dataset_dir, checkpoint, ids)
    if speed and checkpoint is not None:
        tune_speed(experiment, dataset_dir, checkpoint, output_dir, cases)
        return
    places = {"dataset_dir": dataset_dir, "checkpoint": checkpoint, "output_dir": output_dir}
    parser.get_parsed_content("set_up")
    configured = list(parser.get_parsed_content("to_labels"))
    measure, objects = choose_measure(parser, configured, measure)

    with workshop(output_dir) as folder:
        store = Store(folder, objects, bool(parser.get_parsed_content("instances")))
        if pred is None:
            done = predict(parser, store)
        else:
            done = read_predictions(parser, pred, section or "validation", store)
        store.failed = len(done.failed())
        if not store.cases:
            done.finish()
        if not any(store.sizes.values()):
            raise InputError(
                f"the labels of all {len(store.cases)} cases are empty: there is nothing to compare with; "
                "choose another fold, or label some"
            )
        if objects:
            overlay = tune_objects(store, configured, measure, output_dir)
        else:
            overlay = tune_classes(
                store, class_names(parser.get_parsed_content("labels")), measure, output_dir
            )
    path = output_dir / "postprocessing.json"
    nothing = "" if any(overlay.values()) else " that changes nothing"
    chosen = f", chosen on {store.counted()}" if store.failed else ""
    if chosen:
        overlay = {"_desc_": chosen.removeprefix(", "), **overlay}
    write_json(path, overlay, indent=4)
    typer.echo(f"Wrote {path}, an overlay for inference and evaluation{nothing}{chosen}.")
    listed = sections(*(parser.get_parsed_content(key) for key in ("dataset_dir", "fold", "seed")))
    if listed["testing"]:
        given = {"args_file": args_file, **ids, **places, "checkpoint": checkpoint or "MODEL.pt"}
        command = judging(experiment["config_file"], path, given, store)
        typer.echo(f"To judge it on the test cases: {command}")
    done.finish()


def choose_measure(
    parser: ConfigParser, configured: Sequence[Transform], measure: str | None
) -> tuple[str, bool]:
    """What is tuned for: the measure, and whether it is one of objects.

    Args:
        parser: the configs of the training.
        configured: to_labels of the configs.
        measure: what was asked for.

    Raises:
        InputError: a measure of classes for labels that number objects, or the other way round.
    """
    instances, labels = parser.get_parsed_content("instances"), parser.get_parsed_content("labels")
    if measure is None:
        numbers = instances or any(type(step) in GRIDS for step in configured)
        measure = "ap50" if numbers else CLASS_MEASURES[0]
    objects = measure not in CLASS_MEASURES
    if objects and not instances and count_classes(labels) != 2:
        raise InputError(
            f"labels names {count_classes(labels)} classes and instances is false: --measure {measure} needs "
            "label files that number the objects (instances true), or two classes of which the second is the "
            f"objects; {' and '.join(CLASS_MEASURES)} judge classes"
        )
    if instances and not objects:
        raise InputError(
            f"--measure {measure} judges classes and instances is true: leave it out, or give a score of "
            "instances, such as ap50"
        )
    return measure, objects


def judging(configs: Sequence[str], overlay: Path, given: Mapping[str, Any], store: Store) -> str:
    """The command that judges an overlay on the test cases.

    Args:
        configs: of the training.
        overlay: the file.
        given: other arguments of the run, "dataset_dir" and "output_dir" among them.
        store: says what is judged: of objects those of an inference, as an evaluation judges classes.
    """
    first, *others = configs
    if store.objects:
        files, more = ["configs/inference.json", *others], {"section": "testing"}
    else:
        files, more = [first, *others, "configs/evaluate.json"], {}
    listed = ",".join(repr(str(file)) for file in (*files, overlay))
    options = {"config_file": f"[{listed}]", **given, **more}
    run = " ".join(f"--{name} {_quoted(value)}" for name, value in options.items())
    folders = f"{_quoted(given['output_dir'])} {_quoted(given['dataset_dir'])}"
    score = f"score {folders} --section testing --measure {'instances' if store.numbered else 'membranes'}"
    return f"python -m monai.bundle run {run}" + (f" && python -m bundle {score}" if store.objects else "")


def _quoted(value: Any) -> str:
    """A value for a shell; what has single quotes in it is easier to read in double ones."""
    text = str(value)
    return f'"{text}"' if "'" in text and not set(text) & set('"$`\\!') else shlex.quote(text)


def tune_objects(store: Store, configured: Sequence[Transform], measure: str, output_dir: Path) -> Ids:
    """Choose how objects are numbered, write what was tried, and give the overlay."""
    kind = _kind_of(configured)
    grid = {**GRIDS[kind], **store.grid(1, 1)}
    arguments = list(inspect.signature(kind).parameters.values())[1:]
    defaults = {argument.name: argument.default for argument in arguments}
    start = defaults
    if len(configured) == 1 and isinstance(configured[0], kind):
        start = {name: getattr(configured[0], name) for name in defaults}

    def judge(parameters: Ids) -> Trial:
        return judge_objects(store.cases, kind(Keys.PRED, **parameters), measure, parameters)

    trials = _search(judge, start, grid, measure, "trying parameters")
    best = best_of(trials)
    said = notes(best, trials, grid)
    default = next((trial for trial in trials if trial.parameters == defaults), None) or judge(defaults)
    others = sorted({id(trial): trial for trial in (*trials, default)}.values(), key=lambda t: -t.score)
    trials = [best, *(trial for trial in others if trial is not best)]
    rows = [{**trial.parameters, measure: trial.score, **trial.facts} for trial in trials]
    write_csv(output_dir / "tune.csv", rows)
    draw_trials({"": (trials, grid)}, measure, output_dir / "tune.png")

    typer.echo(table([measure, *best.parameters, *best.facts], rows[:TABLE_ROWS], names=0))
    true = sum(map(len, store.sizes.values()))
    typer.echo(f"\n{measure}, mean over {store.counted()} with {true} objects:")
    typer.echo(f"  {best.score:.4f} with the best of {len(trials)} combinations")
    typer.echo(f"  {default.score:.4f} with the defaults of {kind.__name__}")
    if configured:
        current = judge_objects(store.cases, Compose(configured), measure, {})
        typer.echo(f"  {current.score:.4f} with to_labels as it stands in the configs")
        if best_of([best, current]) is current:
            typer.echo("to_labels as it stands is better: keep it.")
    for note in said:
        typer.echo(f"note: {note}", err=True)
    return {
        "to_labels": [{"_target_": f"scripts.transforms.{kind.__name__}", "keys": "pred", **best.parameters}]
    }


def tune_classes(store: Store, names: Sequence[str], measure: str, output_dir: Path) -> Ids:
    """Choose what is cleaned of each class, and of two classes the threshold; write what was tried.

    Args:
        store: the cases.
        names: of the classes, the background first.
        measure: one of CLASS_MEASURES.
        output_dir: where table and picture go.

    Returns:
        The overlay.
    """
    drawn, rows, chosen, said = {}, [], {}, []
    for index, name in enumerate(names[1:], start=1):
        grid: Grid = {"largest": Values((False, True)), **store.grid(index, 0)}
        neutral: Ids = asdict(Cleaning())
        if len(names) == 2:
            grid, neutral = {"threshold": THRESHOLDS, **grid}, {"threshold": MOST_PROBABLE, **neutral}

        def judge(parameters: Ids, index: int = index) -> Trial:
            return judge_class(store.cases, index, measure, parameters)

        trials = _search(judge, neutral, grid, measure, name)
        searched = list(trials)
        found = kept(trials, neutral, judge)
        said += [f"{name}: {note}" for note in notes(found, searched, grid)]
        drawn[name] = ([found, *(trial for trial in trials if trial is not found)], grid)
        chosen[name] = found
        nothing = trials[0]
        for trial in sorted(trials, key=lambda trial: (trial is not found, -trial.score)):
            mean, error, _ = gain(trial, nothing)
            row = {"class": name, **trial.parameters, measure: trial.score, **trial.facts}
            rows.append(
                {**row, "gain": mean, "standard error": error, "kept": "yes" if trial is found else ""}
            )
    write_csv(output_dir / "tune.csv", rows)
    draw_trials(drawn, measure, output_dir / "tune.png")

    shown = [row for row in rows if row["kept"]]
    typer.echo(table([name for name in shown[0] if name != "kept"], shown))
    typer.echo(
        f"\n{measure}, mean over {store.counted()}, with what helps by more than its spread: the mean "
        "difference, case by case, is above its standard error. gain: over the most probable class as it is."
    )
    if len(store.cases) < FEWEST_CASES:
        typer.echo(
            f"{len(store.cases)} case(s) tell no gain from chance: with fewer than {FEWEST_CASES} nothing is "
            "kept."
        )
    for note in said:
        typer.echo(f"note: {note}", err=True)
    return overlay_of(chosen)


def overlay_of(chosen: Mapping[str, Trial]) -> Ids:
    """The overlay of what was chosen for each class but the background.

    It names all of the classes where it changes anything, so that a network with others refuses it.
    """
    untouched = asdict(Cleaning())
    clean = {
        name: {key: trial.parameters[key] for key in untouched if trial.parameters[key] != untouched[key]}
        for name, trial in chosen.items()
    }
    found = [trial.parameters.get("threshold", MOST_PROBABLE) for trial in chosen.values()]
    threshold = next((value for value in found if value != MOST_PROBABLE), None)
    changes = threshold is not None or any(clean.values())
    return {"threshold": threshold, "clean": clean if changes else None}


def draw_trials(drawn: Mapping[str, tuple[Sequence[Trial], Grid]], measure: str, path: Path) -> None:
    """Save the score against each parameter.

    Args:
        drawn: name of a row of pictures, its trials, the best one first, and its parameters.
        measure: what stands at the axis.
        path: the PNG to write.
    """
    columns = max(len(grid) for _, grid in drawn.values())
    figure = Figure(figsize=(3 * columns, 0.5 + 2.8 * len(drawn)), layout="constrained")
    grids = figure.subplots(len(drawn), columns, sharey="row", squeeze=False)
    for axes, (title, (trials, grid)) in zip(grids, drawn.items(), strict=True):
        best = trials[0].parameters
        for axis, name in zip(axes, grid, strict=True):
            values = values_tried(name, trials)
            axis.scatter(
                [values.index(trial.parameters[name]) for trial in trials],
                [trial.score for trial in trials],
                s=12,
                color="#999999",
            )
            line = sorted(
                (t.parameters[name], t.score) for t in trials if {**t.parameters, name: best[name]} == best
            )
            axis.plot([values.index(v) for v, _ in line], [s for _, s in line], color="#0072b2", marker="o")
            ticks = [str(value) if isinstance(value, bool) else f"{value:g}" for value in values]
            axis.set_xticks(range(len(values)), ticks, rotation=45 if len(values) > 8 else 0)
            axis.set_xlabel(name)
            axis.grid(axis="y", alpha=0.3)
        scores = [trial.score for trial in trials]
        low, high = np.percentile(scores, 10), max(scores)  # a few bad values would squeeze all others
        axes[0].set_ylim(low - 0.05 * (high - low) - 1e-3, high + 0.05 * (high - low) + 1e-3)
        axes[0].set_ylabel(f"{measure}, {title}" if title else measure)
    figure.suptitle(
        "blue: with the chosen values of the other parameters; grey: all combinations but the worst tenth",
        fontsize=9,
    )
    save_figure(figure, path)


def _kind_of(configured: Sequence[Transform]) -> type[Any]:
    """What makes the instances: as the configs have it, if it has a grid, or a watershed."""
    kind = type(configured[0]) if len(configured) == 1 else None
    return kind if kind in GRIDS else next(iter(GRIDS))


def _search(judge: Judge, start: Ids, grid: Grid, measure: str, desc: str) -> list[Trial]:
    """`search`, with its progress."""
    of_a_round = sum(len(values.tried) for values in grid.values()) - len(grid) + 1
    with progress(desc=desc, total=of_a_round) as bar:

        def told(parameters: Ids) -> Trial:
            if bar.n >= bar.total:  # the round before made it better, so there is another
                bar.total += of_a_round
            trial = judge(parameters)
            bar.set_postfix_str(f"{measure} {trial.score:.4f}", refresh=False)
            bar.update()
            return trial

        return search(told, start, grid)
