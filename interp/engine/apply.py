"""Apply: one pass through the layers with a growing batch of packed rows.

Legend of suffixes: N packed tokens, R rows, T queries, S keys, H heads, K key/value heads,
E head width, D model width. Each layer is called once a chunk: a row joins at the layer where its
edit stands, keys and values of positions before its start are the base run's, and in the last
layer only the metric positions go on. Everything is exact; see docs/performance.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.engine.attending import Attention
from interp.engine.copying import Copies
from interp.engine.costs import MLP_BYTES
from interp.engine.entering import Entrance, Stages
from interp.engine.lending import Lender
from interp.engine.noising import add_noise
from interp.engine.packing import (
    WHICH,
    Chunk,
    Entry,
    Group,
    Places,
    all_places,
    metric_queries,
)
from interp.terms import Block, Blocks


@dataclass(eq=False)
class Final:
    """Final residuals at the metric positions, before the final norm.

    Args:
        resid_MD: ``[M, D]``.
        base: index of each base run's metric tokens, ``[prompt, at]``.
        source: likewise of the source runs.
        row: likewise of the rows, ``[row, at]``.
        moved: largest absolute change each row's edits made where they stand, ``[row]``.
    """

    resid_MD: Tensor
    base: np.ndarray
    source: np.ndarray
    row: np.ndarray
    moved: np.ndarray


class PackedPass:
    """Runs one chunk.

    Args:
        blocks: the model, layer by layer.
        chunk: rows and their indices.
        arrays: values of edits given as arrays, broadcasting to ``[task prompt, position, …]``.
        on_layer: told the share of the layers that are done; it may raise to cancel.
        noise: added to the base runs' embeddings, ``[task prompt, position, d_model]``.
    """

    def __init__(
        self,
        blocks: Blocks,
        chunk: Chunk,
        arrays: Sequence[Any],
        on_layer: Callable[[float], None] = lambda _: None,
        noise: np.ndarray | None = None,
    ) -> None:
        self.blocks, self.chunk, self.on_layer = blocks, chunk, on_layer
        self.noise = noise
        self.lender = Lender(chunk, arrays, blocks.device, blocks.dtype)
        self.groups: list[Group] = []
        self.sources = chunk.source_groups()
        self.copies = Copies(self.lender)

    def run(self) -> Final:
        """All layers; returns what the final norm reads."""
        ids, places = self.chunk.static_tokens()
        ids_N, self.static_position = self.lender.index(ids), places
        x_ND = self.blocks.embed(ids_N, self.lender.index(places))
        self.lender.embedding = self._embedding(ids_N)
        if self.noise is not None:
            x_ND = add_noise(x_ND, self.chunk.bucket, self.noise)
        self.copies.wrote_embedding(self.lender.embedding, all_places(self.chunk, ()))
        entered: tuple[Entry, Tensor] | None = None
        last = self.chunk.n_layers - 1
        for layer, block in enumerate(self.blocks.layers):
            x_ND = self._admit(layer, x_ND, entered)
            self.places = self.lender.places = all_places(self.chunk, self.groups)
            x_ND = self.lender.edit(layer, "embed", x_ND)
            x_ND = self.lender.edit(layer, "resid_pre", x_ND)
            step = self._last_layer if layer == last else self._layer
            x_ND, entered = step(layer, block, x_ND)
            self.on_layer((layer + 1) / self.chunk.n_layers)
        return self._final(x_ND, entered)

    def _embedding(self, ids_N: Tensor) -> Tensor | None:
        chunk = self.chunk
        wanted = any(chunk.edits(0, "embed", w, "all") for w in ("admit", "live"))
        wanted = wanted or (-1, "embed") in chunk.edge_table.writings
        if not wanted:
            return None
        found = self.blocks.token_embed(ids_N)
        return found if self.noise is None else add_noise(found, self.chunk.bucket, self.noise)

    # -- rows joining the batch -----------------------------------------------------------------

    def _admit(self, boundary: int, x_ND: Tensor, entered: tuple[Entry, Tensor] | None) -> Tensor:
        """Rows that become live here join, with the tokens they bring."""
        admission = self.chunk.admission(boundary)
        if admission is None:
            return x_ND
        new_MD = x_ND[self.lender.index(admission.gather)]
        rows, places, values = self._brought(boundary, x_ND, entered)
        if len(rows):
            offset = np.array([admission.offset[r] for r in rows.tolist()])
            index = offset + places - self.chunk.start[rows]
            new_MD[self.lender.index(index)] = values
        pieces, groups, at, taken = [x_ND[: self.chunk.n_static]], [], self.chunk.n_static, 0
        old = {g.start: g for g in self.groups}
        for start in sorted({*old, *admission.groups}):
            width = self.chunk.bucket.length - start
            members = []
            if start in old:
                g = old[start]
                pieces.append(x_ND[g.offset : g.offset + len(g.rows) * width])
                members.append(g.rows)
            if start in admission.groups:
                fresh = admission.groups[start]
                pieces.append(new_MD[taken : taken + len(fresh) * width])
                taken += len(fresh) * width
                members.append(fresh)
            joined = np.concatenate(members)
            groups.append(Group(start, joined, self.chunk.prompt[joined], at, width))
            at += len(joined) * width
        self.groups = groups
        return torch.cat(pieces)

    def _brought(
        self, boundary: int, x_ND: Tensor, entered: tuple[Entry, Tensor] | None
    ) -> tuple[np.ndarray, np.ndarray, Tensor]:
        """Tokens that differ from the base run in the rows joining here."""
        rows, places, values = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [x_ND[:0]]
        here = all_places(self.chunk, ())
        for kind in ("embed", "resid_pre"):
            edits = self.chunk.edits(boundary, kind, "admit", "all")
            if edits is None:
                continue
            stage = self.lender.embedding if kind == "embed" else x_ND
            assert stage is not None
            row, position, base_index = self.lender.where(edits, here)
            value, base = self.lender.values(edits, stage, here, base_index)
            if kind == "embed":
                value = x_ND[base_index] + (value - base)
            rows.append(row)
            places.append(position)
            values.append(value)
        if entered is not None:
            rows.append(entered[0].row)
            places.append(entered[0].position)
            values.append(entered[1])
        return np.concatenate(rows), np.concatenate(places), torch.cat(values)

    # -- one layer ------------------------------------------------------------------------------

    def _positions(self) -> Tensor:
        length = self.chunk.bucket.length
        parts = [self.static_position]
        parts += [np.tile(np.arange(g.start, length), len(g.rows)) for g in self.groups]
        return self.lender.index(np.concatenate(parts))

    def _layer(
        self, layer: int, block: Block, x_ND: Tensor
    ) -> tuple[Tensor, tuple[Entry, Tensor] | None]:
        q_NHE, k_NKE, v_NKE = self._qkv(layer, block, x_ND)
        attention = Attention(block, self.lender, k_NKE, v_NKE, self.sources, self.groups)
        z_NHE = attention.everywhere(q_NHE)
        z_NHE = attention.edit_patterns(layer, q_NHE, z_NHE, self.places)
        del attention, q_NHE, k_NKE, v_NKE
        return self._tail(layer, block, x_ND, z_NHE, self.places)

    def _edits(self, layer: int, *kinds: str) -> bool:
        """Whether live rows edit one of these kinds here."""
        edited = any(self.chunk.edits(layer, k, "live", w) for k in kinds for w in WHICH)
        return edited or self.copies.reads(layer, *kinds)

    def _qkv(self, layer: int, block: Block, x_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of all tokens; edits stand before q/k-norms and rotary."""
        position_N = self._positions()
        if not self._edits(layer, "q", "k", "v"):
            return block.qkv(x_ND, position_N)
        q_NHE, k_NKE, v_NKE = block.project(x_ND)
        q_NHE = self._changed(layer, "q", block, x_ND, q_NHE, self.places)
        k_NKE = self._changed(layer, "k", block, x_ND, k_NKE, self.places)
        v_NKE = self._changed(layer, "v", block, x_ND, v_NKE, self.places)
        return (*block.turned(q_NHE, k_NKE, position_N), v_NKE)

    def _kv(self, layer: int, block: Block, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """As ``_qkv`` without the queries."""
        position_N = self._positions()
        if not self._edits(layer, "k", "v"):
            return block.kv(x_ND, position_N)
        q_NHE, k_NKE, v_NKE = block.project(x_ND)
        k_NKE = self._changed(layer, "k", block, x_ND, k_NKE, self.places)
        v_NKE = self._changed(layer, "v", block, x_ND, v_NKE, self.places)
        return block.turned(q_NHE, k_NKE, position_N)[1], v_NKE

    def _changed(
        self, layer: int, kind: str, block: Block, x_ND: Tensor, stage: Tensor, here: Places
    ) -> Tensor:
        """Projections after edges into them and edits of them."""
        stage = self.copies.into_heads(layer, kind, block, x_ND, stage, here)
        return self.lender.edit(layer, kind, stage, here)

    def _queries(
        self, layer: int, block: Block, x_MD: Tensor, position_M: Tensor, here: Places
    ) -> Tensor:
        """Queries of the metric tokens."""
        if not self._edits(layer, "q"):
            return block.queries(x_MD, position_M)
        q_MHE, k_MKE, _ = block.project(x_MD)
        q_MHE = self._changed(layer, "q", block, x_MD, q_MHE, here)
        return block.turned(q_MHE, k_MKE, position_M)[0]

    def _last_layer(
        self, layer: int, block: Block, x_ND: Tensor
    ) -> tuple[Tensor, tuple[Entry, Tensor] | None]:
        """As ``_layer``, but behind the keys and values only the metric tokens go on."""
        k_NKE, v_NKE = self._kv(layer, block, x_ND)
        tokens, positions, queries, here, self.source_at = metric_queries(
            self.chunk, self.groups, self.places
        )
        x_MD = x_ND[self.lender.index(tokens)]
        q_MHE = self._queries(layer, block, x_MD, self.lender.index(positions), here)
        attention = Attention(block, self.lender, k_NKE, v_NKE, self.sources, self.groups)
        z_MHE = attention.at_metric(q_MHE, queries)
        z_MHE = attention.edit_patterns(layer, q_MHE, z_MHE, here)
        self.places = here
        return self._tail(layer, block, x_MD, z_MHE, here)

    def _tail(
        self, layer: int, block: Block, x_ND: Tensor, z_NHE: Tensor, here: Places
    ) -> tuple[Tensor, tuple[Entry, Tensor] | None]:
        """From the heads' outputs to the next residual, with the tokens entering on the way."""
        z_NHE = self.lender.edit(layer, "z", z_NHE, here)
        sum_ND = block.attn_sum(z_NHE)
        self.copies.wrote_heads(layer, block, z_NHE, sum_ND, here)
        added_ND = self.lender.edit(layer, "attn_out", block.add_attn(sum_ND), here)
        mid_ND = x_ND + added_ND
        entry = self.chunk.entry(layer)
        entrance = new_MD = None
        if entry is not None:
            entrance = Entrance(self.lender, layer, block, entry, here)
            new_MD = entrance.mid(Stages(x_ND, z_NHE, sum_ND, added_ND, mid_ND))
        if not block.parallel:
            mid_ND = self.lender.edit(layer, "resid_mid", mid_ND, here)
        read_ND = self.copies.into_mlp(layer, x_ND if block.parallel else mid_ND, here)
        n_mid = 0 if entry is None or block.parallel else entry.n_mid
        if new_MD is not None and n_mid:
            read_ND = torch.cat([read_ND, new_MD[:n_mid]])
        mlp_ND = self._mlp(block, read_ND)
        fresh_MD = mlp_ND[len(mlp_ND) - n_mid :]
        mlp_ND = mlp_ND[: len(mlp_ND) - n_mid]
        mlp_ND = self.lender.edit_neurons(layer, block, read_ND, mlp_ND, here)
        mlp_ND = self.lender.edit(layer, "mlp_out", mlp_ND, here)
        self.copies.wrote_mlp(layer, mlp_ND, here)
        out_ND = mid_ND + mlp_ND
        out_ND = self.lender.edit(layer, "resid_post", out_ND, here)
        if entry is None or entrance is None or new_MD is None:
            return out_ND, None
        return out_ND, (entry, entrance.post(new_MD, fresh_MD, read_ND, mlp_ND, out_ND))

    def _mlp(self, block: Block, read_ND: Tensor) -> Tensor:
        """What the MLP adds, in slices, so that the neurons of all tokens never stand at once."""
        width = max(1, getattr(block, "d_mlp", 4 * read_ND.shape[1]))
        step = max(256, MLP_BYTES // (width * read_ND.element_size()))
        if len(read_ND) <= step:
            return block.add_mlp(block.mlp_sum(block.neurons(read_ND)))
        out = torch.empty_like(read_ND)
        for i in range(0, len(read_ND), step):
            part = read_ND[i : i + step]
            out[i : i + step] = block.add_mlp(block.mlp_sum(block.neurons(part)))
        return out

    # -- behind the last layer ------------------------------------------------------------------

    def _final(self, out_MD: Tensor, entered: tuple[Entry, Tensor] | None) -> Final:
        chunk, here = self.chunk, self.places
        b = chunk.bucket
        base = here.base[np.arange(len(b))[:, None], b.at]
        row = base[chunk.prompt]
        at = b.at[chunk.prompt]
        assert here.metric is not None
        own = here.metric if len(chunk.rows) else row
        row = np.where(own >= 0, own, row)
        if entered is not None:
            entry, value = entered
            index = len(out_MD) + np.arange(len(entry.row))
            for r, p, i in zip(entry.row, entry.position, index, strict=True):
                row[r, at[r] == p] = i
            out_MD = torch.cat([out_MD, value])
        out_MD, row = self.copies.into_logits(out_MD, row, base)
        row = row[: chunk.n_own]
        moved = self.lender.moved[: chunk.n_own].cpu().numpy()
        return Final(out_MD, base, self.source_at, row, moved)
