"""Jacobians of one layer at one token, and the gradient of the loss at every boundary.

Legend: B prompts of one length, T positions, N tokens at which a Jacobian is taken, P probes,
S key positions, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.engine.depth.corpus import Batch
from interp.engine.depth.walking import embedded, layer_step, slices, wide


class TokenMap:
    """H_{l+1}[t] as a function of H_l[t] alone, other positions held.

    Args:
        block: the layer.
        resid_BTD: H_l of the clean run.
        rows: prompt of each token ``[N]``; at: its position.
        at: see ``rows``.
    """

    def __init__(self, block: Any, resid_BTD: Tensor, rows: Tensor, at: Tensor) -> None:
        self.block = block
        B, T, _ = resid_BTD.shape
        position = torch.arange(T, device=resid_BTD.device)
        with torch.no_grad():
            k, v = (s.unflatten(0, (B, T)) for s in block.kv(resid_BTD.flatten(0, 1),
                                                             position.repeat(B)))  # fmt: skip
        self.k, self.v, self.at = k[rows], v[rows], at
        self.x = resid_BTD[rows, at].detach()
        self.own = (position == at[:, None])[:, :, None, None]

    def __call__(self, x_ND: Tensor, of: Tensor) -> Tensor:
        """Next residual ``[M, D]`` of tokens ``of [M]`` with residual ``x [M, D]``."""
        block, at = self.block, self.at[of]
        q, k, v = block.qkv(x_ND, at)
        keys = torch.where(self.own[of], k[:, None], self.k[of])
        values = torch.where(self.own[of], v[:, None], self.v[of])
        z = block.attend(q[:, None], keys, values, at[:, None])[:, 0]
        attn = block.add_attn(block.attn_sum(z))
        read = x_ND if block.parallel else x_ND + attn
        return x_ND + attn + block.add_mlp(block.mlp_sum(block.neurons(read)))

    def pulled(self, probes_MD: Tensor, of: Tensor, at_once: int) -> Tensor:
        """Jᵀ v for each probe v ``[M, D]``."""
        out = []
        for part in torch.arange(len(of), device=of.device).split(max(1, at_once)):
            with torch.enable_grad():
                x = self.x[of[part]].clone().requires_grad_()
                y = self(x, of[part])
                out.append(torch.autograd.grad(y, x, probes_MD[part].to(y))[0])
        return torch.cat(out)


def exact(mapped: TokenMap, at_once: int) -> Tensor:
    """J of every token, ``[N, out, in]``."""
    N, D = mapped.x.shape
    eye = torch.eye(D, dtype=mapped.x.dtype, device=mapped.x.device)
    of = torch.arange(N, device=mapped.x.device).repeat_interleave(D)
    return mapped.pulled(eye.repeat(N, 1), of, at_once).unflatten(0, (N, D))


def from_identity(mapped: TokenMap, probes: int, generator: Any, at_once: int) -> Tensor:
    """‖(J - I)ᵀ v‖² of random signs v, ``[N, P]``; its mean over v is ‖J - I‖_F²."""
    N, D = mapped.x.shape
    signs = torch.randint(0, 2, (N * probes, D), generator=generator).to(mapped.x) * 2 - 1
    of = torch.arange(N, device=mapped.x.device).repeat_interleave(probes)
    away = wide(mapped.pulled(signs, of, at_once)) - wide(signs)
    return away.square().sum(-1).unflatten(0, (N, probes))


def loss_gradients(
    blocks: Any, batch: Batch, weights: Sequence[Sequence[Tensor]], total: int, vocab: int
) -> tuple[float, list[Tensor], list[list[Tensor]]]:
    """Loss summed over scored tokens / total, and its gradients.

    Args:
        blocks: the model.
        batch: prompts.
        weights: groups of parameters.
        total: scored tokens of the whole task.
        vocab: size of the vocabulary.

    Returns:
        the loss, gradients at every boundary ``[B, T, D]``, and those of the parameters.
    """
    with torch.enable_grad():
        x = embedded(blocks, batch.tokens).detach().requires_grad_()
        boundary = [x]
        for block in blocks.layers:
            x = layer_step(block, x)[2]
            boundary.append(x)
        row, at = np.nonzero(batch.scored)
        chosen = x[torch.from_numpy(row).to(x.device), torch.from_numpy(at).to(x.device)]
        right = torch.from_numpy(batch.targets[row, at]).to(x.device)
        loss = x.new_zeros((), dtype=wide(x).dtype)
        for part in slices(len(chosen), vocab):
            logp = torch.log_softmax(wide(blocks.unembed(chosen[part])), -1)
            picked = logp.gather(1, right[part].clamp_min(0))
            picked = picked.masked_fill(right[part] < 0, -torch.inf)
            loss = loss - torch.logsumexp(picked, -1).sum() / total
        flat = [w for group in weights for w in group]
        found = torch.autograd.grad(loss, [*boundary, *flat], allow_unused=True)
    grads = [torch.zeros_like(v) if g is None else g
             for g, v in zip(found, [*boundary, *flat], strict=True)]  # fmt: skip
    n = len(boundary)
    out, start = [], n
    for group in weights:
        out.append(grads[start : start + len(group)])
        start += len(group)
    return float(loss.detach()), grads[:n], out
