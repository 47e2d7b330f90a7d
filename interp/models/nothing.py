"""NoModel: stands where a method that needs no model is run. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from interp.terms import (
    KINDS,
    Capability,
    CapabilityError,
    Check,
    Edit,
    ModelShape,
    Run,
    Site,
    Tokenizer,
)

NAME = "none"
"""The ref that opens it."""


class NoModel:
    """A model that is none: it has no site, and every question is refused with a sentence."""

    id = NAME
    weight_hash = NAME
    backend = NAME
    device = "cpu"
    dtype = "float64"
    shape = ModelShape(0, 0, 0, 0, 0, 0, 0, None, architecture="no model")
    tokenizer: Tokenizer | None = None
    checks: tuple[Check, ...] = ()
    sites: tuple[Site, ...] = ()

    def capabilities(self) -> tuple[Capability, ...]:
        """Nothing, each with the reason."""
        names = (*KINDS, "blocks", "weights", "grad", "generate", "graph")
        return tuple(Capability(n, False, "there is no model.") for n in names)

    def run(
        self,
        inputs: Any,
        *,
        edits: Iterable[Edit] = (),
        read: Iterable[Site] = (),
        grad: bool = False,
        positions: Any = None,
        vocab: Any = None,
    ) -> Run:
        """Refused.

        Raises:
            CapabilityError: always.
        """
        raise self._refusal()

    def generate(
        self,
        prompt: Any,
        *,
        edits: Iterable[Edit] = (),
        max_tokens: int = 20,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[int]:
        """Refused; see ``run``."""
        raise self._refusal()

    @property
    def blocks(self) -> Any:
        """Refused; see ``run``."""
        raise self._refusal()

    @property
    def weights(self) -> Any:
        """Refused; see ``run``."""
        raise self._refusal()

    def module(self) -> Any:
        """Refused; see ``run``."""
        raise self._refusal()

    def wrapped(self) -> Any:
        """Refused; see ``run``."""
        raise self._refusal()

    def graph(self) -> Any:
        """Refused; see ``run``."""
        raise self._refusal()

    def _refusal(self) -> CapabilityError:
        return CapabilityError(
            "There is no model here ('none').", remedy="Name one, such as zoo:ioi."
        )
