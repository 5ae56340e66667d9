"""A tiny random CLIPModel in transformers' format, as a scorer's folder."""

from pathlib import Path

import tiny_pipelines
from transformers import CLIPConfig, CLIPModel


def save_clip(folder: Path, seed: int = 3) -> Path:
    """Writes the model with its tokenizer; returns its folder."""
    tiny_pipelines.save_clip_tokenizer(folder)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vocabulary = tiny_pipelines.CLIP_VOCABULARY
    text = {**size, "vocab_size": vocabulary, "bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1}
    config = CLIPConfig(text_config=text, vision_config={**size, "image_size": 24, "patch_size": 8}, projection_dim=8)
    tiny_pipelines.randomised(CLIPModel(config), seed).save_pretrained(folder)
    return folder
