"""Seconds to open each shipped model, self-checks included, with the libraries already imported.

``python -m benchmarks.zoo [--backend transformer_lens] [--rounds 3] [--json] [--write]``. One model
is opened before anything is timed, so that what is measured is the model and not the import of
torch, transformers and the back-end; a dictionary is opened alone.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "0")
if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402

import interp  # noqa: E402
from benchmarks.timing import (  # noqa: E402
    RESULTS,
    describe,
    interleave,
    machine,
    table,
    write,
)
from interp.models import load_dictionary  # noqa: E402
from interp.models.registry import DICTIONARIES, MODELS  # noqa: E402

WARM = "zoo:random-gpt2"
"""What is opened first, untimed."""


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Options."""
    parser = argparse.ArgumentParser(
        prog="interp bench zoo", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--backend", default="transformer_lens", help="what wraps transformers")
    parser.add_argument("--rounds", type=int, default=3, help="times each is opened")
    parser.add_argument("--only", nargs="*", help="names, without zoo: (default: all)")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--write", type=Path, nargs="?", const=RESULTS, default=None,
                        help="also write the result into this folder")  # fmt: skip
    return parser.parse_args(words)


def work_of(args: argparse.Namespace) -> dict[str, tuple[Callable[[], Any], float]]:
    """Ref -> what opens it."""
    found: dict[str, tuple[Callable[[], Any], float]] = {}
    for card in MODELS.values():
        if card.path is None or card.path.is_dir():
            ref = f"zoo:{card.name}"
            found[ref] = (lambda ref=ref: interp.load_model(ref, backend=args.backend), 1.0)
    for card in DICTIONARIES.values():
        for folder in sorted(card.path.glob("*/")) if card.path is not None else ():
            ref = f"zoo:{card.name}/{folder.name}"
            found[ref] = (lambda ref=ref: load_dictionary(ref), 1.0)
    if args.only:
        found = {r: w for r, w in found.items() if r.removeprefix("zoo:") in args.only}
    return found


def say(text: str) -> None:
    """Tell progress."""
    sys.stderr.write(text + "\n")


def main(words: list[str] | None = None) -> int:
    """Measure and tell."""
    args = parse(words)
    facts = machine(torch.device("cpu"))
    interp.load_model(WARM, backend=args.backend)
    timings = interleave(work_of(args), args.rounds, torch.device("cpu"), say)
    data: dict[str, Any] = {
        "backend": args.backend, "rounds": args.rounds, "machine": facts,
        "seconds": {ref: t.median for ref, t in timings.items()},
        "slowest": {ref: max(t.wall) for ref, t in timings.items()},
    }  # fmt: skip
    text = told(data)
    if args.write is not None:
        write("zoo-cpu", data, text, args.write)
    sys.stdout.write((json.dumps(data, indent=1) if args.json else text) + "\n")
    return 0


def told(data: dict[str, Any]) -> str:
    """The result as Markdown."""
    rows = [
        [f"`{ref}`", f"{seconds:.2f}", f"{data['slowest'][ref]:.2f}"]
        for ref, seconds in data["seconds"].items()
    ]
    return "\n".join(
        [
            "# Opening a shipped model", "", describe(data["machine"]), "",
            f"Seconds with libraries imported, self-checks included, back-end {data['backend']}; "
            f"median and slowest of {data['rounds']}.", "",
            table(["model", "median", "slowest"], rows),
        ]
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
