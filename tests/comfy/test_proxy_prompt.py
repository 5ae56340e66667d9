"""The negative conditioning: what is mixed, what stays, what is refused."""

import pytest
import torch


@pytest.fixture
def negative(nodes):
    return lambda positive, null, alpha=0.5, form="proxy": nodes["CHATSProxyPrompt"](positive, null, alpha, form)[0]


def entry(tokens, value, dim=768, **options):
    return [torch.full((1, tokens, dim), float(value)), options]


def test_tokens_and_pooled_are_mixed_and_the_rest_of_the_positive_stays(negative):
    mask = torch.ones(1, 8, 8)
    placed = dict(area=(8, 4, 0, 0), mask=mask, strength=0.8, start_percent=0.1, width=1024, height=768, crop_w=3)
    positive = [entry(77, 2, 2048, pooled_output=torch.full((1, 1280), 1.0), **placed)]
    null = [entry(77, 4, 2048, pooled_output=torch.full((1, 1280), 3.0), width=64, height=64, area=(1, 1, 1, 1))]
    ((tokens, options),) = negative(positive, null)
    assert torch.equal(tokens, torch.full((1, 77, 2048), 5.0))  # −0.5·2 + 1.5·4
    assert torch.equal(options["pooled_output"], torch.full((1, 1280), 4.0))  # −0.5·1 + 1.5·3
    assert {name: options[name] for name in placed} == placed
    assert torch.equal(positive[0][0], torch.full((1, 77, 2048), 2.0)), "the inputs are not changed"


def test_exact_has_two_weighted_entries_of_each_positive_one(negative):
    pooled, null_pooled = torch.full((1, 2048), 1.0), torch.full((1, 2048), 3.0)
    mask = torch.ones(1, 80)
    positive = [
        entry(
            154,
            2,
            4096,
            pooled_output=pooled,
            strength=0.8,
            area=(8, 4, 0, 0),
            attention_mask=mask,
            conditioning_llama3=mask,
        )
    ]
    null = [entry(77, 4, 4096, pooled_output=null_pooled, attention_mask=mask * 2, strength=9.0)]
    prompt_entry, null_entry = negative(positive, null, 0.5, "exact")
    assert prompt_entry[0] is positive[0][0]
    made_of = prompt_entry[1].pop("chats_proxy")
    assert (made_of.alpha, made_of.form, made_of.null_is_zeros) == (0.5, "exact", False)
    assert prompt_entry[1] == {**positive[0][1], "strength": pytest.approx(-0.4)}
    assert null_entry[0] is null[0][0]
    assert null_entry[1]["strength"] == pytest.approx(1.2)  # 1.5 · 0.8
    assert null_entry[1]["area"] == (8, 4, 0, 0)
    assert null_entry[1]["pooled_output"] is null_pooled
    assert torch.equal(null_entry[1]["attention_mask"], mask * 2)
    assert "conditioning_llama3" not in null_entry[1], "no text of the prompt may stay on the null entry"


@pytest.mark.parametrize("form", ["proxy", "exact"])
def test_alpha_zero_gives_the_null_entries(negative, form):
    null = [entry(77, 4, strength=0.5), entry(77, 5)]
    given = negative([entry(77, 2)], null, 0.0, form)
    assert all(tokens is null_tokens for (tokens, _), (null_tokens, _) in zip(given, null, strict=True))
    assert all(options.pop("chats_proxy").alpha == 0 for _, options in given)
    assert [options for _, options in given] == [{"strength": 0.5}, {}]


def test_alpha_minus_one_is_the_prompt_and_costs_no_third_pass(negative):
    positive = [entry(77, 2)]
    ((tokens, options),) = negative(positive, [entry(77, 4)], -1.0, "exact")
    assert tokens is positive[0][0]
    assert options["strength"] == 1.0
    ((tokens, _),) = negative(positive, [entry(77, 4)], -1.0, "proxy")
    assert torch.equal(tokens, positive[0][0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_conditioning_keeps_its_dtype(negative, dtype):
    positive = [[torch.randn(1, 77, 768).to(dtype), {"pooled_output": torch.randn(1, 768).to(dtype)}]]
    null = [[torch.randn(1, 77, 768).to(dtype), {"pooled_output": torch.randn(1, 768).to(dtype)}]]
    ((tokens, options),) = negative(positive, null, 0.7)
    assert tokens.dtype == options["pooled_output"].dtype == dtype
    expected = (-0.7 * positive[0][0].float() + 1.7 * null[0][0].float()).to(dtype)
    assert torch.equal(tokens, expected)


def test_a_short_null_is_repeated_for_a_long_prompt(negative):
    ((tokens, _),) = negative([entry(231, 2)], [entry(77, 4)])
    assert torch.equal(tokens, torch.full((1, 231, 768), 5.0))


def test_repeating_the_null_is_exact_with_the_real_tokenizer_and_clip_l():
    """ComfyUI encodes an empty prompt at three chunks as one chunk three times, to the bit."""
    from comfy.sd1_clip import SD1ClipModel, SD1Tokenizer

    torch.manual_seed(0)
    model = SD1ClipModel(device="cpu", dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.05)
        tokens = SD1Tokenizer().tokenize_with_weights("")
        one, _ = model.encode_token_weights(tokens)[:2]
        three, _ = model.encode_token_weights({name: chunks * 3 for name, chunks in tokens.items()})[:2]
    assert one.shape[1] == 77
    assert one.std() > 0
    assert torch.equal(three, torch.cat([one] * 3, dim=1))


def test_several_null_entries_go_by_index_when_the_counts_match(negative, caplog):
    positive = [entry(77, 2), entry(77, 6)]
    mixed = negative(positive, [entry(77, 4), entry(77, 8)])
    assert [tokens[0, 0, 0].item() for tokens, _ in mixed] == [5.0, 9.0]
    assert not caplog.text
    mixed = negative(positive, [entry(77, 4), entry(77, 8), entry(77, 9)])
    assert [tokens[0, 0, 0].item() for tokens, _ in mixed] == [5.0, 3.0]
    assert "the first null entry is used for all" in caplog.text


@pytest.mark.parametrize(
    ("positive", "null", "message"),
    [
        (entry(154, 2, 4096), entry(77, 4, 4096), "set `form` to `exact`"),
        (entry(77, 2), entry(154, 4), "set `form` to `exact`"),
        (entry(77, 2), entry(77, 4, 1024), r"\[1, 77, 768\].*\[1, 77, 1024\]"),
        (entry(77, 2, pooled_output=torch.ones(1, 1280)), entry(77, 4), "`null` has no pooled embedding"),
        (entry(77, 2), entry(77, 4, pooled_output=torch.ones(1, 1280)), "`positive` has no pooled embedding"),
        (
            entry(77, 2, pooled_output=torch.ones(1, 8)),
            entry(77, 4, pooled_output=torch.ones(1, 9)),
            "pooled embeddings are",
        ),
        (
            entry(77, 2, attention_mask=torch.ones(1, 77)),
            entry(77, 4, attention_mask=torch.zeros(1, 77)),
            "differ in `attention_mask`",
        ),
        (entry(77, 2, conditioning_llama3=torch.ones(1, 5)), entry(77, 4), "differ in `conditioning_llama3`"),
    ],
)
def test_what_has_no_mixture_is_refused_in_one_sentence(negative, positive, null, message):
    with pytest.raises(ValueError, match=message) as error:
        negative([positive], [null])
    assert "\n" not in str(error.value)


def test_equal_masks_are_mixed(negative):
    mask = torch.ones(1, 77)
    ((_, options),) = negative(
        [entry(77, 2, 4096, attention_mask=mask)], [entry(77, 4, 4096, attention_mask=mask.clone())]
    )
    assert torch.equal(options["attention_mask"], mask)


def test_what_the_exact_form_cannot_do_is_refused(negative):
    with pytest.raises(ValueError, match="cannot weigh a `default` conditioning entry"):
        negative([entry(77, 2, default=True)], [entry(77, 4)], 0.5, "exact")
    with pytest.raises(ValueError, match="`null` is an empty conditioning"):
        negative([entry(77, 2)], [])
    with pytest.raises(ValueError, match="`form` is 'other'"):
        negative([entry(77, 2)], [entry(77, 4)], 0.5, "other")
