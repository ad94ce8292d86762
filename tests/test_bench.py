"""The race measures what it says: by a clock that the test turns, on models that the test can follow."""

import copy
import gc
import itertools
import json
import math
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image

import mlmamba
from mlmamba import backend, weights
from mlmamba.__main__ import main
from mlmamba.bench import command, gpu, graphs, machine, peers, race, results, rivals, scaling
from mlmamba.bench.runners import OurRunner
from mlmamba.config import ConnectorConfig, LanguageConfig, MLMambaConfig, TransformerConfig, VisionConfig
from mlmamba.mamba2 import LanguageModel
from mlmamba.model import MLMamba
from tests import as_graph

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
ROOT = Path(__file__).parents[1]
PICTURE = Image.new("RGB", (60, 40), "red")


class Clock:
    """Seconds that go by only when somebody works."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class State:
    """What a runner carries; the test watches whether it is let go."""


class Worker:
    """A runner that takes as long as it is told: `see`, `read`, then `step` times 1, 2, 3… in each lap."""

    kind, kernels, trained, sees_apart, parameters, n_patches = "mamba", "none", True, True, 7, 4
    mode = "eager"

    def __init__(self, clock: Clock, name: str, see: float, read: float, step: float, grows: int = 0):
        self.clock, self.name, self.times, self.grows = clock, name, (see, read, step), grows
        self.said, self.alive, self.prompts, self.laps = 0, weakref.WeakSet(), [], 0

    def prompt(self, question: str, context: int | None) -> list[int]:
        return [1] * ((context or 10) - self.n_patches)

    def see(self, image: Image.Image) -> None:
        self.clock.now += self.times[0]

    def read(self, sight: None, prompt: Sequence[int], room: int) -> tuple[int, State]:
        self.clock.now += self.times[1] * (2 if self.laps == 0 else 1)  # the warm-up is slow
        self.said, self.laps = 1, self.laps + 1
        self.prompts.append(len(prompt))
        return self.carried()

    def step(self, token: int, state: State) -> tuple[int, State]:
        self.clock.now += self.times[2] * (1 if self.laps % 2 else 3)  # every second lap is three times slower
        self.said += 1
        return self.carried()

    def carried(self) -> tuple[int, State]:
        state = State()
        state.bytes = 100 + self.grows * self.said
        self.alive.add(state)
        return self.said, state

    def memory(self, state: State) -> int:
        return state.bytes

    def text(self, tokens: Sequence[int]) -> list[str]:
        return [f" {token}" for token in tokens]

    def ends(self, token: int) -> bool:
        return token == 3


def test_times_are_what_the_clock_said():
    clock = Clock()
    ours, theirs = Worker(clock, "A", 0.5, 0.25, 0.01), Worker(clock, "B", 0.5, 0.125, 0.04, grows=8)
    *progress, end = race.run([ours, theirs], PICTURE, "Why?", tokens=5, repeats=3, clock=clock)
    assert [message["done"] for message in progress] == list(range(8)) and {m["of"] for m in progress} == {8}
    told = end["race"]
    one, other = told["runners"]
    # laps 2, 3, 4 count; lap 3 is the quick one of them
    assert one["vision_s"] == pytest.approx({"min": 0.5, "median": 0.5, "max": 0.5})
    assert one["prefill_s"]["median"] == pytest.approx(0.25) and one["first_token_s"]["max"] == pytest.approx(0.75)
    assert one["decode_s"] == pytest.approx({"min": 0.01, "median": 0.03, "max": 0.03})
    assert one["tokens_per_s"]["max"] == pytest.approx(100)
    assert other["decode_s"]["median"] == pytest.approx(0.12)
    assert one["memory"] == [100] * 5 and other["memory"] == [108, 116, 124, 132, 140]
    assert one["lap"]["at"] == pytest.approx([0.75 + 0.03 * i for i in range(5)])
    assert one["lap"]["tokens"] == [" 1", " 2", "", " 4", " 5"] and one["lap"]["ended"] == 2
    assert told["context"] == 10 and ours.prompts == theirs.prompts == [6] * 4
    first, after, memory = told["verdict"]
    assert first == "B said its first token 1.2 times faster."  # 0.75 / 0.625
    assert after == "After that both took about as long: their runs overlap." or "A was" in after
    assert "A carries 100 bytes" in memory and "8 bytes more with each" in memory


def test_the_verdict_is_the_same_for_whoever_wins():
    clock = Clock()
    quick, slow = Worker(clock, "quick", 1, 1, 0.01), Worker(clock, "slow", 1, 3, 0.2)
    for sides in ([quick, slow], [slow, quick]):
        *_, end = race.run(sides, PICTURE, "Why?", tokens=3, repeats=2, clock=clock)
        assert end["race"]["verdict"][0] == "quick said its first token 2.0 times faster."
        assert end["race"]["verdict"][1].startswith("After that quick was")


@pytest.mark.parametrize("how", ["stop", "close"])
def test_a_stopped_race_frees_what_it_held(how):
    clock, stop = Clock(), threading.Event()
    worker = Worker(clock, "A", 1, 1, 1)
    step, alive = worker.step, []

    def watched(token: int, state: State) -> tuple[int, State]:
        alive.append(len(worker.alive))
        if how == "stop" and len(alive) == 7:
            stop.set()
        return step(token, state)

    worker.step = watched
    messages = race.run([worker, worker], PICTURE, "Why?", tokens=100, repeats=2, clock=clock, stop=stop)
    if how == "stop":
        assert [message["type"] for message in messages] == ["progress"]  # and no result
        assert len(alive) == 7
    else:
        next(messages), next(messages)
        messages.close()
    del messages
    gc.collect()
    assert max(alive) <= 2 and not worker.alive


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> tuple[MLMamba, MLMamba]:
    """A small Mamba-2 and a small Transformer, alike but for their readers."""
    folder = tmp_path_factory.mktemp("bench")
    made = []
    for name, kinds, language in (
        ("tiny", ("bsm", "csm"), LanguageConfig(64, 2, 4096, 16, 32)),
        ("twin", ("mlp",), TransformerConfig("llama", 64, 2, 4, 96, 4096)),
    ):
        torch.manual_seed(3)
        config = MLMambaConfig(
            name, ConnectorConfig(1450, 64, kinds=kinds, n_layers=1, d_state=8, head_dim=32, d_projector=32), language,
            VisionConfig(("efficientnet-lite0",), 64), 4096,
        )  # fmt: skip
        weights.save(config, MLMamba(config).state_dict(), folder / name)
        tokenizer = mlmamba.hub.CHECKPOINTS / "tiny" / weights.TOKENIZER
        (folder / name / weights.TOKENIZER).write_bytes(tokenizer.read_bytes())
        made.append(mlmamba.load(folder / name, device="cpu"))
    return made[0], made[1]


@pytest.fixture(scope="module")
def sides(small) -> tuple[OurRunner, OurRunner]:
    return OurRunner(small[0], "ML-Mamba", "csm"), OurRunner(small[1], "twin")


@pytest.mark.parametrize("context", [None, 64, 300])
def test_both_sides_read_and_say_as_many_tokens(small, context, monkeypatch):
    sides = OurRunner(small[0], "ML-Mamba", "csm"), OurRunner(small[1], "twin")
    lengths: dict[str, list[int]] = {}
    for runner in sides:
        model, told = runner.model.language_model, lengths.setdefault(runner.name, [])

        def counted(compute, told=told):
            def count(read, *args, **options):
                told.append(read.shape[1])
                return compute(read, *args, **options)

            return count

        step = counted(model.stepper())
        monkeypatch.setattr(model, "forward", counted(model.forward))
        monkeypatch.setattr(model, "stepper", lambda step=step: step)
    *_, end = race.run(sides, PICTURE, "Is there a dog?", tokens=6, context=context, repeats=1)
    assert lengths["ML-Mamba"] == lengths["twin"]
    read = lengths["twin"][0]
    assert lengths["twin"] == [read, 1, 1, 1, 1, 1] * 2 and end["race"]["context"] == read
    assert context is None or read == context
    ours, theirs = end["race"]["runners"]
    assert len(set(ours["memory"])) == 1 and len(ours["lap"]["tokens"]) == len(theirs["lap"]["tokens"]) == 6
    assert theirs["memory"] == [2 * 2 * 64 * 4 * (read + i) for i in range(6)]  # layers, k and v, channels, bytes


def test_a_race_says_what_a_conversation_says(sides):
    for runner in sides:
        answer = runner.model.chat(PICTURE, "Is there a dog?", max_new_tokens=6, connector=runner.connector)
        *_, end = race.run([runner, runner], PICTURE, "Is there a dog?", tokens=6, repeats=1)
        lap = end["race"]["runners"][0]["lap"]
        assert "".join(lap["tokens"][: lap["ended"]]) == answer


@pytest.fixture(scope="module")
def trained() -> list[MLMamba]:
    """The models that ship: what they say depends on what they read."""
    return [mlmamba.load(name, device="cpu") for name in ("tiny", "twin")]


def raced(sides: Sequence[OurRunner], context: int | None) -> list[dict]:
    picture = ROOT / "examples" / "meadow.jpg"
    *_, end = race.run(sides, picture, "What can you see?", tokens=12, repeats=1, context=context)
    return end["race"]["runners"]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])])
def test_graph_against_graph_says_what_eager_says(trained, device, monkeypatch):
    """Without CUDA both sides' steps are recorded and done again on the CPU, by the rules of a graph."""
    on = backend.choose(device, "float32")
    sides = [OurRunner(copy.deepcopy(model).run_on(on), model.config.name) for model in trained]
    if device == "cpu":
        with pytest.raises(mlmamba.UserError, match="need a CUDA GPU"):
            sides[0].launched(True)
        monkeypatch.setattr(backend.Backend, "graphs", True)
        monkeypatch.setattr(backend, "repeated", as_graph.repeated)
        monkeypatch.setattr(backend, "recorded", as_graph.recorded)
    graphed = [side.launched(True) for side in sides]
    for context in (None, 300):  # the second cache is longer
        eager, fixed = raced(sides, context), raced(graphed, context)
        for one, other in zip(eager, fixed, strict=True):
            assert one["lap"]["tokens"] == other["lap"]["tokens"] and one["memory"] == other["memory"]
            assert one["mode"] == "eager" and other["mode"] == "graph"
            assert len(set(one["lap"]["tokens"])) > 3
    assert all(side.fixed is None for side in sides) and all(side.fixed for side in graphed)
    assert all(side.launched(True).fixed is None for side in graphed)  # the next race begins with nothing


def test_a_fixed_cache_has_room_for_what_it_was_made_for(small):
    twin = small[1]
    lm = twin.language_model
    with torch.inference_mode():
        output = lm(twin.embed([5, 6, 7]), last_only=True)
    cache = graphs.FixedCache(lm.go_on, lm.decoder.config, output.state, 5)
    cache.begin(9, output.state)
    token = 2 * 2 * 64 * 4  # keys and values of one in two layers, in bytes
    assert cache.memory() == 3 * token
    cache.step(), cache.step()
    assert cache.memory() == 5 * token
    with pytest.raises(ValueError, match="room for 5"):
        cache.step()


def test_a_cache_that_lets_tokens_go_is_raced_eager():
    from transformers import MistralConfig

    with pytest.raises(mlmamba.UserError, match="race it eager"):
        graphs.FixedCache(lambda ids, cache: ids, MistralConfig(sliding_window=8), None, 100)


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("side", [0, 1])
def test_all_ways_to_decode_say_the_same(trained, side, recorded, monkeypatch):
    if recorded:
        monkeypatch.setattr(backend, "repeated", as_graph.repeated)
    model = trained[side]
    reader, prompt = model.language_model, model.chat_tokenizer.prompt("What can you see?", first=True)
    with torch.inference_mode():
        features = model.connector(model.see(PICTURE), model.grid, model.config.connector.kinds[0]).features
        state = reader(torch.cat([features, model.embed(prompt)], 1), last_only=True).state
        length = features.shape[1] + len(prompt) + 8
        ways = [gpu.eager, gpu.fixed_cache if side else gpu.fixed_state]
        steps = [way(reader, model.config.vocab_words, state, 3, length) for way in ways]
        said = [[step() for step in steps] for _ in range(8)]
    if side:  # which reads the first of its tokens alone
        said = [[one[0], other] for one, other in said]
    assert all(one == other for one, other in said) and len({str(one) for one, _ in said}) > 2


def test_full_size_is_measured_beside_what_the_memory_allows(small):
    ticks = itertools.count()
    messages = list(gpu.run(
        small[0], PICTURE, "Why?", batches=(1, 2), contexts=(20,), steps=4, copied=1 << 20, repeats=2,
        clock=lambda: float(next(ticks)),
    ))  # fmt: skip
    told, start = messages[-1]["gpu"], messages[-1]["gpu"]["start"]
    assert [start[key] for key in ("seats", "warm_up_s", "request_s", "memory")] == [8, 1.0, 1.0, None]
    assert start["first_token_s"]["median"] == 1 and told["first_eager_s"]["median"] == 2  # its picture seen at 1
    reads = next(each for each in told["profile"]["a first token"] if each["kernel"] in ("aten::mm", "aten::addmm"))
    assert reads["times"] > 2 * small[0].config.language.n_layers
    progress = [message for message in messages if message["type"] == "progress"]
    assert [m["done"] for m in progress] == list(range(8)) and {m["of"] for m in progress} == {8}
    assert sum(message["type"] == "point" for message in messages) == 8  # each row is told as soon as it is there
    assert told["copy_bytes_s"] == 2 * (1 << 20) * 10  # ten copies, read and written, in a second
    ours, _, theirs = told["rows"][0], told["rows"][1], told["rows"][4]
    assert "ML-Mamba" in ours["side"] and "Transformer" in theirs["side"]
    assert all(row["decode_s"] == {"min": 0.25, "median": 0.25, "max": 0.25} for row in told["rows"])
    lm = small[0].language_model
    state = LanguageModel.state_bytes(lm(small[0].embed([1]), last_only=True).state)
    weights_of = sum(p.numel() for p in lm.parameters()) * 4
    assert ours["limit_s"] * told["copy_bytes_s"] == pytest.approx(weights_of + 2 * state)
    one, two = (row["limit_s"] for row in told["rows"] if row["side"] == theirs["side"])
    rival = rivals.same_shape(small[0]).language_model.config
    assert (two - one) * told["copy_bytes_s"] == pytest.approx(20 * 2 * rival.n_layers * rival.d_model * 4)
    table = command.gpu_table(told)
    assert "| 250 ms (250 to 250) | 8 |" in table and "of the limit" in table
    assert "Ready for 8 users after 1 s; the first question was answered in 1 s." in table
    held = told | {"start": told["start"] | {"memory": 9 * 10**9}}
    assert "with 9.0 GB of memory at most." in command.gpu_table(held)
    assert "| it broke |" in command.gpu_table(told | {"rows": [ours | {"decode_s": None, "failed": "it broke"}]})
    layers = small[0].config.language.n_layers
    products = next(each for each in told["profile"]["a token"] if each["kernel"] in ("aten::mm", "aten::addmm"))
    assert products["times"] == 2 * layers + 1  # two a layer, and the head
    assert f"`{products['kernel']}`" in table


def test_a_profile_is_of_one_step_and_begins_with_what_takes_longest():
    one, few = torch.ones(400, 400), torch.ones(4)

    def step() -> None:
        one @ one, one @ one, one @ one, few + 1

    first, *others = gpu.profile(step, torch.device("cpu"), 5)
    assert first["kernel"] == "aten::mm" and first["times"] == 3
    (add,) = [each for each in others if each["kernel"] == "aten::add"]
    assert add["times"] == 1 and 0 < add["seconds"] < first["seconds"]


def test_full_size_asks_for_a_gpu(small, monkeypatch, capsys):
    monkeypatch.setattr(mlmamba, "load", lambda *_, **__: small[0])
    assert main(["bench", "--gpu"]) == 1 and "needs a CUDA GPU" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "said"),
    [({"question": " "}, "type a question"), ({"context": 8}, "at least"), ({"image": "no.png"}, "no.png")],
)
def test_what_cannot_be_raced_is_one_sentence(sides, given, said):
    told = {"image": PICTURE, "question": "Why?", "context": None} | given
    with pytest.raises(mlmamba.UserError, match=said):
        list(race.run(sides, told["image"], told["question"], context=told["context"]))


def test_parameters_are_of_what_takes_part(small, sides):
    model = small[0]
    parts = model.connector.mlp, model.connector.projector, model.connector.scan["csm"], model.language_model
    assert sides[0].parameters == sum(p.numel() for part in parts for p in part.parameters())
    assert sides[1].parameters == small[1].n_parameters


def test_growth_is_measured_point_by_point(sides):
    messages = list(scaling.run(sides, contexts=(64, 128), batches=(1, 3), repeats=1))
    points = [message for message in messages if message["type"] == "point"]
    assert len(points) == 8 and len(messages) == 17
    ours, theirs = messages[-1]["scaling"]["runners"]
    assert [p["tokens"] for p in ours["contexts"]] == [64, 128] and [p["batch"] for p in theirs["batches"]] == [1, 3]
    state = LanguageModel.state_bytes(sides[0].model.language_model(sides[0].model.embed([1]), last_only=True).state)
    assert [p["memory"] for p in ours["contexts"]] == [state, state]
    assert [p["memory"] for p in ours["batches"]] == [state, 3 * state]
    cache = 2 * 2 * 64 * 4  # a token's keys and values in two layers
    assert [p["memory"] for p in theirs["contexts"]] == [64 * cache, 128 * cache]
    assert [p["memory"] for p in theirs["batches"]] == [scaling.BATCH_CONTEXT * cache * n for n in (1, 3)]
    for side in (ours, theirs):
        for point in side["contexts"]:
            assert 0 < point["decode_s"]["min"] <= point["decode_s"]["median"] <= point["decode_s"]["max"]
    stop = threading.Event()
    stop.set()
    assert [m["type"] for m in scaling.run(sides, contexts=(64,), batches=(), stop=stop)] == ["progress"]


def points(values: dict[int, float], memory: dict[int, float]) -> list[dict]:
    return [{"tokens": n, "decode_s": {"median": v}, "prefill_s": {"median": v}, "memory": memory[n]}
            for n, v in values.items()]  # fmt: skip


def test_curves_cross_where_they_do():
    at = [256, 512, 1024, 2048]
    flat, rising = dict.fromkeys(at, 3.0), {n: 0.003 * n for n in at}  # they meet at 1,000
    never = dict.fromkeys(at, 1.0)
    sides = [
        {"name": "flat", "contexts": points(flat, never), "batches": []},
        {"name": "rising", "contexts": points(rising, dict.fromkeys(at, 2.0)), "batches": []},
    ]
    found = {row["what"]: row for row in scaling.crossings(sides)}
    assert found["decode_s"]["at"] == pytest.approx(1000)  # power laws are straight on log axes
    assert found["decode_s"]["says"] == "From about 1,000 tokens of context on, flat is faster per token."
    assert found["memory"]["at"] is None
    assert found["memory"]["says"] == "flat is smaller in memory at every point up to 2,048 tokens of context."
    assert scaling.crossing([1, 2, 4], [-1.0, 1.0, 2.0]) == pytest.approx(math.sqrt(2))


def test_a_side_rests_when_the_next_prompt_would_take_too_long():
    point = {"tokens": 1000, "prefill_s": {"median": scaling.LONGEST_S / 3}}
    assert scaling.too_long([point], 2000) and not scaling.too_long([point], 1500) and not scaling.too_long([], 9**9)


def test_recorded_runs_load_and_name_their_machine(tmp_path):
    for told in results.recorded():
        assert told["machine"]["processor"] and told["machine"]["threads"] >= 1 and told["versions"]["torch"]
        assert told["command"].startswith("python -m mlmamba bench")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(mlmamba.UserError, match="record it again"):
        results.recorded(tmp_path)
    (tmp_path / "broken.json").write_text('{"made": "today", "versions": {}, "command": ""}')
    with pytest.raises(mlmamba.UserError, match="machine"):
        results.recorded(tmp_path)


def test_the_command_prints_and_writes_what_the_page_shows(small, sides, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(mlmamba, "load", lambda *_, **__: small[0])
    monkeypatch.setattr(rivals, "find", lambda *_: sides[1])
    command = "bench --tokens 4 --repeats 1 --context 128 --contexts 64 --batches 2 --json".split()
    assert main([*command, str(tmp_path / "out" / "here.json")]) == 0
    said = capsys.readouterr().out
    assert "| 128 tokens of context, 4 said, eager |" in said and "| decode, per token |" in said and "| 64 |" in said
    told = results.read(tmp_path / "out" / "here.json")
    assert [one["context"] for one in told["races"]] == [told["race"]["context"], 128]
    assert told["race"]["picture"] == "meadow" and told["race"]["context"] < 20
    assert told["scaling"]["runners"][1]["batches"][0]["batch"] == 2
    assert told["machine"] == json.loads(json.dumps(machine.describe(small[0].backend)))
    assert main(["bench", "--tokens", "0"]) == 1 and "--tokens is 0" in capsys.readouterr().err


def test_what_was_measured_is_kept_when_what_follows_fails(small, sides, tmp_path, monkeypatch):
    monkeypatch.setattr(mlmamba, "load", lambda *_, **__: small[0])
    monkeypatch.setattr(rivals, "find", lambda *_: sides[1])
    at_batch, measured = scaling.at_batch, []

    def full(*given):
        if len(measured) == 3:
            raise mlmamba.errors.MemoryFull
        measured.append(given)
        return at_batch(*given)

    monkeypatch.setattr(scaling, "at_batch", full)
    command = "bench --tokens 4 --repeats 1 --contexts 64 --batches 2 3 --json".split()
    assert main([*command, str(tmp_path / "here.json")]) == 1
    (written,) = tmp_path.iterdir()  # whole, and nothing beside it
    told = results.read(written)
    assert len(told["races"]) == 1 and told["race"]["picture"] == "meadow"
    one, other = told["scaling"]["runners"]
    assert [point["batch"] for point in one["batches"]] == [2, 3] and len(other["batches"]) == 1


def test_the_tiny_models_rival_is_its_trained_twin():
    model = mlmamba.load("tiny", device="cpu")
    ours, rival = OurRunner(model, ""), rivals.find(model)
    twin = rival.model
    assert twin.config.name == "twin" and rival.trained
    assert rival.parameters == pytest.approx(ours.parameters, rel=0.05)
    assert twin.config.vision == model.config.vision and twin.config.connector.kinds == ("mlp",)
    assert type(twin.language_model.decoder).__module__.startswith("transformers.models.llama")
    told = [each.chat_tokenizer.tokenizer.to_str() for each in (model, twin)]
    assert told[0] == told[1]
    # it learned: what the example shows, and what it doesn't
    examples = Path(__file__).parents[1] / "examples"
    asked = {
        "Is there a dog?": "yes",
        "Is there a cat?": "yes",
        "Is there an airplane?": "no",
        "Is there a boat?": "no",
    }
    for question, right in asked.items():
        assert twin.chat(examples / "meadow.jpg", question).lower().startswith(right), question


def test_a_rival_that_shares_the_towers_moves_nothing_of_them(small):
    """A graph may have been recorded on where their tensors lie."""
    towers = small[0].towers
    tensors = [*towers.parameters(), *towers.buffers()]
    assert tensors
    rivals.same_shape(small[0])
    for before, after in zip(tensors, [*towers.parameters(), *towers.buffers()], strict=True):
        assert before.data_ptr() == after.data_ptr()


def test_a_rival_of_the_same_shape_has_as_many_parameters():
    model = mlmamba.load("tiny", device="cpu")
    rival = rivals.find(model, "shape")
    assert rival.parameters == pytest.approx(OurRunner(model, "").parameters, rel=0.05)
    assert not rival.trained and rival.kind == "transformer" and rival.n_patches == model.grid[0] * model.grid[1]
    with pytest.raises(mlmamba.UserError, match="no rival"):
        rivals.find(model, "nobody")


def test_transformers_mamba2_has_our_weights(small):
    ours = small[0].language_model
    theirs = peers.their_mamba2(ours)
    ids = torch.arange(70)[None]
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, ours(ours.embed(ids)).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_peers_are_timed_in_processes_of_their_own(small, tmp_path, capsys, monkeypatch):
    weights.save(small[0].config, small[0].state_dict(), tmp_path)
    tokenizer = mlmamba.hub.CHECKPOINTS / "tiny" / weights.TOKENIZER
    (tmp_path / weights.TOKENIZER).write_bytes(tokenizer.read_bytes())
    assert (
        main(["bench", "--peers", "--model", str(tmp_path), "--repeats", "1", "--json", str(tmp_path / "p.json")]) == 0
    )
    told = results.read(tmp_path / "p.json")["peers"]
    assert told.keys() == {"ML-Mamba", "transformers"}
    for times in told.values():
        assert times["prefill_s"]["median"] > 0 and set(times["decode_s"]) == {"256", "4096"}
    assert "prefill of 1,024 tokens" in capsys.readouterr().out


def test_any_image_text_to_text_model_can_be_the_rival(tmp_path, small, monkeypatch):
    """A random LLaVA of reduced sizes, saved as the Hub keeps one; it says what its own `generate` says, by a graph
    too."""
    llava_folder(tmp_path)
    runner = rivals.find(small[0], str(tmp_path))
    assert runner.kind == "transformer" and not runner.sees_apart
    *_, end = race.run([OurRunner(small[0], "ours"), runner], PICTURE, "what is red", tokens=5, repeats=1)
    side = end["race"]["runners"][1]
    inputs = runner.see(PICTURE)
    out = runner.model.generate(**inputs, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    said = runner.processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]
    assert "".join(side["lap"]["tokens"]).strip() == said.strip() and side["vision_s"] is None
    n = inputs["input_ids"].shape[1]
    assert side["memory"] == [2 * 2 * 32 * 4 * (n + i) for i in range(5)]
    monkeypatch.setattr(backend.Backend, "graphs", True)
    monkeypatch.setattr(backend, "repeated", as_graph.repeated)
    monkeypatch.setattr(backend, "recorded", as_graph.recorded)
    graphed = runner.launched(True)
    *_, end = race.run(
        [OurRunner(small[0], "ours").launched(True), graphed], PICTURE, "what is red", tokens=5, repeats=2
    )
    other = end["race"]["runners"][1]
    assert other["mode"] == "graph" and runner.mode == "eager"
    assert other["lap"]["tokens"] == side["lap"]["tokens"] and other["memory"] == side["memory"]
    with pytest.raises(mlmamba.UserError, match="own prompt"):
        runner.prompt("Why?", 256)


def llava_folder(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    words = ["<unk>", "<s>", "</s>", "<image>", "what", "is", "red", "a", "dog", "USER", "ASSISTANT"]
    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>",
        additional_special_tokens=["<image>"],
    )  # fmt: skip
    template = (
        "{% for m in messages %}USER {% for c in m['content'] %}{% if c['type'] == 'image' %}<image> "
        "{% else %}{{ c['text'] }} {% endif %}{% endfor %}{% endfor %}ASSISTANT"
    )
    LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}), tokenizer, patch_size=14,
        vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=template,
    ).save_pretrained(folder)  # fmt: skip
    torch.manual_seed(0)
    LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(
                hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28,
                patch_size=14,
            ),
            text_config=LlamaConfig(
                vocab_size=len(words), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
                bos_token_id=1, eos_token_id=2, pad_token_id=0,
            ),
            image_token_index=3, image_seq_length=4,
        )
    ).save_pretrained(folder)  # fmt: skip
