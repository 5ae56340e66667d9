"""What one model's weights are called: by diffusers, by its authors, in LoRA files; both ways."""
