"""Networks that the configs name."""

from scripts.networks.unet import UNet, covering_size, output_size

__all__ = ["UNet", "covering_size", "output_size"]
