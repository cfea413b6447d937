"""Question 10: whether every professional domain needs a large model of its own. It needs its text, not a model from
scratch: the less of it there is, the more a general beginning is worth. Adapters, replay and looking up are left
out."""

import torch
from torch import Tensor

from llmlab.handbook.domain_figures import evidence, raced, tables
from llmlab.handbook.domains import BEFORE, CHOICES, DATA, DOMAINS, HELD_OUT, QUESTIONS, RUN, VALIDATED, runs
from llmlab.handbook.question import Check, Claim, Figures, Question, Text, Verdict
from llmlab.handbook.repeating_model import VOCABULARY, book
from llmlab.stages import Session

SMALL = 0.25  # of a model's parameters: what an adapter may have
APART = 2.0  # times as many unseen pairs of tokens as in more of the same novel
SHARED = 0.01  # of the runs of RUN tokens: a novel has turns of phrase, and dialogues meet where they join


def _pairs(text_T: Tensor) -> Tensor:
    return text_T[:-1] * VOCABULARY + text_T[1:]


def figures(session: Session) -> Figures:
    """How far the domains are from the general text, and that what is tested was not learnt from. No seed moves "
    "them."""
    known = _pairs(book().train_T)

    def unseen(text_T: Tensor) -> float:
        return float((~torch.isin(_pairs(text_T), known)).double().mean())

    found = {"unseen, novel": unseen(book().held_T)}
    for name, made in DOMAINS.items():
        domain = made()
        found[f"unseen, {name}"] = unseen(domain.held_T)
        held = runs(domain.held_T.tolist())
        found[f"shared, {name}"] = len(held & runs(domain.train_T.tolist())) / len(held)
    found["nearest"] = min(found[f"unseen, {name}"] for name in DOMAINS) / found["unseen, novel"]
    found["shared"] = max(found[f"shared, {name}"] for name in DOMAINS)
    return found


QUESTION = Question(
    number=10,
    tier="seconds",
    claim=Text(
        "Usually yes: a domain has knowledge and terms of its own (medicine), its own style, needs of its own (numbers "
        "in finance, clauses in law), and data so scarce that a general model cannot be trained enough. Yet a general "
        "model can be shared, and fine-tuned or adapted for each domain.",
        "通常需要：各领域有自己的知识与术语（如医学）、文风、需求（金融看数字，法律看条款），且数据稀少，不足以把通用"
        "模型训练好。不过也可以共用一个通用模型，再按领域微调、定制。",
    ),
    correction=Text(
        "The two halves contradict each other, and the second is right: share one general model and adapt it. Scarce "
        "data speak against a model of one's own: what a little text cannot teach, a general beginning has already "
        "(Gururangan 2020). Size can outdo a domain's training altogether: GPT-4 does better than BloombergGPT on "
        "several tasks of finance (Li 2023). Left out: training on forgets general text, which replaying some of it "
        "reduces (Ibrahim 2024); an adapter is small and can be taken off again, so that one base serves many domains "
        "(Hu 2021); and what is to be known can be looked up instead of trained in (Khandelwal 2019, Lewis 2020), "
        "which is the cheapest where facts change. Where the base never met the script or its tokens, training "
        "must reach the embeddings.",
        "前后两半自相矛盾，后一半才对：共用一个通用模型，再作适配。数据稀少恰恰不利于另起炉灶：少量文本教不会的，通用"
        "模型早已学会（Gururangan 2020）。规模有时胜过领域训练：若干金融任务上 GPT-4 优于 BloombergGPT（Li 2023）。原"
        "文遗漏的有：继续训练会遗忘通用文本，掺回一部分可以减轻（Ibrahim 2024）；适配器很小，又能取下，一个底座可供多"
        "个领域（Hu 2021）；知识不必练进参数，也可以查（Khandelwal 2019，Lewis 2020），事实常变时最省。若底座从未见过"
        "该文字及其词元，训练就得动到嵌入层。",
    ),
    run=Text(
        "A little model of the bundled English novel, and two domains of 45,000 tokens (short English "
        "dialogues; the beginning of a classical Chinese novel), of which there is 1, 10 or 100 %. The model as it is; "
        "one from scratch; trained on; trained on with 15 % of the novel's rows; an adapter alone; untrained with a "
        "passage in front or with neighbours looked up. As many steps each, the best weights by a validation text "
        "kept. Held-out bits per byte of domain and novel; which of four answers, or names, is right.",
        "以自带英文小说训练的小模型；两个领域各 45,000 个词元（英文短问答；古典中文小说的开头），可用其 "
        "1%、10% 或全部。做法：不改；从零训练；继续训练；继续训练并掺 15% 的小说；只训练适配器；不训练而前置检索到的"
        "段落，或查近邻。步数相同，取验证文本上最好的权重。测领域与小说留出文本的每字节比特，及四选一：正确的答案或人"
        "名。",
    ),
    papers=(
        "Gururangan et al. 2020, Don't Stop Pretraining, arXiv 2004.10964",
        "Li et al. 2023, Are ChatGPT and GPT-4 General-Purpose Solvers for Financial Text Analytics?, arXiv 2305.05862",
        "Hu et al. 2021, LoRA, arXiv 2106.09685",
        "Ibrahim et al. 2024, Simple and Scalable Strategies to Continually Pre-train, arXiv 2403.08763",
        "Khandelwal et al. 2019, Generalization through Memorization, arXiv 1911.00172",
        "Lewis et al. 2020, Retrieval-Augmented Generation, arXiv 2005.11401",
    ),
    errors={"E10.1": "M", "E10.2": "M", "E10.3": "I"},
    claims=(
        Claim(
            "helps",
            "training on a domain's text makes a model tell it better",
            "用领域文本训练，模型就更懂该领域",
            (
                Check(
                    "continued_gain_upper",
                    "<",
                    0.0,
                    "bits per byte, trained on minus the general model, 95 % bound of the worse domain",
                    "每字节比特，继续训练减通用模型，较差领域的 95% 上界",
                ),
            ),
            race="domains",
        ),
        Claim(
            "scarcity",
            "scarce data call for a model of the domain's own",
            "数据稀少，所以要有领域自己的模型",
            (
                Check(
                    "from_general_1_upper",
                    "<",
                    0.0,
                    "1 % of the text: bits per byte, trained on minus from scratch, 95 % bound of the worse domain",
                    "只有 1% 文本：每字节比特，继续训练减从零训练，较差领域的 95% 上界",
                ),
            ),
            Verdict.REFUTED,
            errors=("E10.2",),
            race="domains",
        ),
        Claim(
            "each its own",
            "each domain needs its own model, though one could be shared",
            "各领域各用一个模型，虽然也可以共用",
            (
                Check(
                    "lora_gain_upper",
                    "<",
                    0.0,
                    "bits per byte, one base with an adapter minus without, 95 % bound of the worse domain",
                    "每字节比特，同一底座加适配器减不加，较差领域的 95% 上界",
                ),
                Check("adapter_share", "<", SMALL, "parameters of an adapter over a model's", "适配器与模型参数量之比"),
                Check(
                    "aside_change",
                    "==",
                    0.0,
                    "general text with the adapter taken off: change, bits per byte",
                    "取下适配器后通用文本的变化，每字节比特",
                ),
            ),
            Verdict.CORRECTED,
            errors=("E10.1",),
            race="domains",
        ),
        Claim(
            "at every amount",
            "with more data a model of one's own pays (by the same argument)",
            "照此推论，数据多些就值得另起炉灶",
            (
                Check(
                    "from_general_10_upper",
                    "<",
                    0.0,
                    "10 % of the text: trained on minus from scratch, 95 % bound of the worse domain",
                    "10% 文本：继续训练减从零训练，较差领域的 95% 上界",
                ),
                Check("from_general_100_upper", "<", 0.0, "all of the text: the same", "全部文本：同上"),
            ),
            Verdict.CORRECTED,
            kind="aside",
            errors=("E10.2",),
            race="domains",
        ),
        Claim(
            "least data, most worth",
            "how much is gained by the amount of data is not said",
            "未说收益与数据量的关系",
            (
                Check(
                    "narrows_lower",
                    ">",
                    0.0,
                    "lead over scratch, bits per byte, with 1 % minus with all, 95 % bound of the worse domain",
                    "相对从零训练的领先，1% 减全部，较差领域的 95% 下界",
                ),
            ),
            Verdict.CORRECTED,
            kind="aside",
            errors=("E10.2",),
            race="domains",
        ),
        Claim(
            "forgetting",
            "forgetting is not named",
            "未提遗忘",
            (
                Check(
                    "forgets_lower",
                    ">",
                    0.0,
                    "general text: bits per byte after minus before training on, 95 % bound of the milder domain",
                    "通用文本：继续训练之后减之前，较轻领域的 95% 下界",
                ),
            ),
            Verdict.CORRECTED,
            kind="aside",
            errors=("E10.3",),
            race="domains",
        ),
        Claim(
            "replay",
            "replaying general text is not named",
            "未提掺回通用文本",
            (
                Check(
                    "replay_saves_lower",
                    ">",
                    0.0,
                    "general text: bits per byte without replay minus with, 95 % bound of the worse domain",
                    "通用文本：不掺减掺，较差领域的 95% 下界",
                ),
            ),
            Verdict.CORRECTED,
            kind="aside",
            errors=("E10.3",),
            race="domains",
        ),
        Claim(
            "adapters forget less",
            "adapters are not named",
            "未提适配器",
            (
                Check(
                    "lora_saves_lower",
                    ">",
                    0.0,
                    "general text: bits per byte of all weights trained minus under an adapter, 95 % bound of the "
                    "worse domain",
                    "通用文本：全参数训练减戴着适配器，较差领域的 95% 下界",
                ),
            ),
            Verdict.CORRECTED,
            kind="aside",
            errors=("E10.3",),
            race="domains",
        ),
        Claim(
            "looked up",
            "retrieval is not named",
            "未提检索",
            (
                Check(
                    "neighbours_gain_upper",
                    "<",
                    0.0,
                    "bits per byte, neighbours looked up minus not, nothing trained, 95 % bound of the worse domain",
                    "每字节比特，不训练，查近邻减不查，较差领域的 95% 上界",
                ),
                Check(
                    "terms_looked_up, dialogues_lower",
                    ">",
                    0.0,
                    "dialogues: answers right, looked up minus not, 95 % bound",
                    "问答：答对的比例，查近邻减不查，95% 下界",
                ),
            ),
            Verdict.CORRECTED,
            kind="aside",
            errors=("E10.3",),
            race="domains",
        ),
        Claim(
            "domains",
            "the domains are others than the general text, and tests are not learnt from",
            "领域文本确与通用文本不同，测试文本未被训练",
            (
                Check(
                    "nearest",
                    ">",
                    APART,
                    "unseen pairs of tokens in the nearer domain over those in more of the novel",
                    "较近领域中未见词元对的占比，与小说留出部分之比",
                ),
                Check(
                    "shared",
                    "<",
                    SHARED,
                    "held-out runs of 16 tokens that are learnt from",
                    "留出的 16 元片段被训练的占比",
                ),
            ),
            kind="control",
        ),
    ),
    figures=figures,
    evidence=evidence,
    tables=tables,
    races=("domains",),
    raced=raced,
    uses=(
        "llmlab/handbook/domains.py",
        "llmlab/handbook/domain_model.py",
        "llmlab/handbook/domain_figures.py",
        "llmlab/handbook/recalling.py",
        "llmlab/handbook/races/domains.py",
        "llmlab/adapters/lora.py",
        "llmlab/longtext/bm25.py",
    ),
    settings={"domains": [DATA, VALIDATED, HELD_OUT, QUESTIONS, CHOICES, BEFORE], "run": RUN},
)
