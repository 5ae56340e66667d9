"""The negative conditioning: what is mixed, what stays, what is refused."""

import mini
import pytest
import torch
from running import guider_of, run


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
        (entry(77, 2, audio_codes=[[1, 2]]), entry(77, 4, audio_codes=[[1, 3]]), "differ in `audio_codes`"),
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


def test_equal_lists_are_mixed(negative):
    """ACE-Step's encoder gives the codes of a song; a prompt that was zeroed keeps them."""
    ((_, options),) = negative([entry(77, 2, audio_codes=[[1, 2]])], [entry(77, 4, audio_codes=[[1, 2]])])
    assert options["audio_codes"] == [[1, 2]]


@pytest.mark.parametrize("name", ["audio_codes", "minimax_token_tags", "conditioning_lyrics"])
def test_the_exact_form_gives_each_prompt_what_its_text_encoder_made(negative, name):
    made = negative(
        [entry(77, 2, **{name: [[1]], "area": (8, 4, 0, 0)})], [entry(77, 4, **{name: [[2]]})], 0.5, "exact"
    )
    assert [options[name] for _, options in made] == [[[1]], [[2]]]
    (only_prompts,) = [
        options
        for tokens, options in negative([entry(77, 2, **{name: [[1]]})], [entry(77, 4)], 0.5, "exact")
        if options["strength"] > 0
    ]
    assert name not in only_prompts


def test_what_the_exact_form_cannot_do_is_refused(negative):
    with pytest.raises(ValueError, match="cannot weigh a `default` conditioning entry"):
        negative([entry(77, 2, default=True)], [entry(77, 4)], 0.5, "exact")
    with pytest.raises(ValueError, match="`null` is an empty conditioning"):
        negative([entry(77, 2)], [])
    with pytest.raises(ValueError, match="`form` is 'other'"):
        negative([entry(77, 2)], [entry(77, 4)], 0.5, "other")


# Prompt and null prompt as the text encoders of these models give them, in small; lengths follow the text.
UNMIXABLE = {
    "sd3, long": (entry(154, 2, 4096), entry(77, 4, 4096), "154 and 77 tokens"),
    "qwen-image, z-image, flux.2": (entry(25, 2, 64), entry(5, 4, 64), "25 and 5 tokens"),
    "lumina2, chroma": (
        entry(25, 2, 64, attention_mask=torch.ones(1, 25)),
        entry(5, 4, 64, attention_mask=torch.ones(1, 5)),
        "25 and 5 tokens",
    ),
    "one length, two masks": (
        entry(32, 2, 64, attention_mask=torch.ones(1, 32)),
        entry(32, 4, 64, attention_mask=torch.arange(32)[None] < 5),
        "`attention_mask` differs",
    ),
    "hidream": (
        entry(128, 2, 64, conditioning_llama3=torch.ones(1, 2, 20, 8)),
        entry(128, 4, 64, conditioning_llama3=torch.ones(1, 2, 9, 8)),
        "`conditioning_llama3` differs",
    ),
    "anima": (
        entry(32, 2, 64, t5xxl_ids=torch.arange(8)),
        entry(32, 4, 64, t5xxl_ids=torch.arange(3)),
        "`t5xxl_ids` differs",
    ),
}


def bare(entries):
    """The entries without the facts on how they were made."""
    return [[tokens, {name: v for name, v in options.items() if name != "chats_proxy"}] for tokens, options in entries]


def assert_same_entries(actual, expected):
    for (tokens, options), (others, other_options) in zip(bare(actual), bare(expected), strict=True):
        assert torch.equal(tokens, others)
        assert options.keys() == other_options.keys()
        assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(other_options[name])) for name, v in options.items())


@pytest.mark.parametrize("case", UNMIXABLE)
def test_auto_is_the_exact_form_where_two_prompts_cannot_be_mixed(negative, case):
    positive, null, reason = UNMIXABLE[case]
    given = negative([positive], [null], 0.5, "auto")
    assert_same_entries(given, negative([positive], [null], 0.5, "exact"))
    (facts,) = {options["chats_proxy"] for _, options in given}
    assert (facts.form, facts.line) == ("exact", f"auto: exact, three passes ({reason})")


@pytest.mark.parametrize(("prompt", "null"), [(entry(77, 2), entry(77, 4)), (entry(231, 2), entry(77, 4))])
def test_auto_is_the_proxy_form_where_two_prompts_can_be_mixed(negative, prompt, null):
    given = negative([prompt], [null], 0.5, "auto")
    assert_same_entries(given, negative([prompt], [null], 0.5, "proxy"))
    assert (given[0][1]["chats_proxy"].form, given[0][1]["chats_proxy"].line) == ("proxy", "auto: proxy, two passes")


def test_auto_takes_one_form_for_all_regions(negative):
    positive = [entry(77, 2, area=(8, 4, 0, 0)), entry(154, 6, 4096)]
    null = [entry(77, 4), entry(77, 8, 4096)]
    assert_same_entries(negative(positive, null, 0.5, "auto"), negative(positive, null, 0.5, "exact"))


def test_auto_with_a_default_entry_is_the_proxy_form_or_a_sentence(negative):
    given = negative([entry(77, 2, default=True)], [entry(77, 4)], 0.5, "auto")
    assert_same_entries(given, negative([entry(77, 2, default=True)], [entry(77, 4)], 0.5, "proxy"))
    with pytest.raises(ValueError, match=r"\(25 and 5 tokens\).*cannot weigh a `default` conditioning entry"):
        negative([entry(25, 2, 64, default=True)], [entry(5, 4, 64)], 0.5, "auto")


@pytest.mark.parametrize(
    ("positive", "null", "message"),
    [
        (entry(77, 2), entry(77, 4, 1024), "two widths; encode both with the same text encoder"),
        (entry(77, 2, pooled_output=torch.ones(1, 8)), entry(77, 4), "`null` has no pooled embedding"),
        (
            entry(77, 2, pooled_output=torch.ones(1, 8)),
            entry(77, 4, pooled_output=torch.ones(1, 9)),
            "pooled embeddings are",
        ),
    ],
)
def test_auto_takes_two_text_encoders_for_a_mistake(negative, positive, null, message):
    with pytest.raises(ValueError, match=message):
        negative([positive], [null], 0.5, "auto")


def test_auto_samples_as_the_exact_form_does(nodes, pairs):
    positive, null = mini.conditioning("sd3", 3, 154), mini.conditioning("sd3", 4, 77)
    joined = nodes["CHATSApply"](*pairs("sd3"), 0.0, 1.0)[0]
    samples = [
        run(guider_of(joined, positive, nodes["CHATSProxyPrompt"](positive, null, 0.5, form)[0], 6.0), latent)
        for form, latent in (("auto", mini.latent("sd3")), ("exact", mini.latent("sd3")))
    ]
    assert torch.equal(*samples)
