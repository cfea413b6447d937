"""The data files that ship with the package. NOTICE beside this file says where each comes from and its licence."""

from pathlib import Path

from llmlab.errors import unknown

NAMES = ("chatterbot_en.jsonl", "chatterbot_zh.jsonl", "moby_dick.txt", "sanguo_yanyi.txt")


def path(name: str) -> Path:
    """Where the bundled file `name` lies; the ending may be left out (`moby_dick`)."""
    for known in NAMES:
        if name in (known, known.rpartition(".")[0]):
            return Path(__file__).parent / known
    raise unknown("bundled data", name, [known.rpartition(".")[0] for known in NAMES])
