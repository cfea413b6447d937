"""The page: whole, alone, escaped, and made from whatever of a run is there."""

import importlib.util
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from llmlab.errors import InputError
from llmlab.evaluation.record import measured, read_run
from llmlab.evaluation.report import render, write_report

_spec = importlib.util.spec_from_file_location("synthetic_run", Path(__file__).with_name("synthetic_run.py"))
synthetic = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(synthetic)

VOID = {"meta", "br", "img", "hr", "input", "link"}


class Page(HTMLParser):
    """Checks that tags nest, and keeps what a test wants to know."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.ids, self.text = [], set(), [], set(), []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        self.ids |= {value for name, value in attrs if name == "id"}
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    @property
    def shown(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.fixture
def run(tmp_path):
    return synthetic.write(tmp_path / "demo")


def test_the_page_is_whole_and_needs_nothing_else(run):
    path = write_report(run)
    assert path == run / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    assert page.tags.isdisjoint({"script", "img", "link", "iframe", "object", "embed"})
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), f"{tag} {name}"
        if name in ("src", "href", "xlink:href", "action", "data"):
            assert value.startswith("#"), f"{tag} {name}={value}"
    styles = " ".join(re.findall(r"<style>(.*?)</style>", path.read_text(encoding="utf-8"), re.DOTALL))
    assert "url(" not in styles
    assert "@import" not in styles


def test_every_stage_and_every_link_is_there(run):
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert page.ids >= {*synthetic.STAGES, "samples", "costs", "recipe"}
    assert {value[1:] for _, name, value in page.attributes if name == "href"} <= page.ids
    for wanted in (
        "3.71 bytes of held-out text",
        "byte 6-gram",
        "82 % to 91 %",
        "int4",
        "Seed 7",
        "Proxy reward",
        "KL to",
    ):
        assert wanted in page.shown
    assert "exact duplicates" in page.shown, "the funnel"
    assert "1.79 GB" in page.shown, "peak memory"
    assert "optimizer: {kind: muon" in page.shown, "the recipe"


def test_the_summary_is_computed_from_the_figures(run):
    text = render(read_run(run))
    assert "1.94 bits per byte, 0.17 below a byte 6-gram" in text
    assert "from 0 % to 61 %" in text
    assert "by +0.27 (+0.21 to +0.33) at a KL of 5.200 nats from where it started." in text
    evaluated, ppo = (json.loads((run / name / "manifest.json").read_text()) for name in ("evaluate", "ppo"))
    evaluated["figures"]["baselines"]["byte_6gram"] = 1.84
    ppo["figures"]["gold_reward_change"] = {"value": -0.05, "interval": [-0.1, 0.01], "n": 200}
    for name, manifest in (("evaluate", evaluated), ("ppo", ppo)):
        (run / name / "manifest.json").write_text(json.dumps(manifest))
    text, minus = render(read_run(run)), "\N{MINUS SIGN}"
    assert "1.94 bits per byte, 0.10 above a byte 6-gram" in text
    assert f"by {minus}0.050 ({minus}0.10 to +0.010) at a KL of 5.200 nats" in text
    assert "not told apart from no change" in text
    del ppo["figures"]["gold_reward_change"]
    (run / "ppo" / "manifest.json").write_text(json.dumps(ppo))
    assert "by +0.27 (+0.21 to +0.33)" in render(read_run(run)), "then the evaluation's own figure"


def test_hostile_text_is_shown_and_never_run(run):
    hostile = synthetic.HOSTILE
    (run / "recipe.yaml").write_text(f"name: '{hostile}'\nseed: '{hostile}'\n", encoding="utf-8")
    rows = [{"step": step, hostile: step / 3, "loss": 1.0} for step in range(4)]
    (run / "sft" / "figures.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    manifest = json.loads((run / "evaluate" / "manifest.json").read_text())
    figures = manifest["figures"]
    figures["samples"][0]["prompt"] = hostile
    figures["samples"][0]["answers"][hostile] = hostile
    figures["policies"][hostile] = [{"name": hostile, "metric": hostile, "value": 1.0, "interval": [0.5, 2.0], "n": 3}]
    figures["baselines"][hostile] = 2.0
    figures["comparisons"][0] |= {"a": hostile, "metric": hostile, "verdict": hostile}
    (run / "evaluate" / "manifest.json").write_text(json.dumps(manifest))
    quantised = json.loads((run / "quantize" / "manifest.json").read_text())
    quantised["figures"]["weights"][2]["kind"] = hostile
    (run / "quantize" / "manifest.json").write_text(json.dumps(quantised))
    strange = run / '"><script>bad'
    strange.mkdir()
    (strange / "manifest.json").write_text(json.dumps({"seconds": 1.0, "figures": {hostile: hostile}}))
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert page.tags.isdisjoint({"script", "img"})
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert page.shown.count('<script>alert("x")</script>') >= 8


@pytest.mark.parametrize("missing", list(synthetic.STAGES))
def test_a_missing_stage_is_left_out(tmp_path, missing):
    stages = tuple(name for name in synthetic.STAGES if name != missing)
    page = Page(write_report(synthetic.write(tmp_path / "run", stages)).read_text(encoding="utf-8"))
    assert missing not in page.ids
    assert page.ids >= set(stages) - {"tokenizer"}


@pytest.mark.parametrize("stage", list(synthetic.STAGES))
def test_one_stage_alone_makes_a_page(tmp_path, stage):
    page = Page(write_report(synthetic.write(tmp_path / "run", (stage,))).read_text(encoding="utf-8"))
    assert stage in page.ids
    assert "1 stages" not in page.shown


def test_a_stage_cut_in_the_middle_shows_what_it_has(run):
    (run / "ppo" / "manifest.json").unlink()
    with (run / "ppo" / "figures.jsonl").open("a") as file:
        file.write('{"step": 121, "gold_rew')
    (run / "sft.old-1").mkdir()
    (run / "sft.old-1" / "manifest.json").write_text("{}")
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert "PPO not finished" in page.shown
    assert "Proxy reward" in page.shown
    assert "old-1" not in page.shown


def test_broken_figures_break_nothing(run):
    (run / "reward" / "manifest.json").write_text("not json")
    lines = ['{"step": 1, "loss": NaN}', "[1]", "\x00", '{"step": "a", "loss": 2}', '{"step": 2, "loss": Infinity}']
    (run / "reward" / "figures.jsonl").write_text("\n".join([*lines, '{"step": 3, "loss": 4}']))
    for name in ("quantize", "evaluate"):
        manifest = json.loads((run / name / "manifest.json").read_text())
        manifest["figures"] = {
            "weights": "?",
            "policies": {"sft": None, "ppo": [3, {}]},
            "samples": [1],
            "comparisons": [{}],
        }
        (run / name / "manifest.json").write_text(json.dumps(manifest))
    Page(write_report(run).read_text(encoding="utf-8"))


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="is no run's folder"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_figure_is_found_with_its_interval_however_it_is_noted():
    assert measured({"held_out": {"accuracy": 0.5, "accuracy_interval": [0.4, 0.6], "n": 9}}, "accuracy") == (
        0.5,
        0.4,
        0.6,
        9,
    )
    assert measured({"accuracy": {"value": 0.5, "interval": [0.4, 0.6], "n": 9}}, "accuracy") == (0.5, 0.4, 0.6, 9)
    assert measured({"deep": {"accuracy": 1}, "accuracy": 0.5}, "accuracy") == (0.5, None, None, None)
    assert measured({"accuracy": None}, "accuracy") is None
