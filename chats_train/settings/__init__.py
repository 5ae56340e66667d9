"""What a run can be asked: the settings, and their file."""
