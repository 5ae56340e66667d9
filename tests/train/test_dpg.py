"""DPG-Bench: its questions and what answers are worth, worked out by hand, and tiny random models that answer."""

import numpy as np
import pytest
import tiny_benchmarks
import torch
from PIL import Image
from test_geneval import noise

from chats_train.cli import main
from chats_train.evaluation.benchmarks import answering
from chats_train.evaluation.benchmarks.answering import is_yes, open_answerer
from chats_train.evaluation.benchmarks.dpg import category_parts, read_questions, score_answers
from chats_train.evaluation.prompts import EvaluationPrompt, read_prompts
from chats_train.evaluation.scorers import open_scorers
from chats_train.support.errors import UserError

HEAD = (
    "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,question_natural_language\n"
)
ROWS = """\
truck,"A truck, red",,1,0,entity,whole,entity - whole (truck),Is there a truck?
truck,"A truck, red",,2,1,attribute,color,"attribute - color (truck, red)",Is the truck red?
truck,"A truck, red",,3,2,relation,spatial,"relation - spatial (red, wall)",Is the red on the wall?
truck,"A truck, red",,4,"1,5",relation,spatial,"relation - spatial (truck, wall)",Is the truck at the wall?
truck,"A truck, red",,5,0,entity,whole,entity - whole (wall),Is there a wall?
12,A style,,1,0,global,,global - (oil),is it oil?
"""


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "dpg_bench.csv"
    path.write_text(HEAD + ROWS, encoding="utf-8")
    return path


@pytest.fixture
def one_word(monkeypatch):
    """Answers end after their first word, or a tiny model would go on as long as it may."""
    monkeypatch.setattr(answering, "NEW_TOKENS", 1)


def test_questions_are_read_whole(table):
    questions = read_questions(table)
    assert list(questions) == ["truck", "12"]
    assert [(each.number, each.parents, each.category) for each in questions["truck"]] == [
        (1, (), "entity"),
        (2, (1,), "attribute"),
        (3, (2,), "relation"),
        (4, (1, 5), "relation"),
        (5, (), "entity"),
    ]
    assert questions["12"][0].category == "global"
    assert questions["truck"][0].text == "Is there a truck?"


@pytest.mark.parametrize(
    ("yes", "score", "parts"),
    [
        # All are yes.
        ((1, 2, 3, 4, 5), 5 / 5, {"entity": (2, 2), "attribute": (1, 1), "relation": (2, 2)}),
        # Without the truck neither its colour counts, nor what depends on that, nor its place: the wall alone. The
        # categories take the answers as they are.
        ((2, 3, 4, 5), 1 / 5, {"entity": (1, 2), "attribute": (1, 1), "relation": (2, 2)}),
        # Without the wall its place does not count.
        ((1, 2, 3, 4), 3 / 5, {"entity": (1, 2), "attribute": (1, 1), "relation": (2, 2)}),
        # A child's no takes nothing along.
        ((1, 4, 5), 3 / 5, {"entity": (2, 2), "attribute": (0, 1), "relation": (1, 2)}),
        ((), 0, {"entity": (0, 2), "attribute": (0, 1), "relation": (0, 2)}),
    ],
)
def test_a_child_counts_only_where_its_parents_are_yes(table, yes, score, parts):
    questions = read_questions(table)["truck"]
    answers = {number: number in yes for number in range(1, 6)}
    assert score_answers(questions, answers) == score
    assert category_parts(questions, answers) == parts


@pytest.mark.parametrize(
    ("answer", "yes"),
    [
        ("yes", True),
        ("Yes.", True),
        ("yes, it is", True),
        ("no", False),
        ("", False),
        ("yesterday", False),
        ("red", False),
    ],
)
def test_yes_is_the_first_word(answer, yes):
    assert is_yes(answer) == yes


def test_prompts_are_a_folder_of_text_files(tmp_path):
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "truck.txt").write_text("A truck,\nred.\n", encoding="utf-8")
    (folder / "12.txt").write_text("A style", encoding="utf-8")
    (folder / "empty.txt").write_text("\n", encoding="utf-8")
    prompts, repeated = read_prompts([folder])
    assert [(each.text, each.group, each.metadata) for each in prompts] == [
        ("A style", "dpg", {"item_id": "12"}),
        ("A truck, red.", "dpg", {"item_id": "truck"}),
    ]
    assert repeated == 0


@pytest.mark.parametrize("make", [tiny_benchmarks.save_blip, tiny_benchmarks.save_chat], ids=["blip", "chat"])
def test_answers_do_not_depend_on_what_else_is_asked(make, tmp_path):
    answerer = open_answerer(str(make(tmp_path / "model")), "cpu")
    questions = ["is it a cat?", "a?", "is there a dog?"]
    images = [noise(0, (40, 40)), Image.new("RGB", (30, 30), "red")]
    together = [answerer.answer(image, questions) for image in images]
    assert together[0] == [answerer.answer(images[0], [each])[0] for each in questions]
    assert together[0] != together[1]
    assert len(set(together[0])) > 1


def test_blip_answers_as_transformers_shows_it(tmp_path):
    answerer = open_answerer(str(tiny_benchmarks.save_blip(tmp_path / "model")), "cpu")
    inputs = answerer.processor(images=noise(0), text="is it a cat?", return_tensors="pt")
    with torch.no_grad():
        tokens = answerer.model.generate(**inputs, max_new_tokens=8)
    shown = answerer.processor.decode(tokens[0][1:], skip_special_tokens=True)
    assert answerer.answer(noise(0), ["is it a cat?"]) == [shown.strip()]


@pytest.mark.parametrize(("says", "share"), [("yes", 1.0), ("no", 0.0)])
def test_a_model_that_says_one_word(table, one_word, tmp_path, says, share):
    folder = tiny_benchmarks.save_blip(tmp_path / "model", says)
    (scorer,) = open_scorers([f"dpg={folder},{table}"], "cpu")
    prompts = [EvaluationPrompt("A truck", "dpg", {"item_id": "truck"}), EvaluationPrompt("a cat", "prompts")]
    assert [scorer.applies_to(each) for each in prompts] == [True, False]
    (judgement,) = scorer.judge([noise(0)], prompts[:1])
    assert judgement.score == share
    assert judgement.parts == {"entity": (2 * share, 2), "attribute": (share, 1), "relation": (2 * share, 2)}
    assert judgement.evidence["answers"]["3"].split()[0] == says
    assert scorer.categories == ("global", "entity", "attribute", "relation", "other")
    assert f"answered by blip ({folder}), where the benchmark has mPLUG-large" in scorer.notes[0]
    # Another question about the same prompt is another score.
    before = scorer.fingerprint_for(prompts[0])
    table.write_text(table.read_text(encoding="utf-8").replace("Is the truck red?", "Is it red?"), encoding="utf-8")
    (again,) = open_scorers([f"dpg={folder},{table}"], "cpu")
    assert again.fingerprint_for(prompts[0]) != before
    with pytest.raises(UserError, match=r"13\.txt has no question in .*dpg_bench\.csv"):
        scorer.applies_to(EvaluationPrompt("x", "dpg", {"item_id": "13"}))


def test_a_dependency_on_nothing_is_left_out_and_said(table, tmp_path):
    table.write_text(HEAD + ROWS.replace(",3,2,relation", ",3,9,relation"), encoding="utf-8")
    questions = read_questions(table)["truck"]
    assert score_answers(questions, {1: True, 2: False, 3: True, 4: True, 5: True}) == 4 / 5
    (scorer,) = open_scorers([f"dpg={tiny_benchmarks.save_blip(tmp_path / 'model')},{table}"], "cpu")
    assert scorer.notes[1] == "DPG-Bench: 1 dependencies name a question that is not there, and are left out"


def test_tables_and_models_that_cannot_be_used_are_sentences(table, clip, tmp_path):
    chat = tiny_benchmarks.save_chat(tmp_path / "chat")

    def refused(source):
        with pytest.raises(UserError) as error:
            open_scorers([f"dpg={source}"], "cpu")
        return str(error.value)

    assert "names one thing of two; give dpg=VQA_MODEL,QUESTIONS.csv" in refused(chat)
    assert "dpg's model is `/nowhere`, which is not there" in refused(f"/nowhere,{table}")
    assert "none.csv, which cannot be read" in refused(f"{chat},{tmp_path / 'none.csv'}")
    for text, problem in (
        (HEAD, "has none"),
        (HEAD.replace("tuple", "triple") + ROWS, "no column tuple"),
        (HEAD + ROWS.replace(",2,1,attribute", ",2,one,attribute"), "line 3, cannot be read (invalid literal"),
        (HEAD + ROWS.replace("Is the truck red?", ""), "line 3, cannot be read (an empty cell)"),
    ):
        table.write_text(text, encoding="utf-8")
        assert problem in refused(f"{chat},{table}")
    table.write_text(HEAD + ROWS, encoding="utf-8")
    mplug = tmp_path / "mplug"
    mplug.mkdir()
    (mplug / "configuration.json").write_text('{"model": {"type": "mplug"}}')
    assert "a model of the package modelscope, such as the benchmark's own mPLUG, whose weights are pickled" in refused(
        f"{mplug},{table}"
    )
    (chat / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="which has no chat template; give a BlipForQuestionAnswering"):
        open_answerer(str(chat), "cpu").answer(noise(0), ["a?"])
    with pytest.raises(
        UserError, match=r"`model_type` clip transformers does not open as a model of pictures and text"
    ):
        open_answerer(str(clip), "cpu").model  # noqa: B018


def test_grids_that_were_drawn_elsewhere(table, one_word, tmp_path, capsys):
    vqa = tiny_benchmarks.save_blip(tmp_path / "vqa", "yes")
    folder = tmp_path / "grids"
    folder.mkdir()
    grid = Image.new("RGB", (40, 40))
    corners = [(0, 0), (20, 0), (0, 20), (20, 20)]
    for number, corner in enumerate(corners):
        grid.paste(noise(number, (20, 20)), corner)
    grid.save(folder / "truck.png")
    arguments = ["score", str(folder), "--scorer", f"dpg={vqa},{table}", "--grid"]
    assert main([*arguments, "2"]) == 0
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert said[-6:] == [
        ["global", "–", "–", "–"],
        *([name, "100.00", "1", "4"] for name in ("entity", "attribute", "relation")),
        ["other", "–", "–", "–"],
        ["overall", "100.00", "1", "4"],
    ]
    pieces = sorted((folder / "scores" / "pictures").rglob("*.png"))
    assert [np.asarray(Image.open(piece)).tolist() for piece in pieces] == [
        np.asarray(noise(number, (20, 20))).tolist() for number in range(4)
    ]
    kept = (folder / "scores" / "scores.jsonl").read_text()
    assert len(kept.splitlines()) == 4
    assert main([*arguments, "2"]) == 0
    assert (folder / "scores" / "scores.jsonl").read_text() == kept
    capsys.readouterr()
    for number, problem in (("3", "40 × 40 pixels, which 3 does not divide"), ("0", "`--grid` is 0; give 1")):
        assert main([*arguments, number]) == 2
        assert problem in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["score", str(tmp_path / "empty"), *arguments[2:], "1"]) == 2
    assert "where dpg finds none; it wants pictures named by their prompts" in capsys.readouterr().err
