"""Entering: rows that join behind attention or the MLP bring only the tokens they edit.

The edited tokens are computed from the base run's values of that layer, so that a row costs
nothing before its edit. Legend: N packed tokens, M entering tokens, H heads, E head width,
D model width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from interp.engine.lending import Lender
from interp.engine.packing import Entry, Places
from interp.engine.plans import TokenEdits
from interp.terms import Block


@dataclass(eq=False)
class Stages:
    """Values of one layer that entering rows start from, ``[N, …]`` each.

    Args:
        x_ND: residual before the layer; z_NHE: heads; sum_ND: W_O z + b_O; added_ND: what
            attention adds; mid_ND: residual after it.
    """

    x_ND: Tensor
    z_NHE: Tensor
    sum_ND: Tensor
    added_ND: Tensor
    mid_ND: Tensor


class Entrance:
    """The rows that enter in one layer.

    Args:
        lender: resolves their edits.
        layer: which layer.
        block: the layer.
        entry: the tokens they bring.
        here: where tokens of the layer lie.
    """

    def __init__(
        self, lender: Lender, layer: int, block: Block, entry: Entry, here: Places
    ) -> None:
        self.lender, self.layer, self.block, self.entry = lender, layer, block, entry
        self.here = here
        prompt = lender.chunk.prompt[entry.row]
        self.base = lender.index(here.base[prompt, entry.position])

    def _edits(self, kind: str, which: str = "all") -> TokenEdits | None:
        return self.lender.chunk.edits(self.layer, kind, "entry", which)

    def _slots(self, edits: TokenEdits) -> Tensor:
        """Index among the entry's tokens of each edited token."""
        own = zip(self.entry.row.tolist(), self.entry.position.tolist(), strict=True)
        where = {token: i for i, token in enumerate(own)}
        pairs = zip(edits.row, edits.position, strict=True)
        return self.lender.index(np.array([where[t] for t in pairs]))

    def mid(self, at: Stages) -> Tensor:
        """Residual after attention of the entering tokens, as far as it is edited: ``[M, D]``."""
        if not self.entry.n_mid:
            return at.mid_ND[self.base]
        added_MD = at.added_ND[self.base]
        heads = self._heads(at)
        if heads is not None:
            touched, value = heads
            added_MD[touched] = value
        self._put("attn_out", added_MD, at.added_ND)
        mid_MD = at.x_ND[self.base] + added_MD
        self._put("resid_mid", mid_MD, at.mid_ND)
        return mid_MD

    def _put(self, kind: str, value_MD: Tensor, stage_ND: Tensor) -> None:
        """Write the edits of a kind into the entering tokens."""
        edits = self._edits(kind)
        if edits is not None:
            slots = self._slots(edits)
            value_MD[slots], _ = self.lender.values(edits, stage_ND, self.here, self.base[slots])

    def _heads(self, at: Stages) -> tuple[Tensor, Tensor] | None:
        """What attention adds after head edits: the change of z times W_O joins the sum."""
        touched = []
        sum_MD = None
        edits = self._edits("z")
        if edits is not None:
            slots = self._slots(edits)
            value, _ = self.lender.values(edits, at.z_NHE, self.here, self.base[slots])
            sum_MD = at.sum_ND[self.base]
            sum_MD[slots] = self.block.attn_sum(value)
            touched.append(slots)
        edits = self._edits("z", "head")
        if edits is not None:
            slots = self._slots(edits)
            value, present = self.lender.values(edits, at.z_NHE, self.here, self.base[slots])
            sum_MD = at.sum_ND[self.base] if sum_MD is None else sum_MD
            self._write_heads(sum_MD, slots, np.asarray(edits.head), value - present)
            touched.append(slots)
        if sum_MD is None:
            return None
        which = torch.cat(touched).unique()
        return which, self.block.add_attn(sum_MD[which])

    def _write_heads(
        self, sum_MD: Tensor, slots: Tensor, heads: np.ndarray, change_ME: Tensor
    ) -> None:
        for head in np.unique(heads):
            which = self.lender.index(np.flatnonzero(heads == head))
            write = self.block.head_write(change_ME[which], int(head))
            sum_MD.index_add_(0, slots[which], write)

    def post(
        self, mid_MD: Tensor, fresh_MD: Tensor, read_ND: Tensor, mlp_ND: Tensor, out_ND: Tensor
    ) -> Tensor:
        """Next residual of the entering tokens.

        Args:
            mid_MD: what ``mid`` gave.
            fresh_MD: what the MLP adds to the first of them, computed anew.
            read_ND: what the MLP reads, all tokens.
            mlp_ND: what it adds.
            out_ND: the next residual.
        """
        mlp_MD = mlp_ND[self.base]
        mlp_MD[: len(fresh_MD)] = fresh_MD
        for which in ("all", "unit"):
            edits = self._edits("mlp_post", which)
            if edits is None:
                continue
            slots, inverse = np.unique(self._slots(edits).cpu().numpy(), return_inverse=True)
            tokens = self.lender.index(slots)
            read_MD = read_ND[self.base[tokens]] if self.block.parallel else mid_MD[tokens]
            mlp_MD[tokens] = self.lender.with_neurons(
                self.block, edits, read_MD, read_ND, self.here, inverse
            )
        self._put("mlp_out", mlp_MD, mlp_ND)
        out_MD = mid_MD + mlp_MD
        self._put("resid_post", out_MD, out_ND)
        return out_MD
