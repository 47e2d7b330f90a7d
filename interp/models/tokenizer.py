"""Tokenizer: a checkpoint's own tokenizer behind the Protocol of terms/models.py.

Nothing is invented: a checkpoint without tokenizer files has none. The text of a token is its own,
raw (a space is a space), never the clean-up of a joined string.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from interp.terms import RefusedError, UsageError


class TextTokenizer:
    """Text to ids and back (``terms.Tokenizer``).

    Args:
        hf: a Hugging Face tokenizer object.
        default_bos: whether prompts start with BOS unless said otherwise; holds only where the
            tokenizer has a BOS.
        vocab: number of tokens the model knows, None if unknown.
    """

    def __init__(self, hf: Any, *, default_bos: bool = False, vocab: int | None = None) -> None:
        self.hf = hf
        self.bos_id: int | None = None if hf.bos_token_id is None else int(hf.bos_token_id)
        self.eos_id: int | None = None if hf.eos_token_id is None else int(hf.eos_token_id)
        self.default_bos = bool(default_bos and self.bos_id is not None)
        self.vocab = vocab
        self._style = _style(hf)
        self._added = {int(i): str(t.content) for i, t in hf.added_tokens_decoder.items()}
        self._text = lru_cache(maxsize=100_000)(self._make_text)

    def __len__(self) -> int:
        return len(self.hf)

    def encode(self, text: str, *, bos: bool | None = None) -> list[int]:
        """Token ids of ``text``; ``bos=None`` does what the model does by default.

        Raises:
            UsageError: BOS asked of a tokenizer that has none, or a token the model lacks.
        """
        ids = [int(i) for i in self.hf(text, add_special_tokens=False)["input_ids"]]
        bos = self.default_bos if bos is None else bos
        if bos:
            if self.bos_id is None:
                raise UsageError("This tokenizer has no BOS token.", remedy="Use bos=False.")
            ids = [self.bos_id, *ids]
        bad = next((i for i in ids if self.vocab is not None and i >= self.vocab), None)
        if bad is not None:
            raise UsageError(
                f"The tokenizer makes token {bad} ({self._text(bad)!r}), and the model has only "
                f"{self.vocab} tokens.",
                remedy="The tokenizer belongs to another model, or the text uses an added token.",
            )
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``, special tokens included."""
        return str(
            self.hf.decode(
                [int(i) for i in ids], skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )

    def texts(self, ids: Sequence[int]) -> list[str]:
        """The text of each id by itself: spaces as spaces, other bytes as ``<0xNN>``."""
        return [self._text(int(i)) for i in ids]

    def _make_text(self, token: int) -> str:
        if token in self._added:
            return self._added[token]
        raw = self.hf.convert_ids_to_tokens(token) if 0 <= token < len(self.hf) else None
        if raw is None:
            return f"<{token}>"
        if "ByteLevel" in self._style:
            table = byte_table()
            if all(c in table for c in raw):
                return bytes(table[c] for c in raw).decode("utf-8", errors="backslashreplace")
            return raw
        if "ByteFallback" in self._style and (found := re.fullmatch(r"<0x([0-9A-F]{2})>", raw)):
            byte = int(found[1], 16)
            return chr(byte) if byte < 0x80 else f"\\x{byte:02x}"
        for mark, text in self._style.get("marks", ()):
            raw = raw.replace(mark, text)
        return raw


def _style(hf: Any) -> dict[str, Any]:
    """Which of the known ways of writing tokens a tokenizer's decoder undoes."""
    decoder = getattr(getattr(hf, "backend_tokenizer", None), "decoder", None)
    if decoder is None:
        return {}
    parts = [json.loads(decoder.__getstate__())]
    style: dict[str, Any] = {}
    marks: list[tuple[str, str]] = []
    while parts:
        part = parts.pop(0)
        parts.extend(part.get("decoders", ()))
        style[part["type"]] = True
        if part["type"] == "Replace" and "String" in part.get("pattern", {}):
            marks.append((part["pattern"]["String"], part["content"]))
        elif part["type"] == "Metaspace":
            marks.append((part.get("replacement", "▁"), " "))
        elif part["type"] == "WordPiece":
            marks.append((part.get("prefix", "##"), ""))
        elif part["type"] == "BPEDecoder":
            marks.append((part.get("suffix", "</w>"), " "))
    return {**style, "marks": tuple(marks)}


@lru_cache(maxsize=1)
def byte_table() -> dict[str, int]:
    """Printable character -> byte, as byte-level BPE writes bytes (after GPT-2's vocabulary)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(b): b for b in plain}
    shifted = (b for b in range(256) if b not in plain)
    return {**table, **{chr(256 + n): b for n, b in enumerate(shifted)}}


def open_tokenizer(folder: str | Path, config: Any = None) -> Any:
    """The Hugging Face tokenizer object of a folder.

    A ``tokenizer.json`` is taken as it stands: transformers' own choice of class by architecture
    would rebuild it after its idea of that architecture. Where its configuration is silent about
    BOS and EOS, the model's config decides, if it names special tokens.

    Args:
        folder: the tokenizer's folder; its JSON files are checked first.
        config: the model's config object, or None.

    Raises:
        UnsafeError: a field that has code run.
        RefusedError: files that transformers cannot read.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    from interp.models.safety import JSON_FILES, read_json, refuse_code_fields

    folder = Path(folder)
    said: dict[str, Any] = {}
    for name in JSON_FILES:
        if (folder / name).is_file():
            data = read_json(folder / name)
            refuse_code_fields(data, name)
            said.update(data if name.startswith(("tokenizer", "special")) else {})
    reader: Any = (
        PreTrainedTokenizerFast if (folder / "tokenizer.json").is_file() else (AutoTokenizer)
    )
    try:
        hf = reader.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers raises bare Exception for a file it cannot read
        raise RefusedError(
            f"The tokenizer in {folder} cannot be read: {' '.join(str(error).split())[:200]}",
            remedy="Save it again as tokenizer.json (tokenizer.save_pretrained), or give another "
            "with tokenizer=….",
        ) from error
    for name in ("bos_token", "eos_token"):
        token = _named_by_config(hf, getattr(config, f"{name}_id", None))
        if name not in said and getattr(hf, name) is None and token is not None:
            setattr(hf, name, token)
    return hf


def _named_by_config(hf: Any, token: Any) -> str | None:
    """The special token of this id, unless it is the unknown or padding token."""
    added = hf.added_tokens_decoder.get(token) if isinstance(token, int) else None
    if added is None or not added.special or token in (hf.unk_token_id, hf.pad_token_id):
        return None
    return str(added.content)
