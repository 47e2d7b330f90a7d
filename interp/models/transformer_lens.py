"""The TransformerLens back-end: a TransformerBridge around the loaded Hugging Face module.

The only door to transformer_lens. Raw weights, no compatibility mode, no tokenizer of the
library's own making. Sites are caught at the bridge's components and hook points where those
stand at the right tensor, else at the wrapped modules: ``resid_mid`` at the bridge changes only
the MLP's copy (here it is written into the residual itself), GPT-Neo's ``hook_pattern`` fires
after its values were used (here: the layer's own dropout module), and the norms' ``hook_scale``
is outside the graph (here: the norm's input and output).
"""

from __future__ import annotations

from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from interp.models.layouts import Divisor, Layout
from interp.models.taps import Tap
from interp.models.transformer import SCALES, TransformerModel
from interp.terms import Site

if TYPE_CHECKING:
    from interp.models.loading import Loaded


def wrap(loaded: Loaded, *, verify: bool = True) -> TransformerLensModel:
    """Wrap a loaded Hugging Face module; it is changed in place.

    Args:
        loaded: what ``loading.load`` gave.
        verify: run the self-checks (design: what an adapter proves when it wraps a model).
    """
    model = TransformerLensModel(loaded)
    if verify:
        from interp.models.checks import self_checks

        model.checks = self_checks(model, loaded.probe, loaded.reference)
    return model


class TransformerLensModel(TransformerModel):
    """A model behind a TransformerBridge."""

    backend = "transformer_lens"

    def __init__(self, loaded: Loaded) -> None:
        super().__init__(loaded)
        self._bridge = boot(loaded)
        if self.dtype == torch.float64 and not self.family.fp32_softmax:
            keep_softmax_exact(self._bridge)
        if self.dtype in (torch.bfloat16, torch.float16):
            keep_rotary_narrow(self._bridge, self.dtype)
        let_patterns_go(self._bridge)

    def wrapped(self) -> Any:
        """The TransformerBridge."""
        return self._bridge

    def _part(self, layer: int | None, path: str) -> nn.Module:
        """By the Hugging Face names, which the bridge's own may shadow (GPT-Neo's ``attn``)."""
        block: Any = self._layer(layer)
        return block.original_component.get_submodule(path) if path else block

    def _tap(self, site: Site) -> Tap:
        kind, family = site.kind, self.family
        if kind == "ln_final_scale":
            norm = self._module.get_submodule(family.final_norm)
            return Tap(norm, divisor=self.divisor_of(kind, norm))
        if kind in SCALES:
            norm = self._part(site.layer, getattr(family, SCALES[kind]))
            return Tap(norm, divisor=self._divisor(kind, norm), order=-1)
        if kind == "pattern":
            return Tap(self._pattern_module(site.layer), layout=Layout("heads_first"))
        place = family.place(kind)
        assert place is not None, f"{family.name} has {kind} among its capabilities"
        layout = Layout("heads", self._heads_of(kind)) if place.axes else Layout()
        if place.part:
            # The bridge splits the fused projection into three; the fused one is not called.
            module = self._bridge.blocks[site.layer].attn.get_submodule(place.part)
            return Tap(module, layout=layout)
        if place.absolute:
            module = self._module.get_submodule(place.path)
        else:
            module = self._part(site.layer, place.path)
        return Tap(module, place.side, layout, in_place=kind == "resid_mid")

    def _divisor(self, kind: str, norm: nn.Module) -> Divisor:
        found = self.divisor_of(kind, norm)
        if found.heads and not found.shared:  # the bridge transposes heads before these norms
            return Divisor(found.centred, found.eps, found.heads, False, heads_first=True)
        return found

    def _pattern_module(self, layer: int | None) -> nn.Module:
        if self.family.name == "gpt_neo":
            return self._part(layer, "attn.attention.attn_dropout")
        return self._bridge.blocks[layer].attn.hook_pattern


def boot(loaded: Loaded) -> Any:
    """A TransformerBridge on the loaded module, which it changes in place; eager attention."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    module = loaded.module
    module.set_attn_implementation("eager")  # type: ignore[operator]
    bridge = build_bridge_from_module(
        module,
        loaded.family.architecture,
        hf_config=loaded.config,
        tokenizer=None,
        model_name=loaded.id,
    )
    known = loaded.hf_tokenizer
    bridge.cfg.default_prepend_bos = bool(
        loaded.family.default_bos and getattr(known, "bos_token_id", None) is not None
    )
    if known is not None:  # handed over as it is: the library's own set-up invents tokens
        bridge.tokenizer = known
    return bridge


def keep_softmax_exact(bridge: Any) -> None:
    """Let the bridge's attention keep float64 through its softmax (it drops to float32)."""

    def softmax(self: Any, scores: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return torch.softmax(scores, dim=-1)

    for block in bridge.blocks:
        if hasattr(type(block.attn), "_masked_softmax"):
            object.__setattr__(block.attn, "_masked_softmax", MethodType(softmax, block.attn))


def keep_rotary_narrow(bridge: Any, dtype: torch.dtype) -> None:
    """Cast rotated queries and keys back, as OLMo 2 does; the bridge leaves them in float32."""
    for block in bridge.blocks:
        for name in ("hook_rot_q", "hook_rot_k"):
            point = block.attn._modules.get(name)
            if point is not None:
                point.register_forward_hook(lambda module, args, output: output.to(dtype))


def let_patterns_go(bridge: Any) -> None:
    """Drop each layer's pattern when its attention has run; the bridge would keep every one."""

    def drop(module: Any, args: Any, output: Any) -> None:
        module._pattern = None

    for block in bridge.blocks:
        if hasattr(block.attn, "_pattern"):
            block.attn.register_forward_hook(drop)
