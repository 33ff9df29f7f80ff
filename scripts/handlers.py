"""Ignite handlers that MONAI lacks: progress with the time left, validation, checkpoints, learning curve."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.utils import manual_seed
from monai.engines import Evaluator
from monai.utils import CommonKeys as Keys
from monai.utils import ensure_tuple, is_scalar
from torch import nn
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from scripts.checkpoints import (
    check_weights,
    is_first,
    read_checkpoint,
    read_weights,
    save_checkpoint,
    taken_whole,
    unwrap,
)
from scripts.compute.acceleration import memory_format_of
from scripts.compute.exported import Exported
from scripts.data import CachedCases, EpochSampler
from scripts.data.cases import InferenceCases, describe_cases
from scripts.data.names import output_name
from scripts.errors import InputError, few
from scripts.files import atomic_write, write_csv
from scripts.networks import Ensemble
from scripts.pictures import draw_learning_curve
from scripts.process import gather, rank_and_size
from scripts.progress import progress
from scripts.recipe import WeightsWriter, other_training
from scripts.scalars import Scalars
from scripts.signals import DeferredSignals, end
from scripts.transforms.versions import LOOK, TOLD, UNLIKE, by_need

logger = logging.getLogger(__name__)

#: The table of an inference.
REVIEW = "review.csv"


class ProgressBar:
    """One bar over the whole run, with epoch, loss, best validation metric and time left.

    Args:
        desc: what stands before the bar.
        evaluator: the engine whose best metric is shown, or None.
    """

    def __init__(self, desc: str, evaluator: Engine | None = None) -> None:
        self.desc = desc
        self.evaluator = evaluator
        self.bar: tqdm | None = None

    def attach(self, engine: Engine) -> None:
        """Register the bar, in the first of several processes."""
        if not is_first():
            return
        engine.add_event_handler(Events.STARTED, self._open)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)
        engine.add_event_handler(Events.COMPLETED | Events.TERMINATE, self._close)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)

    def _open(self, engine: Engine) -> None:
        total = (engine.state.max_epochs or 1) * (engine.state.epoch_length or 0)
        self.bar = progress(desc=self.desc, total=total, initial=engine.state.iteration)
        speaking = [
            logger for logger in logging.root.manager.loggerDict.values() if getattr(logger, "handlers", None)
        ]
        self.redirection = logging_redirect_tqdm([logging.root, *speaking])
        self.redirection.__enter__()

    def _step(self, engine: Engine) -> None:
        if self.bar is None:
            return
        shown = {}
        if self.evaluator is not None:
            shown["epoch"] = f"{engine.state.epoch}/{engine.state.max_epochs}"
            shown["loss"] = f"{_loss(engine):.4f}"
            if _state(self.evaluator).best_metric_epoch > 0:
                shown["best"] = f"{_state(self.evaluator).best_metric:.4f}"
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update(1)

    def _close(self, engine: Engine) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
            self.redirection.__exit__(None, None, None)

    def _fail(self, engine: Engine, error: BaseException) -> None:
        self._close(engine)
        raise error


class TimeSplit:
    """Say at the end of a training where its time went.

    Args:
        evaluator: the validation.

    Attributes:
        seconds: "data" (the network waits for a batch), "step" (forward, backward and optimizer; on a GPU
            as far as the processor waits for it), "validation", and "else" (checkpoints, pictures, logs).
    """

    def __init__(self, evaluator: Engine) -> None:
        self.evaluator = evaluator
        self.seconds = dict.fromkeys(("data", "step", "validation", "else"), 0.0)
        self.last: float | None = None  # of a training that runs

    def attach(self, trainer: Engine) -> None:
        """Register; what happens between two events goes to the part that the later one ends.

        In the first of several processes.
        """
        if not is_first():
            return
        trainer.add_event_handler(Events.STARTED, self._open)
        trainer.add_event_handler(Events.GET_BATCH_STARTED, self._count, "else")
        trainer.add_event_handler(Events.GET_BATCH_COMPLETED, self._count, "data")
        trainer.add_event_handler(Events.ITERATION_STARTED, self._count, "else")
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._count, "step")
        self.evaluator.add_event_handler(Events.STARTED, self._count, "else")
        self.evaluator.add_event_handler(Events.COMPLETED, self._count, "validation")
        trainer.add_event_handler(Events.COMPLETED, self._report)

    def _open(self, trainer: Engine) -> None:
        self.seconds = dict.fromkeys(self.seconds, 0.0)
        self.first_epoch = trainer.state.epoch
        self.last = perf_counter()

    def _count(self, engine: Engine, part: str) -> None:
        if self.last is not None:  # the evaluator may run by itself
            now = perf_counter()
            self.seconds[part] += now - self.last
            self.last = now

    def _report(self, trainer: Engine) -> None:
        self._count(trainer, "else")
        self.last = None
        total = sum(self.seconds.values())
        epochs = max(trainer.state.epoch - self.first_epoch, 1)
        parts = (
            f"{part} {seconds / epochs:.1f} s ({seconds / total:.0%})"
            for part, seconds in self.seconds.items()
        )
        logger.info("%d epochs in %.1f minutes; time of an epoch: %s", epochs, total / 60, ", ".join(parts))


class Failures:
    """Say which case a data worker had when it died, and leave any other error to who asked for it.

    PyTorch knows its process alone, and raises wherever the training happens to be. MONAI's StatsHandler
    prints a traceback of each error before it hands it on: this stands before it.

    Args:
        datasets: those that are drawn from.
    """

    def __init__(self, datasets: Sequence[CachedCases]) -> None:
        self.datasets = datasets

    def attach(self, engine: Engine) -> None:
        """Register for errors; must stand before all handlers that do."""
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._explain)

    def _explain(self, engine: Engine, error: BaseException) -> None:
        engine.fire_event(Events.TERMINATE)  # which closes a progress bar
        died = re.match(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)", str(error))
        if not died:
            raise error
        processes = [int(number) for number in died[1].split(",")]
        cases = [case for data in self.datasets for pid in processes if (case := data.case_of(pid))]
        raise InputError(
            f"a data worker died (process {died[1]}); the latest case that it prepared is "
            f"{few(cases) if cases else 'not known: it had none yet'}; most often memory runs out: lower "
            "num_workers or cache_rate, or leave that case out; what was finished before is kept"
        ) from error


class FillCaches:
    """Have data sets load one case after each step, until they hold all that they are to hold.

    The first step waits for its own cases alone, and one that cannot be loaded is found long before it is
    drawn.

    Args:
        datasets: one is filled after the other; what is no `CachedCases` is left alone.
    """

    def __init__(self, datasets: Sequence[Any]) -> None:
        self.datasets = [data for data in datasets if isinstance(data, CachedCases)]

    def attach(self, engine: Engine) -> None:
        """Register at the end of steps."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._load)

    def _load(self) -> None:
        any(data.load_next() for data in self.datasets)  # the first that has one to load


class Validation:
    """Validate every few epochs and after the last one; without a case to validate on keep the last weights.
    MONAI's handler validates every few epochs alone: a training of fewer would keep no weights at all. MONAI
    Label sets the number of epochs, and may leave no case to validate on.

    Args:
        validator: the validation.
        interval: epochs between two validations.
        weights: writes those of the last epoch if there is no case to validate on.
    """

    def __init__(self, validator: Evaluator, interval: int, weights: WeightsWriter) -> None:
        self.validator = validator
        self.interval = interval
        self.weights = weights

    def attach(self, trainer: Engine) -> None:
        """Register at the end of epochs, or of the training."""
        due = Events.EPOCH_COMPLETED(event_filter=self._is_due)
        trainer.add_event_handler(due, lambda: self.validator.run(trainer.state.epoch))
        trainer.add_event_handler(Events.STARTED, self._warn)
        trainer.add_event_handler(Events.COMPLETED, self._keep_last)

    def _is_due(self, trainer: Engine, epoch: int) -> bool:
        last = epoch == trainer.state.max_epochs
        return self._has_cases() and (epoch % self.interval == 0 or last)

    def _has_cases(self) -> bool:
        return len(self.validator.data_loader) > 0  # type: ignore[arg-type]

    def _warn(self, trainer: Engine) -> None:
        if not self._has_cases():
            logger.warning("no case to validate on: %s gets the weights of the last epoch", self.weights.path)

    def _keep_last(self, trainer: Engine) -> None:
        if not self._has_cases():
            self.weights.write()


class BestModelSaver:
    """Keep the weights of the epoch with the best key metric.

    Args:
        weights: writes them.
    """

    def __init__(self, weights: WeightsWriter) -> None:
        self.weights = weights

    def attach(self, evaluator: Engine) -> None:
        """Register at the end of each validation."""
        evaluator.add_event_handler(Events.COMPLETED, self._save)

    def _save(self, evaluator: Engine) -> None:
        state = _state(evaluator)
        if state.best_metric_epoch == state.epoch:
            self.weights.write()


class StepSeeds:
    """Seed the generators before each step, so that what it draws depends on seed, step and process alone.

    Dropout is then the same after a resume, wherever that begins, and whatever a validation drew before.

    Args:
        seed: seed of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def attach(self, trainer: Engine) -> None:
        """Register at the start of epochs, for what a data loader draws, and of steps."""
        trainer.add_event_handler(Events.EPOCH_STARTED, lambda: self._draw(0, trainer.state.epoch))
        trainer.add_event_handler(Events.ITERATION_STARTED, lambda: self._draw(1, trainer.state.iteration))

    def _draw(self, kind: int, number: int) -> None:
        sequence = np.random.SeedSequence([self.seed, kind, number, rank_and_size()[0]])
        manual_seed(int(sequence.generate_state(1)[0]))


class LastCheckpoint:
    """Write everything a training needs to go on, and go on from it.

    A checkpoint is written at the end of epochs, and after a step when the process is asked to end (SIGTERM,
    Ctrl-C): then the training ends, with exit status 143 or 130, and a second signal ends it at once. What
    goes on from it, in the middle of an epoch too, is bit by bit the training that was left alone: weights,
    learning curve and scalars are what they were when the checkpoint was written.

    Only the same training goes on: the same cases, processes and config, but for OF_EACH_RESUME of
    `scripts.recipe`. The number of epochs, the learning rate and its schedule may be others, and hold as
    asked for: the schedule is gone through anew to the epoch that was reached, unless it follows the scores
    and is restored.

    Args:
        path: the file to write at the end of epochs and to resume from.
        network: the network.
        optimizer: the optimizer.
        lr_scheduler: the schedule of the learning rate.
        evaluator: the validation, for the best metric so far.
        cases: the cases of each section that the training uses, for their ids and their files.
        weights: writes the best weights, and knows the config.
        curve: the learning curve, which this attaches.
        resume: whether to go on from ``path`` when it exists.
        interval: epochs between two checkpoints.

    Raises:
        InputError: when training starts, for a checkpoint of another training, or with more epochs behind it
            than are asked for.
    """

    def __init__(
        self,
        path: str,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        lr_scheduler: Any,
        evaluator: Engine,
        cases: Mapping[str, Sequence[Mapping[str, Any]]],
        weights: WeightsWriter,
        curve: LearningCurve,
        resume: bool = False,
        interval: int = 1,
    ) -> None:
        self.path = Path(path)
        self.network = network
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.evaluator = evaluator
        self.cases = cases
        self.weights = weights
        self.curve = curve
        self.resume = resume
        self.interval = interval
        self.signals = DeferredSignals("ending after this step")

    def attach(self, trainer: Engine) -> None:
        """Register in every process; must stand after the handlers of validation and schedule."""
        trainer.add_event_handler(Events.STARTED, taken_whole(self.path)(self._load))
        self.curve.attach(trainer)
        trainer.add_event_handler(Events.STARTED, self.signals.__enter__)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._stop_within)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self._end_epoch)
        trainer.add_event_handler(Events.COMPLETED, lambda: self._save(trainer, trainer.state.epoch))
        trainer.add_event_handler(Events.COMPLETED, self.signals.__exit__)

    def _end_epoch(self, trainer: Engine) -> None:
        stops = self._is_asked_to_stop()
        if stops or trainer.state.epoch % self.interval == 0:
            self._save(trainer, trainer.state.epoch)
        if stops and trainer.state.epoch != trainer.state.max_epochs:
            self._stop()

    def _stop_within(self, trainer: Engine) -> None:
        """After a step that is not the last of its epoch, which is followed by what ends the epoch."""
        within = trainer.state.iteration % (trainer.state.epoch_length or 1) > 0
        if within and _sampler(trainer) is not None and self._is_asked_to_stop():
            self._save(trainer, trainer.state.epoch - 1)
            self._stop()

    def _is_asked_to_stop(self) -> bool:
        """Whether a signal came, to this process or another one."""
        self.signals.number = max(gather(self.signals.number))
        return self.signals.number > 0

    def _stop(self) -> None:
        self.signals.__exit__()
        end(self.signals.number, f"{self.path} has the training: the same command with --resume True goes on")

    def _save(self, trainer: Engine, epochs: int) -> None:
        """Write the checkpoint of a training with so many whole epochs behind it, in the first process."""
        if not is_first():
            return
        scaler = getattr(trainer, "scaler", None)
        state = {
            "network": unwrap(self.network).state_dict(),
            "memory_format": memory_format_of(unwrap(self.network)),
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "scaler": scaler and scaler.state_dict(),
            "epoch": epochs,
            "iteration": trainer.state.iteration,
            "best_metric": float(_state(self.evaluator).best_metric),
            "best_metric_epoch": int(_state(self.evaluator).best_metric_epoch),
            "best_weights": self.weights.written,
            "curve": self.curve.state_dict(),
            "training": self.described,
        }
        with atomic_write(self.path) as temporary:
            save_checkpoint(state, temporary)

    def _load(self, trainer: Engine) -> None:
        self.described = self._describe(trainer)
        if not self.path.exists():
            if self.resume and self.weights.path.exists():
                logger.warning(
                    "nothing to resume in %s, beside weights of an earlier training: it starts afresh",
                    self.path,
                )
            return
        if not self.resume:
            logger.warning(
                "%s holds an earlier training, which starts afresh: --resume True goes on", self.path
            )
            return
        state = read_checkpoint(self.path)
        if not {"training", "curve", "best_weights"} <= state.keys():
            raise InputError(
                f"{self.path}: holds no training that could go on; resume from the last.pt that a training "
                "of this version wrote"
            )
        self._require_same(trainer, state)
        unwrap(self.network).load_state_dict(state["network"])
        groups = self._reach(state)
        self.optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
        scaler = getattr(trainer, "scaler", None)
        if scaler and state["scaler"]:
            scaler.load_state_dict(state["scaler"])
        trainer.state.epoch, trainer.state.iteration = state["epoch"], state["iteration"]
        if sampler := _sampler(trainer):
            steps = state["iteration"] % (trainer.state.epoch_length or 1)
            sampler.skip(state["epoch"] + 1, steps * _state(trainer).dataloader.batch_size)
        _state(self.evaluator).best_metric = state["best_metric"]
        _state(self.evaluator).best_metric_epoch = state["best_metric_epoch"]
        if is_first():
            self.curve.load_state_dict(state["curve"])
            if state["best_weights"] is not None:
                self.weights.write_again(state["best_weights"])
        logger.info("going on from %s after epoch %d, step %d", self.path, state["epoch"], state["iteration"])

    def _reach(self, state: dict) -> list[dict]:
        """Bring the schedule to where the checkpoint is, and give the optimizer's settings that follow."""
        if isinstance(self.lr_scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            self.lr_scheduler.load_state_dict(state["lr_scheduler"])
            return state["optimizer"]["param_groups"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a schedule that goes on before its optimizer
            for _ in range(state["lr_scheduler"].get("last_epoch", state["epoch"])):
                self.lr_scheduler.step()
        return self.optimizer.state_dict()["param_groups"]

    def _require_same(self, trainer: Engine, state: dict) -> None:
        check_weights(self.network, state["network"], self.path)
        here, there = self.described, state["training"]
        differences = other_training(there["config"], here["config"]) + [
            f"{name} was {there.get(name, 'not set')} and is {here.get(name, 'not set')}"
            for name in {**here, **there}
            if name != "config" and here.get(name) != there.get(name)
        ]
        if differences:
            raise InputError(
                f"{self.path}: of another training ({'; '.join(differences)}); resume with what it had, or "
                "give another --output_dir"
            )
        if state["epoch"] > (trainer.state.max_epochs or 0):
            raise InputError(
                f"max_epochs is {trainer.state.max_epochs}, and {self.path} has {state['epoch']} epochs "
                "behind it; ask for as many or more, or give another --output_dir"
            )

    def _describe(self, trainer: Engine) -> dict[str, Any]:
        """What makes this training what it is: its config, and the rest in words and hashes."""
        return {
            "config": self.weights.training,
            "steps of an epoch": str(trainer.state.epoch_length),
            "number of processes": str(rank_and_size()[1]),
            **{f"data of {name}": describe_cases(cases) for name, cases in self.cases.items()},
        }


class EarlyStopping:
    """End a training whose key metric has not improved for a while.

    MONAI's handler counts validations; this one reads the epoch of the best metric, which a resume restores.

    Args:
        evaluator: the validation.
        patience: epochs without improvement after which training ends.
    """

    def __init__(self, evaluator: Engine, patience: int) -> None:
        self.evaluator = evaluator
        self.patience = patience

    def attach(self, trainer: Engine) -> None:
        """Register at the end of epochs, and at the start for a training that goes on.

        Must stand after the handlers of validation and checkpoint.
        """
        trainer.add_event_handler(Events.STARTED | Events.EPOCH_COMPLETED, self._judge)

    def _judge(self, trainer: Engine) -> None:
        best = _state(self.evaluator).best_metric_epoch
        if best > 0 and trainer.state.epoch - best >= self.patience:
            logger.info("no better validation since epoch %d: training ends", best)
            trainer.terminate()


class WeightsLoader:
    """Load a network's weights when the engine starts; a network that was exported has its own.

    Args:
        load_path: a file that `read_weights` takes; for an `Ensemble` a list, one a member, or one file with
            all of them.
        network: the network to fill.

    Raises:
        InputError: when they are loaded, if a file is missing, unreadable or of another network; several
            files for one network.
    """

    def __init__(self, load_path: str | Sequence[str], network: nn.Module) -> None:
        self.paths = [Path(path) for path in ensure_tuple(load_path)]
        self.network = network

    def attach(self, engine: Engine) -> None:
        """Register at the start."""
        engine.add_event_handler(Events.STARTED, self.load)

    def load(self) -> None:
        """Load them, whatever engine is there."""
        network = unwrap(self.network)
        if isinstance(network, Exported):
            return
        members = list(network.members) if isinstance(network, Ensemble) else [network]
        if len(self.paths) == 1 and len(members) > 1:
            members = [network]
        if len(self.paths) != len(members):
            raise InputError(
                f"checkpoint names {len(self.paths)} files for {len(members)} network(s): add the overlay "
                "configs/ensemble.json, which makes a network for each"
            )
        for path, member in zip(self.paths, members, strict=True):
            weights = read_weights(path)
            check_weights(member, weights, path)
            member.load_state_dict(weights)


class InitialWeights:
    """Begin a training with weights of another one, as far as they fit; the log names the others.

    A training that goes on has its own.

    Args:
        path: a file that `read_weights` takes, of the same network but for some of its parts: a pre-training
            has other heads.
        network: the network to fill.

    Raises:
        InputError: the file is missing; when the training starts, if it is unreadable or none of it fits.
    """

    def __init__(self, path: str, network: nn.Module) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise InputError(
                f"initial_weights is {self.path}, which is not there: name the model.pt of another training"
            )
        self.network = network

    def attach(self, trainer: Engine) -> None:
        """Register at the start; must stand before the checkpoint."""
        trainer.add_event_handler(Events.STARTED, self._load)

    def _load(self, trainer: Engine) -> None:
        network, given = unwrap(self.network), read_weights(self.path)
        own = network.state_dict()
        taken = {name: x for name, x in given.items() if name in own and x.shape == own[name].shape}
        drawn = [
            f"{name} ({list(given[name].shape) if name in given else 'missing'} in the file, "
            f"{list(own[name].shape)} in the network)"
            for name in own
            if name not in taken
        ]
        if not taken:
            raise InputError(
                f"initial_weights is {self.path}, of which no weight fits the network; the first: "
                f"{drawn[0]}: name weights of the same network, or give the network overlay of these weights"
            )
        network.load_state_dict({**own, **taken})
        left = [name for name in given if name not in own]
        logger.info(
            "initial weights from %s: %d of %d; drawn anew: %s; in the file alone: %s",
            self.path,
            len(taken),
            len(own),
            few(drawn) if drawn else "none",
            few(left) if left else "none",
        )


class Review:
    """Writes review.csv: a line for each image, named as its files are, what needs a look first.

    It is written anew as images are finished, so that of a run that is cut it holds those that were done.
    What an earlier run left is removed. The order is that of `scripts.transforms.versions.by_need`. At the
    end the log says how many images are unlike those learnt from.

    Args:
        output_dir: where it goes.
        cases: get that sentence too where the run is to fail for it, see `fail_on_unlike`.
        fail_on_unlike: an image that is unlike those learnt from makes the run end with an error.
    """

    def __init__(
        self, output_dir: str | Path, cases: InferenceCases | None = None, fail_on_unlike: bool = False
    ) -> None:
        self.path = Path(output_dir) / REVIEW
        self.cases = cases if fail_on_unlike else None
        self.rows: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        """Listen to an inference."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        engine.add_event_handler(Events.COMPLETED, self._count)

    def _start(self, engine: Engine) -> None:
        self.rows = []
        self.path.unlink(missing_ok=True)

    def _add(self, engine: Engine) -> None:
        state: Any = engine.state
        outputs = state.output or []  # none of volumes from disk to disk
        pairs = zip(state.batch, outputs, strict=True) if outputs else ()
        told = [(output_name(case["case"]), output[TOLD]) for case, output in pairs if TOLD in output]
        new = [{"case": name, **columns} for name, columns in told]
        if new:
            self.rows = sorted(self.rows + new, key=by_need)
            write_csv(self.path, self.rows)

    def _count(self, engine: Engine) -> None:
        unlike = [str(row["case"]) for row in self.rows if row.get(LOOK) == UNLIKE]
        if unlike:
            sentence = (
                f"{len(unlike)} of {len(self.rows)} images are unlike those learnt from: {few(unlike)}; "
                f"{self.path} says why"
            )
            logger.warning(sentence)
            if self.cases is not None:
                self.cases.remarks.append(sentence)


class LearningCurve:
    """Write loss, validation metric and minutes of every epoch to learning_curve.csv, and learning_curve.png.

    TensorBoard gets the loss of each step, `train_loss`, and all numbers of each validation, by its epoch.

    Args:
        evaluator: the validation.
        output_dir: folder of the files, those for TensorBoard in `tensorboard`.
    """

    def __init__(self, evaluator: Engine, output_dir: str) -> None:
        self.evaluator = evaluator
        self.output_dir = Path(output_dir)
        self.scalars = Scalars(self.output_dir / "tensorboard")
        self.rows: list[dict] = []
        self.losses: list[float] = []
        self.seconds = 0.0  # of this epoch, before the training went on

    def attach(self, trainer: Engine) -> None:
        """Register in the first of several processes; must stand after the validation handler."""
        if not is_first():
            return
        trainer.add_event_handler(Events.STARTED, self._open)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self._write)

    def state_dict(self) -> dict[str, Any]:
        """Rows of the table, losses of the epoch that is not yet in it, and where the scalars end."""
        seconds = self.seconds + perf_counter() - self.last
        scalars = self.scalars.state_dict()
        return {"rows": self.rows, "losses": self.losses, "seconds": seconds, "scalars": scalars}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint: the files are as they were then."""
        self.rows, self.losses, self.seconds = state["rows"], state["losses"], state["seconds"]
        self.scalars.load_state_dict(state["scalars"])
        if self.rows:
            write_csv(self.output_dir / "learning_curve.csv", self.rows)

    def _open(self, trainer: Engine) -> None:
        self.last = perf_counter()

    def _collect(self, trainer: Engine) -> None:
        self.losses.append(_loss(trainer))
        self.scalars.add("train_loss", self.losses[-1], trainer.state.iteration)

    def _write(self, trainer: Engine) -> None:
        state = _state(self.evaluator)
        metric = state.key_metric_name
        judged = state.epoch == trainer.state.epoch
        value = float(state.metrics[metric]) if judged else None
        value = None if value is None or np.isnan(value) else value
        now = perf_counter()
        self.rows.append(
            {
                "epoch": trainer.state.epoch,
                "loss": float(np.mean(self.losses)),
                metric: value,
                "minutes": (self.seconds + now - self.last) / 60,
            }
        )
        self.losses.clear()
        self.last, self.seconds = now, 0.0
        logger.info(
            "epoch %d of %d: loss %.4f", trainer.state.epoch, trainer.state.max_epochs, self.rows[-1]["loss"]
        )
        write_csv(self.output_dir / "learning_curve.csv", self.rows)
        if judged:
            for name, value in state.metrics.items():
                if is_scalar(value):
                    self.scalars.add(name, float(value), trainer.state.epoch)
            draw_learning_curve(self.rows, metric, self.output_dir / "learning_curve.png")


def _state(engine: Engine) -> Any:
    """State of an engine, with the attributes that MONAI adds to ignite's and no type declares."""
    return engine.state


def _sampler(trainer: Engine) -> EpochSampler | None:
    """What can begin in the middle of an epoch, if the training draws its samples so."""
    sampler = getattr(trainer.state.dataloader, "sampler", None)
    return sampler if isinstance(sampler, EpochSampler) else None


def _loss(engine: Engine) -> float:
    """Loss of the step just done."""
    output = _state(engine).output
    return float((output[0] if isinstance(output, list) else output)[Keys.LOSS].detach())
