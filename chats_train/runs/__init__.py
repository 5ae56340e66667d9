"""A run's folder and its parts: opening, members, checkpoints, the pair's files."""
