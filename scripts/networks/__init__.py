"""Networks that the configs name."""

from scripts.networks.ensemble import Ensemble
from scripts.networks.unet import UNet, covering_size, output_size

__all__ = ["Ensemble", "UNet", "covering_size", "output_size"]
