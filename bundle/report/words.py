"""What the report says in sentences: the summary, what a score means, the plan, how it was done.

For readers who did not train the network. Every number is one of the tables or settings.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from bundle.data.datalist import told_value
from bundle.report.gather import Found, Judged, Training
from bundle.runs.compare import DRAWS
from scripts.compute.length import LENGTH
from scripts.judging.tables import OVERALL, STANDS_ON
from scripts.labels import class_names
from scripts.tables import number

Row = dict[str, Any]

#: What each score says, and what the best is.
SCORES = {
    "dice": (
        "Dice",
        "overlap of prediction and truth: 1 where both agree in every voxel, 0 where they share none",
    ),
    "iou": ("IoU", "what both have in common, of all that either has; 1 is best"),
    "precision": ("precision", "how much of what was found is right; 1 is best"),
    "recall": ("recall", "how much of what is there was found; 1 is best"),
    "error": ("error", "share of all voxels that are wrong about the class; 0 is best"),
    "hd95": (
        "HD95",
        "how far the outlines are apart where they agree least, but for the worst 5 %, in {unit}; 0 is best",
    ),
    "assd": ("ASSD", "how far the outlines are apart on average, in {unit}; 0 is best"),
    "surface_dice": (
        "surface Dice",
        "share of both outlines that lie within {tolerance} {unit} of the other; 1 is best",
    ),
    "auc": ("AUC", "how well the probability tells the class from all others; 1 is best, 0.5 is chance"),
    "ap50": (
        "AP at IoU 0.5",
        "objects that were found (overlap of more than half), of all found, missed or invented; 1 is best",
    ),
    "ap75": (
        "AP at IoU 0.75",
        "the same where an object must overlap by more than three quarters; 1 is best",
    ),
    "ap": ("AP", "the same, as a mean over IoU 0.5 to 0.95; 1 is best"),
    "precision50": ("precision at IoU 0.5", "how many of the objects that were found are there; 1 is best"),
    "recall50": ("recall at IoU 0.5", "how many of the objects that are there were found; 1 is best"),
    "f1_50": ("F1 at IoU 0.5", "both of these in one number; 1 is best"),
    "pq": ("PQ", "panoptic quality: objects found, times how well they fit; 1 is best"),
    "sq": ("SQ", "how well the objects that were found fit; 1 is best"),
    "rq": ("RQ", "F1 of the objects; 1 is best"),
    "seg": ("SEG", "how well each true object is covered, 0 where it was missed; 1 is best"),
    "v_rand": ("V_Rand", "how well pixels are gathered into the right cells; 1 is best"),
    "v_info": ("V_Info", "the same, by information; 1 is best"),
    "rand_error": ("Rand error", "pairs of pixels that are wrongly together or apart; 0 is best"),
    "pixel_error": ("pixel error", "pixels that are wrong; 0 is best"),
    "warping_error": ("warping error", "splits and mergers of cells; 0 is best"),
}

#: What ids of a plan are called.
CALLED = {
    "spatial_dims": "dimensions",
    "in_channels": "channels of an image",
    "labels": "classes",
    "instances": "objects are numbered",
    "spacing": "voxels are resampled to (mm)",
    "geometry": "resampling",
    "patch_size": "what the network sees at a time (voxels)",
    "channels": "width of each level of the network",
    "network_def::strides": "how each level is coarser",
    "network_def::kernel_sizes": "size of the filters",
    "network_def::slice_axis": "slices are seen one by one, across axis",
    "batch_size": "patches in a step",
    "learning_rate": "size of the first steps (learning rate)",
    "samples_per_case": "patches of a case in an epoch",
    "max_epochs": "epochs",
    "val_interval": "epochs between validations",
    "val_measure": "what chooses the best epoch",
    "alpha": "share of Dice in the loss",
    "normalise": "brightness",
    "flip_axes": "axes that are mirrored",
    "patch": "random changes of the patches",
    "spatial": "where patches are drawn",
    "outside": "what lies beyond the image",
    "targets": "what is learnt of the labels",
    "to_labels": "how objects are put together",
    "output_ext": "kind of the files that are written",
    "segments": "codes for DICOM",
}

#: What brightness is changed by, by the class that does it.
NORMALISED = {
    "NormalizeIntensityd": "scaled to a mean of 0 and a standard deviation of 1",
    "ScaleIntensityRanged": "scaled to a fixed range",
    "ScaleIntensityRangePercentilesd": "scaled between percentiles",
    "ClipIntensityPercentilesd": "clipped at percentiles",
}

#: What is learnt from, by the class of the loss.
LOSSES = {
    "WeightedDiceCELoss": "a sum of soft Dice loss (weight {alpha}) and cross entropy",
}

#: How the learning rate changes, by the class that does it.
SCHEDULES = {"CosineAnnealingLR": "half a cosine to 0"}

#: Papers, by the class of the network.
PAPERS = {
    "UNet": "U-Net (Ronneberger et al., 2015; in three dimensions Çiçek et al., 2016)",
}


def called(score: str) -> str:
    """The name of a score."""
    return SCORES.get(score, (score,))[0]


def meaning(score: str, judged: Judged, unit: str) -> str:
    """What a score says."""
    text = SCORES.get(score, ("", ""))[1]
    return text.format(unit=unit, tolerance=f"{judged.about.get('tolerance', 1):g}")


def unit_of(found: Found) -> str:
    """What distances are measured in."""
    return "mm" if found.settings.get("spatial_dims", 3) == 3 else "pixels"


def with_interval(row: Mapping[str, Any]) -> str:
    """A mean with its interval."""
    if row["mean"] is None:
        return "not known, as no case has it"
    mean = number(row["score"], row["mean"])
    if row["low"] is None:
        return f"{mean} (without an interval, which takes two subjects or more)"
    low, high = (number(row["score"], row[end]) for end in ("low", "high"))
    return f"{mean} (95 % interval {low} to {high})"


def cases_of(judged: Judged) -> str:
    """How many cases, of how many subjects, and what cases they are."""
    cases, subjects = len(judged.cases), len(set(judged.subjects.values()))
    of = f" of {subjects} subjects" if subjects < cases else ""
    return f"{counted(cases, 'case')}{of}" + (f", {judged.who}" if judged.who else "")


def counted(count: int, noun: str) -> str:
    """A number with its noun: 1 case, 2 cases."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def listed(names: Sequence[str]) -> str:
    """Names with commas and an "and"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def structures(found: Found) -> str:
    """What is segmented."""
    if found.instances:
        return "single objects"
    names = class_names(found.labels)[1:]
    return listed(names) or "structures"


def summary(found: Found) -> Iterator[str]:
    """The main things, a sentence or two each."""
    dims = found.settings.get("spatial_dims")
    kind = {2: "pictures", 3: "volumes"}.get(dims or 0, "images")
    name = found.name
    of = f" of the data set {name}" if name else ""
    done = {
        "inference": f"{structures(found).capitalize()} were segmented in {kind}{of}. Nobody has judged how "
        "well: there is no truth beside these results.",
        "study": f"Variants of a training were compared: networks to find {structures(found)} in {kind}{of}.",
        "training": f"A network was trained to find {structures(found)} in {kind}{of}.",
    }
    networks = counted(len(found.trainings), "network")
    yield done.get(found.kind, f"{networks} were trained to find {structures(found)} in {kind}{of}.")
    for place, judged in enumerate(found.judged):
        yield from _judged(judged, explain=place == 0)
    yield from _compared(found)


def _judged(judged: Judged, explain: bool) -> Iterator[str]:
    score, main = judged.scores[0], judged.main
    said = SCORES[score][1].split(";")[0]
    if main["class"] == OVERALL and "class" in judged.rows[0]:
        said = f"mean over the classes of each case, {said}"
    told = f" ({said})" if explain else ""
    yield f"{cases_of(judged)}: {called(score)} is {with_interval(main)} on average{told}."
    classes = [
        row for row in judged.means if row["score"] == score and row is not main and row["mean"] is not None
    ]
    if len(classes) > 1:
        least, most = (pick(classes, key=lambda row: row["mean"]) for pick in (min, max))
        yield (
            f"Of the classes {most['class']} is found best ({number(score, most['mean'])}) and "
            f"{least['class']} worst ({number(score, least['mean'])})."
        )
    if judged.ranked:
        (worst, low), *_, (best, high) = [*judged.ranked.items()] * 2
        yield f"The worst case is {worst} ({number(score, low)}), the best {best} ({number(score, high)})."
    if share := judged.about.get("annotated"):
        yield (STANDS_ON % f"{share:.2%}").capitalize() + "."


def _compared(found: Found) -> Iterator[str]:
    own = [row for row in found.compared if row["data"] == "own"]
    if len(own) < 2:
        return
    first, *others = own
    differing = [row["variant"] for row in others if row["differs"] == "True"]
    best = max(own, key=lambda row: row["mean"])
    yield (
        f"Of {counted(len(others), 'variant')} beside {first['variant']}, {len(differing)} differ from it by "
        f"more than chance (Wilcoxon's test over the cases, Holm's correction, p below 0.05)"
        + (f": {listed(differing)}." if differing else ".")
    )
    yield f"The best mean is that of {best['variant']} ({best['mean']:.4f})."


def caution(found: Found) -> Iterator[str]:
    """What the numbers do not say."""
    if found.judged:
        yield (
            "The interval says how much the mean would change with other cases of the same kind. It says "
            "nothing of other scanners, hospitals or stains."
        )
    if any(judged.fold_of for judged in found.judged):
        yield (
            "In cross-validation the epoch that was kept was chosen on the cases that it is judged by, which "
            "flatters a little; held-out cases were used for nothing."
        )
    yield "For research and teaching; not a medical device."


def plan_rows(found: Found) -> Iterator[Row]:
    """Each choice of the plan: "name", "called", "value", "planned" where another was set, and "why"."""
    settings, planned = found.config, found.data.plan
    minutes = settings.get("minutes")
    for name, why in found.plan.items():
        if minutes and name in LENGTH:  # which has no effect then
            continue
        own = _at(planned, name)
        value = _at(settings, name) if settings else own
        value = own if value is None else value
        row = {
            "name": name,
            "called": CALLED.get(name, name),
            "value": plain(value),
            "why": why,
            "planned": "",
        }
        if settings and own is not None and plain(own) != row["value"]:
            row["planned"] = plain(own)
        yield row
    if minutes and found.plan:
        row = {"name": "minutes", "called": "minutes of a training", "value": plain(minutes), "planned": ""}
        yield {**row, "why": "as given: a training times its steps here, and plans its epochs by them"}


def plain(value: Any) -> str:
    """A value for people, without the brackets of JSON."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str) or value in ([], None):
        return value or "none"
    if isinstance(value, list) and value and all(isinstance(part, list) for part in value):
        return "; ".join(map(plain, value))
    if isinstance(value, list) and value and all(isinstance(part, int | float) for part in value):
        return ", ".join(f"{part:g}" for part in value)
    if isinstance(value, Mapping) and "_target_" not in value:
        return ", ".join(f"{name} {part}" for name, part in value.items()) or "none"
    return told_value(value)


def _at(config: Mapping[str, Any], name: str) -> Any:
    """What a config has under an id, with one reference followed."""
    value: Any = config.get(name)
    for part in name.split("::") if value is None else ():
        value = (config if value is None else value).get(part) if isinstance(value, Mapping | None) else None
    if isinstance(value, str) and value.startswith("@"):
        return config.get(value[1:])
    return value


def methods(found: Found) -> Iterator[str]:
    """Sentences for the methods section of a paper, with the numbers of this run."""
    config = found.settings
    if not config:
        yield "Nothing beside these results says how they were made: give --recipe with the inference.json."
        return
    yield from _network(found, config)
    if found.trainings:
        yield from _training(found, config)
    yield from _afterwards(found)
    yield from _judging(found)
    versions = {name: found.facts.get(f"{name}_version") for name in ("monai", "pytorch", "numpy", "python")}
    known = [
        f"{ {'monai': 'MONAI', 'pytorch': 'PyTorch', 'numpy': 'NumPy', 'python': 'Python'}[name] } {value}"
        for name, value in versions.items()
        if value
    ]
    if known:
        yield f"Software: unet-bundle {found.facts.get('version', '')} with {listed(known)}."


def _network(found: Found, config: Mapping[str, Any]) -> Iterator[str]:
    network = config.get("network_def", {})
    kind = str(network.get("_target_", "")).rpartition(".")[2] if isinstance(network, Mapping) else ""
    dims, classes = config.get("spatial_dims"), class_names(dict(config.get("labels", {})))
    channels = _at(config, "network_def::channels")
    widths = (
        f" with {listed([str(part) for part in channels])} feature maps in its levels" if channels else ""
    )
    count = len(found.trainings) if found.ensemble else 1
    several = f" the mean of {counted(count, 'network')}, one of each fold; each is" if count > 1 else ""
    yield (
        f"Images were segmented with{several} a {dims}D network, {PAPERS.get(kind, kind)}{widths}, which "
        f"tells {len(classes)} classes apart ({', '.join(classes)})."
    )
    geometry = config.get("geometry")
    if dims == 3 and geometry and config.get("spacing"):
        yield f"Volumes were resampled to voxels of {_by(config['spacing'])} mm."
    elif geometry == []:
        yield "Images were not resampled."
    names = [_target(part) for part in config.get("normalise", []) if isinstance(part, Mapping)]
    if names:
        yield f"Intensities were {listed([NORMALISED.get(name, f'changed by {name}') for name in names])}."


def _afterwards(found: Found) -> Iterator[str]:
    """What is done with the probabilities: temperature, threshold and what is cleaned."""
    config = found.applied
    said = []
    if isinstance(calibration := config.get("calibration"), Mapping):
        told = plain(calibration.get("temperature"))
        said.append(f"logits were divided by a temperature ({told})")
    if isinstance(threshold := config.get("threshold"), int | float):
        said.append(f"the foreground is where its probability is above {threshold:g}")
    if isinstance(clean := config.get("clean"), Mapping):
        for name, settings in clean.items():
            parts = [CLEANED[key].format(value) for key, value in settings.items() if value]
            if parts:
                said.append(f"of {name} {listed(parts)}")
    learnt = ", as was chosen on the cases of all folds; their scores are without" if found.ensemble else ""
    if said:
        yield f"Afterwards {listed(said)}{learnt}."
    elif found.ensemble:
        yield "Probabilities were not calibrated, and nothing was cleaned."


#: What is done to a class, by the setting of `scripts.transforms.classes.Cleaning`.
CLEANED = {
    "largest": "the largest component alone was kept",
    "min_size": "components of fewer than {} voxels were removed",
    "max_hole": "holes of up to {} voxels were filled",
}


def _training(found: Found, config: Mapping[str, Any]) -> Iterator[str]:
    first = next((training for training in found.trainings if training.curve), found.trainings[0])
    counts = found.facts.get("data", {})
    if counts.get("training"):
        several = " in the first fold" if len(found.trainings) > 1 and found.kind != "study" else ""
        yield (
            f"It was trained on {counted(counts['training'], 'case')}{several} and validated on "
            f"{counted(counts.get('validation', 0), 'case')}."
        )
    patch, batch = config.get("patch_size"), config.get("batch_size")
    rate, decay = config.get("learning_rate"), config.get("weight_decay")
    optimizer, schedule = _target(config.get("optimizer")), _target(config.get("lr_scheduler"))
    parts = []
    if patch:
        parts.append(f"random patches of {_by(patch)} {'voxels' if len(patch) == 3 else 'pixels'}")
    if isinstance(batch, int):
        parts.append(f"{batch} in a step")
    if parts:
        yield f"It learnt from {', '.join(parts)}" + (_how_long(first) if first.curve else "") + "."
    if optimizer:
        yield (
            f"The optimizer was {optimizer}"
            + (f" with a learning rate of {rate:g}" if isinstance(rate, int | float) else "")
            + (f" and a weight decay of {decay:g}" if isinstance(decay, int | float) else "")
            + (f", which followed {SCHEDULES.get(schedule, schedule)}" if schedule else "")
            + "."
        )
    if loss := _target(config.get("loss")):
        yield f"The loss was {LOSSES.get(loss, loss).format(alpha=config.get('alpha'))}."
    yield from _augmentation(config)
    if first.best:
        yield f"The weights of the epoch with the best {metric_of(first)} on the validation cases were kept."


def _how_long(training: Training) -> str:
    steps = training.length.get("steps_per_epoch")
    each = f" of {counted(steps, 'step')}" if isinstance(steps, int) else ""
    return f", for {counted(training.epochs, 'epoch')}{each} ({training.minutes:.1f} minutes)"


def _numbers(given: Any) -> str:
    """A number, or one for each axis."""
    return ", ".join(f"{number:g}" for number in given) if isinstance(given, list | tuple) else f"{given:g}"


def _augmentation(config: Mapping[str, Any]) -> Iterator[str]:
    patch = config.get("patch")
    if not isinstance(patch, Mapping):
        return
    said = []
    if rotate := patch.get("rotate_range"):
        said.append(f"rotated by up to {_numbers(rotate)} radians")
    if scale := patch.get("scale_range"):
        said.append(f"scaled by {' to '.join(map(_numbers, scale))}")
    if config.get("flip_axes"):
        said.append("mirrored")
    if patch.get("elastic_prob"):
        said.append("deformed elastically")
    if said:
        yield f"Patches were randomly {listed(said)}, and their intensities changed."


def _judging(found: Found) -> Iterator[str]:
    for judged in found.judged:
        shown = [row for row in judged.means if row["class"] == judged.main["class"]][:4]
        folds = len(set(judged.fold_of.values()))
        how = f"By {folds}-fold cross-validation, " if folds else ""
        scores = "; ".join(
            f"{called(row['score'])} {with_interval(row)}" for row in shown if row["mean"] is not None
        )
        yield f"{how}{cases_of(judged)}: {scores}."
    if any(judged.main["low"] is not None for judged in found.judged):
        yield (
            f"Intervals are percentiles (2.5 and 97.5) of the mean over {DRAWS:,} bootstrap samples of the "
            "subjects, each with all its cases."
        )


def _target(component: Any) -> str:
    """The class of a component, or ""."""
    return str(component.get("_target_", "")).rpartition(".")[2] if isinstance(component, Mapping) else ""


def _by(sizes: Iterable[float]) -> str:
    return " x ".join(f"{size:g}" for size in sizes)


def failures(found: Found) -> Iterator[Row]:
    """What was not done or not found: "case" and "what"."""
    done = {row["case"] for row in found.sizes if row["size"] is not None}
    if done:
        yield from (
            {"case": case, "what": "has no segmentation"} for case in found.data.cases if case not in done
        )
    for judged in found.judged:
        left = found.of_which(judged)
        yield from ({"case": case, "what": "was not segmented or not scored"} for case in left)
        more = int(judged.about.get("not_scored", 0)) - len(left)
        if more > 0:
            yield {
                "case": f"{more} more",
                "what": f"could not be scored ({judged.name}); the log of the run names them",
            }
        first = judged.scores[0]
        for row in judged.rows:
            if row[first] == 0:
                what = "no object fits one that is there"
                if "class" in row:
                    what = f"the {row['class']} that was found and the true one share nothing"
                yield {"case": row["case"], "what": f"{called(first)} 0: {what}"}


def commands(found: Found) -> Iterator[tuple[str, str]]:
    """What each command does, and the command, with the paths of this run."""
    segment = "python -m monai.bundle run {} --dataset_dir NEW/IMAGES --output_dir OUT"
    if found.kind == "auto" and found.options:
        options = shlex.join([*_own(found.options), "--output_dir", str(found.run)])
        yield "All of it, again or on where it was cut", f"python -m bundle auto {options} --minutes MINUTES"
    if found.ensemble:
        given = shlex.join(["--args_file", str(found.ensemble)])
        yield "Segment new images with all networks", segment.format(given)
    elif found.kind == "training":
        given = shlex.join(["--config_file", str(found.run / "inference.json")])
        yield "Segment new images", segment.format(given)
    places = {"--dataset_dir": found.data.folder, "--recipe": found.recipe_file, "--output": found.output}
    named = [part for name, place in places.items() if place for part in (name, str(place))]
    yield "This report, again", f"python -m bundle report {shlex.join([str(found.run), *named])}"


#: Options of plan that `auto` sets itself.
SET_BY_AUTO = ("--folds", "--test_fraction", "--minutes")


def _own(options: Sequence[str]) -> list[str]:
    """Options of `auto` among those that it handed to plan."""
    kept = list(options)
    for name in SET_BY_AUTO:
        if name in kept:
            place = kept.index(name)
            del kept[place : place + 2]
    return kept


def curve_title(training: Training) -> str:
    """Above a learning curve."""
    best = training.best
    name = f"{training.name}: " if training.name else ""
    told = f"{name}{counted(training.epochs, 'epoch')}"
    if best:
        told += f", best {metric_of(training)} {best[training.metric]:.4f} in epoch {int(best['epoch'])}"
    return told


def metric_of(training: Training) -> str:
    """What its validation is called."""
    name = training.metric.removeprefix("val_")
    return "mean Dice" if name == "mean_dice" else called(name)
