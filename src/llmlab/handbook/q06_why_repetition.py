"""Question 6: why models fall into repetition. Data and objective are causes, as said, once it is said what in the data
and what in the objective; how copying works, that it feeds on itself, and the decoder's share are left out."""

import torch
import torch.nn.functional as F

from llmlab.handbook.question import Check, Claim, Figures, Question, Text, Verdict
from llmlab.handbook.repeated_text import LONGEST, SHORTEST, said_again
from llmlab.handbook.repeating_figures import evidence, raced, tables
from llmlab.model.places import Places
from llmlab.objectives.repeats import candidates, unlikelihood
from llmlab.runtime import generator
from llmlab.stages import Session

ROWS, TOKENS, VOCABULARY = 8, 24, 40
PASSAGES, LENGTH, SHARES = 1000, 129, (0.05, 0.15, 0.3)


def _objectives(seed: int) -> Figures:
    """How far the loss of the same predictions moves, a token, when the earlier tokens are others."""
    source = generator(seed, "handbook", "why repetition")
    logits_NV = torch.randn(ROWS * TOKENS, VOCABULARY, generator=source)
    targets_BT, *texts = (torch.randint(VOCABULARY, (ROWS, TOKENS), generator=source) for _ in range(3))
    at, row_N = Places.causal(ROWS, TOKENS), torch.arange(ROWS).repeat_interleave(TOKENS)
    plain, held = list[torch.Tensor](), list[torch.Tensor]()
    for ids_BT in texts:
        allowed_NT = candidates(ids_BT, targets_BT, at).flatten(0, 1)
        plain.append(F.cross_entropy(logits_NV, targets_BT.flatten(), reduction="none"))
        held.append(unlikelihood(logits_NV, ids_BT.index_select(0, row_N), allowed_NT))
    return {
        "likelihood_moves": float((plain[0] - plain[1]).abs().mean()),
        "unlikelihood_moves": float((held[0] - held[1]).abs().mean()),
    }


def _doses(seed: int) -> Figures:
    """How far the share of tokens that are said again is from the one that was asked for, at most."""
    source, gaps = generator(seed, "handbook", "doses"), list[float]()
    for share in SHARES:
        place_NT = said_again(torch.arange(LENGTH).repeat(PASSAGES, 1), share, source).sort(1).values
        again = (place_NT.diff(dim=1) == 0).sum() / place_NT.numel()
        gaps.append(abs(float(again) - share))
    return {"dose_gap": max(gaps)}


def figures(session: Session) -> Figures:
    return {**_objectives(session.seed), **_doses(session.seed)}


QUESTION = Question(
    number=6,
    tier="formula",
    claim=Text(
        "Models repeat themselves because of biased data with frequent duplicates, because of the training objective "
        "(the next or a masked word, which favours text like the input), because data lack diversity, and because of "
        "structure and parameters: the attention mechanism and the generation strategy.",
        "成因有四：数据有偏差、重复内容多；以预测下一个词或被遮住的词为目标，偏爱与输入相像的输出；数据不够丰富；以及"
        "模型本身，例如注意力和生成策略。",
    ),
    correction=Text(
        "What raises looping is repetition within a document (Li 2023), not text met again in other documents, which "
        "is rather learnt by heart, nor narrow topics. The likelihood has no term that likes the input: it only "
        "never punishes a repeat more than any other wrong token (Welleck 2020). Attention copies by a mechanism "
        "that has a name, induction: heads that find what followed the same token before, which takes two layers "
        "(Olsson 2022); tokens that many lead to make it worse (Fu 2021). Once a sentence was repeated, each copy "
        "makes the next likelier (Xu 2022). And most of what users see comes from taking the likeliest token: the "
        "same model, sampled, hardly repeats (Holtzman 2020), so decoding is a cause of its own and no property of "
        "the model.",
        "助长循环的是同一篇之内的重复（Li 2023）；别处再次出现的文本多半是被背了下来，题材狭窄也不等于会循环。似然目"
        "标里没有偏爱输入的项，只是从不比其他错词更重地惩罚重复（Welleck 2020）。注意力的照抄有名有姓，叫归纳头：找到"
        "同一词元上次出现之处，接着抄其后的词元，至少要两层（Olsson 2022）；许多词都通向的高流入词会加重它（Fu "
        "2021）。句子一旦重复，每抄一遍，下一遍就更可能（Xu 2022）。用户看到的复读多半来自每步只取最可能的词元：同一"
        "模型改用采样便几乎不重复（Holtzman 2020），所以解码是单独的成因，不属于模型。",
    ),
    run=Text(
        "SmolLM2 reads real sentences, and random tokens in their place, behind 0 to 8 copies. Little models of "
        "the bundled book, three or five seeds an arm: 0, 5, 15 and 30 % of the tokens said again within passages, "
        "30 % in passages met again, a 32nd of the text; trained by likelihood, with unlikelihood, label smoothing and "
        "DITTO; attention alone with one and two layers, on the book and on random tokens said over and over. Each "
        "writes greedily and by sampling from 64 held-out beginnings. By hand: what the losses say of the same "
        "predictions behind another text.",
        "让 SmolLM2 读真句子，以及换成等长随机词元的句子，之前已说过 0 至 8 遍。另以自带小说训练小模型，"
        "每组三或五个种子：段内重说 0、5%、15%、30% 的词元，三成为反复遇到的段落，"
        "只用三十二分之一的文本；目标取似然、加非似然、标签平滑、DITTO；一层与两层的纯注意力（书本加反复的随机词"
        "元）。各从 64 个留出的开头贪心续写，并采样续写。另手算：预测不变而前文不同时，各损失是否变化。",
    ),
    papers=(
        "Welleck et al. 2020, Neural Text Generation with Unlikelihood Training, arXiv 1908.04319",
        "Holtzman et al. 2020, The Curious Case of Neural Text Degeneration, arXiv 1904.09751",
        "Xu et al. 2022, Learning to Break the Loop, arXiv 2206.02369",
        "Li et al. 2023, Repetition In Repetition Out, arXiv 2310.10226",
        "Olsson et al. 2022, In-context Learning and Induction Heads, arXiv 2209.11895",
        "Fu et al. 2021, A Theoretical Analysis of the Repetition Problem, arXiv 2012.14660",
        "Carlini et al. 2022, Quantifying Memorization Across Neural Language Models, arXiv 2202.07646",
    ),
    errors={"E6.1": "I"},
    claims=(
        Claim(
            "data",
            "repetition in the training data makes a model repeat itself",
            "训练数据里的重复会让模型复读",
            (
                Check(
                    "dose_slope_lower",
                    ">",
                    0.0,
                    "greedy rep-4 over the rep-4 of the data, slope, 95 % bound",
                    "贪心 rep-4 对数据 rep-4 的斜率，95% 下界",
                ),
                Check(
                    "dose_lower",
                    ">",
                    0.0,
                    "greedy rep-4, 30 % said again within passages minus none, 95 % bound",
                    "贪心 rep-4，段内重说 30% 减原文，95% 下界",
                ),
            ),
            race="repeated_data",
        ),
        Claim(
            "which repetition",
            "duplicated text and frequent phrases, whatever their place",
            "重复的文本、常见的短语，不论出现在哪里",
            (
                Check(
                    "within_minus_across_lower",
                    ">",
                    0.0,
                    "greedy rep-4, 30 % within passages minus 30 % across them, 95 % bound",
                    "贪心 rep-4，段内 30% 减跨段 30%，95% 下界",
                ),
                Check(
                    "remembered_lower",
                    ">",
                    0.0,
                    "said verbatim, passages met again minus others, 95 % bound",
                    "逐字背出的比例，反复遇到的段落减其余，95% 下界",
                ),
            ),
            Verdict.CORRECTED,
            race="repeated_data",
        ),
        Claim(
            "diversity",
            "text of little variety makes a model repeat itself",
            "文本不够丰富会让模型复读",
            (
                Check(
                    "within_minus_narrow_lower",
                    ">",
                    0.0,
                    "greedy rep-4, 30 % within passages minus a 32nd of the text, 95 % bound",
                    "贪心 rep-4，段内重说 30% 减三十二分之一文本，95% 下界",
                ),
            ),
            Verdict.CORRECTED,
            race="repeated_data",
        ),
        Claim(
            "objective",
            "the training objective is a cause",
            "训练目标是成因之一",
            (
                Check(
                    "unlikelihood_gain_lower",
                    ">",
                    0.0,
                    "greedy rep-4, likelihood minus unlikelihood, 95 % bound",
                    "贪心 rep-4，似然减非似然，95% 下界",
                ),
                Check(
                    "unlikelihood_cost_upper",
                    "<",
                    0.05,
                    "what unlikelihood costs in perplexity a token, as a share, 95 % bound",
                    "非似然使每词元困惑度上升的比例，95% 上界",
                ),
            ),
            race="against_repetition",
        ),
        Claim(
            "likes the input",
            "predicting the next word favours text like the input",
            "以预测下一个词为目标，就偏爱与输入相像的文本",
            (
                Check(
                    "likelihood_moves",
                    "==",
                    0.0,
                    "the likelihood of the same predictions behind another text: change",
                    "预测不变、前文不同：似然损失的变化",
                ),
                Check(
                    "unlikelihood_moves",
                    ">",
                    0.01,
                    "the same of unlikelihood, nats a token",
                    "非似然损失：同上（每词元奈特）",
                ),
            ),
            Verdict.CORRECTED,
        ),
        Claim(
            "copies held down",
            "an objective can be made against copies (not named)",
            "可以专门针对抄句设计目标（未提）",
            (
                Check(
                    "ditto_gain_lower",
                    ">",
                    0.0,
                    "greedy rep-4, likelihood minus DITTO, 95 % bound",
                    "贪心 rep-4，似然减 DITTO，95% 下界",
                ),
            ),
            Verdict.CORRECTED,
            kind="aside",
            race="against_repetition",
        ),
        Claim(
            "attention",
            "attention is to blame (with no word on how)",
            "原因在注意力（未说机制）",
            (
                Check(
                    "random_first_lower",
                    ">",
                    0.2,
                    "SmolLM2: probability of random tokens, behind one copy minus none, 95 % bound; knowing them but "
                    "not their order gives 0.1 at most",
                    "SmolLM2：随机词元的概率，说过一遍减从未说过，95% 下界（只记得有哪些词元而不记得次序，至多 0.1）",
                ),
            ),
            Verdict.CORRECTED,
            errors=("E6.1",),
            race="self_reinforcement",
        ),
        Claim(
            "two layers copy",
            "any attention will do (with no word on induction)",
            "有注意力即可（未提归纳头）",
            (
                Check(
                    "induction_lower",
                    ">",
                    0.0,
                    "attention alone: nats that their order saves on random tokens said again, two layers minus one, "
                    "95 % bound",
                    "纯注意力：重说随机词元时，保持原序省下的奈特，两层减一层，95% 下界",
                ),
            ),
            Verdict.CORRECTED,
            kind="aside",
            errors=("E6.1",),
            race="attention_alone",
        ),
        Claim(
            "loops by layers",
            "the structure of the model is a cause",
            "模型结构是成因之一",
            (
                Check(
                    "layers_lower",
                    ">",
                    0.0,
                    "attention alone: greedy rep-4, two layers minus one, 95 % bound",
                    "纯注意力：贪心 rep-4，两层减一层，95% 下界",
                ),
            ),
            kind="aside",
            race="attention_alone",
        ),
        Claim(
            "decoding",
            "the generation strategy is part of the model's structure",
            "生成策略属于模型结构",
            (
                Check(
                    "greedy_minus_sampled_lower",
                    ">",
                    0.2,
                    "rep-4 of one model, greedy minus sampled, 95 % bound",
                    "同一模型的 rep-4，贪心减采样，95% 下界",
                ),
                Check(
                    "sampled_minus_book_upper",
                    "<",
                    0.05,
                    "rep-4, sampled minus the book's, 95 % bound",
                    "rep-4，采样减原书，95% 上界",
                ),
            ),
            Verdict.CORRECTED,
            errors=("E6.1",),
            race="repeated_data",
        ),
        Claim(
            "feeds on itself",
            "causes are told one by one, with no word on how a loop closes",
            "逐条列举成因，未提循环如何闭合",
            (
                Check(
                    "real_smallest_rise",
                    ">",
                    0.0,
                    "SmolLM2: smallest rise of a sentence's probability from copy to copy",
                    "SmolLM2：句子的概率逐遍上升，最小升幅",
                ),
                Check(
                    "real_8",
                    ">",
                    0.9,
                    "SmolLM2: probability of its tokens behind eight copies",
                    "SmolLM2：已说过八遍时各词元的概率",
                ),
            ),
            Verdict.CORRECTED,
            race="self_reinforcement",
        ),
        Claim(
            "doses",
            "the data repeat themselves as much as was asked",
            "数据的重复份量与设定相符",
            (
                Check(
                    "dose_gap",
                    "<",
                    0.03,
                    "share of tokens said again: largest distance from what was asked",
                    "重说词元占比与设定之差，最大者",
                ),
            ),
            kind="control",
        ),
    ),
    figures=figures,
    evidence=evidence,
    tables=tables,
    races=("self_reinforcement", "repeated_data", "against_repetition", "attention_alone"),
    raced=raced,
    uses=(
        "llmlab/objectives/repeats.py",
        "llmlab/objectives/against.py",
        "llmlab/evaluation/repetition.py",
        "llmlab/handbook/repeated_text.py",
        "llmlab/handbook/repeating_model.py",
        "llmlab/handbook/repeating_figures.py",
        "llmlab/handbook/self_reinforcement.py",
    ),
    settings={
        "losses": [ROWS, TOKENS, VOCABULARY],
        "doses": [PASSAGES, LENGTH, *SHARES, SHORTEST, LONGEST],
    },
)
