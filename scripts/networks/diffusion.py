"""Denoising diffusion: a network that draws the label map out of noise, given the image.

Follows
- Ho, Jain and Abbeel, 2020, "Denoising diffusion probabilistic models" (arXiv 2006.11239), and Song, Meng and
  Ermon, 2021, "Denoising diffusion implicit models" (arXiv 2010.02502), as MONAI has them: its
  DiffusionModelUNet and DDIMScheduler;
- Wolleb et al., 2021, "Diffusion models for implicit image segmentation ensembles" (arXiv 2112.03145): label
  maps from -1 to 1 with noise on them, beside the channels of the image; several samples, whose mean counts.

Departs: the network predicts the classes and not the noise, so that it learns by the losses of all networks
here, which leave out what nobody annotated. The schedule is the cosine of Nichol and Dhariwal, 2021, and
dropout stands where they have it, before the second convolution of each residual block. Convolutions that
begin at zero there are drawn here. Attention is at the lowest resolution alone.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, cast

import torch
from monai.networks import nets
from monai.networks.nets.diffusion_model_unet import DiffusionUNetResnetBlock
from monai.networks.schedulers import DDIMScheduler
from torch import Tensor, nn

from scripts.errors import InputError, require_within
from scripts.networks.sizes import require_multiple

#: Channels of a group of the norms at the highest level, those of Wolleb et al.: 128 in 32 groups.
GROUP = 4

#: Channels of a head of the attention at most.
HEAD = 32


class DiffusionUNet(nets.DiffusionModelUNet):
    """MONAI's DiffusionModelUNet over noisy label maps beside an image.

    Of an image alone it answers as of noise in its middle: the mean of what can be drawn, in one step.
    `scripts.compute.diffusion` trains it and draws samples.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: channels of the logits, the classes.
        channels: of each level, two or more; each has half of the resolution of the one above.
        num_res_blocks: residual blocks of each level of the encoder; the decoder has one more.
        noise_steps: from a label map to noise; the sampler takes some of them.
        schedule: how the noise grows, a name of MONAI's `NoiseSchedules`.
        dropout: within the residual blocks.

    Attributes:
        in_channels: channels of label map and image.
        scheduler: adds noise and takes it away.

    Raises:
        InputError: an argument breaks its rule; an export.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int],
        num_res_blocks: int = 1,
        noise_steps: int = 1000,
        schedule: str = "cosine",
        dropout: float = 0.0,
    ) -> None:
        require_within("the number of levels in channels", len(channels), 2)
        require_within("noise_steps", noise_steps, 1)
        require_within("dropout", dropout, 0, 1)
        super().__init__(
            spatial_dims,
            out_channels + in_channels,
            out_channels,
            num_res_blocks=num_res_blocks,
            channels=channels,
            attention_levels=[False] * len(channels),
            norm_num_groups=max(math.gcd(*channels) // GROUP, 1),
            num_head_channels=math.gcd(channels[-1], HEAD),
        )
        self.reduction = (2 ** (len(channels) - 1),) * spatial_dims
        with torch.device("cpu"):  # MONAI reads numbers from tensors while it builds
            self.scheduler = DDIMScheduler(noise_steps, schedule, prediction_type="sample")
        for module in self.modules():
            if isinstance(module, DiffusionUNetResnetBlock):
                block = cast(Any, module)
                block.conv2.conv.reset_parameters()
                layers = OrderedDict(dropout=nn.Dropout(dropout), conv=block.conv2.conv)
                block.conv2 = nn.Sequential(layers)  # weights keep MONAI's names
        cast(Any, self.out[-1]).conv.reset_parameters()

    def forward(  # type: ignore[override]
        self, x: Tensor, timesteps: Tensor | None = None, context: None = None
    ) -> Tensor:
        """Logits of the classes under the noise, `(B, out_channels, *spatial)`.

        Args:
            x: `(B, out_channels + in_channels, *spatial)`, the noisy label map, from -1 to 1 under its noise,
                before the image; or the image alone, `(B, in_channels, *spatial)`.
            timesteps: how noisy the label map is, (B) or (1), from 0 to ``noise_steps - 1``; None is noise
                alone.
            context: MONAI's, not used.
        """
        if torch.jit.is_tracing() or torch.compiler.is_exporting():
            raise InputError(
                "a diffusion network is not exported, as it answers in many steps: use runtime torch, and "
                "weights"
            )
        if not torch.compiler.is_compiling():
            require_multiple(x, self.reduction)
        if x.shape[1] == self.in_channels - self.out_channels:
            x = torch.cat([x.new_zeros((len(x), self.out_channels, *x.shape[2:])), x], dim=1)
        if timesteps is None:
            timesteps = torch.full((1,), self.scheduler.num_train_timesteps - 1)
        return super().forward(x, timesteps.to(x.device))
