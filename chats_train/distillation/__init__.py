"""A finished pair, with its guidance, as one model that is sampled at cfg 1."""
