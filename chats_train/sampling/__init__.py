"""The headless sampler, the probe of the proxy prompt, and what pixels are put into."""
