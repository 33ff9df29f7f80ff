"""`python -m bundle verify BUNDLE`: whether a bundle holds what its hosts ask for, without the network.

The checks are those of the Model Zoo (files, keys, metadata, sizes, export), what MONAI Label needs to serve
and to train it, and what one wants to know of somebody else's bundle before it runs: all that its configs
would execute is held against what our own execute, its weights must load without running code, nothing may
lie outside its folder. These checks read and run nothing. Code of the bundle, its `scripts` among it, runs
only where they found nothing, in processes with a home of their own, without the environment of the user, and
without network where the system can do that.
"""

from __future__ import annotations

import ast
import json
import operator
import os
import shutil
import site
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import nibabel as nib
import numpy as np
import torch
import typer
from monai.utils import optional_import
from PIL import Image

from bundle.ship.audit import executed, leads_out, logging_problems, read_config, walk
from bundle.ship.package import LARGE_FILE
from scripts.compute.quantised import int8_files
from scripts.errors import InputError
from scripts.files import read_json, sha256
from scripts.process import bundle_root

yaml, has_yaml = optional_import("yaml")
jsonschema, has_jsonschema = optional_import("jsonschema")

SCHEMA = Path(__file__).with_name("metadata_schema.json")

#: Ids that the Model Zoo, MONAI Label and MONAI Deploy look for.
IDS = {
    "train": (
        *("bundle_root", "device", "dataset_dir", "network_def", "network", "val_interval"),
        *("train::trainer", "train::trainer::max_epochs", "train::dataset", "train::dataset::data"),
        *("train::inferer", "train::handlers", "validate::evaluator", "validate::handlers"),
        *("validate::dataset", "validate::dataset::data"),
    ),
    "inference": (
        *("bundle_root", "device", "dataset_dir", "output_dir", "network_def", "inferer"),
        *("preprocessing", "postprocessing", "evaluator"),
    ),
}

#: What a bundle that only segments does not have.
MAY_LACK = ("train",)

#: Where large files are named.
LARGE_FILES = ("large_files.yml", "large_files.yaml", "large_files.json")

#: What a bundle consists of.
PARTS = ("LICENSE", "configs", "docs", "models", "scripts", *LARGE_FILES)

#: Kinds of files that a bundle may hold, beside the Python files of `scripts`: weights, configs and what no
#: program runs.
WEIGHTS = (".pt", ".pth", ".ckpt")
CONFIGS = (".json", ".yaml", ".yml")
KINDS = (
    *(*WEIGHTS, ".safetensors", *CONFIGS, ".conf", ".csv", ".gif", ".jpeg", ".jpg", ".md", ".png", ".txt"),
)

#: Files of other kinds that a bundle may hold: a graph of layers that OpenVINO reads, and its numbers.
INT8 = tuple(file.name for file in int8_files(Path("model.pt")))

#: Folders that runs leave beside the parts of this repository.
LEFT_BY_RUNS = ("__pycache__", "tensorboard")

#: What a zip may unpack to: so many times its size, or bytes where that is less.
MAX_RATIO, MIN_UNPACKED = 20, 100 << 20

#: Largest axis and largest image, channels times pixels or voxels, that a network is tried on; what "*" in a
#: spatial shape, any length, is taken for; and the longest expression there.
MAX_LENGTH, MAX_IMAGE, ANY_LENGTH, MAX_EXPRESSION = 1 << 14, 1 << 25, 64, 40

#: Largest exponent in a spatial shape.
MAX_EXPONENT = 14

#: Seconds that a process of a check may take.
TIMEOUT = 600

#: What such a process keeps of the environment: where programs and libraries are, language and devices.
KEPT_ENVIRONMENT = (
    *("CUDA_VISIBLE_DEVICES", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "PATH"),
    *("SYSTEMROOT", "TZ"),
)

#: Longest line of a report.
MAX_LINE = 500


@dataclass
class Bundle:
    """A bundle on disk.

    Attributes:
        root: its folder.
        files: its plain files, by their path in the bundle.
        strange: a sentence for everything else in its folder.
        metadata: content of metadata.json.
        configs: content of its other configs, by file name.
        large_files: entries of large_files.yml by path.
    """

    root: Path
    files: dict[str, Path] = field(default_factory=dict)
    strange: list[str] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    configs: dict[str, Any] = field(default_factory=dict)
    large_files: dict[str, dict[str, Any]] = field(default_factory=dict)

    def config_files(self, name: str) -> list[str]:
        """The names of the files of a config, by its name without suffix: there should be one."""
        return [file for file in self.configs if file.rpartition(".")[0] == name]

    def config(self, name: str) -> dict[str, Any]:
        """A config by its name without suffix; empty where there is none."""
        return next((self.configs[file] for file in self.config_files(name)), {})

    def config_path(self, name: str) -> Path:
        """Where a config lies, by its name without suffix."""
        return self.root.resolve() / "configs" / next(iter(self.config_files(name)), f"{name}.json")


def read_bundle(root: Path) -> Bundle:
    """Read metadata and configs.

    Raises:
        InputError: no metadata.json, or a config that cannot be read.
    """
    bundle = Bundle(root, *list_files(root))
    if "configs/metadata.json" not in bundle.files:
        raise InputError(
            f"{root} is no bundle: it has no configs/metadata.json; name the folder that holds configs"
        )
    for name, file in bundle.files.items():
        folder, _, place = name.partition("/")
        if name == "configs/metadata.json":
            bundle.metadata = read_config(file)
        elif folder == "configs" and file.suffix.lower() in CONFIGS:
            bundle.configs[place] = read_config(file)
        elif name in LARGE_FILES:
            bundle.large_files = read_large_files(file)
    return bundle


def list_files(root: Path) -> tuple[dict[str, Path], list[str]]:
    """The plain files of a bundle, and a sentence for each link, cache and whatever else lies in its folder.

    Nothing is left out, whatever a version control says, but for this repository itself: what lies beside its
    parts is the workbench.

    Args:
        root: its folder.

    Raises:
        InputError: a folder cannot be read.
    """
    ours = root.resolve() == Path(bundle_root())
    files: dict[str, Path] = {}
    strange: list[str] = []
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        try:
            entries = sorted(folder.iterdir())
        except OSError as error:
            raise InputError(f"{folder} cannot be read ({error.strerror}): mend its rights") from error
        for path in entries:
            name, is_part = path.relative_to(root).as_posix(), folder != root or path.name in PARTS
            if ours and (not is_part or path.name in LEFT_BY_RUNS):
                continue
            if not is_part:
                strange.append(f"{name} is no part of a bundle ({', '.join(PARTS)}): leave it out")
            elif path.is_symlink():
                strange.append(f"{name} is a link to {os.readlink(path)}: put the file itself there")
            elif path.name == "__pycache__":
                strange.append(
                    f"{name} holds compiled code, which runs in place of what can be read: delete it"
                )
            elif path.is_dir():
                waiting.append(path)
            elif not path.is_file():
                strange.append(f"{name} is no plain file: leave it out")
            else:
                files[name] = path
                kinds = (*KINDS, ".py") if name.startswith("scripts/") else KINDS
                if path.name not in ("LICENSE", *INT8) and path.suffix.lower() not in kinds:
                    strange.append(f"{name} is of a kind that may hold code, or is not known: leave it out")
    return dict(sorted(files.items())), strange


def read_large_files(file: Path) -> dict[str, dict[str, Any]]:
    """Entries of large_files.yml by path.

    Raises:
        InputError: it cannot be read, has another form, or names a path outside the bundle.
    """
    entries = read_config(file).get("large_files")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"{file} has no list of entries under 'large_files': write one for each file")
    for entry in entries:
        path = entry.get("path")
        if not isinstance(path, str) or leads_out(path):
            raise InputError(f"{file} names {path!r}, which is no path in the bundle: correct it")
    return {entry["path"]: entry for entry in entries}


def check_files(bundle: Bundle) -> Iterator[str]:
    """Licence, model card, configs, one file of weights, none too large, no link, nothing else."""
    for name in ("LICENSE", "docs/README.md", "models/model.pt"):
        if name not in bundle.files:
            yield f"{name} is missing: add it"
    for name in IDS:
        if not bundle.config(name) and name not in MAY_LACK:
            yield f"configs/{name}.json is missing: add it"
        elif len(names := bundle.config_files(name)) > 1:
            yield f"configs holds {', '.join(names)}: leave one of them"
    weights = [Path(name).name for name in bundle.files if name.count("/") == 1 and name.endswith(".pt")]
    if len(weights) > 1:
        yield f"models holds {', '.join(weights)}: hosts take the shortest name, leave model.pt alone"
    for name, file in bundle.files.items():
        if file.stat().st_size > LARGE_FILE and name not in bundle.large_files:
            yield f"{name} has {file.stat().st_size / 1024**2:.0f} MB, above 25: name it in large_files.yml"
    yield from bundle.strange


def check_metadata(bundle: Bundle) -> Iterator[str]:
    """Form of metadata.json, the version in the changelog, and channels that are as many as defined."""
    errors = list(jsonschema.Draft202012Validator(read_json(SCHEMA)).iter_errors(bundle.metadata))
    for error in errors:
        place = "::".join(map(str, error.absolute_path))
        yield f"metadata.json{' ' + place if place else ''}: {error.message}"
    if errors:
        return
    if bundle.metadata.get("version") not in bundle.metadata.get("changelog", {}):
        yield f"metadata.json: version {bundle.metadata.get('version')!r} is not in changelog: add it there"
    for side in ("inputs", "outputs"):
        for name, tensor in _tensors(bundle, side).items():
            named, count = len(tensor.get("channel_def", {})), tensor.get("num_channels")
            if named and named != count:
                yield f"metadata.json {side}::{name}: {count} channels, {named} in channel_def: correct one"
            try:
                image_size(tensor)
            except InputError as error:
                yield f"metadata.json {side}::{name}: {error}"


def check_ids(bundle: Bundle) -> Iterator[str]:
    """What the Model Zoo, MONAI Label and MONAI Deploy look for in the configs."""
    for name, ids in IDS.items():
        config = bundle.config(name)
        for key in ids if config else ():
            if _at(config, key) is None:
                yield f"configs/{name}.json has no {key}, which hosts override or read: add it"
    inference = bundle.config("inference")
    for key in ("preprocessing", "postprocessing"):
        if inference and _target(inference.get(key)) != "Compose":
            yield f"configs/inference.json {key} is no Compose: hosts read its transforms"
    if inference and not _target(inference.get("network_def")):
        yield "configs/inference.json network_def has no _target_: MONAI Label sets dropout beside it"
    for place in ("train", "validate"):
        handlers = _at(bundle.config("train"), f"{place}::handlers") or []
        if not isinstance(handlers, list) or not all(isinstance(handler, dict) for handler in handlers):
            yield f"configs/train.json {place}::handlers is no list of dictionaries, as MONAI Label reads it"
    for side, wanted in (("inputs", "image"), ("outputs", "pred")):
        if next(iter(_tensors(bundle, side)), wanted) != wanted:
            yield f"metadata.json {side}: the first is not {wanted!r}, by which MONAI Label finds it"


def check_code(bundle: Bundle) -> Iterator[str]:
    """All that configs and logging would execute, and `scripts`, against what this version executes."""
    for found in executed({**bundle.configs, "metadata.json": bundle.metadata}):
        if found.problem:
            yield f"{found.place} would execute {found.what}: {found.problem}"
    for name, file in bundle.files.items():
        if file.suffix.lower() == ".conf":
            yield from (f"{name} {problem}" for problem in logging_problems(file))
    ours = Path(bundle_root())
    other = [
        name
        for name, file in bundle.files.items()
        if name.startswith("scripts/")
        and not ((ours / name).is_file() and sha256(ours / name) == sha256(file))
    ]
    if other:
        yield f"{', '.join(other)}: not the files of this version, and the last checks run them: read them"


def check_paths(bundle: Bundle) -> Iterator[str]:
    """No path of a config leads out of the bundle."""
    for name, config in bundle.configs.items():
        for path, text in walk(config):
            if isinstance(text, str) and leads_out(text, "::".join(map(str, path))):
                yield f"{name} holds the path {text}, outside the bundle: start from bundle_root"


def check_weights(bundle: Bundle) -> Iterator[str]:
    """Weights that load without running code, and have the hash that large_files.yml names."""
    for name, file in bundle.files.items():
        if file.suffix.lower() in WEIGHTS:
            try:
                if zipfile.is_zipfile(file):
                    with zipfile.ZipFile(file) as archive:
                        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                            raise ValueError("compressed, which PyTorch never does")
                torch.load(file, map_location="cpu", weights_only=True)
            except Exception as error:
                yield f"{name} holds more than weights ({type(error).__name__}): save a state dictionary"
    for name, entry in bundle.large_files.items():
        wanted = entry.get("hash_val")
        if name in bundle.files and entry.get("hash_type") == "sha256" and wanted:
            found = sha256(bundle.files[name])
            if found != wanted:
                yield f"{name} has the SHA-256 {found} and large_files.yml says {wanted}: get it again"


def check_network(bundle: Bundle) -> Iterator[str]:
    """From another folder the network takes its weights, gives the size it should and the same twice; MONAI's
    `verify_net_in_out` and `ckpt_export` end well."""
    inputs, outputs = (next(iter(_tensors(bundle, side).values()), None) for side in ("inputs", "outputs"))
    if not inputs or not outputs:
        return
    size, wanted = image_size(inputs), image_size(outputs)
    probe = Path(__file__).with_name("probe.py")
    config = bundle.config_path("inference")
    with tempfile.TemporaryDirectory() as elsewhere:
        done = run([str(probe), str(config), json.dumps(size), str(ANY_LENGTH)], Path(elsewhere))
    try:
        found = json.loads(done.stdout.strip().splitlines()[-1])
        shape, equal, dropout, commands = (found[key] for key in ("shape", "equal", "dropout", "commands"))
    except (ValueError, LookupError, TypeError):
        yield f"the network of configs/{config.name} does not run on {size}: {_last(done)}"
        return
    if shape != wanted:
        yield f"the network gives {shape} for {size}, metadata.json says {wanted}: correct one"
    if not equal:
        yield "the network gives two results for one image: make it deterministic in evaluation mode"
    if not dropout:
        yield "the network takes no dropout, which MONAI Label sets to score what it is sure of"
    for command, problem in dict(commands).items():
        yield f"monai.bundle {command} fails: {problem}"


def check_inference(bundle: Bundle) -> Iterator[str]:
    """From another folder a whole inference of one image ends well, and twice writes the same."""
    tensor = next(iter(_tensors(bundle, "inputs").values()), None)
    if tensor is None:
        return
    problem = _inference_problem(bundle, tensor, ".")  # bundles look for images in dataset_dir,
    if problem and _inference_problem(bundle, tensor, "imagesTs"):  # or there
        yield problem


def _inference_problem(bundle: Bundle, tensor: dict[str, Any], place: str) -> str:
    """What is wrong with an inference of an image of noise at a place in dataset_dir, or ""."""
    config = ["--config_file", str(bundle.config_path("inference"))]
    config += ["--runtime", "torch"] if "runtime" in bundle.config("inference") else []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data")
        written: list[dict[str, str]] = []
        (data / place).mkdir(parents=True)
        _, channels, *size = image_size(tensor)
        write_image(data / place, channels, size)
        for output in (Path(folder, "first"), Path(folder, "second")):
            places = ["--dataset_dir", str(data), "--output_dir", str(output)]
            done = run(["-m", "monai.bundle", "run", *config, *places], Path(folder))
            if done.returncode:
                return f"configs/inference.json does not run on an image of noise: {_last(done)}"
            written.append(_hashes(output))
            if not written[-1]:
                return "configs/inference.json writes nothing for an image in dataset_dir: see where it looks"
    first, second = written
    differing = sorted(name for name in {*first, *second} if first.get(name) != second.get(name))
    return (
        f"inference twice on one image differs in {', '.join(differing)}: make it deterministic"
        if differing
        else ""
    )


def write_image(folder: Path, channels: int, size: list[int]) -> None:
    """Write an image of noise: a PNG where it is 2D with 1 or 3 channels, else NIfTI with 1 mm voxels.

    Args:
        folder: where "noise.png" or "noise.nii.gz" goes.
        channels: its channels, the last axis of the file if several.
        size: smallest spatial size of the network; the image is twice as large along each axis.
    """
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (*(2 * length for length in size), channels), dtype=np.uint8)
    noise = noise[..., 0] if channels == 1 else noise
    if len(size) == 2 and channels in (1, 3):
        Image.fromarray(noise).save(folder / "noise.png")
    else:
        nib.save(nib.Nifti1Image(noise, np.eye(4)), folder / "noise.nii.gz")  # type: ignore[attr-defined]


#: It yields a sentence for each thing that is wrong; its docstring is printed.
Check = Callable[[Bundle], Iterator[str]]

#: The checks that read a bundle, by name.
READING: dict[str, Check] = {
    "files": check_files,
    "metadata": check_metadata,
    "ids": check_ids,
    "code": check_code,
    "paths": check_paths,
    "weights": check_weights,
}

#: Those that execute its code.
RUNNING: dict[str, Check] = {
    "network": check_network,
    "inference": check_inference,
}


def verify(bundle: Path, show: bool, trust: bool) -> None:
    """Carry out `bundle.cli.verify`, whose arguments these are."""
    if not (has_yaml and has_jsonschema):
        raise InputError("verify needs jsonschema and PyYAML: run pip install -r requirements-zoo.txt")
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = read_bundle(unpack(bundle, Path(folder)) if bundle.is_file() else bundle)
        except InputError as error:
            raise InputError(printable(str(error))) from error
        if show:
            for entry in executed({**found.configs, "metadata.json": found.metadata}):
                problem = f"  <- {entry.problem}" if entry.problem else ""
                typer.echo(printable(f"  {entry.place}: {entry.what}{problem}"))
        problems = 0
        for name, check in READING.items():
            trusted = trust and check is check_code
            reported = _report(name, check, list(check(found)), "trusted" if trusted else "FAILED")
            problems += 0 if trusted else reported
        if problems:
            for name in RUNNING:
                typer.echo(f"{'not run':<9}{name}: mend what stands above first, or read it (--trust)")
        else:
            if not without_network():
                typer.echo(f"{'note':<9}this system cannot cut the checks below off from the network")
            with ThreadPoolExecutor(2) as pool:  # the checks wait for processes, most of all for imports
                results: Iterator[list[str]] = pool.map(list, [check(found) for check in RUNNING.values()])
                problems = sum(map(_report, RUNNING, RUNNING.values(), results))
    if problems:
        raise InputError(f"{bundle}: {problems} problem(s) found; they stand above")


def unpack(file: Path, folder: Path) -> Path:
    """Unpack the zip of a bundle.

    Args:
        file: the zip.
        folder: an empty one.

    Returns:
        The folder of the bundle: the only one in the zip, or the zip's top.

    Raises:
        InputError: no zip, an entry that leads out of it or is there twice, one that cannot be read, or more
            than a bundle of this size can hold.
    """
    if not zipfile.is_zipfile(file):
        raise InputError(f"{file} is neither a folder nor a zip: name a bundle")
    try:
        with zipfile.ZipFile(file) as archive:
            if reason := _zip_problem(archive, max(MAX_RATIO * file.stat().st_size, MIN_UNPACKED)):
                raise InputError(f"{file} {reason}: do not use this file, of which nothing was unpacked")
            archive.extractall(folder)
    except InputError:
        raise
    except Exception as error:  # encrypted, broken, of an unknown method, a name for a file and a folder, ...
        raise InputError(f"{file} cannot be unpacked ({error}): get it again") from error
    inside = list(folder.iterdir())
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else folder


def _zip_problem(archive: zipfile.ZipFile, most: int) -> str:
    """Why a zip must not be unpacked, or ""; it may unpack to so many bytes at most."""
    names: set[str] = set()
    for entry in archive.infolist():
        path = PurePosixPath(entry.filename.replace("\\", "/"))
        is_link = entry.external_attr >> 16 & 0o170000 == 0o120000
        if path.is_absolute() or ".." in path.parts or is_link:
            return f"holds the entry {entry.filename}, which leads out of the zip"
        name = path.as_posix().casefold()
        if name in names:
            return f"holds the entry {entry.filename} twice, of which programs take the first or the last"
        names.add(name)
    size = sum(entry.file_size for entry in archive.infolist())
    return f"would unpack to {size / 1024**2:.0f} MB, more than weights can be packed" if size > most else ""


def printable(text: str) -> str:
    """A text as one line of a report, whatever a stranger wrote into it."""
    text = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
    return text if len(text) <= MAX_LINE else f"{text[:MAX_LINE]}..."


def image_size(tensor: dict[str, Any]) -> list[int]:
    """The smallest image that an input or output of metadata.json describes: n is 1, and so is p.

    Args:
        tensor: `num_channels`, and `spatial_shape` with numbers, "*" for any length, and MONAI's expressions
            such as "2**p*n", of numbers, n, p, +, * and **.

    Returns:
        (1, channels, *spatial).

    Raises:
        InputError: another expression, or a size that no network takes.
    """
    size = [1, tensor["num_channels"]]
    for length in tensor["spatial_shape"]:
        text = str(length).strip()
        try:
            if len(text) > MAX_EXPRESSION:
                raise ValueError("too long")
            value = ANY_LENGTH if text == "*" else _value(ast.parse(text, mode="eval").body)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            value = 0
        if value < 1:
            raise InputError(
                f"spatial_shape has {text[:MAX_EXPRESSION]!r}: give a number from 1 to {MAX_LENGTH}, '*' for "
                "any length, or an expression such as '2**p*n'"
            )
        size.append(value)
    if np.prod(size, dtype=float) > MAX_IMAGE:
        raise InputError(f"an image of {size} has more than {MAX_IMAGE} values: give the smallest that fits")
    return size


def _value(node: ast.AST) -> int:
    """The value of an expression of a spatial shape.

    Raises:
        ValueError: it has other parts, or gets too large.
    """
    operations = {ast.Add: operator.add, ast.Mult: operator.mul, ast.Pow: operator.pow}
    value = 0
    if isinstance(node, ast.Constant) and type(node.value) is int:
        value = node.value
    elif isinstance(node, ast.Name) and node.id in ("n", "p"):
        value = 1
    elif isinstance(node, ast.BinOp) and type(node.op) in operations:
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Pow) and right > MAX_EXPONENT:
            raise ValueError("too large")
        value = operations[type(node.op)](left, right)
    if not 0 < value <= MAX_LENGTH:
        raise ValueError("no length")
    return value


def without_network() -> list[str]:
    """What comes before a command to cut it off from the network; empty where the system cannot.

    Linux gives the command, and all that it starts, a network of its own with nobody in it. What it starts
    ends with it.
    """
    tool = shutil.which("unshare")
    if tool is None:
        return []
    prefix = [tool, "--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child"]
    tried = subprocess.run([*prefix, sys.executable, "-c", ""], capture_output=True, check=False)
    return prefix if tried.returncode == 0 else []


def run(arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Python with a home of its own, almost no environment, and no network where the system can do that.

    Args:
        arguments: of Python.
        cwd: where.
    """
    with tempfile.TemporaryDirectory() as home:
        environment = {
            **{key: os.environ[key] for key in KEPT_ENVIRONMENT if key in os.environ},
            **dict.fromkeys(("HOME", "USERPROFILE", "TMPDIR", "TEMP", "TMP"), home),
            "PYTHONUSERBASE": site.getuserbase(),  # where `pip install --user` puts packages
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONWARNINGS": "ignore",
        }
        try:
            return subprocess.run(
                [*without_network(), sys.executable, *arguments],
                cwd=cwd,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            return subprocess.CompletedProcess(error.cmd, 1, "", f"it was stopped after {TIMEOUT} seconds")


def _report(name: str, check: Check, sentences: Sequence[str], failed: str = "FAILED") -> int:
    """Print what a check found, and return how many problems that is."""
    about = " ".join((check.__doc__ or "").split())
    typer.echo(f"{failed if sentences else 'ok':<9}{name}: {about}")
    for sentence in sentences:
        typer.echo(f"         - {printable(sentence)}")
    return len(sentences)


def _tensors(bundle: Bundle, side: str) -> dict[str, Any]:
    """Inputs or outputs that metadata.json describes."""
    formats = bundle.metadata.get("network_data_format")
    tensors = formats.get(side) if isinstance(formats, dict) else None
    return tensors if isinstance(tensors, dict) else {}


def _hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each file below a folder, by its path there."""
    return {str(file.relative_to(folder)): sha256(file) for file in folder.rglob("*") if file.is_file()}


def _at(config: Any, key: str) -> Any:
    """The value of an id such as "train::trainer"; None where there is none."""
    for part in key.split("::"):
        config = config.get(part) if isinstance(config, dict) else None
    return config


def _target(value: Any) -> str:
    target = value.get("_target_", "") if isinstance(value, dict) else ""
    return target.rpartition(".")[2] if isinstance(target, str) else ""


def _last(done: subprocess.CompletedProcess[str]) -> str:
    """The last line that a process wrote."""
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return lines[-1] if lines else f"exit status {done.returncode}"
