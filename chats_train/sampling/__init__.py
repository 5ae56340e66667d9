"""The headless sampler, and what its pictures are put into."""
