"""Copying: readers' own copies of the residual in a packed pass.

Legend of suffixes: N packed tokens, M written entries, G copies, H heads, E head width, D model
width. While the layers pass, each writer's change is added to the copies its edges lead to; where a
reader stands, its tokens' residual plus that change is what it reads.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from interp.engine.edges import EdgeTable, Reading, Writing
from interp.engine.lending import Lender
from interp.engine.packing import Places
from interp.engine.plans import TokenEdits
from interp.terms import Block

QKV = ("q", "k", "v")


class Copies:
    """The copies of one chunk.

    Args:
        lender: resolves values; its chunk has the edges.
    """

    def __init__(self, lender: Lender) -> None:
        self.lender, self.chunk = lender, lender.chunk
        self.table: EdgeTable = lender.chunk.edge_table
        self.change_GD: Tensor | None = None

    # -- writers ----------------------------------------------------------------------------------

    def wrote_embedding(self, embed_ND: Tensor | None, here: Places) -> None:
        """The token embeddings are there."""
        writing = self.table.writings.get((-1, "embed"))
        if writing is not None:
            assert embed_ND is not None
            self._add(writing, *self._values(writing, embed_ND, here, -1))

    def wrote_mlp(self, layer: int, mlp_ND: Tensor, here: Places) -> None:
        """The MLP of a layer has added to the residual."""
        writing = self.table.writings.get((layer, "mlp_out"))
        if writing is not None:
            self._add(writing, *self._values(writing, mlp_ND, here, layer))

    def wrote_heads(
        self, layer: int, block: Block, z_NHE: Tensor, sum_ND: Tensor, here: Places
    ) -> None:
        """The heads of a layer have written: their sum is built again for each copy."""
        writing = self.table.writings.get((layer, "z"))
        if writing is None:
            return
        value_ME, present_ME = self._values(writing, z_NHE, here, layer)
        token, first, inverse = np.unique(writing.token, return_index=True, return_inverse=True)
        current = self.lender.index(self._current(writing, here, layer)[first])
        change = sum_ND.new_zeros(len(token), sum_ND.shape[1])
        into = self.lender.index(inverse)
        for head in np.unique(writing.head):
            which = self.lender.index(np.flatnonzero(writing.head == head))
            write = block.head_write(value_ME[which] - present_ME[which], int(head))
            change.index_add_(0, into[which], write)
        present = sum_ND[current]
        change = block.add_attn(present + change) - block.add_attn(present)
        self._changes(change).index_add_(0, self.lender.index(token), change)

    def _current(self, writing: Writing, here: Places, layer: int) -> np.ndarray:
        """Packed index of each token as the row has it: the base run's while it is not live."""
        live = self.chunk.live[writing.row] <= layer
        index = here.base[self.chunk.prompt[writing.row], writing.position]
        if live.any():
            index[live] = here.row(writing.row[live], writing.position[live])
        return index

    def _values(
        self, writing: Writing, stage: Tensor, here: Places, layer: int
    ) -> tuple[Tensor, Tensor]:
        edits = TokenEdits(
            row=writing.row.tolist(),
            position=writing.position.tolist(),
            head=writing.head.tolist(),
            unit=[-1] * len(writing.row),
            value=writing.value.tolist(),
            array=writing.array.tolist(),
            add=writing.add.tolist(),
        )
        current = self.lender.index(self._current(writing, here, layer))
        return self.lender.values(edits, stage, here, current)

    def _add(self, writing: Writing, value: Tensor, present: Tensor) -> None:
        index = self.lender.index(writing.token)
        self._changes(value).index_add_(0, index, value - present)

    def _changes(self, like: Tensor) -> Tensor:
        if self.change_GD is None:
            self.change_GD = like.new_zeros(self.table.copies, like.shape[-1])
        return self.change_GD

    # -- readers ----------------------------------------------------------------------------------

    def reads(self, layer: int, *kinds: str) -> bool:
        """Whether a reader of these kinds has a copy of its own here."""
        return any((layer, k) in self.table.readings for k in kinds)

    def change(self, reading: Reading, stage_ND: Tensor, here: Places) -> Tensor:
        """What a copy holds more than the row's own residual, ``[copy, D]``."""
        change = self._changes(stage_ND)[self.lender.index(reading.token)]
        follows = np.flatnonzero(reading.partner >= 0)
        if len(follows):
            place = reading.position[follows]
            theirs = here.row(reading.partner[follows], place)
            base = here.base[self.chunk.prompt[reading.row[follows]], place]
            apart = stage_ND[self.lender.index(theirs)] - stage_ND[self.lender.index(base)]
            change.index_copy_(0, self.lender.index(follows), apart)
            self._note(reading.row[follows], apart)
        return change

    def _note(self, row: np.ndarray, change: Tensor) -> None:
        moved = change.abs().amax(1).double()
        self.lender.moved.scatter_reduce_(0, self.lender.index(row), moved, "amax")

    def into_mlp(self, layer: int, read_ND: Tensor, here: Places) -> Tensor:
        """What the MLP reads, with copies in place of the rows' residual."""
        reading = self.table.readings.get((layer, "mlp_out"))
        if reading is None:
            return read_ND
        own = self.lender.index(here.row(reading.row, reading.position))
        return read_ND.index_put((own,), read_ND[own] + self.change(reading, read_ND, here))

    def into_heads(
        self, layer: int, kind: str, block: Block, x_ND: Tensor, stage_NHE: Tensor, here: Places
    ) -> Tensor:
        """Queries, keys or values (before norms and rotary), some heads' from their own copies."""
        reading = self.table.readings.get((layer, kind))
        if reading is None:
            return stage_NHE
        own = self.lender.index(here.row(reading.row, reading.position))
        copy = x_ND[own] + self.change(reading, x_ND, here)
        head = self.lender.index(reading.head)
        each = torch.arange(len(own), device=own.device)
        value = block.project(copy)[QKV.index(kind)][each, head]
        return stage_NHE.index_put((own, head), value)

    def into_logits(
        self, out_MD: Tensor, row_RA: np.ndarray, base_PA: np.ndarray
    ) -> tuple[Tensor, np.ndarray]:
        """Final residuals with the logits' copies appended, and where each row's now lie.

        Args:
            out_MD: final residuals of the metric tokens.
            row_RA: index of each row's metric tokens ``[row, at]``.
            base_PA: likewise of the base runs.
        """
        reading = self.table.readings.get((self.chunk.n_layers, "logits"))
        if reading is None:
            return out_MD, row_RA
        at = self.chunk.bucket.at[self.chunk.prompt[reading.row]]
        column = (at == reading.position[:, None]).argmax(1)
        change = self._changes(out_MD)[self.lender.index(reading.token)]
        follows = np.flatnonzero(reading.partner >= 0)
        if len(follows):
            theirs = row_RA[reading.partner[follows], column[follows]]
            base = base_PA[self.chunk.prompt[reading.row[follows]], column[follows]]
            apart = out_MD[self.lender.index(theirs)] - out_MD[self.lender.index(base)]
            change.index_copy_(0, self.lender.index(follows), apart)
            self._note(reading.row[follows], apart)
        own = row_RA[reading.row, column]
        row_RA = row_RA.copy()
        row_RA[reading.row, column] = len(out_MD) + np.arange(len(own))
        return torch.cat([out_MD, out_MD[self.lender.index(own)] + change]), row_RA
