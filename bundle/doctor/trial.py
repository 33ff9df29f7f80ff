"""Some real steps of a training, or some cases of an inference, and how long all of it is going to take.

The run is the user's own, with handlers, checkpoints and pictures: of its ids only those are changed that say
which cases, how many epochs and where results go. What it writes goes into a temporary folder.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

from ignite.engine import Engine, Events
from monai.utils import CommonKeys as Keys

from bundle.doctor.data import Case, Cases
from bundle.doctor.report import Finding, OutOfTimeError, Report, stop_ringing
from bundle.doctor.runs import Run
from scripts.compute.inferers import SlabInferer
from scripts.compute.length import Costs, plan
from scripts.data import CachedCases
from scripts.data.cases import InferenceCases
from scripts.data.checks import describe
from scripts.data.datalist import output_name
from scripts.data.room import Grids
from scripts.errors import InputError
from scripts.files import read_json

PART = "trial"

Chosen = list[tuple[Case, Grids | None]]

#: Cases that a trial trains on, steps of an epoch, and epochs: the first ones warm up, the last two count,
#: one of which is validated.
CASES, STEPS, EPOCHS, INTERVAL = 4, 4, 4, 2

#: Cases that are validated on, or segmented: the first one warms up.
SHOWN = 3

#: An epoch of a trial, and the cases after the first, end when they took so long. Seconds.
ENOUGH = 20.0


@dataclass
class Clock:
    """When what happened in a trial.

    Attributes:
        times: names of events, and seconds.
        losses: of the steps.
    """

    times: list[tuple[str, float]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def watch(self, engine: Engine, **events: Events) -> None:
        """Note events of an engine by the names given, after what else is done at them."""
        for name, event in events.items():
            engine.add_event_handler(event, self.note, name)

    def note(self, engine: Engine, name: str) -> None:
        """Write down that something happened; an epoch that has taken long enough ends."""
        self.times.append((name, time.perf_counter()))
        if name == "step":
            output: Any = engine.state.output
            self.losses.append(float((output[0] if isinstance(output, list) else output)[Keys.LOSS].detach()))
            begun = max(at for event, at in self.times if event == "begin")
            if self.times[-1][1] - begun > ENOUGH:
                engine.terminate_epoch()

    def spent(self, name: str) -> list[float]:
        """Seconds from the event before to each one of a name."""
        return [there - here for (_, here), (event, there) in pairwise(self.times) if event == name]

    def since(self, epochs: int) -> Clock:
        """What came after so many epochs; of fewer, after as many as there are but one."""
        ends = [place for place, (event, _) in enumerate(self.times) if event == "epoch"]
        ends = ends[:epochs] if self.times[-1][0] != "epoch" or epochs < len(ends) else ends[:-1]
        return Clock(self.times[ends[-1] :] if ends else self.times)

    def length(self) -> float:
        """Seconds from the first event to the last."""
        return self.times[-1][1] - self.times[0][1]


def read_chosen(file: str) -> dict[str, list[Case]]:
    """The cases of a trial, for its config: sections with their cases."""
    return read_json(Path(file))


def read_chosen_images(file: str, beside: bool) -> InferenceCases:
    """As `read_chosen`, of an inference; ``beside`` as in `InferenceCases`."""
    return InferenceCases(read_json(Path(file))["images"], beside=beside)


def check(report: Report, run: Run, cases: Cases, started: float) -> None:
    """Try a run on some of its cases.

    Args:
        report: gets the findings.
        run: sound as far as is known.
        cases: its cases.
        started: seconds that the imports took, which each run spends before it begins.
    """
    hook, path = sys.excepthook, list(sys.path)
    report.begin(PART, f"some real steps; {report.limit:g} s at most")
    try:
        with TemporaryDirectory(prefix="doctor-", ignore_cleanup_errors=True) as folder:
            if run.kind == "training":
                with report.check(PART, "training") as row:
                    _train(report, run, cases, Path(folder), row, started)
            else:
                with report.check(PART, run.kind) as row:
                    _infer(report, run, cases, Path(folder), row, started)
    finally:
        sys.excepthook, sys.path[:] = hook, path


def minutes(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"


def spread(known: Sequence[Any], count: int) -> list[Any]:
    """Some of many, evenly from small to large, without the very smallest and largest of more."""
    if len(known) <= count:
        return list(known)
    return [known[int((index + 0.5) * len(known) / count)] for index in range(count)]


def tiles(run: Run, shape: Sequence[int]) -> int:
    """Windows of an image, or its voxels where no inferer of ours predicts it."""
    inferer = run.part("inferer")
    inner = getattr(inferer, "inferer", inferer)
    if not isinstance(inner, SlabInferer):
        return math.prod(shape)
    spatial = tuple(int(n) for n in shape)
    layout = inner.windows(run.part("network_def"), spatial, inner.full_tile(spatial))
    return math.prod(map(len, layout.corners))


def _train(report: Report, run: Run, cases: Cases, folder: Path, row: Finding, started: float) -> None:
    chosen: Chosen = spread(cases.known("training"), CASES) or [
        (case, None) for case in cases.lists["training"][:CASES]
    ]
    held: Chosen = spread(cases.known("validation"), SHOWN) or [
        (case, None) for case in cases.lists["validation"][:SHOWN]
    ]
    file = _write(folder, training=chosen, validation=held, testing=[])
    batch, repeats = run.part("batch_size"), run.part("samples_per_case")
    trial = run.changed(
        split={"_target_": f"{__name__}.read_chosen", "file": file},
        output_dir=str(folder / "output"),
        checkpoint=str(folder / "output" / "model.pt"),
        resume=False,
        minutes=None,
        max_epochs=EPOCHS,
        val_interval=INTERVAL,
        patience=EPOCHS,
        samples_per_case=math.ceil(STEPS * batch / len(chosen)),
        steps_per_epoch=None,
    )
    trial.part("set_up")
    begun = time.perf_counter()
    for name in ("train::dataset", "validate::dataset"):
        if isinstance(data := trial.part(name), CachedCases):
            data.fill()
    caching = time.perf_counter() - begun
    trainer, evaluator = trial.part("train::trainer"), trial.part("validate::evaluator")
    clock = Clock()
    clock.watch(
        trainer, begin=Events.EPOCH_STARTED, step=Events.ITERATION_COMPLETED, epoch=Events.EPOCH_COMPLETED
    )
    clock.watch(
        evaluator, validate=Events.STARTED, case=Events.ITERATION_COMPLETED, validated=Events.COMPLETED
    )
    cut = False
    try:
        trainer.run()
    except OutOfTimeError:
        if not clock.losses:
            raise
        stop_ringing()
        cut = True

    bad = next((index for index, loss in enumerate(clock.losses) if not math.isfinite(loss)), None)
    row.values["losses"] = [
        loss if math.isfinite(loss) else str(loss) for loss in clock.losses
    ]  # JSON has no NaN
    if bad is not None:
        raise InputError(
            f"the loss is {clock.losses[bad]} at step {bad + 1}: lower learning_rate, or look at the "
            "intensities of the images and at normalise"
        )
    voxels = {
        "chosen": _voxels(chosen + held),
        "all": _voxels([*cases.known("training"), *cases.known("validation")]),
    }
    cached = caching * (voxels["all"] / voxels["chosen"] if voxels["chosen"] else 1)

    last = clock.since(EPOCHS - INTERVAL)
    step, ends = fmean(last.spent("step") or clock.spent("step")), last.spent("epoch") or [0.0]
    seconds = last.spent("case")
    validation = 0.0
    if seconds:
        validation = _of_cases(run, held, cases.lists["validation"], cases, seconds)
        validation += sum(last.spent("validated")) + max(ends[-1] - ends[0], 0.0)
    warm = 0.0 if cut else max(clock.length() - 2 * last.length(), 0.0)
    steps = run.part("steps_per_epoch") or math.ceil(len(cases.lists["training"]) * repeats / batch)
    epochs, interval = run.part("max_epochs"), run.part("val_interval")
    if (given := run.part("minutes")) is not None:
        length = plan(60 * given - cached - warm, Costs(step, ends[0], validation))
        if length is None:
            raise InputError(
                f"minutes is {given:g}, and here {minutes(cached + warm)} go by beside the steps, a step "
                f"takes {step:.3g} s and a validation {validation:.3g} s: give more"
            )
        epochs, steps, interval = astuple(length)
    validations = (epochs // interval + bool(epochs % interval)) * bool(held)
    total = started + cached + warm + epochs * (steps * step + ends[0]) + validations * validation
    row.values |= {
        "seconds": {
            "start": started,
            "caching": cached,
            "step": step,
            "validation": validation,
            "epoch_end": ends[0],
            "warm_up": warm,
            "total": total,
        },
        "steps": steps,
        "epochs": epochs,
        "validations": validations,
    }
    row.found = (
        f"{epochs} epoch{'s' * (epochs != 1)}: about {minutes(total)} here ({steps} step(s) of {step:.2g} s "
        f"in an epoch, {validations} validation(s) of {minutes(validation)}, caching {minutes(cached)}); "
        f"the loss went from {clock.losses[0]:.3f} to {clock.losses[-1]:.3f} in {len(clock.losses)} steps"
    )
    if cut:
        row.status = "warning"
        row.found += f"; the trial was not done within {report.limit:g} s, so that this is a guess"
        row.fix = "give it more with --limit"


def _infer(report: Report, run: Run, cases: Cases, folder: Path, row: Finding, started: float) -> None:
    listed = cases.lists["images"]
    chosen: Chosen = spread(cases.known("images"), SHOWN) or [(case, None) for case in listed[:SHOWN]]
    trial = run.changed(
        cases={
            "_target_": f"{__name__}.read_chosen_images",
            "file": _write(folder, images=chosen),
            "beside": run.part("cases").beside,
        },
        output_dir=str(folder / "output"),
        checkpoint=run.part("checkpoint"),
    )
    trial.part("set_up")
    evaluator = trial.part("evaluator")
    clock = Clock()
    clock.watch(evaluator, begin=Events.STARTED, case=Events.ITERATION_COMPLETED)
    cut = False
    try:
        evaluator.run()
    except OutOfTimeError:
        if len(clock.times) < 2:
            raise
        stop_ringing()
        cut = True
    problems = trial.part("cases").problems
    if problems:
        raise InputError(describe(problems, f"{len(problems)} of {len(chosen)} cases failed:"))
    seconds = clock.spent("case")
    total = started + _of_cases(run, chosen, listed, cases, seconds)
    row.values |= {"seconds": {"start": started, "cases": seconds, "total": total}, "cases": len(listed)}
    row.found = (
        f"{len(listed)} case(s): about {minutes(total)} here ({chosen[len(seconds) - 1][0]['case']} took "
        f"{seconds[-1]:.2g} s, the first one {seconds[0]:.2g} s)"
    )
    if run.kind == "inference":  # the last one of a trial that was cut may not be written yet
        _compare(cases, chosen[: len(seconds) - cut], folder / "output", row)
    if cut:
        row.status = "warning"
        row.found += f"; the trial was not done within {report.limit:g} s, so that this is a guess"
        row.fix = "give it more with --limit"


def _compare(cases: Cases, chosen: Chosen, output: Path, row: Finding) -> None:
    """Whether there is a result of each case, on its own grid."""
    results = [file for file in sorted(output.rglob("*")) if file.is_file()]
    for case, grids in chosen:
        own = [file for file in results if file.name.startswith(output_name(case["case"]))]
        if not own:
            raise InputError(f"{case['case']} was segmented, and nothing was written: give save a writer")
        found = (
            cases.room.grids({"image": str(own[0]), "case": case["case"]})
            if cases.room.finder is None
            else None
        )
        if grids is not None and found is not None and found.shape != grids.shape:
            raise InputError(
                f"{case['case']} has {list(grids.shape)} voxels and its result {list(found.shape)}: keep "
                "Invertd in restore, which brings it back to the grid of the file"
            )
    row.values["written"] = len(results)


def _write(folder: Path, **sections: Chosen) -> str:
    """Write the chosen cases, and give the file."""
    file = folder / "chosen.json"
    content = {name: [dict(case) for case, _ in chosen] for name, chosen in sections.items()}
    file.write_text(json.dumps(content), encoding="utf-8")
    return str(file)


def _voxels(pairs: Sequence[tuple[Case, Grids | None]]) -> int:
    return sum(math.prod(grids.seen_shape) for _, grids in pairs if grids is not None)


def _of_cases(
    run: Run, chosen: Chosen, listed: Sequence[Case], cases: Cases, seconds: Sequence[float]
) -> float:
    """Seconds that all cases take, by what some took; the first one of these warmed up.

    Args:
        run: whose inferer counts windows.
        chosen: the cases that were tried, in their order, perhaps not all of them.
        listed: all cases.
        cases: their grids.
        seconds: of those that were tried.
    """
    tried = [_windows(run, grids) for _, grids in chosen][: len(seconds)]
    known = [_windows(run, cases.grids[case["case"]]) for case in listed if case["case"] in cases.grids]
    total = sum(known) * len(listed) / len(known) if known else len(listed)
    if len(tried) == 1:
        return seconds[0] / tried[0] * total
    each = sum(seconds[1:]) / sum(tried[1:])
    return max(seconds[0] - each * tried[0], 0.0) + each * total


def _windows(run: Run, grids: Grids | None) -> int:
    return 1 if grids is None else tiles(run, grids.seen_shape)
