"""Running the bundle from tests, in this process or in one of its own."""

from __future__ import annotations

import atexit
import functools
import os
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import monai.bundle
import nibabel as nib
import numpy as np
from monai.utils import ensure_tuple
from PIL import Image
from typer.testing import CliRunner

from bundle.__main__ import app
from bundle.runs.warm import Warm
from scripts.errors import InputError, root_cause
from scripts.locks import let_go

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
SHARED_DATA = ROOT / "../shared/data"

os.environ["TERMINAL_WIDTH"] = "500"  # typer breaks no line that a test looks for

#: A U-Net that trains an epoch in a moment, for either dimension, and is not converted to be a little faster.
TINY: dict[int, dict[str, Any]] = {
    dims: {"patch_size": patch, "channels": [4, 8, 8, 8], "samples_per_case": 1, "runtime": "torch"}
    for dims, patch in ((2, [32, 32]), (3, [16, 16, 16]))
}


def config_files(base: str, *overlays: str) -> list[str]:
    """Absolute paths of configs/{base}.json and of overlays, "task/phantom_cells" or a file elsewhere."""
    return [name if name.endswith(".json") else str(CONFIGS / f"{name}.json") for name in (base, *overlays)]


@contextmanager
def unchanged_process() -> Iterator[None]:
    """Put back what a run changes in the process: hook for errors, module path, locks, signal handlers."""
    hook, path = sys.excepthook, list(sys.path)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        sys.excepthook = hook
        sys.path[:] = path
        let_go()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def run(base: str, *overlays: str, **overrides: Any) -> None:
    """What `python -m monai.bundle run` does, without the seconds that a new process spends on imports."""
    with unchanged_process(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "parsing config_file")  # MONAI: configs run code; these are ours
        monai.bundle.run(config_file=config_files(base, *overlays), **overrides)


def input_error(error: BaseException) -> str:
    """The sentence of the InputError at the root of an error that MONAI wrapped."""
    cause = root_cause(error)
    assert isinstance(cause, InputError), f"no InputError behind {error!r}"
    return str(cause)


def invoke(*arguments: object) -> Any:
    """The result of `python -m bundle ARGUMENTS` in this process: exit_code, output, exception."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def workbench(*arguments: object) -> str:
    """What `python -m bundle ARGUMENTS` says, in this process: its error, or else its output."""
    result = invoke(*arguments)
    error = result.exception
    assert error is None or isinstance(error, (InputError, SystemExit)), error
    return str(error or result.output)


def as_options(**options: object) -> list[object]:
    """Options as they stand on the command line: True without a value, a list with the option repeated."""
    pairs = [(key, part) for key, value in options.items() for part in ensure_tuple(value)]
    return [part for key, value in pairs for part in ([f"--{key}"] + [value] * (value is not True))]


def datalist(output_dir: Path, **options: object) -> None:
    """Run `python -m bundle datalist` in this process, with the options of `as_options`."""
    result = invoke("datalist", "--output_dir", output_dir, *as_options(**options))
    assert result.exit_code == 0, result.output + str(result.exception)


@functools.cache
def _warm() -> Warm:
    """A process that has imported MONAI, until this one ends."""
    warm = Warm("tests.forked").__enter__()
    atexit.register(warm.__exit__, None, None, None)
    return warm


def forked(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """As `command`, for `-m MODULE ARGUMENTS`, without the seconds that a new process spends on imports."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = (Path(folder, name) for name in ("out", "err"))
        _warm().start("tests.forked", str(cwd), str(out), str(err), *arguments[1:])
        status = _warm().wait()
        said = [file.read_text("utf-8", "replace") if file.is_file() else "" for file in (out, err)]
    return subprocess.CompletedProcess(arguments, status, *said)


def command(
    *arguments: str, cwd: Path, launcher: Sequence[str] = (sys.executable,)
) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS` in another folder, on one thread."""
    return subprocess.run(
        [*launcher, *arguments],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def bundle_run(*arguments: str, files: Sequence[str]) -> list[str]:
    """Arguments of `python -m monai.bundle run` over several config files."""
    return ["-m", "monai.bundle", "run", "--config_file", str(list(files)), *arguments]


def last_line(completed: subprocess.CompletedProcess[str]) -> str:
    """The last line that a process wrote to stderr."""
    return completed.stderr.strip().splitlines()[-1]


def read_array(file: Path) -> np.ndarray:
    """Voxels of a NIfTI file, (x, y, z), or pixels of a picture, (rows, columns)."""
    if file.name.endswith(".nii.gz"):
        return np.asarray(nib.load(file).dataobj)  # type: ignore[attr-defined]
    return np.asarray(Image.open(file))


def written(folder: Path) -> list[str]:
    """Every file below a folder, hidden and half-written ones included, in order."""
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
