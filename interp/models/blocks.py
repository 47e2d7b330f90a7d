"""Blocks: a model's layers as functions over its own parameters (Protocol in terms/models.py).

Built before a back-end wraps the module, from references to its parameters: a wrapper that
rearranges modules does not disturb them, and a later change of a parameter in place is followed.
One implementation serves every family; what differs is data of ``families.py``. Any attribute of
a ``LayerBlock`` may be replaced, which is how the tests take one part away at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from interp.models import kernels
from interp.models.families import Family, LayerFacts, family_of, head_width, layer_facts
from interp.models.kernels import Norm, Rotary
from interp.terms import RefusedError


class Projection:
    """A linear map by reference: ``weight`` is ``[out, in]``, or ``[in, out]`` with ``conv1d``."""

    def __init__(self, weight: Tensor, bias: Tensor | None, conv1d: bool = False) -> None:
        self.weight, self.bias, self.conv1d = weight, bias, conv1d

    @classmethod
    def of(cls, module: nn.Module, conv1d: bool) -> Projection:
        """The parameters of a linear or Conv1D module."""
        return cls(module.weight, module.bias, conv1d)  # type: ignore[arg-type]

    def __call__(self, x_NI: Tensor) -> Tensor:
        """The map of packed rows ``[N, in]`` to ``[N, out]``."""
        if not self.conv1d:
            return F.linear(x_NI, self.weight, self.bias)
        if self.bias is None:
            return x_NI @ self.weight
        return torch.addmm(self.bias, x_NI, self.weight)

    def outputs(self, part: slice) -> Projection:
        """The same map with some of its outputs, as a view."""
        weight = self.weight[:, part] if self.conv1d else self.weight[part]
        return Projection(weight, None if self.bias is None else self.bias[part], self.conv1d)

    def inputs(self, part: slice) -> Projection:
        """The same map from some of its inputs, without its bias, as a view."""
        return Projection(
            self.weight[part] if self.conv1d else self.weight[:, part], None, self.conv1d
        )


def _norm(parent: nn.Module, path: str | None, family: Family) -> Norm | None:
    if path is None:
        return None
    module: Any = parent.get_submodule(path)
    eps = next(
        float(getattr(module, name))
        for name in ("eps", "variance_epsilon")
        if hasattr(module, name)
    )
    kind = "layer" if isinstance(module, nn.LayerNorm) else "rms"
    return Norm(module.weight, getattr(module, "bias", None), eps, kind, family.rms_order)


class LayerBlock:
    """One layer in the pieces the engine drives; the methods are those of ``terms.Block``.

    Args:
        layer: the layer's module.
        family: its layout.
        config: the model's config object.
        index: which layer.
        rotary: the model's rotary angles, or None.
    """

    def __init__(
        self, layer: nn.Module, family: Family, config: Any, index: int, rotary: Rotary | None
    ) -> None:
        def projection(path: str) -> Projection:
            return Projection.of(layer.get_submodule(path), family.conv1d)

        self.parallel = family.parallel(config)
        self.n_heads = int(config.num_attention_heads)
        self.n_kv_heads = int(getattr(config, "num_key_value_heads", None) or self.n_heads)
        self.d_head = head_width(config)
        self.order = family.qkv
        self.qk_norm_width = family.qk_norm_width
        self.facts: LayerFacts = layer_facts(family, config, index)
        self.float32_scores = family.fp32_scores
        self.float32_softmax = family.fp32_softmax
        self.rotary = rotary
        self.w_q = projection(family.q)
        self.w_k = self.w_q if self.order != "separate" else projection(family.k)
        self.w_v = self.w_q if self.order != "separate" else projection(family.v)
        self.w_o = projection(family.o)
        self.w_in, self.w_out = projection(family.w_in), projection(family.w_out)
        self.w_gate = None if family.gate is None else projection(family.gate)
        self.pre_attn = _norm(layer, family.pre_attn, family)
        self.post_attn = _norm(layer, family.post_attn, family)
        self.pre_mlp = _norm(layer, family.pre_mlp, family)
        self.post_mlp = _norm(layer, family.post_mlp, family)
        self.q_norm = _norm(layer, family.q_norm, family)
        self.k_norm = _norm(layer, family.k_norm, family)
        self.gated = self.w_gate is not None
        self.d_mlp = int(self.w_in.weight.shape[1 if family.conv1d else 0])
        self.act = _activation(layer.get_submodule(family.mlp), config)

    # attention -----------------------------------------------------------------------------

    def qkv(self, resid_ND: Tensor, position_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q ``[N,H,E]``, k and v ``[N,K,E]``, after q/k-norms and rotary."""
        x = resid_ND if self.pre_attn is None else self.pre_attn(resid_ND)
        if self.order == "separate":
            q, k, v = self.w_q(x), self.w_k(x), self._heads(self.w_v(x), self.n_kv_heads)
        elif self.order == "thirds":
            q, k, v = self.w_q(x).chunk(3, -1)
            v = self._heads(v, self.n_kv_heads)
        else:
            q, k, v = self.w_q(x).view(len(x), self.n_heads, 3, self.d_head).unbind(2)
        return self._finish_q(q, position_N), self._finish_k(k, position_N), v

    def project(self, resid_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The sites q ``[N,H,E]``, k and v ``[N,K,E]``: before q/k-norms and rotary."""
        x = resid_ND if self.pre_attn is None else self.pre_attn(resid_ND)
        if self.order == "separate":
            q, k, v = self.w_q(x), self.w_k(x), self.w_v(x)
        elif self.order == "thirds":
            q, k, v = self.w_q(x).chunk(3, -1)
        else:
            q, k, v = self.w_q(x).view(len(x), self.n_heads, 3, self.d_head).unbind(2)
        return (
            self._heads(q, self.n_heads),
            self._heads(k, self.n_kv_heads),
            self._heads(v, self.n_kv_heads),
        )

    def turned(self, q_NHE: Tensor, k_NKE: Tensor, position_N: Tensor) -> tuple[Tensor, Tensor]:
        """q and k as attention reads them; ``turned`` of ``project`` is ``qkv``."""
        if self.qk_norm_width == "all":
            q_NHE, k_NKE = q_NHE.flatten(1), k_NKE.flatten(1)
        return self._finish_q(q_NHE, position_N), self._finish_k(k_NKE, position_N)

    def kv(self, resid_ND: Tensor, position_N: Tensor) -> tuple[Tensor, Tensor]:
        """k and v ``[N,K,E]`` alone."""
        x = resid_ND if self.pre_attn is None else self.pre_attn(resid_ND)
        if self.order == "separate":
            k, v = self.w_k(x), self._heads(self.w_v(x), self.n_kv_heads)
        elif self.order == "thirds":
            width = self.n_heads * self.d_head
            k, v = self.w_q.outputs(slice(width, 3 * width))(x).chunk(2, -1)
            v = self._heads(v, self.n_kv_heads)
        else:
            k, v = self._interleaved(x, slice(1, 3)).unbind(2)
        return self._finish_k(k, position_N), v

    def queries(self, resid_ND: Tensor, position_N: Tensor) -> Tensor:
        """q ``[N,H,E]`` alone (the last layer needs them at the metric's positions only)."""
        x = resid_ND if self.pre_attn is None else self.pre_attn(resid_ND)
        if self.order == "separate":
            q = self.w_q(x)
        elif self.order == "thirds":
            q = self.w_q.outputs(slice(0, self.n_heads * self.d_head))(x)
        else:
            q = self._interleaved(x, slice(0, 1))[:, :, 0]
        return self._finish_q(q, position_N)

    def _heads(self, x: Tensor, heads: int) -> Tensor:
        return x if x.ndim == 3 else x.unflatten(-1, (heads, self.d_head))

    def _interleaved(self, x_ND: Tensor, part: slice) -> Tensor:
        """Some of q, k, v from a projection stored head by head: ``[N, H, parts, E]``."""
        H, E = self.n_heads, self.d_head
        if x_ND.dtype.itemsize < 4:  # one large product beats many small ones there
            return self.w_q(x_ND).view(-1, H, 3, E)[:, :, part]
        weight = self.w_q.weight.view(H, 3, E, -1)[:, part].flatten(1, 2)
        y = torch.matmul(x_ND, weight.transpose(1, 2)).transpose(0, 1)
        y = y.unflatten(-1, (-1, E))
        if self.w_q.bias is None:
            return y
        return y + self.w_q.bias.view(H, 3, E)[:, part]

    def _finish_q(self, q: Tensor, position_N: Tensor) -> Tensor:
        return self._finish(q, position_N, self.n_heads, self.q_norm)

    def _finish_k(self, k: Tensor, position_N: Tensor) -> Tensor:
        return self._finish(k, position_N, self.n_kv_heads, self.k_norm)

    def _finish(self, x: Tensor, position_N: Tensor, heads: int, norm: Norm | None) -> Tensor:
        if norm is not None and self.qk_norm_width == "all":
            x = norm(x)
        x = self._heads(x, heads)
        if norm is not None and self.qk_norm_width == "head":
            x = norm(x)
        return x if self.rotary is None else self.rotary(x, position_N)

    def attend(self, q_RTHE: Tensor, k_RSKE: Tensor, v_RSKE: Tensor, position_T: Tensor) -> Tensor:
        """z ``[R,T,H,E]``; keys at 0…S-1, queries at ``position_T`` (``[T]`` or ``[R,T]``)."""
        facts = self.facts
        if self._plain(q_RTHE):
            whole = self._everything(q_RTHE, k_RSKE, position_T)
            mask = None if whole else self._mask(position_T, k_RSKE.shape[1])
            return kernels.sdpa(q_RTHE, k_RSKE, v_RSKE, mask, facts.scale, is_causal=whole)
        return kernels.mix(self._pattern(q_RTHE, k_RSKE, position_T), v_RSKE)

    def pattern(self, q_RTHE: Tensor, k_RSKE: Tensor, position_T: Tensor) -> Tensor:
        """Attention pattern ``[R,H,T,S]``; rows sum to one."""
        return self._pattern(q_RTHE, k_RSKE, position_T).flatten(1, 2)

    def scores(self, q_RTHE: Tensor, k_RSKE: Tensor, position_T: Tensor) -> Tensor:
        """Scores ``[R,H,T,S]`` after scale and soft cap; -inf where a query may not look."""
        mask, facts = self._mask(position_T, k_RSKE.shape[1]), self.facts
        s = kernels.scores(
            q_RTHE, k_RSKE, position_T, mask, facts.scale, facts.cap, self.float32_scores
        )
        return s.flatten(1, 2)

    def biases(self) -> dict[str, Tensor]:
        """Everything this layer adds that does not depend on its input, by the part's name."""
        owners = {
            name: getattr(self, name)
            for name in (
                "pre_attn",
                "w_q",
                "w_k",
                "w_v",
                "q_norm",
                "k_norm",
                "w_o",
                "post_attn",
                "pre_mlp",
                "w_gate",
                "w_in",
                "w_out",
                "post_mlp",
            )
        }
        found = {n: o.bias for n, o in owners.items() if getattr(o, "bias", None) is not None}
        if self.order != "separate":
            found = {n: b for n, b in found.items() if n not in ("w_k", "w_v")}
        return found

    def mix(self, pattern_RHTS: Tensor, v_RSKE: Tensor) -> Tensor:
        """z ``[R,T,H,E]`` for a given pattern (pattern edits)."""
        return kernels.mix(pattern_RHTS.unflatten(1, (self.n_kv_heads, -1)), v_RSKE)

    def _plain(self, q: Tensor) -> bool:
        """Whether the fused kernel computes this layer's attention as the module does."""
        if self.facts.cap is not None:
            return False
        return q.dtype == torch.float32 or not (self.float32_scores or self.float32_softmax)

    def _everything(self, q: Tensor, k: Tensor, position_T: Tensor) -> bool:
        """Whether the queries are exactly positions 0…S-1 under a bare causal mask (CPU only)."""
        S = k.shape[1]
        if self.facts.window is not None and self.facts.window < S:
            return False
        if not self.facts.causal or q.shape[1] != S or position_T.ndim != 1:
            return False
        return position_T.device.type == "cpu" and position_T.tolist() == list(range(S))

    def _mask(self, position_T: Tensor, n_keys: int) -> Tensor | None:
        return kernels.allowed(position_T, n_keys, self.facts.window, self.facts.causal)

    def _pattern(self, q: Tensor, k: Tensor, position_T: Tensor) -> Tensor:
        mask, facts = self._mask(position_T, k.shape[1]), self.facts
        s = kernels.scores(q, k, position_T, mask, facts.scale, facts.cap, self.float32_scores)
        return kernels.softmax(s, q.dtype, self.float32_softmax)

    def attn_sum(self, z_NHE: Tensor) -> Tensor:
        """W_O z + b_O: ``[N,D]``."""
        return self.w_o(z_NHE.reshape(len(z_NHE), -1))

    def head_write(self, z_NE: Tensor, head: int) -> Tensor:
        """One head's part of ``attn_sum``, no bias: ``[N,D]``."""
        part = slice(head * self.d_head, (head + 1) * self.d_head)
        return self.w_o.inputs(part)(z_NE)

    def add_attn(self, sum_ND: Tensor) -> Tensor:
        """What is added to the residual for that sum: ``[N,D]``."""
        return sum_ND if self.post_attn is None else self.post_attn(sum_ND)

    # MLP -----------------------------------------------------------------------------------

    def neurons(self, resid_ND: Tensor) -> Tensor:
        """mlp_post ``[N,F]``."""
        x = resid_ND if self.pre_mlp is None else self.pre_mlp(resid_ND)
        if self.w_gate is None:
            return self.act(self.w_in(x))
        gate, up = self.act(self.w_gate(x)), self.w_in(x)
        return up.mul_(gate) if kernels.fresh(up) and kernels.fresh(gate) else gate * up

    def mlp_sum(self, neurons_NF: Tensor) -> Tensor:
        """W_out neurons + b_out: ``[N,D]``."""
        return self.w_out(neurons_NF)

    def add_mlp(self, sum_ND: Tensor) -> Tensor:
        """What is added to the residual for that sum: ``[N,D]``."""
        return sum_ND if self.post_mlp is None else self.post_mlp(sum_ND)


def _activation(mlp: nn.Module, config: Any) -> Callable[[Tensor], Tensor]:
    for key in ("hidden_activation", "activation_function", "hidden_act"):
        name = getattr(config, key, None)
        if name is not None:
            break
    own = next((getattr(mlp, n) for n in ("act", "act_fn") if hasattr(mlp, n)), None)
    return kernels.FUSED.get(str(name)) or own  # type: ignore[return-value]


def _rotary(module: nn.Module, family: Family) -> Rotary | None:
    if family.rotary is None:
        return None
    part: Any = module.get_submodule(family.rotary)
    limit = None
    if part.rope_type in ("dynamic", "longrope"):
        limit = int(part.original_max_seq_len)
        extra = part.config.rope_parameters.get("original_max_position_embeddings")
        limit = int(extra) if extra else limit
    return Rotary(part.inv_freq, float(part.attention_scaling), family.fp32_rotary, limit)


class ModelBlocks:
    """The model as the engine drives it: ``terms.Blocks`` over a module's own parameters.

    Args:
        module: an untouched Hugging Face module of a known family (``Loaded.module``).

    Raises:
        RefusedError: a feature of the architecture that no block holds, with its reason.
    """

    def __init__(self, module: nn.Module) -> None:
        family, config = family_of(module), module.config
        refuse_unheld(family, config)
        embed: Any = module.get_submodule(family.embed)
        self.family = family
        self.rotary = _rotary(module, family)
        self.w_embed: Tensor = embed.weight
        self.embed_scale: Tensor | None = embed.embed_scale if family.embed_scaled else None
        self.w_position: Tensor | None = None
        if family.position_embed is not None:
            self.w_position = module.get_submodule(family.position_embed).weight  # type: ignore[assignment]
        self.layers = [
            LayerBlock(layer, family, config, index, self.rotary)
            for index, layer in enumerate(module.get_submodule(family.layers))  # type: ignore[arg-type]
        ]
        self.final_norm = _norm(module, family.final_norm, family)
        self.w_unembed = Projection.of(module.get_submodule(family.unembed), conv1d=False)
        self.cap: float | None = getattr(config, "final_logit_softcapping", None)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.w_embed.device

    @property
    def dtype(self) -> torch.dtype:
        """The parameters' dtype."""
        return self.w_embed.dtype

    def token_embed(self, tokens_N: Tensor) -> Tensor:
        """The token embedding alone: ``[N,D]``."""
        x = F.embedding(tokens_N, self.w_embed)
        return x if self.embed_scale is None else x * self.embed_scale.to(x.dtype)

    def embed(self, tokens_N: Tensor, position_N: Tensor) -> Tensor:
        """resid_pre of layer 0: ``[N,D]``."""
        x = self.token_embed(tokens_N)
        return x if self.w_position is None else x + F.embedding(position_N, self.w_position)

    def unembed(self, resid_ND: Tensor, vocab: Tensor | None = None) -> Tensor:
        """Final norm, unembedding, soft cap: ``[N, vocab or the columns asked for]``."""
        x = resid_ND if self.final_norm is None else self.final_norm(resid_ND)
        weight, bias = self.w_unembed.weight, self.w_unembed.bias
        if vocab is not None:
            weight, bias = weight[vocab], None if bias is None else bias[vocab]
        logits = F.linear(x, weight, bias)
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap

    def forward(self, tokens_RT: Tensor, vocab: Tensor | None = None) -> Tensor:
        """Logits ``[R, T, vocab]`` of whole prompts, all pieces put together."""
        R, T = tokens_RT.shape
        position_T = torch.arange(T, device=tokens_RT.device)
        position_N = position_T.repeat(R)
        x = self.embed(tokens_RT.flatten(), position_N)
        for block in self.layers:
            x = step(block, x, position_N, position_T, R)
        return self.unembed(x, vocab).unflatten(0, (R, T))


def step(block: Any, resid_ND: Tensor, position_N: Tensor, position_T: Tensor, rows: int) -> Tensor:
    """One whole layer over ``rows`` complete prompts packed row after row."""
    q, k, v = (x.unflatten(0, (rows, -1)) for x in block.qkv(resid_ND, position_N))
    z = block.attend(q, k, v, position_T).flatten(0, 1)
    attn = block.add_attn(block.attn_sum(z))
    if block.parallel:
        mlp = block.add_mlp(block.mlp_sum(block.neurons(resid_ND)))
        return mlp + attn + resid_ND
    mid = resid_ND + attn
    return mid + block.add_mlp(block.mlp_sum(block.neurons(mid)))


def refuse_unheld(family: Family, config: Any) -> None:
    """Refuse the few switches of a known architecture that no block holds."""
    unheld = {
        "add_cross_attention": "attends to an encoder",
        "use_bidirectional_attention": "attends in both directions",
    }
    for switch, what in unheld.items():
        if getattr(config, switch, None):
            raise RefusedError(
                f"This {family.name} model {what} ({switch} in its config), which interp does "
                "not hold.",
                remedy="Wrap it with backend='torch_module' and a site map.",
            )
