"""`evaluate` on a tiny base, tiny checkpoints and tiny random CLIP scorers: what it draws, keeps, scores and says."""

import hashlib
import importlib.util
import json
from dataclasses import replace

import numpy as np
import pytest
import tiny_benchmarks
import tiny_pipelines
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

from chats.locks import locked
from chats.pair import read_metadata
from chats_train.cli import main
from chats_train.evaluation import drawing
from chats_train.evaluation.benchmarks import answering, segmenter
from chats_train.evaluation.benchmarks.geneval import CLASSES
from chats_train.evaluation.conditions import make_conditions
from chats_train.evaluation.prompts import EvaluationPrompt
from chats_train.evaluation.scorers import open_scorers
from chats_train.evaluation.scoring import score_pictures
from chats_train.families import load_family
from chats_train.runs.checkpoint import State, save_checkpoint
from chats_train.runs.negative_file import write_negative
from chats_train.runs.opening import open_family
from chats_train.runs.trained import export, open_trained, trained_members
from chats_train.runs.whole_members import make_members
from chats_train.sampling.pictures import to_images
from chats_train.sampling.probe import PROBED_SHARES, probe_proxy
from chats_train.sampling.sampler import SamplingSettings, initial_noise, sample_cfg, sample_pair
from chats_train.settings.config_file import load_config, parse_config
from chats_train.support.errors import UserError
from chats_train.support.jsonl import read_rows

STEPS = 2


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_pipelines.save_pipeline("sd15", tmp_path_factory.mktemp("base"))


@pytest.fixture
def run(base, tmp_path):
    """A run with a checkpoint of a pair that left the base, as files; returns its config's path."""

    def make(**settings):
        raw = {
            "version": 1,
            "family": "sd15",
            "pretrained_model": str(base),
            "data": {"path": str(tmp_path)},
            "resolution": 32,
        }
        raw |= {
            "output_dir": str(tmp_path / "run"),
            "mixed_precision": "no",
            "gradient_checkpointing": False,
            "bucket_reso_steps": 16,
        }
        path = tmp_path / "run.yaml"
        path.write_text(json.dumps({"training_method": "full", "guidance_scale": 2.0, **raw, **settings}))
        train_a_little(path, step=1)
        return path

    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    return make


def train_a_little(path, step):
    """A checkpoint whose members are the base and noise, another at each step."""
    config = load_config(path)
    models = 1 if config.objective == "diffusion_dpo" else 2
    members = make_members(config, open_family(config, "cpu"), models, False, torch.device("cpu"))
    generator = torch.Generator().manual_seed(step)
    state = {
        name: value + 0.05 * torch.randn(value.shape, generator=generator) for name, value in members.state().items()
    }
    save_checkpoint(
        config.output_dir / "checkpoints", State(step, {"members": state}, {"dataset_fingerprint": "f"}), None
    )


def evaluate(path, *arguments):
    prompts = ["--prompts", str(path.parent / "prompts.txt")]
    return main(["evaluate", str(path), *prompts, "--seeds", "1", "--steps", str(STEPS), *map(str, arguments)])


def drawn(capsys):
    """How many pictures there were and how many of them were drawn, as the report says it."""
    line = next(line for line in capsys.readouterr().out.splitlines() if " of them drawn now" in line)
    return int(line.split(" pictures")[0]), int(line.split(", ")[1].split()[0])


def levels(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).copy()


@pytest.mark.parametrize("method", ["full", "lora"])
def test_pictures_are_the_samplers(run, method):
    path = run(training_method=method)
    assert evaluate(path, "--form", "proxy", "exact", "--batch-size", 2) == 0
    config = load_config(path)
    family = open_family(config, "cpu")
    members = trained_members(config, family, open_trained(config, "latest"))
    rows = {
        row["condition"]: row
        for row in read_rows(config.output_dir / "evaluation" / "results.jsonl")
        if row["prompt"] == "a dog"
    }
    assert list(rows) == [
        "base, CFG, s=2",
        "preferred, CFG, s=2",
        "preferred, base as negative, s=2",
        "CHATS proxy α=0.5, s=2",
        "CHATS exact α=0.5, s=2",
    ]
    prompt, null = family.encode_prompt(["a dog"]), family.null_prompt()
    noise = initial_noise(family, 1, 32, 32, rows["base, CFG, s=2"]["noise_seed"])
    settings = SamplingSettings(steps=STEPS, guidance_scale=2.0)
    pair = [members.denoiser(name) for name in ("preferred", "dispreferred")]
    # Without α the negative's prompt is the null prompt, and the base answers it.
    with_base = replace(settings, alpha=0.0)
    expected = [
        sample_cfg(family, members.reference(), prompt, null, noise, settings),
        sample_cfg(family, members.denoiser("preferred"), prompt, null, noise, settings),
        sample_pair(family, pair[0], members.reference(), prompt, null, noise, with_base),
        *(sample_pair(family, *pair, prompt, null, noise, replace(settings, form=form)) for form in ("proxy", "exact")),
    ]
    found = [levels(config.output_dir / "evaluation" / row["picture"]).astype(int) for row in rows.values()]
    for latents, picture in zip(expected, found, strict=True):
        image = np.asarray(to_images(family.decode_image(latents))[0]).astype(int)
        assert np.abs(image - picture).max() <= 1  # sampled in a batch of two there
    assert all(np.abs(found[first] - found[second]).max() > 1 for first in range(5) for second in range(first))


def test_nothing_is_drawn_or_scored_twice(run, clip, capsys):
    path = run()
    folder = path.parent / "run" / "evaluation"
    arguments = ("--alpha", 0, 0.5, "--form", "proxy", "exact", "--scorer", f"pickscore={clip}", f"hpsv2={clip}")
    assert evaluate(path, *arguments) == 0
    assert drawn(capsys) == (12, 12)
    written = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.rglob("pictures/*/*.png")}
    results = read_rows(folder / "results.jsonl")
    scores = (folder / "scores.jsonl").read_bytes()
    for name in ("grid.png", "alpha.png"):
        with Image.open(folder / name) as picture:
            picture.verify()
    assert evaluate(path, *arguments) == 0
    assert drawn(capsys) == (12, 0)
    assert (folder / "scores.jsonl").read_bytes() == scores
    assert {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.rglob("pictures/*/*.png")} == written
    # A kill: two pictures are not there yet, and the last line of the scores was cut off.
    for file in list(written)[:2]:
        file.unlink()
    (folder / "scores.jsonl").write_bytes(scores[:-9])
    assert evaluate(path, *arguments) == 0
    assert drawn(capsys) == (12, 2)
    assert {file: file.read_bytes() for file in written} == {file: content for file, (content, _) in written.items()}
    for row, before in zip(read_rows(folder / "results.jsonl"), results, strict=True):
        assert row == {
            **before,
            "scores": pytest.approx(before["scores"], abs=1e-4),
        }  # a score in another batch, in its last bits
    assert len(read_rows(folder / "scores.jsonl")) == 24
    # Two prompts can show nothing, and that is kept as well, for these weights.
    own = open_trained(load_config(path), "latest").weights_sha256
    verdict = json.loads((folder.parent / "better_negative.json").read_text())
    assert verdict == {"weights_sha256": own, "negative": None}


def test_an_interrupted_run_goes_on(run, capsys, monkeypatch):
    path, calls = run(), []
    sample = drawing.sample_condition

    def interrupted(*arguments):
        calls.append(arguments[0].name)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return sample(*arguments)

    monkeypatch.setattr(drawing, "sample_condition", interrupted)
    assert evaluate(path) == 130
    # Prompt by prompt, so that the first is there under every condition.
    each = ["base, CFG, s=2", "preferred, CFG, s=2", "preferred, base as negative, s=2", "CHATS proxy α=0.5, s=2"]
    assert calls == [*each, "base, CFG, s=2"]
    assert evaluate(path) == 0
    assert drawn(capsys) == (8, 4)
    # Another pair on the same base: the base's two stay.
    train_a_little(path, step=2)
    assert evaluate(path) == 0
    assert drawn(capsys) == (8, 6)


def test_what_a_picture_depends_on_changes_its_key(run):
    path = run()
    prompts = [EvaluationPrompt("a cat", "g"), EvaluationPrompt("a dog", "g")]
    conditions = make_conditions(True, [2.0], [0.5], ["proxy"])

    def keys(steps=STEPS, weights="w", prompts=prompts, conditions=conditions, **settings):
        config = load_config(path, [f"{name}={value}" for name, value in settings.items()])
        plan = drawing.plan_pictures(
            path.parent, config, open_family(config, "cpu"), weights, conditions, prompts, [0, 1], steps
        )
        return {picture.key for picture in plan}

    first = keys()
    assert len(first) == 16
    assert keys(learning_rate=0.5, sample_steps=3, output_dir=path.parent / "other") == first
    assert keys(prompts=prompts[::-1]) == first
    for changed in (
        {"steps": STEPS + 1},
        {"resolution": 48},
        {"null_prompt": "zeros"},
        {"prediction_type": "v_prediction"},
        {"mixed_precision": "bf16"},
        {"pretrained_model": tiny_pipelines.save_pipeline("sd15", path.parent / "weights", seed=1)},
        {"pretrained_model": tiny_pipelines.save_pipeline("sd15", path.parent / "schedule", zero_terminal_snr=True)},
        {"prompts": [EvaluationPrompt("a bird", "g")]},
        {"conditions": make_conditions(True, [3.0], [0.5], ["exact"])},
    ):
        assert not keys(**changed) & first, changed
    # Another pair, or another strength of its LoRAs, on the same base: the base's pictures stay.
    for changed in ({"weights": "other"}, {"training_method": "lora", "network_alpha": 3.0}):
        assert len(keys(**changed) & first) == 4, changed
    # One more α: what was there stays.
    assert first < keys(conditions=make_conditions(True, [2.0], [0.5, 0.7], ["proxy", "exact"]))


@pytest.mark.parametrize(("name", "added"), [("sd15", {}), ("sd3", {"scheduler": "simple"})])
def test_flow_models_are_drawn_anew_with_their_scheduler(name, added, base, tmp_path):
    """A picture of before, which was sampled with `normal`, stays the picture of its key for all others."""
    family = load_family(name, str(base if name == "sd15" else tiny_pipelines.save_pipeline(name, tmp_path / name)))
    config = parse_config(
        {"version": 1, "family": name, "pretrained_model": "b", "output_dir": "r", "data": {"path": "d"}}
    )
    condition, prompt = drawing.Condition("base", 2.0), EvaluationPrompt("a cat", "g")
    (picture,) = drawing.plan_pictures(tmp_path, config, family, "w", [condition], [prompt], [0], STEPS)
    before = {
        "version": 1,
        "encoders": family.fingerprint,
        "denoiser": family.base_sha256,
        "dtype": "torch.float32",
        "device": "cpu",
        "prediction_type": family.prediction_type,
        "noise_levels": hashlib.sha256(family.schedule.sigmas.numpy().tobytes()).hexdigest(),
        "null_prompt": "encoded_empty",
        "resolution": config.resolution,
        "steps": STEPS,
        "models": "base",
        "guidance_scale": 2.0,
        "alpha": None,
        "form": None,
        "prompt": "a cat",
        "seed": drawing.noise_seed("a cat", 0),
    }
    assert picture.key == drawing.digest({**before, **added})


def test_an_export_states_the_better_negative_of_its_own_weights(run):
    config = load_config(run())
    own = open_trained(config, "latest").weights_sha256
    stated = []
    for weights, negative in (("others", "base"), (own, "base"), (own, None)):
        write_negative(config.output_dir, weights, negative)
        stated += [read_metadata(path).negative for path in export(config, "latest")]
    assert stated == [None, None, "base", "base", None, None]


def test_the_report_without_a_scorer_and_with_one_model(run, capsys):
    path = run(objective="diffusion_dpo")
    assert evaluate(path) == 0
    said = capsys.readouterr().out
    assert "nothing was scored: name a scorer" in said
    assert "`objective` is diffusion_dpo, of one model" in said
    report = (path.parent / "run" / "evaluation" / "report.md").read_text()
    assert "1. a cat\n2. a dog\n" in report
    rows = read_rows(path.parent / "run" / "evaluation" / "results.jsonl")
    assert [row["models"] for row in rows] == ["base", "preferred", "base_negative"] * 2
    assert all(row["scores"] == {} for row in rows)
    assert evaluate(path, "--probe") == 2
    assert "`--probe` needs a pair and an α other than 0, but `objective` is diffusion_dpo" in capsys.readouterr().err


def test_clip_scores_are_transformers_own(clip):
    pickscore, hpsv2 = open_scorers([f"pickscore={clip}", f"hpsv2={clip}"], "cpu")
    model, tokenizer = CLIPModel.from_pretrained(clip).eval(), AutoTokenizer.from_pretrained(clip)
    texts = ["a cat", "dog on a mat", "b " * 100]
    images = [
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (h, w, 3), dtype=np.uint8))
        for i, (w, h) in enumerate(SIZES)
    ]
    side = {"height": 24, "width": 24}
    pixels = CLIPImageProcessor(size={"shortest_edge": 24}, crop_size=side)(images=images, return_tensors="pt")[
        "pixel_values"
    ]
    tokens = tokenizer(texts, padding=True, truncation=True, max_length=77, return_tensors="pt")
    with torch.no_grad():
        logits = model(**tokens, pixel_values=pixels).logits_per_image.diagonal()
    prompts = [EvaluationPrompt(text, "g") for text in texts]
    found = pickscore.score(images, prompts)
    torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        hpsv2.score(images, prompts), 100 * logits / model.logit_scale.exp(), rtol=1e-4, atol=1e-3
    )
    torch.testing.assert_close(pickscore.score(images[1:2], prompts[1:2]), found[1:2], rtol=1e-4, atol=1e-4)
    assert found.std() > 0.01
    assert pickscore.fingerprint != hpsv2.fingerprint


SIZES = ((32, 32), (40, 27), (24, 51))


def test_scorers_that_cannot_be_used_are_sentences(clip, tmp_path):
    def refused(*specs):
        with pytest.raises(UserError) as error:
            open_scorers(specs, "cpu")
        return str(error.value)

    assert "did you mean pickscore=…?" in refused(f"pikscore={clip}")
    assert "give one of pickscore=FOLDER_OR_HUB_ID, hpsv2=" in (said := refused("pickscore"))
    assert "geneval=SEGMENTER,CLIP, dpg=VQA_MODEL,QUESTIONS.csv" in said
    assert "names hpsv2 twice" in refused(f"hpsv2={clip}", f"hpsv2={clip}")
    assert "all`, which is not there; correct the path, or give a folder" in refused("pickscore=/nowhere/at/all")
    assert "has no config.json" in refused(f"pickscore={tmp_path}")
    for file in ("config.json", "tokenizer_config.json"):
        (tmp_path / file).write_bytes((clip / file).read_bytes())
    (tmp_path / "HPS_v2_compressed.pt").write_bytes(b"a pickle")
    assert "pickled weights are never opened (HPS v2's own .pt is one; give a conversion" in refused(
        f"hpsv2={tmp_path}"
    )
    (tmp_path / "config.json").write_text('{"model_type": "blip"}')
    assert "says `model_type` blip; give a CLIPModel" in refused(f"pickscore={tmp_path}")


def test_a_scorer_that_lacks_weights_does_not_score(clip, tmp_path):
    for file in clip.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = load_file(clip / "model.safetensors")
    save_file(
        {f"visual.{name}" if "vision" in name else name: value for name, value in state.items()},
        tmp_path / "model.safetensors",
    )
    (scorer,) = open_scorers([f"pickscore={tmp_path}"], "cpu")
    with pytest.raises(
        UserError, match=r"whose \.safetensors lack vision_model.* more weights; download or convert it again"
    ):
        scorer.score([Image.new("RGB", (24, 24))], [EvaluationPrompt("a", "g")])


def test_benchmarks_score_their_own_prompts(run, clip, tmp_path, monkeypatch, capsys):
    pytest.importorskip("scipy", reason="transformers' Mask2Former wants scipy")
    monkeypatch.setattr(segmenter, "SHORT_SIDE", 64)
    monkeypatch.setattr(answering, "NEW_TOKENS", 1)
    seen = tiny_benchmarks.save_segmenter(tmp_path / "segmenter", dict(enumerate(CLASSES)), "bench")
    vqa = tiny_benchmarks.save_blip(tmp_path / "vqa", "yes")
    table = tmp_path / "dpg_bench.csv"
    table.write_text(
        "item_id,proposition_id,dependency,tuple,question_natural_language\n"
        "7,1,0,entity - whole (cat),is it a cat?\n7,2,1,attribute - size (cat),is it big?\n",
        encoding="utf-8",
    )
    (tmp_path / "dpg").mkdir()
    (tmp_path / "dpg" / "7.txt").write_text("a big cat", encoding="utf-8")
    asked = [("bench", "single_object"), ("dog", "two_object")]
    lines = [
        {"tag": tag, "include": [{"class": name, "count": 1}], "prompt": f"a photo of a {name}"} for name, tag in asked
    ]
    geneval = tmp_path / "evaluation_metadata.jsonl"
    geneval.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (tmp_path / "prompts.txt").write_text("a cat", encoding="utf-8")
    path = run(objective="diffusion_dpo")
    scorers = ["--scorer", f"geneval={seen},{clip}", f"dpg={vqa},{table}"]
    assert evaluate(path, *scorers) == 2
    assert "geneval scores its own prompts, of which `--prompts` has none; give GenEval's" in capsys.readouterr().err
    assert not (tmp_path / "run" / "evaluation" / "pictures").exists()
    files = ["--prompts", str(tmp_path / "prompts.txt"), str(geneval), str(tmp_path / "dpg")]
    arguments = ["evaluate", str(path), *files, "--seeds", "1", "--steps", "1", *scorers]
    assert main(arguments) == 0
    report = (tmp_path / "run" / "evaluation" / "report.md").read_text(encoding="utf-8")
    assert f"- GenEval: objects by Mask2Former ({seen}), colours by CLIP ({clip}); " in report
    assert "the mean of the categories (2 of 4 prompts)" in report
    assert f"- DPG-Bench: answered by blip ({vqa})" in report
    assert "| method | s | single_object | two_object |" in report
    assert "| method | s | entity | attribute |" in report
    summary = json.loads((tmp_path / "run" / "evaluation" / "summary.json").read_text(encoding="utf-8"))
    overall = {(each["scorer"], each["condition"]["models"]): each["mean"]["mean"] for each in summary}
    # Every picture shows a bench and no dog; every answer is yes.
    assert overall["geneval", "base"] == overall["geneval", "preferred"] == 0.5
    assert overall["dpg", "base"] == overall["dpg", "preferred"] == 1.0
    rows = read_rows(tmp_path / "run" / "evaluation" / "results.jsonl")
    assert {tuple(row["scores"]) for row in rows if row["group"] == "dpg"} == {("dpg",)}
    assert {tuple(row["scores"]) for row in rows if row["group"] == "prompts"} == {()}


@pytest.mark.skipif(importlib.util.find_spec("ImageReward") is not None, reason="the package image-reward is installed")
def test_imagereward_without_its_package_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match=r"imagereward needs the package image-reward, .*; `pip install image-reward`"):
        open_scorers([f"imagereward={tmp_path}"], "cpu")


class Brightness:
    """A detector in the least sense: it looks at the picture and at what else the prompt's file says."""

    name, fingerprint = "bright", "1"

    def score(self, images, prompts):
        assert [prompt.metadata["wanted"] for prompt in prompts] == [prompt.text for prompt in prompts]
        return torch.tensor([np.asarray(image).mean() / 255 for image in images])


def test_anything_with_a_name_and_a_score_is_a_scorer(tmp_path):
    condition = drawing.Condition("base", 5.0)
    found = []
    for number, level in enumerate((0, 102, 255)):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (4, 4), (level,) * 3).save(path)
        prompt = EvaluationPrompt(f"p{number}", "g", {"wanted": f"p{number}"})
        found.append(drawing.Picture(condition, prompt, 0, str(number), path))
    assert score_pictures(Brightness(), found, tmp_path) == pytest.approx({"0": 0.0, "1": 0.4, "2": 1.0})
    # A score is kept by the scorer's fingerprint.
    Image.new("RGB", (4, 4), "white").save(tmp_path / "0.png")
    assert score_pictures(Brightness(), found, tmp_path)["0"] == 0.0
    other = Brightness()
    other.fingerprint = "2"
    assert score_pictures(other, found, tmp_path)["0"] == 1.0
    other.fingerprint, other.score = "3", lambda images, prompts: torch.full((len(images),), torch.nan)
    with pytest.raises(UserError, match=r"bright gives .*0\.png nan; look at the picture"):
        score_pictures(other, found, tmp_path)


@pytest.mark.parametrize(
    ("bend", "agrees"), [(lambda tokens: tokens, True), (lambda tokens: (3 * tokens).tanh(), False)]
)
def test_the_probe_tells_a_linear_network_from_a_bent_one(base, bend, agrees):
    family = load_family("sd15", str(base))

    def denoiser(noisy, timesteps, encoder_hidden_states, return_dict):
        kernel = torch.randn(77 * 24, noisy[0].numel(), generator=torch.Generator().manual_seed(0)) / 77
        text = bend(encoder_hidden_states).flatten(1) @ kernel
        return (text.view_as(noisy) * (1 + timesteps.view(-1, 1, 1, 1) / 1000) + noisy,)

    generator = torch.Generator().manual_seed(1)
    latents, noise = torch.randn(2, 2, 4, 4, 4, generator=generator)
    result = probe_proxy(
        family, denoiser, latents, noise, family.encode_prompt(["a cat", "dog"]), family.null_prompt(), 0.5
    )
    assert len(result.cosine) == len(PROBED_SHARES)
    assert result.noise_levels == sorted(result.noise_levels)
    if agrees:
        assert min(result.cosine) > 1 - 1e-6
        assert max(result.relative_error) < 1e-3
        assert "the proxy form stands for the exact one" in result.verdict
    else:
        assert max(result.cosine) < 0.9
        assert min(result.relative_error) > 0.3


def test_the_probe_of_a_pair_alone(run, capsys):
    path = run()
    assert evaluate(path, "--probe", "--seeds", 0, "--alpha", 0, 0.5, 0.7) == 0
    said = capsys.readouterr().out
    assert said.count("thresholds of this project's own making") == 2
    probed = json.loads((path.parent / "run" / "evaluation" / "probe.json").read_text())
    assert [each["alpha"] for each in probed["alphas"]] == [0.5, 0.7]
    assert all(-1 <= cosine <= 1 for each in probed["alphas"] for cosine in each["cosine"])
    assert not (path.parent / "run" / "evaluation" / "pictures").exists()


def test_a_second_evaluation_is_kept_out_of_a_folder_in_use(run, tmp_path, capsys):
    path, folder = run(), tmp_path / "shared"
    with locked(folder / ".lock"):
        assert evaluate(path, "--output", folder) == 2
    assert f"`--output` is {folder}, where another evaluation is at work now; wait" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == [".lock"]
    assert evaluate(path, "--output", folder) == 0


def test_settings_that_make_no_sense_are_sentences(run, capsys):
    path = run()
    for arguments, message in (
        (("--seeds", 0), "`--seeds` is 0, which draws nothing"),
        (("--seeds", -1), "`--seeds` is -1; give 0 or more"),
        (("--steps", 0), "`--steps` is 0; give 1 or more"),
        (("--alpha", "nan"), "`--alpha` is nan"),
        (("--probe", "--alpha", 0), "`--alpha` is 0; leave it out"),
        (("--checkpoint", path.parent / "none"), "none cannot be used: there is no such folder"),
        (("--set", f"output_dir={path.parent / 'other'}"), "has no whole checkpoint; train first"),
    ):
        assert evaluate(path, *arguments) == 2
        assert message in capsys.readouterr().err
