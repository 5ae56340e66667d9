"""Pairs as latents and prompt embeddings, made once and kept."""
