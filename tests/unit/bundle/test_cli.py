"""The command line: answers without heavy imports, and says no more and no less than what is carried out."""

from __future__ import annotations

import importlib
import inspect
from typing import get_args

import pytest

from bundle.cli import ContestName, FigureName, FormatName, Measure, TunedMeasure, app, read_ids
from bundle.data.phantom import Kind
from bundle.figures import FIGURES
from bundle.runs.trainings import SHOWN
from bundle.runs.tune import CLASS_MEASURES
from bundle.ship.export import FORMATS
from scripts.errors import InputError
from scripts.judging import INSTANCE_SCORES
from tests.commands import ROOT, command, invoke

COMMANDS = {info.callback.__name__: info.callback for info in app.registered_commands}
GROUPS = {
    "Data": ["phantom", "datalist", "plan", "corrupt", "sparsify"],
    "Train and judge": [
        "doctor",
        "score",
        "tune",
        "calibrate",
        "study",
        "crossval",
        "auto",
        "groups",
        "suggest",
        "why",
        "rounds",
        "report",
    ],
    "Ship": ["package", "verify", "export"],
    "DICOM": ["fetch", "store"],
    "Project": ["demo", "benchmark", "figures"],
}

#: Runs commands one after another and says what each has imported of what takes long.
WATCH = """
import sys
from bundle.__main__ import main
heavy = {"torch", "monai", "numpy", "scipy", "matplotlib", "nibabel", "skimage", "PIL", "pydicom", "ignite"}
for line in sys.argv[1:]:
    sys.argv = ["python -m bundle", *line.split()]
    try:
        main()
    except SystemExit as leaving:
        print(f"> {line}: {leaving.code} {sorted(heavy & set(sys.modules))}")
"""


def test_help_and_wrong_usage_import_nothing_heavy() -> None:
    ways = {
        "": 2,
        "--help": 0,
        **{f"{name} --help": 0 for name in COMMANDS},
        "tune --measure iou": 2,
        "tune --args_file a --output_dir o": "error: --checkpoint and --pred are both absent; predictions "
        "come from one; give one of them.",
        "tune --args_file a --output_dir o --checkpoint c --section training": "error: --section training "
        "goes with --pred; a --checkpoint predicts validation cases; drop it.",
        "score p t --measure membranes --label_name a=0": "error: --label_name names classes; --measure "
        "membranes has none; drop it.",
        "datalist --output_dir d --images i": "error: the source of the data is not clear; exactly one of "
        "--images with --labels, --nnunet and --msd is needed; give one.",
        "benchmark --device tpu": "error: --device is 'tpu': give cpu, cuda or cuda:1",
        "fetch http://a 1.2 --output_dir configs": "error: --output_dir configs is there already: name a new "
        "folder",
    }
    done = command("-c", WATCH, *ways, cwd=ROOT)
    said = [line[2:] for line in done.stdout.splitlines() if line.startswith("> ")]
    assert said == [f"{arguments}: {status} []" for arguments, status in ways.items()], done.stderr


def test_commands_stand_in_their_groups() -> None:
    lines = [line.strip("╭╮╰╯│─ ") for line in invoke("--help").output.splitlines()]
    words = [line.split("  ")[0] for line in lines if line in GROUPS or line.split("  ")[0] in COMMANDS]
    assert words == [word for group, names in GROUPS.items() for word in (group, *names)]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_the_arguments_of_what_carries_it_out(name: str) -> None:
    module = inspect.getclosurevars(COMMANDS[name]).nonlocals["module"]
    carries_out = inspect.signature(getattr(importlib.import_module(f"bundle.{module}"), name)).parameters
    assert list(carries_out) == list(inspect.signature(COMMANDS[name]).parameters)
    assert all(parameter.default is inspect.Parameter.empty for parameter in carries_out.values())


def test_names_that_can_be_given_are_those_there_are() -> None:
    def choices(name: str, argument: str) -> tuple[str, ...]:
        annotation = inspect.signature(COMMANDS[name], eval_str=True).parameters[argument].annotation
        return get_args(get_args(annotation)[0])

    assert list(FormatName) == list(FORMATS)
    assert list(FigureName) == list(FIGURES)
    assert list(get_args(Measure)) == list(SHOWN)
    assert choices("phantom", "kind") == tuple(Kind)
    assert list(get_args(TunedMeasure)) == [*INSTANCE_SCORES, "v_rand", *CLASS_MEASURES]
    for name in ContestName:
        assert callable(importlib.import_module(f"bundle.benchmark.{name}").contests)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            "export --bundle . --output_dir o --format tflite",
            "'--format': Value error, 'tflite' is not one of 'pt2'",
        ),
        ("export --bundle . --output_dir o --rounds 0", "'--rounds'"),
        ("figures --only unet3d --only unet", "'unet' is not one of 'unet2015'"),
        ("benchmark --only speed", "'speed' is not one of 'inference'"),
    ],
)
def test_wrong_usage_says_what_is_allowed(arguments: str, told: str) -> None:
    result = invoke(*arguments.split())
    assert result.exit_code == 2
    assert told in result.output


def test_ids_are_read_as_monai_reads_them() -> None:
    given = ["--max-epochs", "3", "--patch_size=[32, 48]", "--a::b", "$@c + 1", "--d", "-1e-3", "--e", "x=y"]
    expected = {"max_epochs": 3, "patch_size": [32, 48], "a::b": "$@c + 1", "d": -0.001, "e": "x=y"}
    assert read_ids(given) == expected


@pytest.mark.parametrize(
    "texts",
    [["3"], ["--max_epochs"], ["--a", "1", "2"], ["--a::", "1"], ["a", "1"], ["--a", "1", "--a", "2"]],
)
def test_what_is_no_id_with_a_value_is_refused(texts: list[str]) -> None:
    with pytest.raises(InputError, match=f"{' '.join(texts)} is not understood: write ids as --ID VALUE"):
        read_ids(texts)
