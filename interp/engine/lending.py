"""Lending: the values that edits put in place, and the rows that are live already.

Legend of suffixes: N packed tokens, M edited tokens, H heads, E head width, D model width,
F neurons. A value is lent by another run of the same batch, is zero, or is given as an array.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.engine.packing import WHICH, Chunk, Places
from interp.engine.plans import ARRAY, SOURCE, ZERO, TokenEdits
from interp.terms import Block


class Lender:
    """Resolves edits of a chunk to values.

    Args:
        chunk: rows and their indices.
        arrays: values given as arrays, broadcasting to ``[task prompt, position, …]``.
        device: where the model is.
        dtype: the model's.
    """

    def __init__(
        self, chunk: Chunk, arrays: Sequence[Any], device: torch.device, dtype: torch.dtype
    ) -> None:
        self.chunk, self.device = chunk, device
        self.arrays = [torch.as_tensor(a, device=device, dtype=dtype) for a in arrays]
        self.moved = torch.zeros(len(chunk.rows), dtype=torch.float64, device=device)
        self.embedding: Tensor | None = None
        self.places: Places | None = None

    def index(self, array: np.ndarray) -> Tensor:
        """An index array on the device."""
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)).to(
            self.device, non_blocking=True
        )

    def where(self, edits: TokenEdits, here: Places) -> tuple[np.ndarray, np.ndarray, Tensor]:
        """Row and position of each edited token, and the index of its base run's token."""
        row = np.asarray(edits.row)
        position = np.asarray(edits.position)
        return row, position, self.index(here.base[self.chunk.prompt[row], position])

    def values(
        self, edits: TokenEdits, stage: Tensor, here: Places, current_index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """New and present value of each edited token; notes how far they are apart."""
        row, position = np.asarray(edits.row), np.asarray(edits.position)
        prompt, kind = self.chunk.prompt[row], np.asarray(edits.value)
        index = np.where(kind == SOURCE, here.source[prompt, position], here.base[prompt, position])
        pick = self._picker(edits)
        return self.resolve(edits, pick(stage, self.index(index)), pick(stage, current_index))

    def resolve(self, edits: TokenEdits, value: Tensor, current: Tensor) -> tuple[Tensor, Tensor]:
        """Zeros, arrays and additions in place of lent values; notes how far they move."""
        row, position = np.asarray(edits.row), np.asarray(edits.position)
        kind, array = np.asarray(edits.value), np.asarray(edits.array)
        if (kind == ZERO).any():
            value[self.index(np.flatnonzero(kind == ZERO))] = 0
        for a in np.unique(array[kind == ARRAY]):
            which = np.flatnonzero((kind == ARRAY) & (array == a))
            single = edits.unit[0] >= 0  # one number a token: [prompt, position]
            given = self.given(
                a,
                self.chunk.prompt[row[which]],
                position[which],
                torch.Size(()) if single else value.shape[1:],
            )
            value[self.index(which)] = given[:, None] if single else given
        add = np.asarray(edits.add)
        if add.any():
            mask = self.index(add).bool().view(-1, *[1] * (value.ndim - 1))
            value = torch.where(mask, current + value, value)
        change = (value - current).abs().flatten(1).amax(1).double()
        self.moved.scatter_reduce_(0, self.index(row), change, "amax")
        return value, current

    def _picker(self, edits: TokenEdits) -> Any:
        head, unit = np.asarray(edits.head), np.asarray(edits.unit)
        part = head if (head >= 0).any() else unit
        if (part < 0).all():
            return lambda stage, index: stage[index]
        part_index = self.index(part)
        return lambda stage, index: (
            stage[index, part_index] if stage.ndim > 2 else stage[index, part_index][:, None]
        )

    def given(
        self, index: int, prompt: np.ndarray, position: np.ndarray, shape: torch.Size
    ) -> Tensor:
        """Entries of a given array, which broadcasts to ``[task prompt, position, …]``."""
        array, prompt = self.arrays[index], self.chunk.bucket.rows[prompt]
        if array.ndim < len(shape) + 2:
            array = array.reshape(*[1] * (len(shape) + 2 - array.ndim), *array.shape)
        p = self.index(prompt if array.shape[0] > 1 else np.zeros_like(prompt))
        t = self.index(position if array.shape[1] > 1 else np.zeros_like(position))
        return array[p, t].expand(len(prompt), *shape)

    def edit(self, layer: int, kind: str, stage: Tensor, here: Places | None = None) -> Tensor:
        """Edits of rows that are live already, on all their tokens of this layer."""
        here = here or self.places
        assert here is not None
        for which in WHICH:
            edits = self.chunk.edits(layer, kind, "live", which)
            if edits is None:
                continue
            source = self.embedding if kind == "embed" else stage
            assert source is not None
            row, position = np.asarray(edits.row), np.asarray(edits.position)
            own = self.index(here.row(row, position))
            if kind == "embed":
                base = self.index(here.base[self.chunk.prompt[row], position])
                value, present = self.values(edits, source, here, base)
                value = stage[own] + (value - present)
            else:
                value, _ = self.values(edits, stage, here, own)
            if which == "all":
                stage = stage.index_put((own,), value)
            else:
                part = edits.head if which == "head" else edits.unit
                value = value[:, 0] if stage.ndim == 2 else value
                stage = stage.index_put((own, self.index(np.asarray(part))), value)
        return stage

    def with_neurons(
        self,
        block: Block,
        edits: TokenEdits,
        read_MD: Tensor,
        read_ND: Tensor,
        here: Places,
        token: np.ndarray,
    ) -> Tensor:
        """What the MLP adds to tokens whose neurons are edited.

        Args:
            block: the layer.
            edits: of single neurons (several may fall on one token) or of all of a token.
            read_MD: what the MLP reads at each edited token (each once).
            read_ND: what it reads at every packed token, where lent values come from.
            here: where those lie.
            token: index in ``read_MD`` of each edit.
        """
        row, position = np.asarray(edits.row), np.asarray(edits.position)
        prompt, kind = self.chunk.prompt[row], np.asarray(edits.value)
        lent = np.where(kind == SOURCE, here.source[prompt, position], here.base[prompt, position])
        neurons_MF = block.neurons(read_MD)
        lenders, inverse = np.unique(lent, return_inverse=True)
        lent_LF = block.neurons(read_ND[self.index(lenders)])[self.index(inverse)]
        own = self.index(token)
        if edits.unit[0] < 0:
            neurons_MF[own], _ = self.resolve(edits, lent_LF, neurons_MF[own])
        else:
            part = self.index(np.asarray(edits.unit))
            each = torch.arange(len(row), device=self.device)
            value, _ = self.resolve(
                edits, lent_LF[each, part][:, None], neurons_MF[own, part][:, None]
            )
            neurons_MF[own, part] = value[:, 0]
        return block.add_mlp(block.mlp_sum(neurons_MF))

    def edit_neurons(
        self, layer: int, block: Block, read_ND: Tensor, mlp_ND: Tensor, here: Places
    ) -> Tensor:
        """Neuron edits of live rows: their tokens' MLP is computed again."""
        for which in ("all", "unit"):
            edits = self.chunk.edits(layer, "mlp_post", "live", which)
            if edits is None:
                continue
            own = here.row(np.asarray(edits.row), np.asarray(edits.position))
            tokens, inverse = np.unique(own, return_inverse=True)
            index = self.index(tokens)
            value = self.with_neurons(block, edits, read_ND[index], read_ND, here, inverse)
            mlp_ND = mlp_ND.index_put((index,), value)
        return mlp_ND
