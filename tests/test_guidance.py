"""Eq. 8, 16 and 17 on hand-made numbers."""

import pytest
import torch

from chats import guidance


def test_the_papers_scale_as_comfyuis_cfg():
    # ComfyUI: uncond + cfg (cond − uncond) = cfg cond − (cfg − 1) uncond; the paper: (1+s) cond − s uncond. So cfg = 1
    # + s.
    assert guidance.cfg_from_guidance_scale(5.0) == 6.0
    cond, uncond = torch.tensor([3.0, -1.0]), torch.tensor([2.0, 0.5])
    comfy = uncond + 6.0 * (cond - uncond)
    torch.testing.assert_close(guidance.classifier_free_guidance(cond, uncond, 5.0), comfy)


def test_proxy_guidance_eq_17():
    # (1+5)·[1, 2] − 5·[0.5, 3] = [6 − 2.5, 12 − 15]
    result = guidance.proxy_guidance(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 3.0]), 5.0)
    torch.testing.assert_close(result, torch.tensor([3.5, -3.0]))


def test_exact_guidance_eq_16():
    # s = 4, α = 0.5: 5·1 + 0.5·4·2 − 1.5·4·3 = 5 + 4 − 18 = −9
    result = guidance.exact_guidance(torch.tensor([1.0]), torch.tensor([2.0]), torch.tensor([3.0]), 4.0, alpha=0.5)
    torch.testing.assert_close(result, torch.tensor([-9.0]))


def test_exact_form_with_equal_members_is_cfg_at_a_larger_scale():
    # With ε⁺ = ε⁻, Eq. 16 is (1 + s + αs) ε(c) − (1+α)s ε(∅): CFG at (1+α)s.
    cond, uncond = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    exact = guidance.exact_guidance(cond, cond, uncond, 5.0, alpha=0.7)
    torch.testing.assert_close(exact, guidance.classifier_free_guidance(cond, uncond, 1.7 * 5.0), rtol=1e-5, atol=1e-5)


def test_exact_and_proxy_agree_for_a_network_linear_in_its_prompt():
    # The approximation of Eq. 17 is that of a network linear in its prompt; for such a one both forms are the same.
    weight = torch.randn(16, 4)
    prompt, null, preferred = torch.randn(1, 77, 16), torch.randn(1, 77, 16), torch.randn(1, 77, 4)
    proxied = guidance.proxy_prompt(prompt, null, 0.5) @ weight
    exact = guidance.exact_guidance(preferred, prompt @ weight, null @ weight, 5.0, 0.5)
    torch.testing.assert_close(guidance.proxy_guidance(preferred, proxied, 5.0), exact, rtol=1e-4, atol=1e-4)


def test_proxy_prompt_on_numbers():
    # −0.5·2 + 1.5·4 = 5
    mixed = guidance.proxy_prompt(torch.full((1, 2, 3), 2.0), torch.full((1, 2, 3), 4.0), 0.5)
    torch.testing.assert_close(mixed, torch.full((1, 2, 3), 5.0))


@pytest.mark.parametrize(("alpha", "expected"), [(0.0, "null"), (-1.0, "prompt")])
def test_proxy_prompt_at_its_ends(alpha, expected):
    tensors = {"prompt": torch.randn(1, 77, 8), "null": torch.randn(1, 77, 8)}
    assert torch.equal(guidance.proxy_prompt(tensors["prompt"], tensors["null"], alpha), tensors[expected])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_proxy_prompt_keeps_its_dtype_and_mixes_in_fp32(dtype):
    prompt, null = torch.randn(1, 77, 8).to(dtype), torch.randn(1, 77, 8).to(dtype)
    mixed = guidance.proxy_prompt(prompt, null, 0.3)
    assert mixed.dtype == dtype
    expected = (-0.3 * prompt.float() + 1.3 * null.float()).to(dtype)
    assert torch.equal(mixed, expected)


def test_proxy_prompt_refuses_unequal_shapes():
    with pytest.raises(ValueError, match="the prompt's embedding") as error:
        guidance.proxy_prompt(torch.zeros(1, 77, 8), torch.zeros(1, 154, 8))
    assert str(error.value) == (
        "the prompt's embedding is [1, 77, 8] and the null prompt's [1, 154, 8]; "
        "a proxy prompt needs equal shapes: use the exact form"
    )
    with pytest.raises(ValueError, match=r"\[1, 77, 8\] and the null prompt's \[1, 8\]"):
        guidance.proxy_prompt(torch.zeros(1, 77, 8), torch.zeros(1, 8))


def test_a_null_prompt_on_another_device_is_brought_over():
    # Encoders are moved off the GPU between two texts, so the two embeddings may lie apart. `meta` stands for a GPU.
    mixed = guidance.proxy_prompt(torch.zeros(1, 77, 8, device="meta"), torch.zeros(1, 77, 8))
    assert mixed.device.type == "meta"


def test_the_defaults_are_the_papers():
    # Table 4's best row samples with s = 5 and α = 0.5; any α from 0.5 to 0.7 works, says Fig. 5. Whoever compares with
    # the paper's pictures leaves the settings alone.
    assert (guidance.DEFAULT_GUIDANCE_SCALE, guidance.DEFAULT_ALPHA) == (5.0, 0.5)
    prompt, null = torch.tensor([[2.0]]), torch.tensor([[4.0]])
    assert guidance.proxy_prompt(prompt, null).item() == 5.0  # −0.5·2 + 1.5·4
    # 6·1 − 5·5, the negative as above
    assert guidance.exact_guidance(torch.tensor([1.0]), prompt[0], null[0], 5.0).item() == -19.0


def test_align_null_repeats_only_where_that_is_exact():
    null = torch.randn(1, 77, 768)
    aligned = guidance.align_null(torch.zeros(1, 231, 768), null)
    assert torch.equal(aligned, torch.cat([null, null, null], dim=1))
    assert guidance.align_null(torch.zeros(1, 77, 768), null) is null
    assert guidance.align_null(torch.zeros(1, 77, 768), torch.zeros(1, 154, 768)) is None, "a longer null is never cut"
    assert guidance.align_null(torch.zeros(1, 231, 768), torch.zeros(1, 154, 768)) is None, "231 is no multiple of 154"
    assert guidance.align_null(torch.zeros(1, 154, 4096), torch.zeros(1, 77, 4096)) is None, (
        "T5 attends over the whole length"
    )
    assert guidance.align_null(torch.zeros(1, 100, 768), torch.zeros(1, 50, 768)) is None, "not in chunks of 77"
    # 11 fits into 77 seven times, but what comes in 11 tokens was not encoded in chunks of 77.
    assert guidance.align_null(torch.zeros(1, 77, 768), torch.zeros(1, 11, 768)) is None, "a part of a chunk"
    assert guidance.align_null(torch.zeros(1, 77, 768), torch.zeros(1, 77, 1024)) is None, "different widths"


CLIP_L, OPEN_CLIP_H, OPEN_CLIP_G = 768, 1024, 1280


@pytest.mark.parametrize(
    "width", [CLIP_L, OPEN_CLIP_H, OPEN_CLIP_G, CLIP_L + OPEN_CLIP_G], ids=["SD1.5", "SD2", "SDXL refiner", "SDXL"]
)
def test_long_prompts_of_every_clip_base_can_have_a_proxy(width):
    """A prompt of more than 75 words comes in two chunks, the null prompt in one; SDXL lays two encoders side by
    side."""
    null = torch.randn(1, 77, width)
    aligned = guidance.align_null(torch.zeros(1, 154, width), null)
    assert torch.equal(aligned, torch.cat([null, null], dim=1))


@pytest.mark.parametrize("width", [CLIP_L - 1, CLIP_L + OPEN_CLIP_H, 4096])
def test_an_encoder_not_known_to_be_clip_has_no_exact_repeat(width):
    assert guidance.align_null(torch.zeros(1, 154, width), torch.zeros(1, 77, width)) is None
