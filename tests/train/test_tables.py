"""The paper's tables: its figures, rows and columns, ours beside them; and no way of making one changes a digit."""

import csv
import json
import shutil
from dataclasses import replace

import loaded_process
import pytest
import tiny_pipelines
import torch
from test_evaluate import train_a_little

from chats_train.cli import main
from chats_train.evaluation.benchmark import Benchmark
from chats_train.evaluation.conditions import Condition
from chats_train.evaluation.drawing import Picture
from chats_train.evaluation.prompts import EvaluationPrompt
from chats_train.evaluation.statistics import Estimate
from chats_train.evaluation.tables import throughput
from chats_train.evaluation.tables.cells import make_table
from chats_train.evaluation.tables.files import csv_text, table_rows
from chats_train.evaluation.tables.inputs import by_benchmark
from chats_train.evaluation.tables.layout import LAYOUTS, layouts
from chats_train.evaluation.tables.paper import DIT, DPG, FIGURES, GENEVAL, MODELS, SD15, SDXL, Quantity
from chats_train.evaluation.tables.tables import _figure
from chats_train.runs.opening import open_family
from chats_train.runs.trained import export
from chats_train.sampling.sampler import SamplingSettings, initial_noise, sample_cfg, sample_cfg_in_one_batch
from chats_train.settings.config_file import load_config
from chats_train.support.errors import UserError

METHODS = ("Standard", "Diffusion-DPO", "CHATS")


def test_the_papers_figures_hang_together():
    """Three models by three methods; GenEval's overall is the mean of its categories, to the rounding of the paper;
    Table 4's last row and Table 6's shares are stated twice."""
    for model in MODELS:
        for method in METHODS:
            geneval = [FIGURES[model, method, Quantity("geneval", part)] for part in GENEVAL]
            assert geneval[-1] == pytest.approx(sum(geneval[:-1]) / 6, abs=0.011)
            assert all(0 < FIGURES[model, method, Quantity("dpg", part)] < 100 for part in DPG)
        rising = [FIGURES[model, method, Quantity("hpsv2", "anime")] for method in METHODS]
        assert rising == sorted(rising)
    photo = Quantity("hpsv2", "photo")
    assert FIGURES[DIT, "CHATS", photo] == FIGURES[DIT, "two models, s=5, α=0.5", photo] == 29.3
    for size, lost in (("1", -11), ("4", -3)):
        standard, chats = (FIGURES[SDXL, method, Quantity("throughput", size)] for method in ("Standard", "CHATS"))
        assert round(100 * (chats / standard - 1)) == lost


def test_tables_have_the_papers_rows_and_columns():
    titles = {name: [column.title for column in layout.columns] for name, layout in LAYOUTS.items()}
    assert list(titles) == ["1", "2", "3", "4", "6", "7", "8", "9", "figure5"]
    assert titles["1"] == ["Anime", "Concept-Art", "Paintings", "Photo", "GenEval", "DPG-Bench"]
    assert titles["2"] == [
        "Single object",
        "Two object",
        "Counting",
        "Colors",
        "Position",
        "Color attribution",
        "Overall",
    ]
    assert titles["7"][:4] == ["Anime: ImageReward", "Anime: HPSv2", "Anime: PickScore", "Concept-Art: ImageReward"]
    assert (LAYOUTS["2"].seeds, LAYOUTS["1"].seeds) == (4, 1)
    with pytest.raises(UserError, match="`--alpha` is of figure5 alone"):
        layouts(["1"], [0.5])


def test_ours_beside_the_papers():
    """A table made by hand: SDXL is the base, Diffusion-DPO is missing, one column has no scorer."""
    layout = LAYOUTS["2"]

    def ours(method, column):
        if method.title == "Diffusion-DPO":
            return "Diffusion-DPO needs `--model diffusion_dpo=…`"
        return "no scorer" if column.title == "Counting" else Estimate(0.9, 0.02, 99, 396)

    table = make_table(layout, SDXL, ours, ("a note",))
    rows = table_rows(table)
    kinds = [tuple(row[:3]) for row in rows[1:]]
    paper_only = [(SD15, method, "paper") for method in METHODS]
    assert kinds[:3] == paper_only
    # Its three rows: ours, the paper's, and the difference where there are both.
    assert kinds[3:11] == [
        *((SDXL, "Standard", kind) for kind in ("ours", "paper", "difference")),
        *((SDXL, "Diffusion-DPO", kind) for kind in ("ours", "paper")),
        *((SDXL, "CHATS", kind) for kind in ("ours", "paper", "difference")),
    ]
    # 90 − 98.44, and no figure of ours for counting.
    assert rows[4][3:6] == ["90.00 ± 2.00", "90.00 ± 2.00", "–"]
    assert rows[6][3:6] == ["-8.44 ± 2.00", "+21.57 ± 2.00", "–"]
    assert table.notes == ("a note", "empty: no scorer", "empty: Diffusion-DPO needs `--model diffusion_dpo=…`")
    lines = list(csv.DictReader(csv_text(table).splitlines()))
    assert len(lines) == 9 * 7
    first = next(line for line in lines if line["model"] == SDXL)
    assert (float(first["ours"]), first["paper"], first["pictures"]) == (90.0, "98.44", "396")
    assert float(first["difference"]) == pytest.approx(90 - 98.44)
    # Another base has rows of its own, first, and nothing beside them.
    other = table_rows(make_table(layout, "mine", ours, ()))
    assert [row[:3] for row in other[1:4]] == [["mine", method, "ours"] for method in METHODS]


def test_throughput_says_what_the_pair_costs():
    def ours(method, _):
        return Estimate(0.9 if method.title == "CHATS" else 1.0, 0.01, 1, 3)

    rows = table_rows(make_table(LAYOUTS["6"], SD15, ours, ()))
    assert [row[0] for row in rows[1:3]] == [SD15, SD15]
    changes = {(row[0], row[2]): row[3:] for row in rows if "−" in row[1]}
    assert changes == {
        (SD15, "ours"): ["-10%", "-10%"],
        (SDXL, "paper"): ["-11%", "-3%"],
        (DIT, "paper"): ["-3%", "-2%"],
    }


class HandMade(Benchmark):
    """Whose judgements are stated."""

    name, fingerprint, wanted_prompts, notes = "geneval", "f", "", ()
    categories, mean_of_categories = ("single_object", "counting"), True

    def judge(self, images, prompts):
        raise AssertionError("what was judged is stated")

    applies_to = fingerprint_for = judge


def test_a_benchmarks_categories_become_columns(tmp_path):
    """Two prompts of one category, of whose four pictures one is right, and one of another, all right: 0.25 and 1, and
    overall their mean."""
    texts = {"a": "single_object", "b": "single_object", "c": "counting"}
    right = {("a", 0): 1, ("a", 1): 0, ("b", 0): 0, ("b", 1): 0, ("c", 0): 1, ("c", 1): 1}
    condition = Condition("base", 5.0)
    pictures = [
        Picture(condition, EvaluationPrompt(text, texts[text]), seed, f"{text}{seed}", tmp_path) for text, seed in right
    ]
    scores = {f"{text}{seed}": float(value) for (text, seed), value in right.items()}
    parts = {picture.key: {texts[picture.prompt.text]: (scores[picture.key], 1.0)} for picture in pictures}

    def figure(part):
        return _figure(pictures, scores, parts, HandMade(), part)

    assert figure("single_object").mean == 0.25
    assert figure("counting").mean == 1.0
    assert figure("overall").mean == 0.625
    # Two prompts' means, 0.5 and 0: their deviation over √2.
    assert figure("single_object").standard_error == pytest.approx(0.25)
    assert figure("colors") is None


def test_prompts_by_benchmark():
    prompts = [
        EvaluationPrompt("a", "Concept_Art"),
        EvaluationPrompt("b", "photo"),
        EvaluationPrompt("c", "counting", {"include": []}),
        EvaluationPrompt("d", "dpg", {"item_id": "1"}),
        EvaluationPrompt("e", "my prompts"),
    ]
    found = {name: [prompt.text for prompt in each] for name, each in by_benchmark(prompts).items()}
    assert found == {"concept-art": ["a"], "photo": ["b"], "geneval": ["c"], "dpg": ["d"]}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two LoRAs with its exported files, and two styles' prompts."""
    folder = tmp_path_factory.mktemp("tables")
    base = tiny_pipelines.save_pipeline("sd15", folder / "base")
    raw = {"version": 1, "family": "sd15", "pretrained_model": str(base), "data": {"path": str(folder)}}
    raw |= {"resolution": 32, "output_dir": str(folder / "run"), "mixed_precision": "no", "bucket_reso_steps": 16}
    path = folder / "run.yaml"
    path.write_text(json.dumps({**raw, "gradient_checkpointing": False, "network_rank": 2}))
    train_a_little(path, step=1)
    export(load_config(path), "latest", folder / "files", "fp32")
    (folder / "anime.json").write_text(json.dumps(["a cat"]))
    (folder / "photo.json").write_text(json.dumps(["a cow"]))
    return path


def arguments(run, clip, output, *more):
    prompts = [str(run.parent / f"{style}.json") for style in ("anime", "photo")]
    given = [
        "evaluate",
        str(run),
        "--table",
        "1",
        "figure5",
        "--alpha",
        "0.5",
        "--steps",
        "1",
        "--batch-size",
        "2",
        "--prompts",
        *prompts,
    ]
    dpo = f"diffusion_dpo={run.parent / 'files' / 'run_preferred.safetensors'}"
    return [*given, "--model", dpo, "--scorer", f"hpsv2={clip}", "--output", str(output), *more]


def test_a_table_is_the_same_however_it_was_made(run, clip, tmp_path, capfd):
    """At once by one process; or interrupted, with pictures and scores lost, and gone on with by two."""
    whole = tmp_path / "whole"
    assert main(arguments(run, clip, whole)) == 0
    printed = capfd.readouterr().out
    assert "Table 1. HPS v2 results on multiple benchmarks" in printed
    assert "none of the paper's, so no figure of the paper stands beside ours" in printed
    tables = {name: (whole / name).read_bytes() for name in ("table-1.md", "table-1.csv", "figure5.md", "figure5.csv")}
    lines = list(csv.DictReader(tables["table-1.csv"].decode().splitlines()))
    ours = {(line["method"], line["column"]): line for line in lines if line["model"] == "base"}
    filled = {key for key, line in ours.items() if line["ours"]}
    assert filled == {(method, column) for method in METHODS for column in ("Anime", "Photo")}
    assert ours["CHATS", "GenEval"]["missing"].startswith("GenEval needs prompts: GenEval's evaluation_metadata.jsonl")
    assert len({ours[method, "Anime"]["ours"] for method in METHODS}) == 3
    assert {(line["prompts"], line["pictures"]) for line in ours.values()} == {("1", "1"), ("", "")}
    assert (whole / "table-1.png").stat().st_size > 5000

    resumed = tmp_path / "resumed"
    shutil.copytree(whole, resumed)
    pictures = sorted(resumed.glob("pictures/*/*.png"))
    for picture in pictures[::2]:
        picture.unlink()
    rows = (resumed / "scores.jsonl").read_text().splitlines()
    (resumed / "scores.jsonl").write_text("\n".join(rows[: len(rows) // 2]) + "\n" + rows[-1][:9])
    logs = [tmp_path / "0.log", tmp_path / "1.log"]
    both = loaded_process.start_joined(logs, main, arguments(run, clip, resumed))
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0], logs[0].read_text()
    assert {name: (resumed / name).read_bytes() for name in tables} == tables
    assert [path.read_bytes() for path in pictures] == [(whole / p.relative_to(resumed)).read_bytes() for p in pictures]


def test_throughput_is_measured_once(run, tmp_path, monkeypatch, capsys):
    """At one batch size, and only in the first of two runs."""
    monkeypatch.setattr(throughput, "REPEATS", 2)
    monkeypatch.setattr(throughput, "BATCH_SIZES", (1,))
    monkeypatch.setitem(LAYOUTS, "6", replace(LAYOUTS["6"], columns=LAYOUTS["6"].columns[:1]))
    command = ["evaluate", str(run), "--table", "6", "--steps", "1", "--output", str(tmp_path)]
    assert main(command) == 0
    first = (tmp_path / "table-6.csv").read_bytes()
    rates = json.loads((tmp_path / "throughput.json").read_text())
    assert len(rates) == 2
    assert all(len(each) == 2 and min(each) > 0 for each in rates.values())
    assert main(command) == 0
    assert (tmp_path / "table-6.csv").read_bytes() == first
    assert "from prompt to picture; the paper's is one A100" in capsys.readouterr().out


def test_cfg_in_one_batch_is_cfg(run):
    family = open_family(load_config(run), "cpu")
    denoiser = family.load_denoiser()
    prompt, null = family.encode_prompt(["a cat", "a dog"]), family.null_prompt()
    noise, settings = initial_noise(family, 2, 32, 32, 0), SamplingSettings(steps=1, guidance_scale=3.0)
    one = sample_cfg_in_one_batch(family, denoiser, prompt, null, noise, settings)
    torch.testing.assert_close(one, sample_cfg(family, denoiser, prompt, null, noise, settings), rtol=1e-4, atol=1e-4)


def test_what_a_table_cannot_be_made_of(run, clip, tmp_path, capsys):
    def refused(*more):
        assert main(arguments(run, clip, tmp_path, *more)) == 2
        return capsys.readouterr().err

    assert "did you mean supervised_all=…?" in refused("--model", "supervised_al=x")
    assert "names diffusion_dpo twice" in refused("--model", "diffusion_dpo=x")
    assert "which has 1 models where two_models_without_reference has 2" in refused(
        "--model", f"two_models_without_reference={run.parent / 'files' / 'run_preferred.safetensors'}"
    )
    assert "whose `objective` is chats; name it so" in refused("--model", f"supervised_all={run}")
    assert "`--guidance-scale` is not for tables" in refused("--guidance-scale", "3")
    assert main(["evaluate", str(run), "--scorer", f"hpsv2={clip}"]) == 2
    assert "`--prompts` is missing" in capsys.readouterr().err
