"""The README's Python runs, its commands exist, and its file tree is the tree."""

import re
from pathlib import Path

from mlmamba.__main__ import main
from visualize.__main__ import main as visualize_main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_python_runs(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (snippet,) = blocks("python")
    exec(compile(snippet, "README.md", "exec"), {})
    assert len(capsys.readouterr().out.strip().splitlines()) == 3


def test_the_file_tree_is_the_tree():
    tree = next(block for block in blocks("text") if block.startswith("app.py"))
    folder = Path()
    for line in tree.splitlines():
        name = line.split()[0]
        folder = folder if line.startswith(" ") else Path()
        assert (ROOT / folder / name).exists(), f"{folder / name} is in the README alone"
        if name.endswith("/") and not line.startswith(" "):
            folder = Path(name)
    named = {line.split()[0] for line in tree.splitlines()}
    files = {path.name for folder in ("mlmamba", "visualize") for path in (ROOT / folder).glob("*.py")}
    files -= {"__init__.py", "__main__.py"}
    assert files <= named, f"not in the README: {files - named}"


def test_the_pictures_are_there():
    for path in re.findall(r"!?\[[^\]]*\]\((?!http)([^)]+)\)", README):
        assert (ROOT / path).exists(), path


def test_the_commands_exist(capsys):
    for line in "".join(blocks("bash")).splitlines():
        if match := re.match(r"python -m (mlmamba|visualize) (\w+)", line):
            try:
                {"mlmamba": main, "visualize": visualize_main}[match[1]]([match[2], "--help"])
            except SystemExit as done:
                assert done.code == 0
            assert match[2] in capsys.readouterr().out
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", "".join(blocks("bash")), flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)
