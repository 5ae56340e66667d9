"""Tiny random models of the classes that benchmarks look with, as folders: Mask2Former, BLIP and a chat model."""

from pathlib import Path

import tiny_pipelines
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForQuestionAnswering,
    BlipImageProcessor,
    BlipProcessor,
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Mask2FormerConfig,
    PreTrainedTokenizerFast,
    SwinConfig,
)

SIZE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
CHAT = (
    "{% for message in messages %}{% for each in message['content'] %}"
    "{% if each['type'] == 'image' %}<image>{% else %}{{ each['text'] }}{% endif %}{% endfor %}{% endfor %}"
)


def save_segmenter(folder: Path, labels: dict[int, str], sees: str) -> Path:
    """A Mask2Former whose every query is sure of one class, with masks at random; wants scipy. Returns its folder."""
    from transformers import Mask2FormerForUniversalSegmentation

    backbone = SwinConfig(
        embed_dim=8,
        depths=[1] * 4,
        num_heads=[1] * 4,
        window_size=4,
        image_size=32,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=backbone,
        id2label=labels,
        num_queries=3,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=1,
        **dict.fromkeys(("feature_size", "mask_feature_size", "hidden_dim"), 32),  # it normalises in 32 groups
        **dict.fromkeys(("encoder_feedforward_dim", "dim_feedforward"), 8),
    )
    model = tiny_pipelines.randomised(Mask2FormerForUniversalSegmentation(config), 4)
    model.class_predictor.weight.data *= 0.01
    model.class_predictor.bias.data = torch.zeros(len(labels) + 1)
    model.class_predictor.bias.data[{label: number for number, label in labels.items()}[sees]] = 9.0
    model.save_pretrained(folder)
    return folder


def save_blip(folder: Path, says: str | None = None) -> Path:
    """A BLIP for visual question answering, which knows letters, `yes` and `no`, and says one word where one is
    given."""
    letters = tiny_pipelines.LETTERS
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "?", "yes", "no"]
    words += [*letters[1:], *(f"##{letter}" for letter in letters[1:])]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    special = {"bos_token_id": 5, "sep_token_id": 3, "pad_token_id": 0, "eos_token_id": 3}
    config = BlipConfig(
        text_config={**SIZE, **special, "vocab_size": len(words), "encoder_hidden_size": 16},
        vision_config={**SIZE, "image_size": 24, "patch_size": 8},
    )
    model = tiny_pipelines.randomised(BlipForQuestionAnswering(config), 0)
    for name, value in model.named_parameters():
        # Or the picture and the question would hardly tell.
        if "crossattention" in name and name.endswith("weight") and "LayerNorm" not in name:
            value.data *= 10
        if name.endswith("bias"):
            value.data *= 0.1
    if says:
        model.text_decoder.cls.predictions.bias.data[words.index(says)] = 1e4
    model.save_pretrained(folder)
    BlipProcessor(BlipImageProcessor(size={"height": 24, "width": 24}), tokenizer).save_pretrained(folder)
    return folder


def save_chat(folder: Path, template: bool = True) -> Path:
    """A chat model that takes pictures (LLaVA), with a tokenizer of characters."""
    words = ["<pad>", "<s>", "</s>", "<unk>", "<image>", " ", "?", ".", *tiny_pipelines.LETTERS[1:], "A", "I"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**SIZE, image_size=24, patch_size=8),
        text_config=LlamaConfig(**SIZE, vocab_size=len(words), pad_token_id=0, bos_token_id=1, eos_token_id=2),
        image_token_index=4,
        vision_feature_layer=-1,
    )
    tiny_pipelines.randomised(LlavaForConditionalGeneration(config), 6).save_pretrained(folder)
    side = {"height": 24, "width": 24}
    LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 24}, crop_size=side),
        fast,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=CHAT if template else None,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    return folder
