"""What is said of an error that a user can mend."""

from __future__ import annotations

import errno
import os
import re

import pytest
import torch
from monai.bundle import ConfigParser

from scripts.errors import InputError, told


def test_what_is_told_of_a_full_disk_that_nobody_expected():
    error = OSError(errno.ENOSPC, "No space left on device", "scores.npz")
    wrapped = RuntimeError("a transform failed")
    wrapped.__cause__ = error
    assert str(told(wrapped)).startswith("scores.npz could not be written, as its disk is full: make room")
    assert told(InputError("fold is 9")) == "fold is 9"
    assert told(RuntimeError("a bug")) is None


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            {"_target_": "torch.nn.Conv3d", "in_channels": -1, "out_channels": 2, "kernel_size": 1},
            r"torch\.nn\.Conv3d cannot be made of in_channels, out_channels, kernel_size as the configs "
            r"have it \(RuntimeError: .*negative dimension",
        ),
        ({"_target_": "torch.nn.Conv9d"}, r"_target_ in a config names nothing .*torch\.nn\.Conv9d"),
        ({"_target_": "scripts.networks.UNet"}, None),  # ours say it themselves
    ],
)
def test_a_component_that_its_values_do_not_make_is_told(config: dict, sentence: str | None) -> None:
    with pytest.raises((RuntimeError, ModuleNotFoundError)) as caught:
        ConfigParser({"network": config}).get_parsed_content("network")
    said = told(caught.value)
    assert said is None if sentence is None else re.match(sentence, str(said))


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (errno.EACCES, "a/b.pt cannot be used (Permission denied): correct the path, or mend its rights"),
        (errno.ENAMETOOLONG, "a/b.pt cannot be used (File name too long): correct the path"),
        (errno.ENOENT, None),  # ours look first whether a file is there
    ],
)
def test_what_the_system_says_of_a_path_is_told(number: int, sentence: str | None) -> None:
    error = RuntimeError("a component failed")
    error.__cause__ = OSError(number, os.strerror(number), "a/b.pt")
    said = told(error)
    assert said is None if sentence is None else str(said).startswith(sentence)


@pytest.mark.parametrize(
    ("expression", "sentence"),
    [
        ("$1/0", "the expression '$1/0' of a config fails (ZeroDivisionError: division by zero): correct it"),
        ("$torch.device('tpu7')", "the expression \"$torch.device('tpu7')\" of a config fails (RuntimeErr"),
        ("$nobody", "the expression '$nobody' of a config fails (NameError: name 'nobody' is not defined)"),
        ("$json.loads('{')", None),  # what it calls fails
    ],
)
def test_an_expression_that_fails_is_told(expression: str, sentence: str | None) -> None:
    imports = ["$import torch", "$import json"]
    parser = ConfigParser({"imports": imports, "width": expression, "run": ["$print(@width)"]})
    with pytest.raises(RuntimeError) as caught:
        parser.get_parsed_content("run")
    said = told(caught.value)
    assert said is None if sentence is None else str(said).startswith(sentence)


@pytest.mark.parametrize(
    "norm", [torch.nn.BatchNorm2d(3), torch.nn.InstanceNorm2d(3), torch.nn.GroupNorm(3, 3)], ids=repr
)
def test_a_norm_of_a_single_value_is_told(norm: torch.nn.Module) -> None:
    """As PyTorch says it, whichever network it is in."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - what it says is told
        norm(torch.zeros(1, 3, 1, 1))
    said = str(told(caught.value))
    assert re.match(
        r"a norm of the network has no statistics of one value .*, of a map \[1.*\]: give a", said
    )
