"""A run's folder and its parts: opening, processes, members, checkpoints, previews, the pair's files."""
