"""How much a real model repeats itself, by decoder. Questions 5 and 7. Needs the weights: `llmlab pull smollm2`, and
`llmlab pull minilm`.

A seed has its own passages, openings and draws; penalties, n-gram blocking and filters act on greedy decoding."""

from collections.abc import Mapping
from typing import Any

from llmlab.handbook.question import Text
from llmlab.handbook.trials import Trial

GREEDY = {"temperature": 0.0}
MEASURES = (
    *("rep_4", "rep_3", "looping", "before_loop", "period", "distinct_2", "self_bleu", "copied", "tokens"),
    *("nats", "nats_first", "nats_last", "mauve", "rep_4_few", "rep_4_everyday", "alike", "kept", "fp32_gap"),
)


def _run(settings: Mapping[str, Any], seed: int) -> dict[str, float | str]:
    from llmlab.handbook.decoder_bench import run

    found = run(settings, seed)
    return {measure: found.get(measure, "not asked of this arm") for measure in MEASURES}


def _sampled(**values: Any) -> dict[str, Any]:
    return {"sampling": values}


def _greedy(**values: Any) -> dict[str, Any]:
    return {"sampling": GREEDY | values}


def _search(**values: Any) -> dict[str, Any]:
    return {"search": values}


RACE = Trial(
    name="loops_by_decoder",
    title=Text("SmolLM2 (4-bit weights) goes on with passages, by decoder", "SmolLM2（4 位权重）续写段落，按解码方式"),
    arms={
        "greedy": {"exact": True, "prompts": "open, everyday"},
        "greedy, may end": {"ends": True},
        **{f"beam {n}": _search(kind="beam", beams=n) for n in (2, 4, 8)},
        "diverse beam 4": _search(kind="beam", beams=4, groups=4, diversity_penalty=1.0),
        "contrastive": {**_search(kind="contrastive", penalty_alpha=0.6, top_k=4), "prompts": "few"},
        **{f"T = {t:g}": _sampled(temperature=t) for t in (0.5, 0.7, 1.3, 1.5)},
        "T = 1": _sampled(temperature=1.0) | {"exact": True, "prompts": "open, everyday"},
        "top-k 40": _sampled(top_k=40),
        "top-p 0.9": _sampled(top_p=0.9),
        "typical 0.9": _sampled(typical_p=0.9),
        "min-p 0.1": _sampled(min_p=0.1),
        **{f"repetition {p:g}": _greedy(repetition_penalty=p) for p in (1.05, 1.1, 1.2, 1.3)},
        **{f"presence {p:g}": _greedy(presence_penalty=p) for p in (0.5, 1.0)},
        **{f"frequency {p:g}": _greedy(frequency_penalty=p) for p in (0.5, 1.0)},
        **{f"no repeated {n}-gram": _greedy(no_repeat_ngram_size=n) for n in (3, 4)},
        "filter by words": {"filter": "words"},
        "filter by meaning": {"filter": "meaning"},
        "people": {"human": True, "exact": True},
        "people, filtered": {"human": True, "filter": "meaning"},
        "begun again": {"prompts": "begun again", "tokens": 48},
        "said often": {"prompts": "said often", "tokens": 48},
    },
    common={
        **{"prompts": "open", "tokens": 128, "sampling": GREEDY, "search": None, "ends": False},
        **{"filter": None, "human": False, "exact": False},
    },
    measures=MEASURES,
    run=_run,
    listed=False,
)
