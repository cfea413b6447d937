"""Cleaning: what each normalisation and rule does, and that the funnel's counts add up."""

from __future__ import annotations

import itertools
import sys
from dataclasses import asdict
from functools import partial
from typing import Any, Literal, get_args

import pyarrow
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.data.batches import SCHEMA, batched
from llmlab.data.clean import Clean, Funnel, cleaned, repeated_lines, symbols
from llmlab.data.rules.rule import Edit
from llmlab.data.rules.sets import Rule
from llmlab.data.sources import Document
from llmlab.data.workers import mapped
from llmlab.errors import InputError
from llmlab.recipe import Section, parse


def batch_of(texts: list[str]) -> Any:
    raw = [text.encode("utf-8", "surrogatepass") for text in texts]
    return pyarrow.record_batch([raw, [f"row {n}" for n in range(len(texts))], [0] * len(texts)], schema=SCHEMA)


ANY = st.text(st.sampled_from("ab \n\r\t\x0c\ufeff\u0301\u3000") | st.characters())
LOOSE = Clean(min_characters=1, max_symbols=1, max_repeated_lines=1, max_replacements=1)


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("a\r\nb\rc\x0bd\u2028e", "a\nb\nc\nd\ne"),
        ("a\0b\x07c\ufeff\x9f", "abc"),
        ("a\ud800b", "a\ufffdb"),
        ("cafe\u0301", "caf\u00e9"),
        ("a  \t\nb\u3000\n", "a\nb"),
        ("\n\na\n\n\n\n  \n\nb\n", "a\n\nb"),
        ("  indented\n\tcode", "  indented\n\tcode"),
        ("fullwidth　（全角）", "fullwidth　（全角）"),
    ],
)
def test_normalisation(text: str, cleaned: str) -> None:
    assert LOOSE.build()(text) == cleaned


def test_nfkc_unifies_widths_and_none_leaves_all() -> None:
    assert LOOSE.model_copy(update={"unicode": "nfkc"}).build()("ＡＢ①") == "AB1"
    assert LOOSE.model_copy(update={"unicode": "none"}).build()("cafe\u0301") == "cafe\u0301"


@given(ANY)
def test_cleaning_twice_is_cleaning_once(text: str) -> None:
    once = LOOSE.build()(text)
    if once is not None:
        assert LOOSE.build()(once) == once
        once.encode()  # no half characters


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("too short", "min_characters"),
        ("$$$ ### @@@ *** >>> <<< word ===", "max_symbols"),
        ("the same line over\n" * 3 + "another one", "max_repeated_lines"),
        ("half of th\ufffds text w\ufffds lost in decoding", "max_replacements"),
    ],
)
def test_each_rule_drops_what_it_is_for(text: str, rule: str) -> None:
    assert Clean().build()(text) is None
    _, funnel = cleaned(Clean(), batch_of([text]))
    lost = {step.name for step in funnel.steps if step.documents_in > step.documents_out}
    assert lost == {rule}


@pytest.mark.parametrize(
    "text",
    [
        "Call me Ishmael. Some years ago—never mind how long precisely—having little or no money",
        "话说天下大势，分久必合，合久必分。周末七国分争，并入于秦。",
        "हिन्दी में लिखा हुआ एक साधारण वाक्य जिसमें मात्राएँ हैं",  # its vowel signs are marks, not symbols
        "def f(x):\n    return {'a': [x, 1]}\n",
    ],
)
def test_ordinary_text_passes(text: str) -> None:
    assert Clean().build()(text) is not None


def test_shares() -> None:
    assert symbols("ab,.") == 0.5
    assert symbols("") == 0
    assert symbols("a\n\t ") == 0
    assert repeated_lines("ab\n\nab\n\ncd") == pytest.approx(1 / 3)
    assert repeated_lines("") == 0


@settings(deadline=None)
@given(st.lists(ANY, max_size=8))
def test_the_funnel_adds_up(texts: list[str]) -> None:
    batch, funnel = cleaned(Clean(min_characters=3), batch_of(texts))
    kept, steps = batch["text"].to_pylist(), funnel.steps
    assert steps[0].documents_in == len(texts)
    assert steps[0].bytes_in == sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
    for step, after in itertools.pairwise(steps):
        assert (step.documents_out, step.bytes_out) == (after.documents_in, after.bytes_in)
    assert (steps[-1].documents_out, steps[-1].bytes_out) == (len(kept), sum(len(text.encode()) for text in kept))


def test_a_long_run_of_spaces_is_no_trap() -> None:
    assert LOOSE.build()("a" + " " * 500_000 + "b") == "a" + " " * 500_000 + "b"


# ---------------------------------------------------------------- batches and processes


def chosen(**settings: Any) -> Clean:
    return parse(Clean, {"min_characters": 1, **settings}, trusted=True)


EVERYTHING = {
    "repair": "ftfy",
    "languages": ["en", "zh", "de", "la", "fr"],
    "rules": ["c4", "gopher", "fineweb"],
    "personal": "mask",
}
LENIENT = {"rules": ["terminal_lines", {"kind": "word_count", "least": 2}]}
WORDS = st.lists(
    st.sampled_from(["the whale", "sea.", "\n", "and of", "大海。", "鲸鱼", "a@b.org", "{", "...", "\n\n"]), max_size=30
)


def gathered(settings: dict[str, Any], texts: list[str], rows: int, workers: int) -> tuple[list[Any], dict[str, Any]]:
    pytest.importorskip("ftfy", reason="needs the extra data")
    pytest.importorskip("py3langid", reason="needs the extra data")
    documents = [Document(text, f"row {number}") for number, text in enumerate(texts)]
    found, funnel = list[Any](), Funnel()
    for batch, part in mapped(partial(cleaned, chosen(**settings)), batched(documents, rows), workers):
        found += zip(batch["text"].to_pylist(), batch["source"].to_pylist(), strict=True)
        funnel.add(part)
    return found, asdict(funnel)


@settings(deadline=None, max_examples=10)
@given(
    st.lists(WORDS.map(" ".join), min_size=1, max_size=12), st.integers(1, 12), st.sampled_from([EVERYTHING, LENIENT])
)
def test_the_size_of_batches_changes_nothing(texts: list[str], rows: int, how: dict[str, Any]) -> None:
    assert gathered(how, texts, rows, 1) == gathered(how, texts, 100, 1)


def test_nor_does_the_number_of_processes() -> None:
    texts = [f"The {n} whales of the sea have, with luck, {n * 7} years. " * (n % 9) + "鲸" * n for n in range(60)]
    once = gathered(EVERYTHING, texts, 7, 1)
    assert once == gathered(EVERYTHING, texts, 11, 2)
    assert any(step["documents_in"] > step["documents_out"] for step in once[1]["steps"])


def test_examples_of_what_was_dropped_are_kept() -> None:
    _, funnel = cleaned(Clean(), batch_of(["short", "long enough to be kept here", "x"]))
    assert funnel.dropped == {
        "min_characters": [{"source": "row 0", "text": "short"}, {"source": "row 2", "text": "x"}]
    }


# ---------------------------------------------------------------- repair and language


def test_broken_decoding_is_mended_and_chinese_left_alone() -> None:
    pytest.importorskip("ftfy", reason="needs the extra data")
    mend = chosen(repair="ftfy").build()
    assert mend("I donâ€™t know what he said, “really”") == "I don’t know what he said, “really”"
    for text in ("你好，世界！（全角）“引号”", "ﬁne &amp; good"):
        assert mend(text) == text


def test_languages_stay_or_go_and_are_counted() -> None:
    pytest.importorskip("py3langid", reason="needs the extra data")
    texts = [
        "Call me Ishmael. Some years ago, never mind how long precisely, I went to sea.",
        "话说天下大势，分久必合，合久必分。周末七国分争，并入于秦。",
        "Es war einmal ein König, der hatte eine wunderschöne Tochter und ein großes Schloss.",
    ]
    batch, funnel = cleaned(chosen(languages=["en", "zh"]), batch_of(texts))
    assert batch["text"].to_pylist() == texts[:2]
    assert funnel.languages == {"en": 1, "zh": 1, "de": 1}
    with pytest.raises(InputError, match="unknown language 'english'"):
        chosen(languages=["english"]).build()


@pytest.mark.parametrize(("part", "name"), [({"repair": "ftfy"}, "ftfy"), ({"languages": ["en"]}, "py3langid")])
def test_a_missing_package_names_the_extra(part: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmlab.data.rules import optional

    def missing(module: str) -> Any:
        raise ImportError(module)

    monkeypatch.setattr(optional, "import_module", missing)
    for made in (optional.repairer, optional.identifier):
        made.cache_clear()
    with pytest.raises(InputError, match=rf"needs the package {name}.* \(pip install 'llmlab\[data\]'\)"):
        chosen(**part).build()


# ---------------------------------------------------------------- personal data


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("write to jane.doe+x@mail.example.org.", "write to <email>."),
        ("写信给zhang@example.cn，谢谢", "写信给<email>，谢谢"),
        ("call +49 (30) 1234 5678 now", "call <phone> now"),
        ("(555) 123-4567 or 555-123-4567", "<phone> or <phone>"),
        ("手机13812345678。", "手机<phone>。"),
        ("from 192.168.0.1, and 2001:0db8:0000:0000:0000:8a2e:0370:7334", "from <ip>, and <ip>"),
    ],
)
def test_personal_data_is_masked(text: str, masked: str) -> None:
    batch, funnel = cleaned(chosen(personal="mask"), batch_of([text]))
    assert batch["text"].to_pylist() == [masked]
    assert (funnel.steps[-1].name, funnel.steps[-1].changed) == ("mask", 1)


@pytest.mark.parametrize(
    "text",
    [
        "in 1851, 4000 pages",
        "version 1.2.3 of 300.1.1.1",
        "ISBN 978-3-16-148410-0",
        "user@home",
        "3.14159265358979",
        "2024-05-17 12:30:45",
    ],
)
def test_what_only_looks_like_it_stays(text: str) -> None:
    assert chosen(personal="mask").build()(text) == text


class Upper(Edit):
    kind: Literal["test_clean:Upper"] = "test_clean:Upper"

    def edit(self, texts: Any) -> Any:
        return pc.utf8_upper(texts)


class Nothing(Section):
    kind: Literal["test_clean:Nothing"] = "test_clean:Nothing"


def test_a_part_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "test_clean", sys.modules[__name__])
    own = chosen(rules=["test_clean:Upper"], personal="test_clean:Upper")
    assert own.build()("abc") == "ABC"
    with pytest.raises(InputError, match=r"is no Edit of llmlab\.data\.rules\.rule"):
        chosen(personal="test_clean:Nothing").build()
    with pytest.raises(InputError, match=r"is no Filter and no Edit of llmlab\.data\.rules\.rule"):
        chosen(rules=["test_clean:Nothing"]).build()


def test_every_rule_can_be_named_alone() -> None:
    for member in get_args(get_args(Rule)[0]):
        chosen(rules=[member.model_fields["kind"].default]).build()("A text that is long enough for it.")
