"""Preference pairs: where they come from, what is wrong with them, and in which bucket each is trained."""

from chats.buckets import Bucket, SizeConditioning

from .dataset import PairDataset, open_dataset, take_over
from .pairs import PairSample, Problem

__all__ = ["Bucket", "PairDataset", "PairSample", "Problem", "SizeConditioning", "open_dataset", "take_over"]
