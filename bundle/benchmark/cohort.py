"""Inference over cases: files in, files out, beside an evaluator as bundles of the Model Zoo have it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.inferers import SlidingWindowInferer
from monai.transforms import (
    Activationsd,
    AsDiscreted,
    Compose,
    EnsureChannelFirstd,
    Invertd,
    LoadImaged,
    NormalizeIntensityd,
    Orientationd,
    SaveImaged,
    Spacingd,
)
from torch import Tensor

from bundle.benchmark.runner import CEILING, OURS, Contest, Entry
from bundle.runs.experiments import parser_of
from scripts.compute.runtimes import Runtime

CONFIG = "configs/inference.json"


@dataclass(frozen=True)
class Cohort:
    """Cases of one size.

    Attributes:
        count: cases.
        shape: voxels of a volume.
        tile: voxels of a window.
        channels: of the network's levels.
        runtime: see `scripts.compute.runtimes.Runtime`; "auto" would judge by weights as drawn, which leave
            many voxels nearly ties, and not choose as it does for trained ones.
    """

    count: int
    shape: tuple[int, int, int]
    tile: tuple[int, int, int]
    channels: tuple[int, ...] = (16, 32, 64, 128)
    runtime: str = "openvino"


COHORTS = (Cohort(60, (36, 50, 36), (32, 48, 32)), Cohort(4, (192, 192, 128), (96, 96, 96)))
SMALL_COHORTS = (Cohort(3, (20, 18, 16), (16, 16, 16), (4, 4), "torch"),)

#: Cases whose labels are compared, and whose windows stand for those of all.
COMPARED = 4


def contests(small: bool, device: torch.device) -> list[Contest]:
    """A cohort of small volumes, and one of larger ones; on the CPU, whatever the device.

    Args:
        small: tiny sizes.
        device: not used.
    """
    return [contest(cohort) for cohort in (SMALL_COHORTS if small else COHORTS)]


def contest(cohort: Cohort) -> Contest:
    """Inference over a cohort.

    Args:
        cohort: how many volumes, and of which size.
    """
    network, peer = "the network alone", "SupervisedEvaluator, fp32"
    entries = {network: Entry(partial(_network_alone, cohort), CEILING, "tuned")}
    for allocator in ("default", "tuned"):
        name = f"{peer}, {allocator}"
        entries[name] = Entry(partial(_monai, cohort), "MONAI", allocator, reference=f"{peer}, default")
    ours = Entry(partial(_ours, cohort), OURS, "tuned", ceiling=network, reference=f"{peer}, default")
    entries["inference.json"] = ours
    size, tile = (" x ".join(map(str, axes)) for axes in (cohort.shape, cohort.tile))
    return Contest(
        f"cohort: {cohort.count} volumes of {size}, from files to files",
        f".nii.gz of 16 bits, windows of {tile}, overlap 0.5, 3 classes; without imports; the ceiling is "
        "what the network takes alone, with the runtime of ours",
        entries,
        agreement="same class",
        compare=lambda labels, reference: float(np.mean(labels == reference)),
    )


def _write(cohort: Cohort, folder: Path) -> None:
    """The volumes, and weights as drawn."""
    (folder / "images").mkdir()
    for index in range(cohort.count):
        coarse = torch.rand((1, 1, *(-(-n // 4) for n in cohort.shape)))
        values = 1000 * F.interpolate(coarse, size=cohort.shape, mode="trilinear")[0, 0]
        image = nib.Nifti1Image(values.numpy().astype(np.int16), np.eye(4))  # type: ignore[attr-defined]
        nib.save(image, folder / f"images/case_{index:03d}.nii.gz")  # type: ignore[attr-defined]
    network = _parser(cohort, folder).get_parsed_content("network_def")
    torch.save(network.state_dict(), folder / "model.pt")


def _parser(cohort: Cohort, folder: Path) -> Any:
    handlers = parser_of({"config_file": [CONFIG]}).get()["handlers"]
    loads = [handler for handler in handlers if handler["_target_"].endswith("WeightsLoader")]
    return parser_of(
        {
            "config_file": [CONFIG],
            "dataset_dir": str(folder / "images"),
            "output_dir": str(folder / "ours"),
            "checkpoint": str(folder / "model.pt"),
            "patch_size": list(cohort.tile),
            "channels": list(cohort.channels),
            "runtime": cohort.runtime,
            "handlers": loads,  # no bar
        }
    )


class _Files:
    """Work over files that go with it.

    Args:
        cohort: what to write.
        make: of the folder, the work.
        name: of the folder that the work writes to.
    """

    def __init__(self, cohort: Cohort, make: Callable[[Path], Callable[[], Any]], name: str) -> None:
        self.folder = TemporaryDirectory(prefix="benchmark-", ignore_cleanup_errors=True)
        self.place = Path(self.folder.name)
        _write(cohort, self.place)
        self.work = make(self.place)
        self.written = self.place / name

    def __call__(self) -> np.ndarray:
        self.work()
        files = sorted(self.written.rglob("*.nii.gz"))[:COMPARED]
        maps = [np.asarray(nib.load(file).dataobj) for file in files]  # type: ignore[attr-defined]
        return np.stack(maps).astype(np.uint8)


def _ours(cohort: Cohort) -> Callable[[], np.ndarray]:
    def make(folder: Path) -> Callable[[], Any]:
        return lambda: _parser(cohort, folder).get_parsed_content("evaluator").run()

    return _Files(cohort, make, "ours")


def _network_alone(cohort: Cohort) -> Callable[[], Any]:
    """The windows of as many cases, as the inferer hands them out, and nothing else."""
    windows: list[list[Tensor]] = []

    def make(folder: Path) -> Callable[[], Any]:
        parser = _parser(cohort, folder)
        network, inferer = (parser.get_parsed_content(name) for name in ("network", "inferer"))
        network.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
        network.eval()
        cases, preprocessing = (parser.get_parsed_content(name) for name in ("cases", "preprocessing"))
        runtime: Runtime = inferer.runtime

        class Recorder(Runtime):
            def __call__(self, network: Any, tile: Tensor, *args: Any, **kwargs: Any) -> Tensor:
                windows[-1].append(tile)
                return runtime(network, tile)

            def abreast(self, *args: Any) -> int:
                return runtime.abreast(*args)  # windows side by side, as inference has them

        inferer.runtime = Recorder(cohort.runtime, runtime.amp)
        with torch.no_grad():
            for case in cases.cases[:COMPARED]:
                windows.append([])
                inferer(preprocessing(case)["image"][None], network)

        @torch.no_grad()
        def compute() -> None:
            for _, tiles in zip(range(cohort.count), cycle(windows), strict=False):
                for tile in tiles:
                    runtime(network, tile)

        return compute

    made = _Files(cohort, make, "ours")
    return made.work


def _monai(cohort: Cohort) -> Callable[[], np.ndarray]:
    """What bundles of the Model Zoo have for inference."""

    def make(folder: Path) -> Callable[[], Any]:
        return partial(_evaluate, cohort, folder)

    return _Files(cohort, make, "monai")


def _evaluate(cohort: Cohort, folder: Path) -> None:
    network = _parser(cohort, folder).get_parsed_content("network_def")
    network.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
    before = Compose(
        [
            LoadImaged("image"),
            EnsureChannelFirstd("image"),
            Orientationd("image", axcodes="RAS", labels=None),
            Spacingd("image", pixdim=(1.0, 1.0, 1.0), mode="bilinear"),
            NormalizeIntensityd("image", channel_wise=True),
        ]
    )
    after = Compose(
        [
            Activationsd("pred", softmax=True),
            Invertd("pred", before, orig_keys="image", nearest_interp=False, to_tensor=True),
            AsDiscreted("pred", argmax=True),
            SaveImaged("pred", output_dir=folder / "monai", output_postfix="seg", print_log=False),
        ]
    )
    images = [{"image": str(file)} for file in sorted((folder / "images").iterdir())]
    SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(images, before), batch_size=1),
        network=network,
        inferer=SlidingWindowInferer(cohort.tile, overlap=0.5, mode="gaussian"),
        postprocessing=after,
    ).run()
