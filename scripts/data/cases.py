"""Cases to work on one by one: what fails for one of them is told, and the others are done.

What a single case can bring about leaves that case out: a file that cannot be read, a grid that takes more
memory than there is, a shape that the network does not take. What every case would meet ends the run: an
argument that is wrong, a place that cannot be written to, a GPU that is lost.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from monai.utils import ensure_tuple

from scripts.data.checks import Problem
from scripts.errors import Fault, InputError, few, root_cause
from scripts.files import fingerprint, short_hash
from scripts.process import gather

logger = logging.getLogger(__name__)

#: What PyTorch, NumPy and the drivers say when memory is short, in small letters.
_OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "unable to allocate")

#: What they say of a GPU that no later call reaches, in small letters.
_DEVICE_LOST = ("cuda error", "cudnn_status", "cublas_status", "hip error", "no cuda gpus")


@dataclass
class InferenceCases:
    """Cases to work on, and what is wrong with the others.

    Args:
        cases: `{"image": path or list of paths, "case": id}` of each sound case, with "label" where it is
            judged.
        problems: what was found in all cases.
        work: what is done to a case, for messages.
        beside: there is memory for a case while the next one is loaded or the last one is finished.
        dicom: the cases are DICOM series, whose headers no warning may cite.
        noun: what is counted, for messages.

    Attributes:
        remarks: sentences for which the run is to end with an error too.
        aside: the one thread in which cases are loaded and finished beside another; None where none are.
    """

    cases: list[dict[str, Any]]
    problems: list[Problem] = field(default_factory=list)
    work: str = "segmented"
    beside: bool = False
    dicom: bool = False
    noun: str = "images"

    def __post_init__(self) -> None:
        self.remarks: list[str] = []
        # one for both: MONAI's transforms take notes of what they do, and are the same on the way back
        self.aside = ThreadPoolExecutor(1, "aside") if self.beside else None

    def leave_out(self, problem: Problem) -> None:
        """Say what is wrong with a case, and count it among those that are not done."""
        logger.error(problem.sentence())
        self.problems.append(problem)

    @contextmanager
    def attempt(self, case: Mapping[str, Any]) -> Iterator[None]:
        """Leave a case out if what is done within fails for its own sake.

        Args:
            case: see the class.

        Raises:
            Exception: what every case would meet, see the module.
        """
        try:
            yield
        except Exception as error:
            if not _of_one_case(error):
                raise
            self.leave_out(problem_of(case, error))

    def failed(self) -> list[str]:
        """The ids of the cases that had an error, in any process."""
        problems = [problem for part in gather(self.problems) for problem in part]
        return sorted({problem.case for problem in problems if problem.severity == "error"})

    def finish(self) -> None:
        """Say at the end which cases were left out, so that the exit status does too.

        Raises:
            InputError: if a case had an error, in any process, or there are remarks.
        """
        failed = self.failed()
        told = list(self.remarks)
        if failed:
            total = len({str(case["case"]) for case in self.cases}.union(failed))
            told.insert(
                0,
                f"{len(failed)} of {total} {self.noun} were not {self.work}: "
                f"{few(failed)}; the others are done; mend the files named in the log and run again on them",
            )
        if told:
            raise InputError(f"{'; '.join(told)}.")


def describe_cases(cases: Sequence[Mapping[str, Any]]) -> str:
    """How many cases, and a hash of their ids and of what their files hold, in their order."""
    listed = []
    for case in cases:
        files = [Path(file) for key in ("image", "label") for file in ensure_tuple(case.get(key, ()))]
        contents = [fingerprint(file) for file in files if file.is_file()]
        listed.append([case.get("case", [file.name for file in files]), contents])
    return f"{len(cases)} cases ({short_hash(listed)})"


def problem_of(case: Mapping[str, Any], error: BaseException) -> Problem:
    """What an error says about the case that it came from; one of an unknown kind goes to the log whole.

    Args:
        case: with "case" and "image".
        error: what was raised, perhaps by way of MONAI.
    """
    name, image = str(case["case"]), case.get("image", case["case"])
    file = str(image[0] if isinstance(image, list | tuple) else image)
    cause = root_cause(error)
    if isinstance(cause, Fault):
        return Problem(name, cause.file or file, *cause.args)
    if isinstance(cause, InputError):
        return Problem(name, file, f"no way to do it ({cause})", "it is left out", "mend it")
    if is_out_of_memory(cause):
        return Problem(
            name,
            file,
            "an image that takes more memory than there is",
            "it is held whole while it is worked on",
            "end other programs, crop it, set a larger --spacing, or add configs/large_volume.json",
        )
    if isinstance(cause, OSError):
        reason = cause.strerror or type(cause).__name__
        return Problem(
            name, file, f"a file that cannot be read ({reason})", "it must be there", "put it back or mend it"
        )
    logger.error("%s: what happened:\n%s", name, "".join(traceback.format_exception(error)))
    reason = " ".join(str(cause).split())[:120]
    return Problem(
        name,
        file,
        f"something that went wrong ({type(cause).__name__}: {reason})",
        "the lines before this one in the log say where",
        "look at what this file has and others have not",
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was short, on the processor or on a GPU."""
    told = isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _OUT_OF_MEMORY)
    return told or isinstance(error, MemoryError | torch.OutOfMemoryError)


def _of_one_case(error: BaseException) -> bool:
    """Whether other cases may be free of an error that came while a case was predicted or saved."""
    cause = root_cause(error)
    if isinstance(cause, Fault) or is_out_of_memory(cause):
        return True
    lost = isinstance(cause, RuntimeError) and any(text in str(cause).lower() for text in _DEVICE_LOST)
    return not (lost or isinstance(cause, InputError | OSError))
