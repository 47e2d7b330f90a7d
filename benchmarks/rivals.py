"""The same patching sweep as other tools run it: one full forward a batch of cells.

Each rival patches clean activations into the corrupt run and returns the logit difference at the
last position, ``[cell, prompt]``. ``k`` is how many cells share a forward (stacked on the batch
axis); the benchmark tries several and keeps the fastest. Every rival runs in eval mode, without
gradients, and unembeds the last position alone where its interface allows it.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

os.environ.setdefault("TQDM_DISABLE", "1")


@dataclass(frozen=True)
class Cell:
    """One cell of a sweep; None means all positions (or no head: the whole residual)."""

    layer: int
    position: int | None = None
    head: int | None = None


@dataclass(frozen=True)
class Problem:
    """A GPT-2 with random weights and pairs of prompts.

    Args:
        model: a ``GPT2LMHeadModel`` in eval mode.
        clean, corrupt: token ids ``[prompt, position]``.
        right, wrong: answer tokens ``[prompt]``.
    """

    model: Any
    clean: Tensor
    corrupt: Tensor
    right: Tensor
    wrong: Tensor

    @property
    def d_head(self) -> int:
        """Width of a head."""
        return self.model.config.n_embd // self.model.config.n_head

    def metric(self, logits: Tensor, k: int = 1) -> Tensor:
        """Logit difference of ``[k·prompt, vocab]`` logits: ``[k, prompt]``."""
        logits = logits.reshape(k, len(self.right), -1)
        index = torch.arange(len(self.right), device=logits.device)
        return (logits[:, index, self.right] - logits[:, index, self.wrong]).float()

    def where(self, site: str, layer: int) -> Any:
        """The module whose input is this site."""
        block = self.model.transformer.h[layer]
        return block if site == "resid_pre" else block.attn.c_proj

    def source(self, site: str) -> list[Tensor]:
        """The clean run's value of the site, one ``[prompt, position, width]`` a layer."""
        found: list[Tensor] = []
        hooks = [
            self.where(site, layer).register_forward_pre_hook(
                lambda _, args: found.append(args[0].detach())
            )
            for layer in range(self.model.config.n_layer)
        ]
        try:
            self.model(self.clean, logits_to_keep=1)
        finally:
            for hook in hooks:
                hook.remove()
        return found


def groups(cells: Sequence[Cell], k: int) -> Iterator[list[int]]:
    """Indices of at most k cells of one layer each."""
    by_layer: dict[int, list[int]] = {}
    for i, cell in enumerate(cells):
        by_layer.setdefault(cell.layer, []).append(i)
    for members in by_layer.values():
        for start in range(0, len(members), k):
            yield members[start : start + k]


def put(value: Tensor, cells: Sequence[Cell], source: Tensor, width: int) -> Tensor:
    """Write each cell's source value into its own part of the batch (in place).

    Args:
        value: ``[cell · prompt, position, d]``.
        cells: cells of one layer.
        source: ``[prompt, position, d]``.
        width: of a head.
    """
    n = len(source)
    for i, cell in enumerate(cells):
        rows = slice(i * n, (i + 1) * n)
        places = slice(None) if cell.position is None else cell.position
        channels = slice(None)
        if cell.head is not None:
            channels = slice(cell.head * width, (cell.head + 1) * width)
        value[rows, places, channels] = source[:, places, channels]
    return value


class HookLoop:
    """Plain Hugging Face with a forward hook, as most research code does it."""

    options = (1, 4, 20)

    def __init__(self, problem: Problem, last_only: bool = True) -> None:
        self.problem, self.last_only = problem, last_only
        self.name = f"hook loop{', last position' if last_only else ''}"

    def sweep(self, site: str, cells: Sequence[Cell], k: int) -> np.ndarray:
        """Logit differences ``[cell, prompt]``."""
        problem = self.problem
        source = problem.source(site)
        out = np.zeros((len(cells), len(problem.clean)))
        for members in groups(cells, k):
            chosen = [cells[i] for i in members]
            layer = chosen[0].layer

            def hook(_: Any, args: Any, chosen: Any = chosen, layer: int = layer) -> Any:
                value = put(args[0].clone(), chosen, source[layer], problem.d_head)
                return (value, *args[1:])

            handle = problem.where(site, layer).register_forward_pre_hook(hook)
            try:
                keep = {"logits_to_keep": 1} if self.last_only else {}
                tokens = problem.corrupt.repeat(len(chosen), 1)
                logits = problem.model(tokens, **keep).logits[:, -1]
            finally:
                handle.remove()
            out[members] = problem.metric(logits, len(chosen)).cpu().numpy()
        return out


class TransformerLens:
    """``transformer_lens.patching`` on a TransformerBridge: one forward a cell, all positions."""

    name = "transformer_lens.patching"
    options = (1,)

    def __init__(self, problem: Problem) -> None:
        from transformer_lens.model_bridge import TransformerBridge

        self.problem = problem
        self.bridge = TransformerBridge.boot_transformers(
            "gpt2",
            hf_model=copy.deepcopy(problem.model),
            tokenizer=number_tokenizer(problem.model.config.vocab_size),
            device=str(problem.clean.device),
            dtype=problem.model.dtype,
        )
        self.bridge.eval()

    def sweep(self, site: str, cells: Sequence[Cell], k: int) -> np.ndarray:
        """Logit differences ``[cell, prompt]``."""
        import pandas as pd
        from transformer_lens import patching

        axes = {"layer": "layer"}
        if cells[0].position is not None:
            axes["pos"] = "position"
        if cells[0].head is not None:
            axes["head_index"] = "head"
        setter: Any = {
            ("layer", "pos"): patching.layer_pos_patch_setter,
            ("layer", "head_index"): patching.layer_head_vector_patch_setter,
            ("layer", "pos", "head_index"): patching.layer_pos_head_vector_patch_setter,
        }[tuple(axes)]
        index = pd.DataFrame(
            {key: [getattr(c, field) for c in cells] for key, field in axes.items()}
        )
        ending = "hook_resid_pre" if site == "resid_pre" else "attn.hook_z"
        _, cache = self.bridge.run_with_cache(
            self.problem.clean, names_filter=lambda name: name.endswith(ending)
        )
        result = patching.generic_activation_patch(
            self.bridge,
            self.problem.corrupt,
            cache,
            lambda logits: self.problem.metric(logits[:, -1])[0],
            setter,
            site,
            index_df=index,
            reduce="none",
        )
        return result.values.cpu().double().numpy()


class NNsight:
    """nnsight: traces of stacked cells, or one trace with an invoke a cell."""

    options = (1, 4, 20, -4)  # negative: that many invokes in one trace

    def __init__(self, problem: Problem) -> None:
        from nnsight import TransformersModel

        self.problem, self.name = problem, "nnsight loop"
        self.model = TransformersModel(
            copy.deepcopy(problem.model),
            task="text-generation",
            tokenizer=number_tokenizer(problem.model.config.vocab_size),
        )

    def sweep(self, site: str, cells: Sequence[Cell], k: int) -> np.ndarray:
        """Logit differences ``[cell, prompt]``."""
        source = self.problem.source(site)
        out = np.zeros((len(cells), len(self.problem.clean)))
        trace = self._stacked if k > 0 else self._invokes
        for members in groups(cells, abs(k)):
            chosen = [cells[i] for i in members]
            logits = trace(site, chosen, source[chosen[0].layer])
            out[members] = self.problem.metric(logits, len(chosen)).cpu().numpy()
        return out

    def _envoy(self, site: str, layer: int) -> Any:
        block = self.model.transformer.h[layer]
        return block if site == "resid_pre" else block.attn.c_proj

    def _stacked(self, site: str, cells: list[Cell], source: Tensor) -> Tensor:
        envoy, width = self._envoy(site, cells[0].layer), self.problem.d_head
        tokens = self.problem.corrupt.repeat(len(cells), 1)
        with self.model.trace(tokens, logits_to_keep=1):
            put(envoy.input, cells, source, width)
            logits = self.model.output.logits.save()
        return logits[:, -1]

    def _invokes(self, site: str, cells: list[Cell], source: Tensor) -> Tensor:
        envoy, width = self._envoy(site, cells[0].layer), self.problem.d_head
        tokens = self.problem.corrupt
        with self.model.trace(logits_to_keep=1) as tracer:
            parts = [].save()  # type: ignore[attr-defined]
            for cell in cells:
                with tracer.invoke(tokens):
                    put(envoy.input, [cell], source, width)
                    parts.append(self.model.output.logits)
        return torch.cat(list(parts))[:, -1]


class Pyvene:
    """pyvene: one intervenable model a layer, source activations given, one forward a cell."""

    name = "pyvene loop"
    options = (1,)

    def __init__(self, problem: Problem) -> None:
        import pyvene

        self.pyvene, self.problem = pyvene, problem
        self.model = copy.deepcopy(problem.model)  # pyvene freezes the parameters it is given

    def _intervenable(self, site: str, layer: int, unit: str) -> tuple[Any, str]:
        component = "block_input" if site == "resid_pre" else "head_attention_value_output"
        config = self.pyvene.IntervenableConfig(
            {"layer": layer, "component": component, "unit": unit, "max_number_of_units": 1},
            intervention_types=self.pyvene.VanillaIntervention,
        )
        model = self.pyvene.IntervenableModel(config, model=self.model)
        return model, next(iter(model.interventions))

    def sweep(self, site: str, cells: Sequence[Cell], k: int) -> np.ndarray:
        """Logit differences ``[cell, prompt]``."""
        problem = self.problem
        n, length = problem.clean.shape
        source = problem.source(site)
        out = np.zeros((len(cells), n))
        first = cells[0]
        unit = "pos" if first.head is None else "h" if first.position is None else "h.pos"
        for members in groups(cells, len(cells)):
            layer = cells[members[0]].layer
            model, key = self._intervenable(site, layer, unit)
            value = source[layer]
            if first.head is not None:
                value = value.reshape(n, length, -1, problem.d_head).transpose(1, 2)
            for i in members:
                cell = cells[i]
                given, place = self._unit(value, cell, n)
                _, answer = model(
                    {"input_ids": problem.corrupt, "logits_to_keep": 1},
                    unit_locations={"sources->base": (None, [place])},
                    source_representations={key: given},
                )
                out[i] = problem.metric(answer.logits[:, -1])[0].cpu().numpy()
        return out

    @staticmethod
    def _unit(value: Tensor, cell: Cell, n: int) -> tuple[Tensor, Any]:
        if cell.head is None:
            return value[:, cell.position : cell.position + 1], [[cell.position]] * n  # type: ignore
        head = slice(cell.head, cell.head + 1)
        if cell.position is None:
            return value[:, head], [[cell.head]] * n
        position = slice(cell.position, cell.position + 1)
        return value[:, head, position], [[[cell.head]] * n, [[cell.position]] * n]


def number_tokenizer(vocab: int) -> Any:
    """A tokenizer whose words are the token ids, for tools that insist on one."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = WordLevel({str(i): i for i in range(vocab)}, unk_token="0")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), pad_token="0")


RIVALS: dict[str, Callable[[Problem], Any]] = {
    "transformer_lens": TransformerLens,
    "nnsight": NNsight,
    "pyvene": Pyvene,
    "hooks": lambda problem: HookLoop(problem, last_only=False),
    "hooks_last": HookLoop,
}
"""Name -> how to make it."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without gradients, and without the chatter of libraries about a random model."""
    import transformers

    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        with torch.no_grad():
            yield
    finally:
        transformers.logging.set_verbosity(level)
