"""Low-rank differences between two models: combining LoRAs, adding their difference to chosen rows of a batch, and
extracting one from two whole weights. Pure torch."""

from .extraction import TruncatedDifference, factorize, relative_error, weight_difference
from .factors import LowRank, add_to_conv, add_to_linear, combine, from_lora

__all__ = [
    "LowRank",
    "TruncatedDifference",
    "add_to_conv",
    "add_to_linear",
    "combine",
    "factorize",
    "from_lora",
    "relative_error",
    "weight_difference",
]
