"""The tokenizer stage: stopped between two documents it leaves nothing half done, and begun again it is the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmlab.data.tokens import tokenize
from llmlab.errors import Stopped
from llmlab.runtime import StopFlag
from llmlab.stages import Session
from llmlab.tokenization.train import BPE


class After(StopFlag):
    """Asks to stop when it was looked at so many times."""

    def __init__(self, looks: int) -> None:
        self.looks = looks

    @property
    def requested(self) -> bool:  # type: ignore[override]
        self.looks -= 1
        return self.looks < 0


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("looks", [0, 3, 25, 42])  # while training, encoding one split, and the other
def test_a_stop_is_heard_between_documents(tmp_path: Path, looks: int) -> None:
    text = tmp_path / "text"
    text.mkdir()
    for split, count in (("train", 20), ("held_out", 4)):
        lines = (json.dumps({"text": f"{split} whale number {n} swims"}) + "\n" for n in range(count))
        (text / f"{split}.jsonl").write_text("".join(lines))
    section = BPE(vocab_size=280)
    out, whole = tmp_path / "out", tmp_path / "whole"
    for folder in (out, whole):
        folder.mkdir()
    with pytest.raises(Stopped):
        tokenize(section, text, out, Session(stop=After(looks)))
    assert not [path for path in out.iterdir() if path.name.endswith(".tmp")]
    assert tokenize(section, text, out, Session()) == tokenize(section, text, whole, Session())
    assert files(out) == files(whole)
