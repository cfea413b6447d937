"""Question 16: setting the generation parameters. What is said of temperature, length and algorithms holds; the list is
short, and the best temperature is the task's."""

from llmlab.handbook import decoding_desk as desk
from llmlab.handbook.decoding_figures import evidence, raced, tables
from llmlab.handbook.question import Check, Claim, Figures, Question, Text, Verdict
from llmlab.stages import Session

ROUNDING = 1e-4  # of float32 logits and log-probabilities
CHANCE = 0.01  # the p-value below which a sampler does not draw from its distribution


def figures(session: Session) -> Figures:
    return desk.identities(session.seed)


QUESTION = Question(
    number=16,
    tier="formula",
    claim=Text(
        "To set: the model (an RNN, LSTM, GRU or Transformer), its weights, the decoding algorithm (greedy, beam, "
        "sampling), the temperature (higher: more random and diverse), the maximal or minimal length, and others "
        "such as prompt and batch size; tuned by experiment with human and automatic evaluation.",
        "要设定的有：模型（RNN、LSTM、GRU 或 Transformer）及其权重，解码算法（贪心、束搜索、采样），温度（越高越随机"
        "多样），长度上下限，以及提示、批大小等其余项；靠实验调参，辅以人工和自动评测。",
    ),
    correction=Text(
        "The kind of network is no decoding parameter. Temperature, length and algorithm act as said, but "
        "temperature does nothing to greedy decoding, and what matters most today is missing: top-k, top-p, min-p "
        "and typical sampling, contrastive search, repetition, presence and frequency penalties, n-gram blocking, the "
        "number of beams and their groups, when they end and their penalty for length, stop tokens and texts, new "
        "tokens against total length, logit bias, seed. They meet: top-p keeps more tokens the higher the temperature "
        "before it, top-k does not. The best temperature is the task's: about 0 where one answer is right, near 1 for "
        "a story, where training on likelihood aims.",
        "网络类型不是解码参数。温度、长度和解码算法的作用确如所说，但温度对贪心解码毫无影响；如今最要紧的几项却没有"
        "提：top-k、top-p、min-p 与典型采样，对比搜索，重复、出现与频率惩罚，n 元组屏蔽，束的数目与分组、何时停、长度惩"
        "罚，停止词元与停止串，新生成长度与总长度之分，logit 偏置，随机种子。它们还会互相影响：先升温，top-p 留下的词元"
        "就更多，top-k 则不变。最佳温度视任务而定：答案唯一时取 0 左右，写故事时接近 1，最大似然训练瞄准的正是那里。",
    ),
    run=Text(
        "Our engine on a tiny model with random weights: T towards 0 and top-k = 1 against greedy; entropy, and what "
        "top-p and top-k keep, at five temperatures; 5,000 draws against softmax by χ²; top-p = 1 against the "
        "model's own log-probabilities; lengths and stops counted; each omitted parameter switched on; seeds; a "
        "left-padded batch against single prompts; beam search on a toy vocabulary against greedy and against all "
        "texts, with penalties for length too; beams in groups against beams in one; contrastive search at α = 0 "
        "against greedy. Trained: a model that adds and one that tells stories, at seven temperatures, with top-k and "
        "with top-p.",
        "用随机权重的小模型跑本库的生成引擎：T 趋于 0、top-k = 1 与贪心对照；五档温度下的熵，top-p、top-k 所留的词元"
        "；五千次抽样与 softmax 作 χ² 检验；top-p = 1 与模型自身对数概率对照；清点长度与停止条件；逐个启用手册未列的"
        "参数；随机种子；左填充批次与单条提示对照；小词表上束搜索与贪心、与穷举对照，加长度惩罚再与穷举对照；分组束与"
        "不分组对照；α = 0 的对比搜索与贪心对照。另训练一个加法模型和一个讲故事的模型，试七档温度及 top-k、top-p。",
    ),
    papers=(
        "Holtzman et al. 2020, The Curious Case of Neural Text Degeneration, arXiv 1904.09751",
        "Fan, Lewis & Dauphin 2018, Hierarchical Neural Story Generation, arXiv 1805.04833",
        "Keskar et al. 2019, CTRL, arXiv 1909.05858",
        "Meister et al. 2022, Locally Typical Sampling, arXiv 2202.00666",
        "Vijayakumar et al. 2018, Diverse Beam Search, arXiv 1610.02424",
        "Su et al. 2022, A Contrastive Framework for Neural Text Generation, arXiv 2202.06417",
        "Nguyen et al. 2024, Turning Up the Heat: Min-p Sampling, arXiv 2407.01082",
    ),
    errors={"E16.1": "W", "E16.2": "I", "E16.3": "I"},
    on_paper={
        "E16.1": Text(
            "RNN, LSTM, GRU or Transformer: a choice made before training, not when generating",
            "选 RNN、LSTM、GRU 还是 Transformer，是训练之前的事，与解码无关",
        )
    },
    claims=(
        Claim(
            "temperature",
            "higher temperature, more randomness",
            "温度越高越随机",
            (
                Check("entropy_smallest_rise", ">", 0.0, "smallest rise of entropy, in nats", "熵的最小升幅（奈特）"),
                Check(
                    "cold_differs",
                    "==",
                    0.0,
                    "texts at T = 1e-6 that are not greedy's",
                    "T = 1e-6 时与贪心不同的文本数",
                ),
            ),
        ),
        Claim(
            "length",
            "maximal and minimal length bound the text",
            "长度上下限约束文本",
            (
                Check(
                    "limits_broken",
                    "==",
                    0.0,
                    "answers that break a limit or run past a stop",
                    "超出限制或越过停止词元的回答数",
                ),
            ),
        ),
        Claim(
            "temperature under greedy",
            "temperature steers the text (with no word on greedy)",
            "温度可调节文本（未提贪心例外）",
            (
                Check(
                    "top_k_1_differs", "==", 0.0, "greedy texts that any temperature changes", "随温度改变的贪心文本数"
                ),
                Check(
                    "argmax_moves", "==", 0.0, "likeliest tokens that any temperature moves", "随温度改变的首选词元数"
                ),
            ),
            Verdict.CORRECTED,
            errors=("E16.3",),
        ),
        Claim(
            "parameters meet",
            "each parameter acts by itself (no word on how they meet)",
            "各参数各管各的（未提互相影响）",
            (
                Check(
                    "top_p_growth",
                    ">",
                    1.0,
                    "tokens that top-p keeps, at the highest temperature over the lowest",
                    "top-p 留下的词元数，最高温度比最低温度",
                ),
                Check("top_k_growth", "==", 1.0, "the same of top-k", "top-k：同上"),
            ),
            Verdict.CORRECTED,
            kind="aside",
            errors=("E16.3",),
        ),
        Claim(
            "list",
            "these are the parameters to set",
            "要设的参数就是这些",
            (
                Check(
                    "silent_parameters",
                    "==",
                    0.0,
                    "omitted parameters that change nothing",
                    "未列参数中不起作用者的数目",
                ),
                Check(
                    "penalty_raises",
                    "<",
                    0.0,
                    "the penalty lowers negative logits too: largest change",
                    "惩罚同样压低负的 logit，其最大变化",
                ),
            ),
            Verdict.CORRECTED,
            errors=("E16.2",),
        ),
        Claim(
            "algorithms",
            "greedy takes the likeliest token, beam search minds several candidates",
            "贪心只取最可能的词元，束搜索兼顾多个候选",
            (
                Check(
                    "beam_1_differs", "==", 0.0, "one beam: texts that are not greedy's", "束宽 1 时与贪心不同的文本数"
                ),
                Check(
                    "beam_all_differs",
                    "==",
                    0.0,
                    "all beams: texts that are not the likeliest of all",
                    "束宽取全部时并非最可能的文本数",
                ),
                Check("greedy_misses", ">", 0.0, "likeliest texts that greedy misses", "贪心错过的最可能文本数"),
            ),
        ),
        Claim(
            "searches",
            "an algorithm is chosen by its name, with no settings of its own",
            "算法只凭名称选定，不设自身参数",
            (
                Check(
                    "length_falls",
                    "==",
                    0.0,
                    "a higher penalty for length: best texts that grow shorter",
                    "提高长度惩罚后反而变短的最佳文本数",
                ),
                Check(
                    "length_rises",
                    ">",
                    0.0,
                    "best texts that grow longer from the lowest to the highest, two beams",
                    "束宽 2 时由最低升到最高而变长的最佳文本数",
                ),
                Check(
                    "penalised_differs",
                    "==",
                    0.0,
                    "all beams, each penalty: texts that are not the best of all",
                    "束宽取全部、逐个惩罚值：并非全体最佳的文本数",
                ),
                Check(
                    "apart_smallest_gain",
                    ">",
                    0.0,
                    "places where two texts differ, groups minus one group: smallest of the prompts",
                    "两条文本不同位置的占比，分组减不分组，各提示中最小者",
                ),
                Check(
                    "apart_most_penalised",
                    "==",
                    1.0,
                    "the same of groups at a penalty of 100: nowhere alike",
                    "分组且惩罚为 100 时的同一占比：处处不同",
                ),
                Check(
                    "contrastive_0_differs",
                    "==",
                    0.0,
                    "contrastive search at α = 0: texts that are not greedy's",
                    "α = 0 的对比搜索与贪心不同的文本数",
                ),
            ),
            Verdict.CORRECTED,
            errors=("E16.2",),
        ),
        Claim(
            "diverse, trained",
            "higher temperature, more diverse; lower, more of a piece",
            "温度越高越多样，越低越一致",
            (
                Check(
                    "diversity_lower",
                    ">",
                    0.0,
                    "distinct runs, T = 1 minus T = 0.25, 95 % bound",
                    "不重复片段占比，T = 1 减 T = 0.25，95% 下界",
                ),
                Check(
                    "quality_lower",
                    ">",
                    0.0,
                    "words that exist, T = 0.25 minus T = 1.5, 95 % bound",
                    "真词占比，T = 0.25 减 T = 1.5，95% 下界",
                ),
            ),
            race="temperatures",
        ),
        Claim(
            "by task, trained",
            "the best setting is the task's, found by trying",
            "最佳设置视任务而定，靠实验求得",
            (
                Check(
                    "greedy_sums_lower",
                    ">",
                    0.0,
                    "sums that are right, T = 0 minus T = 1, 95 % bound",
                    "加法正确率，T = 0 减 T = 1，95% 下界",
                ),
                Check(
                    "cold_story_lower",
                    ">",
                    0.0,
                    "stories' divergence from people's, T = 0.5 minus the better of 0.8 and 1, 95 % bound",
                    "故事与人写文本的散度，T = 0.5 减 0.8 与 1 中较好者，95% 下界",
                ),
                Check(
                    "hot_story_lower",
                    ">",
                    0.0,
                    "the same of T = 1.5",
                    "T = 1.5：同上",
                ),
            ),
            race="temperatures",
        ),
        Claim(
            "top-p, trained",
            "temperature alone sets diversity",
            "多样性只靠温度调节",
            (
                Check(
                    "top_p_lower",
                    ">",
                    0.0,
                    "words that exist, top-p = 0.9 minus all tokens at T = 1, 95 % bound",
                    "真词占比，T = 1 时 top-p = 0.9 减不截断，95% 下界",
                ),
            ),
            Verdict.CORRECTED,
            errors=("E16.2",),
            race="temperatures",
        ),
        Claim(
            "engine",
            "our sampler draws from what it says",
            "本库的采样器名副其实",
            (
                Check(
                    "chi_square_p",
                    ">",
                    CHANCE,
                    "p-value of frequencies against softmax",
                    "频数与 softmax 的 χ² 检验 p 值",
                ),
                Check(
                    "top_p_1_gap",
                    "<",
                    ROUNDING,
                    "top-p = 1: distance from the model's own log-probabilities",
                    "top-p = 1 时与模型自身对数概率之差",
                ),
                Check(
                    "same_seed_differs",
                    "==",
                    0.0,
                    "texts that the same seed does not repeat",
                    "同一种子未能重现的文本数",
                ),
                Check(
                    "padding_gap",
                    "<",
                    ROUNDING,
                    "logits in a left-padded batch against alone",
                    "左填充批次与单条的 logits 之差",
                ),
                Check("padding_differs", "==", 0.0, "texts that the batch changes", "因成批而改变的文本数"),
            ),
            kind="control",
        ),
    ),
    figures=figures,
    evidence=evidence,
    tables=tables,
    races=("temperatures",),
    raced=raced,
    uses=(
        "llmlab/inference/sampling.py",
        "llmlab/inference/engine.py",
        "llmlab/inference/beam.py",
        "llmlab/inference/contrastive.py",
        "llmlab/handbook/decoding_desk.py",
        "llmlab/handbook/decoding_figures.py",
        "llmlab/handbook/toy_beam.py",
        "llmlab/handbook/temperatures.py",
    ),
    settings={
        "model": [desk.TINY.layers, desk.TINY.dim, desk.TINY.attention.heads, desk.TINY.norm.kind],
        "vocabulary": desk.VOCABULARY,
        "lengths": [desk.PROMPT, desk.ANSWER],
        "temperatures": [*desk.TEMPERATURES, desk.COLD],
        "kept": [desk.NUCLEUS, desk.FIRST],
        "draws": [desk.DRAWS, desk.FACES],
        "stops": desk.STOPS,
        "omitted": desk.OMITTED,
        "searches": {name: [one.model_dump() for one in pair] for name, pair in desk.SEARCHES.items()},
        "apart": desk.APART.model_dump(),
        "toy": [desk.TOY, desk.TOY_LENGTH, desk.TOY_PROMPTS, desk.TOY_STOP, *desk.LENGTH_PENALTIES],
    },
)
