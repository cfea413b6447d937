"""Question 9: when BERT, when LLaMA or ChatGLM. Who hears what and who writes; what Chinese costs an English
vocabulary; labels, work and memory measured in the race of readers, and a model chosen by them."""

from collections.abc import Mapping
from functools import cache

import torch

from llmlab.data import bundled
from llmlab.handbook.abilities import CELLS, abilities
from llmlab.handbook.choosing import KINDS, MEASURES, PARALLEL, choose
from llmlab.handbook.label_tasks import LABELS
from llmlab.handbook.published import TABLE, published
from llmlab.handbook.question import Check, Claim, Figures, Question, Text, Verdict
from llmlab.handbook.raced import Told
from llmlab.stages import Session
from llmlab.tokenization.tokenizer import Tokenizer
from llmlab.tokenization.train import BPE, train_tokenizer

TRIED = ("BERT", "LLaMA", "ChatGLM-6B", "ChatGLM2")
VOCABULARY = 2048
DEARER = 2.0  # times as many tokens for the same content
CHEAPER = 10.0  # times less work a text


@cache
def _english() -> Tokenizer:
    """A byte-level vocabulary made of English alone."""
    text = bundled.path("moby_dick").read_text(encoding="utf-8")
    pieces = (text[start : start + 4000] for start in range(0, len(text), 4000))
    return train_tokenizer(BPE(vocab_size=VOCABULARY), pieces)


def _abilities(seed: int) -> Figures:
    out: Figures = {}
    for row in TABLE:
        if row.name in TRIED:
            cells, _ = abilities(published(row, seed))
            out |= {f"{row.name}: {cell}": value for cell, value in zip(CELLS, cells, strict=True)}
    return out


def _tokens() -> Figures:
    """The same sentences in both languages under an English vocabulary."""
    tokenizer = _english()
    tokens = [[tokenizer.encode(said[side]) for said in PARALLEL] for side in (0, 1)]
    characters = [sum(len(said[side]) for said in PARALLEL) for side in (0, 1)]
    counts = [sum(map(len, rows)) for rows in tokens]
    back = [tokenizer.decode(ids) for ids in tokens[1]]
    return {
        "english_per_character": counts[0] / characters[0],
        "chinese_per_character": counts[1] / characters[1],
        "chinese_over_english": counts[1] / counts[0],
        "chinese_lost": float(sum(text != said[1] for text, said in zip(back, PARALLEL, strict=True))),
    }


@torch.no_grad()
def figures(session: Session) -> Figures:
    return _abilities(session.seed) | _tokens()


# ---------------------------------------------------------------- trained


def raced(told: Mapping[str, Told]) -> Figures:
    race = told["readers"]
    out = {
        f"{kind}: {measure}": race.mean(kind, measure)
        for kind in KINDS
        for measure in MEASURES
        if race.fails(kind, measure) is None
    }
    for name, counts in LABELS.items():
        for count in counts:
            measure = f"{name} tuned@{count}"
            out |= race.bounds(f"encoder_lead_{name}_{count}", "encoder", "decoder", measure)
    pretrained = race.difference("encoder", "untrained", "entities tuned@1000")
    english, chinese = out["smollm2: english tokens"], out["smollm2: chinese tokens"]
    return {
        **out,
        **race.bounds("encoder_lead_first", "encoder", "decoder", "first names tuned@1000"),
        **race.bounds("labels_worth", "minilm", "smollm2", "topics probe@100", "topics zero-shot"),
        "pretraining_worth_lower": pretrained.low,
        "work_ratio": out["smollm2: prompt megaflops"] / out["minilm: megaflops"],
        "memory_ratio": out["smollm2: megabytes"] / out["minilm: megabytes"],
        "smollm2_chinese_over_english": chinese / english,
    }


def _chosen(f: Mapping[str, float]) -> Text:
    """The rows that `choose` answers for three needs."""
    needs = [
        (choose(f, "entities", 1000), "1000 labelled names", "1000 个带标签的名字"),
        (choose(f, "topics", 100), "100 labelled topics", "100 条带标签的话题"),
        (choose(f, "topics", 100, 10.0), "100 labelled topics within 10 MFLOP", "100 条带标签的话题且不超过 10 MFLOP"),
        (choose(f, "topics", 0), "topics without labels", "话题而无标签"),
    ]
    rows = [f"{one.model}, {one.how}, {one.accuracy:.0%}, {one.megaflops:.3g} MFLOP" for one, _, _ in needs]
    en = "; ".join(f"{need}: {row}" for row, (_, need, _) in zip(rows, needs, strict=True))
    zh = "；".join(f"{need}：{row}" for row, (_, _, need) in zip(rows, needs, strict=True))
    return Text(f"Chosen by these rows: {en}.", f"据此选出：{zh}。")


def evidence(f: Mapping[str, float]) -> Text:
    en = (
        f"Tried: BERT hears both sides of a token ({f['BERT: fill']:.0f}) and goes on with a text "
        f"({f['BERT: generate']:.0f}); LLaMA {f['LLaMA: fill']:.0f} and {f['LLaMA: generate']:.0f}; ChatGLM-6B "
        f"{f['ChatGLM-6B: fill']:.0f} and {f['ChatGLM-6B: generate']:.0f}; ChatGLM2 {f['ChatGLM2: fill']:.0f} and "
        f"{f['ChatGLM2: generate']:.0f}. A vocabulary made of English spells Chinese without loss "
        f"({f['chinese_lost']:.0f} of {len(PARALLEL)} sentences damaged) at {f['chinese_per_character']:.2f} tokens a "
        f"character against {f['english_per_character']:.2f}: {f['chinese_over_english']:.1f} times the tokens for the "
        f"same content."
    )
    zh = (
        f"实测（能否兼听两侧、能否续写，1 为能）：BERT {f['BERT: fill']:.0f}、{f['BERT: generate']:.0f}；LLaMA "
        f"{f['LLaMA: fill']:.0f}、{f['LLaMA: generate']:.0f}；ChatGLM-6B {f['ChatGLM-6B: fill']:.0f}、"
        f"{f['ChatGLM-6B: generate']:.0f}；ChatGLM2 {f['ChatGLM2: fill']:.0f}、{f['ChatGLM2: generate']:.0f}。纯英文训"
        f"出的词表照样能拼写中文（{len(PARALLEL)} 句中损坏 {f['chinese_lost']:.0f} 句），但每字要 "
        f"{f['chinese_per_character']:.2f} 个词元，英文每字符 {f['english_per_character']:.2f} 个：同样内容费 "
        f"{f['chinese_over_english']:.1f} 倍。"
    )
    if "work_ratio" in f:
        chosen = _chosen(f)

        def m(measure: str) -> str:
            return f"{f[measure]:.0%}"

        rows = {count: [f[f"{kind}: entities tuned@{count}"] for kind in KINDS[:2]] for count in LABELS["entities"]}
        told = ", ".join(f"{e:.0%} : {d:.0%} ({count})" for count, (e, d) in rows.items())
        told_zh = "，".join(f"{e:.0%} : {d:.0%}（{count}）" for count, (e, d) in rows.items())
        en += (
            f" Trained here alike, encoder : decoder, kinds of names told (labels): {told}; of names that only what "
            f"follows tells, {m('encoder: first names tuned@1000')} : {m('decoder: first names tuned@1000')}. Topics "
            f"with 100 labels: {m('encoder: topics tuned@100')} : {m('decoder: topics tuned@100')}; a line on MiniLM's "
            f"vectors {m('minilm: topics probe@100')}, on SmolLM2's {m('smollm2: topics probe@100')}; SmolLM2 asked "
            f"without examples {m('smollm2: topics zero-shot')}, with six {m('smollm2: topics few-shot')}, for "
            f"{f['work_ratio']:.0f} times MiniLM's work a text ({f['smollm2: prompt milliseconds']:.0f} against "
            f"{f['minilm: milliseconds']:.0f} ms on a busy machine, {f['smollm2: megabytes']:.0f} against "
            f"{f['minilm: megabytes']:.0f} MB). SmolLM2's vocabulary takes {f['smollm2_chinese_over_english']:.1f} "
            f"times the tokens for Chinese. {chosen.en}"
        )
        zh += (
            f"此处同样训练的编码器与解码器，判断名字类别的正确率（标签数）：{told_zh}；其中只能凭后文判断的名字："
            f"{m('encoder: first names tuned@1000')} : {m('decoder: first names tuned@1000')}。100 个标签分话题："
            f"{m('encoder: topics tuned@100')} : {m('decoder: topics tuned@100')}；MiniLM 向量上的线性分类 "
            f"{m('minilm: topics probe@100')}，SmolLM2 的 {m('smollm2: topics probe@100')}；直接问 SmolLM2，无示例 "
            f"{m('smollm2: topics zero-shot')}，六例 {m('smollm2: topics few-shot')}，每条计算量是 MiniLM 的 "
            f"{f['work_ratio']:.0f} 倍（机器繁忙时 {f['smollm2: prompt milliseconds']:.0f} 对 "
            f"{f['minilm: milliseconds']:.0f} 毫秒，{f['smollm2: megabytes']:.0f} 对 {f['minilm: megabytes']:.0f} M"
            f"B）。SmolLM2 的词表写中文费 {f['smollm2_chinese_over_english']:.1f} 倍词元。{chosen.zh}"
        )
    return Text(en, zh)


QUESTION = Question(
    number=9,
    tier="seconds",
    claim=Text(
        "BERT, an encoder, for understanding (classes, entities, similarity), if the task is general and needs no "
        "domain's knowledge or style. LLaMA (7B to 65B, up to 1.4T tokens), a decoder that the text calls Bert, "
        "trained on languages of the Latin family and no Chinese, Japanese or Korean: for English text. ChatGLM, a "
        "prefix decoder, for dialogue in Chinese and English. Mind data, compute and tuning; try before deciding.",
        "BERT 是编码器，做理解类任务（分类、实体、相似度），前提是任务通用、不靠领域知识与文风。LLaMA（7B 至 65B，至多 "
        "1.4T 词元）是解码器，原文却误称其为 Bert；语料属拉丁语系，没有中日韩文，故用来写英文。ChatGLM 是前缀解码器，"
        "用于中英对话。还要看数据、算力与微调流程；先试再定。",
    ),
    correction=Text(
        "LLaMA is the decoder; BERT is the encoder. What decides is reading against writing, how many labels there "
        "are, and what a text may cost; an encoder serves a domain as well (BioBERT, FinBERT, LegalBERT). Where what "
        "follows tells, tagging a token needs an encoder. LLaMA's data are English web text and 20 languages in Latin "
        "or Cyrillic script; its bytes spell Chinese all the same, at several times the tokens. Prefix attention is "
        "ChatGLM-6B's; ChatGLM2 and 3 are plainly causal.",
        "LLaMA 才是解码器，BERT 是编码器。取舍的依据是要读还是要写、有多少标签、每条文本花得起多少；编码器同样可用于"
        "专门领域（BioBERT、FinBERT、LegalBERT）。若线索在后文，逐词标注就得用编码器。LLaMA 的语料是英文网页，外加 20 "
        "种用拉丁或西里尔字母书写的语言；按字节照样能拼出中文，只是词元要多出几倍。前缀式注意力属于 ChatGLM-6B；ChatGLM"
        "2、3 就是普通的因果式。",
    ),
    run=Text(
        "BERT, LLaMA and both generations of ChatGLM, cut small, try to go on with a text and to hear both sides of a "
        "token. The same sentences in English and Chinese under a vocabulary made of English. Trained: an encoder and "
        "a decoder of equal size on the same text, with 10, 100 and 1000 labels; MiniLM, and SmolLM2 with and without "
        "examples in its prompt; work, time and memory of each; a model chosen by these rows.",
        "BERT、LLaMA 与两代 ChatGLM（缩小尺寸）尝试续写、兼听两侧。同样的句子分中英文，用纯英文训出的词表切分。另有训"
        "练：大小相同的编码器与解码器，同样的文本，10、100、1000 个标签；MiniLM；SmolLM2，提示中带示例与不带；各自的"
        "计算量、时间、内存；再据此选出模型。",
    ),
    papers=(
        "Devlin et al. 2018, BERT, arXiv 1810.04805",
        "Touvron et al. 2023, LLaMA, arXiv 2302.13971",
        "Du et al. 2021, GLM, arXiv 2103.10360",
        "Zeng et al. 2022, GLM-130B, arXiv 2210.02414",
        "Reimers & Gurevych 2019, Sentence-BERT, arXiv 1908.10084",
        "Lee et al. 2019, BioBERT, arXiv 1901.08746",
        "Wettig et al. 2022, Should You Mask 15%, arXiv 2202.08005",
    ),
    errors={"E9.1": "W", "E9.2": "I", "E9.3": "M", "E9.4": "M", "E9.5": "I", "E9.6": "I", "E9.7": "M"},
    claims=(
        Claim(
            "read or write",
            "BERT is for understanding, LLaMA and ChatGLM for generating",
            "BERT 长于理解，LLaMA 与 ChatGLM 长于生成",
            (
                Check("BERT: fill", "==", 1.0, "BERT hears both sides of a token", "BERT 兼听两侧"),
                Check("BERT: embed", "==", 1.0, "BERT gives vectors", "BERT 给出向量"),
                Check("LLaMA: generate", "==", 1.0, "LLaMA goes on with a text", "LLaMA 能续写"),
                Check("ChatGLM-6B: generate", "==", 1.0, "ChatGLM-6B the same", "ChatGLM-6B 同上"),
                Check("ChatGLM-6B: fill", "==", 1.0, "its prefix hears both sides", "其前缀兼听两侧"),
            ),
        ),
        Claim(
            "which is the decoder",
            "the decoder is Bert",
            "那个解码器是 Bert",
            (
                Check("BERT: generate", "==", 0.0, "BERT goes on with a text", "BERT 能续写"),
                Check("LLaMA: fill", "==", 0.0, "LLaMA hears what follows a token", "LLaMA 能听到后文"),
                Check("LLaMA: seq2seq", "==", 0.0, "LLaMA has an encoder beside", "LLaMA 另有编码器"),
            ),
            Verdict.CORRECTED,
            errors=("E9.1",),
        ),
        Claim(
            "languages",
            "made for Latin languages, it has no Chinese",
            "为拉丁语系而造，故不含中文",
            (
                Check("chinese_lost", "==", 0.0, "Chinese sentences that come back damaged", "还原后有损的中文句子"),
                Check(
                    "chinese_over_english",
                    ">",
                    DEARER,
                    "tokens of the same content, Chinese over English",
                    "同样内容的词元数，中文比英文",
                ),
            ),
            Verdict.CORRECTED,
            errors=("E9.3",),
        ),
        Claim(
            "an encoder reads better",
            "labels on words of a text are an encoder's work",
            "给文中词语贴标签，宜用编码器",
            (
                Check(
                    "encoder_lead_entities_1000_lower",
                    ">",
                    0.0,
                    "names told, 1000 labels: encoder minus decoder, 95 % bound",
                    "判断名字，1000 个标签：编码器减解码器，95% 下界",
                ),
                Check(
                    "encoder_lead_first_lower",
                    ">",
                    0.0,
                    "the same of names that only what follows tells",
                    "只能凭后文判断的名字：同上",
                ),
                Check(
                    "pretraining_worth_lower",
                    ">",
                    0.0,
                    "pretrained minus not, 95 % bound",
                    "预训练减未预训练，95% 下界",
                ),
            ),
            race="readers",
        ),
        Claim(
            "what decides",
            "BERT where no domain's knowledge or style is needed",
            "不涉及领域知识与文风时选 BERT",
            (
                Check(
                    "labels_worth_lower",
                    ">",
                    0.0,
                    "topics: an encoder's vectors with 100 labels minus a prompted decoder without, 95 % bound",
                    "话题：编码器向量配 100 个标签，减无示例提示的解码器，95% 下界",
                ),
                Check(
                    "work_ratio",
                    ">",
                    CHEAPER,
                    "work a text, prompting over encoding",
                    "每条的计算量，提示比编码",
                ),
            ),
            Verdict.CORRECTED,
            errors=("E9.4",),
            race="readers",
        ),
        Claim(
            "all ChatGLM",
            "ChatGLM is a prefix decoder",
            "ChatGLM 是前缀解码器",
            (
                Check("ChatGLM2: fill", "==", 0.0, "ChatGLM2: a prompt hears what follows", "ChatGLM2：提示能听到后文"),
                Check("ChatGLM2: generate", "==", 1.0, "ChatGLM2 goes on with a text", "ChatGLM2 能续写"),
            ),
            Verdict.CORRECTED,
            kind="aside",
            errors=("E9.6",),
        ),
    ),
    figures=figures,
    evidence=evidence,
    races=("readers",),
    raced=raced,
    on_paper={
        "E9.2": Text(
            "1.4T tokens are those of the 33B and 65B models; 7B and 13B saw 1.0T (Touvron et al. 2023, table 2).",
            "1.4T 词元只适用于 33B 与 65B；7B 与 13B 看过 1.0T（Touvron 等 2023，表 2）。",
        ),
        "E9.5": Text(
            "Vectors of BERT as pretrained are poor at similarity, below averaged GloVe vectors; what makes them good "
            "is tuning on pairs of sentences (Reimers & Gurevych 2019). MiniLM, measured above, was so tuned.",
            "BERT 预训练后的原始向量做相似度很差，还不如 GloVe 词向量的平均；须用句对微调（Reimers 与 Gurevych 2019）。"
            "上面测的 MiniLM 就经过这种微调。",
        ),
        "E9.7": Text(
            "A slip of the pen: where the training corpus is meant, the handbook writes the word for an expectation.",
            "笔误：手册把训练所用的“语料”写成了“预料”。",
        ),
    },
    uses=(
        "llmlab/model/masks.py",
        "llmlab/model/transformer.py",
        "llmlab/inference/engine.py",
        "llmlab/objectives/hiding.py",
        "llmlab/tokenization/train.py",
    ),
    settings={"tried": list(TRIED), "vocabulary": VOCABULARY, "sentences": len(PARALLEL)},
)
