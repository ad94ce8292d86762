"""Recorded runs that ship with the project, each with the machine that it was made on."""

import json
from pathlib import Path
from typing import Any

from mlmamba.errors import UserError

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
PARTS = ("machine", "versions", "made", "command")


def recorded(folder: Path = FOLDER) -> list[dict[str, Any]]:
    """All recorded runs: PARTS, and a "race", a "scaling" or both. Raises UserError for a broken file."""
    return [read(path) for path in sorted(folder.glob("*.json"))]


def read(path: Path) -> dict[str, Any]:
    """One recorded run."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        missing = [part for part in PARTS if part not in told]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} can't be read as a recorded run ({error}); record it again.") from error
    if missing:
        raise UserError(f"{path} doesn't say its {', '.join(missing)}; record it again by `mlmamba bench --json`.")
    return told
