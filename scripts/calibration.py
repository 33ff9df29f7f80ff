"""Calibration: logits scaled so that of the voxels with a probability of 0.8 eight in ten are right.

`python -m bundle calibrate` learns it, the id `calibration` holds it, and the inferers apply it.

Sources: C. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017: one temperature.
M. Kull et al., "Beyond temperature scaling", NeurIPS 2019: class by class, on the logarithms of the
probabilities (their Dirichlet calibration with a diagonal matrix).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scripts.errors import InputError, few
from scripts.labels import class_names

#: What `calibration` holds.
TEMPERATURE, BIAS = "temperature", "bias"


@dataclass(frozen=True)
class Calibration:
    """Divides logits by a temperature.

    One temperature keeps the order of the classes in each voxel. One for each class, with a bias, does not:
    it scales the logarithms of the probabilities.

    Attributes:
        temperature: one for all classes, or one for each; above 0.
        bias: what is added to each class then; () for nothing.
    """

    temperature: tuple[float, ...]
    bias: tuple[float, ...] = ()

    def calibrate_(self, logits: Tensor, dim: int = 0) -> Tensor:
        """Scale logits, or logarithms of probabilities, in place.

        Args:
            logits: any shape, the classes along ``dim``.
            dim: their axis.

        Returns:
            The same tensor.

        Raises:
            InputError: as many temperatures as other classes.
        """
        if len(self.temperature) == 1 and not self.bias:
            return logits.div_(self.temperature[0])
        shape = [1] * logits.ndim
        shape[dim] = logits.shape[dim]
        if {len(self.temperature), len(self.bias) or shape[dim]} - {1, shape[dim]}:
            raise InputError(
                f"calibration has {len(self.temperature)} temperatures, the network {shape[dim]} classes: "
                "give the one that was learnt for these weights"
            )
        logits.sub_(logits.logsumexp(dim, keepdim=True))
        logits.div_(
            torch.tensor(self.temperature, device=logits.device, dtype=logits.dtype)
            .expand(shape[dim])
            .view(shape)
        )
        return (
            logits.add_(torch.tensor(self.bias, device=logits.device, dtype=logits.dtype).view(shape))
            if self.bias
            else logits
        )

    def of_probabilities(self, probabilities: Tensor, dim: int = 0) -> Tensor:
        """Calibrated probabilities of probabilities; the classes lie along ``dim``."""
        logs = probabilities.clamp_min(torch.finfo(torch.float32).tiny).log()
        return self.calibrate_(logs, dim).softmax(dim)

    def as_config(self, labels: Mapping[str, int]) -> dict[str, Any]:
        """The value of the id `calibration`."""
        names = class_names(dict(labels))
        several = len(self.temperature) > 1
        found: dict[str, Any] = {
            TEMPERATURE: dict(zip(names, self.temperature, strict=True)) if several else self.temperature[0]
        }
        return found | ({BIAS: dict(zip(names, self.bias, strict=True))} if self.bias else {})


def read_calibration(calibration: Mapping[str, Any] | None, labels: Mapping[str, int]) -> Calibration | None:
    """What the id `calibration` says; None for None.

    Args:
        calibration: "temperature", a number above 0 or one for each class by its name, and perhaps "bias", a
            number for each class.
        labels: name to value, the background first.

    Raises:
        InputError: it says something else.
    """
    if calibration is None:
        return None
    names = class_names(dict(labels))
    fix = "give what python -m bundle calibrate wrote for these weights, or null"
    if (
        not isinstance(calibration, Mapping)
        or set(calibration) - {TEMPERATURE, BIAS}
        or TEMPERATURE not in calibration
    ):
        raise InputError(
            f"calibration is {calibration!r}: it has a {TEMPERATURE} and perhaps a {BIAS}; {fix}"
        )
    read = {}
    for key, value in calibration.items():
        if isinstance(value, Mapping):
            if set(value) != set(names):
                raise InputError(
                    f"calibration::{key} names {few(list(map(str, value)))}, and labels {few(names)}: {fix}"
                )
            numbers = [value[name] for name in names]
        else:
            numbers = [value]
        least = 0.0 if key == TEMPERATURE else -math.inf
        if not all(is_number(number) and number > least for number in numbers) or (
            key == BIAS and not isinstance(value, Mapping)
        ):
            kind = (
                "one number above 0, or one for each class"
                if key == TEMPERATURE
                else "a number for each class"
            )
            raise InputError(f"calibration::{key} is {value!r}: it is {kind}; {fix}")
        read[key] = tuple(map(float, numbers))
    return Calibration(read[TEMPERATURE], read.get(BIAS, ()))


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
