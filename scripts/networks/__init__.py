"""Networks that the configs name."""

from scripts.networks.unet import UNet, output_size

__all__ = ["UNet", "output_size"]
