"""int8: of the contest of inference what OpenVINO computes in float32, in bf16 and in 8 bits.

`ONEDNN_MAX_CPU_ISA` makes the convolutions of PyTorch and OpenVINO those of a lesser processor; OpenVINO's
instance norm, a tenth of the time, does not heed it.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from bundle.benchmark import inference
from bundle.benchmark.runner import Contest, select
from scripts.errors import InputError


def contests(small: bool, device: torch.device) -> list[Contest]:
    """The contests of inference, with OpenVINO, PyTorch in float32 and what they are measured by.

    Args:
        small: tiny sizes.
        device: where to predict: "cpu".

    Raises:
        InputError: another device.
    """
    if device.type != "cpu":
        raise InputError(f"--device is {device}, and --only int8 compares what the CPU computes: give cpu")
    return [
        replace(
            select(contest, "^(openvino|torch, fp32)"),
            title=contest.title.replace("inference", "int8", 1),
        )
        for contest in inference.contests(small, device)
    ]
