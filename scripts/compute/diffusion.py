"""Diffusion at work: label maps under noise to train on, and samples drawn out of noise.

Both are MONAI's `DiffusionInferer` around `scripts.networks.diffusion.DiffusionUNet`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from monai.data import MetaTensor
from monai.engines import default_prepare_batch
from monai.inferers import DiffusionInferer, Inferer
from monai.networks import one_hot
from monai.networks.schedulers import DDIMScheduler
from torch import Tensor, nn

from scripts.checkpoints import unwrap
from scripts.compute.inferers import SlabInferer, uncalibrated
from scripts.compute.memory import resident_bytes
from scripts.errors import Fault, InputError, require_within
from scripts.labels import IGNORE_LABEL
from scripts.machine import gigabytes
from scripts.networks.diffusion import DiffusionUNet
from scripts.process import require_memory

#: Label maps of one sample that are held at once, with those of its next step and the mean.
MAPS = 9


class NoisyLabels:
    """What a step of a training gets: images below their label maps under noise, and the labels.

    For `prepare_batch` of MONAI's trainer. How much noise is drawn for each image, evenly over the steps of
    the network's schedule. What nobody annotated is noise around 0, no class at all.

    Args:
        network: a `DiffusionUNet`.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = require_diffusion(network)

    def __call__(
        self,
        batchdata: Mapping[str, Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor, tuple, dict[str, Tensor]]:
        """Take a batch.

        Args:
            batchdata: "image", (B, in_channels, *spatial), and "label", (B, 1, *spatial), class indices or
                `IGNORE_LABEL`; further channels of it are for the loss alone.
            device: where to.
            non_blocking: see MONAI.
            **kwargs: see MONAI.

        Returns:
            What the network takes, the labels, and its further arguments.
        """
        batch: Any = default_prepare_batch(dict(batchdata), device, non_blocking, **kwargs)
        image, label = (part.as_tensor() if isinstance(part, MetaTensor) else part for part in batch)
        scheduler = self.network.scheduler
        clean = label_map(label[:, :1], self.network.out_channels)
        steps = torch.randint(scheduler.num_train_timesteps, (len(clean),), device=clean.device)
        noisy = scheduler.add_noise(clean, torch.randn_like(clean), steps)
        return torch.cat([noisy, image], dim=1), label, (), {"timesteps": steps}


class SampledSegmentation(Inferer):
    """The mean of the probabilities of several samples, each drawn out of noise of its own.

    At every step the whole label map passes the network window by window, so that windows agree. The noise is
    that of the image: drawn from the seed for all of its voxels, one sample after the other, whatever tiles,
    batches and other images there are.

    Args:
        inferer: predicts one step, (B, C, *spatial) to logits (B, classes, *spatial).
        samples: how many.
        steps: to each of them, by DDIM without further noise; at most those of the network's schedule.
        seed: of the noise.

    Raises:
        InputError: an argument breaks its rule, or a runtime that does not compute the network. When called:
            another network, or more steps than its schedule has.
    """

    def __init__(self, inferer: Inferer, samples: int = 5, steps: int = 10, seed: int = 0) -> None:
        super().__init__()
        require_within("samples", samples, 1)
        require_within("steps", steps, 1)
        runtime = inferer.runtime.runtime if isinstance(inferer, SlabInferer) else "torch"
        if runtime not in ("torch", "auto"):
            raise InputError(
                f"runtime is {runtime!r}, and a diffusion network, which answers in many steps, is computed "
                "by PyTorch alone: use 'torch' or 'auto'"
            )
        self.inferer, self.calibration = uncalibrated(inferer)
        self.samples = samples
        self.steps = steps
        self.seed = seed

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        """Segment images.

        Args:
            inputs: (B, in_channels, *spatial).
            network: a `DiffusionUNet`.
            *args: not used.
            **kwargs: not used.

        Returns:
            Logarithms of the mean probabilities, calibrated, which softmax turns back into them,
            (B, classes, *spatial), with the meta data of ``inputs``.

        Raises:
            Fault: an image whose label maps take more memory than there is, or than the inferer may take.
        """
        images = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        diffusion = require_diffusion(network)
        scheduler = in_steps(diffusion.scheduler, self.steps)
        sampler = DiffusionInferer(scheduler)
        means = []
        for image in images.split(1):
            self._require_room(image, diffusion.out_channels)
            mean = torch.zeros(())
            generator = torch.Generator().manual_seed(self.seed)
            for _ in range(self.samples):
                noise = torch.randn((1, diffusion.out_channels, *image.shape[2:]), generator=generator)
                drawn: Any = sampler.sample(
                    noise.to(image),
                    partial(self._denoise, network),  # type: ignore[arg-type]
                    scheduler,
                    conditioning=image,
                    mode="concat",
                    verbose=False,
                )
                mean = mean + (drawn + 1).div_(2 * self.samples)
            means.append(mean.clamp_min_(torch.finfo(torch.float32).tiny).log_())
        found = torch.cat(means)
        if self.calibration is not None:
            self.calibration.calibrate_(found, 1)
        return MetaTensor(found).copy_meta_from(inputs, copy_attr=False) if images is not inputs else found

    def _denoise(
        self, network: Callable[..., Any], x: Tensor, timesteps: Tensor, context: None = None
    ) -> Tensor:
        """The label map under the noise, (1, classes, *spatial), from -1 to 1."""
        logits: Any = self.inferer(x, network, timesteps=timesteps)
        return logits.softmax(1).mul_(2).sub_(1)

    def _require_room(self, image: Tensor, classes: int) -> None:
        """Refuse an image before its label maps take more memory than there is."""
        if image.device.type != "cpu":
            return
        needed = 4.0 * image[0, 0].numel() * (MAPS * classes + image.shape[1])
        budget = getattr(self.inferer, "memory_gb", None)
        if budget is not None and resident_bytes() + needed > budget * 1e9:
            enough = math.ceil((resident_bytes() + needed) / 1e7) / 100
            raise Fault(
                f"voxels whose label maps take {gigabytes(needed)} while a sample is drawn, however many are",
                f"memory_gb is {budget}, of which {gigabytes(resident_bytes())} are taken",
                f"allow {enough} or more, crop it, or set a larger --spacing",
            )
        require_memory(needed, "label maps of a diffusion")


def label_map(classes: Tensor, count: int) -> Tensor:
    """Classes as the network sees them: 1 for the class of a voxel, -1 for the others, 0 where none is known.

    Args:
        classes: (B, 1, *spatial), class indices or `IGNORE_LABEL`.
        count: of the classes.

    Returns:
        (B, count, *spatial), float32.
    """
    known = classes != IGNORE_LABEL
    return (2 * one_hot(torch.where(known, classes, 0), count, dtype=torch.float32) - 1) * known


def in_steps(scheduler: DDIMScheduler, steps: int) -> DDIMScheduler:
    """A schedule that begins at noise alone and takes its way in a number of equal steps.

    MONAI's own places lie a little further apart than its steps go.

    Args:
        scheduler: stays as it is.
        steps: how many.

    Raises:
        InputError: more than it has.
    """
    total = scheduler.num_train_timesteps
    if steps > total:
        raise InputError(f"sampling_steps is {steps}, and noise_steps {total}: take no more than there are")
    made = copy.copy(scheduler)
    made.num_inference_steps = steps
    made.timesteps = torch.arange(steps, 0, -1) * (total // steps) - 1
    return made


def require_diffusion(network: Any) -> DiffusionUNet:
    """The network, if it is one that takes noise away.

    Raises:
        InputError: it is another one.
    """
    bare = unwrap(network) if isinstance(network, nn.Module) else network
    if not isinstance(bare, DiffusionUNet):
        raise InputError(
            f"the network is a {type(bare).__name__}, which takes no noise away: use "
            "configs/network/diffusion.json as it is, neither an ensemble of them, nor an exported file, nor "
            "another network"
        )
    return bare
