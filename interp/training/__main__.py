"""``python -m interp.training NAME``: train a shipped model again, on two threads at most."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from interp.terms import InterpError, UsageError, unknown_name
from interp.training.recipes import RECIPES

THREADS = 2


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _parser() -> argparse.ArgumentParser:
    names = ", ".join(f"{r.name} ({r.title})" for r in RECIPES.values())
    parser = argparse.ArgumentParser(
        prog="python -m interp.training",
        description="Train a shipped model again and write its folder: weights, config, "
        "tokenizer and card. The same machine gives the same bits.",
    )
    parser.add_argument(
        "name", help=f"which: {names}; or all; or index, which prints docs/zoo.md from the cards"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="leave what ships as it is, and say whether the model trained again agrees with it: "
        "the same bits, or the card's numbers within its tolerance",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="the folder to write (default: where the package "
        "keeps the model; with all, a folder of folders)",
    )
    parser.add_argument("--steps", type=int, help="batches to train on (default: the recipe's)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the data")
    return parser


def zoo() -> Path:
    """The folder of the shipped models."""
    import interp.models

    return Path(interp.models.__file__).parent / "zoo"


def _trained(name: str, folder: Path, given: argparse.Namespace) -> bool:
    """Train one model; False where it was checked and does not agree."""
    _say(f"training {name} into {folder}")
    card = RECIPES[name].make(folder, _say, given.steps, given.seed)
    for title, row in card.get("accuracy", {}).items():
        _say(f"  {title}: {row['right']:.3f} right, {row['preferred']:.3f} preferred")
    if not given.check:
        return True
    from interp.training.agreement import compare

    found = compare(zoo() / name, folder)
    _say(f"  {name}: {'does not ship yet' if found is None else found}")
    return found is None or found.ok


def main(arguments: list[str] | None = None) -> int:
    """Run one recipe or all; returns the exit code."""
    given = _parser().parse_args(arguments)
    try:
        if given.steps is not None and given.steps < 1:
            raise UsageError(f"--steps was given as {given.steps}; wanted 1 or more.")
        if given.name == "index":
            from interp.training.index import page

            sys.stdout.write(page())
            return 0
        names = list(RECIPES) if given.name == "all" else [given.name]
        for name in names:
            if name not in RECIPES:
                raise unknown_name("recipe", name, RECIPES)
        # Spinning threads slow each other down on shared cores; read when torch is imported.
        os.environ.setdefault("GOMP_SPINCOUNT", "0")
        import torch

        torch.set_num_threads(THREADS)
        with ExitStack() as stack:
            out = given.out
            if given.check and out is None:
                out = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            several = given.name == "all" or given.out is None
            agree = [_trained(n, (out or zoo()) / n if several else out, given) for n in names]
        return 0 if all(agree) else 1
    except InterpError as error:
        _say(str(error))
        return error.exit_code
    except OSError as error:
        _say(f"The folder cannot be written: {error.strerror}.")
        return 1


if __name__ == "__main__":
    sys.exit(main())
