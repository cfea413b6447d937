"""Question 7: how to mitigate the repeater. Sampling, temperature and filtering do; no width of beam does, and most of
what is used today is not named, nor is any price."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from llmlab.handbook import exact_repeats, planted
from llmlab.handbook.loop_figures import BEAMS, BENCH, OMITTED, TEMPERATURES, least, means, table
from llmlab.handbook.question import Check, Claim, Figures, Question, Table, Text, Verdict
from llmlab.handbook.raced import Told
from llmlab.inference.postfilter import PostFilter
from llmlab.stages import Session

ABOVE_PEOPLE = 0.2  # rep-4 of beams: what the specification asks for
FALL = 0.1  # rep-4 by which drawing and filtering must lower that of greedy
NATS = 0.5  # a token, that a hot text is less likely than people's, and a greedy one likelier
ROUNDING = 1e-12  # of double precision
FAMILIES = (
    *("greedy", *BEAMS, "diverse beam 4", "contrastive", "top-k 40", "top-p 0.9", "typical 0.9", "min-p 0.1"),
    *("repetition 1.05", "repetition 1.1", "repetition 1.2", "repetition 1.3", "presence 0.5", "presence 1"),
    *("frequency 0.5", "frequency 1", "no repeated 3-gram", "no repeated 4-gram"),
    *("filter by words", "filter by meaning", "people", "people, filtered"),
)


def figures(session: Session) -> Figures:
    seed = session.seed
    return {
        **exact_repeats.penalised(seed),
        **exact_repeats.blocked(seed),
        **planted.queue(seed),
        **planted.filtered(seed),
    }


def raced(told: Mapping[str, Told]) -> Figures:
    race = told[BENCH]
    cooler = [race.mean(arm, "rep_4") for arm in ("greedy", *TEMPERATURES)]
    omitted = [("greedy", arm, "rep_4_few" if arm == "contrastive" else "rep_4") for arm in OMITTED]
    return {
        **means(race),
        **race.bounds("greedy_minus_drawn", "greedy", "T = 1", "rep_4"),
        **race.bounds("cold_minus_hot", "T = 0.5", "T = 1.5", "rep_4"),
        "largest_rise": max(hot - cold for cold, hot in pairwise(cooler)),
        **race.bounds("hot_price", "T = 1.5", "people", "nats"),
        **race.bounds("greedy_price", "greedy", "people", "nats"),
        **race.bounds("beam_8_minus_people", "beam 8", "people", "rep_4"),
        **race.bounds("beam_8_minus_greedy", "beam 8", "greedy", "rep_4"),
        "beams_least_lower": least(race, [(arm, "people", "rep_4") for arm in BEAMS]),
        **race.bounds("beams_alike", "beam 4", "diverse beam 4", "alike"),
        **race.bounds("diverse_minus_people", "diverse beam 4", "people", "rep_4"),
        **race.bounds("by_filter", "greedy", "filter by words", "rep_4"),
        "omitted_least_lower": least(race, omitted),
        "blocked_rep_3": max(race.values("no repeated 3-gram", "rep_3")),
        "blocked_rep_4": max(race.values("no repeated 4-gram", "rep_4")),
    }


def evidence(f: Mapping[str, float]) -> Text:
    en = (
        f"With a rule against repeated runs rep-n is {f['blocked_rep']:.0f} for that n, without it at least "
        f"{f['free_rep']:.2f}. The penalty divides positive and multiplies negative logits (gap "
        f"{f['penalty_gap']:.0e}); as printed in its paper it would raise a repeat of negative logit, by "
        f"{f['printed_least_reward']:.3f} at least. Of {planted.TEXTS} planted loops the queue has "
        f"{f['queue_recall']:.0%} at a precision of {f['queue_precision']:.0%}, of loops that count their copies "
        f"{f['queue_recall_near']:.0%}, the watch alone {f['watch_recall_near']:.0%} of those. The filter by words "
        f"finds {f['filter_exact_worst']:.0%} of planted sentences, {f['filter_near_worst']:.0%} with one word "
        f"changed, and takes {f['filter_taken_worst']:.1%} of what people wrote (the worse of two books)."
    )
    zh = (
        f"禁止重复 n 元组时，相应的 rep-n 为 {f['blocked_rep']:.0f}，不禁止则至少 {f['free_rep']:.2f}。惩罚对正的 "
        f"logit 相除、对负的相乘（误差 {f['penalty_gap']:.0e}）；若照论文所印的公式，logit 为负的重复反而升高，至少 "
        f"{f['printed_least_reward']:.3f}。埋入的 {planted.TEXTS} 处循环，复核队列收到 {f['queue_recall']:.0%}，精确率 "
        f"{f['queue_precision']:.0%}；逐遍编号的循环收到 {f['queue_recall_near']:.0%}，单靠循环监视则为 "
        f"{f['watch_recall_near']:.0%}。按用词的过滤找到埋入句子的 {f['filter_exact_worst']:.0%}，改动一个词的 "
        f"{f['filter_near_worst']:.0%}，误删人写句子 {f['filter_taken_worst']:.1%}（两本书中较差者）。"
    )
    if "rep_4 greedy" not in f:
        return Text(en, zh)
    en += (
        f" SmolLM2 (4-bit weights), rep-4: greedy {f['rep_4 greedy']:.2f}, people {f['rep_4 people']:.3f}; beams of 2, "
        f"4, 8 {f['rep_4 beam 2']:.2f}, {f['rep_4 beam 4']:.2f}, {f['rep_4 beam 8']:.2f}, beam 8 minus greedy "
        f"{f['beam_8_minus_greedy']:+.2f} (95 %: {f['beam_8_minus_greedy_lower']:+.2f} to "
        f"{f['beam_8_minus_greedy_upper']:+.2f}); the four texts of four beams have a self-BLEU of "
        f"{f['alike beam 4']:.2f}, of four groups {f['alike diverse beam 4']:.2f}, whose best text has a rep-4 of "
        f"{f['rep_4 diverse beam 4']:.2f}. From T = 0.5 to 1.5 rep-4 goes from {f['rep_4 T = 0.5']:.3f} to "
        f"{f['rep_4 T = 1.5']:.3f} and nats from {f['nats T = 0.5']:.2f} to {f['nats T = 1.5']:.2f}, people's being "
        f"{f['nats people']:.2f}, greedy's {f['nats greedy']:.2f}. The filter brings greedy to "
        f"{f['rep_4 filter by words']:.2f} and leaves {f['kept filter by words']:.0%} of its tokens; with MiniLM "
        f"{f['rep_4 filter by meaning']:.2f} and {f['kept filter by meaning']:.0%}, of people's text "
        f"{f['kept people, filtered']:.1%}. Scored in fp32 the texts of greedy, T = 1 and people move by "
        f"{f['fp32_gap greedy']:+.3f}, {f['fp32_gap T = 1']:+.3f} and {f['fp32_gap people']:+.3f} nats."
    )
    zh += (
        f"SmolLM2（4 位权重）的 rep-4：贪心 {f['rep_4 greedy']:.2f}，人写 {f['rep_4 people']:.3f}；束宽 2、4、8 为 "
        f"{f['rep_4 beam 2']:.2f}、{f['rep_4 beam 4']:.2f}、{f['rep_4 beam 8']:.2f}，束宽 8 减贪心 "
        f"{f['beam_8_minus_greedy']:+.2f}（95% 区间 {f['beam_8_minus_greedy_lower']:+.2f} 至 "
        f"{f['beam_8_minus_greedy_upper']:+.2f}）；束宽 4 的四条文本之间 self-BLEU 为 "
        f"{f['alike beam 4']:.2f}，分成四组为 "
        f"{f['alike diverse beam 4']:.2f}，其最佳文本的 rep-4 却有 {f['rep_4 diverse beam 4']:.2f}。"
        f"T 由 0.5 升到 1.5，rep-4 从 {f['rep_4 T = 0.5']:.3f} 变为 "
        f"{f['rep_4 T = 1.5']:.3f}，每词元奈特从 {f['nats T = 0.5']:.2f} 变为 {f['nats T = 1.5']:.2f}；人写 "
        f"{f['nats people']:.2f}，贪心 {f['nats greedy']:.2f}。按用词过滤使贪心降到 {f['rep_4 filter by words']:.2f}，"
        f"留下 {f['kept filter by words']:.0%} 的词元；加上 MiniLM 为 {f['rep_4 filter by meaning']:.2f} 与 "
        f"{f['kept filter by meaning']:.0%}，人写文本留下 {f['kept people, filtered']:.1%}。改用 fp32 打分，贪心、"
        f"T = 1 与人写文本变动 {f['fp32_gap greedy']:+.3f}、{f['fp32_gap T = 1']:+.3f}、"
        f"{f['fp32_gap people']:+.3f} 奈特。"
    )
    return Text(en, zh)


def tables(f: Mapping[str, float]) -> Sequence[Table]:
    if "rep_4 greedy" not in f:
        return ()
    measures = ("rep_4", "looping", "before_loop", "distinct_2", "self_bleu", "nats", "mauve")
    heat = Text(
        "What temperature trades: repetition against likelihood (people's text in the last row)",
        "温度的取舍：重复与似然（末行为人写文本）",
    )
    rest = Text(
        "The other decoders; penalties, rules and filters act on greedy, sampling is at T = 1",
        "其余解码方式；惩罚、规则与过滤作用于贪心，采样均取 T = 1",
    )
    return (
        table(f, heat, ("greedy", *TEMPERATURES, "people"), measures),
        table(f, rest, FAMILIES, (*measures, "kept")),
    )


QUESTION = Question(
    number=7,
    tier="formula",
    claim=Text(
        "Varied training data; noise when generating, such as sampling; a higher temperature; tuning beam size and "
        "search width for more variety; filtering repeats afterwards by similarity or rules; people who look at what "
        "matters.",
        "训练数据多样化；生成时加噪声，如采样；升高温度；调束的大小与搜索的宽度，以求多样；事后用相似度或规则滤掉重复；"
        "要紧之处由人把关。",
    ),
    correction=Text(
        "Sampling, temperature and filtering work, each at a price that has to be named: hot text is unlikely text, "
        "and a filter only makes it shorter and sees no loop within one sentence. "
        "Size and width of a beam are one knob, and no width comes near people's "
        "text: against greedy its sign is disputed (Welleck 2020 up, Holtzman 2020 down). Groups of beams "
        "that keep apart (Vijayakumar 2016) are less like one another; each may loop as before. "
        "Missing are top-k, top-p, typical and min-p sampling, "
        "repetition, presence and frequency penalties, no-repeat-n-gram, contrastive search, and training against "
        "repeats (unlikelihood, DITTO). What varied data do is for question 6.",
        "采样、升温和过滤都有效，但各有代价，须说明白：温度高则文本离谱，过滤只是把文本删短，且看不见单句之内的循环。束的大小与宽度是同一个旋钮，"
        "而且没有哪个宽度接近人写文本；与贪心相比是升是降，文献不一（Welleck 2020 升，Holtzman 2020 降）。彼此避"
        "开的分组束搜索（Vijayakumar 2016）使各条文本少些雷同，每一条仍可能打转。"
        "漏掉的有：top-k、top-p、典型与 min-p 采样，重复、出现与频率惩罚，"
        "禁止重复 n 元组，对比搜索，以及针对重复的训练（unlikelihood、DITTO）。数据多样化的作用见第 6 问。",
    ),
    run=Text(
        "Exact checks of the penalty and of the rule against repeated runs; loops and sentences planted in two books, "
        "to be found by the queue for a person and by the filter. SmolLM2 after 30 passages, 128 tokens, two dozen "
        "ways, five seeds; scored by the model itself, and by how its pieces lie among people's (MAUVE, light: "
        "MiniLM, 24 pieces a seed).",
        "精确检验惩罚与禁止重复的规则；在两本书里埋入循环和句子，看复核队列与过滤能否找到。SmolLM2 续写 30 个段落各 "
        "128 个词元，二十余种方式，五个种子；用模型自身打分，并看片段与人写片段的分布（简版 MAUVE：MiniLM，每种子 24 "
        "段）。",
    ),
    papers=(
        "Holtzman et al. 2020, The Curious Case of Neural Text Degeneration, arXiv 1904.09751",
        "Welleck et al. 2020, Neural Text Generation with Unlikelihood Training, arXiv 1908.04319",
        "Vijayakumar et al. 2016, Diverse Beam Search, arXiv 1610.02424",
        "Keskar et al. 2019, CTRL, arXiv 1909.05858",
        "Paulus, Xiong & Socher 2017, A Deep Reinforced Model for Abstractive Summarization, arXiv 1705.04304",
        "Meister et al. 2022, Locally Typical Sampling, arXiv 2202.00666",
        "Su et al. 2022, A Contrastive Framework for Neural Text Generation, arXiv 2202.06417",
        "Xu et al. 2022, Learning to Break the Loop, arXiv 2206.02369",
        "Pillutla et al. 2021, MAUVE, arXiv 2102.01454",
    ),
    errors={"E7.1": "M", "E7.2": "I", "E7.3": "I"},
    claims=(
        Claim(
            "noise, trained",
            "drawing tokens instead of taking the likeliest reduces repetition",
            "以采样代替取最可能者，可减少重复",
            (
                Check(
                    "greedy_minus_drawn_lower",
                    ">",
                    FALL,
                    "rep-4, greedy minus drawn at T = 1, 95 % bound",
                    "rep-4，贪心减 T = 1 采样，95% 下界",
                ),
            ),
            race=BENCH,
        ),
        Claim(
            "temperature, trained",
            "a higher temperature, fewer repetitions",
            "温度越高，重复越少",
            (
                Check(
                    "cold_minus_hot_lower",
                    ">",
                    0.0,
                    "rep-4, T = 0.5 minus T = 1.5, 95 % bound",
                    "rep-4，T = 0.5 减 T = 1.5，95% 下界",
                ),
                Check(
                    "largest_rise",
                    "<",
                    0.02,
                    "rep-4: largest rise from one temperature to the next",
                    "rep-4：相邻两档温度间的最大升幅",
                ),
            ),
            race=BENCH,
        ),
        Claim(
            "price, trained",
            "temperature reduces repetition (with no word on a price)",
            "升温可减少重复（未提代价）",
            (
                Check(
                    "hot_price_lower",
                    ">",
                    NATS,
                    "nats a token, T = 1.5 minus people, 95 % bound",
                    "每词元奈特，T = 1.5 减人写，95% 下界",
                ),
                Check(
                    "greedy_price_upper",
                    "<",
                    -NATS,
                    "nats a token, greedy minus people, 95 % bound",
                    "每词元奈特，贪心减人写，95% 上界",
                ),
            ),
            Verdict.CORRECTED,
            errors=("E7.3",),
            race=BENCH,
        ),
        Claim(
            "beams, trained",
            "beam size and width, well set, bring variety",
            "调好束的大小与宽度，就能多样",
            (
                Check(
                    "beam_8_minus_people_lower",
                    ">",
                    ABOVE_PEOPLE,
                    "rep-4, beam 8 minus people, 95 % bound",
                    "rep-4，束宽 8 减人写，95% 下界",
                ),
                Check(
                    "beams_least_lower",
                    ">",
                    ABOVE_PEOPLE,
                    "rep-4, the best width minus people, 95 % bound",
                    "rep-4，最好的束宽减人写，95% 下界",
                ),
            ),
            Verdict.CORRECTED,
            errors=("E7.1",),
            race=BENCH,
        ),
        Claim(
            "groups, trained",
            "one kind of beam search is meant",
            "所指的束搜索只有一种",
            (
                Check(
                    "beams_alike_lower",
                    ">",
                    0.0,
                    "self-BLEU of the four texts, one group minus four groups, 95 % bound",
                    "四条文本间的 self-BLEU，一组减四组，95% 下界",
                ),
            ),
            Verdict.CORRECTED,
            kind="aside",
            errors=("E7.1",),
            race=BENCH,
        ),
        Claim(
            "filter",
            "rules can find repeats afterwards and take them out",
            "事后可用规则找出并去掉重复",
            (
                Check("filter_exact_worst", ">=", 0.9, "planted sentences found", "埋入句子的找到率"),
                Check("filter_near_worst", ">=", 0.8, "with one word changed", "改动一个词后的找到率"),
                Check("filter_precision_worst", ">=", 0.8, "precision", "精确率"),
                Check("filter_taken_worst", "<", 0.02, "sentences of people that are taken", "误删的人写句子占比"),
            ),
        ),
        Claim(
            "filter, trained",
            "filtering takes repeats out of what a model says",
            "过滤能去掉模型话里的重复",
            (
                Check(
                    "by_filter_lower",
                    ">",
                    FALL,
                    "rep-4, greedy minus greedy filtered by words, 95 % bound",
                    "rep-4，贪心减按用词过滤后的贪心，95% 下界",
                ),
            ),
            race=BENCH,
        ),
        Claim(
            "review",
            "a person can look at what may be wrong",
            "可由人来复核",
            (
                Check("queue_recall", ">=", 0.9, "planted loops in the queue", "循环进入队列的比率"),
                Check("queue_precision", ">=", 0.9, "precision", "精确率"),
            ),
        ),
        Claim(
            "omitted, trained",
            "these are the remedies",
            "办法就是这些",
            (
                Check(
                    "omitted_least_lower",
                    ">",
                    0.0,
                    "rep-4, greedy minus each remedy left out, the least, 95 % bound",
                    "rep-4，贪心减各未列办法，取最小者，95% 下界",
                ),
            ),
            Verdict.CORRECTED,
            errors=("E7.2",),
            race=BENCH,
        ),
        Claim(
            "formulas",
            "penalty and rule do what their formulas say",
            "惩罚与规则名副其实",
            (
                Check("blocked_rep", "==", 0.0, "rep-n under the rule for that n", "禁止重复 n 元组时的 rep-n"),
                Check("free_rep", ">", 0.0, "without it", "不禁止时"),
                Check("penalty_gap", "<", ROUNDING, "penalty against the rule by sign", "惩罚与按符号写出的规则之差"),
                Check("ours_largest_change", "<", 0.0, "ours: largest change of a repeat", "本库：重复者的最大变动"),
                Check(
                    "printed_least_reward",
                    ">",
                    0.0,
                    "as printed: smallest rise of a repeat of negative logit",
                    "照印：logit 为负的重复者的最小升幅",
                ),
                Check("printed_positive_gap", "<", ROUNDING, "as printed, positive: the same", "照印，正值：两者之差"),
            ),
            kind="control",
        ),
        Claim(
            "rule, trained",
            "under the rule no run comes twice from the real model",
            "有此规则，实际模型不出现重复片段",
            (
                Check("blocked_rep_3", "==", 0.0, "rep-3, no repeated 3-gram", "rep-3，禁止重复 3 元组"),
                Check("blocked_rep_4", "==", 0.0, "rep-4, no repeated 4-gram", "rep-4，禁止重复 4 元组"),
            ),
            kind="control",
            race=BENCH,
        ),
    ),
    figures=figures,
    evidence=evidence,
    tables=tables,
    races=(BENCH,),
    raced=raced,
    uses=(
        "llmlab/inference/postfilter.py",
        "llmlab/inference/processors.py",
        "llmlab/evaluation/mauve.py",
        "llmlab/evaluation/repetition.py",
        "llmlab/handbook/exact_repeats.py",
        "llmlab/handbook/planted.py",
        "llmlab/handbook/decoder_bench.py",
        "llmlab/handbook/loop_figures.py",
        "llmlab/handbook/races/loops_by_decoder.py",
    ),
    settings={
        "planted": [planted.TEXTS, planted.WORDS, planted.LONGEST, planted.LEAST, planted.QUEUED],
        "filter": [PostFilter().model_dump(), planted.SENTENCES, planted.BLOCKS, planted.SHORT],
        "penalty": [exact_repeats.PENALTY, *exact_repeats.SIZES],
    },
)
