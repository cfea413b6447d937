"""Question 5: the repeater. Endless repetition is there as described, but it is two things, copying the prompt and
looping on what was just said, and the trigger that is left out is decoding for the likeliest text."""

from collections.abc import Mapping, Sequence

from llmlab.handbook import planted
from llmlab.handbook.loop_figures import BENCH, apart, means, table
from llmlab.handbook.question import Check, Claim, Figures, Question, Table, Text, Verdict
from llmlab.handbook.raced import Told
from llmlab.stages import Session

ABOVE_PEOPLE = 0.2  # rep-4, in all: what the specification asks for
APART = 0.2  # of two measures that would be one if there were one phenomenon
LIKE_PEOPLE = 0.05  # of a text's tokens


def figures(session: Session) -> Figures:
    return planted.detected(session.seed)


def raced(told: Mapping[str, Told]) -> Figures:
    race = told[BENCH]

    def eased(arm: str) -> list[float]:
        """By how much the end of an answer is likelier than its beginning, in nats a token."""
        ends = zip(race.values(arm, "nats_first"), race.values(arm, "nats_last"), strict=True)
        return [first - last for first, last in ends]

    return {
        **means(race),
        **race.bounds("greedy_minus_people", "greedy", "people", "rep_4"),
        **race.bounds("greedy_minus_drawn", "greedy", "T = 1", "rep_4"),
        **race.bounds("everyday", "greedy", "T = 1", "rep_4_everyday"),
        **race.bounds("looped_not_copied", "greedy", "greedy", "rep_4", "copied"),
        **race.bounds("copied_not_looped", "begun again", "begun again", "copied", "rep_4"),
        **race.bounds("drawn_copied", "T = 1", "people", "copied"),
        **apart("eased", eased("greedy"), eased("people")),
        **race.bounds("end_suppressed", "greedy", "greedy, may end", "rep_4"),
        **race.bounds("by_noise", "T = 0.7", "T = 1.3", "rep_4"),
        **race.bounds("by_filter", "greedy", "filter by words", "rep_4"),
    }


def evidence(f: Mapping[str, float]) -> Text:
    en = (
        f"Planted in passages of people, {planted.TEXTS - f['loops_missed']:.0f} of {planted.TEXTS} loops are found, "
        f"start and period to {f['loop_gap']:.0f} words; of the passages themselves {f['people_looping']:.0%} loop. An "
        f"answer that is its prompt again has {f['copy_copied']:.0%} of its words from it and a rep-4 of "
        f"{f['copy_rep_4']:.3f}; one that loops on other words {f['loop_copied']:.0%} and {f['loop_rep_4']:.2f}."
    )
    zh = (
        f"在人写的段落里埋入循环，{planted.TEXTS} 处找到 {planted.TEXTS - f['loops_missed']:.0f} 处，起点与周期误差至多"
        f" {f['loop_gap']:.0f} 个词；段落本身有 {f['people_looping']:.0%} 被判为循环。回答若是照抄提示，"
        f"{f['copy_copied']:.0%} 的词出自提示，rep-4 为 {f['copy_rep_4']:.3f}；若是用别的词打转，则分别为 "
        f"{f['loop_copied']:.0%} 与 {f['loop_rep_4']:.2f}。"
    )
    if "rep_4 greedy" not in f:
        return Text(en, zh)
    en += (
        f" SmolLM2 (4-bit weights) after passages of a book, 128 tokens without an end: greedy has a rep-4 of "
        f"{f['rep_4 greedy']:.2f}, {f['looping greedy']:.0%} of its answers loop, {f['copied greedy']:.0%} of its "
        f"tokens come from the prompt; drawn at T = 1 {f['rep_4 T = 1']:.3f} and {f['copied T = 1']:.0%}; people "
        f"{f['rep_4 people']:.3f} and {f['copied people']:.0%}. Where the prompt is a passage begun again, "
        f"{f['copied begun again']:.0%} is copied at a rep-4 of {f['rep_4 begun again']:.2f}. From its first to its "
        f"last 32 tokens a greedy answer goes from {f['nats_first greedy']:.2f} to {f['nats_last greedy']:.2f} nats a "
        f"token, people's from {f['nats_first people']:.2f} to {f['nats_last people']:.2f}. Allowed to end, greedy has "
        f"{f['rep_4 greedy, may end']:.2f} in {f['tokens greedy, may end']:.0f} tokens."
    )
    zh += (
        f"SmolLM2（4 位权重）续写书中段落 128 个词元，不许结束：贪心的 rep-4 为 {f['rep_4 greedy']:.2f}，"
        f"{f['looping greedy']:.0%} 的回答陷入循环，{f['copied greedy']:.0%} 的词元出自提示；T = 1 采样为 "
        f"{f['rep_4 T = 1']:.3f} 与 {f['copied T = 1']:.0%}；人写为 {f['rep_4 people']:.3f} 与 "
        f"{f['copied people']:.0%}。提示若是重新起头的段落，则抄去 {f['copied begun again']:.0%}，rep-4 为 "
        f"{f['rep_4 begun again']:.2f}。贪心回答的前 32 个词元平均 {f['nats_first greedy']:.2f} 奈特，末 32 个 "
        f"{f['nats_last greedy']:.2f}；人写的为 {f['nats_first people']:.2f} 与 {f['nats_last people']:.2f}。允许结束时"
        f"，贪心在 {f['tokens greedy, may end']:.0f} 个词元里 rep-4 为 {f['rep_4 greedy, may end']:.2f}。"
    )
    return Text(en, zh)


def tables(f: Mapping[str, float]) -> Sequence[Table]:
    if "rep_4 greedy" not in f:
        return ()
    title = Text(
        "Two phenomena: what repeats itself and what repeats its prompt; nats a token under the model",
        "两种现象：重复自己与重复提示；每词元奈特按模型自身计",
    )
    arms = ("greedy", "greedy, may end", "T = 1", "people", "begun again", "said often")
    measures = ("rep_4", "looping", "before_loop", "period", "copied", "nats_first", "nats_last")
    return (table(f, title, arms, measures),)


QUESTION = Question(
    number=5,
    tier="formula",
    claim=Text(
        "The model copies its input without end, or says the same sentences and phrases far too often. Causes: biased "
        "data with much repeated text; training that predicts the next or the masked word, which makes output like "
        "the input; data that lack variety. Remedies: varied data, noise when generating, temperature, filtering "
        "afterwards.",
        "模型没完没了地照抄输入，或者过于频繁地说同样的话。原因：数据有偏、重复多；以预测下一个或被遮住的词为目标，使输出"
        "接近输入；数据不够多样。办法：数据多样化，生成时加噪声，调温度，事后过滤。",
    ),
    correction=Text(
        "Two phenomena with two measures: copying the prompt (share of the answer's tokens that stand in runs of the "
        "prompt), and looping on one's own output, which is what is mostly met (rep-n, a loop's start and period). "
        "Likelihood has no term that draws output towards input: what is drawn from the learnt distribution copies no "
        "more than people do. The main trigger is decoding for the likeliest text (Holtzman 2020), to which "
        "likelihood training gives too much of what repeats (Welleck 2020), and each repetition makes the next one "
        "likelier (Xu 2022). Of the data it is repetition within a document that counts (Li 2023), and that item "
        "points the right way; masked models do not write this way at all.",
        "这是两种现象，量法不同：照抄提示（回答中有多少词元落在提示的片段里），以及在自己的输出上打转，后者才是常见的（"
        "rep-n，循环的起点与周期）。最大似然里没有让输出靠近输入的项：按学到的分布采样，抄提示的程度并不高过人。首要的"
        "诱因是一味取最可能的文本（Holtzman 2020），似然训练又把过多概率给了重复（Welleck 2020），且每重复一遍，下一遍"
        "就更可能（Xu 2022）。数据方面要紧的是同一文档之内的重复（Li 2023），这一条方向不错；掩码模型根本不这样写作。",
    ),
    run=Text(
        "Our measures on passages of people in which loops were planted, and on answers that copy. SmolLM2 without "
        "chat template after 30 passages of Moby Dick and 10 everyday openings, five seeds: greedy, drawn at several "
        "temperatures, with the end of text forbidden and allowed, after passages begun again, filtered, beside how "
        "the book goes on.",
        "在埋入循环的人写段落与照抄的回答上试各项量法。不用对话模板，让 SmolLM2 续写《白鲸》的 30 个段落和 10 句日常"
        "开头，五个种子：贪心、数档温度采样、禁止与允许结束、提示为重新起头的段落、过滤，与原书下文对照。",
    ),
    papers=(
        "Holtzman et al. 2020, The Curious Case of Neural Text Degeneration, arXiv 1904.09751",
        "Welleck et al. 2020, Neural Text Generation with Unlikelihood Training, arXiv 1908.04319",
        "Xu et al. 2022, Learning to Break the Loop, arXiv 2206.02369",
        "Li et al. 2023, Repetition In Repetition Out, arXiv 2310.10226",
    ),
    errors={"E5.1": "M", "E5.2": "M", "E5.3": "I", "E5.4": "M"},
    on_paper={
        "E5.4": Text(
            "what correlates with loops is repetition within the documents of the training text, not a narrow choice "
            "of topics (Li et al. 2023); which arms show it when trained is for question 6",
            "与循环相关的是训练文档内部的重复，而非题材狭窄（Li et al. 2023）；训练实验见第 6 问",
        )
    },
    claims=(
        Claim(
            "repeats, trained",
            "the model says the same things far too often",
            "模型过于频繁地重复",
            (
                Check(
                    "greedy_minus_people_lower",
                    ">",
                    ABOVE_PEOPLE,
                    "rep-4, greedy minus people, 95 % bound",
                    "rep-4，贪心减人写，95% 下界",
                ),
            ),
            race=BENCH,
        ),
        Claim(
            "two phenomena, trained",
            "copying the input and repeating oneself are one thing",
            "照抄输入与重复自己是一回事",
            (
                Check(
                    "looped_not_copied_lower",
                    ">",
                    APART,
                    "open prompts, greedy: rep-4 minus the share from the prompt, 95 % bound",
                    "开放提示，贪心：rep-4 减出自提示的占比，95% 下界",
                ),
                Check(
                    "copied_not_looped_lower",
                    ">",
                    APART,
                    "a passage begun again: the share from the prompt minus rep-4, 95 % bound",
                    "重新起头的段落：出自提示的占比减 rep-4，95% 下界",
                ),
            ),
            Verdict.CORRECTED,
            errors=("E5.1",),
            race=BENCH,
        ),
        Claim(
            "objective, trained",
            "the training objective makes output resemble the input",
            "训练目标使输出与输入相近",
            (
                Check(
                    "drawn_copied_upper",
                    "<",
                    LIKE_PEOPLE,
                    "share from the prompt, drawn at T = 1 minus people, 95 % bound",
                    "出自提示的占比，T = 1 采样减人写，95% 上界",
                ),
            ),
            Verdict.CORRECTED,
            errors=("E5.2",),
            race=BENCH,
        ),
        Claim(
            "decoding, trained",
            "data and objective are the causes (with no word on decoding)",
            "原因在数据与训练目标（未提解码方式）",
            (
                Check(
                    "greedy_minus_drawn_lower",
                    ">",
                    ABOVE_PEOPLE,
                    "the same model: rep-4, greedy minus drawn at T = 1, 95 % bound",
                    "同一模型：rep-4，贪心减 T = 1 采样，95% 下界",
                ),
                Check(
                    "eased_lower",
                    ">",
                    0.0,
                    "nats that the last 32 tokens are likelier than the first, greedy minus people, 95 % bound",
                    "末 32 个词元比前 32 个低多少奈特，贪心减人写，95% 下界",
                ),
            ),
            Verdict.CORRECTED,
            errors=("E5.3",),
            race=BENCH,
        ),
        Claim(
            "remedies, trained",
            "noise, temperature and filtering reduce it",
            "噪声、温度与过滤能减轻",
            (
                Check(
                    "by_noise_lower",
                    ">",
                    0.0,
                    "rep-4, T = 0.7 minus T = 1.3, 95 % bound",
                    "rep-4，T = 0.7 减 T = 1.3，95% 下界",
                ),
                Check(
                    "by_filter_lower",
                    ">",
                    0.0,
                    "rep-4, greedy minus greedy filtered, 95 % bound",
                    "rep-4，贪心减过滤后的贪心，95% 下界",
                ),
            ),
            race=BENCH,
        ),
        Claim(
            "everyday, trained",
            "it is so with everyday openings too",
            "日常开头也是如此",
            (
                Check(
                    "everyday_lower",
                    ">",
                    0.0,
                    "rep-4, greedy minus drawn at T = 1, 95 % bound",
                    "rep-4，贪心减 T = 1 采样，95% 下界",
                ),
            ),
            kind="aside",
            race=BENCH,
        ),
        Claim(
            "end suppressed, trained",
            "a text that may not end repeats more",
            "不许结束的文本重复更多",
            (
                Check(
                    "end_suppressed_lower",
                    ">",
                    0.0,
                    "rep-4, greedy minus greedy that may end, 95 % bound",
                    "rep-4，贪心减允许结束的贪心，95% 下界",
                ),
            ),
            kind="aside",
            race=BENCH,
        ),
        Claim(
            "measures",
            "our measures tell copies from loops and find where loops begin",
            "本库的量法能分辨照抄与循环，并找到循环起点",
            (
                Check("loops_missed", "==", 0.0, "planted loops that are missed", "漏掉的循环数"),
                Check("loop_gap", "==", 0.0, "words by which start or period is wrong", "起点或周期误差的词数"),
                Check("people_looping", "<", 0.05, "passages of people seen as loops", "人写段落被判为循环的占比"),
                Check("copy_copied", "==", 1.0, "a copy: smallest share from the prompt", "照抄：出自提示的最小占比"),
                Check("copy_rep_4", "<", 0.02, "a copy: rep-4", "照抄：rep-4"),
                Check("loop_copied", "<", 0.02, "a loop on other words: share from the prompt", "打转：出自提示的占比"),
                Check("loop_rep_4", ">", 0.4, "a loop on other words: rep-4", "打转：rep-4"),
            ),
            kind="control",
        ),
    ),
    figures=figures,
    evidence=evidence,
    tables=tables,
    races=(BENCH,),
    raced=raced,
    uses=(
        "llmlab/evaluation/repetition.py",
        "llmlab/inference/loops.py",
        "llmlab/handbook/planted.py",
        "llmlab/handbook/openings.py",
        "llmlab/handbook/decoder_bench.py",
        "llmlab/handbook/loop_figures.py",
        "llmlab/handbook/races/loops_by_decoder.py",
    ),
    settings={"planted": [planted.TEXTS, planted.WORDS, planted.LONGEST, planted.LEAST]},
)
