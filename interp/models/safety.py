"""Safety: what is checked before any library sees a checkpoint. No torch, no transformers here.

A checkpoint is data. Its configuration may ask for code to be run, its weights may be a pickle,
its folder may hold Python: each is refused with the reason and what to do (docs/security.md).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from interp.models.families import FAMILIES, Family, family_of
from interp.models.others import OTHERS, Other
from interp.models.tensors import TensorHeader, read_headers
from interp.terms import RefusedError, UnsafeError, UsageError

MAX_JSON = 64_000_000
"""Bytes of the largest JSON file that is read (tokenizers reach tens of megabytes)."""

FLOORS = {"torch": (2, 10), "transformers": (5, 9)}
"""Oldest versions without the holes that docs/security.md lists."""

CODE_KEYS = (
    "auto_map",
    "trust_remote_code",
    "custom_pipelines",
    "_attn_implementation_internal",
    "_experts_implementation_internal",
)
"""Fields of a configuration by which a checkpoint has code run."""

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
JSON_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    INDEX,
)


def assert_floors() -> None:
    """Refuse to go on with a library old enough to run a checkpoint's code.

    Raises:
        UnsafeError: torch or transformers below its floor.
    """
    for name, floor in FLOORS.items():
        found = metadata.version(name)
        numbers = tuple(int(n) for n in re.findall(r"\d+", found)[:2])
        if numbers < floor:
            wanted = ".".join(map(str, floor))
            raise UnsafeError(
                f"{name} {found} is installed; {name} before {wanted} can be made to run code by "
                "a checkpoint.",
                remedy=f"Install {name} {wanted} or newer.",
            )


@dataclass(frozen=True)
class Checkpoint:
    """A folder that passed every check.

    Args:
        folder: where it is.
        config: its ``config.json``.
        family: its architecture's row (of ``others`` where that was allowed).
        files: the safetensors files that hold the weights.
        tensors: name -> header over all files.
        has_tokenizer: whether the folder holds a tokenizer.
    """

    folder: Path
    config: dict[str, Any]
    family: Family | Other
    files: tuple[Path, ...]
    tensors: dict[str, TensorHeader] = field(repr=False)
    has_tokenizer: bool

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights."""
        return sum(t.stop - t.start for t in self.tensors.values())

    @property
    def n_params(self) -> int:
        """Number of stored weights."""
        return sum(t.numel for t in self.tensors.values())


def inspect(folder: str | Path, *, others: bool = False) -> Checkpoint:
    """Check a checkpoint folder, reading JSON and headers only.

    Args:
        folder: where it is.
        others: also let through what is read by a site map alone (``others.py``).

    Raises:
        UsageError: no such folder, or not a checkpoint.
        UnsafeError: it asks for code to be run, holds Python, pickles, or reaches outside.
        RefusedError: an unknown architecture, or quantised weights.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"There is no folder {folder}.", remedy="Check the path.")
    _refuse_code(folder)
    config = check_config(folder)
    family = check_architecture(config, others=others)
    files = weight_files(folder)
    tensors = {name: h for path in files for name, h in read_headers(path).items()}
    _refuse_quantised(config, tensors)
    if isinstance(family, Family):
        _check_sizes(config, tensors)
    return Checkpoint(folder, config, family, files, tensors, has_tokenizer(folder))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of the checkpoint.

    Raises:
        UnsafeError: too large, or not a JSON object.
    """
    size = path.stat().st_size
    if size > MAX_JSON:
        raise UnsafeError(f"{path.name} is {size:,} bytes; at most {MAX_JSON:,} are read.")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UnsafeError(f"{path.name} is no JSON.", remedy="Download it again.") from error
    if not isinstance(data, dict):
        raise UnsafeError(f"{path.name} holds no JSON object.", remedy="Download it again.")
    return data


def check_config(folder: Path) -> dict[str, Any]:
    """The folder's ``config.json``, after every JSON file beside it was found free of code.

    Raises:
        UsageError: no ``config.json``.
        UnsafeError: a field that has code run.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise _no_config(folder)
    for name in JSON_FILES:
        if (folder / name).is_file() and name != INDEX:
            refuse_code_fields(read_json(folder / name), name)
    return read_json(path)


def _no_config(folder: Path) -> Exception:
    names = sorted(p.name for p in folder.iterdir())
    if "adapter_config.json" in names:
        return RefusedError(
            f"{folder} holds an adapter (LoRA), not a model.",
            remedy="Merge it into its model and save that with save_pretrained.",
        )
    if any(n.endswith(".gguf") for n in names):
        return RefusedError(
            f"{folder} holds a GGUF file, whose weights are quantised or rearranged.",
            remedy="Use the original safetensors checkpoint.",
        )
    inner = [p.name for p in folder.iterdir() if (p / "config.json").is_file()]
    hint = (
        f"Did you mean {folder / sorted(inner)[0]}?"
        if inner
        else (
            "A checkpoint folder holds config.json and model.safetensors, as save_pretrained "
            "writes them."
        )
    )
    return UsageError(f"{folder} has no config.json, so it is no checkpoint.", remedy=hint)


def refuse_code_fields(data: Mapping[str, Any], where: str) -> None:
    """Refuse a configuration that asks for code to be run, at any depth.

    Raises:
        UnsafeError: naming the field and file.
    """
    for key, value in _fields(data):
        plain = not (isinstance(value, str) and re.search(r"[/:\\]", value))
        if key in CODE_KEYS and value:
            raise UnsafeError(
                f"{where} sets {key}, by which a checkpoint has its own code run.",
                remedy="interp runs no code of a checkpoint: use one of a known architecture, or "
                "load it yourself and pass the module (backend='torch_module').",
            )
        if "_implementation" in key and not plain:
            raise UnsafeError(
                f"{where} sets {key} to {value!r}, which names code to be fetched.",
                remedy="Take the field out of the file.",
            )


def _fields(data: Any) -> Iterator[tuple[str, Any]]:
    """Every (key, value) at any depth."""
    stack = [data]
    while stack:
        item = stack.pop()
        if isinstance(item, Mapping):
            for key, value in item.items():
                yield str(key), value
                stack.append(value)
        elif isinstance(item, list):
            stack.extend(item)


def _refuse_code(folder: Path) -> None:
    """Refuse Python files, and links that lead out of the folder (a hub cache's own excepted)."""
    root = folder.resolve()
    blobs = root.parent.parent / "blobs" if root.parent.name == "snapshots" else root
    for path in [*folder.iterdir(), *(folder / "custom_generate").glob("*")]:
        if path.suffix.lower() in (".py", ".pyc", ".so", ".pyd") and not path.is_dir():
            raise UnsafeError(
                f"{folder} holds {path.name}: a checkpoint with code of its own.",
                remedy="Copy config.json, the safetensors files and the tokenizer to a folder "
                "without it; the code is never run.",
            )
        real = path.resolve()
        if path.is_symlink() and not (real.is_relative_to(root) or real.is_relative_to(blobs)):
            raise UnsafeError(
                f"{path.name} in {folder} is a link that leads out of the folder.",
                remedy="Put the file itself there, or give the folder it lies in.",
            )


UNKNOWN_KINDS = (
    (r"Moe|Mixtral|MoE|Switch|Dbrx", "routes tokens to experts, which no site of ours holds"),
    (
        r"Mamba|Rwkv|RWKV|Jamba|Recurrent|Zamba|Ssm|Bamba|xLSTM",
        "keeps a recurrent state where attention would stand",
    ),
    (
        r"T5|Bart|Pegasus|Marian|Whisper|EncoderDecoder|Seq2Seq",
        "is an encoder with a decoder; interp reads decoders that predict the next token",
    ),
    (
        r"Bert|ForMaskedLM|Electra|Deberta|ForTokenClassification|ForQuestionAnswering",
        "is an encoder that predicts no next token",
    ),
    (r"ForSequenceClassification|ForImageClassification", "is a classifier without next tokens"),
    (r"ForConditionalGeneration|Vision|Clip|CLIP|Vl|VL", "reads more than text"),
)
"""Pattern of an architecture's name -> why it is none of ours. First match counts."""


def check_architecture(config: Mapping[str, Any], *, others: bool = False) -> Family | Other:
    """The row of the architecture that a ``config.json`` names.

    Args:
        config: the parsed file.
        others: also let through what is read by a site map alone (``others.py``).

    Raises:
        RefusedError: an architecture without a row, with the reason.
    """
    kinds = {f.model_type: f for f in FAMILIES.values()}
    listed = config.get("architectures") or ()
    named = [str(a) for a in listed] if isinstance(listed, (list, tuple)) else [str(listed)]
    model_type = str(config.get("model_type", ""))
    if not named and model_type in kinds:
        return kinds[model_type]
    name = named[0] if named else model_type or "none"
    if name in OTHERS:
        other = OTHERS[name]
        if not others:
            raise RefusedError(
                f"The architecture {name} {other.why}.",
                remedy="backend='torch_module' reads and edits what it has: "
                f"{', '.join(other.sites)}, any module by its path, and the output.",
            )
        _check_type(name, model_type, other.model_type)
        return other
    if name not in FAMILIES:
        why = next((text for pattern, text in UNKNOWN_KINDS if re.search(pattern, name)), "")
        if not why and model_type in kinds:
            why = f"is a {model_type} model without the head that predicts tokens"
        if why:
            raise RefusedError(
                f"The architecture {name} {why}.",
                remedy=f"Known: {', '.join(FAMILIES)}. Another network is read as a module that "
                "you load yourself: interp.load_model(module, example=token_ids).",
            )
    family = family_of({"architectures": [name]})
    _check_type(name, model_type, family.model_type)
    return family


def _check_type(name: str, given: str, wanted: str) -> None:
    if given and given != wanted:
        raise UnsafeError(
            f"config.json names the architecture {name} and the model_type {given!r}, which "
            "do not belong together.",
            remedy=f"{name} has model_type {wanted!r}.",
        )


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files of a checkpoint folder.

    Raises:
        UsageError: no weights at all, or a shard that is missing.
        UnsafeError: pickled weights, or an index that points outside.
    """
    if (folder / INDEX).is_file():
        shards = read_json(folder / INDEX).get("weight_map")
        names = sorted({str(n) for n in shards.values()}) if isinstance(shards, dict) else []
        for name in names:
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise UnsafeError(f"{INDEX} points to {name!r}, which is no file of the folder.")
            if not (folder / name).is_file():
                raise UsageError(
                    f"{folder} lacks {name}, which its index lists.",
                    remedy="Download or copy the missing file.",
                )
        if names:
            return tuple(folder / n for n in names)
    if (folder / WEIGHTS).is_file():
        return (folder / WEIGHTS,)
    present = sorted(p for p in folder.iterdir() if p.is_file())
    pickles = [p for p in present if p.suffix.lower() in PICKLES]
    if pickles:
        raise pickle_refused(pickles[0])
    others = [p.name for p in present if p.suffix == ".safetensors"]
    hint = (
        f"It holds {others[0]}; the file must be called {WEIGHTS}."
        if others
        else (f"Put {WEIGHTS} beside config.json.")
    )
    raise UsageError(f"{folder} has no weights.", remedy=hint)


def _check_sizes(config: Mapping[str, Any], tensors: Mapping[str, TensorHeader]) -> None:
    """Refuse a config that describes more or fewer layers or positions than the weights hold."""
    found = {int(m[1]) for n in tensors if (m := re.search(r"(?:^|\.)(?:layers|h)\.(\d+)\.", n))}
    layers = {"layers": len(found)}
    for header in tensors.values():
        if header.name.endswith("wpe.weight") and header.shape:
            layers["positions"] = header.shape[0]
    names = {
        "layers": ("num_hidden_layers", "n_layer", "num_layers"),
        "positions": ("max_position_embeddings", "n_positions"),
    }
    for what, count in layers.items():
        key = next((k for k in names[what] if k in config), None)
        if key is not None and config[key] != count:
            raise RefusedError(
                f"config.json says {key} = {config[key]!r}, and the weights hold {count} {what}.",
                remedy="The configuration belongs to other weights.",
            )


def pickle_refused(path: Path) -> UnsafeError:
    """The error for a pickled checkpoint, with the command that converts it."""
    source = path.parent if path.name != "" and (path.parent / "config.json").is_file() else path
    target = source.with_name(f"{source.stem if source.is_file() else source.name}-safetensors")
    return UnsafeError(
        f"{path.name} is a pickle, and opening a pickle can run code.",
        remedy=f"Convert it once: python -m interp.models.convert '{source}' '{target}'",
    )


def has_tokenizer(folder: Path) -> bool:
    """Whether the folder holds a tokenizer's own files (nothing is ever looked for elsewhere)."""

    def there(*names: str) -> bool:
        return all((folder / n).is_file() for n in names)

    return there("tokenizer.json") or there("vocab.json", "merges.txt") or there("tokenizer.model")


def _refuse_quantised(config: Mapping[str, Any], tensors: Mapping[str, TensorHeader]) -> None:
    """Refuse rounded weights: their kernels' results depend on the batch, which drowns effects."""
    how = config.get("quantization_config") or config.get("compression_config")
    packed = next(
        (
            t
            for t in tensors.values()
            if t.name.endswith("weight") and t.dtype not in ("F64", "F32", "F16", "BF16")
        ),
        None,
    )
    if how or packed:
        name = (
            how.get("quant_method", "quantised")
            if isinstance(how, Mapping)
            else (packed.dtype if packed else "quantised")
        )
        raise RefusedError(
            f"These weights are quantised ({name}). Quantised kernels give results that depend on "
            "the batch, so an effect measured with them is not the edit's alone.",
            remedy="Use the checkpoint in bfloat16, float16 or float32.",
        )
