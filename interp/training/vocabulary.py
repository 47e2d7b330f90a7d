"""The word-level tokenizer of the shipped models, as files and as an object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from interp.tasks.grammar import BOS, UNKNOWN, WORD, vocabulary


class Words:
    """Words to ids and back, as the shipped ``tokenizer.json`` does it; BOS is prepended."""

    default_bos = True

    def __init__(self, words: Sequence[str] | None = None) -> None:
        self.words = tuple(words or vocabulary())
        self.ids = {w: i for i, w in enumerate(self.words)}
        self.bos_id: int | None = self.ids[BOS]

    def encode(self, text: str, *, bos: bool | None = None) -> list[int]:
        """Ids of the words of ``text``; a word that is not known becomes ``<unk>``."""
        start = [self.ids[BOS]] if bos is None or bos else []
        return start + [self.ids.get(w, self.ids[UNKNOWN]) for w in WORD.findall(text)]

    def decode(self, ids: Sequence[int]) -> str:
        """The words apart by spaces."""
        return " ".join(self.texts(ids))

    def texts(self, ids: Sequence[int]) -> list[str]:
        """Each word."""
        return [self.words[int(i)] for i in ids]


def tokenizer_files(words: Sequence[str], context: int) -> dict[str, dict[str, Any]]:
    """``tokenizer.json`` and ``tokenizer_config.json`` for these words."""
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
            "post_processor": {
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
            "bos_token": BOS,
            "unk_token": UNKNOWN,
            "add_bos_token": True,
            "model_max_length": context,
            "clean_up_tokenization_spaces": False,
        },
    }
