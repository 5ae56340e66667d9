"""The names of what lies in a run's folder, for whatever looks for it there."""

CONFIG_FILE, CHECKPOINTS, PREVIEWS, LOCK = "config.yaml", "checkpoints", "previews", ".lock"
PROBLEMS_FILE = "data_problems.txt"
