"""Random models made to write in a form, forms that nobody should send, and guides by themselves.

A random model finds every hole: what it is allowed to say it will say.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from functools import cache
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.checkpoints.bundle import Bundle
from llmlab.errors import InputError, LlmlabError
from llmlab.inference.batching import Batching, Request
from llmlab.inference.constrain import Constrainer, Constraint, Grammar, JsonSchema, Regex
from llmlab.inference.plain_step import PlainModel
from llmlab.inference.sampling import Sampling
from llmlab.inference.speculative import PromptLookup
from llmlab.language_model import LanguageModel
from llmlab.model.transformer import Architecture
from llmlab.tokenization.tokenizer import Tokenizer
from llmlab.tokenization.train import BPE, train_tokenizer

KINDS = [str(member.model_fields["kind"].default) for member in get_args(get_args(Constraint)[0])]
TEXT = '{"name": "Ada", "tags": ["a", "b"], "n": -12.5e3, "ok": true} yes no maybe 三国 😀 ' * 20


def byte_level() -> Tokenizer:
    return train_tokenizer(BPE(vocab_size=330), iter([TEXT]))


def sentencepiece() -> Tokenizer:
    """Spaces as U+2581, one put before every text, bytes as <0x..>."""
    single = [chr(code) for code in range(33, 127)]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *single]
    pieces += ["\u2581yes", "yes", "no", "\u2581no", '":', '{"', "\u2581{", "三", "😀"]
    return Tokenizer.from_sentencepiece(pieces, [-float(at) for at in range(len(pieces))])


def wordpiece() -> Tokenizer:
    letters = [chr(code) for code in range(33, 127)]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *("##" + one for one in letters), "yes", "no", "##yes"]
    tokens = ["\u2581" + piece if not piece.startswith(("##", "[")) else piece.removeprefix("##") for piece in pieces]
    return Tokenizer.from_wordpiece(tokens, cls=2, sep=3, pad=0, unk=1, eos=3)


TOKENIZERS = {"byte_level": byte_level, "sentencepiece": sentencepiece, "wordpiece": wordpiece}


@cache
def model_of(name: str, spread: float = 0.3, **fields: Any) -> LanguageModel:
    tokenizer = TOKENIZERS[name]()
    sizes = {"layers": 1, "dim": 32, "context": 1024, "initial_std": spread}
    architecture = Architecture.model_validate(sizes | fields)
    vocabulary = -(-tokenizer.vocab_size // 16) * 16  # rows that no token has, as published models do
    return LanguageModel(Bundle(architecture.build(vocabulary, seed=5), tokenizer, architecture, "tiny"))


# ---------------------------------------------------------------- whole answers

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "三国"]}, "minItems": 1, "maxItems": 3},
        "boss": {"anyOf": [{"type": "null"}, {"const": "me"}]},
    },
    "required": ["name", "age", "tags", "boss"],
    "additionalProperties": False,
}
LIST = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"v": {"type": "boolean"}, "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}},
            "required": ["v", "next"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}


def check_person(value: Any) -> None:
    assert set(value) == set(PERSON["properties"])  # type: ignore[arg-type]
    assert isinstance(value["name"], str)
    assert len(value["name"]) <= 8
    assert isinstance(value["age"], int)
    assert 0 <= value["age"] <= 150
    assert 1 <= len(value["tags"]) <= 3
    assert set(value["tags"]) <= {"a", "b", "三国"}
    assert value["boss"] in (None, "me")


def check_list(value: Any) -> None:
    while value is not None:
        assert set(value) == {"v", "next"}
        assert isinstance(value["v"], bool)
        value = value["next"]


def check_json(text: str, schema: str) -> None:
    value = json.loads(text)
    {"person": check_person, "list": check_list, "pattern": check_pattern, "tuple": check_tuple}[schema](value)


def check_pattern(value: Any) -> None:
    assert re.fullmatch(r"[A-Z]{2}-[0-9]{3}", value)


def check_tuple(value: Any) -> None:
    number, word = value
    assert isinstance(number, int | float)
    assert isinstance(word, str)


SCHEMAS: dict[str, Any] = {
    "person": PERSON,
    "list": LIST,
    "pattern": {"type": "string", "pattern": r"^[A-Z]{2}-[0-9]{3}$"},
    "tuple": {
        "type": "array",
        "prefixItems": [{"type": "number"}, {"type": "string"}],
        "items": False,
        "minItems": 2,
    },
}


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("schema", SCHEMAS)
@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 10**6), temperature=st.sampled_from([0.5, 1.0, 5.0]))
def test_a_random_model_writes_json_of_a_schema(name: str, schema: str, seed: int, temperature: float) -> None:
    lm = model_of(name)
    sampling = Sampling(
        max_new_tokens=400,
        seed=seed,
        temperature=temperature,
        constraint=JsonSchema(schema=SCHEMAS[schema]),
    )
    reply = lm.reply(lm.prompt("hello"), sampling)
    text = reply.read()
    if reply.finish_reason == "stop":
        check_json(text, schema)
    else:
        assert reply.finish_reason == "length"
        assert len(reply.ids) == 400
    assert not set(reply.ids[:-1]) & lm.tokenizer.special_ids


def test_most_answers_end_by_themselves() -> None:
    """Without which the test above would hold for a guide that forbids the end."""
    lm, ended = model_of("byte_level"), 0
    for schema in SCHEMAS:
        for seed in range(4):
            sampling = Sampling(max_new_tokens=400, seed=seed, constraint=JsonSchema(schema=SCHEMAS[schema]))
            reply = lm.reply(lm.prompt("hello"), sampling)
            reply.read()
            ended += reply.finish_reason == "stop"
    assert ended >= 10


PATTERNS = [
    r"[0-9]{3}-[0-9]{4}",
    r"(yes|no)( maybe)?",
    r"(a+)+",
    r"三+国|😀{1,3}",
    r"[^ \n]{1,20}",
    r" ?[0-9]+(\.[0-9]+)?",
    r"(?i)ok!",
]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_random_model_writes_what_a_regex_matches(name: str, pattern: str) -> None:
    lm = model_of(name)
    texts = set()
    for seed in range(6):
        sampling = Sampling(max_new_tokens=60, seed=seed, constraint=Regex(pattern=pattern))
        try:
            reply = lm.reply(lm.prompt("hello"), sampling)
            text = reply.read()
        except LlmlabError as error:  # a vocabulary that has no such letters, and no bytes
            assert name == "wordpiece"
            assert "tokens can write" in str(error) or "no token is left" in str(error)
            continue
        texts.add(text)
        if reply.finish_reason == "stop":
            assert re.fullmatch(pattern, text), text
    assert len(texts) > 1 or name == "wordpiece" or pattern == "(?i)ok!"


ARITHMETIC = """
start: sum
sum: product | sum "+" product
product: value | product "*" value
value: /[1-9][0-9]{0,2}/ | "(" sum ")"
"""


def test_a_random_model_writes_a_language_that_no_regex_has() -> None:
    lm, ended = model_of("byte_level"), 0
    for seed in range(12):
        sampling = Sampling(max_new_tokens=200, seed=seed, constraint=Grammar(lark=ARITHMETIC))
        reply = lm.reply(lm.prompt("hello"), sampling)
        text = reply.read()
        if reply.finish_reason == "stop":
            ended += 1
            assert not set(text) - set("0123456789+*()")
            assert eval(text) > 0
    assert ended


def test_max_new_tokens_cuts_and_says_so() -> None:
    lm = model_of("byte_level")
    reply = lm.reply(lm.prompt("x"), Sampling(max_new_tokens=3, constraint=Regex(pattern="[a-z]{200}")))
    reply.read()
    assert (len(reply.ids), reply.finish_reason) == (3, "length")


def test_other_settings_hold_inside_of_a_form() -> None:
    lm, yes = model_of("byte_level"), Regex(pattern="[ab]{12,400}")
    a = lm.tokenizer.encode("a")[0]
    bent = Sampling(max_new_tokens=100, constraint=yes, logit_bias={a: -100}, min_new_tokens=30)
    for seed in range(4):
        reply = lm.reply(lm.prompt("x"), bent.model_copy(update={"seed": seed}))
        text = reply.read()
        assert set(text) == {"b"} or "ab" in text  # "ab" may be a token of its own
        assert len(reply.ids) >= 30


# ---------------------------------------------------------------- guides


def said(guide: Any, tokenizer: Tokenizer) -> set[str]:
    return {tokenizer.token_bytes(id).decode("utf-8", "replace") for id in guide.allowed().nonzero()[:, 0].tolist()}


def test_stop_tokens_are_allowed_exactly_where_the_text_may_end() -> None:
    tokenizer = byte_level()
    eos, end = tokenizer.eos_id, tokenizer.token_id("<|im_end|>")
    assert eos is not None
    assert end is not None
    guide = Constrainer(tokenizer).guide(Regex(pattern="ab|abc"), [eos, end])
    for letter, may_end in (("", False), ("a", False), ("b", True)):
        if letter:
            guide.take(tokenizer.encode(letter)[0])
        assert guide.allowed()[[eos, end]].tolist() == [may_end, may_end]
    assert not guide.done
    other = guide.copy()
    guide.take(tokenizer.encode("c")[0])
    assert guide.done  # nothing can follow: no step is lost on the stop token
    assert not guide.allowed().any()
    assert not other.done
    assert {"c"} < said(other, tokenizer)
    other.take(end)
    assert other.done


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_what_is_allowed_is_what_bytes_say(name: str, data: st.DataObject) -> None:
    """Brute force over the vocabulary: a token may come if the text with it begins some text of the form."""
    tokenizer, constrainer = prepared(name)
    words = data.draw(
        st.lists(
            st.text("abyes" if name == "wordpiece" else "ab yes", min_size=1, max_size=6),
            min_size=1,
            max_size=4,
            unique=True,
        )
    )
    guide = constrainer.guide(Regex(pattern="|".join(map(re.escape, words))), [])
    text, whole = b"", [word.encode() for word in words]
    while not guide.done:
        allowed = guide.allowed().nonzero()[:, 0].tolist()
        pieces = {id: tokenizer.token_bytes(id) for id in range(tokenizer.vocab_size)}
        expected = [
            id
            for id, piece in pieces.items()
            if piece and id not in tokenizer.special_ids and any(one.startswith(text + piece) for one in whole)
        ]
        following = {one[len(text)] for one in whole if one.startswith(text) and one != text}
        if len(following) == 1 and text not in whole:  # one way to go: written as the tokenizer itself would
            assert set(allowed) <= set(expected)
            assert bool(allowed) == bool(expected)
        else:
            assert allowed == expected
        if not allowed:
            break
        id = data.draw(st.sampled_from(allowed))
        guide.take(id)
        text += pieces[id]
    assert text in whole


@cache
def prepared(name: str) -> tuple[Tokenizer, Constrainer]:
    tokenizer = TOKENIZERS[name]()
    return tokenizer, Constrainer(tokenizer)


def test_a_token_that_is_not_allowed_is_an_error() -> None:
    tokenizer, constrainer = prepared("byte_level")
    guide = constrainer.guide(Regex(pattern="[0-9]+"), [])
    with pytest.raises(LlmlabError, match="cannot come here"):
        guide.take(tokenizer.encode("x")[0])


def test_a_form_of_which_the_vocabulary_has_no_letter_is_refused() -> None:
    with pytest.raises(InputError, match="no text that this tokenizer's tokens can write"):
        prepared("wordpiece")[1].guide(Regex(pattern="三"), [])


def test_a_row_without_a_token_says_what_took_it() -> None:
    with pytest.raises(LlmlabError, match=r"sampling\.constraint: no text that this tokenizer's tokens can write"):
        model_of("wordpiece").generate("x", constraint={"kind": "regex", "pattern": "(a|b)三"})
    with pytest.raises(LlmlabError, match=r"constraint and no_repeat_ngram_size: no token is left"):
        model_of("byte_level").generate("x", no_repeat_ngram_size=1, constraint={"kind": "regex", "pattern": "[ab]{9}"})


def test_a_regex_is_a_regex_whatever_letters_it_has() -> None:
    """It is handed on inside of a grammar, between slashes."""
    tokenizer, constrainer = prepared("byte_level")
    cases = [("a/b", "a/b"), (r"a\/b", "a/b"), ("a\nb", "a\nb"), (r"a\\", "a\\"), ("/x|/y", "/x"), ('"', '"')]
    for pattern, text in cases:
        guide = constrainer.guide(Regex(pattern=pattern), [])
        for byte in text.encode():
            assert not guide.done
            guide.take(next(id for id in range(tokenizer.vocab_size) if tokenizer.token_bytes(id) == bytes([byte])))
        assert guide.done, pattern


def test_without_llguidance_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(InputError, match=r"llmlab\[serving\]"):
        Constrainer(byte_level())


# ---------------------------------------------------------------- forms that nobody should send


def deep(depth: int) -> Any:
    schema: Any = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def chained(size: int) -> Any:
    rows = {f"a{at}": {"type": "array", "items": {"$ref": f"#/$defs/a{at + 1}"}} for at in range(size)}
    return {"$defs": {**rows, f"a{size}": {"type": "null"}}, "$ref": "#/$defs/a0"}


SOUND: dict[str, list[Any]] = {
    "json_schema": [
        {"schema": True},
        {"schema": {"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"type": "null"}]}}, "$ref": "#/$defs/a"}},
        {"schema": {"type": "string", "pattern": "(a+)+$"}},
        {"schema": {"type": "array", "minItems": 1_000_000, "items": {"type": "string"}}},
        {"schema": deep(40)},
        {"schema": chained(200)},
    ],
    "regex": [
        {"pattern": text}
        for text in ("(a+)+$", "(a|b)*a(a|b){200}", "(.*a){300}", r"\p{L}{1,500}", "(" * 99 + "a" + ")*" * 99)
    ],
    "grammar": [
        {"lark": 'start: start start | "a"'},
        {"lark": 'start: x x x x x x x x\nx: ("a" | "a" "a" | start)*'},
        {"lark": "start: a0\n" + "\n".join(f"a{at}: a{at + 1}" for at in range(490)) + '\na490: "x"'},
    ],
}
REFUSED: dict[str, list[Any]] = {
    "json_schema": [
        {"schema": {"$ref": "#"}},
        {"schema": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}},
        {"schema": {"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"}},
        {"schema": {"$ref": "http://127.0.0.1:1/x"}},
        {"schema": {"$ref": "file:///etc/passwd"}},
        {"schema": {"type": "strnig"}},
        {"schema": {"not": {}}},
        {"schema": {"type": "string", "pattern": "(" * 60_000}},
        {"schema": {"type": "string", "pattern": "a?" * 30_000}},
        {"schema": {"patternProperties": {"a?" * 30_000: {}}}},
        {"schema": {"type": "object", "properties": {f"k{at}": {"type": "string"} for at in range(20_000)}}},
        {"schema": {"enum": [f"v{at}" for at in range(50_000)]}},
        {"schema": deep(49)},
        {"schema": deep(900)},
        {"schema": chained(3_000)},
        {"schema": {"x-guidance": {"lenient": True}}},
        {"schema": {"const": float("nan")}},
    ],
    "regex": [
        {"pattern": text}
        for text in (
            "foo**", "a{2}{3}", "(" * 60_000, "(" * 60_000 + "a" + ")" * 60_000, "(" * 2000 + "a" + ")" * 2000,
            "[" * 3000, "a{1000000}", "(a{1000}){1000}", "a{1,99999999999999}", "a?" * 1300 + "a" * 1300,
            "(" * 40 + "a" + "{2})" * 40, "(?=a)b", r"(a)\1", "(", "\\", r"[^\s\S]", "a" * 5000,
        )
    ],
    "grammar": [
        {"lark": text}
        for text in (
            "", "x", "start: foo", "start: (((", "start: " + "(" * 3000, "start: " + "(" * 60_000,
            "start: a0\n" + "\n".join(f"a{at}: a{at + 1}" for at in range(20_000)) + '\na20000: "x"',
            "start: A\nA: B\nB: A",
            'start: A\nA: "a"{1000000}', 'start: %json {"$ref": "#"}', "start: %json " + "[" * 3000,
            "start: /" + "a?" * 30_000 + "/", "start: A\nA: " + '"a"? ' * 4000, "start: A\nA: " + "~(" * 1000,
        )
    ],
}  # fmt: skip
HOSTILE = """
import json, resource, sys, threading, time
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
from llmlab.errors import LlmlabError
from llmlab.inference.batching import Batching, Request
from llmlab.inference.constrain import Constrainer, Constraint
from llmlab.tokenization.train import BPE, train_tokenizer
from pydantic import TypeAdapter
tokenizer = train_tokenizer(BPE(vocab_size=300), iter(["a whale is not a fish " * 20]))
constrainer, found = Constrainer(tokenizer), []

def work():
    for kind, fields in json.loads(sys.stdin.read()):
        began = time.process_time()
        try:
            form = TypeAdapter(Constraint).validate_python({"kind": kind, **fields})
            guide = constrainer.guide(form, [tokenizer.eos_id])
            for step in range(40):
                ids = guide.allowed().nonzero()[:, 0].tolist()
                if not ids or guide.done:
                    break
                guide.copy().take(ids[0])
                if ids[step * 7 % len(ids)] == tokenizer.eos_id:
                    continue
                guide.take(ids[step * 7 % len(ids)])
            said = "ok"
        except LlmlabError as error:
            said = str(error)
        found.append((said, time.process_time() - began))

threading.stack_size(512 * 1024)  # of a thread as small as other systems make them
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(json.dumps(found))
"""


def outcomes(forms: list[tuple[str, Any]]) -> list[tuple[str, float]]:
    """What came of each, in another process, which must not die; with the seconds of its processor."""
    done = subprocess.run(
        [sys.executable, "-c", HOSTILE], input=json.dumps(forms).encode(), capture_output=True, check=False
    )
    assert done.returncode == 0, (done.returncode, done.stderr.decode()[-2000:])
    return [tuple(one) for one in json.loads(done.stdout)]


@pytest.mark.parametrize("one", KINDS)
def test_hostile_forms_are_refused_and_odd_ones_followed_within_a_second_and_none_kills(one: str) -> None:
    forms = [(one, fields) for fields in [*SOUND[one], *REFUSED[one]]]
    for at, ((_, fields), (said, seconds)) in enumerate(zip(forms, outcomes(forms), strict=True)):
        assert said == "ok" if at < len(SOUND[one]) else said.startswith("sampling.constraint: "), (fields, said)
        assert len(said) < 400
        assert seconds < 1, str(fields)[:80]


def test_python_does_not_fall_over_a_deep_schema_either() -> None:
    began = time.monotonic()
    with pytest.raises(InputError, match="levels deep"):
        JsonSchema(schema=deep(100)).source()
    assert time.monotonic() - began < 1


@pytest.mark.parametrize(
    "pattern", ["a+?", "a??", "(a*)*", "[*+]*", r"\**", r"\p{L}+", "(?i)a*", "(?:a*)+", "[]a]*", "[^]*]*", "a{2}?b"]
)
def test_repetitions_that_are_none_of_a_repetition(pattern: str) -> None:
    prepared("byte_level")[1].guide(Regex(pattern=pattern), [])


@pytest.mark.parametrize("pattern", ["a**", "a*+", "a+*", "a++", "a?*", "a{2}*", "a{2}{3}", "a???", r"\p{L}+*"])
def test_repetitions_of_repetitions(pattern: str) -> None:
    with pytest.raises(InputError, match="repeats a repetition"):
        Regex(pattern=pattern).source()


def test_a_guide_is_quick() -> None:
    """A mask costs far less than a step of any model; 2 ms is a hundred times what it takes."""
    _, constrainer = prepared("byte_level")
    guide = constrainer.guide(JsonSchema())
    began = time.process_time()
    for _ in range(50):
        assert guide.allowed().any()
    assert (time.process_time() - began) / 50 < 0.002
    assert guide.allowed().dtype == torch.bool


# ---------------------------------------------------------------- with what else there is

SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": ["yes", "no"]}},
    "required": ["a"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("search", ["beam", "contrastive", "best_of"])
def test_a_search_keeps_to_the_form(search: str) -> None:
    lm = model_of("byte_level")
    text = lm.generate("x", search=search, constraint={"kind": "json_schema", "schema": SCHEMA}, max_new_tokens=60)
    assert json.loads(text)["a"] in ("yes", "no")


def test_guesses_keep_to_the_form_and_change_nothing() -> None:
    lm = model_of("byte_level")
    sampling = Sampling(constraint=Regex(pattern="(yes|no|maybe )+!"), max_new_tokens=80, min_new_tokens=40)
    answers = []
    for guesser in (None, PromptLookup(tokens=4, ngram=2)):
        batching = Batching(PlainModel(lm.model, 70), guesser=guesser)
        requests = [Request(lm.prompt("x"), sampling, lm.stop_ids, seed, guide=lm.guide(sampling)) for seed in range(5)]
        answers.append([one.ids for one in batching.generate(requests)])
        assert (guesser is None) == (batching.counts.accepted == 0)
    assert answers[0] == answers[1]
