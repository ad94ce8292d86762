"""Benchmarks in small files of each official form, their metrics by hand, and the command from end to end."""

import argparse
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from mlmamba.errors import UserError
from mlmamba.training import benchmarks
from mlmamba.training import evaluate as held_out
from mlmamba.training.benchmarks import (
    BENCHMARKS,
    Question,
    evaluate,
    gqa_accuracy,
    normalise,
    questions_of,
    score_pope,
    score_vsr,
    soft_accuracy,
    textvqa_accuracy,
    vizwiz_accuracy,
    vqav2_accuracy,
)

SHORT = "\nAnswer the question using a single word or phrase."


def write(path: Path, content: object) -> None:
    """A picture of one colour, JSON, or JSON lines (which POPE's names do not tell)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jpg":
        Image.new("RGB", (48, 32), str(content)).save(path)
    elif path.suffix == ".jsonl" or path.name.startswith("coco_pope"):
        path.write_text("".join(json.dumps(line) + "\n" for line in content))
    else:
        path.write_text(json.dumps(content))


def ten(**times: int) -> list[str]:
    """ten(yes=7, no=3): seven people said yes."""
    answers = [answer for answer, n in times.items() for _ in range(n)]
    assert len(answers) == 10
    return answers


def people(answers: list[str]) -> list[dict[str, object]]:
    return [{"answer": a, "answer_confidence": "yes", "answer_id": i} for i, a in enumerate(answers, 1)]


def pope(data: Path) -> None:
    red, blue = ("COCO_val2014_000000548882.jpg", "COCO_val2014_000000008211.jpg")
    for split, absent in (("random", "zebra"), ("popular", "chair"), ("adversarial", "fork")):
        lines = [(red, "sandwich", "yes"), (red, absent, "no"), (blue, "bicycle", "yes"), (blue, absent, "no")]
        rows = [
            {"question_id": i, "image": image, "image_id": 1, "text": f"Is there a {a} in the image?", "label": label}
            for i, (image, a, label) in enumerate(lines)
        ]
        write(data / f"coco_pope_{split}.json", rows)
    write(data / "val2014" / red, "red")
    write(data / "val2014" / blue, "blue")


def vsr(data: Path) -> None:
    def line(image: str, caption: str, label: int) -> dict[str, object]:
        link = f"http://images.cocodataset.org/train2017/{image}"
        votes = {"vote_true_validator_id": "[18, 2]", "vote_false_validator_id": "[1]"}
        return {"image": image, "image_link": link, "caption": caption, "label": label, "relation": "on", **votes}

    lines = [
        line("000000017697.jpg", "The car is behind the suitcase.", 1),
        line("000000199940.jpg", "The cat is under the backpack.", 0),
        line("000000470862.jpg", "The handbag is right of the cat.", 0),
    ]
    write(data / "splits/zeroshot/test.jsonl", lines)
    for row, colour in zip(lines, ("red", "green", "blue"), strict=True):
        write(data / "images" / str(row["image"]), colour)


def vqav2(data: Path) -> None:
    asked = [
        {"image_id": 262148, "question": "Where is he looking?", "question_id": 262148000},
        {"image_id": 262148, "question": "Is he old?", "question_id": 262148001},
    ]
    answered = [
        {"question_id": 262148000, "image_id": 262148, "question_type": "none of the above", "answer_type": "other",
         "multiple_choice_answer": "down", "answers": people(ten(down=7, table=1, skateboard=2))},
        {"question_id": 262148001, "image_id": 262148, "question_type": "is he", "answer_type": "yes/no",
         "multiple_choice_answer": "no", "answers": people(ten(no=10))},
    ]  # fmt: skip
    about = {"data_type": "mscoco", "data_subtype": "val2014", "task_type": "Open-Ended", "license": {}, "info": {}}
    write(data / "v2_OpenEnded_mscoco_val2014_questions.json", {**about, "questions": asked})
    write(data / "v2_mscoco_val2014_annotations.json", {**about, "annotations": answered})
    write(data / "val2014/COCO_val2014_000000262148.jpg", "red")


def gqa(data: Path) -> None:
    def question(image: str, text: str, answer: str, structural: str, balanced: bool = True) -> dict[str, object]:
        types = {"structural": structural, "semantic": "rel", "detailed": "relS"}
        full = {"fullAnswer": f"It is {answer}.", "groups": {"global": None, "local": ""}, "semantic": []}
        return {"imageId": image, "question": text, "answer": answer, "isBalanced": balanced, "types": types, **full}

    questions = {
        "201307251": question("n161313", "Is it overcast?", "no", "verify"),
        "201640614": question("n235859", "Who is wearing the dress?", "woman", "query"),
        "201640615": question("n235859", "Who is there?", "woman", "query", balanced=False),
    }
    write(data / "testdev_balanced_questions.json", questions)
    write(data / "images/n161313.jpg", "red")
    write(data / "images/n235859.jpg", "blue")


def vizwiz(data: Path) -> None:
    def line(image: str, text: str, answers: list[str], kind: str) -> dict[str, object]:
        given = [{"answer": answer, "answer_confidence": "maybe"} for answer in answers]
        able = int(kind != "unanswerable")
        return {"image": image, "question": text, "answers": given, "answer_type": kind, "answerable": able}

    lines = [
        line("VizWiz_val_00000000.jpg", "What is this?", ten(unanswerable=8, chair=2), "unanswerable"),
        line("VizWiz_val_00000001.jpg", "Which colour?", ten(blue=2, navy=8), "other"),
    ]
    write(data / "val.json", lines)
    write(data / "val/VizWiz_val_00000000.jpg", "red")
    write(data / "val/VizWiz_val_00000001.jpg", "blue")


def textvqa(data: Path) -> None:
    line = {
        "question": "what is the brand of this camera?", "question_id": 34602, "image_id": "003a8ae2ef43b901",
        "question_tokens": ["what", "is"], "image_width": 1024, "image_height": 664, "set_name": "val",
        "image_classes": ["Camera"], "flickr_original_url": "", "flickr_300k_url": "",
        "answers": ten(nous=3, dakota=1, clos=2, dakota_digital=4),
    }  # fmt: skip
    write(data / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "dataset_name": "textvqa", "data": [line]})
    write(data / "train_images/003a8ae2ef43b901.jpg", "red")


MAKE = {"pope": pope, "vsr": vsr, "vqav2": vqav2, "gqa": gqa, "vizwiz": vizwiz, "textvqa": textvqa}


class Parrot:
    """A model that answers by question, and its own conversation; it counts what it sees and is asked."""

    config = SimpleNamespace(name="parrot", connector=SimpleNamespace(kinds=("bsm", "csm")))

    def __init__(self, *said: tuple[str, str], otherwise: str = "Yes", tired_after: int = 10**9):
        self.said, self.otherwise, self.tired_after = said, otherwise, tired_after
        self.seen: list[str] = []
        self.asked: list[tuple[str, str]] = []  # connector, prompt

    def check_connector(self, kind: str) -> str:
        return kind

    def start(self, image: Path, connector: str) -> "Parrot":
        self.seen.append(image.name)
        self.turns = 0
        return self

    def use(self, connector: str) -> None:
        self.connector = connector

    def ask(self, prompt: str, max_new_tokens: int) -> list[str]:
        if len(self.asked) == self.tired_after:
            raise KeyboardInterrupt
        assert self.turns == 0, "asked as a second turn"
        self.turns += 1
        self.asked.append((self.connector, prompt))
        answer = next((answer for part, answer in self.said if part in prompt), self.otherwise)
        return [answer[:1], answer[1:]]

    def undo(self) -> None:
        self.turns -= 1


def scores(name: str, data: Path, parrot: Parrot, **options) -> dict[str, dict[str, float]]:
    """Part → scores of one connector."""
    rows = evaluate(parrot, name, questions_of(name, data), data / "said.jsonl", ("bsm",), **options)
    return {row["part"]: {k: v for k, v in row.items() if k not in ("part", "connector")} for row in rows}


# --- each benchmark, from its files to its scores


def test_pope(tmp_path):
    pope(tmp_path)
    parrot = Parrot(("sandwich", "Yes, there is."), ("zebra", "No."), ("chair", "No, there is no chair"))
    found = scores("pope", tmp_path, parrot)
    assert list(found) == ["adversarial", "popular", "random", "all"]
    assert found["random"] == dict(questions=4, accuracy=1, precision=1, recall=1, f1=1, yes_ratio=0.5)
    half = dict(questions=4, accuracy=0.5, precision=0.5, recall=1, f1=pytest.approx(2 / 3), yes_ratio=1)
    assert found["adversarial"] == half
    assert found["all"]["questions"] == 12 and found["all"]["accuracy"] == pytest.approx(10 / 12)
    assert parrot.seen == ["COCO_val2014_000000548882.jpg", "COCO_val2014_000000008211.jpg"]  # once for three splits
    assert parrot.asked[0] == ("bsm", "Is there a sandwich in the image?" + SHORT)


def test_vsr(tmp_path):
    vsr(tmp_path)
    parrot = Parrot(("suitcase", "True"), ("backpack", "It is false."), otherwise="Sorry, I cannot tell.")
    assert scores("vsr", tmp_path, parrot) == {
        "all": dict(questions=3, accuracy=pytest.approx(2 / 3), unclear=pytest.approx(1 / 3))
    }
    assert parrot.asked[0][1] == (
        'Based on the image, is this statement "True" or "False"? The car is behind the suitcase.\n'
        'Respond with "True" or "False" directly.'
    )


def test_vqav2(tmp_path):
    vqav2(tmp_path)
    found = scores("vqav2", tmp_path, Parrot(("looking", "The skateboard."), ("old", "No")))
    assert {part: row["accuracy"] for part, row in found.items()} == pytest.approx(
        {"other": 0.6, "yes/no": 1, "all": 0.8}
    )


def test_gqa(tmp_path):
    gqa(tmp_path)
    found = scores("gqa", tmp_path, Parrot(("overcast", "No."), ("dress", "A woman")))
    assert {part: row["accuracy"] for part, row in found.items()} == {"binary": 1, "open": 0, "all": 0.5}
    assert found["open"]["questions"] == 1  # what is not balanced is not asked


def test_vizwiz(tmp_path):
    vizwiz(tmp_path)
    parrot = Parrot(("this", "Unanswerable"), ("colour", "blue"))
    found = scores("vizwiz", tmp_path, parrot)
    assert {part: row["accuracy"] for part, row in found.items()} == pytest.approx(
        {"other": 0.6, "unanswerable": 1, "all": 0.8}
    )
    instruction = "\nWhen the provided information is insufficient, respond with 'Unanswerable'." + SHORT
    assert parrot.asked[0][1] == "What is this?" + instruction


def test_textvqa(tmp_path):
    textvqa(tmp_path)
    assert scores("textvqa", tmp_path, Parrot(otherwise="NOUS!"))["all"]["accuracy"] == pytest.approx(0.9)


# --- metrics by hand


@pytest.mark.parametrize("agreeing, accuracy", [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_soft_accuracy_leaves_out_each_person_in_turn(agreeing, accuracy):
    truths = ("cat",) * agreeing + ("dog",) * (10 - agreeing)
    rounds = [min(1, (truths[:i] + truths[i + 1 :]).count("cat") / 3) for i in range(10)]
    assert soft_accuracy("cat", truths) == pytest.approx(sum(rounds) / 10) == pytest.approx(accuracy)


@pytest.mark.parametrize(
    "text, plain",
    [
        ("Yes.", "yes"),
        ("a dog and the cat", "dog and cat"),
        ("Two", "2"),
        ("none", "0"),
        ("ten of the eleven", "10 of eleven"),
        ("dont", "don't"),
        ("it's", "it's"),
        ("couldnt've", "couldn't've"),
        ("somebody'd", "somebodyd"),  # the official table's own slip
        ("red/white", "red white"),  # between letters: a space
        ("red, white", "red white"),  # beside a space: nothing
        ("t-shirt", "t shirt"),
        ("2,000 t-shirts", "2000 tshirts"),  # a number like this: nothing anywhere
        ("3.5 U.S.", "3.5 us"),
        ("  what?\n\tNow ", "what now"),
        ("", ""),
    ],
)
def test_normalise(text, plain):
    assert normalise(text) == plain


def test_each_challenge_treats_peoples_answers_in_its_own_way():
    agreed, divided = ("t-shirt",) * 10, ("t-shirt",) * 9 + ("shirt",)
    assert vqav2_accuracy("T-shirt", agreed) == 0 and vqav2_accuracy("T-shirt", divided) == 1
    assert vizwiz_accuracy("T-shirt", divided) == 0 and vizwiz_accuracy("shirts", ("shirts",) * 10) == 1
    assert textvqa_accuracy("T-shirt", agreed) == textvqa_accuracy("t shirt", divided) == 1
    assert textvqa_accuracy("McDonald's", ("mcdonald 's",) * 10) == 1  # its own split of words
    assert vqav2_accuracy("two", ("Two",) * 9 + ("2",)) == pytest.approx(0.3)  # people's number words stay


def test_gqa_is_an_exact_match():
    assert gqa_accuracy(" Yes.", ("yes",)) == 1
    assert gqa_accuracy("a man", ("man",)) == 0


def judged(*pairs: tuple[str, str]) -> list[tuple[Question, str]]:
    return [(Question("", "", (truth,)), answer) for truth, answer in pairs]


def test_pope_by_hand():
    hits, false_alarms = [("yes", "Yes")] * 3, [("no", "Yes, it is")] * 2
    misses, rejections = [("yes", "I do not see one")] * 1, [("no", "No")] * 4
    found = score_pope(judged(*hits, *false_alarms, *misses, *rejections))
    assert found == pytest.approx(dict(accuracy=0.7, precision=3 / 5, recall=3 / 4, f1=2 / 3, yes_ratio=0.5))
    silent = score_pope(judged(("yes", "no"), ("no", "no")))
    assert silent == dict(accuracy=0.5, precision=0, recall=0, f1=0, yes_ratio=0)


@pytest.mark.parametrize(
    "answer, verdict",
    [("no", "no"), ("No, there is none.", "no"), ("Yes. There is no dog", "yes"), ("NO", "yes"), ("nothing", "yes")],
)
def test_pope_reads_answers_as_its_script_does(answer, verdict):
    assert benchmarks.yes_or_no(answer) == verdict


def test_vsr_takes_the_first_verdict():
    found = score_vsr(judged(("true", "Yes, true"), ("false", "FALSE"), ("false", "untrue"), ("true", "No: true")))
    assert found == dict(accuracy=0.5, unclear=0.25)


# --- going on, and what a user may have wrong


def test_a_run_that_was_stopped_goes_on(tmp_path):
    pope(tmp_path)
    asked, said = questions_of("pope", tmp_path), tmp_path / "said.jsonl"
    whole = Parrot(("zebra", "No"))
    expected = evaluate(whole, "pope", asked, tmp_path / "whole.jsonl")
    assert {row["connector"] for row in expected} == {"bsm", "csm"}
    assert len(whole.asked) == 16 and len(whole.seen) == 2  # nothing twice: three splits ask for the sandwich
    with pytest.raises(KeyboardInterrupt):
        evaluate(Parrot(("zebra", "No"), tired_after=11), "pope", asked, said)
    said.write_bytes(said.read_bytes()[:-9])  # killed while it wrote
    rest = Parrot(("zebra", "No"))
    assert evaluate(rest, "pope", asked, said) == expected
    assert len(rest.asked) == 16 - 10 and rest.seen == ["COCO_val2014_000000008211.jpg"]
    done = Parrot()
    assert evaluate(done, "pope", asked, said) == expected and not done.asked and not done.seen
    evaluate(done, "pope", asked, said, ("bsm",), "{question}")  # other words are another question
    assert len(done.asked) == 8 and done.asked[0][1] == "Is there a sandwich in the image?"


def test_limit_counts_pictures(tmp_path):
    pope(tmp_path)
    (tmp_path / "val2014/COCO_val2014_000000008211.jpg").unlink()  # not needed
    (questions,) = questions_of("pope", tmp_path, limit=1).values()
    assert [question.part for question in questions] == ["random"] * 2 + ["popular"] * 2 + ["adversarial"] * 2
    with pytest.raises(UserError, match="at least one picture"):
        questions_of("pope", tmp_path, limit=0)


@pytest.mark.parametrize("name", MAKE)
def test_each_missing_file_is_named_with_its_address(name, tmp_path):
    with pytest.raises(UserError) as error:
        questions_of(name, tmp_path)
    for file, address in BENCHMARKS[name].files.items():
        assert f"{file} from {address}" in str(error.value)
    MAKE[name](tmp_path)
    picture = next(iter(questions_of(name, tmp_path)))
    picture.unlink()
    with pytest.raises(UserError, match=picture.name):
        questions_of(name, tmp_path)


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "[1]", '{"data": [{"answers": []}]}', "\xff"])
def test_a_file_of_another_form_is_one_sentence(name, content, tmp_path):
    MAKE[name](tmp_path)
    file = next(file for file in BENCHMARKS[name].files if not file.endswith("/"))
    (tmp_path / file).write_bytes(content.encode("latin-1"))
    if name == "pope" and not content:  # the two other splits still have questions
        for split in ("popular", "adversarial"):
            (tmp_path / f"coco_pope_{split}.json").write_text("")
    with pytest.raises(UserError, match="official form"):
        questions_of(name, tmp_path)


def test_a_prompt_without_the_question_and_a_file_that_cannot_be_written(tmp_path):
    vsr(tmp_path)
    asked = questions_of("vsr", tmp_path)
    with pytest.raises(UserError, match="into the prompt"):
        evaluate(Parrot(), "vsr", asked, tmp_path / "said.jsonl", prompt="True or false?")
    with pytest.raises(UserError, match="--predictions"):
        evaluate(Parrot(), "vsr", asked, tmp_path / "nowhere" / "said.jsonl")


def command(*arguments: object) -> None:
    parser = argparse.ArgumentParser()
    benchmarks.add_command(parser.add_subparsers())
    options = parser.parse_args(["evaluate", *map(str, arguments)])
    options.run(options)


def test_without_a_benchmark_the_held_out_questions_are_asked(tmp_path, capsys, monkeypatch):
    rows = [{"asked": "scenes: count", "questions": 4, "chance": 0.25, "bsm": 0.5}]
    monkeypatch.setattr(benchmarks, "load", lambda name, device: name)
    monkeypatch.setattr(held_out, "evaluate", lambda model, data, scenes: rows if scenes == 7 else [])
    command("--data", tmp_path, "--scenes", 7, "--json", tmp_path / "figures.json")
    assert json.loads((tmp_path / "figures.json").read_text()) == rows
    assert "| scenes: count | 4 | 25.0 % | 50.0 % |" in capsys.readouterr().out


@pytest.mark.slow
def test_the_command_with_the_tiny_model(tmp_path, capsys, monkeypatch):
    vsr(tmp_path)
    figures = tmp_path / "figures.json"
    arguments = ["vsr", "--data", tmp_path, "--connector", "bsm", "--device", "cpu", "--json", figures]
    with pytest.raises(UserError, match="no folder"):
        command(*arguments[:-1], tmp_path / "nowhere" / "figures.json")
    command(*arguments, "--prompt", "Is this a photo? {question}")
    first = json.loads(figures.read_text())
    assert first["scores"][0]["questions"] == 3 and first["model"] == "tiny"
    (said,) = tmp_path.glob(f"vsr-tiny-{first['weights']}.jsonl")
    lines = [json.loads(line) for line in said.read_text().splitlines()]
    assert [line["image"] for line in lines] == [
        f"images/000000{number}.jpg" for number in ("017697", "199940", "470862")
    ]
    assert all(line["prompt"].startswith("Is this a photo? The ") and line["answer"] for line in lines)
    assert "| connector | part | questions | accuracy | unclear |" in capsys.readouterr().out
    model = SimpleNamespace(config=SimpleNamespace(name="tiny"), check_connector=lambda kind: kind)
    monkeypatch.setattr(benchmarks, "load", lambda *_, **__: model)  # one that can't even be asked
    command(*arguments, "--prompt", "Is this a photo? {question}")
    assert json.loads(figures.read_text()) == first
