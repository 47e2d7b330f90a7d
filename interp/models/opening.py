"""Opening a model: read it safely, wrap it for a back-end, prove that nothing was changed."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.terms import UsageError, unknown_name

if TYPE_CHECKING:
    from interp.terms import HookedModel

BACKENDS = {
    "transformer_lens": "interp.models.transformer_lens",
    "nnsight": "interp.models.nnsight_adapter",
    "torch_module": "interp.models.torch_module",
}
"""Back-end -> the file that wraps for it; imported when it is first used."""


def load_model(
    source: Any,
    *,
    backend: str = "transformer_lens",
    device: str = "cpu",
    dtype: str | None = None,
    example: Any = None,
    site_map: Any = None,
    tokenizer: Any = None,
    revision: str | None = None,
    roots: tuple[str | Path, ...] = (),
    verify: bool = True,
) -> HookedModel:
    """Open a model.

    Args:
        source: ``"zoo:NAME"``, a checkpoint folder, a hub id, or an ``nn.Module`` (copied);
            ``"none"`` for methods that need no model.
        backend: ``transformer_lens``, ``nnsight`` or ``torch_module``; a module of no known
            architecture is always wrapped by ``torch_module``, which also reads the encoders,
            mixtures of experts and state-space models of ``others.py``.
        device: where it runs; ``auto`` takes the accelerator with room for all of it, else the
            CPU.
        dtype: ``float64``, ``float32``, ``bfloat16`` or ``float16``; by default float32, and a
            live module's own.
        example: an input of a plain ``nn.Module``, from which its shapes are learned.
        site_map: site kind -> module path and axes, for a hand-written transformer.
        tokenizer: a Hugging Face tokenizer or the folder of one, in place of the source's own.
        revision: branch, tag or commit of a hub id.
        roots: folders in which a bare name is looked for.
        verify: run the self-checks (logits against the unwrapped model, additivity of the
            residual, self-patch, every site's edit has an effect).

    Raises:
        UsageError: a name that does not exist, with the near misses.
        UnsafeError: a checkpoint that would run code.
        RefusedError: an architecture or format interp does not hold.
    """
    if source == "none":
        from interp.models.nothing import NoModel

        return NoModel()
    if backend not in BACKENDS:
        raise unknown_name("back-end", str(backend), BACKENDS)
    adapter = importlib.import_module(BACKENDS[backend])
    plain = importlib.import_module(BACKENDS["torch_module"])
    if _is_plain_module(source, example, site_map):
        return plain.wrap(
            source,
            example=example,
            site_map=site_map,
            device=device,
            dtype=dtype,
            tokenizer=tokenizer,
            verify=verify,
        )
    if (card := _network_card(source)) is not None:
        from interp.models.networks import open_network

        return open_network(card, device=device, dtype=dtype, verify=verify)
    if example is not None or site_map is not None:
        raise UsageError(
            "example and site_map describe an nn.Module, and the source is a name.",
            remedy="Leave them out, or pass the module itself.",
        )
    from interp.models import loading, networks

    if (net := networks.find(source, roots)) is not None:
        return networks.opened(*net, device=device, dtype=dtype, verify=verify)
    options: dict[str, Any] = {
        "device": device,
        "dtype": dtype,
        "tokenizer": tokenizer,
        "revision": revision,
        "roots": roots,
    }
    if backend == "torch_module" or not isinstance(source, (str, Path)):
        found = loading.load_any(source, **options)
        if isinstance(found, loading.LoadedOther):
            return plain.wrap_other(found, verify=verify)
    else:
        found = loading.load(source, **options)
    if backend == "torch_module":
        return adapter.wrap(found.module, loaded=found, verify=verify)
    return adapter.wrap(found, verify=verify)


def _network_card(source: Any) -> Any:
    """The card of a shipped model that is no transformer, or None."""
    from interp.models.registry import MODELS

    card = MODELS.get(source.removeprefix("zoo:")) if isinstance(source, str) else None
    if card is None or not source.startswith("zoo:") or card.architecture != "Network":
        return None
    return card


def _is_plain_module(source: Any, example: Any, site_map: Any) -> bool:
    """Whether a live module is not one of the families, or is described by its owner."""
    if isinstance(source, (str, Path)):
        return False
    from torch import nn

    if not isinstance(source, nn.Module):
        raise UsageError(
            f"A {type(source).__name__} is no model.",
            remedy="Give zoo:NAME, a checkpoint folder, a hub id, or an nn.Module.",
        )
    from interp.models.families import FAMILIES
    from interp.models.others import OTHERS

    known = type(source).__name__ in OTHERS or any(
        c.__name__ in FAMILIES for c in type(source).__mro__
    )
    return example is not None or site_map is not None or not known
