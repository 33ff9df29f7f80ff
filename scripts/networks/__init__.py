"""Networks that the configs name."""

from scripts.networks.ensemble import Ensemble
from scripts.networks.sizes import output_size
from scripts.networks.unet import UNet

__all__ = ["Ensemble", "UNet", "output_size"]
