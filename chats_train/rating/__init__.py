"""A scorer as a rater of a data set that ComfyUI drew, and how often it agrees with people."""

from .rate import rate

__all__ = ["rate"]
