"""The training loop: gradients, optimizer, steps, reports."""
