"""Sampling with a pair: the mechanism, and the nodes that use it."""
