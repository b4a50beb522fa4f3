"""Networks that fill holes of images, written from their papers' tables; their weights come from a user's file."""

from heatproof.models.inpainting.ca_gan import CaGanGenerator
from heatproof.models.inpainting.dfnet import DfNetGenerator
from heatproof.models.inpainting.gated import GatedUNet
from heatproof.models.inpainting.partial_conv import PartialConvUNet
from heatproof.models.inpainting.unet import CnnInfiller

__all__ = ["CaGanGenerator", "CnnInfiller", "DfNetGenerator", "GatedUNet", "PartialConvUNet"]
