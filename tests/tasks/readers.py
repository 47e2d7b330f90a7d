"""What tasks need of a model, without a model: a tokenizer and sizes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from interp.tasks import hops
from interp.terms import ModelShape
from interp.training.vocabulary import Words


class Gpt2Words:
    """OpenAI's byte-pair tokenizer, from its own two files."""

    default_bos = True
    bos_id = 50256

    def __init__(self, folder: Path) -> None:
        from tokenizers import ByteLevelBPETokenizer

        self.bpe = ByteLevelBPETokenizer(str(folder / "encoder.json"), str(folder / "vocab.bpe"))

    def encode(self, text: str, *, bos: bool | None = None) -> list[int]:
        return ([self.bos_id] if bos is None or bos else []) + self.bpe.encode(text).ids

    def decode(self, ids: Any) -> str:
        return self.bpe.decode([int(i) for i in ids])

    def texts(self, ids: Any) -> list[str]:
        return [self.bpe.decode([int(i)]) for i in ids]


def reader(tokenizer: Any, vocab: int, n_ctx: int = 64) -> Any:
    shape = ModelShape(2, 2, 2, 8, 4, 32, vocab, n_ctx)
    return SimpleNamespace(tokenizer=tokenizer, shape=shape)


def word_reader() -> Any:
    """A model of the grammar's words."""
    words = Words()
    return reader(words, len(words.words))


def digit_reader(n_ctx: int = 6) -> Any:
    """A model without a tokenizer whose ids are digits."""
    return reader(None, 10, n_ctx)


def chain_reader() -> Any:
    """A model of pointer chains."""
    return reader(None, hops.VOCAB, 16)


def letter_reader() -> Any:
    """A model of capital letters."""
    words = Words(("<bos>", "<unk>", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
    return reader(words, len(words.words))


def sum_reader(modulus: int = 53) -> Any:
    """A model of the numbers below a modulus and the equals sign, without BOS."""
    words = Words((*map(str, range(modulus)), "=", "<unk>"), begins=False)
    return reader(words, len(words.words), 3)


def people_reader() -> Any:
    """A model of the words of the built-in observables and their prompts."""
    from interp.tasks import concepts, politicians
    from interp.tasks import words as names
    from interp.tasks.grammar import WORD
    from interp.tasks.observables import OBSERVABLES

    sets = (concepts.SUBJECT, concepts.OBJECT, concepts.JOB, concepts.CASE, concepts.CASE_CORRUPT,
            concepts.PARTY)  # fmt: skip
    texts = [t for s in sets for templates in s for t in templates]
    texts += [w for o in OBSERVABLES.values() for w in (*o.plus, *o.minus)]
    texts += [*politicians.DEMOCRATS, *politicians.REPUBLICANS, *names.NAMES]
    known = dict.fromkeys(w for t in texts for w in WORD.findall(t))
    words = Words(("<bos>", "<unk>", "the", *(w for w in known if w != "the")))
    return reader(words, len(words.words))


def gpt2_reader(data: Path) -> Any:
    """A model with GPT-2's tokenizer."""
    return reader(Gpt2Words(data / "gpt2_tokenizer"), 50257, 1024)
