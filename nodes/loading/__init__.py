"""Loaders of pairs."""
