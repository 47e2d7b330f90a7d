"""Loading: read a checkpoint safely and hand over the untouched module with what proves it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from interp.models.families import Family
    from interp.terms import Tokenizer


@dataclass
class Loaded:
    """A module as it was read, before any back-end touches it.

    Args:
        module: the Hugging Face module in eval mode, on its device, in its dtype.
        tokenizer: text to ids and back, or None where the source has none.
        config: the module's config object.
        weight_hash: sha256 over names, shapes, dtypes and bytes of the parameters.
        id: ``zoo:NAME``, the folder's path, or the hub id with its commit.
        family: the architecture's row.
        probe: token ids ``[1, T]`` of a prompt that fits every model.
        reference: logits ``[1, T, vocab]`` of the untouched module on ``probe``.
        hf_tokenizer: the Hugging Face tokenizer object (for back-ends), or None.
        source: facts about where it came from (revision, files), for provenance.
    """

    module: nn.Module
    tokenizer: Tokenizer | None
    config: Any
    weight_hash: str
    id: str
    family: Family
    probe: Tensor
    reference: Tensor
    hf_tokenizer: Any = None
    source: dict[str, Any] = field(default_factory=dict)


def load(
    source: Any,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    tokenizer: Any = None,
    revision: str | None = None,
    roots: tuple[str, ...] = (),
) -> Loaded:
    """Read a model.

    Args:
        source: ``zoo:NAME``, a local folder, a hub id, or a live Hugging Face module (copied).
        device: where to put it.
        dtype: ``float64``, ``float32``, ``bfloat16`` or ``float16``.
        tokenizer: a Hugging Face tokenizer, or the folder of one, in place of the source's own.
        revision: branch, tag or commit of a hub id.
        roots: folders in which a bare name is looked for.
    """
    raise AssertionError("published first for its signature")
