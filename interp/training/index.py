"""The index of the shipped models, ``docs/zoo.md``, written from their cards."""

from __future__ import annotations

from typing import Any

from interp.models.registry import DICTIONARIES, MODELS, Card

HEAD = """\
# The shipped models

Everything here works offline and has a known answer. `interp.load_model("zoo:NAME")` opens a
model, `interp list models` shows this list, and each folder under `interp/models/zoo` has a
`card.json` with the data, what the model can and cannot do, the mechanism where it is known and how
that was verified; tests measure the cards again. `make zoo` trains all of them again and says
whether they agree with what ships (`make zoo ARGS=NAME` for one). Times are CPU time on two cores
of an ordinary server.

| model | good for | size | trained in |
|---|---|---|---|
"""

RANDOM = """
The `zoo:random-*` models ({names}) are built from a seed: hard random weights in every part of each
architecture, for testing methods, without an answer to find.
"""


def page() -> str:
    """The whole document."""
    shipped = [c for c in (*MODELS.values(), *DICTIONARIES.values()) if c.path is not None]
    rows = [_row(card) for card in shipped if card.path is not None and card.path.is_dir()]
    names = ", ".join(c.name.removeprefix("random-") for c in MODELS.values() if c.path is None)
    total = sum(_seconds(c.facts) or 0 for c in shipped)
    weight = sum(
        p.stat().st_size
        for card in shipped
        if card.path is not None
        for p in card.path.rglob("*.safetensors")
    )
    every = f"| all of them |  | {weight / 1e6:.1f} MB with checkpoints | {_spoken(total)} |\n"
    return HEAD + "".join(rows) + every + RANDOM.format(names=names)


def _row(card: Card) -> str:
    took = _seconds(card.facts)
    return (
        f"| `zoo:{card.name}`: {card.title} | {card.question} | {_size(card.size_bytes)} | "
        f"{'' if took is None else _spoken(took)} |\n"
    )


def _seconds(facts: dict[str, Any]) -> float | None:
    training = facts.get("training", {})
    return training.get("cpu_seconds", training.get("seconds"))


def _size(n: int) -> str:
    return f"{n / 1e6:.1f} MB" if n >= 1e6 else f"{n / 1e3:.0f} kB"


def _spoken(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
