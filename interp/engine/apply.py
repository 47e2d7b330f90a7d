"""Apply: one pass through the layers with a growing batch of packed rows.

Legend of suffixes: N packed tokens, R rows, T queries, S keys, H heads, K key/value heads,
E head width, D model width. Each layer is called once a chunk: a row joins at the layer where its
edit stands, keys and values of positions before its start are the base run's, and in the last
layer only the metric positions go on. Everything is exact; see docs/performance.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.engine.packing import (
    Chunk,
    Entry,
    Group,
    Places,
    Query,
    all_places,
    metric_queries,
)
from interp.engine.plans import ARRAY, SOURCE, ZERO, TokenEdits
from interp.terms import Block, Blocks

MLP_BYTES = 48 * 2**20
"""The MLP runs in slices whose neurons take about this much."""


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
    """

    def __init__(self, blocks: Blocks, chunk: Chunk, arrays: Sequence[Any]) -> None:
        self.blocks, self.chunk = blocks, chunk
        self.device = blocks.device
        self.arrays = [torch.as_tensor(a, device=self.device, dtype=blocks.dtype) for a in arrays]
        self.groups: list[Group] = []
        self.sources = chunk.source_groups()
        self.moved = torch.zeros(len(chunk.rows), dtype=torch.float64, device=self.device)

    def run(self) -> Final:
        """All layers; returns what the final norm reads."""
        ids, places = self.chunk.static_tokens()
        ids_N, self.static_position = self._index(ids), places
        x_ND = self.blocks.embed(ids_N, self._index(places))
        self.embedding = self._embedding(ids_N)
        entered: tuple[Entry, Tensor] | None = None
        last = self.chunk.n_layers - 1
        for layer, block in enumerate(self.blocks.layers):
            x_ND = self._admit(layer, x_ND, entered)
            self.places = all_places(self.chunk, self.groups)
            x_ND = self._edit(layer, "embed", x_ND)
            x_ND = self._edit(layer, "resid_pre", x_ND)
            step = self._last_layer if layer == last else self._layer
            x_ND, entered = step(layer, block, x_ND)
        return self._final(x_ND, entered)

    def _index(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)).to(
            self.device, non_blocking=True
        )

    def _embedding(self, ids_N: Tensor) -> Tensor | None:
        chunk = self.chunk
        wanted = any(chunk.edits(0, "embed", w, "all") for w in ("admit", "live"))
        return self.blocks.token_embed(ids_N) if wanted else None

    # -- rows joining the batch -----------------------------------------------------------------

    def _admit(self, boundary: int, x_ND: Tensor, entered: tuple[Entry, Tensor] | None) -> Tensor:
        """Rows that become live here join, with the tokens they bring."""
        admission = self.chunk.admission(boundary)
        if admission is None:
            return x_ND
        new_MD = x_ND[self._index(admission.gather)]
        rows, places, values = self._brought(boundary, x_ND, entered)
        if len(rows):
            offset = np.array([admission.offset[r] for r in rows.tolist()])
            index = offset + places - self.chunk.start[rows]
            new_MD[self._index(index)] = values
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
            stage = self.embedding if kind == "embed" else x_ND
            assert stage is not None
            row, position, base_index = self._where(edits, here)
            value, base = self._values(edits, stage, here, base_index)
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

    # -- the values of edits --------------------------------------------------------------------

    def _where(self, edits: TokenEdits, here: Places) -> tuple[np.ndarray, np.ndarray, Tensor]:
        row = np.asarray(edits.row)
        position = np.asarray(edits.position)
        return row, position, self._index(here.base[self.chunk.prompt[row], position])

    def _values(
        self, edits: TokenEdits, stage: Tensor, here: Places, current_index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """New and present value of each edited token; notes how far they are apart."""
        row, position = np.asarray(edits.row), np.asarray(edits.position)
        prompt, kind = self.chunk.prompt[row], np.asarray(edits.value)
        index = np.where(kind == SOURCE, here.source[prompt, position],
                         here.base[prompt, position])
        pick = self._picker(edits)
        return self._resolve(edits, pick(stage, self._index(index)), pick(stage, current_index))

    def _resolve(
        self, edits: TokenEdits, value: Tensor, current: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Zeros, arrays and additions in place of lent values; notes how far they move."""
        row, position = np.asarray(edits.row), np.asarray(edits.position)
        kind, array = np.asarray(edits.value), np.asarray(edits.array)
        if (kind == ZERO).any():
            value[self._index(np.flatnonzero(kind == ZERO))] = 0
        for a in np.unique(array[kind == ARRAY]):
            which = np.flatnonzero((kind == ARRAY) & (array == a))
            value[self._index(which)] = self._given(
                self.arrays[a], self.chunk.bucket.rows[self.chunk.prompt[row[which]]],
                position[which], value.shape[1:],
            )
        add = np.asarray(edits.add)
        if add.any():
            mask = self._index(add).bool().view(-1, *[1] * (value.ndim - 1))
            value = torch.where(mask, current + value, value)
        change = (value - current).abs().flatten(1).amax(1).double()
        self.moved.scatter_reduce_(0, self._index(row), change, "amax")
        return value, current

    def _picker(self, edits: TokenEdits) -> Any:
        head, neuron = np.asarray(edits.head), np.asarray(edits.neuron)
        part = head if (head >= 0).any() else neuron
        if (part < 0).all():
            return lambda stage, index: stage[index]
        part_index = self._index(part)
        return lambda stage, index: (
            stage[index, part_index] if stage.ndim > 2 else stage[index, part_index][:, None]
        )

    def _given(
        self, array: Tensor, prompt: np.ndarray, position: np.ndarray, shape: torch.Size
    ) -> Tensor:
        """Entries of an array that broadcasts to ``[task prompt, position, …]``."""
        if array.ndim < len(shape) + 2:
            array = array.reshape(*[1] * (len(shape) + 2 - array.ndim), *array.shape)
        p = self._index(prompt if array.shape[0] > 1 else np.zeros_like(prompt))
        t = self._index(position if array.shape[1] > 1 else np.zeros_like(position))
        return array[p, t].expand(len(prompt), *shape)

    def _edit(self, layer: int, kind: str, stage: Tensor, here: Places | None = None) -> Tensor:
        """Edits of rows that are live already, on all their tokens of this layer."""
        here = here or self.places
        for which in ("head", "neuron", "all"):
            edits = self.chunk.edits(layer, kind, "live", which)
            if edits is None:
                continue
            source = self.embedding if kind == "embed" else stage
            assert source is not None
            row, position = np.asarray(edits.row), np.asarray(edits.position)
            own = self._index(here.row(row, position))
            if kind == "embed":
                base = self._index(here.base[self.chunk.prompt[row], position])
                value, present = self._values(edits, source, here, base)
                value = stage[own] + (value - present)
            else:
                value, _ = self._values(edits, stage, here, own)
            if which == "all":
                stage = stage.index_put((own,), value)
            else:
                part = edits.head if which == "head" else edits.neuron
                value = value[:, 0] if stage.ndim == 2 else value
                stage = stage.index_put((own, self._index(np.asarray(part))), value)
        return stage

    # -- one layer ------------------------------------------------------------------------------

    def _positions(self) -> Tensor:
        length = self.chunk.bucket.length
        parts = [self.static_position]
        parts += [np.tile(np.arange(g.start, length), len(g.rows)) for g in self.groups]
        return self._index(np.concatenate(parts))

    def _layer(
        self, layer: int, block: Block, x_ND: Tensor
    ) -> tuple[Tensor, tuple[Entry, Tensor] | None]:
        q_NHE, k_NKE, v_NKE = block.qkv(x_ND, self._positions())
        q_NHE = self._edit(layer, "q", q_NHE)
        k_NKE = self._edit(layer, "k", k_NKE)
        v_NKE = self._edit(layer, "v", v_NKE)
        z_NHE = torch.empty_like(q_NHE)
        length = self.chunk.bucket.length
        n = len(self.chunk.bucket)
        k_PSKE = k_NKE[: n * length].view(n, length, *k_NKE.shape[1:])
        v_PSKE = v_NKE[: n * length].view(n, length, *v_NKE.shape[1:])
        every = self._index(np.arange(length))
        z_NHE[: n * length] = block.attend(
            q_NHE[: n * length].view(n, length, *q_NHE.shape[1:]), k_PSKE, v_PSKE, every
        ).reshape(n * length, *q_NHE.shape[1:])
        for group in (*self.sources, *self.groups):
            stop = group.offset + len(group.rows) * group.width
            own = slice(group.offset, stop)
            keys, values = self._keys(group, k_NKE, v_NKE, k_PSKE, v_PSKE, None)
            q_RTHE = q_NHE[own].view(len(group.rows), group.width, *q_NHE.shape[1:])
            position = self._index(np.arange(group.start, group.start + group.width))
            z_NHE[own] = block.attend(q_RTHE, keys, values, position).reshape(
                -1, *q_NHE.shape[1:]
            )
        del q_NHE, k_NKE, v_NKE
        return self._tail(layer, block, x_ND, z_NHE, self.places)

    def _keys(
        self, group: Group, k_NKE: Tensor, v_NKE: Tensor, k_PSKE: Tensor, v_PSKE: Tensor,
        members: np.ndarray | None,
    ) -> tuple[Tensor, Tensor]:
        """Keys and values a group looks at: the base run's before its start, then its own."""
        stop = group.offset + len(group.rows) * group.width
        shape = (len(group.rows), group.width, *k_NKE.shape[1:])
        k_RSKE = k_NKE[group.offset : stop].view(shape)
        v_RSKE = v_NKE[group.offset : stop].view(shape)
        prompts = group.prompts
        if members is not None and len(members) < len(group.rows):
            chosen = self._index(members)
            k_RSKE, v_RSKE, prompts = k_RSKE[chosen], v_RSKE[chosen], prompts[members]
        if group.start == 0:
            return k_RSKE, v_RSKE
        who = self._index(prompts)
        return (
            torch.cat([k_PSKE[who, : group.start], k_RSKE], 1),
            torch.cat([v_PSKE[who, : group.start], v_RSKE], 1),
        )

    def _last_layer(
        self, layer: int, block: Block, x_ND: Tensor
    ) -> tuple[Tensor, tuple[Entry, Tensor] | None]:
        """As ``_layer``, but behind the keys and values only the metric tokens go on."""
        k_NKE, v_NKE = block.kv(x_ND, self._positions())
        k_NKE = self._edit(layer, "k", k_NKE)
        v_NKE = self._edit(layer, "v", v_NKE)
        tokens, positions, queries, here, self.source_at = metric_queries(
            self.chunk, self.groups, self.places
        )
        x_MD = x_ND[self._index(tokens)]
        q_MHE = self._edit(layer, "q", block.queries(x_MD, self._index(positions)), here)
        length, n = self.chunk.bucket.length, len(self.chunk.bucket)
        k_PSKE = k_NKE[: n * length].view(n, length, *k_NKE.shape[1:])
        v_PSKE = v_NKE[: n * length].view(n, length, *v_NKE.shape[1:])
        z_MHE = torch.empty_like(q_MHE)
        for query in queries:
            keys, values = self._keys_of(query, k_NKE, v_NKE, k_PSKE, v_PSKE)
            rows, width = len(query.members), len(query.position)
            own = slice(query.offset, query.offset + rows * width)
            z_MHE[own] = block.attend(
                q_MHE[own].view(rows, width, *q_MHE.shape[1:]), keys, values,
                self._index(query.position),
            ).reshape(-1, *q_MHE.shape[1:])
        self.places = here
        return self._tail(layer, block, x_MD, z_MHE, here)

    def _keys_of(
        self, query: Query, k_NKE: Tensor, v_NKE: Tensor, k_PSKE: Tensor, v_PSKE: Tensor
    ) -> tuple[Tensor, Tensor]:
        if query.group is None:
            if len(query.members) == len(k_PSKE):
                return k_PSKE, v_PSKE
            who = self._index(query.members)
            return k_PSKE[who], v_PSKE[who]
        return self._keys(query.group, k_NKE, v_NKE, k_PSKE, v_PSKE, query.members)

    def _tail(
        self, layer: int, block: Block, x_ND: Tensor, z_NHE: Tensor, here: Places
    ) -> tuple[Tensor, tuple[Entry, Tensor] | None]:
        """From the heads' outputs to the next residual, with the tokens entering on the way."""
        z_NHE = self._edit(layer, "z", z_NHE, here)
        sum_ND = block.attn_sum(z_NHE)
        added_ND = self._edit(layer, "attn_out", block.add_attn(sum_ND), here)
        mid_ND = x_ND + added_ND
        entry = self.chunk.entry(layer)
        new_MD = None
        if entry is not None:
            new_MD = self._enter_mid(layer, block, entry, x_ND, z_NHE, sum_ND, added_ND, mid_ND,
                                     here)
        if not block.parallel:
            mid_ND = self._edit(layer, "resid_mid", mid_ND, here)
        read_ND = x_ND if block.parallel else mid_ND
        n_mid = 0 if entry is None or block.parallel else entry.n_mid
        if new_MD is not None and n_mid:
            read_ND = torch.cat([read_ND, new_MD[:n_mid]])
        mlp_ND = self._mlp(block, read_ND)
        fresh_MD = mlp_ND[len(mlp_ND) - n_mid :]
        mlp_ND = mlp_ND[: len(mlp_ND) - n_mid]
        mlp_ND = self._edit_neurons(layer, block, read_ND, mlp_ND, here)
        mlp_ND = self._edit(layer, "mlp_out", mlp_ND, here)
        out_ND = mid_ND + mlp_ND
        out_ND = self._edit(layer, "resid_post", out_ND, here)
        if entry is None or new_MD is None:
            return out_ND, None
        new_MD = self._enter_post(layer, block, entry, new_MD, fresh_MD, read_ND, mlp_ND, out_ND,
                                  here)
        return out_ND, (entry, new_MD)

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

    # -- rows entering behind attention or the MLP ----------------------------------------------

    def _slots(self, entry: Entry, edits: TokenEdits) -> Tensor:
        """Index among the entry's tokens of each edited token."""
        where = {t: i for i, t in enumerate(zip(entry.row.tolist(), entry.position.tolist(),
                                                strict=True))}
        pairs = zip(edits.row, edits.position, strict=True)
        return self._index(np.array([where[t] for t in pairs]))

    def _enter_mid(
        self, layer: int, block: Block, entry: Entry, x_ND: Tensor, z_NHE: Tensor,
        sum_ND: Tensor, added_ND: Tensor, mid_ND: Tensor, here: Places,
    ) -> Tensor:
        """Residual after attention of the entering tokens, as far as it is edited."""
        base = self._index(here.base[self.chunk.prompt[entry.row], entry.position])
        if not entry.n_mid:
            return mid_ND[base]
        added_MD = added_ND[base]
        heads = self._enter_heads(layer, block, entry, z_NHE, sum_ND, here, base)
        if heads is not None:
            touched, value = heads
            added_MD[touched] = value
        edits = self.chunk.edits(layer, "attn_out", "entry", "all")
        if edits is not None:
            slots = self._slots(entry, edits)
            value, _ = self._values(edits, added_ND, here, base[slots])
            added_MD[slots] = value
        mid_MD = x_ND[base] + added_MD
        edits = self.chunk.edits(layer, "resid_mid", "entry", "all")
        if edits is not None:
            slots = self._slots(entry, edits)
            value, _ = self._values(edits, mid_ND, here, base[slots])
            mid_MD[slots] = value
        return mid_MD

    def _enter_heads(
        self, layer: int, block: Block, entry: Entry, z_NHE: Tensor, sum_ND: Tensor,
        here: Places, base: Tensor,
    ) -> tuple[Tensor, Tensor] | None:
        """What attention adds after head edits: the change of z times W_O joins the sum."""
        touched = []
        sum_MD = None
        edits = self.chunk.edits(layer, "z", "entry", "all")
        if edits is not None:
            slots = self._slots(entry, edits)
            value, _ = self._values(edits, z_NHE, here, base[slots])
            sum_MD = sum_ND[base]
            sum_MD[slots] = block.attn_sum(value)
            touched.append(slots)
        edits = self.chunk.edits(layer, "z", "entry", "head")
        if edits is not None:
            slots = self._slots(entry, edits)
            value, present = self._values(edits, z_NHE, here, base[slots])
            sum_MD = sum_ND[base] if sum_MD is None else sum_MD
            heads = np.asarray(edits.head)
            change = value - present
            for head in np.unique(heads):
                which = self._index(np.flatnonzero(heads == head))
                write = block.head_write(change[which], int(head))
                sum_MD.index_add_(0, slots[which], write)
            touched.append(slots)
        if sum_MD is None:
            return None
        which = torch.cat(touched).unique()
        return which, block.add_attn(sum_MD[which])

    def _enter_post(
        self, layer: int, block: Block, entry: Entry, mid_MD: Tensor, fresh_MD: Tensor,
        read_ND: Tensor, mlp_ND: Tensor, out_ND: Tensor, here: Places,
    ) -> Tensor:
        """Next residual of the entering tokens."""
        base = self._index(here.base[self.chunk.prompt[entry.row], entry.position])
        mlp_MD = mlp_ND[base]
        mlp_MD[: len(fresh_MD)] = fresh_MD
        edits = self.chunk.edits(layer, "mlp_post", "entry", "neuron")
        if edits is not None:
            slots, inverse = np.unique(self._slots(entry, edits).cpu().numpy(),
                                       return_inverse=True)
            tokens = self._index(slots)
            lone = mid_MD[tokens] if not block.parallel else read_ND[base[tokens]]
            mlp_MD[tokens] = self._with_neurons(block, edits, lone, read_ND, here, inverse)
        edits = self.chunk.edits(layer, "mlp_out", "entry", "all")
        if edits is not None:
            slots = self._slots(entry, edits)
            value, _ = self._values(edits, mlp_ND, here, base[slots])
            mlp_MD[slots] = value
        out_MD = mid_MD + mlp_MD
        edits = self.chunk.edits(layer, "resid_post", "entry", "all")
        if edits is not None:
            slots = self._slots(entry, edits)
            value, _ = self._values(edits, out_ND, here, base[slots])
            out_MD[slots] = value
        return out_MD

    def _with_neurons(
        self, block: Block, edits: TokenEdits, read_MD: Tensor, read_ND: Tensor, here: Places,
        token: np.ndarray,
    ) -> Tensor:
        """What the MLP adds to tokens whose neurons are edited.

        Args:
            block: the layer.
            edits: of single neurons; several may fall on one token.
            read_MD: what the MLP reads at each edited token (each once).
            read_ND: what it reads at every packed token, where lent values come from.
            here: where those lie.
            token: index in ``read_MD`` of each edit.
        """
        row, position = np.asarray(edits.row), np.asarray(edits.position)
        prompt, kind = self.chunk.prompt[row], np.asarray(edits.value)
        lent = np.where(kind == SOURCE, here.source[prompt, position],
                        here.base[prompt, position])
        neurons_MF = block.neurons(read_MD)
        lenders, inverse = np.unique(lent, return_inverse=True)
        lent_LF = block.neurons(read_ND[self._index(lenders)])
        part, own = self._index(np.asarray(edits.neuron)), self._index(token)
        value, _ = self._resolve(
            edits, lent_LF[self._index(inverse), part][:, None], neurons_MF[own, part][:, None]
        )
        neurons_MF = neurons_MF.index_put((own, part), value[:, 0])
        return block.add_mlp(block.mlp_sum(neurons_MF))

    def _edit_neurons(
        self, layer: int, block: Block, read_ND: Tensor, mlp_ND: Tensor, here: Places
    ) -> Tensor:
        """Neuron edits of live rows: their tokens' MLP is computed again."""
        edits = self.chunk.edits(layer, "mlp_post", "live", "neuron")
        if edits is None:
            return mlp_ND
        own = here.row(np.asarray(edits.row), np.asarray(edits.position))
        tokens, inverse = np.unique(own, return_inverse=True)
        index = self._index(tokens)
        value = self._with_neurons(block, edits, read_ND[index], read_ND, here, inverse)
        return mlp_ND.index_put((index,), value)

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
        return Final(out_MD, base, self.source_at, row, self.moved.cpu().numpy())

