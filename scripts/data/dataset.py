"""Cases on their way to the network: those of inference one by one, those of training in memory.

Training samples depend on seed, epoch and case alone, however many processes draw them.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset, DataLoader, Dataset
from monai.utils import ensure_tuple
from torch.utils.data import DistributedSampler, get_worker_info

from scripts.data.cases import InferenceCases, problem_of
from scripts.data.room import require_room
from scripts.dicom.silence import silence_pydicom
from scripts.errors import CaseError, Fault, InputError, root_cause
from scripts.process import rank_and_size
from scripts.rules import MOST_WORKERS

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
    """MONAI's CacheDataset, which asks first whether there is memory for what it is going to hold.

    It says which case an error is about. A file must stay as it was when the data set was made, right after
    the check: one that changes under a training would be half old and half new, and whatever it holds has not
    been checked.

    Args:
        data: list of case dictionaries.
        transform: composed transforms; those before the first random one are cached.
        cache_rate: share of the cases held in memory, in [0, 1].
        num_workers: threads that fill the cache.
        progress: show a bar.

    Raises:
        InputError: a case is too large, or all that are to be held, see `scripts.data.room`.
        CaseError: at once for the cases held in memory, for others when they are drawn: a file is not
            readable, is gone or was changed.
    """

    def __init__(
        self,
        data: Sequence,
        transform: Callable,
        cache_rate: float = 1.0,
        num_workers: int = 1,
        progress: bool = False,
    ) -> None:
        require_room(data, transform, cache_rate)
        logger.info("caching %d of %d cases in memory", int(len(data) * cache_rate), len(data))
        #: Of each data worker, by its number: its process, and one more than the index of its latest case.
        self.at_work = torch.zeros(MOST_WORKERS, 2, dtype=torch.int64).share_memory_()
        super().__init__(data, transform, cache_rate=cache_rate, num_workers=num_workers, progress=progress)

    def set_data(self, data: Sequence) -> None:
        """Take the cases and fill the cache."""
        self.found = [_states(case) for case in data]
        super().set_data(data)

    def case_of(self, process: int) -> str | None:
        """The case that a data worker prepared last, or None where it has not prepared any.

        Args:
            process: its number in the system.
        """
        latest = {int(pid): int(number) for pid, number in self.at_work if number}
        return self._name(latest[process] - 1) if process in latest else None

    def _load_cache_item(self, idx: int) -> Any:
        with self._named(idx):
            return super()._load_cache_item(idx)

    def _transform(self, index: int) -> Any:
        if (worker := get_worker_info()) and worker.id < MOST_WORKERS:
            self.at_work[worker.id] = torch.tensor((os.getpid(), index + 1))
        with self._named(index, cached=index < self.cache_num):
            return super()._transform(index)

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
        cache_rate: share of the cases held in memory, in [0, 1].
        num_workers: threads that fill the cache.
    """

    def __init__(
        self,
        data: Sequence,
        transform: Callable,
        seed: int = 0,
        cache_rate: float = 1.0,
        num_workers: int = 2,
    ) -> None:
        watched = sys.stderr.isatty()
        super().__init__(data, transform, cache_rate=cache_rate, num_workers=num_workers, progress=watched)
        self.seed = seed

    def __getitem__(self, index: int) -> Any:  # type: ignore[override]
        draw, case = divmod(index, len(self))
        state = np.random.SeedSequence([self.seed, draw, case]).generate_state(1)[0]
        self.transform.set_random_state(seed=int(state))
        return self._transform(case)


class EpochSampler(DistributedSampler):
    """Every case ``repeats`` times an epoch, in an order drawn from seed and epoch, shared by the processes.

    Two processes with half the batch each see, step by step, the samples that one process with the whole
    batch sees; where they do not share out evenly, the first few of the epoch come again in its last step.

    Args:
        dataset: the data set, for its length.
        seed: seed of the order.
        repeats: samples drawn from each case in an epoch.
    """

    def __init__(self, dataset: Any, seed: int = 0, repeats: int = 1) -> None:
        rank, size = rank_and_size()
        super().__init__(
            range(len(dataset) * repeats),  # type: ignore[arg-type]
            num_replicas=size,
            rank=rank,
            shuffle=True,
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
        drawn = self.epoch * len(self.dataset)  # type: ignore[arg-type]
        indices = [drawn + index for index in super().__iter__()]
        return iter(indices[samples if epoch == self.epoch else 0 :])


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
