"""Hundreds of cases: the contest of a cohort, between inference and its network alone."""

from __future__ import annotations

from dataclasses import replace

import torch

from bundle.benchmark.cohort import SMALL_COHORTS, Cohort, contest
from bundle.benchmark.runner import CEILING, OURS, Contest

COHORTS = (Cohort(200, (36, 50, 36), (32, 48, 32)), Cohort(100, (192, 192, 128), (96, 96, 96)))


def contests(small: bool, device: torch.device) -> list[Contest]:
    """200 small volumes, and 100 large ones: what share of the time the network computes.

    Args:
        small: tiny sizes.
        device: not used: on the CPU, whatever it is.
    """
    return [_without_peers(contest(cohort)) for cohort in (SMALL_COHORTS if small else COHORTS)]


def _without_peers(whole: Contest) -> Contest:
    """The entries of ours and the ceiling: MONAI's components would take hours."""
    entries = {
        name: replace(entry, reference=None)
        for name, entry in whole.entries.items()
        if entry.origin in (OURS, CEILING)
    }
    return replace(whole, entries=entries)
