"""What the terminal shows of the handbook: the list of the 54, and the page of one question, in English or Chinese."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len, set_cell_size

from llmlab.errors import unknown
from llmlab.handbook.question import (
    TIER_LETTER,
    Check,
    Claim,
    Language,
    Question,
    Table,
    Text,
    Verdict,
    asked,
    code_of,
    load,
    numbered,
)
from llmlab.handbook.runner import SHIPPED, Record, shipped

if TYPE_CHECKING:
    from rich.text import Text as RichText

    from llmlab.handbook.race_rows import Block

WIDTH = 100

VERDICTS = {
    Verdict.CONFIRMED: Text("CONFIRMED", "证实"),
    Verdict.CORRECTED: Text("CORRECTED", "更正"),
    Verdict.REFUTED: Text("REFUTED", "推翻"),
    Verdict.PREDICTED_ONLY: Text("PREDICTED-ONLY", "仅为推算"),
    Verdict.NOT_REPRODUCED: Text("NOT-REPRODUCED", "未能复现"),
}
STYLES = {
    Verdict.CONFIRMED: "green",
    Verdict.CORRECTED: "yellow",
    Verdict.REFUTED: "red",
    Verdict.PREDICTED_ONLY: "cyan",
    Verdict.NOT_REPRODUCED: "magenta",
}
WITHOUT_RACES = Text(", races aside", "，不含对比实验")
KINDS = {"main": Text("answer", "正题"), "aside": Text("aside", "旁论"), "control": Text("control", "对照")}
TIERS = {
    "F": Text("(formula tier, under 2 s)", "（公式级，2 秒以内）"),
    "S": Text("(under a minute)", "（1 分钟以内）"),
    "M": Text("(one to five minutes)", "（1 至 5 分钟）"),
    "L": Text("(five to twenty minutes)", "（5 至 20 分钟）"),
}

SAYS = Text("The handbook says", "手册怎么说")
RIGHT = Text("What is right", "正确的说法")
PAPERS = Text("Papers", "依据")
RUNS = Text("What is run", "跑了什么")
FOUND = Text("What was found", "结果")
CLAIMS = Text("Claim by claim", "逐条裁决")
PAPER_ONLY = Text("Not measured here, on the papers alone", "此处未测，仅以文献为据")
CODE = Text("Code", "代码")
MEASURED = Text("Measured", "测量")
RACES = Text("Races", "对比实验")
ARM = Text("arm", "分支")
MINUS = Text("minus {arm}", "减 {arm}")
MINUS_AT = Text("minus {arm}, {head}", "减 {arm}，{head}")
INTERVALS = Text("± half of the 95 % interval; differences are paired over seeds", "± 为 95% 区间半宽；差值按种子配对")
FOLDED = Text("its rows, arm by arm: in the page that --html writes", "逐项数据：见 --html 写出的网页")
FEWER = Text("and {measures}: in the page that --html writes", "另有 {measures}：见 --html 写出的网页")
UNBUILT = Text("The experiment of this question is not built yet.", "这一问的实验尚未建成。")
UNRUN = Text("No record yet: run it with --run.", "还没有记录，加 --run 即可运行。")
COLON = Text(": ", "：")
NONE = Text("no verdict yet", "尚无裁决")
OPENING, CLOSING = "（“《", "，。；：？！、）”》"
WIDE, MARKS = "\u2e80-\u9fff\uff00-\uffef", OPENING + CLOSING
# What may not be broken: white space; one Chinese character or one word, with the marks that cling to it.
PIECES = re.compile(rf"\s+|[{OPENING}]*(?:(?![{MARKS}])[{WIDE}]|[^\s{WIDE}{MARKS}]+)?[{CLOSING}]*")
HEADINGS = (SAYS, RIGHT, PAPERS, RUNS, FOUND, CLAIMS, PAPER_ONLY, RACES, CODE, MEASURED)
NAME_WIDTH, FIGURE_WIDTH = 24, 44  # cells of an arm's name, of a row's in a table of figures; a longer one is cut


def list_questions(lang: str = "en") -> list[dict[str, Any]]:
    """The 54 questions as JSON rows; verdict, evidence, tier, seconds and date are null where no record ships."""
    return [json_row(number, None, lang) for number in asked()]


def json_row(number: int, record: Record | None, lang: str = "en") -> dict[str, Any]:
    """One question with the verdict of `record`; of the shipped record where that is None."""
    spoken = language(lang)
    record = record or shipped(number)
    row: dict[str, Any] = {"n": number, "question": asked()[number].text.in_language(spoken)}
    for name in ("verdict", "evidence", "tier", "seconds", "date"):
        row[name] = record[name] if record else None
    if record:
        row["evidence"] = record["evidence"][spoken]
    return row


def listing(lang: str = "en") -> str:
    """The 54 questions as a table; a Chinese character takes two cells."""
    rows = list_questions(lang)
    labels = [VERDICTS[Verdict(row["verdict"])].in_language(language(lang)) if row["verdict"] else "-" for row in rows]
    wide = max(map(cell_len, labels))
    return "\n".join(
        f"{row['n']:>2}  {set_cell_size(label, wide)}  {row['tier'] or '-'}  {row['question']}"
        for row, label in zip(rows, labels, strict=True)
    )


def show(number: int, lang: str = "en", record: Record | None = None, width: int = WIDTH, races: Path = SHIPPED) -> str:
    """The page of one question: what is claimed, what is right, what is run, what came out. Plain text.

    `record` is a fresh run to show in place of the shipped one, `races` the folder of the records of its races.
    InputError for a number outside 1..54.
    """
    spoken = language(lang)
    text = asked()[numbered(number)].text.in_language(spoken)
    record = record or shipped(number)
    verdict = VERDICTS[Verdict(record["verdict"])].in_language(spoken) if record else NONE.in_language(spoken)
    lines: list[str] = [*wrapped(f"{number}. {text}", width), verdict, ""]
    path = code_of(number)
    if path is None:
        return "\n".join([*lines, UNBUILT.in_language(spoken)])
    question = load(number)

    def section(title: Text, body: list[str]) -> None:
        lines.extend([title.in_language(spoken), *(line for part in body for line in wrapped(part, width, "  ")), ""])

    section(SAYS, [question.claim.in_language(spoken)])
    section(RIGHT, [question.correction.in_language(spoken)])
    section(PAPERS, list(question.papers))
    section(RUNS, [question.run.in_language(spoken), _tier(question, spoken)])
    section(FOUND, [record["evidence"][spoken] if record else UNRUN.in_language(spoken)])
    for table in question.tables(record["figures"]) if record else ():
        lines.extend([*(f"  {line}".rstrip() for line in _figures(table, spoken, width - 2)), ""])
    lines.append(CLAIMS.in_language(spoken))
    for claim in question.claims:
        lines.extend(wrapped(_claim(claim, record, spoken), width, "  ", "    "))
        lines.extend(
            line
            for check in claim.checks
            for line in wrapped(_check(claim, check, record, spoken), width, "    ", "     ")
        )
    lines.append("")
    if question.on_paper:
        section(PAPER_ONLY, [f"{text.in_language(spoken)} [{code}]" for code, text in question.on_paper.items()])
    drawn = [line for name in question.races for line in _race(name, races, spoken, width - 2)]
    if drawn:
        lines.extend([RACES.in_language(spoken), *(f"  {line}".rstrip() for line in drawn)])
    section(CODE, [f"llmlab/handbook/{path.name}", *question.uses])
    if record:
        section(MEASURED, [measured(record, spoken)])
    return "\n".join(lines).rstrip()


def coloured(text: str) -> RichText:
    """A listing or page with its headings bold and its verdicts in colour, for a terminal that can."""
    from rich.text import Text as RichText

    out = RichText(text)
    for title in HEADINGS:
        out.highlight_regex(rf"(?m)^(?:{re.escape(title.en)}|{re.escape(title.zh)})$", style="bold")
    for verdict, style in STYLES.items():
        out.highlight_regex(rf"(?m)(?<![\w-])(?:{VERDICTS[verdict].en}|{VERDICTS[verdict].zh})(?=\s|$)", style=style)
    return out


def wrapped(text: str, width: int, indent: str = "", hanging: str = "") -> list[str]:
    """Lines of at most `width` cells: `indent` before each, `hanging` too from the second on.

    Chinese may break between any two characters, but no line begins with a closing mark or ends with an opening one.
    """
    lines: list[str] = []
    line = ""
    for piece in PIECES.findall(text):
        room = width - cell_len(indent) - (cell_len(hanging) if lines else 0)
        if line.strip() and cell_len(line + piece.rstrip()) > room:
            lines.append(line.rstrip())
            line = ""
        line += piece if line else piece.lstrip()
    lines.append(line.rstrip())
    return [indent + (hanging if number else "") + line for number, line in enumerate(lines)]


def _tier(question: Question, lang: Language) -> str:
    """How long the figures take; those of races took longer, which stands beside each."""
    tier = TIERS[TIER_LETTER[question.tier]].in_language(lang)
    return f"{tier[:-1]}{WITHOUT_RACES.in_language(lang)}{tier[-1]}" if question.races else tier


def race_line(record: Mapping[str, Any], lang: Language) -> str:
    """Of a race's record: how many arms and seeds, how long they took, when, with what."""
    software = ", ".join(f"{name} {number}" for name, number in record.get("versions", {}).items())
    arms, seeds, minutes = len(record["arms"]), len(record["seeds"]), record["seconds"] / 60
    told = Text(
        f"{record['name']}: {arms} arms, {seeds} seeds, {minutes:,.0f} min, {record['date']}",
        f"{record['name']}：{arms} 个分支，{seeds} 个种子，{minutes:,.0f} 分钟，{record['date']}",
    )
    return told.in_language(lang) + (f" · {software}" if software else "")


def _race(name: str, folder: Path, lang: Language, width: int) -> list[str]:
    """The plain measures and the first one taken at several lengths, as tables; nothing where there is no record."""
    from llmlab.handbook.race_rows import blocks, listed, title_of
    from llmlab.handbook.raced import shipped as shipped_race

    told = shipped_race(name, folder)
    if told is None:
        return []
    found = [block for block in blocks(told.record) if block.rows]
    shown = [block for block in found if not block.family]
    shown += [block for block in found if block.family][:1]
    lines = [*wrapped(title_of(told.record).in_language(lang), width)]
    lines += wrapped(race_line(told.record, lang), width)
    if not listed(told.record):
        return [*lines, *wrapped(FOLDED.in_language(lang), width), ""]
    for block in shown:
        lines += ["", *_table(block, lang, width)]
    rest = [block.family for block in found if block not in shown]
    if rest:
        lines += ["", *wrapped(FEWER.in_language(lang).format(measures=", ".join(rest)), width)]
    return [*lines, "", INTERVALS.in_language(lang), ""]


def _table(block: Block, lang: Language, width: int) -> list[str]:
    """A block as lines, in as many tables below one another as the width asks for."""
    from llmlab.handbook.race_rows import difference, value

    groups = []
    for place, column in enumerate(block.columns):
        cells = [row[place] for row in block.rows.values()]
        head = f"{block.family} {column.head}" if block.family and place == 0 else column.head
        together = [[head, *(value(cell) if cell else "-" for cell in cells)]]
        last = place == len(block.columns) - 1
        if block.baseline is not None and block.varies(place) and (last or not block.family):
            says = (MINUS_AT if block.family else MINUS).in_language(lang)
            says = says.format(arm=set_cell_size(block.baseline, NAME_WIDTH).rstrip(), head=column.head)
            together.append([says, *(difference(cell) if cell else "" for cell in cells)])
        groups.append(together)
    return _aligned([ARM.in_language(lang), *block.rows], groups, width)


def _figures(table: Table, lang: Language, width: int) -> list[str]:
    heads, *rows = table.in_language(lang)
    columns = [[[row[place] for row in (heads, *rows)]] for place in range(1, len(heads))]
    names = [heads[0], *(row[0] for row in rows)]
    return [*wrapped(table.title.in_language(lang), width), *_aligned(names, columns, width, FIGURE_WIDTH)]


def _aligned(
    names: Sequence[str], groups: Sequence[Sequence[Sequence[str]]], width: int, most: int = NAME_WIDTH
) -> list[str]:
    """Columns of entries beside the names, those of a group never apart, in as many tables as the width takes."""
    left = min(most, max(map(cell_len, names)))
    tables: list[list[Sequence[str]]] = [[]]
    room = width - left
    for together in groups:
        needed = sum(max(map(cell_len, entries)) + 2 for entries in together)
        if needed > room and tables[-1]:
            tables.append([])
            room = width - left
        tables[-1] += together
        room -= needed
    lines: list[str] = []
    for table in tables:
        wide = [max(map(cell_len, entries)) for entries in table]
        for row, name in enumerate(names):
            right = [" " * (w - cell_len(entries[row])) + entries[row] for w, entries in zip(wide, table, strict=True)]
            lines.append("  ".join([set_cell_size(name, left), *right]).rstrip())
        lines.append("")
    return lines[:-1]


def _claim(claim: Claim, record: Record | None, lang: Language) -> str:
    judged = {row["name"]: Verdict(row["verdict"]) for row in record["claims"]} if record else {}
    label = VERDICTS[judged[claim.name]].in_language(lang) if claim.name in judged else "-"
    codes = f" [{', '.join(claim.errors)}]" if claim.errors else ""
    return (
        f"{label}  {KINDS[claim.kind].in_language(lang)}{COLON.in_language(lang)}{claim.said.in_language(lang)}{codes}"
    )


def _check(claim: Claim, check: Check, record: Record | None, lang: Language) -> str:
    rows = record["checks"] if record else []
    row = next((row for row in rows if (row["claim"], row["figure"]) == (claim.name, check.figure)), None)
    value, mark = (short(row["value"]), "✓" if row["passed"] else "✗") if row else ("?", " ")
    asked = f"{check.relation} {short(check.threshold)}"
    return f"{mark} {check.asks.in_language(lang)}{COLON.in_language(lang)}{value} {asked}"


def short(value: float) -> str:
    """Four digits that tell; a whole number in full."""
    return f"{value:,.0f}" if value == round(value) and abs(value) < 1e9 else f"{value:.4g}"


def measured(record: Record, lang: Language) -> str:
    """When, in what time, with which seed and software."""
    software = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    told = Text(
        f"{record['date']}, {record['seconds']:.2f} s, seed {record['seed']}, with {software}",
        f"{record['date']}，{record['seconds']:.2f} 秒，种子 {record['seed']}，{software}",
    )
    return told.in_language(lang)


def language(name: str) -> Language:
    """The language of that name. InputError for another."""
    match name:
        case "en" | "zh":
            return name
    raise unknown("handbook --lang", name, ("en", "zh"))
