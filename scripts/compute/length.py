"""How long a training is: in epochs, as the config says, or in minutes, by the time of its steps here.

With minutes a training begins with some of its own steps and validation cases, timed. As many steps follow as
fit into the minutes beside start, loading, validations and checkpoints. They are cut into epochs of one
length, so that the schedule of the learning rate, which takes a step an epoch, reaches its end in time.
Weights, optimizer, statistics of norms and random generators are put back: the training is the one that the
same numbers give by hand.

`length.json` in the output folder keeps what came out. A training that goes on keeps to it, whatever the
clock says by then.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import random
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass
from itertools import cycle, islice
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Any, TypeVar

import monai
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import list_data_collate
from monai.engines import Evaluator, SupervisedEvaluator, SupervisedTrainer, Trainer, Workflow
from torch import nn

from scripts import locks
from scripts.checkpoints import is_first, save_checkpoint, unwrap
from scripts.data.dataset import EpochSampler
from scripts.errors import InputError
from scripts.files import atomic_write, read_json, workshop
from scripts.machine import machine
from scripts.process import gather, rank_and_size
from scripts.settings import CONFIGS, running

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: What came out, in the output folder.
FILE = "length.json"

#: How often a training of so many steps is validated, and how many epochs it has at least (where it has so
#: many steps) and at most: the learning rate follows its schedule in as many stairs.
VALIDATIONS, FEWEST, MOST = 6, 20, 60

#: Share of the time that validations may take; there are fewer of them where they are slow, but one.
VALIDATING = 0.2

#: Steps that warm up, most that count, and cases of a validation: the first of several warms up.
WARM, STEPS, CASES = 2, 50, 3

#: Steps are timed, and so are cases, until they have taken this share of the time, within these seconds.
TRIAL, TRIAL_SECONDS = 0.04, (1.0, 30.0)

#: So many times what is too little is enough: a longer training is tried for longer.
MARGIN = 1.2

#: Seconds of what follows a validation beside its weights: pictures, curve and scalars.
PICTURES = 1.0


@dataclass(frozen=True)
class Plan:
    """The length of a training.

    Attributes:
        max_epochs: epochs.
        steps_per_epoch: steps of each.
        val_interval: epochs between two validations.
    """

    max_epochs: int
    steps_per_epoch: int
    val_interval: int

    @property
    def steps(self) -> int:
        """Steps of all epochs."""
        return self.max_epochs * self.steps_per_epoch


#: Ids of the config that a plan stands for.
LENGTH = tuple(Plan.__dataclass_fields__)


@dataclass(frozen=True)
class Costs:
    """What the parts of a training take here.

    Attributes:
        step: seconds of a step, with the drawing of its samples as far as it is waited for.
        epoch: seconds of the checkpoint at the end of an epoch.
        validation: seconds of a validation of all cases and what follows it.
        load: seconds of a case that is loaded to be held in memory.
        cases: how many of those are not there yet.
        loads: how many are loaded in a step, at most.
    """

    step: float
    epoch: float = 0.0
    validation: float = 0.0
    load: float = 0.0
    cases: int = 0
    loads: int = 1

    def seconds(self, epochs: int, length: int, validations: int) -> float:
        """Of a training of so many epochs of one length."""
        loaded = min(self.cases, epochs * length * self.loads)
        return epochs * (length * self.step + self.epoch) + validations * self.validation + loaded * self.load


def whole_epochs(steps: int) -> tuple[int, int]:
    """Epochs of one length that make so many steps, or hardly fewer: the number of epochs, and the length.

    At most one step in 60 is lost, and of a thousand or more one in 150.
    """
    if steps <= MOST:
        return steps, 1
    lengths = range(-(-steps // MOST), steps // FEWEST + 1)
    length = min(lengths, key=lambda length: steps % length)  # of equals the shortest
    return steps // length, length


def cut(steps: int, validations: int = VALIDATIONS) -> Plan:
    """The plan of so many steps, or hardly fewer, with so many validations at most; see `whole_epochs`."""
    epochs, length = whole_epochs(steps)
    return Plan(epochs, length, max(math.ceil(epochs / validations), 1))


def plan(seconds: float, costs: Costs) -> Plan | None:
    """The longest training that takes so many seconds at most; None where FEWEST steps do not fit."""
    if seconds < least(costs):
        return None
    validations = next(
        count
        for count in range(VALIDATIONS, 0, -1)
        if count == 1
        or (count * costs.validation <= VALIDATING * seconds and costs.seconds(FEWEST, 1, count) <= seconds)
    )
    candidates = range(FEWEST, max(math.floor(seconds / costs.step), FEWEST) + 1)
    fitting = bisect_right(
        candidates, seconds, key=lambda steps: costs.seconds(*whole_epochs(steps), validations)
    )
    return cut(candidates[max(fitting - 1, 0)], validations)


def least(costs: Costs) -> float:
    """Seconds of the shortest training that is planned: FEWEST steps, and a validation."""
    return costs.seconds(FEWEST, 1, 1)


class Length:
    """The length of a training, for all parts of the config that depend on it.

    Args:
        minutes: that the training takes from the start of the run to its end, or None.
        max_epochs: epochs without minutes.
        steps_per_epoch: see `scripts.data.EpochSampler`, without minutes.
        val_interval: epochs between two validations without minutes.
        output_dir: gets `length.json`, with minutes.
        resume: whether the training in ``output_dir`` goes on.

    Attributes:
        max_epochs: epochs.
        steps_per_epoch: steps of an epoch; None: as many as the cases give.
        val_interval: epochs between two validations.

    Raises:
        InputError: the minutes are too few for any training; the training that goes on was planned for
            others, or nothing says how it was planned.
    """

    def __init__(
        self,
        minutes: float | None,
        max_epochs: int,
        steps_per_epoch: int | None,
        val_interval: int,
        output_dir: str,
        resume: bool = False,
    ) -> None:
        self.max_epochs, self.steps_per_epoch, self.val_interval = max_epochs, steps_per_epoch, val_interval
        if minutes is not None:
            folder = Path(output_dir)
            last = folder / "checkpoints" / "last.pt"
            goes_on = resume and last.exists()
            found = _before(folder / FILE, minutes, last) if goes_on else _measured(minutes, folder)
            self.max_epochs, self.steps_per_epoch, self.val_interval = astuple(found)
            logger.info(
                "minutes: max_epochs %s, steps_per_epoch %s and val_interval %s of the config have no effect",
                *(max_epochs, steps_per_epoch, val_interval),
            )


def read_plan(file: Path) -> Plan:
    """The plan of a `length.json`.

    Raises:
        InputError: the file cannot be read or holds no plan.
    """
    content = read_json(file)
    found: list[Any] = [content.get(name) for name in LENGTH]
    if not all(isinstance(number, int) and number >= 1 for number in found):
        raise InputError(f"{file} has no whole numbers for {', '.join(LENGTH)}: give another --output_dir")
    return Plan(*found)


def _before(file: Path, minutes: float, last: Path) -> Plan:
    """The plan of the training that goes on.

    Args:
        file: `length.json` of it.
        minutes: that are asked for.
        last: its checkpoint.

    Raises:
        InputError: there is none, or it is of other minutes.
    """
    if not file.is_file():
        raise InputError(
            f"minutes is {minutes:g}, and there is no {file} to say how long the training of {last} is: "
            "leave minutes out, or give another --output_dir"
        )
    before, kept = read_json(file).get("minutes"), read_plan(file)
    if before != minutes:
        by_hand = " ".join(f"--{name} {number}" for name, number in asdict(kept).items())
        raise InputError(
            f"minutes is {minutes:g}, and the training in {file.parent} was planned for {before} (see "
            f"{FILE}): give --minutes {before}, which keeps to its end; for a longer one give {by_hand} "
            "with more epochs and no minutes; or give another --output_dir"
        )
    logger.info(
        "minutes: %g, as planned in %s: %d steps in %d epochs of %d, a validation every %d",
        *(minutes, file, kept.steps, *astuple(kept)),
    )
    return kept


def _measured(minutes: float, folder: Path) -> Plan:
    """Time the training that is being run, and write down what follows.

    Args:
        minutes: of the whole training.
        folder: for `length.json`.
    """
    begun = perf_counter()
    mine = measure(running(ConfigParser), 60 * minutes, folder)
    spent = max(locks.held_for(folder, "training"), perf_counter() - begun)
    costs, spent = gather((mine, spent))[0]  # of the first process, in all of them
    found = plan(60 * minutes - spent, costs)
    if found is None:
        enough = math.ceil(MARGIN * (spent + least(costs)) / 0.6) / 100
        raise InputError(
            f"minutes is {minutes:g}, and here the start takes {spent:.3g} s, a step {costs.step:.3g} s and "
            f"a validation {costs.validation:.3g} s: give {enough:g} or more, or a smaller network, "
            "patch_size or batch_size"
        )
    if is_first():
        content = {
            "minutes": minutes,
            **asdict(found),
            "steps": found.steps,
            "seconds_a_step": costs.step,
            "measured": {"start": spent, **asdict(costs)},
            "machine": machine(),
            "processes": rank_and_size()[1],
            "version": read_json(CONFIGS / "metadata.json")["version"],
            "monai_version": monai.__version__,
            "pytorch_version": torch.__version__,
        }
        with atomic_write(folder / FILE) as temporary:
            temporary.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")
    end = time.localtime(time.time() + 60 * minutes - spent)
    logger.info(
        "minutes: %g; a step takes %.3g s here and a validation %.3g s: %d steps in %d epochs of %d, a "
        "validation every %d, until about %s",
        *(minutes, costs.step, costs.validation, found.steps, *astuple(found)),
        time.strftime("%H:%M:%S", end),
    )
    return found


def measure(parser: ConfigParser, seconds: float, folder: Path) -> Costs:
    """Time some steps and some validation cases of a training, which is as before afterwards.

    Cases that are to be held in memory are loaded for good. Several processes do as many steps.

    Args:
        parser: of the training.
        seconds: that it is to take, of which the trial takes a share.
        folder: where checkpoints go; one is written there and removed.
    """
    part = parser.get_parsed_content
    network, optimizer, device = part("network"), part("optimizer"), part("device")
    training, validation = part("train::dataset"), part("validate::dataset")
    batch_size = part("train::dataloader::batch_size")
    trainer = SupervisedTrainer(
        device=device,
        max_epochs=1,
        epoch_length=1,
        train_data_loader=[],
        network=network,
        optimizer=optimizer,
        loss_function=part("train::loss_function"),
        prepare_batch=part("prepare_batch"),
        inferer=part("train::inferer"),
        amp=part("train::trainer::amp"),
        decollate=False,
    )
    evaluator = SupervisedEvaluator(
        device=device,
        val_data_loader=[],
        epoch_length=1,
        network=network,
        inferer=part("validate::inferer"),
        postprocessing=part("validate::postprocessing"),
    )
    enough = min(max(TRIAL * seconds, TRIAL_SECONDS[0]), TRIAL_SECONDS[1])
    with _unchanged(network, optimizer):
        samples = cycle(EpochSampler(training, seed=part("seed")))
        draws, steps, loads = _time_steps(trainer, training, samples, batch_size, enough)
        checkpoint = _time_checkpoint(network, optimizer, folder) if is_first() else 0.0
        judged, loads_to_judge = _time_cases(evaluator, validation, enough)
    workers = part("train::dataloader::num_workers")
    draw, step = fmean(draws), fmean(steps)
    missing = {id(data): getattr(data, "cache_num", 0) for data in (training, validation)}
    missing[id(training)] -= len(loads)
    missing[id(validation)] -= len(loads_to_judge)
    shared = math.ceil(len(validation) / rank_and_size()[1])
    return Costs(
        step=max(step, draw / workers) if workers else step + draw,
        epoch=checkpoint,
        validation=shared * fmean(judged) + PICTURES + checkpoint if judged else 0.0,
        load=fmean(loads + loads_to_judge),
        cases=sum(max(count, 0) for count in missing.values()),
        loads=1 + batch_size,
    )


def _time_steps(
    trainer: Trainer, dataset: Any, samples: Iterator[int], batch_size: int, enough: float
) -> tuple[list[float], list[float], list[float]]:
    """Do some steps.

    Args:
        trainer: of steps alone.
        dataset: what is drawn from.
        samples: the indices, in their order.
        batch_size: samples of a step.
        enough: seconds after which a step is the last.

    Returns:
        Seconds of drawing each batch whose cases are loaded, of each step, and of loading each case.
    """
    draws, steps = [], []
    loads: dict[int, float] = {}
    while True:
        indices = list(islice(samples, batch_size))
        for index in indices:
            if index not in loads:
                loads[index] = _load(dataset, index)
        draw, batch = _timed(lambda chosen=indices: list_data_collate([dataset[index] for index in chosen]))
        draws.append(draw)
        steps.append(_timed(_run_on, trainer, batch)[0])
        done = len(steps) > WARM and sum(draws[WARM:]) + sum(steps[WARM:]) > enough
        if gather(done or len(steps) == WARM + STEPS)[0]:
            return draws[WARM:], steps[WARM:], list(loads.values())


def _time_cases(evaluator: Evaluator, dataset: Any, enough: float) -> tuple[list[float], list[float]]:
    """Judge some cases, evenly among all: seconds of each but for what follows, and of loading each.

    The first of several warms up.

    Args:
        evaluator: of single cases.
        dataset: of the validation.
        enough: seconds after which a case is the last.
    """
    judged: list[float] = []
    loads: list[float] = []
    for index in np.linspace(0, len(dataset) - 1, min(CASES, len(dataset))).astype(int).tolist():
        loads.append(_load(dataset, index))
        draw, case = _timed(lambda chosen=index: list_data_collate([dataset[chosen]]))
        judged.append(draw + _timed(_run_on, evaluator, case)[0])
        if gather(sum(judged) > enough)[0]:
            break
    return judged[len(judged) > 1 :], loads


def _load(dataset: Any, index: int) -> float:
    """Seconds that a case takes at first and never again, where it is held from then on."""
    first, again = (_timed(dataset.__getitem__, index)[0] for _ in range(2))
    return max(first - again, 0.0)


def _run_on(engine: Workflow, batch: Any) -> None:
    """One iteration of an engine."""
    engine.data_loader = [batch]
    engine.run()
    if engine.state.device.type == "cuda":
        torch.cuda.synchronize(engine.state.device)


def _time_checkpoint(network: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> float:
    """Seconds that a checkpoint takes, with the best weights in it."""
    weights = unwrap(network).state_dict()
    state = {"network": weights, "optimizer": optimizer.state_dict(), "best_weights": weights}
    with workshop(folder) as made:
        begun = perf_counter()
        with atomic_write(made / "last.pt") as temporary:
            save_checkpoint(state, temporary)
        return perf_counter() - begun


def _timed(function: Callable[..., T], *arguments: Any) -> tuple[float, T]:
    """Seconds that a function takes, and what it gives."""
    begun = perf_counter()
    found = function(*arguments)
    return perf_counter() - begun, found


@contextmanager
def _unchanged(network: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Put back what steps change: weights, statistics, the optimizer, gradients and random generators."""
    tensors = [*network.parameters(), *network.buffers()]
    kept = [tensor.detach().clone() for tensor in tensors]
    before = copy.deepcopy(optimizer.state_dict())
    numbers, state = np.random.get_state(), random.getstate()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        yield
    np.random.set_state(numbers)
    random.setstate(state)
    with torch.no_grad():
        for tensor, value in zip(tensors, kept, strict=True):
            tensor.copy_(value)
    optimizer.zero_grad(set_to_none=True)
    optimizer.load_state_dict(before)
