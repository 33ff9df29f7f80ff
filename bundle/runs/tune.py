"""`python -m bundle tune`: the parameters by which the objects of a trained network are numbered best.

With `--speed` what makes inference fast, see `bundle.runs.speed`.

The network predicts every validation case once. Then parameters are tried, one at a time, and judged by the
instances that come out. Only the validation cases are read, never the test cases: a parameter chosen on those
would make their scores worthless. The score of the best parameters flatters, as they were chosen by it.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from ignite.engine import Engine, Events
from matplotlib.figure import Figure
from monai.bundle import ConfigParser
from monai.transforms import Compose, Transform
from monai.utils import CommonKeys as Keys
from skimage.measure import label as connected_components
from tqdm import tqdm

from bundle.runs.experiments import parser_of, read_experiment
from bundle.runs.speed import tune_speed
from scripts.checkpoints import read_checkpoint
from scripts.errors import InputError
from scripts.files import atomic_write, workshop, write_csv
from scripts.judging import Case, instance_scores, v_rand
from scripts.judging.tables import mean_of
from scripts.labels import IGNORE_LABEL, count_classes
from scripts.pictures import save_figure
from scripts.recipe import for_inference, read_recipe
from scripts.tables import table
from scripts.transforms import InstancesFromDirectionsd, InstancesFromDistancesd, WatershedInstancesd

Grid = Mapping[str, Sequence[Any]]

#: Values tried for each parameter of what makes instances of probabilities, in the order in which they are
#: tried. The first is taken where to_labels of the configs is none of them.
GRIDS: dict[type[Any], Grid] = {
    WatershedInstancesd: {
        "seed_threshold": (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
        "neck": (0, 0.5, 1, 2, 3, 5),
        "threshold": (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
        "min_size": (1, 5, 10, 20, 50, 100),
        "max_hole": (0, 20, 100),
    },
    InstancesFromDistancesd: {
        "height": (0.02, 0.05, 0.1, 0.15, 0.2, 0.3),
        "smoothing": (0, 0.5, 1, 1.5, 2, 3),
        "threshold": (0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
        "min_size": (1, 5, 10, 20, 50, 100),
        "max_hole": (0, 20, 100),
    },
    InstancesFromDirectionsd: {
        "smoothing": (0.5, 1, 1.5, 2, 3),
        "drop": (1.1, 1.2, 1.5, 2, 3, 5),
        "agreement": (0, 0.3, 0.4, 0.5, 0.6, 0.7),
        "threshold": (0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
        "min_size": (1, 5, 10, 20, 50, 100),
        "max_hole": (0, 20, 100),
    },
}

#: Most combinations that are tried.
MAX_TRIALS = 100

#: Rows of the table that is printed.
TABLE_ROWS = 10


@dataclass(frozen=True)
class Trial:
    """One combination of parameters and the mean score over the cases that it reached."""

    parameters: dict[str, Any]
    score: float


@dataclass(frozen=True)
class Predicted:
    """A validation case on the grid of its file.

    Attributes:
        probabilities: file of (classes, *spatial), float32.
        truth: instance map, (*spatial).
        mask: where somebody annotated, (*spatial), boolean.
    """

    probabilities: Path
    truth: np.ndarray
    mask: np.ndarray


def search(
    judge: Callable[[dict[str, Any]], float],
    start: Mapping[str, Any],
    grid: Grid,
    limit: int = MAX_TRIALS,
) -> list[Trial]:
    """Try one parameter at a time, with the best values so far for the others, until nothing gets better.

    Args:
        judge: from parameters to a score; the higher the better.
        start: the parameters to begin with; those without an entry in ``grid`` stay as they are.
        grid: values for each parameter.
        limit: most combinations that are judged.

    Returns:
        The trials in their order, ``start`` first; no combination twice.
    """
    trials: dict[tuple[Any, ...], Trial] = {}

    def best() -> Trial:
        return max(trials.values(), key=lambda trial: trial.score)  # of equals the first

    def attempt(parameters: dict[str, Any]) -> None:
        key = tuple(parameters[name] for name in grid)
        if key not in trials and len(trials) < limit:
            trials[key] = Trial(parameters, judge(parameters))

    attempt(dict(start))
    before = None
    while before != best():
        before = best()
        for name, values in grid.items():
            others = best().parameters
            for value in values:
                attempt({**others, name: value})
    return list(trials.values())


def mean_score(cases: Sequence[Predicted], transform: Transform, measure: str) -> float:
    """The mean score of the instances that a transform makes of the probabilities.

    Args:
        cases: at least one.
        transform: takes {"pred": (classes, *spatial)}, gives {"pred": (1, *spatial)}.
        measure: one of INSTANCE_SCORES, or "v_rand".

    Returns:
        The mean over the cases; those that say nothing (NaN) are left out.
    """
    scores = []
    for case in cases:
        data = {Keys.PRED: torch.from_numpy(np.load(case.probabilities))}
        judged = Case(str(case.probabilities), transform(data)[Keys.PRED][0].numpy(), case.truth, case.mask)
        rand = measure == "v_rand"
        scores.append(v_rand(*judged.annotated()) if rand else instance_scores(judged)[measure])
    return mean_of(scores)


def predict(parser: ConfigParser, folder: Path) -> list[Predicted]:
    """Probabilities and true instances of the validation cases, on the grid of their files.

    Bad cases are logged and left out, see "cases" of the parser.

    Args:
        parser: the configs of the training; changed on the way.
        folder: where the probabilities go.

    Raises:
        InputError: no or bad validation cases; labels without instances; a checkpoint of another network.
    """
    instances, labels = parser.get_parsed_content("instances"), parser.get_parsed_content("labels")
    if not instances and count_classes(labels) != 2:
        raise InputError(
            f"labels names {count_classes(labels)} classes and instances is false: tune needs label files "
            "that number the objects (instances true), or two classes of which the second is the objects"
        )
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
        "validate::postprocessing": {"_target_": "Compose", "transforms": [softmax, back]},
        "validate::key_metric": None,
        "validate::handlers": [weights, {"_target_": "scripts.handlers.ProgressBar", "desc": "predicting"}],
    }
    if instances:
        changes["targets"] = []
    for key, value in changes.items():
        parser[key] = value
    evaluator = parser.get_parsed_content("validate::evaluator")
    cases: list[Predicted] = []

    def keep(engine: Engine) -> None:
        for output in engine.state.output:  # type: ignore[union-attr]
            file = folder / f"{len(cases)}.npy"
            np.save(file, np.asarray(output[Keys.PRED].float().cpu()))
            label = np.asarray(output[Keys.LABEL][0].cpu())
            if instances:
                cases.append(Predicted(file, label.astype(np.int64), np.ones(label.shape, dtype=bool)))
            else:
                truth = connected_components(label == 1, connectivity=1)
                cases.append(Predicted(file, truth, label != IGNORE_LABEL))

    evaluator.add_event_handler(Events.ITERATION_COMPLETED, keep)
    evaluator.run()
    if not cases:
        parser.get_parsed_content("cases").finish()
    if not any(case.truth.any() for case in cases):
        raise InputError(
            f"the labels of all {len(cases)} validation cases are empty: there are no instances to compare "
            "with; choose another fold, or label some"
        )
    return cases


def tune(
    args_file: Path,
    dataset_dir: Path,
    checkpoint: Path,
    output_dir: Path,
    measure: str | None,
    speed: bool,
    cases: int | None,
    ids: dict[str, Any],
) -> None:
    """Carry out `bundle.cli.tune`, whose arguments these are."""
    measure = measure or "ap50"
    experiment = read_experiment(args_file, ids)
    parser = parser_of(experiment)
    missing = sorted({"set_up", "split", "validate", "network_def"} - parser.get().keys())
    if missing:
        raise InputError(
            f"{args_file} names configs without {', '.join(missing)}: put configs/train.json first under "
            "'config_file'"
        )
    read_checkpoint(checkpoint)
    read_recipe(checkpoint, for_inference(parser.get()))
    if output_dir.exists() and not output_dir.is_dir():
        raise InputError(f"--output_dir {output_dir} is a file: give a folder")
    output_dir.mkdir(parents=True, exist_ok=True)
    if speed:
        tune_speed(experiment, dataset_dir, checkpoint, output_dir, cases)
        return
    for key, path in (("dataset_dir", dataset_dir), ("checkpoint", checkpoint), ("output_dir", output_dir)):
        parser[key] = str(path)
    parser.get_parsed_content("set_up")

    with workshop(output_dir) as folder:
        predicted = predict(parser, folder)
        configured = parser.get_parsed_content("to_labels") if "to_labels" in parser else []
        kind = _kind_of(configured)
        trials, default = _try_all(predicted, configured, kind, measure)
        current = mean_score(predicted, Compose(configured), measure) if configured else None
    best = trials[0]
    step = {"_target_": f"scripts.transforms.{kind.__name__}", "keys": "pred", **best.parameters}
    with atomic_write(output_dir / "postprocessing.json") as temporary:
        temporary.write_text(json.dumps({"to_labels": [step]}, indent=4) + "\n", encoding="utf-8")
    rows = [{**trial.parameters, measure: trial.score} for trial in trials]
    write_csv(output_dir / "tune.csv", rows)
    draw_trials(trials, GRIDS[kind], measure, output_dir / "tune.png")

    typer.echo(table([measure, *best.parameters], rows[:TABLE_ROWS], names=0))
    typer.echo(f"\n{measure}, mean over {len(predicted)} validation cases:")
    typer.echo(f"  {best.score:.4f} with the best of {len(trials)} combinations")
    typer.echo(f"  {default.score:.4f} with the defaults of {kind.__name__}")
    if current is not None:
        typer.echo(f"  {current:.4f} with to_labels as it stands in the configs")
        if current > best.score:
            typer.echo("to_labels as it stands is better: keep it.")
    typer.echo(f"Wrote {output_dir / 'postprocessing.json'}, an overlay for inference and evaluation.")
    parser.get_parsed_content("cases").finish()


def draw_trials(trials: Sequence[Trial], grid: Grid, measure: str, path: Path) -> None:
    """Save the score against each parameter.

    Args:
        trials: the best one first.
        grid: the parameters.
        measure: what stands at the axis.
        path: the PNG to write.
    """
    best = trials[0].parameters
    figure = Figure(figsize=(3 * len(grid), 3.3), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(grid), sharey=True), grid, strict=True):
        values = sorted({trial.parameters[name] for trial in trials})
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
        axis.set_xticks(range(len(values)), [f"{value:g}" for value in values])
        axis.set_xlabel(name)
        axis.grid(axis="y", alpha=0.3)
    scores = [trial.score for trial in trials]
    low, high = np.percentile(scores, 10), max(scores)  # a few bad values would squeeze all others
    figure.axes[0].set_ylim(low - 0.05 * (high - low) - 1e-3, high + 0.05 * (high - low) + 1e-3)
    figure.axes[0].set_ylabel(measure)
    figure.suptitle(
        "blue: with the best values of the other parameters; grey: all combinations but the worst tenth",
        fontsize=9,
    )
    save_figure(figure, path)


def _kind_of(configured: Sequence[Transform]) -> type[Any]:
    """What makes the instances: as the configs have it, if it has a grid, or a watershed."""
    kind = type(configured[0]) if len(configured) == 1 else None
    return kind if kind in GRIDS else next(iter(GRIDS))


def _try_all(
    cases: Sequence[Predicted], configured: Sequence[Transform], kind: type[Any], measure: str
) -> tuple[list[Trial], Trial]:
    """All trials, the best first, and that of the defaults; begins with what the configs have."""
    grid = GRIDS[kind]
    arguments = list(inspect.signature(kind).parameters.values())[1:]
    defaults = {argument.name: argument.default for argument in arguments}
    start = defaults
    if len(configured) == 1 and isinstance(configured[0], kind):
        start = {name: getattr(configured[0], name) for name in defaults}
    of_a_round = sum(map(len, grid.values())) - len(grid) + 1
    with tqdm(total=of_a_round, desc="trying parameters", mininterval=1) as bar:

        def judge(parameters: dict[str, Any]) -> float:
            if bar.n >= bar.total:  # the round before made it better, so there is another
                bar.total += of_a_round
            score = mean_score(cases, kind(Keys.PRED, **parameters), measure)
            bar.set_postfix_str(f"{measure} {score:.4f}", refresh=False)
            bar.update()
            return score

        trials = search(judge, start, grid)
        default = next((trial for trial in trials if trial.parameters == defaults), None)
        if default is None:
            default = Trial(defaults, judge(defaults))
            trials.append(default)
    return sorted(trials, key=lambda trial: -trial.score), default
