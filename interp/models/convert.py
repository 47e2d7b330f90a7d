"""Convert a pickled checkpoint: ``python -m interp.models.convert FILE_OR_FOLDER OUT``.

The pickle is opened in a process of its own with ``torch.load(weights_only=True)``, under a time
limit, and there is no other way in: what that refuses is refused. The result is a folder with
``model.safetensors`` and, where the source has them, its configuration and tokenizer.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.models import safety
from interp.terms import InterpError, RefusedError, UnsafeError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

KEEP = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
"""Files beside the weights that are copied."""

SECONDS = 600.0


def convert(source: str | Path, out: str | Path, *, seconds: float = SECONDS) -> Path:
    """Write a folder with the weights of a pickled checkpoint as safetensors.

    Args:
        source: a ``.bin``/``.pt``/``.pth`` file, or a checkpoint folder with such files.
        out: the folder to make; it must not hold weights already.
        seconds: time limit of the process that opens the pickle.

    Raises:
        UsageError: nothing to convert, or ``out`` is taken.
        UnsafeError: the pickle holds more than tensors.
        RefusedError: out of time or memory, or tensors that cannot be written.
    """
    source, out = Path(source).expanduser(), Path(out).expanduser()
    files = _pickles(source)
    target = out / safety.WEIGHTS
    if target.exists():
        raise UsageError(f"{target} is there already.", remedy="Name another folder.")
    out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", __spec__.name, "--child", str(target), *map(str, files)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired as error:
        raise RefusedError(
            f"Reading {source} took longer than {seconds:.0f} s, so it was stopped.",
            remedy="Allow more with --seconds.",
        ) from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"])[-1]
        kind = UnsafeError if done.returncode == UnsafeError.exit_code else RefusedError
        raise kind(f"{source} was not converted: {last[:400]}")
    beside = source if source.is_dir() else source.parent
    for name in KEEP:
        if (beside / name).is_file():
            shutil.copyfile(beside / name, out / name)
    return out


def _pickles(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise UsageError(f"There is no file or folder {source}.", remedy="Check the path.")
    found = sorted(p for p in source.iterdir() if p.suffix.lower() in safety.PICKLES)
    weights = [p for p in found if p.name.startswith(("pytorch_model", "model", "consolidated"))]
    chosen = weights or [p for p in found if not p.name.startswith(("training_args", "optimizer"))]
    if not chosen:
        raise UsageError(f"{source} holds no .bin, .pt or .pth file.")
    return chosen


def _read(path: Path) -> dict[str, Tensor]:
    """Tensors of one pickle, by its own names; runs in the child only."""
    import torch

    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever stops the restricted reader is a refusal
        reason = " ".join(str(error).split())[:300]
        raise UnsafeError(
            f"{path.name} holds more than tensors, or is damaged: {reason}"
        ) from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(data, Mapping) and isinstance(data.get(key), Mapping):
            data = data[key]
    found = dict(_flat(data, ""))
    if not found:
        raise UnsafeError(f"{path.name} holds no tensors by name.")
    return found


def _flat(data: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    import torch

    if isinstance(data, torch.Tensor):
        yield prefix, data
    elif isinstance(data, Mapping):
        for key, value in data.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))


def _child(target: Path, files: Sequence[Path]) -> None:
    """Read every file and write one; tied tensors are written once."""
    from interp.models.tensors import write_tensors

    safety.assert_floors()
    merged: dict[str, Tensor] = {}
    for path in files:
        merged.update(_read(path))
    seen: dict[tuple[int, tuple[int, ...]], str] = {}
    once = {}
    for name, tensor in merged.items():
        key = (tensor.data_ptr(), tuple(tensor.shape))
        if tensor.numel() and key in seen and name.endswith("lm_head.weight"):
            continue
        seen.setdefault(key, name)
        once[name] = tensor
    write_tensors(target, once)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m interp.models.convert",
        description="Convert a pickled checkpoint (.bin, .pt, .pth) to a safetensors folder, "
        "without running what the pickle may hold.",
    )
    parser.add_argument("source", help="the file, or the checkpoint folder that holds it")
    parser.add_argument("out", help="the folder to write")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time limit (%(default)s)")
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if given[:1] == ["--child"]:
            _child(Path(given[1]), [Path(p) for p in given[2:]])
            return 0
        options = parser.parse_args(given)
        out = convert(options.source, options.out, seconds=options.seconds)
    except InterpError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    sys.stdout.write(f"Wrote {out}. Use it as --model '{out}'.\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
