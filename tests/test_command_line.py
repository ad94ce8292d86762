"""`python -m mlmamba` as a person types it."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mlmamba", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300
    )


def test_ask_answers_on_standard_output():
    done = run("ask", str(next((ROOT / "examples").glob("*.jpg"))), "What can you see?", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) >= 2


def test_ask_about_a_file_that_is_no_picture_is_one_sentence():
    done = run("ask", "README.md", "What can you see?", "--device", "cpu")
    assert done.returncode == 1 and done.stdout == ""
    assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 1
