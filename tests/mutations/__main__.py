"""`python -m tests.mutations`: break inputs and say what comes of it; exit status 1 if anything is wrong."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

from tests.mutations.trial import Found, make_trials


def say(text: str) -> None:
    """Print a line."""
    sys.stdout.write(f"{text}\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__)
    parser.add_argument("--seed", type=int, default=15)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of mutations to make alone")
    parser.add_argument("--kind", help="only kinds whose name begins so")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="folder for the inputs of what is wrong")
    options = parser.parse_args()
    began = time.monotonic()
    numbers = options.only or range(options.count)
    found = make_trials(options.seed, numbers, options.processes, options.keep, options.kind)
    say(summary(found))
    wrong = [each for each in found if each.wrong]
    for each in wrong:
        say(f"\n{each.number} {each.kind} ({each.what}): {each.wrong}\n{each.said}")
    minutes = (time.monotonic() - began) / 60
    say(f"\nseed {options.seed}, {len(found)} mutations in {minutes:.1f} minutes, {len(wrong)} wrong")
    sys.exit(1 if wrong else 0)


def summary(found: list[Found]) -> str:
    """A table of kinds and outcomes, in Markdown."""
    lines = ["| broken | mutations | done rightly | refused | wrong |", "|---|---|---|---|---|"]
    for kind in dict.fromkeys(each.kind for each in found):
        outcomes = Counter(each.outcome for each in found if each.kind == kind)
        counts = [outcomes[name] for name in ("done", "refused", "wrong")]
        lines.append(f"| {kind} | {sum(counts)} | " + " | ".join(map(str, counts)) + " |")
    outcomes = Counter(each.outcome for each in found)
    counts = [outcomes[name] for name in ("done", "refused", "wrong")]
    return "\n".join([*lines, f"| all | {sum(counts)} | " + " | ".join(map(str, counts)) + " |"])


if __name__ == "__main__":
    main()
