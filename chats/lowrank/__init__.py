"""Low-rank differences between two models: combining LoRAs and adding their difference to chosen rows of a batch; in
:mod:`.truncation`, extracting one from two whole weights. Pure torch."""

from .factors import LowRank, add_to_conv, add_to_linear, combine, from_lora

__all__ = ["LowRank", "add_to_conv", "add_to_linear", "combine", "from_lora"]
