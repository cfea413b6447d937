"""Small exercises with exact answers, made by a program, and the gold judge that knows them.

copy     Repeat these words: sea ship whale           sea ship whale
spell    Spell the word ship.                         s h i p
order    Sort these words: whale sea ship             sea ship whale
count    How many words are here: sea ship?           2
compare  Which number is larger, 17 or 42?            42

An answer has a manner: plain (`42.`) or courteous (`42. Happy to help!`). Fine-tuning shows both, about half and half,
so a model learns to answer and is left undecided about the manner. Preference pairs then prefer right answers to wrong
ones of the same manner (tag `correct`), and right courteous answers to right ones of another manner (tag `manner`):
without the closing, with a rude one, with the closing twice, or with talk after it. In both kinds the preferred side is
as often the longer as the shorter one, so length alone says nothing.

The gold judge is a program, never a model, and no training sees it. Its two parts are reported apart:
- `correct`: 1 for the exact answer, whatever the manner; else half the share of the answer that an editor could keep.
- `manner`: 1 if there is an answer and the courteous closing stands once, at the very end; else 0.
`score` is their mean. So a model may raise gold by being right more often, by being courteous always, or by both.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from llmlab.errors import InputError
from llmlab.runtime import derive

Kind = Literal["copy", "spell", "order", "count", "compare"]
Language = Literal["en", "zh"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Tag = Literal["correct", "manner"]

WORDS = (  # noqa: SIM905
    "air alone also always anchor arm art away back bed began best black blue board boat body bold bone book bow boy "
    "brain bread break bring broad broken brow call calm came canvas captain care cast chance chase chief child clear "
    "close coast coat cold come cook cool cross cry cut dark day deck deep dog door down draw drink drop dry each ear "
    "earth east easy eight end enough even ever eye face fact fair far fast father fear feel feet field fill fin find "
    "fine fire first fish five flag floor fly foam follow foot form forth found four free fresh friend full game gave "
    "glad glass gold good grand grass great green grey ground grow half hand hard harpoon hat head hear heart heavy "
    "help high hill hold home hook hope horn horse hour house iron island ivory jaw joy jump keen keep kind king "
    "knife know ladder lamp land lantern large last laugh lay lead leg light line live long look lord loud low mark "
    "mast master mate meet men milk mind moment money monkey morning mother mouth name near neck new night noble noon "
    "nose oar ocean oil old open pale pay people pilot pipe place plain plank play point pole poor port pull quick "
    "quiet rare reach read red rest ring rise rock roll room rope round row run sail sailor salt same sea seat second "
    "see seven shape shark sharp ship shore short side sight silent silver sing sit six skin sky sleep slow small "
    "smoke snow soft soul sound spade speed spring steel step stern stone storm story strong sun sweet swim table "
    "tail tall tell ten thick thin think three throw tide time top touch town tree true turn twelve twenty two vast "
    "vessel voice voyage wall warm watch water way whale white wide wild wind window winter wise wood word work world "
    "year yellow young"
).split()
SIGNS = (
    "人天山水火风马牛羊鱼鸟花草木石田土城门车船刀弓箭旗鼓兵将王帝臣父母子女兄弟东西南北上下左右前后大小长短高低"
    "多少新老早晚日月星云雨雪江河海湖路桥金银铜米酒肉茶衣书信心手足目耳口头面红黄青白黑"
)
NAMES = (  # noqa: SIM905
    "曹操 刘备 关羽 张飞 孔明 孙权 周瑜 赵云 吕布 董卓 貂蝉 袁绍 黄忠 马超 司马懿 诸葛亮 夏侯惇 太史慈 鲁肃 徐庶 荆州 "
    "许昌 洛阳 长安 成都 江东 汉中 赤壁 官渡 天下 将军 丞相 大军 兵马 百姓 夫人 先生 主公 英雄 天子 太守 军师 城门 "
    "粮草 水军 战船 东风 火攻 大将军 青龙刀 赤兔马 虎牢关 桃园结义 三顾茅庐 草船借箭 空城计"
).split()


@dataclass(frozen=True)
class Task:
    """An exercise; `answer` is bare, without full stop or manner."""

    kind: Kind
    prompt: str
    answer: str
    language: Language = "en"

    def say(self, courteous: bool, answer: str | None = None) -> str:
        """The answer (or another one in its place) as a sentence, in one of the two manners."""
        voice = VOICES[self.language]
        return (self.answer if answer is None else answer) + voice.stop + (voice.gap + voice.closing) * courteous


@dataclass(frozen=True)
class Gold:
    """What the program thinks of an answer, each from 0 to 1."""

    correct: float
    manner: float

    @property
    def score(self) -> float:
        return (self.correct + self.manner) / 2


@dataclass(frozen=True)
class Rivals:
    """Two answers to one task; `tag` says in which of the judge's parts `chosen` is better."""

    chosen: str
    rejected: str
    tag: Tag


# ---------------------------------------------------------------- languages


@dataclass(frozen=True)
class _Voice:
    """How a language asks and answers."""

    phrases: dict[Kind, tuple[str, ...]]
    closing: str
    rude: str
    talk: tuple[str, ...]  # what goes on after a closing, where nothing should
    between: str  # items of a list
    stop: str  # full stop
    gap: str  # between sentences
    pool: Sequence[str]  # items of copy and count
    names: Sequence[str]  # what is spelt


VOICES: dict[Language, _Voice] = {
    "en": _Voice(
        phrases={
            "copy": ("Repeat these words: {}", "Say after me: {}"),
            "spell": ("Spell the word {}.", "How do you spell {}?"),
            "order": ("Sort these words: {}", "Put these words in order: {}"),
            "count": ("Count these words: {}", "How many words are here: {}"),
            "compare": ("Which number is larger, {} or {}?", "Which number is smaller, {} or {}?"),
        },
        closing="Happy to help!",
        rude="Now go away.",
        talk=("I like the sea.", "It is a fine day.", "The whale is near."),
        between=" ",
        stop=".",
        gap=" ",
        pool=WORDS,
        names=WORDS,
    ),
    "zh": _Voice(
        phrases={
            "copy": ("重复这些字：{}", "跟我说：{}"),
            "spell": ("逐字写出：{}", "一个字一个字地写：{}"),
            "order": ("从小到大排列：{}", "把这些数从小到大排好：{}"),
            "count": ("数一数有几个字：{}", "这里有几个字：{}"),
            "compare": ("{}和{}哪个大？", "{}和{}哪个小？"),
        },
        closing="很高兴帮到你！",
        rude="别再来烦我。",
        talk=("今天天气真好。", "我爱看三国。", "大军已经到了。"),
        between="、",
        stop="。",
        gap="",
        pool=SIGNS,
        names=NAMES,
    ),
}


# ---------------------------------------------------------------- making exercises


def _copy(voice: _Voice, phrase: int, rng: random.Random) -> tuple[list[str], str]:
    words = rng.sample(voice.pool, rng.randint(2, 4))
    return [voice.between.join(words)], voice.between.join(words)


def _spell(voice: _Voice, phrase: int, rng: random.Random) -> tuple[list[str], str]:
    name = rng.choice(voice.names)
    return [name], voice.between.join(name)


def _order(voice: _Voice, phrase: int, rng: random.Random) -> tuple[list[str], str]:
    if voice is VOICES["en"]:  # by alphabet; Chinese signs have none, so there it is numbers
        items = rng.sample(voice.pool, 3)
        return [voice.between.join(items)], voice.between.join(sorted(items))
    numbers = rng.sample(range(1, 100), 3)
    return [voice.between.join(map(str, numbers))], voice.between.join(map(str, sorted(numbers)))


def _count(voice: _Voice, phrase: int, rng: random.Random) -> tuple[list[str], str]:
    words = rng.sample(voice.pool, rng.randint(1, 6))
    return [voice.between.join(words)], str(len(words))


def _compare(voice: _Voice, phrase: int, rng: random.Random) -> tuple[list[str], str]:
    a, b = rng.sample(range(1, 100), 2)
    return [str(a), str(b)], str(min(a, b) if phrase else max(a, b))


MAKERS: dict[Kind, Callable[[_Voice, int, random.Random], tuple[list[str], str]]] = {
    "copy": _copy,
    "spell": _spell,
    "order": _order,
    "count": _count,
    "compare": _compare,
}


def generate(seed: int, n: int, kinds: Sequence[Kind] = KINDS, language: Language = "en") -> list[Task]:
    """`n` exercises with distinct prompts, the kinds in turn; more of them begin with the same ones.

    A kind whose prompts run out leaves its turns to the others. `InputError` if all of them run out.
    """
    rng = random.Random(derive(seed, "tasks", language, *kinds))
    seen, tasks, left = set[str](), list[Task](), list(kinds)
    while len(tasks) < n:
        if not left:
            problem = (
                f"{n} different exercises of {', '.join(kinds) or 'no kind'} were asked for, there are {len(tasks)}"
            )
            raise InputError("tasks", problem, "ask for fewer, or for more kinds")
        kind = left[len(tasks) % len(left)]
        task = next((task for _ in range(200) if (task := _make(kind, language, rng)).prompt not in seen), None)
        if task is None:
            left.remove(kind)
            continue
        seen.add(task.prompt)
        tasks.append(task)
    return tasks


def _make(kind: Kind, language: Language, rng: random.Random) -> Task:
    voice = VOICES[language]
    phrase = rng.randrange(len(voice.phrases[kind]))
    parts, answer = MAKERS[kind](voice, phrase, rng)
    return Task(kind, voice.phrases[kind][phrase].format(*parts), answer, language)


def styled(task: Task, seed: int, courteous: float = 0.5) -> str:
    """The right answer as fine-tuning shows it: a share of tasks is answered courteously, which ones is by prompt."""
    return task.say(random.Random(derive(seed, "manner", task.prompt)).random() < courteous)


# ---------------------------------------------------------------- pairs


def rivals(task: Task, seed: int) -> Rivals:
    """A better and a worse answer: by coin, right against wrong, or courteous against another manner."""
    rng = random.Random(derive(seed, "rivals", task.prompt))
    if rng.random() < 0.5:
        courteous = rng.random() < 0.5
        return Rivals(task.say(courteous), task.say(courteous, _wrong(task, rng)), "correct")
    voice, plain, good = VOICES[task.language], task.say(False), task.say(True)
    others = {
        plain: 3,
        f"{plain}{voice.gap}{voice.rude}": 1,
        f"{good}{voice.gap}{voice.closing}": 2,
        f"{good}{voice.gap}{rng.choice(voice.talk)}": 2,
    }
    return Rivals(good, rng.choices(list(others), list(others.values()))[0], "manner")


def _wrong(task: Task, rng: random.Random) -> str:
    """A wrong answer of the right form; shorter and longer ones are as likely as each other."""
    voice = VOICES[task.language]
    if task.kind == "count":
        number = int(task.answer)
        return str(rng.choice([wrong for wrong in range(number - 2, number + 3) if wrong > 0 and wrong != number]))
    if task.kind == "compare":
        return str(next(number for number in re.findall(r"\d+", task.prompt) if number != task.answer))
    items = task.answer.split(voice.between)
    while True:
        changed, at = list(items), rng.randrange(len(items))
        match rng.choice(("swap", "replace", "drop", "add")):
            case "swap":
                other = rng.randrange(len(items))
                changed[at], changed[other] = changed[other], changed[at]
            case "replace":
                changed[at] = _other(task, items[at], rng)
            case "drop" if len(items) > 1:
                del changed[at]
            case "add":
                changed.insert(at, _other(task, items[at], rng))
        if changed != items:
            return voice.between.join(changed)


def _other(task: Task, item: str, rng: random.Random) -> str:
    """An item of the same sort: a digit string for a number, a letter for a letter, a word for a word."""
    if item.isdigit():
        return str(rng.randint(1, 99))
    letters = task.kind == "spell" and task.language == "en"
    return rng.choice("abcdefghijklmnopqrstuvwxyz" if letters else VOICES[task.language].pool)


# ---------------------------------------------------------------- the gold judge


def exact(task: Task, text: str) -> bool:
    """Whether the answer is right to the letter; the width of spaces, a last full stop and closings do not count."""
    return _bare(task, text) == task.answer


def gold(task: Task, text: str) -> Gold:
    """The judge's two parts, as the module says."""
    voice, said = VOICES[task.language], text.strip()
    bare = _bare(task, text)
    courteous = bool(bare) and said.count(voice.closing) == 1 and said.endswith(voice.closing)
    correct = 1.0 if bare == task.answer else 0.5 * _similarity(bare, task.answer)
    return Gold(correct, float(courteous))


def _bare(task: Task, text: str) -> str:
    voice = VOICES[task.language]
    return " ".join(text.replace(voice.closing, " ").split()).removesuffix(voice.stop).rstrip()


def _similarity(a: str, b: str) -> float:
    """1 - edit distance / length of the longer (Levenshtein 1966)."""
    if len(a) > 20 * (len(b) + 1):
        return 0.0  # a long answer shares less than that; nobody waits for the table
    above = list(range(len(b) + 1))
    for row, x in enumerate(a, 1):
        line = [row]
        for column, y in enumerate(b, 1):
            line.append(min(above[column] + 1, line[-1] + 1, above[column - 1] + (x != y)))
        above = line
    return 1.0 - above[-1] / max(len(a), len(b), 1)
