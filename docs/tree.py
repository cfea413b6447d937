"""The README's tree, made from the first line of each module's docstring. `python docs/tree.py` writes it anew."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "llmlab"
BEGIN, END = "<!-- tree: made by docs/tree.py -->\n", "<!-- end of tree -->\n"


def tree() -> str:
    """One line a file: its name and what its docstring says first."""
    lines = ["src/llmlab/"]
    for path in sorted(PACKAGE.iterdir(), key=lambda path: (path.is_dir(), path.name)):
        if path.suffix == ".py" and path.name not in ("__init__.py", "__main__.py"):
            lines.append(_line("  ", path.name, path))
        elif path.is_dir() and (path / "__init__.py").exists():
            lines.append(_line("  ", f"{path.name}/", path / "__init__.py"))
            files = [file for file in sorted(path.rglob("*.py")) if file.name != "__init__.py"]
            lines += [_line("    ", str(file.relative_to(path)), file) for file in files]
    return "\n".join(lines)


def _line(indent: str, name: str, file: Path) -> str:
    says = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").split("\n\n")[0].replace("\n", " ")
    says = re.split(r"(?<! al)\. (?=[A-Z`])", says)[0].rstrip(".")
    room = 100
    if len(says) > room:
        says = max((says[: m.start()] for m in re.finditer(r"[,;(]| and ", says[:room])), key=len, default=says[:room])
    return f"{indent}{name:<{26 - len(indent)}} {says.strip()}"


def section() -> str:
    return f"{BEGIN}```\n{tree()}\n```\n{END}"


def main() -> None:
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    start, end = text.index(BEGIN), text.index(END) + len(END)
    readme.write_text(text[:start] + section() + text[end:], encoding="utf-8")


if __name__ == "__main__":
    main()
