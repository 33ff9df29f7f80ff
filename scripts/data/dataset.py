"""Cases on their way to the network: those of inference one by one, those of training in memory.

Training samples depend on seed, epoch and case alone, however many processes draw them.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset, DataLoader, Dataset
from monai.transforms import Transform
from monai.transforms.traits import RandomizableTrait
from monai.utils import ensure_tuple
from torch.utils.data import DistributedSampler, get_worker_info

from scripts.data.cases import InferenceCases, problem_of
from scripts.data.prepared import HeldCase, Prepared
from scripts.data.room import require_room
from scripts.dicom.silence import silence_pydicom
from scripts.errors import CaseError, Fault, InputError, root_cause
from scripts.machine import available_memory
from scripts.process import rank_and_size
from scripts.rules import MOST_WORKERS
from scripts.transforms.spatial import RandSpatialPatchd

logger = logging.getLogger(__name__)

#: Where `CaseDataset` says what is wrong with a case.
PROBLEM = "problem"


class CaseDataset(Dataset):
    """MONAI's Dataset, which gives a case that cannot be loaded as what is wrong with it.

    `scripts.compute.steps.CaseByCase` leaves such a case out.

    Args:
        data: list of case dictionaries, see `scripts.data.checks`.
        transform: composed transforms.
    """

    def _transform(self, index: int) -> Any:
        case = self.data[index]
        try:
            return super()._transform(index)
        except Exception as error:
            return {"case": case["case"], PROBLEM: asdict(problem_of(case, error))}


class CaseLoader(DataLoader):
    """MONAI's DataLoader, which loads the next case in a thread while this one is worked on.

    Args:
        dataset: the cases, `CaseDataset`.
        cases: say whether there is memory for that.
        **settings: other arguments of DataLoader.
    """

    def __init__(self, dataset: Dataset, cases: InferenceCases, **settings: Any) -> None:
        self.cases = cases
        super().__init__(dataset, **settings)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches, aside = super().__iter__(), self.cases.aside
        # threads share one list of filters for warnings: whoever sets it back must not do so too early
        with silence_pydicom() if self.cases.dicom else nullcontext():
            if aside is None:
                yield from batches
                return
            coming = aside.submit(next, batches, None)
            while (batch := coming.result()) is not None:
                coming = aside.submit(next, batches, None)
                yield batch


class CachedCases(CacheDataset):
    """MONAI's CacheDataset, which keeps cases in files, and asks first whether the memory takes the rest.

    Nobody waits for it to be filled: a case is loaded when it is drawn first, or by `load_next`. A process
    that is forked off finds them all.

    It says which case an error is about. A file must stay as it was when the data set was made, right after
    the check: one that changes under a training would be half old and half new, and whatever it holds has not
    been checked.

    Args:
        data: list of case dictionaries.
        transform: composed transforms; those before the first random one are cached.
        cache_rate: share of the cases held, in [0, 1]: those that lie in files are mapped and take no memory.
        prepared: where cases are kept in files; None: nowhere.

    Raises:
        InputError: a case is too large, or all that are to be held, see `scripts.data.room`.
        CaseError: when a case is loaded: a file is not readable, is gone or was changed.
    """

    def __init__(
        self, data: Sequence, transform: Callable, cache_rate: float = 1.0, prepared: Prepared | None = None
    ) -> None:
        self.prepared = Prepared() if prepared is None else prepared
        fits = require_room(data, transform, cache_rate, self.prepared.limit())
        #: Memory that is left to the training where not all cases fit in, in bytes.
        self.spared = 0.0 if fits else available_memory() / 2
        where = f"memory, mapped from {self.prepared.place}" if self.prepared else "memory"
        logger.info("caching %d of %d cases in %s", int(len(data) * cache_rate), len(data), where)
        #: Of each data worker, by its number: its process, and one more than the index of its latest case.
        self.at_work = torch.zeros(MOST_WORKERS, 2, dtype=torch.int64).share_memory_()
        super().__init__(data, transform, cache_rate=cache_rate, runtime_cache=True)
        #: Index of the first random transform, None without one.
        self.first_random = self.transform.get_index_of_first(_is_random)
        self.rules = self.prepared.rules(self.transform, self.first_random)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(before=partial(_fill_before_fork, weakref.ref(self)))

    def set_data(self, data: Sequence) -> None:
        """Take the cases; none is loaded yet."""
        self.found = [_states(case) for case in data]
        self.waiting = 0  # no case before this one is
        super().set_data(data)

    def load_next(self) -> bool:
        """Load one case that is to be held and is not yet; whether there was one.

        Raises:
            CaseError: see the class.
        """
        while self.waiting < self.cache_num and self._cache[self.waiting] is not None:
            self.waiting += 1
        if self.waiting == self.cache_num:
            return False
        self._held(self.waiting)
        self.waiting += 1
        return True

    def fill(self) -> None:
        """Load all cases that are to be held and are not yet, two at a time.

        Raises:
            CaseError: see the class.
        """
        missing = [index for index in range(self.cache_num) if self._cache[index] is None]
        if missing:
            with ThreadPool(2) as pool:
                for _ in pool.imap(self._held, missing):
                    pass

    def __getstate__(self) -> dict[str, Any]:
        """What a process gets that is not forked off: all cases, or none where it finds them in files."""
        if self.rules:
            return {**self.__dict__, "_cache": [None] * self.cache_num}
        with suppress(Exception):  # which is told when the case is drawn
            self.fill()
        return self.__dict__

    def case_of(self, process: int) -> str | None:
        """The case that a data worker prepared last, or None where it has not prepared any.

        Args:
            process: its number in the system.
        """
        latest = {int(pid): int(number) for pid, number in self.at_work if number}
        return self._name(latest[process] - 1) if process in latest else None

    def _held(self, index: int) -> HeldCase:
        """A case before its first random transform; held from now on, if it is to be and there is memory."""
        if index < self.cache_num and self._cache[index] is not None:
            return self._cache[index]
        held = self._load_cache_item(index)
        if index < self.cache_num and (held.mapped or not self.spared or available_memory() > self.spared):
            self._cache[index] = held
        return held

    def _load_cache_item(self, idx: int) -> HeldCase:
        case = self.data[idx]
        with self._named(idx):
            key = self.prepared.key(case, self.rules)
            if key and (held := self.prepared.read(key)):
                return held
            held = HeldCase.of(super()._load_cache_item(idx), self.prepared.images)
            # a file that changed meanwhile is another case
            return (
                self.prepared.keep(key, held) if key and key == self.prepared.key(case, self.rules) else held
            )

    def _transform(self, index: int) -> Any:
        if (worker := get_worker_info()) and worker.id < MOST_WORKERS:
            self.at_work[worker.id] = torch.tensor((os.getpid(), index + 1))
        with self._named(index, cached=True):
            held = self._held(index)
            if self.first_random is None:
                return held.whole()
            first = self.transform.transforms[self.first_random]
            read = first.keys if isinstance(first, RandSpatialPatchd) else ()
            return self.transform(held.copy(read), start=self.first_random)

    def _name(self, index: int) -> str:
        return str(self.data[index].get("case", index))

    @contextmanager
    def _named(self, index: int, cached: bool = False) -> Iterator[None]:
        """Say which case an error is about, and whether its files have changed."""
        name = self._name(index)
        try:
            now = None if cached else _states(self.data[index])
            for file, state in (now or {}).items():
                if state is not None and state != self.found[index][file]:
                    raise Fault(
                        "a file that was changed since it was checked",
                        "files must stay as they are as long as a training runs",
                        "let what writes them end, and start again",
                        file,
                    )
            yield
        except CaseError:
            raise
        except Exception as error:
            cause = root_cause(error)
            if isinstance(cause, InputError):
                raise CaseError(f"case {name}: {cause}") from error
            raise RuntimeError(f"case {name} could not be prepared: {cause}") from error


class SeededCacheDataset(CachedCases):
    """`CachedCases` whose random transforms are seeded anew for every sample.

    An index that EpochSampler hands out says which case and which draw; the augmentation of a draw is the
    same in one process or two, with or without workers, at the first start or after a resume.

    Args:
        data: list of case dictionaries.
        transform: composed transforms; those before the first random one are cached.
        seed: seed of the run.
        cache_rate: share of the cases held, in [0, 1].
        prepared: where cases are kept in files; None: nowhere.
    """

    def __init__(
        self,
        data: Sequence,
        transform: Callable,
        seed: int = 0,
        cache_rate: float = 1.0,
        prepared: Prepared | None = None,
    ) -> None:
        super().__init__(data, transform, cache_rate, prepared)
        self.seed = seed

    def __getitem__(self, index: int) -> Any:  # type: ignore[override]
        draw, case = divmod(index, len(self))
        state = np.random.SeedSequence([self.seed, draw, case]).generate_state(1)[0]
        self.transform.set_random_state(seed=int(state))
        return self._transform(case)


class EpochSampler(DistributedSampler):
    """Rounds of every case ``repeats`` times, in an order drawn from seed and round, shared by the processes.

    An epoch is a round, or so many steps, which go on in the rounds where the epoch before ended.
    Two processes with half the batch each see, step by step, the samples that one process with the whole
    batch sees; where they do not share out evenly, the first few of the epoch come again in its last step.

    Args:
        dataset: the data set, for its length.
        seed: seed of the order.
        repeats: samples drawn from each case in a round.
        steps: of an epoch; None makes an epoch a round.
        batch_size: samples of a step, for each process.
    """

    def __init__(
        self, dataset: Any, seed: int = 0, repeats: int = 1, steps: int | None = None, batch_size: int = 1
    ) -> None:
        rank, size = rank_and_size()
        self.round = len(dataset) * repeats
        samples = self.round if steps is None else steps * batch_size * size
        super().__init__(
            range(samples),  # type: ignore[arg-type]
            num_replicas=size,
            rank=rank,
            shuffle=False,
            seed=seed,
        )
        self.done: tuple[int, int] | None = None

    def skip(self, epoch: int, samples: int) -> None:
        """Leave out the first samples of an epoch, which a training that goes on has seen.

        Args:
            epoch: the epoch.
            samples: how many of those of this process.
        """
        self.done = (epoch, samples)

    def __iter__(self) -> Iterator[int]:
        epoch, samples = self.done or (self.epoch, 0)
        before = self.epoch * len(self.dataset)  # type: ignore[arg-type]
        drawn = [before + place for place in super().__iter__()]
        orders = {turn: self._order(turn) for turn in {number // self.round for number in drawn}}
        indices = [orders[number // self.round][number % self.round] for number in drawn]
        return iter(indices[samples if epoch == self.epoch else 0 :])

    def _order(self, turn: int) -> list[int]:
        """The indices of a round."""
        generator = torch.Generator().manual_seed(self.seed + turn)
        return (turn * self.round + torch.randperm(self.round, generator=generator)).tolist()


def _fill_before_fork(dataset: Callable[[], CachedCases | None]) -> None:
    """Fill the cache of a data set that is still in use; what it fails at is told when it is drawn."""
    if cases := dataset():
        with suppress(Exception):
            cases.fill()


def _is_random(transform: Any) -> bool:
    """Whether a cached case comes before a transform."""
    return isinstance(transform, RandomizableTrait) or not isinstance(transform, Transform)


def _states(case: Mapping[str, Any]) -> dict[str, tuple[int, int] | None]:
    """Size and time of each file of a case; None for one that is not there."""
    names = [name for key in ("image", "label") for name in ensure_tuple(case.get(key, ()))]
    return {str(name): _state(Path(name)) for name in names if isinstance(name, str | os.PathLike)}


def _state(file: Path) -> tuple[int, int] | None:
    try:
        about = file.stat()
    except OSError:
        return None
    return about.st_size, about.st_mtime_ns
