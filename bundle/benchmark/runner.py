"""One contest: its entries take turns, each in a process of its own, so that only one ever computes.

Why processes: the allocator's settings, the number of threads, what a library switches on globally and the
peak of memory belong to a process. Why turns: whatever else slows the machine down meets all entries alike,
and the ratio of two entries is taken within a round.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import multiprocessing
import os
import re
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_map

from scripts.process import retain_memory

OURS = "ours"
CEILING = "ceiling"  # what the machine can do at best; no peer

#: Seconds that a round of one entry lasts at least: short work is repeated, and the mean taken.
LEAST_SECONDS = 0.3

#: A call of so many seconds needs none before it to warm up: the first one counts.
WARM_BY_ITSELF = 60.0

#: Which packages are installed how; every other peer is listed in requirements-benchmark.txt, without the
#: packages that it asks for, since some of those replace PyTorch.
RUNTIME_PACKAGES = ("nncf", "onnx", "onnxruntime", "onnxscript", "openvino")


@dataclass(frozen=True)
class Entry:
    """One way to do the work of a contest.

    Attributes:
        make: called in the entry's process: prepares everything and returns the work. What the work returns
            the first time is its outcome. A function of a module or a `functools.partial` of one.
        origin: whose way it is: OURS, CEILING or the name of a peer.
        allocator: "default", as the C library comes, or "tuned" by `scripts.process.retain_memory`.
        needs: packages it imports, beyond requirements.txt.
        work: how much one call does, in the unit in which the ceiling counts.
        ceiling: name of the entry whose work in a second is the most the machine can do.
        reference: name of the entry whose outcome this one's is compared with.
    """

    make: Callable[[], Callable[[], Any]]
    origin: str
    allocator: str = "default"
    needs: tuple[str, ...] = ()
    work: float = 1.0
    ceiling: str | None = None
    reference: str | None = None


@dataclass(frozen=True)
class Contest:
    """Entries that do the same work.

    Attributes:
        title: what is done.
        setting: sizes and everything else that all entries share.
        entries: by name, in the order of the turns and of the table.
        agreement: what `compare` gives, the title of its column.
        compare: outcome and the reference's outcome, as NumPy arrays, to a number.
        unit: of the table, "s" or "ms".
        threads: threads of every entry, or None for those of the command.
    """

    title: str
    setting: str
    entries: Mapping[str, Entry]
    agreement: str = ""
    compare: Callable[[Any, Any], float] | None = None
    unit: str = "s"
    threads: int | None = None


@dataclass
class Result:
    """What became of an entry.

    Attributes:
        seconds: of one call, one number a round.
        memory: peak of the process's memory, or of the GPU's where it computes there, in bytes.
        agreement: what the contest's `compare` gave.
        note: why there are no times: not installed, or the error.
    """

    seconds: list[float] = field(default_factory=list)
    memory: int = 0
    agreement: float | None = None
    note: str = ""


class Failure(Exception):
    """An entry's process reports an error, or ended."""


def run(
    contest: Contest,
    rounds: int,
    device: torch.device,
    threads: int,
    least_seconds: float = LEAST_SECONDS,
    tick: Callable[[str], None] = lambda name: None,
) -> dict[str, Result]:
    """Every entry once to warm up, then every entry once a round.

    Args:
        contest: what to run.
        rounds: rounds that count, 1 or more.
        device: where the entries compute.
        threads: threads of every entry, unless the contest has its own number.
        least_seconds: see LEAST_SECONDS.
        tick: called with an entry's name before each of its turns; for a progress bar.

    Returns:
        A result for every entry of the contest.
    """
    results = {name: Result(note=missing(entry.needs)) for name, entry in contest.entries.items()}
    # Processes that start from one which has imported everything are there at once.
    start = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(start)
    context.set_forkserver_preload([__name__])
    workers = {
        name: Worker(context, entry, device, contest.threads or threads, least_seconds)
        for name, entry in contest.entries.items()
        if not results[name].note
    }
    outcomes: dict[str, Any] = {}
    compared_with = {entry.reference for entry in contest.entries.values()}

    def each(what: Callable[[str, Worker], None]) -> None:
        """One turn of every entry; one that fails takes no more, and its result says why."""
        for name in list(workers):
            try:
                what(name, workers[name])
            except Failure as failure:
                results[name] = Result(note=f"failed: {failure}")
                workers.pop(name).stop()

    def warm_up(name: str, worker: Worker) -> None:
        tick(name)
        outcome = worker.ask(True)
        reference = contest.entries[name].reference
        if name in compared_with:
            outcomes[name] = outcome
        if contest.compare is not None and reference in outcomes:
            results[name].agreement = contest.compare(outcome, outcomes[reference])

    def measure(name: str, worker: Worker) -> None:
        tick(name)
        results[name].seconds.append(worker.ask(True))

    def finish(name: str, worker: Worker) -> None:
        results[name].memory = worker.ask(False)

    try:
        each(warm_up)
        outcomes.clear()
        for _ in range(rounds):
            each(measure)
        each(finish)
    finally:
        for worker in workers.values():
            worker.stop()
    return results


def select(contest: Contest, pattern: str) -> Contest:
    """The entries whose names match a regular expression, and those that they are measured by."""
    named = {name: entry for name, entry in contest.entries.items() if re.search(pattern, name)}
    others = {other for entry in named.values() for other in (entry.reference, entry.ceiling)}
    kept = {name: entry for name, entry in contest.entries.items() if name in named or name in others}
    return replace(contest, entries=kept)


def missing(packages: Sequence[str]) -> str:
    """How to install what is not installed, or nothing."""
    absent = [package for package in packages if find_spec(package) is None]
    if not absent:
        return ""
    if set(absent) <= set(RUNTIME_PACKAGES):
        return "not installed: pip install -r requirements-runtimes.txt"
    return "not installed: pip install --no-deps -r requirements-benchmark.txt"


def ratios(times: Mapping[str, Sequence[float]], ours: str) -> dict[str, float]:
    """How many times as long as one entry every other takes: the median over the rounds of their ratio.

    Args:
        times: seconds of every entry, one number a round.
        ours: the entry in the denominator.
    """
    return {
        name: statistics.median(one / own for one, own in zip(seconds, times[ours], strict=True))
        for name, seconds in times.items()
        if name != ours
    }


def ceiling_shares(contest: Contest, results: Mapping[str, Result]) -> dict[str, float]:
    """Work in a second against that of the ceiling, for every entry that has one."""
    shares = {}
    for name, entry in contest.entries.items():
        if entry.ceiling and results[name].seconds and results[entry.ceiling].seconds:
            best = contest.entries[entry.ceiling].work / statistics.median(results[entry.ceiling].seconds)
            shares[name] = entry.work / statistics.median(results[name].seconds) / best
    return shares


def summary(contest: Contest, results: Mapping[str, Result]) -> dict[str, Any]:
    """Everything about a contest, as JSON knows it; times in seconds, memory in bytes."""
    shares = ceiling_shares(contest, results)
    rows = []
    for name, entry in contest.entries.items():
        result = results[name]
        spread = dict.fromkeys(("median", "min", "max"))
        if result.seconds:
            functions = (statistics.median, min, max)
            spread = {key: f(result.seconds) for key, f in zip(spread, functions, strict=True)}  # type: ignore[operator]
        rows.append(
            {
                "name": name,
                "origin": entry.origin,
                "allocator": entry.allocator,
                "seconds": result.seconds,
                **spread,
                "memory": result.memory or None,
                "agreement": result.agreement,
                "ceiling_share": shares.get(name),
                "note": result.note,
            }
        )
    times = {name: result.seconds for name, result in results.items() if result.seconds}
    return {
        "title": contest.title,
        "setting": contest.setting,
        "unit": contest.unit,
        "agreement": contest.agreement,
        "entries": rows,
        "ratios": {name: ratios(times, name) for name in times if contest.entries[name].origin == OURS},
    }


def table(contest: dict[str, Any]) -> str:
    """A summary as a plain table; "x ours" is how many times as long as our fastest entry the others take."""
    ours = [row for row in contest["entries"] if row["origin"] == OURS and row["seconds"]]
    fastest = min(ours, key=lambda row: row["median"])["name"] if ours else None
    against = contest["ratios"].get(fastest, {})
    scale = {"s": 1.0, "ms": 1000.0}[contest["unit"]]
    shared = any(row["ceiling_share"] for row in contest["entries"])
    head = ["entry", "origin", "allocator", f"median {contest['unit']}", "min", "max", "x ours"]
    head += [*(["ceiling"] if shared else []), "memory"]
    head += [contest["agreement"]] if contest["agreement"] else []
    lines = []
    for row in contest["entries"]:
        cells = [row["name"], row["origin"], row["allocator"]]
        if row["seconds"]:
            times = [row[key] * scale for key in ("median", "min", "max")]
            cells += [f"{value:.0f}" if value >= 1000 else f"{value:.4g}" for value in times]
            ratio = 1.0 if row["name"] == fastest else against.get(row["name"])
            cells.append("" if row["origin"] == CEILING else _cell(ratio, "{:.2f}"))
            cells += [_cell(row["ceiling_share"], "{:.0%}")] if shared else []
            cells.append(_cell(row["memory"], "{:.2f} GiB", 2**30))
            cells += [_cell(row["agreement"], "{:.5g}")] if contest["agreement"] else []
        lines.append((cells, row["note"]))
    every = [head, *(cells for cells, _ in lines)]
    widths = [max((len(row[i]) for row in every if i < len(row)), default=0) for i in range(len(head))]

    def aligned(cells: Sequence[str]) -> str:
        pairs = list(zip(cells, widths, strict=False))
        left = "  ".join(cell.ljust(width) for cell, width in pairs[:3])
        return "  ".join([left, *(cell.rjust(width) for cell, width in pairs[3:])]).rstrip()

    body = [aligned(cells) + (f"  {note}" if note else "") for cells, note in lines]
    return "\n".join([contest["title"], contest["setting"], "", aligned(head), *body])


def _cell(value: float | None, form: str, divisor: float = 1) -> str:
    return "" if value is None else form.format(value / divisor)


class Worker:
    """An entry's process. It waits for each `ask`, so that the entries never compute at the same time."""

    def __init__(
        self, context: Any, entry: Entry, device: torch.device, threads: int, least_seconds: float
    ) -> None:
        self.connection, theirs = context.Pipe()
        arguments = (theirs, entry, device, threads, least_seconds)
        self.process = context.Process(target=_serve, args=arguments, daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, another: bool) -> Any:
        """The outcome at the first call, then the seconds of one round, at last, if not another, the memory.

        Raises:
            Failure: the entry failed, or its process ended.
        """
        self.connection.send(another)
        try:
            answer = self.connection.recv()
        except EOFError:
            self.process.join()
            raise Failure(f"its process ended with exit status {self.process.exitcode}") from None
        if isinstance(answer, Failure):
            raise answer
        return answer

    def stop(self) -> None:
        """End the process."""
        self.process.terminate()
        self.process.join()
        self.connection.close()


def _serve(
    connection: Connection, entry: Entry, device: torch.device, threads: int, least_seconds: float
) -> None:
    """What an entry's process does: one step for each message, until the message is False."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    if entry.allocator == "tuned":
        retain_memory()
    torch.set_num_threads(threads)
    if hasattr(os, "sched_setaffinity"):  # for libraries that count the processor's cores themselves
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    torch.manual_seed(0)
    np.random.seed(0)
    torch.backends.cudnn.benchmark = True
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        connection.recv()
        with contextlib.redirect_stdout(io.StringIO()):
            work = entry.make()
            outcomes: list[Any] = []
            first = _seconds(lambda: outcomes.append(work()), 1, device)
            rounds = [first] if first >= WARM_BY_ITSELF else []
            once = first if rounds else _seconds(work, 1, device)
        connection.send(tree_map(_plain, outcomes.pop()))
        calls = max(math.ceil(least_seconds / once), 1)
        while connection.recv():
            if not rounds:
                with contextlib.redirect_stdout(io.StringIO()):
                    rounds.append(_seconds(work, calls, device))
            connection.send(rounds.pop())
        connection.send(_peak_memory(device))
    except Exception as error:
        connection.send(Failure(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"))


def _plain(value: Any) -> Any:
    """What other processes can read: a tensor's numbers."""
    return value.detach().float().cpu().numpy() if isinstance(value, torch.Tensor) else value


def _seconds(work: Callable[[], Any], calls: int, device: torch.device) -> float:
    """Mean time of a call."""
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        work()
    synchronize()
    return (time.perf_counter() - start) / calls


def _peak_memory(device: torch.device) -> int:
    """Bytes of the GPU, or of the process: what it had in memory at most."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():  # ru_maxrss would count what the parent process had before
        lines = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def same_class(outcome: np.ndarray, reference: np.ndarray) -> float:
    """Share of the voxels whose most probable class is the same; logits (B, classes, *spatial)."""
    return float(np.mean(outcome.argmax(1) == reference.argmax(1)))


def largest_difference(outcome: Any, reference: Any) -> float:
    """Largest absolute difference; missing numbers agree with each other."""
    return float(np.nanmax(np.abs(np.asarray(outcome) - np.asarray(reference)), initial=0.0))
