"""Loading: read a checkpoint safely and hand over the untouched module with what proves it.

Order of things: JSON and headers are checked (``safety``), then transformers builds the module
from the checked configuration and reads safetensors, then the unwrapped module's logits on a
probe are kept, and only then may a back-end wrap (and change) it.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.models import hub, registry, safety, tensors
from interp.models.families import Family, family_of
from interp.models.others import Other, other_of
from interp.models.placing import bytes_of, cast, read_device, read_dtype
from interp.models.probing import probe_of
from interp.models.tokenizer import TextTokenizer, open_tokenizer
from interp.terms import RefusedError, UsageError, near_misses

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


@dataclass
class Loaded:
    """A module as it was read, before any back-end touches it.

    Args:
        module: the Hugging Face module in eval mode, on its device, in its dtype.
        tokenizer: text to ids and back, or None where the source has none.
        config: the module's config object.
        weight_hash: sha256 over names, shapes, dtypes and bytes of the stored weights.
        id: ``zoo:NAME``, the folder's path, ``REPO@COMMIT``, or ``module:CLASS``.
        family: the architecture's row.
        probe: token ids ``[1, T]`` of a prompt that fits the model.
        reference: logits ``[1, T, vocab]`` of the untouched module on ``probe``.
        hf_tokenizer: the Hugging Face tokenizer object (for back-ends), or None.
        source: facts about where it came from, for provenance.
    """

    module: nn.Module
    tokenizer: TextTokenizer | None
    config: Any
    weight_hash: str
    id: str
    family: Family
    probe: Tensor
    reference: Tensor
    hf_tokenizer: Any = None
    source: dict[str, Any] = field(default_factory=dict)


@dataclass
class _Read:
    """What a source gave, before it is put on its device."""

    module: nn.Module
    weight_hash: str
    id: str
    hf_tokenizer: Any = None
    default_bos: bool | None = None
    source: dict[str, Any] = field(default_factory=dict)


@dataclass
class LoadedOther:
    """A module that is read by a site map alone, as it was read.

    Args:
        module: the Hugging Face module in eval mode, on its device, in its dtype.
        row: its architecture's row.
        tokenizer: text to ids and back, or None where the source has none.
        weight_hash: as ``Loaded.weight_hash``.
        id: as ``Loaded.id``.
        probe: token ids ``[1, T]`` of a prompt that fits the model.
        source: facts about where it came from, for provenance.
    """

    module: nn.Module
    row: Other
    tokenizer: TextTokenizer | None
    weight_hash: str
    id: str
    probe: Tensor
    source: dict[str, Any] = field(default_factory=dict)


def load(
    source: Any,
    *,
    device: str = "cpu",
    dtype: str | None = "float32",
    tokenizer: Any = None,
    revision: str | None = None,
    roots: tuple[str | Path, ...] = (),
) -> Loaded:
    """Read a model.

    Args:
        source: ``zoo:NAME``, a checkpoint folder, a hub id (``owner/name`` or with
            ``@revision``), a name under ``roots``, or a live Hugging Face module (copied).
        device: ``cpu``, ``cuda``, ``cuda:1``, …, or ``auto`` (the accelerator with room for all
            of it, else the CPU).
        dtype: ``float64``, ``float32``, ``bfloat16`` or ``float16``; None keeps a live module's
            own (float32 for everything else).
        tokenizer: a Hugging Face tokenizer, or the folder of one, in place of the source's own.
        revision: branch, tag or commit of a hub id.
        roots: folders in which a bare name is looked for.

    Raises:
        UsageError: a source, device or dtype that does not exist.
        UnsafeError: a checkpoint that would run code.
        RefusedError: an architecture or format interp does not hold, or a model out of reach.
    """
    return _loaded(*_open(source, device, dtype, tokenizer, revision, roots))


def _loaded(read: _Read, module: nn.Module, hf_tokenizer: Any, place: torch.device) -> Loaded:
    """A module of a known family with what proves it."""
    family = family_of(module)
    config: Any = module.config
    probe, reference = _proof(family, module, read.id, place)
    bos = family.default_bos if read.default_bos is None else read.default_bos
    return Loaded(
        module=module,
        tokenizer=None
        if hf_tokenizer is None
        else TextTokenizer(hf_tokenizer, default_bos=bos, vocab=int(config.vocab_size)),
        config=config,
        weight_hash=read.weight_hash,
        id=read.id,
        family=family,
        probe=probe,
        reference=reference,
        hf_tokenizer=hf_tokenizer,
        source=read.source,
    )


def load_any(
    source: Any,
    *,
    device: str = "cpu",
    dtype: str | None = "float32",
    tokenizer: Any = None,
    revision: str | None = None,
    roots: tuple[str | Path, ...] = (),
) -> Loaded | LoadedOther:
    """Read a model of a known family, or one of ``others.py``; arguments and errors as ``load``."""
    read, module, hf_tokenizer, place = _open(
        source, device, dtype, tokenizer, revision, roots, others=True
    )
    row = other_of(type(module).__name__)
    if row is None:
        return _loaded(read, module, hf_tokenizer, place)
    config: Any = module.config
    if row.kind == "experts" and hasattr(module, "set_experts_implementation"):
        module.set_experts_implementation("eager")  # type: ignore[operator]  # any dtype
    import torch

    probe = (7 + 31 * torch.arange(16))[None] % int(config.vocab_size)
    return LoadedOther(
        module,
        row,
        None
        if hf_tokenizer is None
        else TextTokenizer(hf_tokenizer, default_bos=False, vocab=int(config.vocab_size)),
        read.weight_hash,
        read.id,
        probe.to(place),
        read.source,
    )


def _open(
    source: Any,
    device: str,
    dtype: Any,
    tokenizer: Any,
    revision: str | None,
    roots: tuple[str | Path, ...],
    others: bool = False,
) -> tuple[_Read, nn.Module, Any, torch.device]:
    """The module on its device, its Hugging Face tokenizer, and what its source said."""
    safety.assert_floors()
    import torch

    wanted = read_dtype(dtype)
    read_device(device)  # a device that is not there is said before anything is read
    if isinstance(source, torch.nn.Module):
        read = _from_module(source)
    else:
        read = _from_text(source, wanted or torch.float32, revision, roots, others)
    module = cast(read.module, wanted).eval().requires_grad_(True)
    place = read_device(device, bytes_of(module))
    module = module.to(place)
    hf_tokenizer = read.hf_tokenizer
    if tokenizer is not None:
        plain = isinstance(tokenizer, (str, Path))
        hf_tokenizer = _tokenizer_of(Path(tokenizer), module.config) if plain else tokenizer
    return read, module, hf_tokenizer, place


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, load reports or advice from transformers inside; restored after."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _from_text(
    source: Any,
    dtype: torch.dtype,
    revision: str | None,
    roots: tuple[str | Path, ...],
    others: bool,
) -> _Read:
    text = str(source).strip()
    if text.startswith("zoo:"):
        return _from_zoo(text, dtype)
    path = Path(text).expanduser()
    if text and path.is_dir():
        return _from_folder(path, dtype, others)
    if text and path.is_file():
        raise _is_file(path)
    if (found := registry.find_in_roots(text, roots)) is not None:
        return _from_folder(found, dtype, others)
    if isinstance(source, Path) or text[:1] in ("", ".", "/", "~") or "\\" in text:
        raise _no_folder(path, text)
    if text in registry.MODELS:
        raise UsageError(
            f"There is no folder {text!r}.", remedy=f"Did you mean 'zoo:{text}', a shipped model?"
        )
    repo, _, tail = text.partition("@")
    folder, commit = hub.fetch(repo, revision or tail or None, others=others)
    read = _from_folder(folder, dtype, others)
    read.id = f"{repo}@{commit}"
    read.source.update(hub=repo, commit=commit, revision=revision or tail or "main")
    return read


def _is_file(path: Path) -> Exception:
    if path.suffix.lower() in safety.PICKLES:
        return safety.pickle_refused(path)
    return UsageError(
        f"{path} is a file; a model is a folder with config.json and model.safetensors.",
        remedy=f"Give its folder: {path.parent}",
    )


def _no_folder(path: Path, text: str) -> UsageError:
    """The error for a path that is not there, with its neighbours' near misses."""
    if not text:
        return UsageError("The model's name is empty.", remedy="Give zoo:NAME or a folder.")
    parent = path.parent
    if not parent.is_dir():
        return UsageError(f"There is no folder {path}; {parent} is not there either.")
    near = near_misses(path.name, [p.name for p in parent.iterdir() if p.is_dir()])
    remedy = f"Did you mean {' or '.join(str(parent / n) for n in near)}?" if near else ""
    return UsageError(f"There is no folder {path}.", remedy=remedy or "Check the path.")


def _from_zoo(text: str, dtype: torch.dtype) -> _Read:
    from interp.models.dictionaries import dictionaries_of
    from interp.models.networks import checkpoint_of

    name, _, checkpoint = text.partition("@")
    card = registry.card_of(name)
    if card.architecture == registry.DICTIONARY:
        raise UsageError(
            f"{name} holds dictionaries, which belong to a model and are none.",
            remedy=f"Give one where a method asks for a dictionary: {dictionaries_of(name)}.",
        )
    facts = card.facts
    if card.path is not None:
        if not card.path.is_dir():
            raise RefusedError(
                f"zoo:{card.name} is not in this installation: {card.path} is missing.",
                remedy=f"Train it: python -m interp.training {card.name}",
            )
        folder = checkpoint_of(card, checkpoint) if checkpoint else card.path
        read = _from_folder(folder, dtype)
    elif checkpoint:
        raise UsageError(f"{name} is built from a seed, so there is no @{checkpoint}.")
    else:
        from interp.models.zoo.hard import hard_model

        with quiet():
            module = hard_model(facts["recipe"], seed=facts["seed"])
        read = _Read(module, tensors.hash_module(module), "")
        read.source = {"recipe": facts["recipe"], "seed": facts["seed"]}
    read.id = f"zoo:{card.name}{'@' + checkpoint if checkpoint else ''}"
    read.default_bos = facts.get("bos")
    return read


def _from_folder(folder: Path, dtype: torch.dtype, others: bool = False) -> _Read:
    """Build the module of a checked checkpoint folder."""
    seen = safety.inspect(folder, others=others)
    import transformers

    model_class: Any = getattr(transformers, seen.family.architecture)
    known = {
        k: _special(v)
        for k, v in seen.config.items()
        if k not in safety.CODE_KEYS and "_implementation" not in k
    }
    with quiet():
        try:
            config = model_class.config_class.from_dict(known)
            module, report = model_class.from_pretrained(
                str(folder),
                config=config,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        except broken() as error:
            raise RefusedError(
                f"{folder} cannot be read as {seen.family.architecture}: {_one_line(error)}",
                remedy="config.json and the weights do not fit each other.",
            ) from error
    _refuse_gaps(folder, report)
    unused = sorted(map(str, report.get("unexpected_keys", ())))
    return _Read(
        module,
        tensors.hash_files(seen.files),
        str(folder.resolve()),
        _tokenizer_of(folder, config) if seen.has_tokenizer else None,
        source={"files": [p.name for p in seen.files], **({"unused": unused} if unused else {})},
    )


def _special(value: Any) -> Any:
    """A value of ``config.json`` with the infinities that transformers writes as objects."""
    if isinstance(value, dict):
        if set(value) == {"__float__"}:
            return float(value["__float__"])
        return {k: _special(v) for k, v in value.items()}
    return [_special(v) for v in value] if isinstance(value, list) else value


def _tokenizer_of(folder: Path, config: Any) -> Any:
    if not folder.is_dir():
        raise UsageError(f"There is no tokenizer folder {folder}.", remedy="Check the path.")
    with quiet():
        return open_tokenizer(folder, config)


def broken() -> tuple[type[Exception], ...]:
    """What transformers raises for a configuration that fits no weights."""
    from huggingface_hub.errors import StrictDataclassError

    return (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
        StrictDataclassError,
    )


def _one_line(error: Exception) -> str:
    """What went wrong, in one line; out of memory is not the configuration's fault."""
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        raise error
    return (" ".join(str(error).split()) or type(error).__name__)[:300]


def _refuse_gaps(folder: Path, report: dict[str, Any]) -> None:
    """Refuse weights that transformers would have made up (it fills gaps at random)."""
    missing = sorted(map(str, report.get("missing_keys", ())))
    mismatched = sorted(str(m[0]) for m in report.get("mismatched_keys", ()))
    for names, what in ((missing, "lacks"), (mismatched, "has the wrong shape for")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise RefusedError(
                f"{folder} {what} the weight {names[0]}{more} that its config.json calls for.",
                remedy="The checkpoint is incomplete, or belongs to another configuration.",
            )


def _from_module(given: nn.Module) -> _Read:
    """A copy of a live module of a known family (a back-end changes what it wraps).

    Raises:
        RefusedError: its parts lie on several devices.
    """
    places = getattr(given, "hf_device_map", None) or {}
    spread = sorted({str(p) for p in places.values()})
    if len(spread) > 1:
        raise RefusedError(
            f"This {type(given).__name__} is spread over several devices ({', '.join(spread)}).",
            remedy="interp holds a model on one device: load it without device_map, or give its "
            "folder or id with device='auto', which takes a device with room for all of it.",
        )
    module = copy.deepcopy(given)
    return _Read(
        module,
        tensors.hash_module(given),
        f"module:{type(given).__name__}",
        source={"copied": True},
    )


def _proof(family: Family, module: nn.Module, name: str, place: torch.device) -> Any:
    """A probe and the untouched module's logits on it."""
    try:
        probe = probe_of(family, module.config).to(place)
        return probe, logits_of(module, probe)
    except broken() as error:
        raise RefusedError(
            f"{name} was read, but a forward pass fails: {_one_line(error)}",
            remedy="Its config.json does not describe a model that runs.",
        ) from error


def logits_of(module: nn.Module, tokens: Tensor) -> Tensor:
    """Logits of an untouched module, without a graph."""
    import torch

    with torch.no_grad():
        return module(input_ids=tokens, use_cache=False).logits
