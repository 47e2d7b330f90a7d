"""The torch_module back-end: any ``nn.Module``, by plain hooks.

A network as it is has the sites ``input``, ``module`` (any part, by path) and ``logits``. With a
site map a hand-written transformer has a transformer's sites as far as the map goes. Nothing is
assumed of what is inside: no causal mask, no layer that the engine could drive by itself.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from interp.models.adapter import Adapter, first_tensor
from interp.models.attention import show_patterns
from interp.models.capabilities import module_capabilities
from interp.models.graph import Graph, graph_of
from interp.models.layouts import Divisor
from interp.models.placing import bytes_of, read_device, read_dtype
from interp.models.site_map import read_site_map
from interp.models.taps import Tap
from interp.models.tensors import hash_module
from interp.models.tokenizer import TextTokenizer, open_tokenizer
from interp.models.transformer import TransformerModel, norm_eps
from interp.terms import (
    Capability,
    LabelledInputs,
    ModelShape,
    Site,
    UsageError,
    unknown_name,
)

if TYPE_CHECKING:
    from interp.models.loading import Loaded, LoadedOther
    from interp.terms import Tokenizer


def wrap(
    module: nn.Module,
    *,
    example: Any = None,
    site_map: Mapping[str, Any] | None = None,
    device: str | None = None,
    dtype: str | None = None,
    tokenizer: Any = None,
    loaded: Loaded | None = None,
    verify: bool = True,
) -> Adapter:
    """Wrap a module; it is copied, so that nothing done here reaches the person's own.

    Args:
        module: the network.
        example: one batch of inputs, ``[batch, …]``; whole numbers are token ids.
        site_map: site kind -> where it stands (``site_map.py`` says how it is written).
        device: where it runs; None leaves it.
        dtype: floating type of parameters and inputs; None leaves it.
        tokenizer: a Hugging Face tokenizer or the folder of one, where the network reads text.
        loaded: a checkpoint of a known family; its sites are then known without a map.
        verify: run the self-checks.

    Raises:
        UsageError: no example, or a site map that does not fit.
    """
    from interp.models.checks import self_checks

    if loaded is not None:
        hooked: Adapter = HookedTransformerModule(loaded)
        if verify:
            hooked.checks = self_checks(hooked, loaded.probe, loaded.reference)
        return hooked
    if example is None:
        raise UsageError(
            f"{type(module).__name__} was given without an example of its inputs.",
            remedy="Pass example=, one batch as the module takes it.",
        )
    own = copy.deepcopy(module).eval()
    kind = None if dtype is None else read_dtype(dtype)
    own = own.to(device=None if device is None else read_device(device, bytes_of(own)), dtype=kind)
    model = TorchModule(own, example, site_map)
    if tokenizer is not None:
        model.tokenizer = _reader(tokenizer, model.shape.vocab)
    if verify:
        model.checks = self_checks(model, model.example, model.reference)
    return model


def wrap_other(loaded: LoadedOther, *, verify: bool = True) -> OtherModel:
    """Wrap a checkpoint that is read by its architecture's site map alone.

    Args:
        loaded: what ``loading.load_any`` gave.
        verify: run the self-checks.
    """
    from interp.models.checks import self_checks

    model = OtherModel(loaded)
    if verify:
        model.checks = self_checks(model, model.example, model.reference)
    return model


class TorchModule(Adapter):
    """A plain network, or a hand-written transformer with a site map."""

    backend = "torch_module"

    def __init__(
        self,
        module: nn.Module,
        example: Any,
        site_map: Mapping[str, Any] | None = None,
    ) -> None:
        self._module = module
        self.tokenizer: Tokenizer | None = None
        self.map = read_site_map(site_map, module)
        self.weight_hash = hash_module(module)
        self.id = f"module:{type(module).__name__}"
        self._names = dict(module.named_modules())
        sample = example.inputs if isinstance(example, LabelledInputs) else example
        sample = torch.as_tensor(sample if isinstance(sample, Tensor) else np.asarray(sample))
        self.takes_tokens = not sample.is_floating_point()
        self.shape = ModelShape(0, 0, 0, 0, 0, 0, 0, None)  # until the example has run
        self._dims = tuple(sample.shape[1:])
        self.example = self.to_inputs(sample)
        with torch.no_grad():
            self.reference = self._call(self.example, None, None)
        self.shape = self._measure(self.reference)
        self._graph: Graph | str = graph_of(module)
        self._abilities = module_capabilities(
            self.map, self.takes_tokens, self._speaks(), self._graph
        )

    def module(self) -> nn.Module:
        """The module (a copy of the one handed in)."""
        return self._module

    def capabilities(self) -> tuple[Capability, ...]:
        """Every site kind and feature, each 'no' with its reason."""
        return self._abilities

    def graph(self) -> Graph:
        """Linear, add and gate nodes of the network.

        Raises:
            CapabilityError: a part of another kind, named.
        """
        self.require("graph")
        assert isinstance(self._graph, Graph)
        return self._graph

    def _speaks(self) -> bool:
        """Whether the output is a row of logits for every position of a token prompt."""
        return self.takes_tokens and self.reference.dim() == 3

    def _measure(self, output: Tensor) -> ModelShape:
        """Sizes; widths are read at the mapped sites with the example."""
        spots, n = self.map.spots, self.map
        shape = ModelShape(
            n.n_layers,
            n.n_heads,
            n.n_kv_heads,
            0,
            0,
            0,
            int(output.shape[-1]),
            n.n_ctx,
            architecture=type(self._module).__name__,
            n_params=sum(p.numel() for p in self._module.parameters()),
        )
        widths: dict[str, int] = {}
        for name, kinds in (
            ("d_model", ("resid_pre", "embed", "attn_out", "resid_post")),
            ("d_head", ("z", "v", "q")),
            ("d_mlp", ("mlp_post",)),
        ):
            kind = next((k for k in kinds if k in spots), None)
            if kind is not None:
                widths[name] = self._width(kind)
        return ModelShape(**{**vars(shape), **widths})

    def _width(self, kind: str) -> int:
        from interp.models.taps import Session

        site = Site(kind, layer=0 if "{layer}" in self.map.spots[kind].path else None)
        with torch.no_grad(), Session(self._tap, read=[site]) as session:
            self._call(self.example, None, None)
        return int(session.reads[site].shape[-1])

    def _tap(self, site: Site) -> Tap:
        if site.kind == "module":
            if site.path not in self._names:
                raise unknown_name("part of the module", str(site.path), self._names)
            return Tap(self._names[site.path])
        spot = self.map.spots[site.kind]
        module = self._names[spot.path.format(layer=site.layer)]
        if site.kind.endswith("_scale"):
            return Tap(module, divisor=self._divisor(site.kind, module), order=-1)
        return Tap(
            module,
            spot.side,  # type: ignore[arg-type]
            self.map.axes(site.kind),  # type: ignore[arg-type]
            in_place=spot.in_place,
        )

    def _divisor(self, kind: str, norm: nn.Module) -> Divisor:
        spot = self.map.spots[kind]
        centred = isinstance(norm, nn.LayerNorm) if spot.centred is None else spot.centred
        heads = {"q_norm_scale": self.map.n_heads, "k_norm_scale": self.map.n_kv_heads}
        words = (spot.axes or "").split()
        return Divisor(
            centred,
            norm_eps(norm, None) if spot.eps is None else spot.eps,
            heads.get(kind, 0),
            heads_first=words[1:2] == ["head"],
        )

    def to_inputs(self, inputs: Any) -> Tensor:
        """A batch as the module takes it: token ids, or numbers shaped like the example.

        Raises:
            UsageError: another shape.
        """
        if isinstance(inputs, LabelledInputs):
            inputs = inputs.inputs
        if self.takes_tokens:
            return super().to_inputs(inputs)
        if not isinstance(inputs, Tensor):
            inputs = np.asarray(inputs)
        batch = torch.as_tensor(inputs, device=self.device).to(self.dtype)
        if batch.dim() == len(self._dims):
            batch = batch[None]
        if batch.dim() != len(self._dims) + 1 or batch.shape[0] == 0:
            raise UsageError(
                f"Inputs of shape {tuple(batch.shape)} were given; the example's are "
                f"[batch, {', '.join(map(str, self._dims))}]."
            )
        return batch

    def _check_tokens(self, tokens: Tensor) -> None:
        low = int(tokens.min())
        if low < 0:
            raise UsageError(f"Token id {low} is below 0.")
        limit = self.map.n_ctx
        if limit is not None and tokens.shape[1] > limit:
            raise UsageError(
                f"The prompt has {tokens.shape[1]} tokens and the model's context holds {limit}."
            )

    def _call(self, inputs: Tensor, positions: Tensor | None, vocab: Tensor | None) -> Tensor:
        try:
            out = first_tensor(self._output(inputs))
        except IndexError as error:
            raise UsageError(
                f"The module could not look up its inputs ({error}).",
                remedy="Token ids or positions lie beyond what it knows.",
            ) from error
        except RuntimeError as error:
            if tuple(inputs.shape[1:]) == self._dims:
                raise
            raise UsageError(
                f"The module refused inputs of shape {tuple(inputs.shape)} "
                f"({str(error).splitlines()[0]}).",
                remedy=f"The example's are [batch, {', '.join(map(str, self._dims))}].",
            ) from error
        if positions is not None:
            if out.dim() < 3:
                raise UsageError(
                    f"The output has shape {tuple(out.shape)}, so it has no positions to choose."
                )
            out = out[:, positions]
        return out if vocab is None else out[..., vocab]

    def _output(self, inputs: Tensor) -> Any:
        """What the module says to a batch."""
        return self._module(inputs)

    def _indices(self, given: Any, size: int, what: str) -> Tensor | None:
        if what == "position" and self.reference.dim() < 3 and given is not None:
            raise UsageError("This network's output has no positions to choose.")
        return super()._indices(given, size, what)


def _reader(tokenizer: Any, vocab: int) -> Tokenizer:
    """A tokenizer of ours from what a person has."""
    if isinstance(tokenizer, (str, Path)):
        tokenizer = open_tokenizer(tokenizer)
    if hasattr(tokenizer, "texts"):
        return tokenizer
    return TextTokenizer(tokenizer, default_bos=False, vocab=vocab)


class HookedTransformerModule(TransformerModel):
    """A checkpoint of a known family under plain hooks, without any library in between."""

    backend = "torch_module"

    def __init__(self, loaded: Loaded) -> None:
        super().__init__(loaded)
        if self.family.name != "gpt_neo":
            show_patterns(self._module, self.family)


class OtherModel(TorchModule):
    """An encoder, mixture of experts or state-space model: the sites of its row, no more.

    An encoder with a decoder is run with the prompt itself, shifted right, in its decoder, so
    that its logits have the prompt's positions.
    """

    def __init__(self, loaded: LoadedOther) -> None:
        self.row = loaded.row
        config: Any = loaded.module.config
        self._start = getattr(config, "decoder_start_token_id", None)
        super().__init__(loaded.module, loaded.probe, loaded.row.site_map(config))
        self.id, self.weight_hash = loaded.id, loaded.weight_hash
        self.tokenizer, self.source = loaded.tokenizer, loaded.source
        self._vocab = int(config.vocab_size)
        self._abilities = tuple(self._because(c) for c in self._abilities)

    def _because(self, found: Capability) -> Capability:
        """The row's own reason in place of the site map's, and no text from an encoder."""
        name, row = found.name, self.row
        if name == "generate" and row.kind in ("encoder", "encoder_decoder"):
            return Capability(name, False, f"{row.architecture} {row.why}.")
        if found.ok or "site map" not in found.reason:
            return found
        return Capability(name, False, f"not held for {row.architecture}, which {row.why}.")

    def _check_tokens(self, tokens: Tensor) -> None:
        super()._check_tokens(tokens)
        high, vocab = int(tokens.max()), getattr(self, "_vocab", None)
        if vocab is not None and high >= vocab:
            raise UsageError(
                f"Token id {high} is not in the vocabulary of {vocab}.",
                remedy=f"Give ids from 0 to {vocab - 1}.",
            )

    def _output(self, inputs: Tensor) -> Any:
        if self.row.kind == "encoder":
            return self._module(inputs)
        if self.row.kind != "encoder_decoder":
            return self._module(inputs, use_cache=False)
        start = inputs.new_full((len(inputs), 1), int(self._start or 0))
        told = torch.cat([start, inputs[:, :-1]], dim=1)
        return self._module(inputs, decoder_input_ids=told, use_cache=False)
