"""The gradient of the training node: against autograd on the joint loss, and against finite differences, family by
family."""

import comfy.lora
import comfy.sd
import mini
import mini_architectures
import pytest
import torch
from conftest import newest, pack_module

FAMILIES = [
    *("sd15", "sd3"),
    *newest("sd15_v", "sdxl", "flux", "flux2", "z_image", "qwen_image", "lumina2", "wan", "chroma"),
]
BETA = 50.0
PAIRS = 2


@pytest.fixture(scope="module")
def training(pack):
    """The engine's modules by name."""
    names = ("adapters", "checkpointing", "errors", "in_float32", "self_check", "steps", "within_comfyui")
    return {name: pack_module(f"nodes.training.{name}") for name in names}


def encoded_pair(training, family: str, index: int):
    """A pair; the prompts of pairs have different lengths."""
    sizes = dict(width=96, height=80, crop_w=8) if family == "sdxl" else {}
    image = training["errors"].EncodedImage
    return training["steps"].EncodedPair(
        f"pair {index}",
        image(mini_architectures.latent(family, 100 + index), sizes),
        image(mini_architectures.latent(family, 200 + index), sizes),
        mini_architectures.conditioning(family, 300 + index, 5 + 4 * index),
    )


def with_steps(training, family: str, use, layers: str = "all linear", model=None, pairs=None, **settings) -> list:
    """What ``use`` returns for a Steps on a mini model that was loaded in inference mode, as nodes load."""
    returned = []
    pairs = pairs or [encoded_pair(training, family, index) for index in range(PAIRS)]
    null = training["steps"].Null(mini_architectures.conditioning(family, 999, 7), 0.5)
    settings = dict(learning_rate=1e-3, accumulate=PAIRS, beta=BETA, seed=3) | settings

    def work(errors):
        adapters = training["adapters"].Adapters(errors.model.diffusion_model, 2, layers, 0)
        steps = training["steps"].Steps(errors, adapters, pairs, [], null, **settings)
        with adapters.installed():
            returned.append(use(steps))

    with torch.inference_mode():
        model = model or mini_architectures.model(family)
        training["within_comfyui"].with_loaded(model, pairs[0].prompt, pairs[0].chosen.latent, work)
    return returned[0]


def checkpointed(training, steps):
    """As a run has it."""
    blocks = training["checkpointing"].blocks_of(steps.errors.model.diffusion_model)
    return training["checkpointing"].checkpointed(blocks, torch.zeros(1, requires_grad=True))


def leave_the_base(steps) -> None:
    """Both LoRAs at random weights, so that each factor has a gradient."""
    generator = torch.Generator().manual_seed(5)
    for parameter in steps.parameters.values():
        values = torch.randn(parameter.shape, generator=generator) * 0.2 / parameter.shape[-1] ** 0.5
        parameter.data.copy_(values)


def gradient(steps) -> torch.Tensor:
    flat = [torch.zeros_like(each) if each.grad is None else each.grad for each in steps.parameters.values()]
    steps.optimizer.zero_grad()
    return torch.cat([each.flatten() for each in flat])


def joint_gradient(training, steps) -> torch.Tensor:
    """By autograd on the loss itself: all graphs alive, nothing checkpointed, what is changed in place kept."""
    with torch.autograd.graph.allow_mutation_on_saved_tensors():
        losses = []
        for pair in steps.pairs:
            sides, references = steps._asked(0, pair)
            errors = training["steps"].PairErrors(**{name: error() for name, error in sides.items()}, **references)
            losses.append(training["steps"].OBJECTIVE.loss(errors, BETA)[0])
        (torch.cat(losses).sum() / PAIRS).backward()
    return gradient(steps)


def assert_gradient_is_right(training, family: str, model=None) -> None:
    """Against autograd on the joint loss, at random weights, and against finite differences, at the base."""

    def use(steps):
        with checkpointed(training, steps):
            question = first_question(training, steps)
            with training["in_float32"].in_float32(steps.errors.model):
                ratios = training["self_check"].check_gradient(steps, question, half_precision=False)
            leave_the_base(steps)
            for pair in steps.pairs:
                steps.backward(0, pair, 1 / PAIRS)
        places = comfy.lora.model_lora_keys_unet(steps.errors.model, {})
        keys = training["adapters"].lora_file(steps.parameters, "preferred")
        assert {key.split(".lora_")[0].removesuffix(".alpha") for key in keys} <= places.keys()
        return ratios, gradient(steps), joint_gradient(training, steps)

    ratios, ours, joint = with_steps(training, family, use, model=model)
    assert torch.linalg.vector_norm(joint) > 0
    assert (torch.linalg.vector_norm(ours - joint) / torch.linalg.vector_norm(joint)).item() < 1e-6
    assert ratios == pytest.approx([1, 1, 1, 1], abs=0.01)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_is_that_of_the_joint_loss_and_of_finite_differences(training, family):
    assert_gradient_is_right(training, family)


def scaled_fp8(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The blocks' matrices in fp8, each with a scale, as such files hold them."""
    found = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for key, value in weights.items():
        if value.ndim == 2 and "blocks" in key:
            scale = value.abs().max() / torch.finfo(torch.float8_e4m3fn).max
            found[key] = (value / scale).to(torch.float8_e4m3fn)
            found[key.removesuffix("weight") + "scale_weight"] = scale
        else:
            found[key] = value
    return found


@pytest.mark.parametrize("scaled", newest(False, True), ids=str)
def test_the_gradient_of_an_fp8_base_is_right(training, scaled):
    """Plain: cast at each use; scaled: quantised tensors of ComfyUI's own."""
    weights = mini.weights("sd3", 1)
    with torch.inference_mode():
        if scaled:
            model = comfy.sd.load_diffusion_model_state_dict(scaled_fp8(weights))
        else:
            model = comfy.sd.load_diffusion_model_state_dict(weights, model_options={"dtype": torch.float8_e4m3fn})
    block = model.model.diffusion_model.joint_blocks[0].x_block.attn.qkv.weight
    assert type(block.data).__name__ == ("QuantizedTensor" if scaled else "Tensor")
    assert scaled or block.dtype == torch.float8_e4m3fn
    assert_gradient_is_right(training, "sd3", model)


def first_question(training, steps):
    pair = steps.pairs[0]
    drawn = training["steps"].draw(3, 0, pair.id, pair.chosen.latent.shape[1:])
    return steps.errors.question(pair.chosen, pair.prompt, drawn)


def test_a_model_whose_gradient_loses_a_path_is_refused(training):
    def use(steps):
        with checkpointed(training, steps):
            training["self_check"].check_gradient(steps, first_question(training, steps), half_precision=False)

    patched = mini_architectures.model("sd15")
    patched.set_model_attn1_output_patch(lambda output, options: output.detach())
    with pytest.raises(ValueError, match=r"finite differences are 0\.000"):
        with_steps(training, "sd15", use, model=patched)


def test_a_gradient_that_is_wrong_at_right_angles_to_itself_is_refused(training):
    """What attention does with what comes into it is lost, so that each layer has a gradient, and along it the error
    changes nearly as it says."""

    def use(steps):
        network = steps.errors.model.diffusion_model
        lost = [module for name, module in network.named_modules() if name.endswith((".to_q", ".to_k", ".to_v"))]
        hooks = [module.register_forward_pre_hook(lambda module, inputs: (inputs[0].detach(),)) for module in lost]
        try:
            with checkpointed(training, steps), pytest.raises(training["self_check"].GradientIsWrong):
                training["self_check"].check_gradient(steps, first_question(training, steps), half_precision=False)
        finally:
            for hook in hooks:
                hook.remove()

    with_steps(training, "sd15", use, layers="attention")


def test_a_model_that_cannot_be_differentiated_is_refused(training):
    def use(steps):
        with checkpointed(training, steps):
            training["self_check"].check_gradient(steps, first_question(training, steps), half_precision=False)

    patched = mini_architectures.model("sd15")
    inference = torch.inference_mode()(lambda tensor: tensor * 2)(torch.ones(1))
    patched.set_model_attn1_output_patch(lambda output, options: output * inference)
    with pytest.raises(ValueError, match="cannot be differentiated"):
        with_steps(training, "sd15", use, model=patched)


def held(network) -> list:
    """Which tensors a network has, and whether its layers cast them."""
    tensors = [(name, id(value)) for name, value in (*network.named_parameters(), *network.named_buffers())]
    return tensors + [vars(module).get("comfy_cast_weights") for module in network.modules()]


@pytest.mark.parametrize(
    ("family", "dtype"),
    [("sdxl", torch.bfloat16), *newest(("sdxl", torch.float16), ("flux", torch.bfloat16), ("z_image", torch.bfloat16))],
    ids=str,
)
def test_a_model_of_half_precision_is_checked_in_float32(training, family, dtype):
    def use(steps):
        model = steps.errors.model
        network = model.diffusion_model
        before = held(network)
        with checkpointed(training, steps), training["in_float32"].in_float32(model):
            steps.adapters.active = None
            seen = []
            hook = network.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
            ratios = training["self_check"].check_gradient(steps, first_question(training, steps), half_precision=False)
            hook.remove()
        assert set(seen) == {torch.float32}
        assert held(network) == before
        assert model.manual_cast_dtype is None
        return ratios

    ratios = with_steps(training, family, use, model=mini_architectures.model(family, dtype=dtype))
    assert ratios == pytest.approx([1.0] * len(ratios), abs=0.05)


@pytest.mark.parametrize("dtype", newest(torch.float8_e4m3fn, torch.bfloat16, torch.float16), ids=str)
def test_a_base_of_fewer_bits_passes_the_check_and_learns(training, dtype):
    def use(steps):
        with checkpointed(training, steps):
            half = dtype != torch.float8_e4m3fn
            training["self_check"].check_gradient(steps, first_question(training, steps), half_precision=half)
            return [steps.take()["loss"] for _ in range(4)]

    options = {"model_options": {"dtype": dtype}}
    with torch.inference_mode():
        model = comfy.sd.load_diffusion_model_state_dict(mini.weights("sd3", 1), **options)
    assert next(model.model.diffusion_model.parameters()).dtype == dtype
    scale = training["steps"].FP16_SCALE if dtype == torch.float16 else 1.0
    losses = with_steps(training, "sd3", use, model=model, learning_rate=1e-3, scale=scale)
    assert losses[-1] < losses[0] - 0.05


def test_the_network_is_afterwards_as_it_was(training):
    def use(steps):
        with checkpointed(training, steps):
            return steps.take()

    with torch.inference_mode():
        model = mini_architectures.model("sd3")
    network = model.model.diffusion_model
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with_steps(training, "sd3", use, model=model)
    with pytest.raises(ZeroDivisionError):
        with_steps(training, "sd3", lambda steps: 1 / 0, model=model)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not any(module._forward_hooks or "forward" in vars(module) for module in network.modules())
    assert all(each.grad is None and not each.requires_grad for each in network.parameters())
