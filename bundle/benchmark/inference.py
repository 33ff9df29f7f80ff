"""Prediction: a whole volume window by window, single tiles, and an image in the network of 2015."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from monai.data.utils import dense_patch_slices
from monai.inferers import sliding_window_inference
from torch import Tensor, nn

from bundle.benchmark import networks
from bundle.benchmark.networks import Build, Variant
from bundle.benchmark.runner import OURS, Contest, Entry, same_class
from bundle.ship.quantise import quantise
from scripts.compute import inferers
from scripts.compute.exported import Exported
from scripts.compute.runtimes import Runtime
from scripts.networks import output_size

Axes = tuple[int, ...]  # one entry per spatial axis

CLASSES = 3
OVERLAP = 0.5

#: A precision that OpenVINO alone has, and the images of noise that its ranges are taken from: speed does not
#: depend on them.
INT8, CALIBRATION = "int8", 3

#: Volume, window, channels of the levels.
VOLUME = ((192, 192, 128), (96, 96, 96), (16, 32, 64, 128, 256))
SMALL_VOLUME = ((40, 32, 32), (32, 32, 32), (4, 4, 8, 8, 8))

#: Tile and channels of the levels.
TILES = (((96, 96, 96), (16, 32, 64, 128, 256)), ((512, 512), (32, 64, 128, 256, 512)))
SMALL_TILES = (((32, 32, 32), (4, 4, 8, 8, 8)), ((32, 32), (4, 4, 8, 8, 8)))

#: Image and tile of the network of 2015, and its channels, None for the paper's. The tile is the smallest
#: legal one whose prediction covers the image.
IMAGE_2015 = ((512, 512), (700, 700), None)
SMALL_IMAGE_2015 = ((132, 132), (316, 316), (4, 4, 8, 8, 8))


@dataclass(frozen=True)
class Setting:
    """How our inferers compute the tiles.

    Attributes:
        precision: one of `networks.precisions`, or "int8", which OpenVINO computes of a file.
        runtime: see `scripts.compute.runtimes.Runtime`.
        variant: how the network is prepared beforehand, for runtime "torch".
    """

    precision: str
    runtime: str = "torch"
    variant: Variant | None = None

    @property
    def name(self) -> str:
        """For the table."""
        if self.precision == INT8:
            return f"openvino, {INT8}"
        return self.variant.name if self.variant else f"{self.runtime}, {self.precision}"

    @property
    def amp(self) -> bool:
        """Whether the runtime is asked for mixed precision."""
        return self.variant is None and self.precision in networks.HALF.values()

    @property
    def needs(self) -> tuple[str, ...]:
        """Packages of the runtime."""
        if self.precision == INT8:
            return ("openvino", "nncf")
        return {"onnxruntime": ("onnxruntime", "onnx", "onnxscript"), "openvino": ("openvino",)}.get(
            self.runtime, ()
        )

    def prepare(self, network: nn.Module, tile: Tensor) -> nn.Module:
        """The network that the inferer is to be handed; without a variant as in `configs/inference.json`."""
        if self.precision == INT8:
            return _in_int8(network, tile)
        as_configured = Variant(self.precision, channels_last=tile.device.type == "cpu")
        return (self.variant or as_configured).prepare(network, tile)


def settings(device: torch.device) -> list[Setting]:
    """Every runtime in every precision it has; on a GPU, where only PyTorch computes, every variant."""
    *_, best = precisions = networks.precisions(device)
    if device.type == "cuda":
        return [*(Setting(v.precision, variant=v) for v in networks.variants(device)), Setting(best, "auto")]
    chosen = [Setting(p, runtime) for runtime in ("torch", "compile", "openvino") for p in precisions]
    return [*chosen, Setting(INT8), Setting("fp32", "onnxruntime"), Setting(best, "auto")]


def contests(small: bool, device: torch.device) -> list[Contest]:
    """A whole volume, a tile in three dimensions and one in two, an image in the network of 2015.

    Args:
        small: tiny sizes.
        device: where to predict.
    """
    return [
        _volume(small, device),
        *(_tile(tile, channels, small, device) for tile, channels in (SMALL_TILES if small else TILES)),
        _image_2015(small, device),
    ]


def _volume(small: bool, device: torch.device) -> Contest:
    volume, window, channels = SMALL_VOLUME if small else VOLUME
    name, build = networks.nnunet_or_ours(3, channels, CLASSES)
    steps = tuple(int(n * (1 - OVERLAP)) for n in window)
    work = len(dense_patch_slices(volume, window, steps)) * networks.operations(build, (1, 1, *window))
    peers = [
        Peer(
            f"sliding_window_inference, {variant.name}",
            "MONAI",
            variant.precision,
            partial(_monai_volume, build, volume, window, variant, device),
        )
        for variant in networks.peer_variants(device)
    ]
    # on a GPU nnU-Net opens autocast itself
    precision = (
        networks.peer_variants(device)[0].precision
        if device.type == "cpu"
        else networks.precisions(device)[-1]
    )
    peers.append(
        Peer(
            f"nnUNetPredictor, {precision}",
            "nnU-Net",
            precision,
            partial(_nnunet_volume, build, volume, window, device),
            needs=("nnunetv2",),
        )
    )
    ours = {
        setting: partial(_our_volume, build, volume, window, setting, device) for setting in settings(device)
    }
    return Contest(
        f"inference: a volume of {_times(volume)}, window by window",
        f"windows of {_times(window)}, overlap {OVERLAP}, Gaussian, one window at once, {name}, "
        f"{CLASSES} classes",
        networks.ceilings(3, device, small) | _entries(3, device, work, peers, ours),
        agreement="same class",
        compare=same_class,
    )


def _tile(tile: Axes, channels: Sequence[int], small: bool, device: torch.device) -> Contest:
    dims = len(tile)
    name, build = networks.nnunet_or_ours(dims, channels, CLASSES)
    work = networks.operations(build, (1, 1, *tile))
    peers = [
        Peer(f"PyTorch, {v.name}", "PyTorch", v.precision, partial(_plain_tile, build, tile, v, device))
        for v in networks.peer_variants(device)
    ]
    ours = {setting: partial(_our_tile, build, tile, setting, device) for setting in settings(device)}
    return Contest(
        f"inference: one tile of {_times(tile)}",
        f"{name}, {CLASSES} classes",
        networks.ceilings(dims, device, small) | _entries(dims, device, work, peers, ours),
        agreement="same class",
        compare=same_class,
        unit="ms",
    )


def _image_2015(small: bool, device: torch.device) -> Contest:
    image, tile, channels = SMALL_IMAGE_2015 if small else IMAGE_2015
    build = partial(networks.network_of_2015, channels)
    work = networks.operations(build, (1, 1, *tile))
    peers = [
        Peer(
            f"PyTorch, {v.name}", "PyTorch", v.precision, partial(_plain_2015, build, image, tile, v, device)
        )
        for v in networks.peer_variants(device)
    ]
    ours = {setting: partial(_our_2015, build, image, tile, setting, device) for setting in settings(device)}
    return Contest(
        f"inference: an image of {_times(image)} in the network of 2015",
        f"configs/network/unet2015.json, one tile of {_times(tile)} whose margin is mirrored",
        networks.ceilings(2, device, small) | _entries(2, device, work, peers, ours),
        agreement="same class",
        compare=same_class,
        unit="ms",
    )


@dataclass(frozen=True)
class Peer:
    """A peer's way; see Entry."""

    name: str
    origin: str
    precision: str
    make: Callable[[], Callable[[], Tensor]]
    needs: tuple[str, ...] = ()


def _entries(
    dims: int,
    device: torch.device,
    work: float,
    peers: Sequence[Peer],
    ours: Mapping[Setting, Callable[[], Callable[[], Tensor]]],
) -> dict[str, Entry]:
    """Every peer with every allocator, then our ways; all against the first."""
    entries: dict[str, Entry] = {}
    reference = f"{peers[0].name}, default"
    for peer in peers:
        for allocator in networks.peer_allocators(device):
            entries[f"{peer.name}, {allocator}"] = Entry(
                peer.make,
                peer.origin,
                allocator,
                peer.needs,
                work,
                networks.ceiling(dims, peer.precision),
                reference,
            )
    for setting, make in ours.items():
        ceiling = None if setting.precision == INT8 else networks.ceiling(dims, setting.precision)
        entries[setting.name] = Entry(make, OURS, "tuned", setting.needs, work, ceiling, reference)
    return entries


def _times(sizes: Axes) -> str:
    return " x ".join(map(str, sizes))


def _network_and_image(build: Build, size: Axes, device: torch.device) -> tuple[nn.Module, Tensor]:
    """The same weights and voxels in every process: it seeds its generators before."""
    network = build().to(device).eval()
    return network, torch.rand((1, 1, *size)).to(device)


def _in_int8(network: nn.Module, tile: Tensor) -> nn.Module:
    """The network in OpenVINO, rounded to 8 bits, compiled for tiles of this size."""
    from openvino import convert_model, save_model

    with TemporaryDirectory() as folder:
        source = Path(folder, "network.xml")
        save_model(convert_model(network, example_input=tile), source, compress_to_fp16=False)
        noise = [torch.rand(tile.shape) for _ in range(CALIBRATION)]
        quantise(source, network, noise, Path(folder), share=math.inf)
        rounded = Exported(str(Path(folder, "model.int8.xml")), network, precision="fast")
        rounded(tile)  # while the files are there
    return rounded


def _monai_volume(
    build: Build, volume: Axes, window: Axes, variant: Variant, device: torch.device
) -> Callable[[], Tensor]:
    network, image = _network_and_image(build, volume, device)
    network = variant.prepare(network, image)

    def work() -> Tensor:
        with torch.no_grad():
            return sliding_window_inference(image, window, 1, network, OVERLAP, mode="gaussian")  # type: ignore[return-value]

    return work


def _nnunet_volume(build: Build, volume: Axes, window: Axes, device: torch.device) -> Callable[[], Tensor]:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    network, image = _network_and_image(build, volume, device)
    predictor = nnUNetPredictor(
        tile_step_size=1 - OVERLAP, use_mirroring=False, device=device, allow_tqdm=False
    )
    predictor.network = network
    predictor.configuration_manager = SimpleNamespace(patch_size=window)
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=CLASSES)
    return lambda: predictor.predict_sliding_window_return_logits(image[0])[None]


def _our_volume(
    build: Build, volume: Axes, window: Axes, setting: Setting, device: torch.device
) -> Callable[[], Tensor]:
    network, image = _network_and_image(build, volume, device)
    network = setting.prepare(network, image[..., : window[0], : window[1], : window[2]])
    inferer = inferers.SlidingWindowSlabInferer(
        window, overlap=OVERLAP, mode="gaussian", runtime=setting.runtime, amp=setting.amp
    )
    return lambda: inferer(image, network)


def _plain_tile(build: Build, tile: Axes, variant: Variant, device: torch.device) -> Callable[[], Tensor]:
    network, image = _network_and_image(build, tile, device)
    network = variant.prepare(network, image)

    def work() -> Tensor:
        with torch.no_grad():
            return network(image)

    return work


def _our_tile(build: Build, tile: Axes, setting: Setting, device: torch.device) -> Callable[[], Tensor]:
    network, image = _network_and_image(build, tile, device)
    network, runtime = setting.prepare(network, image), Runtime(setting.runtime, setting.amp)
    return lambda: runtime(network, image)


def _plain_2015(
    build: Build, size: Axes, tile: Axes, variant: Variant, device: torch.device
) -> Callable[[], Tensor]:
    network, image = _network_and_image(build, size, device)
    margin = (tile[0] - output_size(network, tile)[0]) // 2
    further = tile[0] - size[0] - margin
    padded = F.pad(image, (margin, further, margin, further), mode="reflect")
    network = variant.prepare(network, padded)

    def work() -> Tensor:
        with torch.no_grad():
            return network(padded)[..., : size[0], : size[1]]

    return work


def _our_2015(
    build: Build, size: Axes, tile: Axes, setting: Setting, device: torch.device
) -> Callable[[], Tensor]:
    network, image = _network_and_image(build, size, device)
    network = setting.prepare(network, torch.rand((1, 1, *tile)).to(device))
    inferer = inferers.OverlapTileInferer(tile, runtime=setting.runtime, amp=setting.amp)
    return lambda: inferer(image, network)
