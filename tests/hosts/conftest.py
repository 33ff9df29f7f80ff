"""The two packages, their data, and a MONAI Label server for each kind of data that serves both."""

from __future__ import annotations

import datetime
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bundle.runs.experiments import read_experiment
from tests.commands import CONFIGS, ROOT, SHARED_DATA, command, workbench
from tests.hosts.server import PYTHON, Server, serving

HIPPOCAMPUS, NUCLEI = "hippocampus_segmentation_unet", "nuclei_segmentation_unet"

#: Images that are labelled, and images that stay without.
LABELLED, OTHERS = 3, 2


@dataclass
class Kind:
    """One of the two packages and real images for it.

    Attributes:
        model: name of the package.
        bundle: its folder.
        labels: class name to value in /info, without background.
        dimension: of its images.
        studies: folder of the images.
        truth: labels of the images to be labelled, by the name of the image.
        clear: images of which the image "noisy" shows less.
        val_split: share of the labelled images to validate on.
    """

    model: str
    bundle: Path
    labels: dict[str, int]
    dimension: int
    studies: Path
    truth: dict[str, Path]
    clear: list[str]
    val_split: float

    def images(self) -> dict[str, Path]:
        """The images by the name that the server gives them."""
        return {
            file.name.partition(".")[0]: file
            for file in sorted(self.studies.iterdir())
            if file.suffix in (".gz", ".png")
        }

    def segmented(self, weights: Path, folder: Path) -> Path:
        """What our own inference writes about the images."""
        config = self.bundle / "configs/inference.json"
        options = {
            "dataset_dir": self.studies,
            "checkpoint": weights,
            "output_dir": folder,
            "runtime": "torch",
            "memory_format": "contiguous",  # as the server has it: sums in the same order
        }
        parts = [part for key, value in options.items() for part in (f"--{key}", str(value))]
        done = command("-m", "monai.bundle", "run", "--config_file", str(config), *parts, cwd=folder)
        assert done.returncode == 0, done.stderr
        return folder


@dataclass
class Report:
    """What was done, with results and seconds, for docs/monai-label-report.md."""

    rows: list[str] = field(default_factory=list)
    start: float = field(default_factory=time.monotonic)

    @contextmanager
    def step(self, what: str, model: str) -> Iterator[Callable[[str], None]]:
        """Time a step; the function that it gives takes the result."""
        results: list[str] = []
        begin = time.monotonic()
        yield results.append
        self.add(what, model, "; ".join(results), begin)

    def add(self, what: str, model: str, result: str, begin: float) -> None:
        """A step that began at a time of the monotonic clock."""
        self.rows.append(f"| {what} | {model} | {result} | {time.monotonic() - begin:.1f} |")


REPORT: pytest.StashKey[Report] = pytest.StashKey()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[REPORT] = Report()


@pytest.fixture(scope="session")
def report(request: pytest.FixtureRequest) -> Report:
    return request.config.stash[REPORT]


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write the report where HOSTS_REPORT says, if everything passed."""
    report, path = session.config.stash[REPORT], os.environ.get("HOSTS_REPORT")
    if exitstatus or not path or not report.rows:
        return
    packages = ("monailabel", "monai", "torch", "numpy", "pydicom", "itk-core")
    script = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"
    found = subprocess.check_output([str(PYTHON), "-c", script, *packages], text=True).split()
    text = [
        "# MONAI Label: the last report",
        "",
        "Written by `make test-hosts`; what the steps are: [monai-label.md](monai-label.md).",
        "",
        f"- {datetime.date.today():%Y-%m-%d}, {(time.monotonic() - report.start) / 60:.1f} minutes, "
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors, one thread",
        f"- the server's environment: Python {platform.python_version()}, "
        + ", ".join(f"{name} {number}" for name, number in zip(packages, found, strict=True)),
        "",
        "| step | package | result | seconds |",
        "|---|---|---|---|",
        *report.rows,
    ]
    (ROOT / path).write_text("\n".join(text) + "\n", encoding="utf-8")


@pytest.fixture(scope="session")
def environment() -> None:
    """The server's environment and the data of both packages, without which tests are skipped."""
    if not PYTHON.is_file():
        pytest.skip(f"{PYTHON} is absent: make test-hosts builds it")
    for name in ("msd_task04_hippocampus", "dsb2018_nuclei"):
        if not (SHARED_DATA / name).is_dir():
            pytest.skip(f"{SHARED_DATA / name} is absent")


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both packages, with the weights of this repository.

    In float32, which the server and we compute alike on every processor.
    """
    folder = tmp_path_factory.mktemp("packages")
    for name, weights in (("hippocampus", "models"), ("nuclei", "models/nuclei")):
        experiment = read_experiment(CONFIGS / f"experiments/{name}.json", {})
        (folder / f"{name}.json").write_text(json.dumps(experiment), encoding="utf-8")
        said = workbench(
            *("package", "--args_file", folder / f"{name}.json", "--output_dir", folder / "dist"),
            *("--checkpoint", ROOT / weights / "model.pt", "--scores", ROOT / weights / "summary.json"),
        )
        assert "Wrote" in said
    for config in (folder / "dist").glob("*/configs/inference.json"):  # each run chooses its precision
        content = json.loads(config.read_text(encoding="utf-8"))
        config.write_text(json.dumps({**content, "amp": False}, indent=4) + "\n", encoding="utf-8")
    return folder / "dist"


@pytest.fixture(scope="session")
def volumes(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Kind:
    """Hippocampus volumes of the validation; one turned, with voxels of three lengths; one with noise."""
    studies = tmp_path_factory.mktemp("volumes")
    data = SHARED_DATA / "msd_task04_hippocampus"
    names = sorted(json.loads((data / "splits.json").read_text(encoding="utf-8"))["val"])
    chosen = names[: LABELLED + OTHERS]
    for name in chosen:
        shutil.copyfile(data / f"imagesTr/{name}.nii.gz", studies / f"{name}.nii.gz")
    image = nib.Nifti1Image.from_filename(data / f"imagesTr/{names[-1]}.nii.gz")
    voxels = np.asarray(image.dataobj)
    axes = np.array([[0, 0, -1.1, 20], [0.8, 0, 0, -7], [0, -1.3, 0, 31], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(voxels, axes), studies / "turned.nii.gz")
    noise = np.random.default_rng(0).normal(voxels, 2 * voxels.std()).astype(np.float32)
    nib.save(nib.Nifti1Image(noise, image.affine), studies / "noisy.nii.gz")
    truth = {name: data / f"labelsTr/{name}.nii.gz" for name in chosen[:LABELLED]}
    return Kind(
        HIPPOCAMPUS, dist / HIPPOCAMPUS, {"anterior": 1, "posterior": 2}, 3, studies, truth, chosen, 0.34
    )


@pytest.fixture(scope="session")
def pictures(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Kind:
    """Real pictures of nuclei of the validation."""
    studies = tmp_path_factory.mktemp("pictures")
    data = SHARED_DATA / "dsb2018_nuclei"
    names = sorted(json.loads((data / "splits.json").read_text(encoding="utf-8"))["val"])
    chosen = names[: LABELLED + OTHERS]
    for name in chosen:
        shutil.copyfile(data / f"images/{name}.png", studies / f"{name}.png")
    truth = {name: data / f"labels/{name}.png" for name in chosen[:LABELLED]}
    return Kind(NUCLEI, dist / NUCLEI, {"interior": 1, "border": 2}, 2, studies, truth, [], 0.0)


@pytest.fixture(scope="session")
def own(volumes: Kind, pictures: Kind, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What our own inference writes, with the weights as packaged."""
    return {
        kind.model: kind.segmented(kind.bundle / "models/model.pt", tmp_path_factory.mktemp("own"))
        for kind in (volumes, pictures)
    }


@pytest.fixture(scope="session", params=["volumes", "pictures"])
def kind(request: pytest.FixtureRequest) -> Kind:
    chosen: Kind = request.getfixturevalue(request.param)
    return chosen


@pytest.fixture(scope="session")
def server(
    kind: Kind, dist: Path, report: Report, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """Serves both packages, and has the images of one kind."""
    bundles = [dist / name for name in (HIPPOCAMPUS, NUCLEI)]
    begin = time.monotonic()
    with serving(bundles, kind.studies, tmp_path_factory.mktemp("server")) as running:
        report.add("start of the server", "both", f"answers, with the images of {kind.model}", begin)
        yield running
