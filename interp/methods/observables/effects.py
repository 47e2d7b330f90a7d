"""Effects: what o really does when a head's write, or a chain of writes, comes from elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from interp.engine.traces import LayerMaps, Maps, NormMap, Trace
from interp.methods.observables.graph import MLP, Prefix
from interp.methods.observables.inputs import Batch, Readout


def _added(norm: NormMap | None, summed: Tensor) -> Tensor:
    """What a sublayer's sum adds to the residual."""
    return summed if norm is None else norm.affine(summed, norm.scale(summed))


def direct_effects(maps: Maps, batch: Batch, readout: Readout) -> Tensor:
    """Direct effects ``[R, layer, H]`` of every head's write at the last position.

    o of the clean run less o where the logits alone see the corrupt run's write: path patching of
    the edge from the head to the logits, the final norm live.
    """
    last = batch.clean.last[:, -1]
    before = readout.value(maps, last, batch.rows)
    out = []
    for n in range(len(batch.clean.layers)):
        part, a, b = maps.layer(n), batch.clean.layers[n], batch.corrupt.layers[n]
        change = torch.einsum("rhe,hed->rhd", b.z[:, -1] - a.z[:, -1], part.w_o)
        summed, norm = a.attn_sum[:, -1], part.norms["post_attn"]
        moved = _added(norm, summed[:, None] + change) - _added(norm, summed)[:, None]
        out.append(before[:, None] - readout.value(maps, last[:, None] + moved, batch.rows))
    return torch.stack(out, 1)


@dataclass(frozen=True, eq=False)
class Chain:
    """Path patching along one path: each node alone sees the change of the node before it.

    Args:
        maps: the model.
        run: the clean run.
        other: the corrupt run, or None: the embedding is then taken away along the path.
        live: keys and queries of the path's heads see the change too; else patterns are fixed.
    """

    maps: Maps
    run: Trace
    other: Trace | None
    live: bool

    def effect(self, path: Prefix, readout: Readout, rows: np.ndarray) -> np.ndarray:
        """o of the clean run less o with the path from the corrupt one ``[R]``."""
        with torch.no_grad():
            return self._effect(path, readout, rows)

    def _effect(self, path: Prefix, readout: Readout, rows: np.ndarray) -> np.ndarray:
        s = path.steps[-1][1] if path.steps else self.run.length - 1
        there = self.run.embed[:, s]
        lent = torch.zeros_like(there) if self.other is None else self.other.embed[:, s]
        change = lent - there
        targets = [position for _, position in path.steps[:-1]]
        for (node, position), to in zip(
            reversed(path.steps), [*reversed(targets), self.run.length - 1], strict=True
        ):
            part, seen = self.maps.layer(node.layer), self.run.layers[node.layer]
            if node.head == MLP:
                change = self._mlp(part, seen.mid[:, position], change)
            else:
                change = self._head(node.layer, node.head, position, to, change)
        last = self.run.last[:, -1]
        before, after = (readout.value(self.maps, x, rows) for x in (last, last + change))
        return (before - after).double().cpu().numpy()

    @staticmethod
    def _mlp(part: LayerMaps, x: Tensor, change: Tensor) -> Tensor:
        pre, post = part.norms["pre_mlp"], part.norms["post_mlp"]
        both = torch.stack([x, x + change])
        h = both if pre is None else pre.affine(both, pre.scale(both))
        old, new = _added(post, part.mlp(h).to(both))
        return new - old

    def _head(self, layer: int, head: int, s: int, t: int, change: Tensor) -> Tensor:
        """What the head writes anew at t when its copy of the residual changes at s."""
        part, seen = self.maps.layer(layer), self.run.layers[layer]
        block, group = part.block, head // part.groups
        moved = seen.resid.clone()
        moved[:, s] += change
        values = [self._values(part, x[:, s], group) for x in (seen.resid, moved)]
        pattern = seen.pattern[:, head, t]
        if not self.live:
            z = pattern[:, s, None] * (values[1] - values[0])
        else:
            R, T = moved.shape[:2]
            places = torch.arange(T, device=moved.device)
            flat = moved.flatten(0, 1).to(self.maps.blocks.dtype)
            q, k, v = (a.unflatten(0, (R, T)) for a in block.qkv(flat, places.repeat(R)))
            new = block.pattern(q, k, places)[:, head, t].to(pattern)
            whole = torch.einsum("rs,rse->re", new, v[:, :, group].to(pattern))
            z = whole - seen.z[:, t, head]
        summed, norm = seen.attn_sum[:, t], part.norms["post_attn"]
        return _added(norm, summed + z @ part.w_o[head]) - _added(norm, summed)

    @staticmethod
    def _values(part: LayerMaps, x: Tensor, group: int) -> Tensor:
        norm = part.norms["pre_attn"]
        read = x if norm is None else norm.affine(x, norm.scale(x))
        return read @ part.w_v[group] + part.b_v[group]
