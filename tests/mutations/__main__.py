"""`python -m tests.mutations`: break inputs and say what comes of it; exit status 1 if anything is wrong."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections import Counter
from datetime import date
from pathlib import Path

from tests.mutations.trial import Found, make_trials

HEADING = " ".join(
    (
        "# Mutations: the last report\n\nWritten by `make test-mutations`. Each breaks one file of a sound",
        "input: bytes are flipped, cut, grown, zeroed or doubled, fields of headers become huge, negative",
        "or NaN, keys go missing, come twice or hold another type. A real command then reads it, with a",
        "limit of memory and of time. It is done rightly (the result is that of the broken file as another",
        "reader sees it) or refused in a sentence that names it; never with a traceback, a file elsewhere",
        "than in `output_dir`, or one that is half written. The sound files beside it are done.\n",
    )
)


def changes(found: list[Found]) -> str:
    """A table of what was done to the files, and outcomes."""
    lines = ["| what was done | mutations | done rightly | refused | wrong |", "|---|---|---|---|---|"]
    kinds = sorted({each.what.split(":")[0] for each in found})
    for kind in kinds:
        outcomes = Counter(each.outcome for each in found if each.what.split(":")[0] == kind)
        counts = [outcomes[name] for name in ("done", "refused", "wrong")]
        lines.append(f"| {kind} | {sum(counts)} | " + " | ".join(map(str, counts)) + " |")
    return "\n".join(lines)


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
    parser.add_argument("--report", type=Path, help="Markdown file that tells what came of them")
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
    if options.report:
        machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors"
        facts = f"- {date.today()}, seed {options.seed}, {minutes:.0f} minutes, {machine}"
        options.report.write_text(f"{HEADING}\n{facts}\n\n{summary(found)}\n\n{changes(found)}\n")
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
