"""The bands of docs/design.md against the imports: a lower band only, never a sibling folder of one's own band."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "llmlab"
FILES = sorted(PACKAGE.rglob("*.py"))


def _bands() -> dict[str, int]:
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    section = text[text.index("## Bands") :]
    rows = re.findall(r"^(\d+) +(.+)$", section[: section.index("## Shapes")], re.MULTILINE)
    return {name: int(band) for band, names in rows for name in names.split()}


BANDS = _bands()


def _room(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom) and node.module == "llmlab":
            names = [f"llmlab.{alias.name}" for alias in node.names]
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("llmlab.")}
    return found


def test_every_room_has_a_band() -> None:
    rooms = {_room(file) for file in FILES} - {"__init__", "__main__"}
    assert rooms == set(BANDS)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_down(file: Path) -> None:
    room = _room(file)
    if room in ("__init__", "__main__"):
        return  # the package's face stands above all bands
    for other in _imports(file) - {room}:
        assert BANDS[other] < BANDS[room], f"{file.name} (band {BANDS[room]}) imports {other} (band {BANDS[other]})"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_pickle_and_no_utils(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert file.name != "utils.py"
    assert not re.search(r"\bpickle\b.*import|import pickle|torch\.(load|save)\(", text)
