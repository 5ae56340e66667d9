"""What every room may use: errors, locks, threads."""
