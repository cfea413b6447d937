"""Question 30: whether tokens met again in the training data hurt. Many times over they do, and come back verbatim; a
few epochs cost next to nothing; the number of parameters and the work of a step know nothing of the data."""

import torch
from torch import Tensor

from llmlab.handbook.epochs import documents, reading, shuffled
from llmlab.handbook.epochs_figures import evidence, raced, tables
from llmlab.handbook.question import Check, Claim, Figures, Question, Text, Verdict
from llmlab.handbook.races.epochs import BUDGET, EPOCHS, FEW
from llmlab.handbook.repeating_model import EXTRACTED, book
from llmlab.runtime import generator
from llmlab.stages import Session

GAINED = 0.8  # of what as many fresh tokens would have gained
VERBATIM = 0.5  # of the documents
FIT_ERROR = 0.05  # bits per byte
SHORTER = 0.95  # of the steps
CORPORA = (*([[BUDGET // times, times]] for times in EPOCHS), [[FEW, 50], [BUDGET - 50 * FEW, 1]])


def _marks(text_T: Tensor, factors_G: Tensor) -> Tensor:
    """A number for each run of tokens, the same for the same run: a sum over its places that wraps around."""
    return (text_T.unfold(0, len(factors_G), 1) * factors_G).sum(1)


def figures(session: Session) -> Figures:
    """Whether the corpora are what they are said to be, and the held-out text stands in none of them."""
    factors_G = torch.randint(2**62, (EXTRACTED,), generator=generator(session.seed, "handbook", "runs"))
    known = torch.isin(_marks(book().held_T, factors_G), _marks(book().train_T, factors_G))
    miscounted = 0
    for groups in CORPORA:
        met_N = reading(groups, session.seed).bincount(minlength=len(documents(book().train_T)))
        asked = [times for count, times in groups for _ in range(count)]
        miscounted += int((met_N[shuffled(session.seed)[: len(asked)]] != torch.tensor(asked)).sum())
        miscounted += int(met_N.sum()) != BUDGET
    return {"held_out_known": float(known.sum()), "miscounted": float(miscounted)}


QUESTION = Question(
    number=30,
    tier="seconds",
    claim=Text(
        "Repeated tokens teach the model repeated patterns, so that it does worse on new text; they take away context; "
        "they slow training down, raising the work, the number of parameters and the time. Some repetition cannot be "
        "avoided and may even help. Clean or augment the data according to the task.",
        "重复的词元会让模型学到重复的套路，遇到新文本时变差；会使上下文信息变少；还会拖慢训练，使计算量、参数量和时间都"
        "上升。适度的重复难以避免，有时反而有益；应视任务清洗或增广数据。",
    ),
    correction=Text(
        "Words that recur in a text are not data that are met again; the question asks of the second. The number of "
        "parameters is fixed before any data are read, and a step costs the same whatever its tokens say: "
        "what repetition wastes is steps (deduplicated data need fewer, Lee 2021). How much it hurts has "
        "numbers: up to 4 epochs are nearly as good as fresh text, then the worth of a token decays, "
        "D' = U + U R* (1 - exp(-R / R*)) with R epochs after the first (Muennighoff 2023; that form levels off and "
        "cannot describe a loss that turns up). A few documents met very often do more harm than all met a little "
        "oftener (Hernandez 2022), what is met often is recited (Carlini 2022), and dropout delays the harm "
        "(Xue 2023). That repetition leaves too little context is not supported.",
        "词语在文中复现，与同一份数据反复读到，是两件事，所问的是后者。参数量在读数据之前就已定下，每步的计算量也与词"
        "元的内容无关：重复浪费的是步数（去重后所需步数更少，Lee 2021）。危害多大是有数可依的：4 遍以内几乎等同新文"
        "本，此后每个词元的价值递减，D' = U + U R* (1 - exp(-R / R*))，R 为首遍之后的遍数（Muennighoff 2023；此式只会"
        "趋平，写不出掉头上升的损失）。少数文档读得极多，比全体各多读几遍更有害（Hernandez 2022）；读得多的会被背出来"
        "（Carlini 2022）；dropout 能推迟危害（Xue 2023）。至于重复导致上下文不足，并无依据。",
    ),
    run=Text(
        "A little model reads 3,072 rows of the bundled novel: all different, or a half, a quarter, an "
        "8th, a 16th and a 64th of them as many times over; four of these with dropout; 1 % of the documents 50 "
        "times; documents of 1 to 64 copies in one corpus; and a half, a quarter and an 8th read once and no "
        "more, to say what the repeated tokens were worth. Held-out loss 16 times a training; greedy decoding asked "
        "for the next 32 tokens behind 32.",
        "小模型读自带小说的 3,072 行：全不相同，或其二、四、八、十六、六十四分之一各读相应遍数；其中四组另加 "
        "dropout；1% 的文档各读 50 次；同一语料里文档有 1 至 64 份；另有只读一半、四分之一、八分之一便停的，用来折算重"
        "复词元值多少。训练中测 16 次留出损失；给 32 个词元，看贪心解码能否逐字说出其后的 32 个。",
    ),
    papers=(
        "Lee et al. 2021, Deduplicating Training Data Makes Language Models Better, arXiv 2107.06499",
        "Hernandez et al. 2022, Scaling Laws and Interpretability of Learning from Repeated Data, arXiv 2205.10487",
        "Carlini et al. 2022, Quantifying Memorization Across Neural Language Models, arXiv 2202.07646",
        "Muennighoff et al. 2023, Scaling Data-Constrained Language Models, arXiv 2305.16264",
        "Xue et al. 2023, To Repeat or Not To Repeat, arXiv 2305.13230",
    ),
    errors={"E30.1": "W", "E30.2": "M", "E30.3": "M", "E30.4": "I"},
    claims=(
        Claim(
            "hurts",
            "data met again and again make a model worse on new text",
            "反复读到的数据会让模型在新文本上变差",
            (
                Check(
                    "minus_once_16_lower",
                    ">",
                    0.0,
                    "held-out bits per byte, a 16th read 16 times minus all read once, 95 % bound",
                    "留出文本每字节比特，十六分之一读 16 遍减全部读一遍，95% 下界",
                ),
                Check("minus_once_64_lower", ">", 0.0, "the same of a 64th", "六十四分之一：同上"),
            ),
            race="epochs",
        ),
        Claim(
            "verbatim",
            "the model learns the repeated text and gives it back",
            "模型学会重复的文本，并原样给出",
            (
                Check(
                    "by_heart_lower",
                    ">",
                    VERBATIM,
                    "documents said verbatim, read 64 times minus once, 95 % bound",
                    "逐字背出的文档比例，读 64 遍减读一遍，95% 下界",
                ),
                Check(
                    "copied_slope_lower",
                    ">",
                    0.0,
                    "one corpus: tokens copied of 32, more for each doubling of the copies, 95 % bound",
                    "同一语料：份数每翻一倍，32 个中多照抄几个，95% 下界",
                ),
            ),
            race="epochs",
        ),
        Claim(
            "parameters",
            "repeated tokens raise the number of parameters",
            "重复的词元使参数量上升",
            (
                Check(
                    "parameters, spread",
                    "==",
                    0.0,
                    "parameters, largest difference between arms",
                    "各组参数量之差，最大者",
                ),
            ),
            Verdict.REFUTED,
            errors=("E30.1",),
            race="epochs",
        ),
        Claim(
            "speed",
            "training gets slower and takes more work",
            "训练变慢，计算量上升",
            (
                Check(
                    "flops a step, spread",
                    "==",
                    0.0,
                    "operations of a step, largest difference between arms",
                    "各组每步运算量之差，最大者",
                ),
                Check(
                    "steps_needed_upper",
                    "<",
                    SHORTER,
                    "share of the steps after which text met once is where 1 % x 50 ends, 95 % bound",
                    "不重复的文本达到 1% × 50 最终损失所用步数的占比，95% 上界",
                ),
            ),
            Verdict.CORRECTED,
            errors=("E30.2",),
            race="epochs",
        ),
        Claim(
            "words or data",
            "recurring words and recurring data are one thing",
            "词语复现与数据重复是一回事",
            (
                Check(
                    "loops_lower",
                    ">",
                    0.0,
                    "greedy rep-4, as many tokens said again within texts minus in texts met again, 95 % bound",
                    "贪心 rep-4，同样份量的文内重说减文本重现，95% 下界",
                ),
                Check(
                    "verbatim_lower",
                    ">",
                    0.0,
                    "said verbatim, texts met again minus said again within, 95 % bound",
                    "逐字背出的比例，文本重现减文内重说，95% 下界",
                ),
            ),
            Verdict.CORRECTED,
            errors=("E30.3",),
            race="repeated_data",
        ),
        Claim(
            "how often",
            "it depends on the degree (with no number)",
            "取决于重复的程度（未给数字）",
            (
                Check(
                    "gained_4_lower",
                    ">",
                    GAINED,
                    "a quarter read four times: share of what fresh text would have gained, 95 % bound",
                    "四分之一读四遍：占新文本所能带来收益的比例，95% 下界",
                ),
                Check(
                    "gained_falls_lower",
                    ">",
                    0.0,
                    "that share, two epochs minus eight, 95 % bound",
                    "此比例，两遍减八遍，95% 下界",
                ),
            ),
            Verdict.CORRECTED,
            errors=("E30.4",),
            race="epochs",
        ),
        Claim(
            "of use",
            "some repetition may even help",
            "适度的重复有时有益",
            (
                Check(
                    "rather_than_stop_upper",
                    "<",
                    0.0,
                    "held-out bits per byte, a half read twice minus read once, 95 % bound",
                    "留出文本每字节比特，一半读两遍减读一遍，95% 上界",
                ),
            ),
            kind="aside",
            race="epochs",
        ),
        Claim(
            "the form",
            "what repeated tokens are worth is not said",
            "重复词元值多少，未说",
            (
                Check(
                    "fit_error",
                    "<",
                    FIT_ERROR,
                    "D' fitted where the loss has not turned up: error, bits per byte",
                    "在损失未掉头的各组上拟合 D'：误差，每字节比特",
                ),
            ),
            Verdict.CORRECTED,
            kind="aside",
            errors=("E30.4",),
            race="epochs",
        ),
        Claim(
            "a few very often",
            "which documents repeat does not matter",
            "哪些文档重复无关紧要",
            (
                Check(
                    "few_often_lower",
                    ">",
                    0.0,
                    "held-out bits per byte, 1 % x 50 minus all twice, 95 % bound",
                    "留出文本每字节比特，1% 读 50 次减全体读两遍，95% 下界",
                ),
            ),
            Verdict.CORRECTED,
            kind="aside",
            errors=("E30.4",),
            race="epochs",
        ),
        Claim(
            "dropout",
            "clean or augment the data (dropout is not named)",
            "清洗或增广数据（未提 dropout）",
            (
                Check(
                    "dropped_16_upper",
                    "<",
                    0.0,
                    "held-out bits per byte, 16 epochs with dropout minus without, 95 % bound",
                    "留出文本每字节比特，16 遍加 dropout 减不加，95% 上界",
                ),
                Check("dropped_64_upper", "<", 0.0, "the same of 64 epochs", "64 遍：同上"),
            ),
            Verdict.CORRECTED,
            kind="aside",
            errors=("E30.4",),
            race="epochs",
        ),
        Claim(
            "context",
            "repetition takes away context",
            "重复使上下文信息变少",
            (
                Check(
                    "context_lower",
                    ">",
                    -0.05,
                    "nats that context saves on held-out text, 4 epochs minus one, 95 % bound",
                    "留出文本上前文省下的奈特，4 遍减一遍，95% 下界",
                ),
            ),
            Verdict.CORRECTED,
            kind="aside",
            errors=("E30.3",),
            race="epochs",
        ),
        Claim(
            "corpora",
            "the corpora are as they are said to be",
            "语料与设定相符",
            (
                Check(
                    "held_out_known", "==", 0.0, "held-out runs of 32 tokens that are read", "留出的 32 元片段被读过的"
                ),
                Check("miscounted", "==", 0.0, "documents met another number of times", "遇到次数不符的文档"),
            ),
            kind="control",
        ),
        Claim(
            "budget",
            "the arms read as many tokens, and recite nothing that they did not read",
            "各组所读词元相同，且背不出没读过的",
            (
                Check("tokens, spread", "==", 0.0, "tokens read, largest difference", "所读词元数之差，最大者"),
                Check("most extracted, held out", "==", 0.0, "held-out documents said verbatim", "逐字背出的留出文档"),
            ),
            kind="control",
            race="epochs",
        ),
    ),
    figures=figures,
    evidence=evidence,
    tables=tables,
    races=("epochs", "repeated_data"),
    raced=raced,
    uses=(
        "llmlab/handbook/epochs.py",
        "llmlab/handbook/epochs_figures.py",
        "llmlab/handbook/races/epochs.py",
        "llmlab/handbook/repeating_model.py",
        "llmlab/training/optimizers.py",
    ),
    settings={"corpora": CORPORA, "runs": EXTRACTED},
)
