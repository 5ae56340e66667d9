"""How a MODEL is loaded for training: with sums that repeat themselves, no copies that the graph does not know of, and
a sentence where it cannot be."""

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import mini_architectures
import pytest
import torch
from conftest import newest_only, pack_module
from serving import vae_weights
from torch.utils._python_dispatch import TorchDispatchMode


class Seen(TorchDispatchMode):
    """Whether torch was told to repeat itself, by operation, while it was asked for."""

    def __init__(self):
        super().__init__()
        self.told: dict[str, set[bool]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.told.setdefault(func._schema.name, set()).add(torch.are_deterministic_algorithms_enabled())
        return func(*args, **(kwargs or {}))


def with_loaded(model, work, **options) -> None:
    prompt, latent = mini_architectures.conditioning("sd3", 1, 5), mini_architectures.latent("sd3", 1)
    with torch.inference_mode():
        pack_module("nodes.training.within_comfyui").with_loaded(model, prompt, latent, work, **options)


@newest_only
def test_the_backward_pass_of_attention_alone_is_told_to_repeat_itself(pack):
    attention = pack_module("nodes.training.within_comfyui")._differentiable_attention
    for reshaped in (False, True):
        shape = (1, 2, 6, 16) if reshaped else (1, 6, 32)
        q, k, v = (torch.randn(shape, requires_grad=True) * 1 for _ in range(3))
        attended = attention(None, q, k, v, 2, skip_reshape=reshaped, skip_output_reshape=reshaped)
        with Seen() as seen:
            (attended @ torch.ones(attended.shape[-1])).sum().backward()
        told = {name: values for name, values in seen.told.items() if "attention" in name}
        assert told
        assert all(values == {True} for values in told.values()), told
        assert seen.told["aten::mv"] == {False}
        assert not torch.are_deterministic_algorithms_enabled()


def test_weights_are_copied_on_no_streams_of_their_own(pack):
    management = comfy.model_management
    names = [name for name in ("NUM_STREAMS", "in_training") if hasattr(management, name)]
    before = [getattr(management, name) for name in names]
    seen = []
    with_loaded(mini_architectures.model("sd3"), lambda errors: seen.extend(getattr(management, n) for n in names))
    assert seen == [0, True][: len(names)]
    assert [getattr(management, name) for name in names] == before


def test_room_is_made_for_what_is_trained(pack, monkeypatch):
    """As ComfyUI is told by the number of rows that it makes room for."""
    asked = []
    load = comfy.model_management.load_models_gpu

    def heard(*args, **kwargs):
        asked.append(kwargs["memory_required"])
        return load(*args, **kwargs)

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", heard)
    adapters = pack_module("nodes.training.adapters")
    model = mini_architectures.model("sd3")
    network = model.model.diffusion_model
    trained = adapters.trained_bytes(network, 64, "all linear")
    parameters = adapters.Adapters(network, 64, "all linear", 0).parameters().values()
    assert trained == 16 * sum(parameter.numel() for parameter in parameters)
    for count in (0, trained):
        with_loaded(model, lambda errors: None, trained_bytes=count)
    assert asked[1] - asked[0] >= trained


@newest_only
def test_a_loader_that_cannot_load_twice_is_refused_under_dynamic_vram(pack):
    class Dynamic(comfy.model_patcher.ModelPatcher):
        """As dynamic VRAM's is, which there is on CUDA alone."""

        def is_dynamic(self):
            return True

    cpu = torch.device("cpu")
    model = Dynamic(mini_architectures.model("sd3").model, cpu, cpu)
    with pytest.raises(ValueError, match="start ComfyUI with --disable-dynamic-vram"):
        with_loaded(model, lambda errors: None)


@newest_only
def test_a_model_is_told_to_be_the_same_before_and_after_dynamic_vram_loads_it(pack):
    """What is held in another dtype than its file's is partly cast where it is, and stays so."""
    digest = pack_module("nodes.training.digests").model_digest
    with torch.inference_mode():
        vae = comfy.sd.VAE(sd=vae_weights(4))
        network = vae.first_stage_model
        comfy.model_management.archive_model_dtypes(network.bfloat16())
        network.float()
        before = digest(vae.patcher)
        vae.patcher._load_list(for_dynamic=True, default_device=torch.device("cpu"))
        assert {parameter.dtype for parameter in network.parameters()} == {torch.float32, torch.bfloat16}
        assert digest(vae.patcher) == before
        next(iter(network.parameters())).data += 1
        assert digest(vae.patcher) != before


def test_weights_are_brought_to_what_the_network_computes_in(pack):
    """As ComfyUI leaves them where it started with dynamic VRAM and the MODEL is a clone without: as their file has
    them, beside what they were to become."""
    names = ("computed", "cast", "eight_bits")
    network = torch.nn.ModuleDict({name: torch.nn.Linear(3, 3, bias=False, dtype=torch.bfloat16) for name in names})
    network["cast"].comfy_cast_weights = True
    network["eight_bits"].weight = torch.nn.Parameter(torch.ones(3, 3).to(torch.float8_e4m3fn), requires_grad=False)
    before = {name: layer.weight for name, layer in network.items()}
    for layer in network.values():
        layer.weight_comfy_model_dtype = torch.float16
    pack_module("nodes.training.ordinary").make_ordinary(network, torch.device("cpu"))
    assert network["computed"].weight.dtype == torch.float16
    assert torch.equal(network["computed"].weight, before["computed"].half())
    assert all(network[name].weight is before[name] for name in ("cast", "eight_bits"))


@newest_only
@pytest.mark.parametrize("newer", ["cuda.matmul", "cudnn.conv"])
def test_tf32_is_off_where_torch_lets_it_and_as_before_afterwards(pack, newer):
    """torch refuses the older flag of a kind of products that was set in its newer way."""
    kinds = {"cuda.matmul": torch.backends.cuda.matmul, "cudnn.conv": torch.backends.cudnn}
    refusing, (other,) = kinds.pop(newer), kinds.values()
    owner = {"cuda.matmul": refusing, "cudnn.conv": torch.backends.cudnn.conv}[newer]
    before = owner.fp32_precision, other.allow_tf32
    other.allow_tf32 = True
    owner.fp32_precision = "ieee" if newer == "cudnn.conv" else "tf32"
    try:
        with pytest.raises(RuntimeError, match=r"(?i)tf32"):
            _ = refusing.allow_tf32
        with pack_module("nodes.training.in_float32")._whole_products():
            assert not other.allow_tf32
        assert other.allow_tf32
    finally:
        owner.fp32_precision, other.allow_tf32 = before
