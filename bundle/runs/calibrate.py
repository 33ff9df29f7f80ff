"""`python -m bundle calibrate`: what makes probabilities of a network mean what they say.

Of cases that the network did not see it learns a temperature, or one for each class (`scripts.calibration`),
and says how far probabilities are from how often they are right, before and after: overall and near the
borders. What it says of a fold comes from a temperature that was learnt on the other folds alone.

The predictions are made once, or those that are there are read (`--pred`), those of a cross-validation as a
rule; the logarithms of probabilities are as good as logits here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from monai.data import MetaTensor
from scipy.optimize import minimize
from scipy.special import log_softmax

from bundle.runs.review import (
    FEWEST_SUBJECTS,
    NOTHING,
    Observed,
    draw_review,
    judged_rows,
    learn_review,
    observe,
    summary_rows,
    tell_review,
)
from bundle.runs.search import FEWEST_CASES
from bundle.runs.tune import opened, predict, read_predictions
from bundle.runs.unlike import (
    FEWEST_SOUND,
    Inputs,
    Sound,
    flagged,
    learn_fingerprint,
    summarise_flagged,
    tell_flagged,
)
from scripts.calibration import Calibration
from scripts.data.datalist import read_folds, read_subjects
from scripts.errors import InputError, few
from scripts.files import workshop, write_csv, write_json
from scripts.judging.reliability import (
    COUNT,
    MEASURES,
    NEAR,
    RIGHT,
    SUM,
    Reliability,
    intervals,
    near_borders,
)
from scripts.judging.tables import plain
from scripts.labels import IGNORE_LABEL, class_names
from scripts.pictures import CLASS_COLOURS, save_figure
from scripts.progress import progress
from scripts.recipe import Ids
from scripts.review import CLASSES, FINGERPRINT
from scripts.tables import Row, table

#: The overlay, what it was learnt from, its tables and picture.
OVERLAY, FACTS = "calibration.json", "calibrate.json"
TABLE, PICTURE = "calibration.csv", "reliability.png"
REVIEW_TABLE, REVIEW_PICTURE = "predicted_dice.csv", "predicted_dice.png"

#: Voxels of a case that are learnt from: at most so many of each class, near borders and elsewhere each.
DRAWN = 500

#: Groups of subjects where there are no folds.
GROUPS = 5

#: Draws of a bootstrap.
DRAWS = 2000

#: Where voxels are judged.
REGIONS = ("overall", "near borders")

#: How far a temperature may go, to either side of 1.
MOST = 20.0


@dataclass(frozen=True)
class Sample:
    """Voxels of cases.

    Attributes:
        logs: logarithms of probabilities, (voxels, classes).
        truth: class indices, (voxels,).
        weights: (voxels,); those of a case add up to 1.
    """

    logs: np.ndarray
    truth: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class Seen:
    """A case that was predicted.

    Attributes:
        case: its id.
        pred: file of probabilities, (classes, *spatial), float32.
        truth: file of classes, (*spatial), uint8, IGNORE_LABEL where nobody annotated.
        sample: voxels to learn from.
        affine: where the voxels lie; None if nothing says so.
    """

    case: str
    pred: Path
    truth: Path
    sample: Sample
    affine: torch.Tensor | None

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities and truth."""
        return np.load(self.pred), np.load(self.truth)


@dataclass
class Evidence:
    """Puts predicted cases on disk, and draws voxels of them.

    Args:
        folder: where the files go.
        seed: of the voxels that are drawn.

    Attributes:
        objects: probabilities are wanted.
        numbered: of classes, not of numbered objects.
        cases: what was put there.
        failed: how many others could not be.
    """

    folder: Path
    seed: int
    objects: bool = True
    numbered: bool = False
    cases: list[Seen] = field(default_factory=list)
    failed: int = 0

    def put(self, case: str, pred: torch.Tensor, label: torch.Tensor) -> None:
        """Add a case.

        Args:
            case: its id.
            pred: probabilities, (classes, *spatial).
            label: class indices, IGNORE_LABEL where nobody annotated, (1 or more, *spatial).
        """
        found = np.asarray(pred.detach().cpu(), dtype=np.float32)
        truth = np.asarray(label[0].detach().cpu()).astype(np.uint8)
        files = [self.folder / f"{len(self.cases)}_{name}.npy" for name in ("pred", "truth")]
        np.save(files[0], found)
        np.save(files[1], truth)
        affine = pred.affine if isinstance(pred, MetaTensor) else None
        self.cases.append(Seen(case, files[0], files[1], draw_voxels(found, truth, self.seed), affine))


def draw_voxels(probabilities: np.ndarray, truth: np.ndarray, seed: int) -> Sample:
    """Voxels of a case, as many of each class, near borders and elsewhere, as there are up to DRAWN.

    Each stands for those of its kind that were not drawn, by its weight.

    Args:
        probabilities: (classes, *spatial).
        truth: class indices, (*spatial), IGNORE_LABEL where nobody annotated.
        seed: of the draw.
    """
    kinds = truth.astype(int) * 2 + near_borders(probabilities.argmax(0))
    known = np.flatnonzero(truth != IGNORE_LABEL)
    rng = np.random.default_rng(seed)
    chosen, weights = [np.zeros(0, int)], [np.zeros(0)]
    for kind in np.unique(kinds.ravel()[known]):
        there = known[kinds.ravel()[known] == kind]
        chosen.append(rng.choice(there, min(DRAWN, len(there)), replace=False))
        weights.append(np.full(len(chosen[-1]), len(there) / len(chosen[-1]) / len(known)))
    index = np.concatenate(chosen)
    values = probabilities.reshape(len(probabilities), -1)[:, index]
    return Sample(_logs(values).T, truth.ravel()[index].astype(int), np.concatenate(weights))


def _logs(probabilities: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(probabilities, np.finfo(np.float32).tiny).astype(np.float64))


def learn(samples: Sequence[Sample], classwise: bool) -> Calibration:
    """What makes the truth of voxels most likely; each case counts as much as another.

    Args:
        samples: of one case each.
        classwise: a temperature and a bias for each class, in place of one temperature.
    """
    logs, truth, weights = (
        np.concatenate([getattr(sample, name) for sample in samples]) for name in ("logs", "truth", "weights")
    )
    classes = logs.shape[1]
    own = classes if classwise else 1
    true = np.arange(classes) == truth[:, None]

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        scaled = logs * np.exp(-values[:own]) + (values[own:] if classwise else 0)
        found = log_softmax(scaled, axis=1)
        wrong = (np.exp(found) - true) * weights[:, None]
        by_temperature = -(wrong * logs).sum(0) * np.exp(-values[:own])
        if not classwise:
            by_temperature = by_temperature.sum(keepdims=True)
        by_bias = wrong.sum(0) if classwise else np.zeros(0)
        gradient = np.concatenate([by_temperature, by_bias])
        return -float((found[true] * weights).sum()) / len(samples), gradient / len(samples)

    limit = np.log(MOST)
    bounds = [(-limit, limit)] * own + ([(-limit, limit)] * classes if classwise else [])
    found = minimize(loss, np.zeros(len(bounds)), jac=True, bounds=bounds, method="L-BFGS-B").x
    temperature = tuple(round(float(value), 4) for value in np.exp(found[:own]))
    bias = found[own:] - found[own:].mean() if classwise else ()  # a shift of all says nothing
    return Calibration(temperature, tuple(round(float(value), 4) for value in bias))


@dataclass(frozen=True)
class Judged:
    """A case before and after.

    Attributes:
        case: its id.
        group: of it nothing was learnt.
        before: for each of REGIONS.
        after: for each of REGIONS.
        changed: voxels whose most probable class is another one.
    """

    case: str
    group: int
    before: list[Reliability]
    after: list[Reliability]
    changed: int


def judge(seen: Seen, group: int, calibration: Calibration) -> Judged:
    """Hold the probabilities of a case against its truth, before and after."""
    pred, truth = seen.read()
    calibrated = calibration.of_probabilities(torch.from_numpy(pred)).numpy()
    known = truth != IGNORE_LABEL
    masks = (known, known & near_borders(pred.argmax(0)))
    before, after = (
        [Reliability.of(values[:, mask], truth[mask].astype(int)) for mask in masks]
        for values in (pred, calibrated)
    )
    changed = int((pred.argmax(0) != calibrated.argmax(0)).sum())
    return Judged(seen.case, group, before, after, changed)


def groups_of(
    cases: Sequence[str], dataset_dir: Path, seed: int, subjects: Mapping[str, str]
) -> dict[str, int]:
    """Which cases are left out together: those of a fold; where these are of one fold, some subjects."""
    folds = {case["case"]: fold for fold, held in read_folds(dataset_dir, seed).items() for case in held}
    groups = {case: folds[case] for case in cases if case in folds}
    if len(groups) == len(cases) and len(set(groups.values())) > 1:
        return groups
    people = np.random.default_rng(seed).permutation(sorted({subjects[case] for case in cases})).tolist()
    return {case: people.index(subjects[case]) % GROUPS for case in cases}


def calibrate(
    args_file: Path,
    output_dir: Path,
    dataset_dir: Path | None,
    checkpoint: Path | None,
    pred: Path | None,
    section: str | None,
    classwise: bool,
    ids: Ids,
) -> None:
    """Carry out `bundle.cli.calibrate`, whose arguments these are."""
    _, parser, dataset_dir = opened(args_file, output_dir, dataset_dir, checkpoint, ids)
    inputs = Inputs(parser)
    parser["calibration"] = None
    parser.get_parsed_content("set_up")
    labels, seed = parser.get_parsed_content("labels"), parser.get_parsed_content("seed")
    with workshop(output_dir) as folder:
        evidence = Evidence(folder, seed)
        if pred is None:
            done = predict(parser, evidence)
        else:
            done = read_predictions(parser, pred, section or "validation", evidence)
        evidence.failed = len(done.failed())
        if not evidence.cases:
            done.finish()
        subjects = read_subjects(dataset_dir)
        require_enough(evidence, subjects)
        groups = groups_of([seen.case for seen in evidence.cases], dataset_dir, seed, subjects)
        of_group = {
            group: learn([seen.sample for seen in evidence.cases if groups[seen.case] != group], classwise)
            for group in sorted(set(groups.values()))
        }
        judged = [
            judge(seen, groups[seen.case], of_group[groups[seen.case]])
            for seen in progress(evidence.cases, "judging")
        ]
        rows = summarise(judged, subjects, seed)
        helps = next(row["after"] < row["before"] for row in rows if row["measure"] == "nll")
        observed: list[Observed] = []
        sound: list[Sound] = []
        images = {case["case"]: case for case in done.cases}
        for seen in progress(evidence.cases, "looking"):
            found, truth = seen.read()
            group = groups[seen.case]
            if helps:
                found = of_group[group].of_probabilities(torch.from_numpy(found)).numpy()
            names = class_names(labels)
            observed += observe(seen.case, subjects[seen.case], group, found, truth, names)
            with done.attempt(images[seen.case]):
                calibrated = MetaTensor(torch.from_numpy(found), affine=seen.affine)
                sound.append(Sound(seen.case, group, inputs.describe(images[seen.case], calibrated, names)))
        enough = len({subjects[each.case] for each in sound}) >= FEWEST_SOUND
        others = inputs.of_training({each.case for each in sound}, done) if enough else []
    for name in (FACTS, OVERLAY, TABLE, PICTURE, REVIEW_TABLE, REVIEW_PICTURE):
        (output_dir / name).unlink(missing_ok=True)  # of an earlier run
    learnt = learn([seen.sample for seen in evidence.cases], classwise)
    folds = fold_rows(judged, of_group)
    write_csv(output_dir / TABLE, rows)
    draw(judged, class_names(labels), output_dir / PICTURE)
    people = {subjects[seen.case] for seen in evidence.cases}
    about: Row = {
        "cases": len(evidence.cases),
        "left_out": evidence.failed,
        "subjects": len(people),
        "calibration": learnt.as_config(labels),
        "helps": helps,
        "changed_voxels": sum(case.changed for case in judged),
        "measures": list(map(plain, rows)),
        "folds": list(map(plain, folds)),
    }
    of = f"learnt on {len(evidence.cases)} cases of {len(people)} subjects"
    review = learn_review(observed, seed) if len(people) >= FEWEST_SUBJECTS else None
    cases = judged_rows(observed, seed) if review else []
    review = review if cases else None  # what cannot be judged is not told
    if fingerprint := learn_fingerprint(sound, others) if enough else None:
        about["unlike"] = plain(summarise_flagged(flagged(sound, others)))
        review = {**(review or NOTHING), FINGERPRINT: fingerprint}
    overlay = {"_desc_": of, "calibration": learnt.as_config(labels) if helps else None, "review": review}
    if cases:
        about["review"] = list(map(plain, summary_rows(cases)))
        write_csv(output_dir / REVIEW_TABLE, cases)
        draw_review(cases, output_dir / REVIEW_PICTURE)
    for name, content in ((FACTS, about), (OVERLAY, overlay)):
        write_json(output_dir / name, content, indent=4)
    tell(rows, folds, about)
    left = f"; {evidence.failed} more cases were left out, as told above" if evidence.failed else ""
    if cases and review is not None:
        tell_review(about["review"], review)  # type: ignore[arg-type]
        without = [name for name in class_names(labels)[1:] if name not in review[CLASSES]]
        if without:
            typer.echo(f"No predicted Dice of {few(without)}, which too few cases show or find{left}.")
    if fingerprint:
        tell_flagged(about["unlike"], len(others))
    else:
        typer.echo(
            f"No fingerprint: it takes {FEWEST_SOUND} subjects or more, and here are {len(people)}; what is "
            "unlike them is not told."
        )
    if not cases:
        typer.echo(
            f"No predicted Dice: it takes {FEWEST_SUBJECTS} subjects or more, of which enough show a class "
            f"to be learnt from and judged by in turn, and here are {len(people)}{left}."
        )
    nothing = (
        "" if helps else ", which changes nothing, as the likelihood of cases not learnt from is no better"
    )
    typer.echo(f"Wrote {output_dir / OVERLAY}, an overlay for inference and evaluation{nothing}; {of}.")
    done.finish()


def require_enough(evidence: Evidence, subjects: Mapping[str, str]) -> None:
    """Refuse to learn of fewer subjects than FEWEST_CASES."""
    people = {subjects[seen.case] for seen in evidence.cases}
    if len(people) < FEWEST_CASES:
        cases = few([seen.case for seen in evidence.cases])
        bad = f", as {evidence.failed} more are bad: mend these, or" if evidence.failed else ":"
        raise InputError(
            f"{len(evidence.cases)} cases of {len(people)} subject(s) ({cases}) are too few to calibrate by"
            f"{bad} give the predictions of {FEWEST_CASES} subjects or more, such as those of a "
            "cross-validation"
        )


def summarise(judged: Sequence[Judged], subjects: Mapping[str, str], seed: int) -> list[Row]:
    """A row for each region and measure, before and after, each with its 95 % interval over the subjects."""
    of = [subjects[case.case] for case in judged]
    rows = []
    for place, region in enumerate(REGIONS):
        both = {}
        for when in ("before", "after"):
            parts = [getattr(case, when)[place] for case in judged]
            total = sum(parts[1:], parts[0])
            both[when] = (total.measures(), intervals(parts, of, DRAWS, seed))
        for measure in MEASURES:
            row: Row = {"region": region, "measure": measure}
            for when, (values, ends) in both.items():
                low, high = ends[measure]
                row |= {when: values[measure], f"{when}_low": low, f"{when}_high": high}
            rows.append(row)
    return rows


def fold_rows(judged: Sequence[Judged], of_group: Mapping[int, Calibration]) -> list[Row]:
    """A row for each group that was left out: its temperature and what it does to its expected error."""
    rows = []
    for group, calibration in of_group.items():
        held = [case for case in judged if case.group == group]
        row: Row = {"fold": group, "cases": len(held), "temperature": fmean(calibration.temperature)}
        for place, region in enumerate(REGIONS):
            for when in ("before", "after"):
                parts = [getattr(case, when)[place] for case in held]
                row[f"ece {region}, {when}"] = sum(parts[1:], parts[0]).measures()["ece"]
        rows.append(row)
    return rows


def tell(rows: Sequence[Row], folds: Sequence[Row], about: Row) -> None:
    """Print what came out."""
    shown = [
        {
            "region": row["region"],
            "measure": MEASURES[row["measure"]],
            **{
                f"{when} (95 %)": f"{row[when]:.4f} ({row[f'{when}_low']:.4f} to {row[f'{when}_high']:.4f})"
                for when in ("before", "after")
            },
        }
        for row in rows
    ]
    typer.echo(table(list(shown[0]), shown, 2))
    typer.echo(f"\nEach fold by what was learnt on the others:\n\n{table(list(folds[0]), folds)}\n")
    typer.echo(
        f"calibration: {json.dumps(about['calibration'])}; voxels whose most probable class changes: "
        f"{about['changed_voxels']}. Near borders: up to {NEAR} voxels from where two "
        "predicted classes meet."
    )


def draw(judged: Sequence[Judged], names: Sequence[str], path: Path) -> None:
    """Save the reliability diagrams: a row for each region, before and after.

    Args:
        judged: the cases.
        names: of the classes.
        path: the PNG to write.
    """
    figure = Figure(figsize=(9, 8.6), layout="constrained")
    grid = figure.subplots(len(REGIONS), 2, sharex=True, sharey=True)
    for place, region in enumerate(REGIONS):
        for axis, when in zip(grid[place], ("before", "after"), strict=True):
            parts = [getattr(case, when)[place] for case in judged]
            total = sum(parts[1:], parts[0])
            draw_reliability(axis, total, names)
            measures = total.measures()
            axis.set_title(
                f"{region}, {when}: ECE {measures['ece']:.4f}, class-wise {measures['classwise']:.4f}",
                fontsize=9,
            )
        grid[place][0].set_ylabel("share that is right")
    for axis in grid[-1]:
        axis.set_xlabel("probability")
    grid[0][0].legend(fontsize=8, loc="upper left")
    save_figure(figure, path)


def draw_reliability(axis: Axes, total: Reliability, names: Sequence[str]) -> None:
    """Draw the share that is right against the probability; bars: the share of the voxels in each bin."""
    axis.plot([0, 1], [0, 1], color="#999999", linewidth=1, linestyle="--")
    counts = total.bins[0, COUNT]
    axis.bar(
        (np.arange(len(counts)) + 0.5) / len(counts),
        counts / max(counts.sum(), 1),
        1 / len(counts),
        color="#dddddd",
        label="voxels by their most probable class",
    )
    colours = ["#000000", "#999999", *CLASS_COLOURS[1:]]
    for index, name in enumerate(("most probable class", *names)):
        there = total.bins[index, COUNT] > 0
        count, added, right = (total.bins[index, part][there] for part in (COUNT, SUM, RIGHT))
        colour = colours[index] if index < 2 else colours[2 + (index - 2) % (len(colours) - 2)]
        axis.plot(added / count, right / count, marker="o", markersize=3, color=colour, label=name)
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1)
    axis.grid(alpha=0.3)
