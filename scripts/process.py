"""The process a run lives in: seeds, memory, and one sentence for the user when the input is wrong."""

from __future__ import annotations

import atexit
import ctypes
import gc
import logging
import math
import os
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.utils import set_determinism

from scripts import locks, machine, settings
from scripts.errors import Fault, InputError, told
from scripts.machine import gigabytes
from scripts.rules import meant
from scripts.settings import NotRunning, running
from scripts.signals import end_on_signals

logger = logging.getLogger(__name__)

#: glibc's mallopt parameters (malloc.h): how many large blocks may be mapped each by itself, which are given
#: back when freed; from which size on; how much free memory may stay at the end of the heap (-1: all), and
#: how much more than is needed it grows by. Bytes.
_MMAP_MAX, _MMAP_THRESHOLD, _TRIM_THRESHOLD, _TOP_PAD = -4, -3, -1, -2

#: Seconds between the last word to the other processes and leaving them.
SHUTDOWN_SECONDS = 1.0


def bundle_root() -> str:
    """The folder that holds configs, scripts and models, from whichever folder the run was started."""
    return str(Path(__file__).resolve().parents[1])


def set_up(seed: int, threads: int | None = None) -> None:
    """Prepare the process: check the settings, hold output_dir, seed every generator, keep freed memory.

    Wrong input is reported in one sentence from here on. The first line of the log that is ours.

    Args:
        seed: seed of Python, NumPy and torch.
        threads: that compute, of PyTorch and OpenVINO; None: as many as PyTorch takes, one a core.

    Raises:
        InputError: see `scripts.settings.check` and `scripts.locks.hold`.
    """
    sys.excepthook = _one_sentence
    end_on_signals()
    # MONAI says so of each picture, whose grid no transform changes
    warnings.filterwarnings("ignore", "inverse has been called but no invertible transforms")
    # and of a reader for DICOM on GPUs, which LoadImage makes and the bundle never asks
    warnings.filterwarnings("ignore", "NvImgCodecPydicomReader: nvImageCodec decoder plugin did not register")
    logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
    if not gc.get_freeze_count():
        gc.freeze()  # a look for garbage passes over the modules, a million objects, from now on
    with suppress(NotRunning):
        settings.check(running(ConfigParser))
        _hold_output(running(ConfigWorkflow))
    seed = meant("seed", seed)
    if threads is not None:
        torch.set_num_threads(meant("threads", threads))
    logger.info(
        "starting: PyTorch %s on %d threads, seed %d", torch.__version__, torch.get_num_threads(), seed
    )
    set_determinism(seed)
    retain_memory()


def _hold_output(run: ConfigWorkflow) -> None:
    """Keep other runs of the same kind out of `output_dir`; several processes of one run hold it once."""
    parser = run.parser
    if "output_dir" in parser and rank_and_size()[0] == 0:
        training = "@train::trainer" in str(parser.get("run"))
        work = "training" if training else "evaluation" if "train" in parser else "inference"
        locks.hold(parser.get_parsed_content("output_dir"), work, run)


def retain_memory() -> None:
    """Have the C library keep freed memory: by default large tensors are mapped and zeroed at each use."""
    _mallopt({_MMAP_MAX: 0, _TRIM_THRESHOLD: -1, _TOP_PAD: 64 << 20})


def release_memory() -> None:
    """Have the C library give freed memory back to the system, from now on and what it kept until now."""
    libc = _mallopt(
        {_MMAP_MAX: 65536, _MMAP_THRESHOLD: 4 << 20, _TRIM_THRESHOLD: 16 << 20, _TOP_PAD: 1 << 20}
    )
    if libc is not None:
        libc.malloc_trim(0)


def _mallopt(parameters: dict[int, int]) -> ctypes.CDLL | None:
    """Set parameters of glibc, and give it; other C libraries are left as they are."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "gnu_get_libc_version"):
        return None
    for parameter, value in parameters.items():
        libc.mallopt(parameter, value)
    return libc


def available_memory(enough: float = math.inf) -> float:
    """As `scripts.machine.available_memory`, with what was freed here given back before.

    Args:
        enough: bytes; where they are there as it is nothing is given back, which would cost time.
    """
    there, libc = machine.available_memory(), _mallopt({})
    if there >= enough or libc is None:
        return there
    libc.malloc_trim(0)  # what was freed here is there
    return machine.available_memory()


def require_memory(size: float, what: str) -> None:
    """Refuse to take more memory than there is, which the system may grant and end the process for later.

    Args:
        size: in bytes.
        what: is going to take it, to follow the word "found".

    Raises:
        Fault: without a file.
    """
    there = available_memory(size)
    if size > there:
        raise Fault(
            f"{what}, which take {gigabytes(size)} of memory",
            f"{gigabytes(there)} are there",
            "crop it, set a larger --spacing, or end other programs",
        )


def _one_sentence(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print what a user can mend as one sentence, any other error as ever."""
    sentence = told(error)
    if sentence is None:
        sys.__excepthook__(kind, error, trace)
    else:
        logging.shutdown()
        sys.stderr.write(f"error: {sentence}\n")


def set_up_distributed(seed: int, threads: int | None = None) -> None:
    """As set_up, in each process that torchrun started: join the others first.

    Raises:
        InputError: not started by torchrun.
    """
    sys.excepthook = _one_sentence
    if "LOCAL_RANK" not in os.environ:
        raise InputError(
            "multi_gpu_train.json needs several processes: start it with torchrun --nproc_per_node N -m"
        )
    if not dist.is_initialized():
        local_device()  # which the messages of this process go by
        dist.init_process_group(backend="nccl" if torch.cuda.is_available() else "gloo")
        atexit.register(_leave_distributed)
    set_up(seed, threads)


def rank_and_size() -> tuple[int, int]:
    """The number of this process, from 0, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def gather(value: Any) -> list[Any]:
    """A value of each process, in the order of their ranks, in all of them; alone, the one there is."""
    values = [value] * rank_and_size()[1]
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values


def _leave_distributed() -> None:
    """Leave the other processes before the interpreter ends.

    The group has threads, and DistributedDataParallel, which cycles of references keep alive, holds the
    group. A thread may still have to release a tensor, for which it needs the interpreter. If that has ended
    the process is aborted, and if it is waiting for the thread both wait for ever. So the threads first get
    the time to release what they hold.
    """
    time.sleep(SHUTDOWN_SECONDS)
    dist.destroy_process_group()
    gc.collect()


def local_device() -> torch.device:
    """The device of this process: its own GPU, or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    return device
