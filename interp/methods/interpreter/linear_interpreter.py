"""LinearInterpreter: at one input, what the network does as a matrix, and what it adds."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import xarray as xr
from pydantic import Field, field_validator

from interp.engine.linear import driven
from interp.methods.interpreter.matrices import Matrices
from interp.methods.interpreter.prompts import Prompts
from interp.terms import (
    CapabilityError,
    Context,
    HookedModel,
    LabelledInputs,
    Method,
    PromptPairs,
    Texts,
)

ADVANCED: dict[str, Any] = {"advanced": True}
FIRST: dict[str, Any] = {"advanced": False}


class LinearInterpreter(Method):
    """The network frozen at an input x₀: ``f̂(x; x₀) = F(x₀)·x + r(x₀)``, ``f̂(x₀; x₀) = f(x₀)``.

    Every non-linear unit takes its decision at x₀ (mask, argmax, divisor, slope, pattern) and is
    linear from then on (michelini2019tour). Rows of F say which pixels an output reads,
    columns what a pixel writes; ``vote = row ⊙ x₀``, and ``Σ votes + r = logit``. r is told by its
    sources, each measured by itself: ``|f - F·x₀ - Σ_s r_s|`` is the check that can fail. F is not
    the gradient unless the network is piecewise linear and without norms.

    Beyond the paper: no second batch, no rewritten network, transformers (patterns, norms and gates
    held), r by source, a certificate on each singular value.
    """

    title: ClassVar[str] = "Linear interpreter"
    question: ClassVar[str] = "What does the network do to this very input, as a matrix?"
    citations: ClassVar[tuple[str, ...]] = ("michelini2019tour",)
    version: ClassVar[int] = 1

    tour: Literal["votes", "rows", "columns", "residual", "svd", "copy_template"] = Field(
        "votes", json_schema_extra=FIRST
    )
    """What is shown: votes of each pixel or token, rows or columns of F as pictures, the remainder
    by source, singular vectors, or whether pixels are copied or templates drawn."""
    labels: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None, max_length=64, json_schema_extra=FIRST
    )
    """Outputs that are explained; empty for all up to ten, else the top three (right and wrong
    answer of a pair)."""
    pixels: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None, max_length=64, json_schema_extra=FIRST
    )
    """Whose rows or columns, counted along the rows of the picture; empty for three telling
    ones."""
    k: Annotated[int, Field(ge=1, le=64, json_schema_extra=FIRST)] = 8
    """How many singular vectors."""
    mean: Literal["linear", "frozen"] = Field("linear", json_schema_extra=FIRST)
    """Whether a norm's mean follows its input, or is a constant (as in the paper)."""
    gate_rule: Literal["value", "half"] = Field("value", json_schema_extra=ADVANCED)
    """How a gated product is passed: all to the value, or half to each factor."""
    attn_rule: Literal["ah", "grad"] = Field("ah", json_schema_extra=ADVANCED)
    """Attention patterns held, or left as they are (then F is not the whole story)."""
    input_site: str | None = Field(None, max_length=200, json_schema_extra=ADVANCED)
    """Where the map begins: the network's input if empty; embed, resid_pre L3, or module:PATH."""
    output_site: str | None = Field(None, max_length=200, json_schema_extra=ADVANCED)
    """Where it ends: the network's output if empty, or module:PATH."""
    at: str = Field("last", max_length=60, json_schema_extra=ADVANCED)
    """Position whose logits are explained: last, or an index."""
    solver: Literal["auto", "dense", "lanczos"] = Field("auto", json_schema_extra=ADVANCED)
    """How singular vectors are found; auto makes F where it has at most 5 million entries."""
    image: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = Field(
        None, json_schema_extra=ADVANCED
    )
    """Height and width of the picture that a flat list of inputs is, as 8,8."""
    declared: tuple[str, ...] = Field((), max_length=64, json_schema_extra=ADVANCED)
    """Modules of elementary operations and their rule: PATH=secant or PATH=stop."""
    jacobian: bool = Field(False, json_schema_extra=ADVANCED)
    """Measure how far F is from the gradient, ‖F-J‖/‖J‖."""
    seed: Annotated[int, Field(ge=0, json_schema_extra=ADVANCED)] = 0
    """Of the vectors that checks and Lanczos begin with."""

    @field_validator("declared")
    @classmethod
    def _with_rules(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            if value.partition("=")[2] not in ("secant", "stop"):
                raise ValueError(f"{value!r} is no PATH=secant or PATH=stop")
        return values

    def measure(
        self, model: HookedModel, task: LabelledInputs | PromptPairs | Texts, context: Context
    ) -> xr.Dataset:
        """Arrays of the tour; see docs/linear-interpreters.md.

        ``vote [prompt, label, channel, row, column]`` (tokens: ``[prompt, label, position]``),
        ``residual_by_source [prompt, label, component]``, ``row_image``, ``column_image``,
        ``singular_value``, ``certificate [prompt, mode]``, ``eigen_input``, ``eigen_output``.
        """
        if isinstance(task, LabelledInputs):
            return Matrices(self, model, task, context).measured()
        if not driven(model):
            raise CapabilityError(
                f"{model.id} reads tokens and the engine cannot drive its layers.",
                remedy="Use a model of a known family, or freeze its module: "
                "interp.engine.linear.freeze(module, ids).",
            )
        return Prompts(self, model, task, context).measured()
