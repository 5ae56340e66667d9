"""Low-rank differences between two models: combining LoRAs, adding their difference to chosen rows of a batch, and
extracting one from two whole weights. Pure torch."""

from .factors import LowRank, add_to_conv, add_to_linear, combine, from_lora
from .truncation import TruncatedDifference, factorize, relative_error, weight_difference

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
