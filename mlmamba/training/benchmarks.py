"""Public benchmarks from their official files, by their official metrics: POPE, VSR, VQAv2, GQA, VizWiz and TextVQA.

`lmms-eval` (0.7.3) would not be the shorter way: it brings fifty packages, reads copies on the Hub in place of the
official files, has no VSR, scores VQAv2 and VizWiz by other normalisations than their own scripts, and would still
need a wrapper as long as the loop below.
"""

import argparse
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from mlmamba import hub, weights
from mlmamba.errors import UserError
from mlmamba.model import MLMamba, load

MAX_NEW_TOKENS = 64
HELD_OUT = "held-out"  # this repository's own questions, see evaluate.py

# The prompts of LLaVA-1.5's evaluation (haotian-liu/LLaVA, docs/Evaluation.md); it has none for VSR, whose prompt is
# that of TRI-ML/vlm-evaluation, the harness of the Prismatic models.
SHORT = "{question}\nAnswer the question using a single word or phrase."
OR_UNANSWERABLE = (
    "{question}\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n"
    "Answer the question using a single word or phrase."
)
TRUE_OR_FALSE = (
    'Based on the image, is this statement "True" or "False"? {question}\nRespond with "True" or "False" directly.'
)


@dataclass(frozen=True)
class Question:
    """A question about a picture, the answers that people gave to it, and the part of the benchmark it belongs to."""

    image: str  # its path below the benchmark's folder
    text: str
    truths: tuple[str, ...]
    part: str = "all"


Answered = Sequence[tuple[Question, str]]  # questions with a model's answers
Key = tuple[str, str, str]  # connector, picture and prompt: what an answer, at temperature 0, depends on


@dataclass(frozen=True)
class Benchmark:
    """Where the official files come from, how they are read, and how answers are scored.

    `files` maps a file, or a folder of pictures (with a slash), to the address that it or its archive is at.
    """

    files: dict[str, str]
    read: Callable[[Path], Iterator[Question]]
    score: Callable[[Answered], dict[str, float]]
    prompt: str = SHORT


# --- official files -> questions


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_lines(path: Path) -> Iterator[Any]:
    return (json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip())


def read_pope(data: Path) -> Iterator[Question]:
    """AoiDragon/POPE, output/coco: one JSON object a line, in three files that share pictures and some questions."""
    for split in ("random", "popular", "adversarial"):
        for line in read_lines(data / f"coco_pope_{split}.json"):
            yield Question(f"val2014/{line['image']}", line["text"], (line["label"],), split)


def read_vsr(data: Path) -> Iterator[Question]:
    """cambridgeltl/visual-spatial-reasoning, data/: captions with label 1 (true) or 0 (false)."""
    for line in read_lines(data / "splits/zeroshot/test.jsonl"):
        yield Question(f"images/{line['image']}", line["caption"], ("true" if line["label"] else "false",))


def read_vqav2(data: Path) -> Iterator[Question]:
    """GT-Vision-Lab/VQA: questions and ten answers each in two files. The test split's answers are not public."""
    annotations = read_json(data / "v2_mscoco_val2014_annotations.json")["annotations"]
    answers = {annotation["question_id"]: annotation for annotation in annotations}
    for question in read_json(data / "v2_OpenEnded_mscoco_val2014_questions.json")["questions"]:
        annotation = answers[question["question_id"]]
        image = f"val2014/COCO_val2014_{question['image_id']:012d}.jpg"
        truths = tuple(answer["answer"] for answer in annotation["answers"])
        yield Question(image, question["question"], truths, annotation["answer_type"])


def read_gqa(data: Path) -> Iterator[Question]:
    """GQA's download page: {id: question}; its eval.py scores the balanced ones, "query" as open, others as binary."""
    for question in read_json(data / "testdev_balanced_questions.json").values():
        if question["isBalanced"]:
            part = "open" if question["types"]["structural"] == "query" else "binary"
            yield Question(f"images/{question['imageId']}.jpg", question["question"], (question["answer"],), part)


def read_vizwiz(data: Path) -> Iterator[Question]:
    """VizWiz-VQA: one list, a picture a question, ten answers. The test split's answers are not public."""
    for line in read_json(data / "val.json"):
        truths = tuple(answer["answer"] for answer in line["answers"])
        yield Question(f"val/{line['image']}", line["question"], truths, line["answer_type"])


def read_textvqa(data: Path) -> Iterator[Question]:
    """TextVQA 0.5.1: ten answers as plain texts; the pictures of the val split lie in the folder of the train split.

    Asked without the words that an OCR program found, which LLaVA's evaluation adds to the prompt.
    """
    for line in read_json(data / "TextVQA_0.5.1_val.json")["data"]:
        yield Question(f"train_images/{line['image_id']}.jpg", line["question"], tuple(line["answers"]))


# --- official metrics


def score_pope(answered: Answered) -> dict[str, float]:
    """AoiDragon/POPE, evaluate.py: "yes" is the positive class; a share of nothing counts 0 (there: an error)."""
    pairs = [(yes_or_no(answer), question.truths[0]) for question, answer in answered]
    said, true = ([pair[i] for pair in pairs].count("yes") for i in (0, 1))
    hits = pairs.count(("yes", "yes"))
    return {
        "accuracy": sum(answer == truth for answer, truth in pairs) / len(pairs),
        "precision": hits / said if said else 0.0,
        "recall": hits / true if true else 0.0,
        "f1": 2 * hits / (said + true) if said + true else 0.0,
        "yes_ratio": said / len(pairs),
    }


def yes_or_no(answer: str) -> str:
    """POPE's reading of an answer: "no" if the first sentence has one of three words, in just this spelling."""
    words = answer.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def score_vsr(answered: Answered) -> dict[str, float]:
    """Accuracy. `unclear` is the share of answers that say neither true nor false; they count as wrong.

    The answer is read as it was written; vlm-evaluation compares the probabilities of "True" and "False" instead.
    """
    verdicts = [true_or_false(answer) for _, answer in answered]
    right = sum(verdict == question.truths[0] for verdict, (question, _) in zip(verdicts, answered, strict=True))
    return {"accuracy": right / len(verdicts), "unclear": verdicts.count("") / len(verdicts)}


def true_or_false(answer: str) -> str:
    """The first word of an answer that is a verdict, or an empty text."""
    verdict = re.search(r"\b(?:(true|yes)|(false|no))\b", answer.lower())
    return "" if not verdict else "true" if verdict[1] else "false"


def mean_of(right: Callable[[str, tuple[str, ...]], float]) -> Callable[[Answered], dict[str, float]]:
    """The metric that averages what one answer earns."""
    return lambda answered: {"accuracy": sum(right(answer, q.truths) for q, answer in answered) / len(answered)}


def gqa_accuracy(answer: str, truths: tuple[str, ...]) -> float:
    """GQA's eval.py compares texts as they are; LLaVA (convert_gqa_for_eval.py) hands it lower case, no last dot."""
    return float(answer.strip().rstrip(".").lower() == truths[0])


def vqav2_accuracy(answer: str, truths: tuple[str, ...]) -> float:
    """GT-Vision-Lab/VQA, vqaEval.py: punctuation leaves people's answers only where they disagree."""
    if len(set(truths)) > 1:
        truths = tuple(without_punctuation(truth) for truth in truths)
    return soft_accuracy(normalise(answer), truths)


def vizwiz_accuracy(answer: str, truths: tuple[str, ...]) -> float:
    """VizWiz's vqaEval.py: people's answers are taken as they are."""
    return soft_accuracy(normalise(answer), truths)


def textvqa_accuracy(answer: str, truths: tuple[str, ...]) -> float:
    """TextVQA's evaluator (facebookresearch/mmf, used by LLaVA): both sides normalised, after its own word split."""

    def words(text: str) -> str:
        return normalise(text.lower().replace(",", "").replace("?", "").replace("'s", " 's"))

    return soft_accuracy(words(answer), tuple(words(truth) for truth in truths))


def soft_accuracy(answer: str, truths: tuple[str, ...]) -> float:
    """min(1, agreeing people / 3), averaged over leaving out each person in turn."""
    n, people = truths.count(answer), len(truths)
    return (n * min(1, (n - 1) / 3) + (people - n) * min(1, n / 3)) / people


PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
NUMBERS = dict(zip("zero one two three four five six seven eight nine ten".split(), map(str, range(11)), strict=True))
ARTICLES = ("a", "an", "the")
CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()
# the official table: each of these words with one apostrophe forgotten, and one entry the other way round
CONTRACTIONS = {word[:i] + word[i + 1 :]: word for word in CONTRACTED for i, c in enumerate(word) if c == "'"}
CONTRACTIONS["somebody'd"] = "somebodyd"


def normalise(text: str) -> str:
    """The answer normalisation of the VQA challenges: punctuation, lower case, number words, articles, contractions."""
    words = without_punctuation(text.replace("\n", " ").replace("\t", " ").strip()).lower().split()
    words = [{"none": "0", **NUMBERS}.get(word, word) for word in words]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def without_punctuation(text: str) -> str:
    """A mark beside a space goes, one between letters becomes a space; all go if there is a number like 1,000."""
    grouped = re.search(r"\d,\d", text)
    marked = text
    for mark in PUNCTUATION:
        beside_space = f"{mark} " in marked or f" {mark}" in marked
        text = text.replace(mark, "" if grouped or beside_space else " ")
    return re.sub(r"\.(?!\d)", "", text)


# --- the benchmarks

COCO = "http://images.cocodataset.org/zips/val2014.zip"
# LLaVA's evaluation names this commit; its random split has 2,910 questions
POPE = "https://github.com/AoiDragon/POPE/tree/e3e39262c85a6a83f26cf5094022a782cb0df58d/output/coco"
VSR = "https://github.com/cambridgeltl/visual-spatial-reasoning/tree/master/data"
VQA = "https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa"
GQA = "https://downloads.cs.stanford.edu/nlp/data/gqa"
VIZWIZ = "https://vizwiz.cs.colorado.edu/VizWiz_final"
TEXTVQA = "https://dl.fbaipublicfiles.com/textvqa"

BENCHMARKS = {
    "pope": Benchmark(
        {**{f"coco_pope_{split}.json": POPE for split in ("random", "popular", "adversarial")}, "val2014/": COCO},
        read_pope,
        score_pope,
    ),
    "vsr": Benchmark(
        {"splits/zeroshot/test.jsonl": VSR, "images/": "https://www.dropbox.com/s/0s3bj25s62crjh2/vsr_images.zip"},
        read_vsr,
        score_vsr,
        TRUE_OR_FALSE,
    ),
    "vqav2": Benchmark(
        {
            "v2_OpenEnded_mscoco_val2014_questions.json": f"{VQA}/v2_Questions_Val_mscoco.zip",
            "v2_mscoco_val2014_annotations.json": f"{VQA}/v2_Annotations_Val_mscoco.zip",
            "val2014/": COCO,
        },
        read_vqav2,
        mean_of(vqav2_accuracy),
    ),
    "gqa": Benchmark(
        {"testdev_balanced_questions.json": f"{GQA}/questions1.2.zip", "images/": f"{GQA}/images.zip"},
        read_gqa,
        mean_of(gqa_accuracy),
    ),
    "vizwiz": Benchmark(
        {"val.json": f"{VIZWIZ}/vqa_data/Annotations.zip", "val/": f"{VIZWIZ}/images/val.zip"},
        read_vizwiz,
        mean_of(vizwiz_accuracy),
        OR_UNANSWERABLE,
    ),
    "textvqa": Benchmark(
        {
            "TextVQA_0.5.1_val.json": f"{TEXTVQA}/data/TextVQA_0.5.1_val.json",
            "train_images/": f"{TEXTVQA}/images/train_val_images.zip",
        },
        read_textvqa,
        mean_of(textvqa_accuracy),
    ),
}


def questions_of(name: str, data: Path, limit: int | None = None) -> dict[Path, list[Question]]:
    """Picture → its questions, for the first `limit` pictures.

    Raises UserError that says which official file goes where.
    """
    if limit is not None and limit < 1:
        raise UserError("Evaluate on at least one picture: leave --limit out or make it 1 or more.")
    files = BENCHMARKS[name].files
    if missing := [file for file in files if not (data / file).exists()]:
        wanted = ", ".join(f"{file} from {files[file]}" for file in missing)
        raise UserError(f"To evaluate on {name}, put into the folder {data} (archives unpacked): {wanted}.")
    asked: defaultdict[Path, list[Question]] = defaultdict(list)
    try:
        for question in BENCHMARKS[name].read(data):
            if not question.truths:
                raise ValueError(f'no answers to "{question.text}"')
            asked[data / question.image].append(question)
        if not asked:
            raise ValueError("no questions")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        lists = ", ".join(f"{data / file} from {files[file]}" for file in files if not file.endswith("/"))
        raise UserError(f"A file is not in its official form ({error!r}); get it again: {lists}.") from error
    chosen = dict(islice(asked.items(), limit))
    if lost := [image for image in chosen if not image.is_file()]:
        folder = f"{lost[0].relative_to(data).parts[0]}/"
        raise UserError(
            f"{len(lost)} of {len(chosen)} pictures are missing, {lost[0]} first; "
            f"unpack {files[folder]} in {data}, as the folder {folder}."
        )
    return chosen


def evaluate(
    model: MLMamba,
    name: str,
    asked: dict[Path, list[Question]],
    predictions: Path,
    connectors: Sequence[str] = (),
    prompt: str | None = None,
) -> list[dict[str, Any]]:
    """Rows of the table: the scores of each connector on each part of a benchmark, and on all questions together.

    Every answer is written to `predictions` at once; what is there already is not asked again.
    """
    benchmark = BENCHMARKS[name]
    connectors = [model.check_connector(connector) for connector in connectors] or model.config.connector.kinds
    prompt = benchmark.prompt if prompt is None else prompt
    if "{question}" not in prompt:
        raise UserError('Write {question} into the prompt, where the question belongs, as in "Look well. {question}".')

    def key(connector: str, question: Question) -> Key:
        return connector, question.image, prompt.replace("{question}", question.text)

    answers, file = go_on_with(predictions)
    with file:
        for path, questions in tqdm(asked.items(), desc=name, unit="picture", mininterval=1):
            new = dict.fromkeys(
                k for connector in connectors for q in questions if (k := key(connector, q)) not in answers
            )
            if not new:
                continue
            conversation = model.start(path, connectors[0])
            for connector, image, text in new:
                conversation.use(connector)  # reads the picture once a connector; the towers see it once for all
                answer = "".join(conversation.ask(text, max_new_tokens=MAX_NEW_TOKENS))
                conversation.undo()
                answers[connector, image, text] = answer
                line = {"connector": connector, "image": image, "prompt": text, "answer": answer}
                file.write(json.dumps(line) + "\n")
                file.flush()
    rows = []
    for connector in connectors:
        answered = [(q, answers[key(connector, q)]) for questions in asked.values() for q in questions]
        for part in (*sorted({q.part for q, _ in answered} - {"all"}), "all"):
            of = [(q, answer) for q, answer in answered if part in ("all", q.part)]
            rows.append({"connector": connector, "part": part, "questions": len(of), **benchmark.score(of)})
    return rows


def go_on_with(predictions: Path) -> tuple[dict[Key, str], TextIO]:
    """The answers of an earlier run, and the file to add to; a line that was cut off is passed over."""
    try:
        before = predictions.read_text(encoding="utf-8", errors="replace") if predictions.exists() else ""
        file = predictions.open("a", encoding="utf-8")
    except OSError as error:
        raise UserError(f"Can't write {predictions} ({error.strerror}); name a file with --predictions.") from error
    if before and not before.endswith("\n"):
        file.write("\n")
    answers = {}
    for line in before.split("\n"):
        try:
            said = json.loads(line)
            answers[said["connector"], said["image"], said["prompt"]] = str(said["answer"])
        except (ValueError, LookupError, TypeError):
            continue
    return answers, file


def as_table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = [f"| {' | '.join(key.replace('_', '-') for key in rows[0])} |", "|---" * len(rows[0]) + "|"]
    for row in rows:
        cells = (f"{100 * value:.2f} %" if isinstance(value, float) else str(value) for value in row.values())
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


# --- the command


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`evaluate BENCHMARK` of the command line."""
    command = commands.add_parser("evaluate", help="ask a model the questions of a benchmark and score its answers")
    command.add_argument(
        "benchmark", nargs="?", choices=(HELD_OUT, *BENCHMARKS), default=HELD_OUT, help=f"default: {HELD_OUT}, our own"
    )
    command.add_argument(
        "--data", type=Path, required=True, help="folder of the official files; a missing one is named"
    )
    command.add_argument("--model", default="tiny", help='"tiny", "3b", a folder or a Hub id (default: tiny)')
    command.add_argument("--connector", action="append", help='"bsm" or "csm" (default: each that the model has)')
    command.add_argument("--limit", type=int, help="only the first pictures, this many, with all their questions")
    command.add_argument(
        "--prompt", help='in place of the benchmark\'s own; the tiny model follows no instructions: "{question}"'
    )
    command.add_argument("--predictions", type=Path, help="the answers, gone on with if there (default: in --data)")
    command.add_argument("--scenes", type=int, default=300, help=f"how many scenes, for {HELD_OUT}")
    command.add_argument("--device", default="auto")
    command.add_argument("--json", type=Path, help="also write the figures here")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    if options.json and not options.json.parent.is_dir():  # said before the hours of work, not after
        raise UserError(f"There is no folder {options.json.parent} to write the figures to; make it first.")
    if options.benchmark == HELD_OUT:
        from mlmamba.training import evaluate as held_out

        results = held_out.evaluate(load(options.model, device=options.device), options.data, options.scenes)
        return report(held_out.as_table(results), results, options.json)
    name, prompt = options.benchmark, options.prompt or BENCHMARKS[options.benchmark].prompt
    asked = questions_of(name, options.data, options.limit)  # before the model: a missing file is named at once
    model = load(options.model, device=options.device)
    # part of the answers' name, so that a model never goes on with those of another
    digest = weights.sha256(hub.find(options.model) / weights.WEIGHTS)[:8]
    predictions = options.predictions or options.data / f"{name}-{model.config.name}-{digest}.jsonl"
    print(f"Answers are kept in {predictions}.")
    rows = evaluate(model, name, asked, predictions, options.connector or (), prompt)
    summary = {"benchmark": name, "model": model.config.name, "weights": digest, "prompt": prompt, "scores": rows}
    report(as_table(rows), summary, options.json)


def report(table: str, results: Any, path: Path | None) -> None:
    print(table)
    if path:
        path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
