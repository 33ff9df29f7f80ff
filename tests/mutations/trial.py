"""Make mutations, run what reads them, and judge what comes of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import tqdm

from tests.commands import unchanged_process
from tests.mutations.sandbox import MEMORY, Ending, run_in_child
from tests.mutations.trials import KINDS, Kind, make_material

#: Lines that Python writes before an error that nobody caught.
TRACEBACK = "Traceback (most recent call last)"

#: Configs and args files, which MONAI reads before anything of the bundle is there to say what is wrong.
CONFIGS = ("task.json", "args.json")

#: The first line of the log that is the bundle's.
STARTED = "starting: PyTorch"


#: What PyTorch seldom says in a forked child, whatever it does.
BY_FORK = "Invalid thread pool"


@dataclass(frozen=True)
class Found:
    """What came of a mutation.

    Attributes:
        number: of the mutation.
        kind: see `KINDS`.
        what: was done to the file.
        outcome: "done", "refused" or "wrong".
        wrong: what is wrong, or "".
        said: the last lines of the output, where something is wrong.
        seconds: that it took.
    """

    number: int
    kind: str
    what: str
    outcome: str
    wrong: str
    said: str
    seconds: float


def make_trials(
    seed: int, numbers: Iterable[int], processes: int = 1, keep: Path | None = None, kind: str | None = None
) -> list[Found]:
    """Make mutations and judge what comes of each.

    Args:
        seed: of all of them.
        numbers: which; number n is of the kind n modulo the number of kinds.
        processes: that share them.
        keep: where the inputs of what is wrong go.
        kind: only kinds whose name begins so.

    Returns:
        What was found, in the order of the numbers.
    """
    names = list(KINDS)
    chosen = [n for n in numbers if names[n % len(names)].startswith(kind or "")]
    torch.set_num_threads(1)
    tqdm.tqdm.monitor_interval = 0  # a thread, which a child would not have
    with tempfile.TemporaryDirectory(prefix="mutations_") as place:
        material = Path(place, "material")
        material.mkdir()
        with unchanged_process():
            make_material(material)
        for name in {names[n % len(names)] for n in chosen}:
            _warm_up(name, material, Path(place))
        workers = []
        for share in range(processes):
            worker = os.fork()
            if worker == 0:
                with Path(place, f"found{share}").open("w") as file:
                    for number in chosen[share::processes]:
                        found = _try(seed, number, material, Path(place), keep)
                        if found.wrong:
                            sys.stderr.write(f"{number} {found.kind} ({found.what}): {found.wrong}\n")
                        file.write(json.dumps(asdict(found)) + "\n")
                        file.flush()
                os._exit(0)
            workers.append(worker)
        for worker in workers:
            os.waitpid(worker, 0)
        texts = [Path(place, f"found{share}").read_text() for share in range(processes)]
        lines = [line for text in texts for line in text.splitlines()]
    return sorted((Found(**json.loads(line)) for line in lines), key=lambda each: each.number)


def _warm_up(name: str, material: Path, place: Path) -> None:
    """Refuse to begin where the sound material is not done rightly."""
    kind = KINDS[name]
    folder = Path(shutil.copytree(material, place / "sound"))
    (folder / "home").mkdir(exist_ok=True)
    ending = run_in_child(lambda: kind.enter(folder), folder)
    wrong = kind.judge(folder, folder / kind.file) if ending.status == 0 else f"status {ending.status}"
    shutil.rmtree(folder)
    if wrong:
        raise AssertionError(f"{name}, sound: {wrong}\n{ending.said}")


def _try(seed: int, number: int, material: Path, place: Path, keep: Path | None) -> Found:
    name = list(KINDS)[number % len(KINDS)]
    kind, rng = KINDS[name], np.random.default_rng([seed, number])
    folder = Path(shutil.copytree(material, place / f"trial{number}"))
    (folder / "home").mkdir(exist_ok=True)
    file = folder / kind.file
    before_file = file.read_bytes()
    for _ in range(10):
        what = kind.change(rng, file)
        if file.read_bytes() != before_file:
            break
    before, broken = _stamps(folder), file.read_bytes()
    ending = run_in_child(lambda: kind.enter(folder), folder)
    if BY_FORK in ending.said:
        ending = run_in_child(lambda: kind.enter(folder), folder)
    moved = file if file.exists() else folder / "out" / file.relative_to(folder / "run")
    wrong = _judge(kind, folder, moved, before, ending)
    outcome = "wrong" if wrong else "done" if ending.status == 0 else "refused"
    if wrong and keep:
        keep.mkdir(parents=True, exist_ok=True)
        (keep / f"{number}_{file.name}").write_bytes(broken)
        (keep / f"{number}.log").write_text(f"{name}\n{what}\n{wrong}\n{ending.said}")
    shutil.rmtree(folder)
    said = "\n".join(ending.said.splitlines()[-6:]) if wrong else ""
    return Found(number, name, what, outcome, wrong, said, ending.seconds)


def _stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file of a folder, with its size and when it was changed."""
    files = [path for path in folder.rglob("*") if path.is_file() or path.is_symlink()]
    return {str(path.relative_to(folder)): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in files}


def _judge(kind: Kind, folder: Path, file: Path, before: dict, ending: Ending) -> str:
    """What is wrong, or nothing."""
    said = ending.said
    if not ending.in_time:
        return "it hangs"
    if ending.status < 0:
        return f"it was killed by signal {-ending.status}"
    if ending.grown > MEMORY:
        return f"it took {ending.grown / 1e9:.1f} GB"
    early = kind.file in CONFIGS and STARTED not in said  # MONAI's own, of a config that it cannot read
    if TRACEBACK in said and not early:
        return "a traceback"
    after = _stamps(folder)
    stray = [
        name
        for name, stamp in after.items()
        if before.get(name) != stamp
        and not name.startswith(("out/", "home/"))
        and not name.endswith("checked.json")
    ]
    gone = [name for name in before if name not in after and not name.startswith("run/")]
    if stray or gone:
        return f"outside of output_dir: wrote {stray}, removed {gone}"
    half = [
        name for name in after if name.startswith("out/") and any(p.startswith(".") for p in Path(name).parts)
    ]
    if half:
        return f"half-written: {half}"
    if ending.status:
        if TRACEBACK not in said:
            errors = [line for line in said.splitlines() if re.match(r"error: .{20,}", line)]
            if not errors:
                return f"status {ending.status} without a sentence"
            named = (file.name, file.parent.name + "/", f"'{file.stem}'", "series_")
            if file.suffix != ".json" and not any(name in said for name in named):
                return f"the sentence does not name {file.name}"
    else:
        wrong = kind.judge(folder, file)
        if wrong:
            return wrong
    missing = [name for name in kind.always if not (folder / "out" / name).is_file()]
    return f"{missing} is not done" if missing else ""
