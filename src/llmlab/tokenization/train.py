"""Training a tokenizer of one's own: byte-level BPE, Unigram or WordPiece, the same from the same text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Discriminator, Field
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from llmlab.errors import InputError
from llmlab.recipe import Section
from llmlab.tokenization import wordpiece
from llmlab.tokenization.pieces import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, pre_tokenizer
from llmlab.tokenization.tokenizer import Tokenizer
from llmlab.tokenization.unigram import unigram_backend
from llmlab.tokenization.unigram_training import learn_pieces

END, START_TURN, END_TURN, PAD = SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
UNK = "<unk>"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
LETTERS = SPACE + "<>x0123456789ABCDEF"  # what spells the name of a byte is cut into these, never taken for the byte
ALPHABET = 1000  # characters of a WordPiece vocabulary at most, as BERT's

# ChatML, without a system message of its own: what is not said is not there.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


class BPE(Section):
    """Byte-level BPE (Sennrich et al. 2016; on bytes: Radford et al. 2019): pairs merged, the most frequent first."""

    lossless: ClassVar[bool] = True
    kind: Literal["bpe"] = "bpe"
    vocab_size: int = Field(4096, ge=1, description="Ids in all: 4 special tokens, 256 bytes, the rest merges.")
    min_frequency: int = Field(2, ge=1, description="How often a pair must stand in the corpus to be merged.")
    pre: Literal["gpt-2", "smollm"] = Field(
        "smollm", description="How text is cut before merging, by llama.cpp's name; smollm keeps every digit apart."
    )

    def train(self, texts: Iterator[str]) -> Tokenizer:
        """Ids 0 to 3 are `<|endoftext|>` (eos, and what separates documents), `<|im_start|>`, `<|im_end|>`, `<|pad|>`;
        then come the 256 bytes, then the merges."""
        _room(self.vocab_size, 256 + len(SPECIAL), f"256 bytes and {len(SPECIAL)} special tokens")
        backend = Backend(models.BPE())
        backend.pre_tokenizer = pre_tokenizer(self.pre)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size,
            min_frequency=self.min_frequency,
            special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        return Tokenizer(backend, eos=END, pad=PAD, chat_template=CHAT_TEMPLATE)


class Unigram(Section):
    """Unigram (Kudo 2018) on text whose spaces are marked, with bytes for what it does not know, as SentencePiece."""

    lossless: ClassVar[bool] = True
    kind: Literal["unigram"] = "unigram"
    vocab_size: int = Field(4096, ge=1, description="Ids in all: 5 special tokens, 256 bytes, the rest pieces.")

    def train(self, texts: Iterator[str]) -> Tokenizer:
        """Ids 0 to 3 as those of `BPE`, 4 is `<unk>`, which no text yields; then the 256 bytes, then the pieces, the
        likeliest first. Nothing is normalised: every text but U+2581 itself (read back as a space) is kept."""
        special = [*SPECIAL, UNK]
        fixed = len(special) + 256
        _room(
            self.vocab_size,
            fixed + len(LETTERS),
            f"256 bytes, {len(LETTERS)} letters and {len(special)} special tokens",
        )
        words = Counter[str]()
        for text in texts:
            words.update(WORDS.findall(SPACE + text.replace(" ", SPACE)))
        learnt = learn_pieces(words, self.vocab_size - fixed, LETTERS, {*special, *BYTES})
        pieces = [*special, *BYTES, *(piece for piece, _ in learnt)]
        scores = [0.0] * fixed + [score for _, score in learnt]
        types = [CONTROL] * len(SPECIAL) + [UNKNOWN] + [BYTE] * 256 + [NORMAL] * len(learnt)
        backend = unigram_backend(pieces, scores, types, unk=len(SPECIAL))
        return Tokenizer(backend, eos=END, pad=PAD, unk=UNK, chat_template=CHAT_TEMPLATE)


class WordPiece(Section):
    """WordPiece as BERT's (Devlin et al. 2018). Ids do not keep the text: spaces, case and unknown words are lost."""

    lossless: ClassVar[bool] = False
    kind: Literal["wordpiece"] = "wordpiece"
    vocab_size: int = Field(4096, ge=1, description="Ids in all: 5 special tokens, characters, the rest merges.")
    min_frequency: int = Field(2, ge=1, description="How often a pair must stand in the corpus to be merged.")
    lowercase: bool = Field(True, description="Lower-case the text and strip its accents.")

    def train(self, texts: Iterator[str]) -> Tokenizer:
        """Ids 0 to 4 are [PAD], [UNK], [CLS], [SEP] (which ends a document, too) and [MASK]; then come the characters
        that go on in a word, those that begin one, and the merges."""
        _room(self.vocab_size, len(wordpiece.SPECIAL) + 2, f"a character and {len(wordpiece.SPECIAL)} special tokens")
        backend = Backend(models.WordPiece(unk_token=wordpiece.UNKNOWN))
        wordpiece.dress(backend, self.lowercase)
        words = Counter[str]()
        for text in texts:
            cut = backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text))
            words.update(word for word, _ in cut)
        # The library numbers the characters that go on in a word as it meets them, in the order of a hash that differs
        # from process to process. Given as if they were special, they get the same numbers each time.
        alphabet, inside = _alphabet(words, min(ALPHABET, (self.vocab_size - len(wordpiece.SPECIAL)) // 2))
        trainer = trainers.WordPieceTrainer(
            vocab_size=self.vocab_size,
            min_frequency=self.min_frequency,
            special_tokens=[*wordpiece.SPECIAL, *(wordpiece.MARK + letter for letter in inside)],
            initial_alphabet=alphabet,
            limit_alphabet=len(alphabet),
            continuing_subword_prefix=wordpiece.MARK,
            show_progress=False,
        )
        learner = Backend(models.WordPiece(unk_token=wordpiece.UNKNOWN))
        learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        learner.train_from_iterator(_repeated(words), trainer)
        vocab = learner.get_vocab()
        pieces = sorted(vocab, key=vocab.__getitem__)
        _, unk, cls, sep, mask = wordpiece.SPECIAL
        made = wordpiece.wordpiece_backend(pieces, unk, cls, sep, self.lowercase)
        return Tokenizer(made, eos=sep, pad=wordpiece.PAD, unk=unk, cls=cls, sep=sep, mask=mask)


def _kind(value: object) -> object:
    """A bare string means {kind: that}, and fields without a kind mean bpe, the one kind there used to be."""
    if isinstance(value, str):
        return {"kind": value}
    return {"kind": "bpe", **value} if isinstance(value, dict) else value


TokenizerRecipe = Annotated[BPE | Unigram | WordPiece, Discriminator("kind"), BeforeValidator(_kind)]

WORDS = re.compile(f"{SPACE}[^{SPACE}]*")


def train_tokenizer(section: TokenizerRecipe, texts: Iterator[str]) -> Tokenizer:
    """A tokenizer from `texts`; the same texts in the same order give the same one.

    A text too small for `vocab_size` gives fewer ids: `vocab_size` of the result says how many there are. Errors: no
    text, or a vocabulary smaller than what must be in it.
    """
    filled = (text for text in texts if text)
    first = next(filled, None)
    if first is None:
        raise InputError("tokenizer", "there is no text to learn from", "the corpus is empty after cleaning")
    try:
        return section.train(chain([first], filled))
    except (TypeError, UnicodeEncodeError):
        raise InputError("tokenizer", "the corpus holds half of a surrogate pair, which is no Unicode text") from None


def tokenizer_figures(section: TokenizerRecipe, tokenizer: Tokenizer, sample: str) -> dict[str, int | float]:
    """What was asked for and got, and how many bytes of `sample` a token holds."""
    return {
        "vocab_size_asked": section.vocab_size,
        "vocab_size": tokenizer.vocab_size,
        "bytes_per_token": len(sample.encode()) / max(len(tokenizer.encode(sample)), 1),
    }


def _room(size: int, smallest: int, what: str) -> None:
    if size < smallest:
        raise InputError("tokenizer.vocab_size", f"{size} ids cannot hold {what}", f"at least {smallest}")


def _alphabet(words: Counter[str], limit: int) -> tuple[list[str], list[str]]:
    """The most frequent characters of all words, and those of them that go on in a word. Both sorted."""
    letters = Counter[str]()
    for word, count in words.items():
        for letter in word:
            letters[letter] += count
    kept = sorted(sorted(letters), key=letters.__getitem__, reverse=True)[:limit]
    inside = {letter for word in words for letter in word[1:]}
    return sorted(kept), sorted(inside.intersection(kept))


def _repeated(words: Counter[str]) -> Iterator[str]:
    """Texts that hold each word as often as it was counted."""
    for word, count in words.items():
        for done in range(0, count, 1000):
            yield " ".join([word] * min(1000, count - done))
