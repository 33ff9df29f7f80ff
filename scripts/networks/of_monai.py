"""Networks of MONAI as the configs name them: with the `dropout` that hosts set, whatever MONAI calls it.

Weights have MONAI's names and shapes, so that files of weights of MONAI's classes fit; of UNETR without those
of `norm_cross_attn`, which nothing reads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks import nets
from torch import Tensor, nn

from scripts.errors import InputError, require_within
from scripts.networks.sizes import require_multiple


class SegResNet(nets.SegResNet):
    """MONAI's SegResNet (Myronenko, 2018, arXiv 1810.11654).

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: channels of the logits.
        init_filters: channels of the highest level, a multiple of 8; each level has twice as many.
        blocks_down: residual blocks of each encoder level.
        blocks_up: residual blocks of each decoder level.
        dropout: after the first convolution.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        init_filters: int = 8,
        blocks_down: Sequence[int] = (1, 2, 2, 4),
        blocks_up: Sequence[int] = (1, 1, 1),
        dropout: float = 0.0,
    ) -> None:
        super().__init__(
            spatial_dims,
            init_filters,
            in_channels,
            out_channels,
            dropout,
            blocks_down=tuple(blocks_down),
            blocks_up=tuple(blocks_up),
        )


class SwinUNETR(nets.SwinUNETR):
    """MONAI's SwinUNETR (Hatamizadeh et al., 2022, arXiv 2201.01266), by its authors.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: channels of the logits.
        feature_size: channels of the highest level, a multiple of 12.
        depths: transformer layers of each level.
        num_heads: of the attention of each level.
        window_size: side of the windows within which voxels attend to each other.
        use_v2: a residual block more before each level.
        dropout: in the transformer layers.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        feature_size: int = 48,
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        use_v2: bool = False,
        dropout: float = 0.0,
    ) -> None:
        device = torch.get_default_device()
        with torch.device("cpu"):  # MONAI reads numbers from tensors while it builds
            super().__init__(
                in_channels,
                out_channels,
                depths=depths,
                num_heads=num_heads,
                window_size=window_size,
                feature_size=feature_size,
                drop_rate=dropout,
                spatial_dims=spatial_dims,
                use_v2=use_v2,
            )
        self.to(device)

    def forward(self, x_in: Tensor) -> Tensor:
        """Map `(B, in_channels, *spatial)` to logits, `(B, out_channels, *spatial)`."""
        if torch.jit.is_tracing() or torch.compiler.is_exporting():
            raise InputError(
                "SwinUNETR is not exported, as its windows follow from the size of one tile: use runtime "
                "torch, and weights"
            )
        logits: Tensor = super().forward(x_in)
        return logits


class UNETR(nets.UNETR):
    """MONAI's UNETR (Hatamizadeh et al., 2022, arXiv 2103.10504), by its authors, for one size of image.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: channels of the logits.
        img_size: the size, multiples of 16, one number per axis.
        feature_size: channels of the highest level.
        hidden_size: channels of the transformer, a multiple of ``num_heads``.
        mlp_dim: channels inside its perceptrons.
        num_heads: of its attention.
        dropout: in the transformer.

    Raises:
        InputError: a size that is no multiple of 16; when called, an image of another size.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        img_size: Sequence[int],
        feature_size: int = 16,
        hidden_size: int = 768,
        mlp_dim: int = 3072,
        num_heads: int = 12,
        dropout: float = 0.0,
    ) -> None:
        self.img_size = tuple(int(length) for length in img_size)
        if any(length % 16 for length in self.img_size):
            raise InputError(f"img_size (patch_size) is {list(img_size)}: use multiples of 16")
        super().__init__(
            in_channels,
            out_channels,
            self.img_size,
            feature_size,
            hidden_size,
            mlp_dim,
            num_heads,
            dropout_rate=dropout,
            spatial_dims=spatial_dims,
        )
        for block in self.vit.blocks:
            block.norm_cross_attn = nn.Identity()  # nothing reads it

    def __call__(self, x: Tensor) -> Tensor:
        """Map `(B, in_channels, *img_size)` to logits, `(B, out_channels, *img_size)`."""
        if tuple(x.shape[2:]) != self.img_size:
            raise InputError(
                f"input size {tuple(x.shape[2:])} does not fit UNETR, whose positions are those of img_size "
                f"{self.img_size}: use windows of that size, or train with another patch_size"
            )
        return super().__call__(x)


class DynUNet(nets.DynUNet):
    """MONAI's DynUNet, the network of nnU-Net (Isensee et al., 2021, 10.1038/s41592-020-01008-z).

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: channels of the logits.
        channels: of each level, three or more; each has half of the resolution of the one above.
        kernel_size: of the convolutions.
        res_block: whether blocks are residual.
        dropout: after each convolution.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int],
        kernel_size: int = 3,
        res_block: bool = False,
        dropout: float = 0.0,
    ) -> None:
        require_within("the number of levels in channels", len(channels), 3)
        steps = [2] * (len(channels) - 1)
        super().__init__(
            spatial_dims,
            in_channels,
            out_channels,
            kernel_size=[kernel_size] * len(channels),
            strides=[1, *steps],
            upsample_kernel_size=steps,
            filters=channels,
            dropout=dropout,
            res_block=res_block,
        )
        self.reduction = (2 ** len(steps),) * spatial_dims

    def __call__(self, x: Tensor) -> Tensor:
        """Map `(B, in_channels, *spatial)` to logits, `(B, out_channels, *spatial)`."""
        if not (torch.jit.is_tracing() or torch.compiler.is_compiling()):
            require_multiple(x, self.reduction)
        return super().__call__(x)


class MedNeXt(nets.MedNeXt):
    """MONAI's MedNeXt (Roy et al., 2023, arXiv 2303.09975).

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: channels of the logits.
        init_filters: channels of the highest level; each level has twice as many.
        expansion: of the channels inside the blocks of each encoder level, and of the lowest; the decoder's
            are those of the encoder.
        blocks: of each encoder level, and of the lowest; the decoder has those of the encoder.
        kernel_size: of the depthwise convolutions.
        dropout: after the lowest level; MONAI's has none.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        init_filters: int = 32,
        expansion: Sequence[int] = (2, 2, 2, 2, 2),
        blocks: Sequence[int] = (2, 2, 2, 2, 2),
        kernel_size: int = 3,
        dropout: float = 0.0,
    ) -> None:
        *high, lowest = expansion
        *blocks_down, blocks_bottleneck = blocks
        super().__init__(
            spatial_dims,
            init_filters,
            in_channels,
            out_channels,
            encoder_expansion_ratio=high,
            decoder_expansion_ratio=high[::-1],
            bottleneck_expansion_ratio=lowest,
            kernel_size=kernel_size,
            use_residual_connection=True,
            blocks_down=blocks_down,
            blocks_bottleneck=blocks_bottleneck,
            blocks_up=blocks_down[::-1],
        )
        self.bottleneck.append(nn.Dropout(dropout))
