"""Every task of the folder on a small model, and the harness around them."""

import json

import pytest

from llmlab.checkpoints.bundle import Bundle
from llmlab.checkpoints.native import load_model, save_model
from llmlab.data.heldout import is_held_out
from llmlab.data.shards import write_shards
from llmlab.data.tasks import rivals
from llmlab.errors import InputError, Stopped
from llmlab.evaluation import harness, tasks
from llmlab.evaluation.harness import Evaluate, evaluate, evaluate_model
from llmlab.evaluation.perplexity import held_out_documents
from llmlab.evaluation.tasks.base import Subject
from llmlab.evaluation.tasks.exercises import held_out_exercises
from llmlab.inference.engine import Completion
from llmlab.model.transformer import Architecture
from llmlab.recipe import parse
from llmlab.runtime import StopFlag
from llmlab.stages import Session
from llmlab.tokenization.train import BPE, train_tokenizer

TEXTS = [f"Number {number}: the whale swims in the wide sea, 鲸. {'and on ' * (number % 4)}" for number in range(30)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(BPE(vocab_size=320), iter(TEXTS))


def bundle_of(tokenizer, seed=0):
    architecture = Architecture(layers=1, dim=32, context=160, initial_std=0.3)
    return Bundle(architecture.build(tokenizer.vocab_size, seed).eval(), tokenizer, architecture, "memory")


@pytest.fixture(scope="module")
def bundle(tokenizer):
    return bundle_of(tokenizer)


@pytest.fixture(scope="module")
def shards(tokenizer, tmp_path_factory):
    root = tmp_path_factory.mktemp("run") / "tokenizer"
    write_shards(TEXTS[6:], tokenizer, root / "train")
    return write_shards(TEXTS[:6], tokenizer, root / "held_out")


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "questions.jsonl"
    rows = [{"question": f"{n} or {n + 1}?", "choices": [f"{n}", f"{n + 1} it is"], "answer": n % 2} for n in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", tasks.names())
def test_every_task_measures_with_an_interval_and_the_same_twice(name, bundle, shards, questions):
    kind = tasks.find(name)
    assert kind.model_fields["kind"].default == name, "the file's name is the kind"
    assert kind.__doc__
    settings = {"kind": name, "limit": 6} | ({"path": str(questions)} if kind.needs_file else {})
    task = tasks.read(settings)
    assert task.files() == ([questions] if kind.needs_file else [])
    subject = Subject(bundle, 3, held_out_documents(shards))
    results = task.run(subject)
    assert results
    for result in results:
        value, low, high, n = result.value
        assert low <= value <= high
        assert len(result.items) == n <= 6
        assert {"name", "metric", "value", "interval", "n"} <= json.loads(json.dumps(result.json())).keys()
        mean = sum(result.items) / (n if result.weights is None else sum(result.weights))
        assert value == pytest.approx(mean), "items are what the value is made of"
    assert [result.json() for result in task.run(subject)] == [result.json() for result in results]


def test_the_folder_is_what_its_files_say():
    assert set(tasks.names()) >= {"bits_per_byte", "exercises", "multiple_choice", "pairs", "samples"}
    with pytest.raises(InputError, match="did you mean 'exercises'"):
        tasks.find("exercise")
    with pytest.raises(InputError, match="names no kind"):
        tasks.read({"limit": 3})
    with pytest.raises(InputError, match=r"task samples.promts: no field 'promts' here .did you mean 'prompts'"):
        tasks.read({"kind": "samples", "promts": ["a"]})


def test_exercises_are_held_out_and_the_first_ones_stay():
    few, many = held_out_exercises(5, 20), held_out_exercises(5, 60)
    assert many[:20] == few
    assert len({exercise.prompt for exercise in many}) == 60
    assert all(is_held_out(exercise.prompt, 0.1, 5) for exercise in many), "held out under any larger share too"
    assert held_out_exercises(6, 20) != few


def test_a_model_that_knows_is_right(bundle, monkeypatch):
    from llmlab.evaluation.asking import Answer, Asker

    answers = {exercise.prompt: exercise for exercise in held_out_exercises(0, 10)}

    def say(self, prompts, max_new_tokens):
        told = [answers[messages[-1]["content"]] for messages in prompts]
        return [Answer(one.say(True) if n % 2 else "no", [1], True) for n, one in enumerate(told)]

    monkeypatch.setattr(Asker, "answers", say)
    found = {r.metric: r.value.value for r in tasks.read({"kind": "exercises", "limit": 10}).run(Subject(bundle))}
    assert found["exact_match"] == found["courteous"] == 0.5
    assert 0.5 <= found["gold_reward"] < 0.8


def test_pairs_prefer_what_the_model_finds_likelier(bundle, tmp_path):
    exercise = held_out_exercises(0, 1)[0]
    pair = rivals(exercise, 0)
    rows = [{"q": exercise.prompt, "a": pair.chosen, "b": pair.rejected}, {"q": "x", "a": "y", "b": "y " * 30}]
    items: list[float] = []
    for swap in (False, True):
        names = {"chosen": "b", "rejected": "a"} if swap else {"chosen": "a", "rejected": "b"}
        path = tmp_path / "pairs.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        columns = {"prompt": "q", **names}
        found = tasks.read({"kind": "pairs", "path": str(path), "columns": columns}).run(Subject(bundle))[0]
        items += found.items
    assert items[0] + items[2] == 1
    assert items[1] == 1, "thirty times as much text is less likely"
    with pytest.raises(InputError, match=r"pairs\.jsonl: 2 of 2 rows cannot be used: line 1 has no field 'chosen'"):
        tasks.read({"kind": "pairs", "path": str(path)}).run(Subject(bundle))


# ---------------------------------------------------------------- one model


def test_without_names_whatever_can_run_does(bundle):
    done = evaluate_model(bundle, limit=2)
    assert {task["name"] for task in done["tasks"]} == {"exercises", "samples"}
    assert json.loads(json.dumps(done)) == done


def test_a_file_finds_its_task(bundle, questions, tmp_path):
    text = tmp_path / "mine.txt"
    text.write_text("The wide sea.\n" * 40)
    found = evaluate_model(bundle, data=text)["tasks"]
    assert [task["metric"] for task in found] == ["bits_per_byte"]
    assert found[0]["bytes"] == len("The wide sea.\n" * 40)
    found = evaluate_model(bundle, data=questions, limit=4)["tasks"]
    assert [(task["name"], task["n"]) for task in found] == [("questions", 4), ("questions", 4)]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + "\n")
    assert evaluate_model(bundle, data=pairs)["tasks"][0]["name"] == "pairs.jsonl"


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["multiple_choice"], "needs a file of questions"),
        (["bits_per_byte"], "there is no held-out text"),
        (["exams"], "unknown value 'exams'"),
    ],
)
def test_what_cannot_be_measured_is_told(bundle, names, told):
    with pytest.raises(InputError, match=told):
        evaluate_model(bundle, names)


def test_missing_data_and_a_missing_tokenizer_are_told(bundle, tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        evaluate_model(bundle, data=tmp_path / "none.txt")
    bare = Bundle(bundle.model, None, bundle.architecture, "bare.gguf")
    with pytest.raises(InputError, match=r"bare\.gguf: has no tokenizer"):
        evaluate_model(bare, ["samples"])


def test_the_held_out_text_of_its_run_is_found_beside_a_model(bundle, shards, tokenizer):
    folder = shards.folder.parents[1] / "pretrain" / "model"
    save_model(folder, bundle.model, tokenizer)
    found = evaluate_model(load_model(folder), limit=3)["tasks"]
    assert found[0]["metric"] == "bits_per_byte"
    other = train_tokenizer(BPE(vocab_size=270), iter(TEXTS))
    assert harness.held_out_beside(Bundle(bundle.model, other, bundle.architecture, str(folder))) is None


# ---------------------------------------------------------------- every policy


def test_every_policy_is_measured_on_the_same_items(bundle, tokenizer, shards, tmp_path):
    section = parse(
        Evaluate, {"tasks": ["bits_per_byte", {"kind": "exercises", "limit": 5}, {"kind": "samples", "limit": 2}]}
    )
    policies = {"pretrain": bundle, "sft": bundle_of(tokenizer, 1), "ppo": bundle}
    figures = evaluate(section, policies, shards, tmp_path, Session())
    assert json.loads(json.dumps(figures)) == figures
    assert figures["policies"]["pretrain"] == figures["policies"]["ppo"] != figures["policies"]["sft"]
    same = [row for row in figures["comparisons"] if (row["a"], row["b"]) == ("pretrain", "ppo")]
    assert len(same) == 5
    assert all(row["difference"] == 0 and row["verdict"] == "not told apart" for row in same)
    bits = {name: rows[0]["value"] for name, rows in figures["policies"].items()}
    row = next(row for row in figures["comparisons"] if row["b"] == "sft" and row["metric"] == "bits_per_byte")
    assert row["difference"] == pytest.approx(bits["sft"] - bits["pretrain"])
    assert [set(sample["answers"]) for sample in figures["samples"]] == [set(policies)] * 2
    assert set(figures["baselines"]) == {"gzip", "xz", "xz_after_training_text", "byte_6gram"}
    assert evaluate(section, policies, shards, tmp_path, Session()) == figures


def test_without_held_out_text_the_rest_is_measured(bundle, tmp_path):
    section = parse(Evaluate, {"tasks": ["bits_per_byte", {"kind": "samples", "limit": 1}]})
    figures = evaluate(section, {"base": bundle}, None, tmp_path, Session())
    assert [row["metric"] for row in figures["policies"]["base"]] == ["repetition"]
    assert "baselines" not in figures


def test_a_stop_is_heeded(bundle, tmp_path):
    flag = StopFlag()
    flag.requested = True
    with pytest.raises(Stopped):
        evaluate(Evaluate(), {"base": bundle}, None, tmp_path, Session(stop=flag))


def test_a_recipe_names_its_tasks_and_their_files(questions):
    section = parse(Evaluate, {"tasks": [{"kind": "multiple_choice", "path": str(questions)}, "samples"]})
    assert section.files() == [questions]
    assert parse(Evaluate, json.loads(section.model_dump_json())) == section
    assert [task.kind for task in Evaluate().tasks] == ["bits_per_byte", "exercises", "samples"]
    assert Evaluate.model_json_schema()
    with pytest.raises(InputError, match="did you mean 'samples'"):
        parse(Evaluate, {"tasks": ["sample"]})


# ---------------------------------------------------------------- repetition


def repetition_of(bundle, held_out=None, **settings):
    found = tasks.read({"kind": "repetition", "new_tokens": 40, "texts": 6, **settings}).run(
        Subject(bundle, 3, held_out)
    )
    assert [result.metric for result in found] == ["rep_4", "loops", "distinct_2", "self_bleu", "copied"]
    return {result.metric: result for result in found}


def test_repetition_of_a_model_that_says_one_word(tokenizer, monkeypatch, tmp_path):
    from llmlab.evaluation.tasks import repetition

    bundle = bundle_of(tokenizer)

    def say(model, prompts, sampling, stops, seeds):
        assert not stops, "no token ends a text"
        assert set(sampling.logit_bias) == tokenizer.special_ids
        return [Completion([9] * sampling.max_new_tokens, [0.0] * sampling.max_new_tokens, "length") for _ in prompts]

    monkeypatch.setattr(repetition, "generate", say)
    found = repetition_of(bundle)
    assert found["rep_4"].value.value == pytest.approx(36 / 37)
    assert found["loops"].value.value == found["self_bleu"].value.value == 1
    assert found["distinct_2"].value.value == pytest.approx(1 / (6 * 39))
    assert all(result.details["human"] != result.value.value for result in found.values() if result.metric != "copied")
    assert found["rep_4"].details["difference_interval"][0] > 0.5, "Moby-Dick, where nothing was held out"
    mine = tmp_path / "mine.txt"
    mine.write_text("all work and no play. " * 40)
    assert repetition_of(bundle, path=str(mine))["rep_4"].details["human"] > 0.5
    assert repetition_of(bundle, prompts=["the sea", "a whale"])["rep_4"].details == {}
    mine.write_text("short")
    with pytest.raises(InputError, match=r"mine\.txt: has no document of"):
        repetition_of(bundle, path=str(mine))


def test_repetition_may_let_a_text_end(bundle):
    allowed = repetition_of(bundle, ends="allowed", prompts=["the sea"] * 3)
    suppressed = repetition_of(bundle, prompts=["the sea"] * 3)
    assert suppressed["distinct_2"].weights == [39] * 3
    assert sum(allowed["distinct_2"].weights) <= 39 * 3
