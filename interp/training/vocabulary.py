"""The word-level tokenizer of the shipped models, as files and as an object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from interp.tasks.grammar import BOS, UNKNOWN, WORD, vocabulary


class Words:
    """Words to ids and back, as the shipped ``tokenizer.json`` does it; BOS is prepended.

    Args:
        words: the vocabulary; by default the grammar's.
        begins: whether there is a BOS.
    """

    def __init__(self, words: Sequence[str] | None = None, begins: bool = True) -> None:
        self.words = tuple(words or vocabulary())
        self.ids = {w: i for i, w in enumerate(self.words)}
        self.default_bos = begins
        self.bos_id: int | None = self.ids[BOS] if begins else None

    def encode(self, text: str, *, bos: bool | None = None) -> list[int]:
        """Ids of the words of ``text``; a word that is not known becomes ``<unk>``."""
        wanted = self.default_bos if bos is None else bos
        start = [self.ids[BOS]] if wanted else []
        return start + [self.ids.get(w, self.ids[UNKNOWN]) for w in WORD.findall(text)]

    def decode(self, ids: Sequence[int]) -> str:
        """The words apart by spaces."""
        return " ".join(self.texts(ids))

    def texts(self, ids: Sequence[int]) -> list[str]:
        """Each word."""
        return [self.words[int(i)] for i in ids]


def tokenizer_files(
    words: Sequence[str], context: int, begins: bool = True
) -> dict[str, dict[str, Any]]:
    """``tokenizer.json`` and ``tokenizer_config.json`` for these words.

    Args:
        words: of the vocabulary, ``<unk>`` among them, and ``<bos>`` where a prompt begins so.
        context: longest prompt.
        begins: whether ``<bos>`` is put before a prompt.
    """
    special = [
        {
            "id": i,
            "content": w,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for i, w in enumerate(words)
        if w in (BOS, UNKNOWN)
    ]
    bos = {"SpecialToken": {"id": BOS, "type_id": 0}}
    return {
        "tokenizer.json": {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": special,
            "normalizer": None,
            "pre_tokenizer": {
                "type": "Split",
                "pattern": {"Regex": r"[0-9]{2}|\p{L}+|[0-9]|\S"},
                "behavior": "Removed",
                "invert": True,
            },
            "post_processor": None
            if not begins
            else {
                "type": "TemplateProcessing",
                "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [
                    bos,
                    {"Sequence": {"id": "A", "type_id": 0}},
                    {"Sequence": {"id": "B", "type_id": 0}},
                ],
                "special_tokens": {
                    BOS: {"id": BOS, "ids": [list(words).index(BOS)], "tokens": [BOS]}
                },
            },
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
            "model": {
                "type": "WordLevel",
                "vocab": {w: i for i, w in enumerate(words)},
                "unk_token": UNKNOWN,
            },
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **({"bos_token": BOS} if begins else {}),
            "unk_token": UNKNOWN,
            "add_bos_token": begins,
            "model_max_length": context,
            "clean_up_tokenization_spaces": False,
        },
    }
