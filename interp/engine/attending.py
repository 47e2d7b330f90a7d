"""Attending: attention of the packed rows, and edits of their patterns.

Legend of suffixes: N packed tokens, R rows, M edited tokens, P prompts, T queries, S keys, H heads,
K key/value heads, E head width. Keys and values before a row's start are the base run's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from interp.engine.lending import Lender
from interp.engine.packing import WHICH, Group, Places, Query
from interp.engine.plans import ARRAY, SOURCE, ZERO, TokenEdits
from interp.terms import Block


class Attention:
    """One layer's attention over the packed tokens.

    Args:
        block: the layer.
        lender: indices and values of edits.
        k_NKE: keys of all packed tokens; v_NKE: values.
        sources: the source runs' groups; groups: the live rows'.
    """

    def __init__(
        self,
        block: Block,
        lender: Lender,
        k_NKE: Tensor,
        v_NKE: Tensor,
        sources: Sequence[Group],
        groups: Sequence[Group],
    ) -> None:
        self.block, self.lender, self.chunk = block, lender, lender.chunk
        self.k_NKE, self.v_NKE = k_NKE, v_NKE
        self.sources, self.groups = sources, groups
        bucket = self.chunk.bucket
        n, length = len(bucket), bucket.length
        self.k_PSKE = k_NKE[: n * length].view(n, length, *k_NKE.shape[1:])
        self.v_PSKE = v_NKE[: n * length].view(n, length, *v_NKE.shape[1:])

    def everywhere(self, q_NHE: Tensor) -> Tensor:
        """z of every packed token, ``[N, H, E]``."""
        z_NHE = torch.empty_like(q_NHE)
        n, length = self.k_PSKE.shape[:2]
        every = self.lender.index(np.arange(length))
        self._write(z_NHE, q_NHE, 0, (n, length), self.k_PSKE, self.v_PSKE, every)
        for group in (*self.sources, *self.groups):
            keys, values = self.keys(group)
            position = self.lender.index(np.arange(group.start, group.start + group.width))
            size = (len(group.rows), group.width)
            self._write(z_NHE, q_NHE, group.offset, size, keys, values, position)
        return z_NHE

    def _write(
        self,
        z_NHE: Tensor,
        q_NHE: Tensor,
        offset: int,
        size: tuple[int, int],
        keys: Tensor,
        values: Tensor,
        position: Tensor,
    ) -> None:
        """Attention of ``size`` rows × queries that lie side by side, into their place."""
        own = slice(offset, offset + size[0] * size[1])
        shape = (*size, *q_NHE.shape[1:])
        z_RTHE = self.block.attend(q_NHE[own].view(shape), keys, values, position)
        z_NHE[own].view(shape).copy_(z_RTHE)

    def at_metric(self, q_MHE: Tensor, queries: Sequence[Query]) -> Tensor:
        """z of the metric tokens alone, ``[M, H, E]``."""
        z_MHE = torch.empty_like(q_MHE)
        for query in queries:
            keys, values = self._keys_of(query)
            size = (len(query.members), len(query.position))
            position = self.lender.index(query.position)
            self._write(z_MHE, q_MHE, query.offset, size, keys, values, position)
        return z_MHE

    def keys(self, group: Group, members: np.ndarray | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values that a group's rows look at, ``[R, S, K, E]`` each."""
        stop = group.offset + len(group.rows) * group.width
        shape = (len(group.rows), group.width, *self.k_NKE.shape[1:])
        k_RSKE = self.k_NKE[group.offset : stop].view(shape)
        v_RSKE = self.v_NKE[group.offset : stop].view(shape)
        prompts = group.prompts
        if members is not None:
            chosen = self.lender.index(members)
            k_RSKE, v_RSKE, prompts = k_RSKE[chosen], v_RSKE[chosen], prompts[members]
        if group.start == 0:
            return k_RSKE, v_RSKE
        k_base = self._shared(self.k_PSKE, prompts, group.start)
        v_base = self._shared(self.v_PSKE, prompts, group.start)
        return torch.cat([k_base, k_RSKE], 1), torch.cat([v_base, v_RSKE], 1)

    def _shared(self, x_PSKE: Tensor, prompts: np.ndarray, stop: int) -> Tensor:
        """The base run's keys or values before ``stop`` for each row, ``[R, S, K, E]``."""
        if (prompts == prompts[0]).all():
            one = x_PSKE[prompts[0] : prompts[0] + 1, :stop]
            return one.expand(len(prompts), *one.shape[1:])
        return x_PSKE[self.lender.index(prompts), :stop]

    def _keys_of(self, query: Query) -> tuple[Tensor, Tensor]:
        if query.group is not None:
            whole = len(query.members) == len(query.group.rows)
            return self.keys(query.group, None if whole else query.members)
        if len(query.members) == len(self.k_PSKE):
            return self.k_PSKE, self.v_PSKE
        who = self.lender.index(query.members)
        return self.k_PSKE[who], self.v_PSKE[who]

    # -- pattern edits --------------------------------------------------------------------------

    def edit_patterns(self, layer: int, q_NHE: Tensor, z_NHE: Tensor, here: Places) -> Tensor:
        """z after edits of the rows' patterns: the change of the pattern times the values."""
        for which in WHICH:
            edits = self.chunk.edits(layer, "pattern", "live", which)
            if edits is None:
                continue
            for group in self.groups:
                chosen = np.flatnonzero(np.isin(edits.row, group.rows))
                if len(chosen):
                    z_NHE = self._edit_group(_taken(edits, chosen), group, q_NHE, z_NHE, here)
        return z_NHE

    def _edit_group(
        self, edits: TokenEdits, group: Group, q_NHE: Tensor, z_NHE: Tensor, here: Places
    ) -> Tensor:
        row, position = np.asarray(edits.row), np.asarray(edits.position)
        order = np.argsort(group.rows)
        members = order[np.searchsorted(group.rows[order], row)]
        own = self.lender.index(here.row(row, position))
        keys, values = self.keys(group, members)
        present_MHS = self._pattern(q_NHE[own], keys, position)
        new_MHS = self._lent(edits, present_MHS, q_NHE, here)
        change_MHS = new_MHS - present_MHS
        head, key = np.asarray(edits.head), np.asarray(edits.unit)
        heads, keys_at = (np.arange(n) for n in change_MHS.shape[1:])
        in_head = (head[:, None] < 0) | (heads == head[:, None])
        in_key = (key[:, None] < 0) | (keys_at == key[:, None])
        mask = torch.from_numpy(in_head[:, :, None] & in_key[:, None])
        change_MHS = change_MHS * mask.to(change_MHS.device)
        moved = change_MHS.abs().flatten(1).amax(1).double()
        self.lender.moved.scatter_reduce_(0, self.lender.index(row), moved, "amax")
        grouped = change_MHS.unflatten(1, (values.shape[2], -1))
        dz_MHE = torch.einsum("mkgs,mske->mkge", grouped, values).flatten(1, 2)
        return z_NHE.index_add(0, own, dz_MHE.to(z_NHE.dtype))

    def _pattern(self, q_MHE: Tensor, k_MSKE: Tensor, position: np.ndarray) -> Tensor:
        where = self.lender.index(position)[:, None]
        return self.block.pattern(q_MHE[:, None], k_MSKE, where)[:, :, 0]

    def _lent(self, edits: TokenEdits, present_MHS: Tensor, q_NHE: Tensor, here: Places) -> Tensor:
        """New patterns ``[M, H, S]``: the source run's, zeros, or given ones."""
        row, position = np.asarray(edits.row), np.asarray(edits.position)
        kind, prompt = np.asarray(edits.value), self.chunk.prompt[row]
        new_MHS = present_MHS.clone()
        new_MHS[self.lender.index(np.flatnonzero(kind == ZERO))] = 0
        for a in np.unique(np.asarray(edits.array)[kind == ARRAY]):
            which = np.flatnonzero((kind == ARRAY) & (np.asarray(edits.array) == a))
            self._given(edits, a, which, new_MHS)
        for group in self.sources:
            which = np.flatnonzero((kind == SOURCE) & np.isin(prompt, group.prompts))
            if not len(which):
                continue
            who = prompt[which]
            members = np.searchsorted(group.prompts, who)
            keys, _ = self.keys(group, members)
            own = self.lender.index(here.source[who, position[which]])
            match = self.chunk.bucket.match[who]
            lent = self._pattern(q_NHE[own], keys, match[np.arange(len(who)), position[which]])
            index = self.lender.index(np.maximum(match, 0))[:, None].expand(-1, lent.shape[1], -1)
            lent = lent.gather(2, index)
            known = torch.from_numpy(match >= 0).to(lent.device)[:, None]
            new_MHS[self.lender.index(which)] = lent * known
        added = np.asarray(edits.add)
        if added.any():
            mask = torch.from_numpy(added).to(new_MHS.device)[:, None, None]
            new_MHS = torch.where(mask, present_MHS + new_MHS, new_MHS)
        return new_MHS

    def _given(self, edits: TokenEdits, array: int, which: np.ndarray, new_MHS: Tensor) -> None:
        """Write a given array, which has the axes that its edits leave open, into patterns."""
        row, position = np.asarray(edits.row)[which], np.asarray(edits.position)[which]
        head, key = np.asarray(edits.head)[which], np.asarray(edits.unit)[which]
        index: list[Tensor] = [self.lender.index(which)]
        shape = new_MHS.shape[1:]
        if head[0] >= 0:
            index.append(self.lender.index(head))
            shape = shape[1:]
            if key[0] >= 0:
                index.append(self.lender.index(key))
                shape = shape[1:]
        given = self.lender.given(array, self.chunk.prompt[row], position, shape)
        new_MHS[tuple(index)] = given


def _taken(edits: TokenEdits, index: np.ndarray) -> TokenEdits:
    """Some of the edits."""
    return TokenEdits(**{k: [v[i] for i in index] for k, v in vars(edits).items()})
