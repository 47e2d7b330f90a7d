"""Programs: a model's layers run in another order, some left out, some more than once.

A program is a list of stages, each a list of parts (layer number and what of it runs) that read
the same residual and add their contributions; an ordinary layer is a stage of one. Every
occurrence computes its own keys and values. Programs that begin alike share what they begin with,
and programs whose next stage is the same run it as one batch.

Legend: B prompts of one length, T positions, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.engine.depth.walking import embedded, layer_step, mlp_of

Part = tuple[int, str]
"""Layer number, and ``layer``, ``attention`` or ``MLP``: what of it runs."""
Stage = tuple[Part, ...]
Program = tuple[Stage, ...]


def plain(layers: Sequence[int]) -> Program:
    """The program that runs these layers, whole, one after the other."""
    return tuple(((layer, "layer"),) for layer in layers)


@dataclass(eq=False)
class _Node:
    """A beginning that programs share."""

    resid: Tensor | None = None
    ends: list[int] = field(default_factory=list)
    then: dict[Stage, _Node] = field(default_factory=dict)


def run_programs(
    blocks: Any,
    tokens: np.ndarray,
    programs: Sequence[Program],
    visit: Callable[[int, Tensor], None],
    *,
    at_once: int = 64,
    on_stage: Callable[[float], None] = lambda share: None,
) -> int:
    """Run every program; ``visit(number, last residual [B, T, D])`` for each. Breadth first.

    Args:
        blocks: the model.
        tokens: prompts ``[B, T]`` of one length.
        programs: stages of parts of layers.
        visit: gets each program's last residual.
        at_once: siblings of one stage that run together.
        on_stage: told the share that is done.

    Returns:
        how many times a layer was called on the prompts (rows together count each).
    """
    root = _Node()
    for number, program in enumerate(programs):
        node = root
        for stage in program:
            node = node.then.setdefault(stage, _Node())
        node.ends.append(number)
    calls, depth, most = 0, 0, max(map(len, programs))
    with torch.no_grad():
        root.resid = embedded(blocks, tokens)
        front = [root]
        while front:
            by_stage: dict[Stage, list[tuple[_Node, _Node]]] = {}
            for node in front:
                for number in node.ends:
                    assert node.resid is not None
                    visit(number, node.resid)
                for stage, child in node.then.items():
                    by_stage.setdefault(stage, []).append((node, child))
            for stage, pairs in by_stage.items():
                for i in range(0, len(pairs), at_once):
                    calls += _advance(blocks, stage, pairs[i : i + at_once])
            for node in front:
                node.resid = None
            front = [child for pairs in by_stage.values() for _, child in pairs]
            depth += 1
            on_stage(min(1.0, depth / (most + 1)))
    return calls


def added(blocks: Any, part: Part, x_BTD: Tensor) -> Tensor:
    """What a part of a layer adds to this residual."""
    layer, what = part
    block = blocks.layers[layer]
    if what == "MLP":
        return mlp_of(block, x_BTD.flatten(0, 1)).view_as(x_BTD)
    attn, mlp, _ = layer_step(block, x_BTD)
    return attn if what == "attention" else attn + mlp


def advanced(blocks: Any, stage: Stage, x_BTD: Tensor) -> Tensor:
    """The residual behind a stage; of a single whole layer to the bit what the layer gives."""
    if len(stage) == 1 and stage[0][1] == "layer":
        return layer_step(blocks.layers[stage[0][0]], x_BTD)[2]
    out = x_BTD
    for part in stage:
        out = out + added(blocks, part, x_BTD)
    return out


def staged(
    blocks: Any, tokens: np.ndarray, program: Program
) -> Iterator[tuple[Stage, Tensor, Tensor]]:
    """One program stage by stage: the stage, the residual before it and behind it."""
    x = embedded(blocks, tokens)
    for stage in program:
        out = advanced(blocks, stage, x)
        yield stage, x, out
        x = out


def _advance(blocks: Any, stage: Stage, pairs: Sequence[tuple[_Node, _Node]]) -> int:
    """One stage over the residuals of several parents."""
    x = torch.cat([parent.resid for parent, _ in pairs])  # type: ignore[misc]
    out = advanced(blocks, stage, x)
    for (_, child), rows in zip(pairs, out.chunk(len(pairs)), strict=True):
        child.resid = rows
    return len(stage) * len(pairs)
