"""The commands of `python -m bundle`: their options, help and defaults, and which module carries each out.

Nothing heavy is imported here, so that help and wrong usage are answered at once. A function below has the
name and the arguments of the one in the module that its decorator names; that is imported when the command
runs. Its own body holds what can be refused by looking at the arguments alone.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import math
import re
import time
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from scripts.errors import InputError, few

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="The workbench around the bundle.",
)

#: Groups of commands in the help, in this order.
DATA, RUNS, SHIP, DICOM, PROJECT = "Data", "Train and judge", "Ship", "DICOM", "Project"

#: Where the commands of the project write unless told otherwise.
OWN_RUNS = Path(__file__).resolve().parents[1] / "runs"

#: When this process began, but for Python itself, by `time.monotonic`.
BEGUN = time.monotonic()

#: Minutes of a week. What is more was meant in another unit.
MOST_MINUTES = 7 * 24 * 60

#: What predictions are judged as.
Measure = Literal["classes", "instances", "membranes"]

#: What is tuned for: scores of instances, of cells behind membranes, of classes.
TunedMeasure = Literal[
    "ap50",
    "ap75",
    "ap",
    "precision50",
    "recall50",
    "f1_50",
    "pq",
    "sq",
    "rq",
    "seg",
    "v_rand",
    "dice",
    "surface_dice",
]

#: Cases of a data set.
Section = Literal["testing", "validation", "training"]

#: How images to annotate are drawn.
Strategy = Literal["entropy", "random"]

#: Names of which several can be given, for which typer wants an enumeration.
FormatName = StrEnum("FormatName", ["pt2", "onnx", "openvino", "openvino-int8", "tensorrt", "torchscript"])
StrategyName = StrEnum("StrategyName", ["entropy", "random"])
MethodName = StrEnum("MethodName", ["gradient", "smoothgrad", "occlusion"])
Corruption = StrEnum(
    "Corruption",
    "bias_field noise blur ringing inverted low_resolution ghosting motion clipped contrast empty "
    "flipped rotated cropped padded spacing",
)
Sparse = StrEnum("Sparse", "slices planes boxes scribbles")
ContestName = StrEnum(
    "ContestName",
    "inference int8 training augmentation weightmap metrics "
    "cohort hundreds classes start foreground prepared",
)
FigureName = StrEnum(
    "FigureName", ["unet2015", "unet3d", "residual", "tiles", "weights", "elastic", "instances"]
)

Timeout = Annotated[float, typer.Option("--timeout", min=0, help="Seconds of silence to wait")]
Url = Annotated[str, typer.Argument(help="DICOMweb root, such as http://127.0.0.1:8042/dicom-web")]
ArgsFile = Annotated[
    Path, typer.Option("--args_file", help="The experiment: an args file of `monai.bundle run`")
]
Ids = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="--ID VALUE", help="Ids of its configs and their values, as for `monai.bundle run`"
    ),
]
LabelNames = Annotated[
    list[str] | None,
    typer.Option(
        "--label_name", metavar="NAME=VALUE", help="A class and its value in the labels; one option a class"
    ),
]
DataFolder = Annotated[Path, typer.Option("--dataset_dir", help="Folder with dataset.json")]

# where data come from, and how they are split
Images = Annotated[Path | None, typer.Option("--images", help="Folder of images")]
Labels = Annotated[Path | None, typer.Option("--labels", help="Folder of their labels")]
NnUNet = Annotated[Path | None, typer.Option("--nnunet", help="nnU-Net raw folder (v1 or v2)")]
Msd = Annotated[Path | None, typer.Option("--msd", help="Medical Segmentation Decathlon folder")]
Folds = Annotated[
    int | None,
    typer.Option("--folds", help="Folds for cross-validation; 5, of fewer subjects as many as these"),
]
FoldsBy = Annotated[
    str | None,
    typer.Option(
        "--folds_by", help="Column of --attributes: a fold for each of its values, as for each site"
    ),
]
Segmenter = Annotated[
    Path, typer.Option("--recipe", help="The inference.json beside weights, or an args file that segments")
]
Attributes = Annotated[
    Path | None, typer.Option("--attributes", help="CSV with a column case, and one for each attribute")
]
SplitSeed = Annotated[int, typer.Option("--seed", help="Seed of folds and held-out cases")]
TestFraction = Annotated[float, typer.Option("--test_fraction", help="Share of cases held out")]
SubjectPattern = Annotated[
    str | None, typer.Option("--subject_pattern", help="Regex on the case id; its first group: the subject")
]
Subjects = Annotated[Path | None, typer.Option("--subjects", help="CSV with columns case,subject")]
Splits = Annotated[Path | None, typer.Option("--splits", help="JSON with fixed train, val, test ids")]
Instances = Annotated[bool, typer.Option("--instances", help="Labels number the instances")]
Ignore = Annotated[
    int | None, typer.Option("--ignore", help="Value in the labels of what nobody annotated; counts nowhere")
]


def command(group: str, module: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add a command: checks its arguments, then calls the function of its name in a module of `bundle`.

    Args:
        group: heading in the help.
        module: below `bundle`, such as "ship.export".
    """

    def add(checks: Callable[..., None]) -> Callable[..., None]:
        takes_ids = "ids" in inspect.signature(checks).parameters

        @app.command(rich_help_panel=group, context_settings={"ignore_unknown_options": takes_ids})
        @functools.wraps(checks)
        def run(**arguments: Any) -> None:
            for name, value in arguments.items():
                if isinstance(value, Path):  # a shell leaves the ~ of --output_dir=~/a
                    arguments[name] = value.expanduser()
            if takes_ids:
                arguments["ids"] = read_ids(arguments["ids"] or ())
            checks(**arguments)
            getattr(importlib.import_module(f"bundle.{module}"), checks.__name__)(**arguments)

        return run

    return add


def read_ids(texts: Sequence[str]) -> dict[str, Any]:
    """`["--max_epochs", "3"]` as `{"max_epochs": 3}`; all is read as `monai.bundle run` reads it.

    Raises:
        InputError: not pairs of an id and a value, or an id twice.
    """
    parts = [part for text in texts for part in (text.split("=", 1) if text[:2] == "--" else [text])]
    names, values = [name[:2] + name[2:].replace("-", "_") for name in parts[::2]], parts[1::2]
    once = len(set(names)) == len(names) == len(values)
    if not once or not all(re.fullmatch(r"--\w+(::\w+)*", name) for name in names):
        raise InputError(f"{' '.join(texts)} is not understood: write ids as --ID VALUE, each once")
    from fire.parser import DefaultParseValue

    return {name[2:]: DefaultParseValue(value) for name, value in zip(names, values, strict=True)}


@command(DATA, "data.phantom")
def phantom(
    kind: Annotated[
        Literal["cells", "cue", "organ", "heart"],
        typer.Argument(help="cells (2D), cue (2D, for why), organ or heart (3D, of few thick slices)"),
    ],
    output_dir: Annotated[Path, typer.Option("--output_dir", help="A new or empty folder")],
    cases: Annotated[int, typer.Option("--cases", help="How many cases, a fifth of them held out")] = 24,
    seed: Annotated[int, typer.Option("--seed", help="The same seed gives the same arrays")] = 0,
    size: Annotated[
        list[int] | None, typer.Option("--size", help="One option an axis: rows, columns or x, y, z")
    ] = None,
) -> None:
    """Write made-up data to try the bundle on: cells or discs with a cue (2D), an organ or hearts (3D)."""


@command(DATA, "data.datalist")
def datalist(
    output_dir: Annotated[Path, typer.Option("--output_dir", help="Where the files go")],
    images: Images = None,
    labels: Labels = None,
    nnunet: NnUNet = None,
    msd: Msd = None,
    folds: Folds = None,
    folds_by: FoldsBy = None,
    attributes: Attributes = None,
    seed: SplitSeed = 0,
    test_fraction: TestFraction = 0.0,
    subject_pattern: SubjectPattern = None,
    subjects: Subjects = None,
    splits: Splits = None,
    label_names: LabelNames = None,
    instances: Instances = False,
    ignore: Ignore = None,
) -> None:
    """Write dataset.json, task.json and experiment.json for images with labels, after reading every file."""
    require_one_source(images, labels, nnunet, msd)
    require_together(label_names, instances, subject_pattern, subjects)
    require_folds_by(folds_by, attributes, folds, splits)


@command(DATA, "data.datalist")
def plan(
    output_dir: Annotated[
        Path | None, typer.Option("--output_dir", help="Where the files go; --dataset_dir unless given")
    ] = None,
    images: Images = None,
    labels: Labels = None,
    nnunet: NnUNet = None,
    msd: Msd = None,
    dataset_dir: Annotated[
        Path | None, typer.Option("--dataset_dir", help="Folder with a dataset.json, which stays as it is")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option("--minutes", help="That the training may take; sets sizes")
    ] = None,
    memory_gb: Annotated[
        float | None, typer.Option("--memory_gb", help="That the training may take; sets sizes")
    ] = None,
    cores: Annotated[
        int | None, typer.Option("--cores", min=1, help="That train, with --minutes; those of this machine")
    ] = None,
    nnunet_plans: Annotated[
        Path | None, typer.Option("--nnunet_plans", help="An nnUNetPlans.json to take sizes and network from")
    ] = None,
    configuration: Annotated[
        str | None, typer.Option("--configuration", help="Of --nnunet_plans, such as 3d_fullres")
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Print all choices with their reasons")] = False,
    trial: Annotated[
        bool, typer.Option("--trial/--no-trial", help="Try a few steps and say how long it will take here")
    ] = True,
    folds: Folds = None,
    folds_by: FoldsBy = None,
    attributes: Attributes = None,
    seed: SplitSeed = 0,
    test_fraction: TestFraction = 0.0,
    subject_pattern: SubjectPattern = None,
    subjects: Subjects = None,
    splits: Splits = None,
    label_names: LabelNames = None,
    instances: Instances = False,
    ignore: Ignore = None,
) -> None:
    """Look at the data and plan a training: writes what datalist writes, for your minutes and memory."""
    if dataset_dir is None:
        require_one_source(images, labels, nnunet, msd, ", or --dataset_dir")
        if output_dir is None:
            raise InputError("--output_dir is missing; it says where the files go; give a folder.")
    elif any((images, labels, nnunet, msd)):
        raise InputError(
            f"--dataset_dir {dataset_dir} is a source of data, and so are --images, --labels, --nnunet "
            "and --msd; give one."
        )
    elif (folds, seed, test_fraction, instances, ignore) != (None, 0, 0.0, False, None) or any(
        (folds_by, attributes, subject_pattern, subjects, splits, label_names)
    ):
        raise InputError(
            f"--dataset_dir {dataset_dir} has its split and its labels in its dataset.json; leave out what "
            "sets others."
        )
    require_together(label_names, instances, subject_pattern, subjects)
    require_folds_by(folds_by, attributes, folds, splits)
    if (nnunet_plans is None) != (configuration is None):
        raise InputError(
            "--nnunet_plans and --configuration go together: give the file and which of its configurations."
        )
    require_minutes(minutes)
    require_memory_gb(memory_gb)


def require_predictions(checkpoint: Path | None, pred: Path | None, section: str | None) -> None:
    """Refuse no predictions, or two kinds of them.

    Raises:
        InputError: both a checkpoint and predictions, or none; a section of what is predicted now.
    """
    if (checkpoint is None) == (pred is None):
        given = "are both given" if pred else "are both absent"
        raise InputError(f"--checkpoint and --pred {given}; predictions come from one; give one of them.")
    if section and not pred:
        raise InputError(
            f"--section {section} goes with --pred; a --checkpoint predicts validation cases; drop it."
        )


def require_minutes(minutes: float | None) -> None:
    """Refuse minutes that no training takes.

    Raises:
        InputError: 0 or less, or more than a week.
    """
    if minutes is not None and not 0 < minutes <= MOST_MINUTES:
        raise InputError(
            f"--minutes is {minutes:g}; it takes more than 0 and a week, {MOST_MINUTES}, at most; correct it."
        )


def require_memory_gb(memory_gb: float | None) -> None:
    """Refuse a memory that no training takes.

    Raises:
        InputError: 0 or less, or no number.
    """
    if memory_gb is not None and not 0 < memory_gb < math.inf:
        raise InputError(f"--memory_gb is {memory_gb:g}; a training takes more than 0; correct it.")


def require_one_source(
    images: Path | None, labels: Path | None, nnunet: Path | None, msd: Path | None, other: str = ""
) -> None:
    """Refuse anything but one source of data.

    Raises:
        InputError: none, several, or half of one.
    """
    if (images is None) != (labels is None) or sum(part is not None for part in (images, nnunet, msd)) != 1:
        raise InputError(
            "the source of the data is not clear; exactly one of --images with --labels, --nnunet and --msd "
            f"is needed{other}; give one."
        )


def require_together(
    label_names: list[str] | None, instances: bool, subject_pattern: str | None, subjects: Path | None
) -> None:
    """Refuse options of a data list that exclude each other.

    Raises:
        InputError: two of them are given.
    """
    if instances and label_names:
        raise InputError("--label_name does not go with --instances, whose labels are numbers; drop one.")
    if subject_pattern is not None and subjects is not None:
        raise InputError(
            "--subject_pattern and --subjects both say who is who; one is allowed; drop the other."
        )


def require_folds_by(
    folds_by: str | None, attributes: Path | None, folds: int | None, splits: Path | None
) -> None:
    """Refuse folds by an attribute that lack its table, or stand beside another split.

    Raises:
        InputError: one without the other, or another split.
    """
    if (folds_by is None) != (attributes is None):
        raise InputError(
            "--folds_by and --attributes go together: give the table and the column that makes the folds."
        )
    other = f"--folds {folds}" if folds is not None else f"--splits {splits}"
    if folds_by is not None and (folds is not None or splits is not None):
        raise InputError(f"--folds_by {folds_by} makes the folds, and so does {other}: drop one.")


@command(DATA, "data.corrupt")
def corrupt(
    dataset_dir: DataFolder,
    output_dir: Annotated[Path, typer.Option("--output_dir", help="A new folder")],
    kind: Annotated[Corruption, typer.Option("--kind", help="What is done to the images")],
    strength: Annotated[
        int, typer.Option("--strength", min=1, max=3, help="From hardly seen to clearly")
    ] = 2,
    section: Annotated[Section, typer.Option("--section", help="Which cases")] = "testing",
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same images")] = 0,
) -> None:
    """Write cases of a data set with changed images: noise, blur, fields, motion, another contrast."""


@command(DATA, "data.sparsify")
def sparsify(
    dataset_dir: DataFolder,
    output_dir: Annotated[Path, typer.Option("--output_dir", help="A new folder")],
    kind: Annotated[Sparse, typer.Option("--kind", help="What stays annotated")],
    every: Annotated[
        int, typer.Option("--every", min=1, help="Of slices, and of slices with scribbles: one in so many")
    ] = 5,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same labels")] = 0,
) -> None:
    """Write a data set whose training and validation cases have few of their voxels annotated."""


@command(RUNS, "doctor")
def doctor(
    args_file: Annotated[
        Path | None, typer.Option("--args_file", help="The experiment; or --config_file among the ids")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One object on stdout, for programs")] = False,
    limit: Annotated[float, typer.Option("--limit", min=1, help="Seconds that a check may take")] = 600.0,
    ids: Ids = None,
) -> None:
    """Check environment, configs, data, memory and a few real steps before hours are spent; times all."""


@command(RUNS, "runs.score")
def score(
    pred: Annotated[Path, typer.Argument(help="Folder of predictions, or one file")],
    truth: Annotated[Path, typer.Argument(help="Folder of label files, or one file; see --section")],
    measure: Annotated[Measure, typer.Option("--measure", help="What is judged")] = "classes",
    output_dir: Annotated[
        Path | None, typer.Option("--output_dir", help="Where scores.csv and summary.json go")
    ] = None,
    label_names: LabelNames = None,
    tolerance: Annotated[
        float, typer.Option("--tolerance", help="Of the surface Dice, in mm or pixels (measure classes)")
    ] = 1.0,
    images: Annotated[
        Path | None, typer.Option("--images", help="Folder of images, to draw cases on (measure instances)")
    ] = None,
    section: Annotated[
        Section | None, typer.Option("--section", help="TRUTH has a dataset.json: its cases of this section")
    ] = None,
    ignore: Ignore = None,
) -> None:
    """Score predictions file by file, and all of them together."""
    if label_names and measure != "classes":
        raise InputError(f"--label_name names classes; --measure {measure} has none; drop it.")
    if ignore is not None and measure == "membranes":
        raise InputError(f"--ignore {ignore} goes with classes and instances, not with membranes; drop it.")
    if not 0 <= tolerance < math.inf:
        raise InputError(f"--tolerance is {tolerance}; it is a distance of 0 or more; correct it.")
    if images is not None and (measure != "instances" or output_dir is None):
        raise InputError(
            f"--images '{images}' is for pictures of cells; it goes with --measure instances and "
            "--output_dir; add both or drop it."
        )


@command(RUNS, "runs.tune")
def tune(
    args_file: ArgsFile,
    output_dir: Annotated[Path, typer.Option("--output_dir", help="Where the results go")],
    dataset_dir: Annotated[
        Path | None,
        typer.Option("--dataset_dir", help="Folder with dataset.json; that of the experiment if absent"),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", help="The model.pt of the training")
    ] = None,
    pred: Annotated[
        Path | None,
        typer.Option("--pred", help="Folder of CASE_prob.nii.gz to judge, in place of a --checkpoint"),
    ] = None,
    section: Annotated[
        Literal["training", "validation"] | None,
        typer.Option("--section", help="With --pred: whose cases; validation unless given"),
    ] = None,
    measure: Annotated[
        TunedMeasure | None,
        typer.Option("--measure", help="What should be highest; ap50 of instances, dice of classes"),
    ] = None,
    speed: Annotated[
        bool, typer.Option("--speed", help="How fast inference gets, at what loss in Dice: writes overlays")
    ] = False,
    cases: Annotated[
        int | None, typer.Option("--cases", min=1, help="With --speed: the first so many; all if absent")
    ] = None,
    ids: Ids = None,
) -> None:
    """Choose on validation cases how objects are numbered and classes cleaned, or with --speed inference."""
    if speed and measure:
        raise InputError(f"--measure {measure} is of post-processing; --speed judges by Dice; drop one.")
    require_predictions(checkpoint, pred, section)
    if speed and pred:
        raise InputError(f"--pred {pred} holds predictions; --speed makes some; give --checkpoint instead.")
    if cases and not speed:
        raise InputError(f"--cases {cases} goes with --speed; tune takes all cases; drop it.")


@command(RUNS, "runs.calibrate")
def calibrate(
    args_file: ArgsFile,
    output_dir: Annotated[Path, typer.Option("--output_dir", help="Where overlay, tables and picture go")],
    dataset_dir: Annotated[
        Path | None,
        typer.Option("--dataset_dir", help="Folder with dataset.json; that of the experiment if absent"),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", help="The model.pt of the training")
    ] = None,
    pred: Annotated[
        Path | None,
        typer.Option("--pred", help="Folder of CASE_prob.nii.gz to judge, in place of a --checkpoint"),
    ] = None,
    section: Annotated[
        Literal["training", "validation"] | None,
        typer.Option("--section", help="With --pred: whose cases; validation unless given"),
    ] = None,
    classwise: Annotated[
        bool, typer.Option("--classwise", help="A temperature and a bias for each class, not one temperature")
    ] = False,
    ids: Ids = None,
) -> None:
    """Learn on cases that a network did not see how to scale its probabilities so that they are right."""
    require_predictions(checkpoint, pred, section)


@command(RUNS, "runs.study")
def study(
    args_file: ArgsFile,
    dataset_dir: DataFolder,
    output_dir: Annotated[Path, typer.Option("--output_dir", help="Where runs, table and picture go")],
    measure: Annotated[Measure, typer.Option("--measure", help="What is judged")],
    seeds: Annotated[list[int], typer.Option("--seed", min=0, help="Repeatable")] = [0, 1, 2],
    variants: Annotated[
        Path | None,
        typer.Option("--variants", help="JSON with what to change, such as in bundle/runs/variants"),
    ] = None,
    section: Annotated[Section, typer.Option("--section", help="Which cases are judged")] = "testing",
    inferer: Annotated[
        Path | None, typer.Option("--inferer", help="An overlay for inference, such as configs/inferer's")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option("--minutes", help="As many steps as fit into them, by the time of one here"),
    ] = None,
    corrupt: Annotated[
        list[Corruption] | None,
        typer.Option("--corrupt", help="Repeatable: judge on changed images too, in three strengths"),
    ] = None,
    other: Annotated[
        list[Path] | None,
        typer.Option("--other", help="Repeatable: folder of a data set that is judged on too"),
    ] = None,
    ids: Ids = None,
) -> None:
    """Train every variant with every seed, judge all on all data, and compare them case by case."""
    require_minutes(minutes)


@command(RUNS, "runs.crossval")
def crossval(
    args_file: ArgsFile,
    output_dir: Annotated[Path, typer.Option("--output_dir", help="Where folds, tables and picture go")],
    dataset_dir: Annotated[
        Path | None,
        typer.Option("--dataset_dir", help="Folder with dataset.json; that of the experiment if absent"),
    ] = None,
    measure: Annotated[
        Measure | None,
        typer.Option("--measure", help="What is judged; instances or classes, as the experiment has it"),
    ] = None,
    ids: Ids = None,
) -> None:
    """Train every fold, judge each case by the network that did not see it, and make all one ensemble."""


@command(RUNS, "runs.auto")
def auto(
    output_dir: Annotated[Path, typer.Option("--output_dir", help="Data list, runs, scores, ensemble")],
    minutes: Annotated[float, typer.Option("--minutes", help="That all of it may take")],
    images: Images = None,
    labels: Labels = None,
    nnunet: NnUNet = None,
    msd: Msd = None,
    memory_gb: Annotated[
        float | None, typer.Option("--memory_gb", help="That a training may take; sets sizes")
    ] = None,
    subject_pattern: SubjectPattern = None,
    subjects: Subjects = None,
    label_names: LabelNames = None,
    instances: Instances = False,
    ignore: Ignore = None,
    ids: Ids = None,
) -> None:
    """From images and labels to an ensemble and its scores: plan, then crossval; stops and goes on."""
    require_one_source(images, labels, nnunet, msd)
    require_together(label_names, instances, subject_pattern, subjects)
    require_minutes(minutes)
    require_memory_gb(memory_gb)


@command(RUNS, "runs.groups")
def groups(
    scores: Annotated[
        Path,
        typer.Option("--scores", help="Folder of crossval, auto or an evaluation, or its table of cases"),
    ],
    attributes: Annotated[
        Path, typer.Option("--attributes", help="CSV with a column case, and one for each attribute")
    ],
    output_dir: Annotated[
        Path | None,
        typer.Option("--output_dir", help="Where table and picture go; beside the scores if absent"),
    ] = None,
    attribute: Annotated[
        list[str] | None, typer.Option("--attribute", help="Repeatable: a column; all unless given")
    ] = None,
    bands: Annotated[
        list[str] | None,
        typer.Option("--bands", metavar="NAME=A,B", help="Repeatable: groups of numbers, as age=40,60"),
    ] = None,
    score: Annotated[
        str | None, typer.Option("--score", help="A column of the scores; the one that counts unless given")
    ] = None,
    class_name: Annotated[
        str | None, typer.Option("--class", help="That is compared; the mean over all unless given")
    ] = None,
) -> None:
    """Compare the scores of groups of cases, as of sites or scanners: is a gap more than chance?"""


@command(RUNS, "runs.suggest")
def suggest(
    recipe: Segmenter,
    images: Annotated[Path, typer.Option("--images", help="Folder of images")],
    output_dir: Annotated[Path, typer.Option("--output_dir", help="Where the tables go")],
    labels: Annotated[
        Path | None, typer.Option("--labels", help="Folder of the labels so far; their images are left out")
    ] = None,
    number: Annotated[int, typer.Option("--number", min=1, help="How many images")] = 5,
    round_number: Annotated[
        int, typer.Option("--round", min=1, help="How often labels were added before, and one: chance falls")
    ] = 1,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same images")] = 0,
    strategy: Annotated[
        Strategy, typer.Option("--strategy", help="entropy: what the network is unsure of; or by chance")
    ] = "entropy",
    ids: Ids = None,
) -> None:
    """Say which images to annotate next: those that a network trained so far is unsure of."""


@command(RUNS, "runs.why")
def why(
    recipe: Segmenter,
    images: Annotated[
        list[Path], typer.Option("--image", help="The file; of channels in files of their own each in turn")
    ],
    output_dir: Annotated[Path, typer.Option("--output_dir", help="Where maps, table and picture go")],
    label_name: Annotated[
        str | None, typer.Option("--label_name", help="The class; what is found at the voxel if absent")
    ] = None,
    rather_than: Annotated[
        str | None, typer.Option("--rather_than", help="The class to hold it against; all others if absent")
    ] = None,
    at: Annotated[
        list[int] | None,
        typer.Option(
            "--at", help="One option an axis: a voxel of the file; the middle of the class if absent"
        ),
    ] = None,
    component: Annotated[
        bool, typer.Option("--component", help="Ask for all of the class that hangs together at the voxel")
    ] = False,
    methods: Annotated[list[MethodName], typer.Option("--method", help="Repeatable: how it is asked")] = [
        MethodName.smoothgrad,
        MethodName.occlusion,
    ],
    ids: Ids = None,
) -> None:
    """Say why there: which parts of an image a network looked at for a class and a place."""


@command(RUNS, "runs.rounds")
def rounds(
    args_file: ArgsFile,
    dataset_dir: DataFolder,
    output_dir: Annotated[Path, typer.Option("--output_dir", help="Where runs, table and picture go")],
    sizes: Annotated[
        list[int], typer.Option("--size", min=1, help="One option a round: training cases with a label")
    ] = [5, 10, 20, 30, 40],
    seeds: Annotated[list[int], typer.Option("--seed", min=0, help="Repeatable")] = [0, 1, 2],
    strategies: Annotated[
        list[StrategyName], typer.Option("--strategy", help="Repeatable: what is held against each other")
    ] = list(StrategyName),
    ids: Ids = None,
) -> None:
    """Play annotation in rounds on labelled cases: is `suggest` better than chance here?"""
    if sorted(set(sizes)) != sizes:
        raise InputError(f"--size is {few(sizes)}: give numbers that grow from round to round")


@command(RUNS, "report")
def report(
    run: Annotated[
        Path, typer.Argument(help="What auto, crossval, study, a training or an inference wrote: its folder")
    ],
    dataset_dir: Annotated[
        Path | None,
        typer.Option("--dataset_dir", help="Folder with dataset.json, or of images; auto has its own"),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option("--recipe", help="The inference.json that segmented, where the run has none"),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="The file to write; report.html in the folder if absent")
    ] = None,
) -> None:
    """Write what a run gave as one HTML file that needs no network: scores, curves, cases, methods."""
    if output is not None and output.suffix.lower() != ".html":
        raise InputError(f"--output {output} does not end with .html; a report is such a file; name one.")


@command(SHIP, "ship.package")
def package(
    args_file: ArgsFile,
    output_dir: Annotated[Path, typer.Option("--output_dir", help="Where the bundle and its zip go")],
    checkpoint: Annotated[
        Path | None,
        typer.Option("--checkpoint", help="The model.pt of the training; that of the args file unless given"),
    ] = None,
    card: Annotated[
        Path | None,
        typer.Option("--card", help="Texts of the bundle; bundle/ship/cards/NAME.json unless given"),
    ] = None,
    scores: Annotated[
        Path | None, typer.Option("--scores", help="summary.json of an evaluation, `score` or `crossval`")
    ] = None,
    large_files_url: Annotated[
        str | None, typer.Option("--large_files_url", help="Where files above 25 MB will lie")
    ] = None,
    ids: Ids = None,
) -> None:
    """Make a bundle for the Model Zoo from a trained experiment."""


@command(SHIP, "ship.verify")
def verify(
    bundle: Annotated[Path, typer.Argument(help="Folder of a bundle, or its zip")],
    show: Annotated[bool, typer.Option("--show", help="List all that the configs would execute")] = False,
    trust: Annotated[
        bool, typer.Option("--trust", help="You have read what `code` reports: run the last checks too")
    ] = False,
) -> None:
    """Check a bundle: files, metadata, ids, what it would execute, weights, network and inference."""


@command(SHIP, "ship.export")
def export(
    output_dir: Annotated[Path, typer.Option("--output_dir", help="Where files, table and picture go")],
    args_file: Annotated[Path | None, typer.Option("--args_file", help="The experiment; or --bundle")] = None,
    bundle: Annotated[Path | None, typer.Option("--bundle", help="Folder of a bundle")] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option("--checkpoint", help="Weights; those of the bundle or training if absent"),
    ] = None,
    formats: Annotated[
        list[FormatName] | None,
        typer.Option("--format", help="Repeatable; all but int8 unless given"),
    ] = None,
    dataset_dir: Annotated[
        Path | None, typer.Option("--dataset_dir", help="Folder with dataset.json: cases to judge by")
    ] = None,
    section: Annotated[Section, typer.Option("--section", help="Which cases")] = "validation",
    cases: Annotated[
        int | None, typer.Option("--cases", min=1, help="The first so many; all if absent")
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="How often each case is segmented")] = 3,
    ids: Ids = None,
) -> None:
    """Export a trained network to every format that this machine can, and compare each with PyTorch."""
    if (args_file is None) == (bundle is None):
        raise InputError("give one of --args_file, an experiment, and --bundle, the folder of a bundle")


@command(DICOM, "ship.archive")
def fetch(
    url: Url,
    series: Annotated[str, typer.Argument(help="SeriesInstanceUID")],
    output_dir: Annotated[Path, typer.Option("--output_dir", help="A folder that is not there yet")],
    timeout: Timeout = 60.0,
) -> None:
    """Fetch a series: its instances as 00001.dcm and on, whole or not at all."""
    if output_dir.exists():
        raise InputError(f"--output_dir {output_dir} is there already: name a new folder")


@command(DICOM, "ship.archive")
def store(
    url: Url,
    paths: Annotated[list[Path], typer.Argument(help="DICOM files, or folders of .dcm files")],
    timeout: Timeout = 60.0,
) -> None:
    """Store DICOM files; one that the archive refuses is named, and the others are stored."""


@command(PROJECT, "runs.demo")
def demo(
    output_dir: Annotated[
        Path, typer.Option("--output_dir", help="Folder of data, models and pictures")
    ] = OWN_RUNS / "demo",
) -> None:
    """Generate data, train, evaluate and segment in 2D and 3D; print every command and where to look."""


@command(PROJECT, "benchmark")
def benchmark(
    only: Annotated[
        list[ContestName], typer.Option("--only", help="Repeatable; all but hundreds by default")
    ] = [name for name in ContestName if name.value != "hundreds"],
    match: Annotated[str, typer.Option("--match", help="Regular expression for the entries' names")] = "",
    json_file: Annotated[Path | None, typer.Option("--json", help="Where to write all figures")] = None,
    rounds: Annotated[
        int, typer.Option("--rounds", min=1, help="Rounds that count, after one to warm up")
    ] = 5,
    small: Annotated[bool, typer.Option("--small", help="Tiny sizes, to see that everything runs")] = False,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:1")] = "cpu",
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Threads of every entry; all cores by default")
    ] = None,
) -> None:
    """Time this bundle beside its peers, in turns; print medians, ratios and shares of the machine's best."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise InputError(f"--device is {device!r}: give cpu, cuda or cuda:1")
    try:
        re.compile(match)
    except re.error as error:
        raise InputError(f"--match is {match!r}, no regular expression ({error}): give one") from None


@command(PROJECT, "figures")
def figures(
    only: Annotated[list[FigureName], typer.Option("--only", help="Repeatable")] = list(FigureName),
    output_dir: Annotated[Path, typer.Option("--output_dir", help="Where the PNG files go")] = OWN_RUNS
    / "figures",
    args_file: Annotated[
        Path | None, typer.Option("--args_file", help="Draw the network of this experiment instead")
    ] = None,
    ids: Ids = None,
) -> None:
    """Draw networks, tiles, the weight map, elastic deformation and wrong cells for docs/unet2015.md."""
    if args_file is None and ids:
        raise InputError(f"--{next(iter(ids))} is an id of an experiment: give --args_file too")
