"""The training loop: members, draws, optimizer, steps, checkpoints."""
