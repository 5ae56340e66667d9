"""Low-rank differences between the two models of a pair."""

from .extraction import LowRankFactors, factorize, relative_error, weight_difference

__all__ = ["LowRankFactors", "factorize", "relative_error", "weight_difference"]
