"""`python -m bundle verify BUNDLE`: whether a bundle holds what its hosts ask for, without the network.

The checks are those of the Model Zoo (files, keys, metadata, sizes, export), what MONAI Label needs to serve
and to train it, and what one wants to know of somebody else's bundle before it runs: everything that its
configs would execute is listed, its weights must load without running code, nothing may lie outside its
folder. Code of the bundle, its `scripts` among it, runs in processes of its own, and only where the checks
before found nothing.
"""

from __future__ import annotations

import json
import math
import os
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
from monai.bundle import ConfigParser
from monai.utils import optional_import
from PIL import Image

from bundle.ship.audit import executed
from bundle.ship.package import LARGE_FILE
from scripts.errors import InputError
from scripts.files import read_json, sha256

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

#: Files that hold Python objects: to open one is to run what it says.
PICKLES = (".pkl", ".pickle", ".joblib", ".dill")
WEIGHTS = (".pt", ".pth", ".ckpt")

#: Seconds that a process of a check may take.
TIMEOUT = 600


@dataclass
class Bundle:
    """A bundle on disk.

    Attributes:
        root: its folder.
        metadata: content of metadata.json.
        configs: content of its other configs, by file name.
    """

    root: Path
    metadata: dict[str, Any] = field(default_factory=dict)
    configs: dict[str, Any] = field(default_factory=dict)

    def files(self) -> dict[str, Path]:
        """Its files by their path in the bundle; in a git checkout those that git tracks."""
        if (self.root / ".git").exists():
            listed = ["git", "-C", str(self.root), "ls-files", "-z"]
            names = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split("\0")
            found = [self.root / name for name in names if name]
        else:
            found = [file for file in self.root.rglob("*") if file.is_symlink() or file.is_file()]
        return {file.relative_to(self.root).as_posix(): file for file in sorted(found)}

    def config(self, name: str) -> dict[str, Any]:
        """A config by its name without suffix; empty where there is none."""
        return next((self.configs[f] for f in self.configs if f.rpartition(".")[0] == name), {})


def read_bundle(root: Path) -> Bundle:
    """Read metadata and configs.

    Raises:
        InputError: no metadata.json, or a config that cannot be read.
    """
    if not (root / "configs" / "metadata.json").is_file():
        raise InputError(
            f"{root} is no bundle: it has no configs/metadata.json; name the folder that holds configs"
        )
    bundle = Bundle(root, read_json(root / "configs" / "metadata.json"))
    for file in sorted((root / "configs").rglob("*")):
        if file.suffix in (".json", ".yaml", ".yml") and file.name != "metadata.json":
            try:
                content = ConfigParser.load_config_file(str(file))
            except Exception as error:
                raise InputError(f"{file} cannot be read ({error}): correct it") from error
            bundle.configs[file.relative_to(root / "configs").as_posix()] = content
    return bundle


def check_files(bundle: Bundle) -> Iterator[str]:
    """Licence, model card, configs, one file of weights, none too large, no link out of the folder."""
    for name in ("LICENSE", "docs/README.md", "models/model.pt"):
        if not (bundle.root / name).is_file():
            yield f"{name} is missing: add it"
    for name in IDS:
        if not bundle.config(name):
            yield f"configs/{name}.json is missing: add it"
    weights = sorted(file.name for file in (bundle.root / "models").glob("*.pt"))
    if len(weights) > 1:
        yield f"models holds {', '.join(weights)}: hosts take the shortest name, leave model.pt alone"
    large = _large_files(bundle)
    for name, file in bundle.files().items():
        if not file.resolve().is_relative_to(bundle.root.resolve()):
            yield f"{name} is a link to {file.resolve()}, outside the bundle: put the file itself there"
        elif file.is_file() and file.stat().st_size > LARGE_FILE and name not in large:
            yield f"{name} has {file.stat().st_size / 1024**2:.0f} MB, above 25: name it in large_files.yml"


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
    """Every `_target_` and every expression of the configs against what is allowed."""
    for found in executed(bundle.configs):
        if found.problem:
            yield f"{found.place} would execute {found.what}: {found.problem}"


def check_paths(bundle: Bundle) -> Iterator[str]:
    """No path of a config leads out of the bundle."""
    for name, config in bundle.configs.items():
        for text in _texts(config):
            if not text.startswith("$") and (
                text.startswith(("/", "~")) or ".." in PurePosixPath(text).parts
            ):
                yield f"{name} holds the path {text}, outside the bundle: start from bundle_root"


def check_weights(bundle: Bundle) -> Iterator[str]:
    """Weights that load without running code, and have the hash that large_files.yml names."""
    for name, file in bundle.files().items():
        if file.suffix in PICKLES:
            yield f"{name} holds Python objects, which run code when they are read: leave it out"
        elif file.suffix in WEIGHTS:
            try:
                torch.load(file, map_location="cpu", weights_only=True)
            except Exception as error:
                yield f"{name} holds more than weights ({type(error).__name__}): save a state dictionary"
    for name, entry in _large_files(bundle).items():
        file, wanted = bundle.root / name, entry.get("hash_val", "")
        if file.is_file() and entry.get("hash_type") == "sha256" and wanted and sha256(file) != wanted:
            yield f"{name} has the SHA-256 {sha256(file)} and large_files.yml says {wanted}: get it again"


def check_network(bundle: Bundle) -> Iterator[str]:
    """From another folder the network takes its weights, gives the size it should, and the same twice."""
    inputs, outputs = (next(iter(_tensors(bundle, side).values()), None) for side in ("inputs", "outputs"))
    if not inputs or not outputs:
        return
    size, wanted = ([1, tensor["num_channels"], *_lengths(tensor)] for tensor in (inputs, outputs))
    probe = Path(__file__).with_name("probe.py")
    with tempfile.TemporaryDirectory() as elsewhere:
        done = _run([str(probe), str(bundle.root.resolve()), json.dumps(size)], Path(elsewhere))
    if done.returncode:
        yield f"the network of configs/inference.json does not run on {size}: {_last(done)}"
        return
    found = json.loads(done.stdout.strip().splitlines()[-1])
    if found["shape"] != wanted:
        yield f"the network gives {found['shape']} for {size}, metadata.json says {wanted}: correct one"
    if not found["equal"]:
        yield "the network gives two results for one image: make it deterministic in evaluation mode"
    if not found["dropout"]:
        yield "the network takes no dropout, which MONAI Label sets to score what it is sure of"


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
    config = ["--config_file", str(bundle.root.resolve() / "configs" / "inference.json")]
    config += ["--runtime", "torch"] if "runtime" in bundle.config("inference") else []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data")
        written: list[dict[str, str]] = []
        (data / place).mkdir(parents=True)
        write_image(data / place, tensor["num_channels"], _lengths(tensor))
        for output in (Path(folder, "first"), Path(folder, "second")):
            places = ["--dataset_dir", str(data), "--output_dir", str(output)]
            done = _run(["-m", "monai.bundle", "run", *config, *places], Path(folder))
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


def check_export(bundle: Bundle) -> Iterator[str]:
    """MONAI's own commands: sizes of input and output, and the export to TorchScript."""
    common = ["--config_file", "configs/inference.json", "--meta_file", "configs/metadata.json"]
    with tempfile.TemporaryDirectory() as elsewhere:
        exported = ["--filepath", f"{elsewhere}/model.ts", "--ckpt_file", "models/model.pt"]
        for command, options in (("verify_net_in_out", []), ("ckpt_export", exported)):
            arguments = ["-m", "monai.bundle", command, "network_def", *common, *options]
            done = _run(arguments, bundle.root)
            if done.returncode:
                yield f"monai.bundle {command} fails: {_last(done)}"


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
    "export": check_export,
}


def verify(bundle: Path, show: bool) -> None:
    """Carry out `bundle.cli.verify`, whose arguments these are."""
    if not (has_yaml and has_jsonschema):
        raise InputError("verify needs jsonschema and PyYAML: run pip install -r requirements-zoo.txt")
    with tempfile.TemporaryDirectory() as folder:
        root = unpack(bundle, Path(folder)) if bundle.is_file() else bundle
        found = read_bundle(root)
        if show:
            for entry in executed(found.configs):
                typer.echo(f"  {entry.place}: {entry.what}{'  <- ' + entry.problem if entry.problem else ''}")
        problems = sum(_report(name, check, list(check(found))) for name, check in READING.items())
        if problems:
            for name in RUNNING:
                typer.echo(f"{'not run':<9}{name}: mend what stands above first")
        else:
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
        InputError: no zip, or an entry that leads out of it.
    """
    if not zipfile.is_zipfile(file):
        raise InputError(f"{file} is neither a folder nor a zip: name a bundle")
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            path = PurePosixPath(entry.filename.replace("\\", "/"))
            is_link = entry.external_attr >> 16 & 0o170000 == 0o120000
            if path.is_absolute() or ".." in path.parts or is_link:
                raise InputError(
                    f"{file} holds the entry {entry.filename}, which leads out of the zip: do not use this "
                    "file, of which nothing was unpacked"
                )
        archive.extractall(folder)
    inside = list(folder.iterdir())
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else folder


def _report(name: str, check: Check, sentences: Sequence[str]) -> int:
    """Print what a check found, and return how many problems that is."""
    typer.echo(f"{'FAILED' if sentences else 'ok':<9}{name}: {check.__doc__}")
    for sentence in sentences:
        typer.echo(f"         - {sentence}")
    return len(sentences)


def _tensors(bundle: Bundle, side: str) -> dict[str, Any]:
    """Inputs or outputs that metadata.json describes."""
    formats = bundle.metadata.get("network_data_format")
    tensors = formats.get(side) if isinstance(formats, dict) else None
    return tensors if isinstance(tensors, dict) else {}


def _lengths(tensor: dict[str, Any]) -> list[int]:
    """The smallest spatial size that metadata.json describes: n is 1, and so is p."""
    sizes = []
    for length in tensor["spatial_shape"]:
        factors = str(length).replace("n", "1").replace("p", "1").replace(" ", "")
        sizes.append(length if isinstance(length, int) else math.prod(map(int, factors.split("*"))))
    return sizes


def _hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each file below a folder, by its path there."""
    return {str(file.relative_to(folder)): sha256(file) for file in folder.rglob("*") if file.is_file()}


def _large_files(bundle: Bundle) -> dict[str, dict[str, str]]:
    """Entries of large_files.yml by path."""
    for name in ("large_files.yml", "large_files.yaml", "large_files.json"):
        if (bundle.root / name).is_file():
            content = yaml.safe_load((bundle.root / name).read_text(encoding="utf-8")) or {}
            return {entry["path"]: entry for entry in content.get("large_files", [])}
    return {}


def _at(config: Any, key: str) -> Any:
    """The value of an id such as "train::trainer"; None where there is none."""
    for part in key.split("::"):
        config = config.get(part) if isinstance(config, dict) else None
    return config


def _target(value: Any) -> str:
    target = value.get("_target_", "") if isinstance(value, dict) else ""
    return target.rpartition(".")[2] if isinstance(target, str) else ""


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _texts(part)
    elif isinstance(value, str):
        yield value


def _run(arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    try:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=cwd,
            env={**environment, "PYTHONWARNINGS": "ignore"},
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        return subprocess.CompletedProcess(error.cmd, 1, "", f"it was stopped after {TIMEOUT} seconds")


def _last(done: subprocess.CompletedProcess[str]) -> str:
    """The last line that a process wrote."""
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return lines[-1] if lines else f"exit status {done.returncode}"
