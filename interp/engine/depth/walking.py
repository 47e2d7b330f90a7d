"""Walking: one forward pass that shows what each layer reads and adds. Nothing is stored.

Legend: R prompts, T positions, N = R·T packed tokens, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.engine.costs import MLP_BYTES
from interp.terms import RefusedError

LOGIT_BYTES = 64 * 2**20
"""Logits of the whole vocabulary stand for at most this many bytes at a time."""


def wide(x: Tensor) -> Tensor:
    """float64 stays, all else becomes float32: the dtype of every norm, softmax and mean."""
    return x if x.dtype == torch.float64 else x.float()


@dataclass(eq=False)
class Step:
    """One layer of one pass.

    Args:
        layer: its number; block: the layer itself.
        block: see ``layer``.
        resid: H_l ``[R, T, D]``; attn, mlp: what attention and MLP add; following: H_{l+1}.
        attn: see ``resid``.
        mlp: see ``resid``.
        following: see ``resid``.
        pattern: makes the attention pattern ``[R, head, T, T]``.
    """

    layer: int
    block: Any
    resid: Tensor
    attn: Tensor
    mlp: Tensor
    following: Tensor
    pattern: Callable[[], Tensor]

    @property
    def read(self) -> Tensor:
        """What the MLP's write joins: U = H + a, or H in a parallel block."""
        return self.resid if self.block.parallel else self.resid + self.attn


def mlp_of(block: Any, read_ND: Tensor) -> Tensor:
    """What the MLP adds, in slices, so that the neurons of all tokens never stand at once."""
    step = max(256, MLP_BYTES // (max(1, block.d_mlp) * read_ND.element_size()))
    if len(read_ND) <= step:
        return block.add_mlp(block.mlp_sum(block.neurons(read_ND)))
    out = torch.empty_like(read_ND)
    for i in range(0, len(read_ND), step):
        part = read_ND[i : i + step]
        out[i : i + step] = block.add_mlp(block.mlp_sum(block.neurons(part)))
    return out


def layer_step(block: Any, resid_RTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What attention and MLP add, and the next residual, all ``[R, T, D]``."""
    R, T, D = resid_RTD.shape
    position_T = torch.arange(T, device=resid_RTD.device)
    x_ND = resid_RTD.reshape(R * T, D)
    q, k, v = (s.unflatten(0, (R, T)) for s in block.qkv(x_ND, position_T.repeat(R)))
    attn_ND = block.add_attn(block.attn_sum(block.attend(q, k, v, position_T).flatten(0, 1)))
    del q, k, v
    mid_ND = x_ND + attn_ND
    mlp_ND = mlp_of(block, x_ND if block.parallel else mid_ND)
    shape = (R, T, D)
    return attn_ND.view(shape), mlp_ND.view(shape), (mid_ND + mlp_ND).view(shape)


def embedded(blocks: Any, tokens: np.ndarray) -> Tensor:
    """H_0 of whole prompts, ``[R, T, D]``."""
    ids = torch.from_numpy(np.ascontiguousarray(tokens, np.int64)).to(blocks.device)
    position = torch.arange(ids.shape[1], device=ids.device).repeat(ids.shape[0])
    return blocks.embed(ids.flatten(), position).unflatten(0, tuple(ids.shape))


def walk(blocks: Any, tokens: np.ndarray) -> Iterator[Step]:
    """Every layer in turn, for prompts ``[R, T]`` of one length; the caller holds ``no_grad``."""
    x = embedded(blocks, tokens)
    R, T, _ = x.shape
    position_T = torch.arange(T, device=x.device)
    for number, block in enumerate(blocks.layers):
        attn, mlp, following = layer_step(block, x)
        check_finite(following, number)

        def pattern(block: Any = block, x: Tensor = x) -> Tensor:
            q, k, _ = block.qkv(x.flatten(0, 1), position_T.repeat(R))
            return block.pattern(q.unflatten(0, (R, T)), k.unflatten(0, (R, T)), position_T)

        yield Step(number, block, x, attn, mlp, following, pattern)
        x = following


def check_finite(resid: Tensor, layer: int) -> None:
    """Refuse a residual that is not finite: it would pass for an undefined effect.

    Raises:
        RefusedError: with the site.
    """
    if not bool(torch.isfinite(resid).all()):
        raise RefusedError(
            f"The residual behind layer {layer} is not finite (resid_post L{layer}).",
            remedy="Load the model with dtype='float32'.",
        )


def slices(n: int, vocab: int, itemsize: int = 4) -> Iterator[slice]:
    """Pieces of n rows whose logits keep within ``LOGIT_BYTES``."""
    step = max(1, LOGIT_BYTES // (max(1, vocab) * itemsize))
    for start in range(0, n, step):
        yield slice(start, min(n, start + step))


def scored_losses(
    blocks: Any, resid_RTD: Tensor, targets: np.ndarray, where: np.ndarray, vocab: int
) -> Tensor:
    """-log of the probability of the right tokens at marked positions, ``[marked]``.

    Args:
        blocks: the model.
        resid_RTD: its last residual.
        targets: ``[R, T, alternative]``, -1 where there is none; alternatives are summed.
        where: marks ``[R, T]``.
        vocab: size of the vocabulary.
    """
    row, at = np.nonzero(where)
    device = resid_RTD.device
    chosen = resid_RTD[torch.from_numpy(row).to(device), torch.from_numpy(at).to(device)]
    right = torch.from_numpy(targets[row, at]).to(resid_RTD.device)
    out = []
    for part in slices(len(chosen), vocab):
        logp = torch.log_softmax(wide(blocks.unembed(chosen[part])), -1)
        picked = logp.gather(1, right[part].clamp_min(0))
        picked = picked.masked_fill(right[part] < 0, -torch.inf)
        out.append(-torch.logsumexp(picked, -1))
    return torch.cat(out) if out else resid_RTD.new_empty(0)


def distance(p: Tensor, q: Tensor) -> Tensor:
    """‖p - q‖₂ over the last axis; ``p`` is overwritten."""
    return p.sub_(q).norm(dim=-1)
