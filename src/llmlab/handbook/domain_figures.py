"""What question 10 makes of its race: each way by each amount of a domain's text, the differences that decide, the
sentences and the tables that show them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from llmlab.evaluation import statistics
from llmlab.handbook.question import Figures, Table, Text
from llmlab.handbook.raced import Told
from llmlab.handbook.races.domains import LEARNING, NAMES, SHARES

BITS, TERMS, GENERAL, ASIDE = "domain bits", "terms", "general bits", "general bits, set aside"
WAYS = (*LEARNING, "passages", "neighbours")


def arm(name: str, way: str, share: int = 100) -> str:
    return f"{name}, general" if way == "general" else f"{name}, {share} %, {way}"


def _worst(found: Figures, ends: Mapping[str, Callable[..., float]]) -> Figures:
    """For each difference that is taken in every domain, the end of its interval that speaks most against it."""
    return {
        f"{what}_{'upper' if side is max else 'lower'}": side(
            found[f"{what}, {name}_{'upper' if side is max else 'lower'}"] for name in NAMES
        )
        for what, side in ends.items()
    }


def raced(told: Mapping[str, Told]) -> Figures:
    race = told["domains"]
    found: Figures = {"seeds": float(len(race.values(arm(NAMES[0], "general"), BITS)))}
    for name in NAMES:
        arms = [arm(name, "general"), *(arm(name, way, share) for share in SHARES for way in WAYS)]
        found |= {f"{one}: {what}": race.mean(one, what) for one in arms for what in (BITS, TERMS, GENERAL, ASIDE)}
        base, continued = arm(name, "general"), arm(name, "continued")
        for way in WAYS:
            found |= race.bounds(f"{way}_gain, {name}", arm(name, way), base, BITS)
        for share in SHARES:
            a, b = arm(name, "continued", share), arm(name, "scratch", share)
            found |= race.bounds(f"from_general_{share}, {name}", a, b, BITS)
            found[f"kept_{share}, {name}"] = race.mean(a, "kept at")
        found |= _narrows(race, name)
        found |= race.bounds(f"forgets, {name}", continued, base, GENERAL)
        for way in ("replay", "lora"):
            found |= race.bounds(f"{way}_saves, {name}", continued, arm(name, way), GENERAL)
        found |= race.bounds(f"terms_looked_up, {name}", arm(name, "neighbours"), base, TERMS)
        found[f"aside_change, {name}"] = max(
            abs(off - on)
            for share in SHARES
            for off, on in zip(race.values(arm(name, "lora", share), ASIDE), race.values(base, GENERAL), strict=True)
        )
    whole, own = (race.mean(arm(NAMES[0], way), "own parameters") for way in ("scratch", "lora"))
    found |= {"whole_parameters": whole, "adapter_parameters": own, "adapter_share": own / whole}
    found["aside_change"] = max(found[f"aside_change, {name}"] for name in NAMES)
    ends: dict[str, Callable[..., float]] = {"continued_gain": max, "lora_gain": max, "neighbours_gain": max}
    ends |= {f"from_general_{share}": max for share in SHARES}
    ends |= {"narrows": min, "forgets": min, "replay_saves": min, "lora_saves": min}
    return found | _worst(found, ends)


def _narrows(race: Told, name: str) -> Figures:
    """By how much more a general beginning is worth with least data than with most, bits per byte."""
    ends = SHARES[0], SHARES[-1]
    least, most = (
        [
            own - on
            for own, on in zip(
                race.values(arm(name, "scratch", share), BITS),
                race.values(arm(name, "continued", share), BITS),
                strict=True,
            )
        ]
        for share in ends
    )
    apart = statistics.mean([a - b for a, b in zip(least, most, strict=True)])
    return {f"narrows, {name}": apart.value, f"narrows, {name}_lower": apart.low}


# ---------------------------------------------------------------- in words


TITLES = {
    "dialogues": Text("English dialogues", "英文问答"),
    "classical Chinese": Text("classical Chinese", "古典中文"),
}
SAID = {
    "general": Text("general model as it is", "通用模型，不改"),
    "scratch": Text("its own, from scratch", "自有模型，从零训练"),
    "continued": Text("general, trained on", "通用模型，继续训练"),
    "replay": Text("the same, 15 % of rows general", "同上，掺 15% 通用文本"),
    "lora": Text("adapter alone (LoRA)", "只训练适配器（LoRA）"),
    "passages": Text("untrained, a passage in front (BM25)", "不训练，前置检索段落（BM25）"),
    "neighbours": Text("untrained, neighbours looked up (kNN-LM)", "不训练，查近邻（kNN-LM）"),
}


def evidence(f: Mapping[str, float]) -> Text:
    unseen = [f["unseen, novel"], *(f[f"unseen, {name}"] for name in NAMES)]
    en = (
        f"Pairs of tokens that the general text never has: {unseen[0]:.1%} of its own held-out end, {unseen[1]:.1%} of "
        f"the dialogues, {unseen[2]:.1%} of the Chinese."
    )
    zh = (
        f"通用文本从未出现的词元对：占其留出部分的 {unseen[0]:.1%}，占问答的 {unseen[1]:.1%}，占中文的 "
        f"{unseen[2]:.1%}。"
    )
    if "forgets_lower" not in f:
        return Text(en, zh)
    en, zh = en + f" Seeds: {f['seeds']:.0f}.", zh + f"种子数：{f['seeds']:.0f}。"
    for name in NAMES:
        told = _of_domain(f, name)
        en, zh = f"{en} {told.en}", zh + told.zh
    en += (
        f" An adapter has {f['adapter_parameters']:,.0f} parameters beside the model's {f['whole_parameters']:,.0f}; "
        f"taken off, general text is told as before (change {f['aside_change']:.3f})."
    )
    zh += (
        f"适配器有 {f['adapter_parameters']:,.0f} 个参数，整个模型 {f['whole_parameters']:,.0f} 个；取下之后，通用文本"
        f"的损失与从前相同（变化 {f['aside_change']:.3f}）。"
    )
    return Text(en, zh)


def _of_domain(f: Mapping[str, float], name: str) -> Text:
    def bits(way: str, share: int = 100, what: str = BITS) -> str:
        return f"{f[f'{arm(name, way, share)}: {what}']:.2f}"

    def terms(way: str) -> str:
        return f"{f[f'{arm(name, way)}: {TERMS}']:.0%}"

    ours = ", ".join(f"{bits('continued', share)} : {bits('scratch', share)} ({share} %)" for share in SHARES)
    ours_zh = "，".join(f"{bits('continued', share)} : {bits('scratch', share)}（{share}%）" for share in SHARES)
    novel = [bits(way, what=GENERAL) for way in ("general", "continued", "replay", "lora")]
    right = [terms(way) for way in ("general", "continued", "neighbours")]
    kept = [f"{f[f'kept_{share}, {name}']:.0%}" for share in SHARES]
    looked_up = [bits(way) for way in ("lora", "neighbours", "passages")]
    title = TITLES[name]
    return Text(
        f"{title.en[0].upper()}{title.en[1:]}, bits per byte: the general model {bits('general')} (guessing bytes: 8); "
        f"trained on from it : from scratch, {ours}, the former best after {kept[0]}, {kept[1]}, {kept[2]} of its "
        f"steps; an adapter {looked_up[0]}, neighbours looked up {looked_up[1]}, a passage in front {looked_up[2]}. "
        f"Right of four (a guess: 25 %): {right[0]} as it is, {right[1]} trained on, {right[2]} looked up. General "
        f"text: {novel[0]} before, {novel[1]} after, {novel[2]} with replay, {novel[3]} under the adapter.",
        f"{title.zh}，每字节比特：通用模型 {bits('general')}（逐字节瞎猜为 8）；由它继续训练 : 从零训练，{ours_zh}（前"
        f"者最好的权重分别出现在 {kept[0]}、{kept[1]}、{kept[2]} 的步数处）；适配器 {looked_up[0]}，查近邻 "
        f"{looked_up[1]}，前置段落 {looked_up[2]}。四选一答对（瞎猜为 25%）：不改 {right[0]}，继续训练 {right[1]}，查"
        f"近邻 {right[2]}。通用文本：之前 {novel[0]}，之后 {novel[1]}，掺回通用文本 {novel[2]}，戴着适配器 "
        f"{novel[3]}。",
    )


COLUMNS = {
    BITS: (Text("bits per byte of the domain", "领域文本每字节比特"), "{:.2f}"),
    TERMS: (Text("terms right of four", "术语四选一答对"), "{:.0%}"),
    GENERAL: (Text("bits per byte of the novel", "小说每字节比特"), "{:.2f}"),
}


def tables(f: Mapping[str, float]) -> list[Table]:
    """One a domain and measure: each way, by the share of the domain's text that there is."""
    if "forgets_lower" not in f:
        return []
    heads: tuple[Text | str, ...] = (Text("way", "做法"), *(f"{share} %" for share in SHARES))
    made = list[Table]()
    for name in NAMES:
        for what, (head, form) in COLUMNS.items():
            title = Text(f"{TITLES[name].en}: {head.en}", f"{TITLES[name].zh}：{head.zh}")
            rows: tuple[tuple[Text | str, ...], ...] = tuple(
                (SAID[way], *(form.format(f[f"{arm(name, way, share)}: {what}"]) for share in SHARES))
                for way in ("general", *WAYS)
            )
            made.append(Table(title, heads, rows))
    return made
