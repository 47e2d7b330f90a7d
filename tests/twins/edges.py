"""The slow reference of edge and path patching: one whole forward a set of edges, plain hooks.

Works on an untouched transformers module; imports nothing of interp. Every reader's copy is built
where it stands: ``x + Σ (write with the source's heads - present write)``, passed through the
module's own norm and projection (wang2023interpretability, goldowsky2023localizing).

Writers: ``("embed",)``, ``("z", layer, head)``, ``("mlp", layer)``. Readers: ``("q", layer, head)``
(``k`` and ``v`` with a key/value head), ``("mlp", layer)``, ``("logits",)``.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from tests.twins.patching import PARTS, _projection, patched_logits, read, tapped

Node = tuple[Any, ...]
NORMS = {
    "gpt2": ("ln_1", "ln_2", "transformer.ln_f"),
    "gpt_neo": ("ln_1", "ln_2", "transformer.ln_f"),
    "gpt_neox": ("input_layernorm", "post_attention_layernorm", "gpt_neox.final_layer_norm"),
    "gemma2": ("input_layernorm", "pre_feedforward_layernorm", "model.norm"),
    "olmo2": ("", "mlp", "model.norm"),
    **dict.fromkeys(
        ("llama", "mistral", "qwen2", "qwen3"),
        ("input_layernorm", "post_attention_layernorm", "model.norm"),
    ),
}
"""Family -> norm before q, k, v; module that reads the MLP's copy; norm before the logits."""

POST_NORMED = ("gemma2", "olmo2")


class _Copies:
    """Hooks of one forward pass."""

    def __init__(
        self, model: Any, family: str, edges: list[tuple[Node, Node]], n_heads: int
    ) -> None:
        self.model, self.family, self.n_heads = model, family, n_heads
        self.blocks = model.get_submodule(PARTS[family]["layers"])
        self.into: dict[Node, list[Node]] = defaultdict(list)
        for writer, reader in edges:
            self.into[reader].append(writer)
        self.source: dict[Node, Tensor] = {}
        self.seen: dict[Node, Tensor] = {}
        self.where: Any = slice(None)
        self.busy = False

    def part(self, layer: int, name: str) -> Any:
        return self.blocks[layer].get_submodule(PARTS[self.family][name])

    def added(self, layer: int, z: Tensor) -> Tensor:
        """What attention adds for these heads."""
        out = self.part(layer, "o")(z)
        return self.part(layer, "attn")(out) if self.family in POST_NORMED else out

    def change(self, reader: Node) -> Tensor:
        """Change of a reader's copy, at the edited positions."""
        total: Any = 0
        heads: dict[int, list[int]] = defaultdict(list)
        for writer in self.into[reader]:
            if writer[0] == "z":
                heads[writer[1]].append(writer[2])
            else:
                total = total + self.source[writer] - self.seen[writer]
        for layer, which in heads.items():
            now = self.seen["z", layer]
            new = now.clone()
            width = now.shape[-1] // self.n_heads
            for h in which:
                part = slice(h * width, (h + 1) * width)
                new[..., part] = self.source["z", layer][..., part]
            total = total + self.added(layer, new) - self.added(layer, now)
        out = torch.zeros_like(total)
        out[:, self.where] = total[:, self.where]
        return out

    def quietly(self, compute: Any) -> Tensor:
        self.busy = True
        try:
            return compute()
        finally:
            self.busy = False

    # hooks -----------------------------------------------------------------------------------

    def keep(self, stack: ExitStack, key: Node, module: Any, of_input: bool) -> None:
        def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not self.busy:
                self.seen[key] = args[0] if args else kwargs["hidden_states"]

        def after(_: Any, __: Any, output: Any) -> None:
            if not self.busy:
                self.seen[key] = output[0] if isinstance(output, tuple) else output

        if of_input:
            stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
        else:
            stack.callback(module.register_forward_hook(after).remove)

    def into_input(self, stack: ExitStack, reader: Node, module: Any) -> None:
        """The module reads its input plus the change."""

        def before(_: Any, args: tuple[Any, ...]) -> Any:
            if self.busy:
                return None
            return (args[0] + self.quietly(lambda: self.change(reader)), *args[1:])

        stack.callback(module.register_forward_pre_hook(before).remove)

    def into_head(self, stack: ExitStack, reader: Node, n: int) -> None:
        """One head's part of a projection is that of the copy."""
        kind, layer, head = reader
        block = self.blocks[layer]
        module, part = _projection(block, self.family, kind, n)
        norm = NORMS[self.family][0]

        def copied() -> Tensor:
            x = self.seen["x", layer] + self.change(reader)
            return module(block.get_submodule(norm)(x) if norm else x)

        def after(_: Any, __: Any, output: Tensor) -> Any:
            if self.busy:
                return None
            output = output.clone()
            new = self.quietly(copied)
            part(output)[:, self.where, head] = part(new)[:, self.where, head]
            return output

        stack.callback(module.register_forward_hook(after).remove)


def edge_logits(
    model: Any,
    family: str,
    base: Tensor,
    source: Tensor,
    edges: list[tuple[Node, Node]],
    *,
    n_heads: int,
    n_kv_heads: int,
    position: int | None = None,
    zero: bool = False,
) -> Tensor:
    """Logits ``[prompt, position, vocab]`` of the base run with these edges at the source's writes.

    ``position`` restricts the change to one position; ``zero`` makes every write zero instead.
    """
    copies = _Copies(model, family, edges, n_heads)
    if position is not None:
        copies.where = slice(position, position + 1)
    names, parts = NORMS[family], PARTS[family]
    for writer in {w for w, _ in edges}:
        kind = {"embed": "embed", "z": "z", "mlp": "mlp_out"}[writer[0]]
        key = ("z", writer[1]) if kind == "z" else writer
        value = read(model, family, kind, writer[1] if len(writer) > 1 else 0, source)
        copies.source[key] = torch.zeros_like(value) if zero else value
    with torch.no_grad(), ExitStack() as stack:
        copies.keep(stack, ("embed",), model.get_submodule(parts["embed"]), False)
        for layer, block in enumerate(copies.blocks):
            copies.keep(stack, ("x", layer), block, True)
            copies.keep(stack, ("z", layer), copies.part(layer, "o"), True)
            copies.keep(stack, ("mlp", layer), copies.part(layer, "mlp"), False)
        for reader in copies.into:
            if reader[0] == "logits":
                copies.into_input(stack, reader, model.get_submodule(names[2]))
            elif reader[0] == "mlp":
                copies.into_input(stack, reader, copies.blocks[reader[1]].get_submodule(names[1]))
            else:
                copies.into_head(stack, reader, n_heads if reader[0] == "q" else n_kv_heads)
        return model(base).logits


def path_logits(
    model: Any,
    family: str,
    base: Tensor,
    source: Tensor,
    writer: Node,
    reader: Node,
    *,
    n_heads: int,
    n_kv_heads: int,
) -> Tensor:
    """Logits of the base run whose reader alone sees the writer at source, MLPs computed anew.

    First pass: the writer at source, every later head at base; the reader's projection (or MLP
    output) is kept. Second pass: the base run with that put in place.
    """
    kind = {"embed": "embed", "z": "z", "mlp": "mlp_out"}[writer[0]]
    first = -1 if kind == "embed" else writer[1]
    blocks = model.get_submodule(PARTS[family]["layers"])
    held = {n: read(model, family, "z", n, base) for n in range(first + 1, len(blocks))}
    lent = read(model, family, kind, max(first, 0), source)
    part: Any = slice(None)
    if kind == "z":
        width = lent.shape[-1] // n_heads
        part = slice(writer[2] * width, (writer[2] + 1) * width)

    def put(x: Tensor) -> Tensor:
        x = x.clone()
        x[..., part] = lent[..., part]
        return x

    kept: list[Tensor] = []
    module, view = None, None
    with torch.no_grad(), ExitStack() as stack:
        stack.enter_context(tapped(model, family, kind, max(first, 0), put))
        for n, z in held.items():
            stack.enter_context(tapped(model, family, "z", n, lambda _, z=z: z))
        if reader[0] == "mlp":
            keep = tapped(model, family, "mlp_out", reader[1], lambda x: kept.append(x) or x)
            stack.enter_context(keep)
        elif reader[0] != "logits":
            n = n_heads if reader[0] == "q" else n_kv_heads
            module, view = _projection(blocks[reader[1]], family, reader[0], n)
            hook = module.register_forward_hook(lambda _, __, out: kept.append(out))
            stack.callback(hook.remove)
        logits = model(base).logits
    if reader[0] == "logits":
        return logits
    if reader[0] == "mlp":
        return patched_logits(model, family, base, None, "mlp_out", reader[1], value=kept[0])

    def one_head(_: Any, __: Any, output: Tensor) -> Tensor:
        output = output.clone()
        view(output)[:, :, reader[2]] = view(kept[0])[:, :, reader[2]]
        return output

    with torch.no_grad():
        handle = module.register_forward_hook(one_head)
        try:
            return model(base).logits
        finally:
            handle.remove()
