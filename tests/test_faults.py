"""What fails on the machine: the next visitor is served, and the log says what happened."""

import gc
import re
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import BOT, TIMEOUT_MS, ask, serve
from test_hosting import give, padded

import mlmamba
from mlmamba import backend
from mlmamba.errors import MemoryFull
from page import race, sessions

MEADOW = Path(__file__).resolve().parent.parent / "examples" / "meadow.jpg"
# a disk with room for no file above 500 kB, as far as the page can tell
FULL = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
"""
# a model that fails in mid-answer as long as a file says with what
FAILING = """
import builtins, pathlib
from mlmamba import decoding
choose, told = decoding.choose, 0
def failing(*chances):
    global told
    told += 1
    fault = pathlib.Path({flag!r})
    if fault.exists() and told % 3 == 0:
        raise getattr(builtins, fault.read_text())("it broke")
    return choose(*chances)
decoding.choose = failing
import visualize.trace as trace
replay = trace.replay
def failing_too(scans):
    if pathlib.Path({flag!r}).exists():
        raise getattr(builtins, pathlib.Path({flag!r}).read_text())("it broke")
    return replay(scans)
trace.replay = failing_too
"""


@pytest.fixture
def expect():
    return pytest.importorskip("playwright.sync_api").expect


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    log = tmp_path_factory.mktemp("full") / "log"
    with serve("tiny", log, FULL) as url:
        yield url, log


def test_a_full_disk(browser, full, expect, tmp_path):
    url, log = full
    page = browser.new_page()
    page.set_default_timeout(TIMEOUT_MS)
    page.goto(url)
    give(page, MEADOW)
    ask(page, "Is there a dog?")
    page.fill("#question textarea", "And a cat?")
    page.set_input_files("#left input[type=file]", padded(tmp_path / "large.jpg", 5_000_000))
    expect(page.locator("#notice .problem")).to_have_text(re.compile(r"^[^.]* could not take this file[^.]*\.$"))
    expect(page.locator("#question textarea")).to_have_value("And a cat?")
    assert "File too large" in log.read_text()

    ask(page, "And a cat?")  # the picture from before is still there
    expect(page.locator("#notice .problem")).to_have_count(0)
    assert page.locator(BOT).count() == 2
    other = browser.new_page()
    other.set_default_timeout(TIMEOUT_MS)
    other.goto(url)
    give(other, MEADOW)
    ask(other, "Is there a dog?")
    for open_page in (page, other):
        open_page.close()


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path, Path]]:
    place = tmp_path_factory.mktemp("failing")
    with serve("tiny", place / "log", FAILING.format(flag=str(place / "fault"))) as url:
        yield url, place / "log", place / "fault"


@pytest.mark.parametrize(
    ("fault", "sentence", "logged"),
    [
        ("RuntimeError", "model failed at this question", "RuntimeError: it broke"),
        ("MemoryError", "memory is full", ""),
    ],
)
def test_a_model_that_fails_in_mid_answer(browser, failing, expect, fault, sentence, logged):
    url, log, file = failing
    one, other = browser.new_page(), browser.new_page()
    for page in (one, other):
        page.set_default_timeout(TIMEOUT_MS)
        page.goto(url)
        give(page, MEADOW)
    question = "Is there a quokka?"
    file.write_text(fault)
    one.fill("#question textarea", question)
    one.click("#ask")
    expect(one.locator("#notice .problem")).to_contain_text(sentence)
    expect(one.locator("#question textarea")).to_have_value(question)
    expect(one.locator(BOT)).to_have_count(0)
    file.unlink()
    for page in (other, one):
        ask(page, "Is there a dog?")
        expect(page.locator("#notice .problem")).to_have_count(0)
        assert page.locator(BOT).count() == 1
        page.close()
    assert logged in log.read_text() and "quokka" not in log.read_text()


@pytest.mark.parametrize(
    ("fault", "sentence"), [("RuntimeError", "The server failed at this"), ("MemoryError", "memory is full")]
)
def test_a_look_that_fails(browser, failing, expect, fault, sentence):
    url, _, file = failing
    page = browser.new_page()
    page.set_default_timeout(TIMEOUT_MS)
    page.goto(url)
    give(page, MEADOW)
    file.write_text(fault)
    page.click('[role=tab]:has-text("See the scan")')
    notice = page.locator('.scan-view [data-at="notice"]')
    expect(notice).to_contain_text(sentence)
    again = page.locator(".scan-again")
    expect(again).to_be_visible()
    again.click()
    expect(notice).to_contain_text(sentence)
    expect(again).to_be_visible()
    transport = page.locator('.scan-view [data-at="play"]')
    expect(transport).to_be_hidden()  # there is nothing to play
    file.unlink()
    again.click()
    expect(transport).to_be_visible()
    expect(page.locator('.scan-view [data-at="kinds"] label')).to_have_count(3)
    page.wait_for_selector('.scan-view[aria-busy="false"]')
    expect(notice).to_be_hidden()
    page.close()


@pytest.mark.parametrize(
    ("fault", "told"),
    [(MemoryError, "choose another"), (torch.OutOfMemoryError, "choose another"), (KeyError, "broke")],
)
def test_a_model_that_cannot_be_loaded_holds_no_memory(monkeypatch, fault, told):
    """Though what went wrong is kept, and told to all who choose that model."""
    made = []

    class Model:
        def serve(self, seats: int) -> None:
            self.weights, self.reader = torch.zeros(10), self  # a model and its reader know each other
            made.append(weakref.ref(self.weights))
            raise fault("it broke")

    monkeypatch.setattr(mlmamba, "load", lambda *_, **__: Model())
    speakers = sessions.Speakers("tiny", "cpu")
    for _ in range(2):
        with pytest.raises(MemoryFull if told != "broke" else fault, match=told):
            speakers.get("tiny")
    kept = speakers._models["tiny"].exception()
    if fault is KeyError:
        gc.collect()  # there is no haste where the memory isn't full
    assert kept is not None and made[0]() is None


@pytest.mark.parametrize("given_up", [False, True])
def test_a_race_is_begun_again_where_others_make_room(monkeypatch, given_up):
    begun = []

    def run():
        begun.append(1)
        yield {"type": "progress"}
        if len(begun) == 1:
            raise MemoryError
        yield {"type": "result"}

    monkeypatch.setattr(race, "make_room", lambda: given_up)
    if given_up:
        assert [message["type"] for message in race.roomy(run)] == ["progress", "progress", "result"]
    else:
        with pytest.raises(MemoryFull, match="both sides"):
            list(race.roomy(run))
        assert len(begun) == 1


def test_another_fault_after_room_was_made_is_not_one_of_memory(monkeypatch):
    faults = iter([MemoryError(), RuntimeError("shapes differ")])

    def run():
        yield {"type": "progress"}
        raise next(faults)

    monkeypatch.setattr(race, "make_room", lambda: True)
    with pytest.raises(RuntimeError, match="shapes differ"):
        list(race.roomy(run))


def test_a_rival_with_random_weights_is_let_go_and_a_trained_one_kept():
    trained, drawn = SimpleNamespace(trained=True), SimpleNamespace(trained=False)
    tab = SimpleNamespace(rivals={"tiny": trained, "3b": drawn})
    race.Race.let_go(tab)
    assert tab.rivals == {"tiny": trained}


def test_memory_that_runs_out_under_a_library_is_known_by_its_words():
    for words in (
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: out of memory",
    ):
        with pytest.raises(MemoryFull), backend.within_memory():
            raise RuntimeError(words)
    with pytest.raises(RuntimeError, match="launch failure"), backend.within_memory():
        raise RuntimeError("CUDA error: unspecified launch failure")
