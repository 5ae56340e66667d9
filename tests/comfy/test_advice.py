"""What a run says of settings that contradict the pair, and that it says nothing of those that do not."""

import logging
from types import SimpleNamespace

import mini
import pytest
from conftest import pack_module
from running import guider_of, result, run

CFG = 6.0


@pytest.fixture
def said(nodes, pairs, caplog):
    """The lines that a run logs, by its settings and the pair's metadata."""
    from comfy_execution.utils import CurrentNodeContext

    advice, pair = pack_module("nodes.advice"), pack_module("chats.pair")

    def sample(used_alpha=0.5, /, *, form="proxy", cfg=CFG, zeros=False, steps=1, base_pushes=False, **metadata):
        models = [model.clone() for model in pairs("sd15")]
        for model in models[: 1 if base_pushes else 2]:
            model.set_attachments(advice.ATTACHMENT, pair.PairMetadata("preferred", **metadata) if metadata else None)
        positive, null = mini.conditioning("sd15", 3), mini.conditioning("sd15", 4)
        if zeros:
            null = [[tokens * 0, options] for tokens, options in null]
        joined = nodes["CHATSApply"](*models, 0.0, 1.0)[0]
        caplog.clear()
        with CurrentNodeContext("any prompt", "the node of the proxy prompt"):
            negative = nodes["CHATSProxyPrompt"](positive, null, used_alpha, form)[0]
        with caplog.at_level(logging.WARNING):
            run(guider_of(joined, positive, negative, cfg), mini.latent("sd15"), steps=steps)
        return [
            record.getMessage().removeprefix("CHATS: ")
            for record in caplog.records
            if record.getMessage().startswith("CHATS: ")
        ]

    return sample


FITTING = dict(prediction_type="epsilon", null_prompt="encoded_empty", alpha=0.5, guidance_scale=4.0)


def test_settings_that_fit_need_no_word(said):
    assert said() == []
    assert said(**FITTING, proxy_cosine=0.95, proxy_relative_error=0.3) == []
    assert said(0.7, zeros=True, **{**FITTING, "null_prompt": "zeros"}) == []
    assert said(0.0, **FITTING) == []
    assert said(0.0, **FITTING, proxy_cosine=0.1, proxy_relative_error=1.3) == [], (
        "without the prompt both forms are one"
    )
    assert said(form="exact", **FITTING, proxy_cosine=0.1, proxy_relative_error=1.3) == []
    assert said(**FITTING, negative="dispreferred") == []
    assert said(0.0, **FITTING, negative="base", base_pushes=True) == []


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (dict(used_alpha=1.5), "alpha 1.5 is outside 0 to 1: try 0.5 to 0.7"),
        (dict(used_alpha=-0.5), "alpha -0.5 is outside 0 to 1"),
        (dict(cfg=0.5), "cfg 0.5 is below 1, where the dispreferred model pulls: try 6"),
        (dict(cfg=0.5, **FITTING), "try 5"),
        (
            dict(prediction_type="v_prediction"),
            "sampled as epsilon, but the pair was trained for v_prediction: put ModelSamplingDiscrete on both",
        ),
        (
            dict(prediction_type="flow"),
            "sampled as epsilon, but the pair was trained for flow: put ModelSamplingSD3 on both",
        ),
        (
            dict(used_alpha=0.0, null_prompt="zeros"),
            "null is text, but the pair was trained with zeros: put ConditioningZeroOut",
        ),
        (dict(null_prompt="zeros"), "null is text, but the pair was trained with zeros: put ConditioningZeroOut"),
        (
            dict(zeros=True, null_prompt="encoded_empty"),
            "null is zeros, but the pair was trained with an empty prompt: connect CLIPTextEncode",
        ),
        (
            dict(**FITTING, proxy_cosine=0.1, proxy_relative_error=1.3),
            "form proxy is unlike exact in this pair (cosine 0.10, relative error 1.30): compare both",
        ),
        (
            dict(**FITTING, negative="base"),
            "the untouched base was measured as this pair's better negative: connect it to dispreferred, alpha 0",
        ),
        (
            dict(used_alpha=0.0, **FITTING, negative="dispreferred", base_pushes=True),
            "the dispreferred model was measured as this pair's better negative, but what is connected states no pair",
        ),
    ],
)
def test_each_contradiction_is_one_line(said, settings, line):
    (only,) = said(settings.pop("used_alpha", 0.5), **settings)
    assert line in only
    assert "\n" not in only


def test_it_is_said_once_a_run(said):
    assert len(said(1.5, steps=4)) == 1


@pytest.fixture
def said_of_sampling(nodes, pairs, caplog):
    """What a run says of two models with model sampling nodes on either, or on the pair."""
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete, ModelSamplingSD3

    classes = {"sd15": ModelSamplingDiscrete, "sd3": ModelSamplingSD3}

    def sample(kind, preferred=None, dispreferred=None, pair=None):
        given = zip(pairs(kind), (preferred, dispreferred), strict=True)
        models = [
            model if settings is None else result(classes[kind], model, *settings)[0] for model, settings in given
        ]
        joined = nodes["CHATSApply"](*models, 0.0, 1.0)[0]
        joined = joined if pair is None else result(classes[kind], joined, *pair)[0]
        conds = mini.conditioning(kind, 3), mini.conditioning(kind, 4)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            run(guider_of(joined, *conds, CFG), mini.latent(kind), steps=1)
        return [r.getMessage() for r in caplog.records if r.getMessage().startswith("CHATS: ")]

    return sample


def test_members_that_are_sampled_differently_are_said(said_of_sampling):
    v, epsilon, v_zsnr = ("v_prediction", False), ("eps", False), ("v_prediction", True)
    for settings, words in (
        (
            ("sd15", v),
            "preferred is sampled as v_prediction, dispreferred as epsilon; if both are of one kind, put the",
        ),
        (("sd15", None, v), "preferred is sampled as epsilon, dispreferred as v_prediction"),
        (("sd15", ("lcm", False)), "preferred is sampled as LCM, dispreferred as epsilon"),
        (("sd15", v_zsnr, v), "unlike noise schedules (sigma_max 4518.76 and 14.6146): put the model"),
        (("sd3", (2.0,)), "unlike noise schedules (shift 2 and 3): put the model sampling node after CHATS Apply"),
    ):
        (line,) = said_of_sampling(*settings)
        assert words in line
    for settings in (("sd15", v, v), ("sd15", v, None, v), ("sd15", epsilon), ("sd3", (3.0,))):
        assert said_of_sampling(*settings) == []


@pytest.fixture
def texts(monkeypatch):
    """What a server is asked to show, as (node, text)."""
    from server import PromptServer

    class Recorder:
        def send_progress_text(self, text, node_id):
            found.append((node_id, text))

    found = []
    monkeypatch.setattr(PromptServer, "instance", Recorder(), raising=False)
    return found


def test_auto_is_shown_on_the_node_that_has_the_setting(nodes, pairs, texts):
    from comfy_execution.utils import CurrentNodeContext

    positive, null = mini.conditioning("sd15", 3, 154), mini.conditioning("sd15", 4)
    sampling = (mini.latent("sd15"), 7, 1, CFG, "euler", "normal", 1.0)
    for prompt, form in (("a", "auto"), ("b", "auto"), ("c", "proxy")):
        with CurrentNodeContext(prompt, "prompt node"):
            negative = nodes["CHATSProxyPrompt"](positive, null, 0.5, form)[0]
        with CurrentNodeContext(prompt, "stock sampler"):
            run(guider_of(nodes["CHATSApply"](*pairs("sd15"), 0.0, 1.0)[0], positive, negative, CFG), sampling[0])
        with CurrentNodeContext(prompt, "own sampler"):
            nodes["CHATSKSampler"](*pairs("sd15"), positive, null, *sampling, 1.5, form, 0.0, 1.0)
    line, warning = "auto: proxy, two passes", "⚠ alpha 1.5 is outside 0 to 1: try 0.5 to 0.7"
    assert texts == [
        ("prompt node", line),
        ("own sampler", f"{line}\n{warning}"),
        ("prompt node", line),
        ("own sampler", f"{line}\n{warning}"),
        ("prompt node", ""),
        ("own sampler", warning),
    ]


def test_a_node_that_samples_tile_by_tile_says_it_once_and_takes_it_back(said, texts):
    from comfy_execution.utils import CurrentNodeContext

    with CurrentNodeContext("first prompt", "7"):
        assert [len(said(1.5)), len(said(1.5)), len(said(1.5))] == [1, 0, 0]
    with CurrentNodeContext("second prompt", "7"):
        assert len(said(1.5)) == 1
        assert len(said(1.5, cfg=0.5)) == 2, "something new in the same execution"
    with CurrentNodeContext("third prompt", "7"):
        assert said(0.5) == []
    with CurrentNodeContext("fourth prompt", "7"):
        assert said(0.5) == []
    with CurrentNodeContext("fourth prompt", "8"):
        assert said(0.5) == []
    assert [node_id for node_id, _ in texts] == ["7"] * 4
    assert ["alpha" in text for _, text in texts] == [True, True, True, False]
    assert texts[-1] == ("7", "")


@pytest.mark.parametrize(
    ("null", "text", "metadata", "lines"),
    [
        (
            "CLIPTextEncode",
            "ugly, blurry",
            "encoded_empty",
            ["null is “ugly, blurry”, but the pair was"],
        ),
        ("CLIPTextEncode", "", "encoded_empty", []),
        ("CLIPTextEncode", ["8", 0], "encoded_empty", []),  # a text that comes by a link is not known
        ("AnotherEncoder", "ugly", "encoded_empty", []),
        ("CLIPTextEncode", "ugly", None, []),
    ],
)
def test_a_null_prompt_with_a_text_is_told_from_an_empty_one(pack, null, text, metadata, lines):
    graph = {
        "5": {"class_type": "CHATSProxyPrompt", "inputs": {"null": ["7", 0], "alpha": 0.5}},
        "7": {"class_type": null, "inputs": {"text": text, "clip": ["1", 1]}},
    }
    proxy_prompt, advice = (pack_module(f"nodes.{name}") for name in ("sampling.proxy_prompt", "advice"))
    found = pack_module("nodes.sampling.null_text").null_text(SimpleNamespace(prompt=graph, unique_id="5"))
    positive, nothing = mini.conditioning("sd15", 3), mini.conditioning("sd15", 4)
    facts = proxy_prompt.build_negative(positive, nothing, 0.5, "proxy", found)[0][1][advice.PROXY]
    said = advice.proxy_advice(pack_module("chats.pair").PairMetadata("preferred", null_prompt=metadata), facts)
    assert [line[: len(start)] for line, start in zip(said, lines, strict=True)] == lines
