"""What every room may use: errors, files, locks, threads."""
