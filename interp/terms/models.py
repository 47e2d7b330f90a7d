"""HookedModel: what every adapter offers. Protocols and plain records; no tensor library here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from interp.terms.checks import Check
from interp.terms.edits import Edit
from interp.terms.sites import Site

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a transformer; zeros where a network has no such thing.

    Args:
        n_layers: blocks.
        n_heads: query heads a layer.
        n_kv_heads: key/value heads a layer (equal to n_heads without grouped queries).
        d_model: width of the residual stream.
        d_head: width of a head.
        d_mlp: neurons a layer.
        vocab: tokens in the vocabulary.
        n_ctx: longest prompt, None where there is no limit.
        parallel: attention and MLP read the same residual (no resid_mid).
        architecture: the Hugging Face architecture or the module's class name.
        n_params: number of parameters.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    d_mlp: int
    vocab: int
    n_ctx: int | None
    parallel: bool = False
    architecture: str = ""
    n_params: int = 0


@dataclass(frozen=True)
class Run:
    """What a forward pass gave.

    Args:
        logits: ``[batch, position, vocab]`` (or the positions and columns asked for), or the
            network's raw output where it is no language model.
        reads: site -> value ``[batch, position, *site dims]`` with the site's selections applied
            (a chosen head, neuron or single position drops that axis).
        fired: for each edit, in order, the largest absolute change it made where it stands.
    """

    logits: Tensor
    reads: Mapping[Site, Tensor] = field(default_factory=dict)
    fired: tuple[float, ...] = ()


@dataclass(frozen=True)
class Capability:
    """Whether a site or feature is there, and if not, why.

    Args:
        name: a site kind, or a feature such as ``blocks``, ``grad``, ``generate``.
        ok: whether it is there.
        reason: for a 'no', one sentence.
    """

    name: str
    ok: bool
    reason: str = ""


class Tokenizer(Protocol):
    """Text to token ids and back."""

    default_bos: bool
    bos_id: int | None

    def encode(self, text: str, *, bos: bool | None = None) -> Sequence[int]:
        """Token ids of ``text``; ``bos=None`` does what the model does by default."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``."""
        ...

    def texts(self, ids: Sequence[int]) -> list[str]:
        """The text of each id by itself, raw (spaces as spaces), never merged."""
        ...


class Block(Protocol):
    """One layer, in the pieces the engine drives. N packed tokens, no batch axis.

    Legend: N tokens, R rows, T query positions, S key positions, H heads, K key/value heads,
    E head width, D model width, F neurons. All pieces are exact: together they are the model's
    own layer. Post-norms and residual multipliers are inside ``add_attn`` and ``add_mlp``.
    """

    parallel: bool
    gated: bool
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_mlp: int

    def qkv(self, resid_ND: Tensor, position_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Norm, projections, q/k-norms and rotary: q ``[N,H,E]``, k ``[N,K,E]``, v ``[N,K,E]``."""
        ...

    def kv(self, resid_ND: Tensor, position_N: Tensor) -> tuple[Tensor, Tensor]:
        """As ``qkv`` without the queries."""
        ...

    def queries(self, resid_ND: Tensor, position_N: Tensor) -> Tensor:
        """As ``qkv``, the queries alone."""
        ...

    def project(self, resid_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The sites q, k and v: projections before q/k-norms and rotary."""
        ...

    def turned(self, q_NHE: Tensor, k_NKE: Tensor, position_N: Tensor) -> tuple[Tensor, Tensor]:
        """q and k as attention reads them; ``turned`` of ``project`` is ``qkv``."""
        ...

    def attend(self, q_RTHE: Tensor, k_RSKE: Tensor, v_RSKE: Tensor, position_T: Tensor) -> Tensor:
        """z ``[R,T,H,E]``: keys stand at positions 0…S-1, queries at ``position_T``.

        Causal mask (where the model has one), window, scale and soft cap are the layer's own.
        """
        ...

    def pattern(self, q_RTHE: Tensor, k_RSKE: Tensor, position_T: Tensor) -> Tensor:
        """Attention pattern ``[R,H,T,S]``."""
        ...

    def attn_sum(self, z_NHE: Tensor) -> Tensor:
        """W_O z + b_O, before any post-norm: ``[N,D]``."""
        ...

    def head_write(self, z_NE: Tensor, head: int) -> Tensor:
        """One head's part of ``attn_sum``, no bias: ``[N,D]``."""
        ...

    def add_attn(self, sum_ND: Tensor) -> Tensor:
        """What is added to the residual for that sum (post-norm, multiplier): ``[N,D]``."""
        ...

    def neurons(self, resid_ND: Tensor) -> Tensor:
        """mlp_post for the residual that the MLP reads: ``[N,F]``."""
        ...

    def mlp_sum(self, neurons_NF: Tensor) -> Tensor:
        """W_out neurons + b_out, before any post-norm: ``[N,D]``."""
        ...

    def add_mlp(self, sum_ND: Tensor) -> Tensor:
        """What is added to the residual for that sum: ``[N,D]``."""
        ...


class Blocks(Protocol):
    """The model as the engine drives it, layer by layer."""

    @property
    def layers(self) -> Sequence[Block]:
        """Every layer, in order."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The parameters' dtype."""
        ...

    def embed(self, tokens_N: Tensor, position_N: Tensor) -> Tensor:
        """resid_pre of layer 0 for packed tokens: ``[N,D]``."""
        ...

    def token_embed(self, tokens_N: Tensor) -> Tensor:
        """The token embedding alone (kind ``embed``): ``[N,D]``."""
        ...

    def unembed(self, resid_ND: Tensor, vocab: Tensor | None = None) -> Tensor:
        """Final norm, unembedding, soft cap: ``[N, vocab or the columns asked for]``."""
        ...


class Weights(Protocol):
    """Per-head and per-neuron views in TransformerLens's names and orientation."""

    W_E: Tensor  # [vocab, d_model]
    W_U: Tensor  # [d_model, vocab]
    W_Q: Tensor  # [layer, head, d_model, d_head]
    W_K: Tensor  # [layer, kv_head, d_model, d_head]
    W_V: Tensor  # [layer, kv_head, d_model, d_head]
    W_O: Tensor  # [layer, head, d_head, d_model]
    W_in: Tensor  # [layer, d_model, neuron]
    W_out: Tensor  # [layer, neuron, d_model]

    @property
    def ln_final_w(self) -> Tensor | None:
        """Gain of the final norm ``[d_model]``, None where it has none."""
        ...

    @property
    def final_centres(self) -> bool:
        """Whether the final norm subtracts the mean."""
        ...


@runtime_checkable
class HookedModel(Protocol):
    """A model that can be run, read and edited. One verb: ``run``."""

    id: str
    weight_hash: str
    backend: str
    shape: ModelShape
    tokenizer: Tokenizer | None
    checks: tuple[Check, ...]

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every whole site that can be read, layer by layer."""
        ...

    @property
    def blocks(self) -> Blocks:
        """What the engine drives; a CapabilityError where the layers cannot be driven."""
        ...

    @property
    def weights(self) -> Weights:
        """Weights by head and neuron."""
        ...

    def run(
        self,
        inputs: Any,
        *,
        edits: Iterable[Edit] = (),
        read: Iterable[Site] = (),
        grad: bool = False,
        positions: Any = None,
        vocab: Any = None,
    ) -> Run:
        """One forward pass.

        Args:
            inputs: token ids ``[batch, position]`` (list, array or tensor), a text, or the raw
                input tensor of another network.
            edits: interventions; values are arrays or ``"zero"`` here.
            read: sites whose values are wanted.
            grad: keep the graph, so that a metric of the logits can be differentiated with
                respect to the reads.
            positions: indices of the positions to unembed (default all).
            vocab: columns of the logits to return (default all).

        Raises:
            CapabilityError: a site the model does not have, with the reason.
            UsageError: inputs that do not fit.
        """
        ...

    def generate(
        self,
        prompt: Any,
        *,
        edits: Iterable[Edit] = (),
        max_tokens: int = 20,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[int]:
        """Continue a prompt under edits; greedy at temperature 0. Returns the new token ids."""
        ...

    def module(self) -> Any:
        """The unwrapped ``torch.nn.Module``."""
        ...

    def wrapped(self) -> Any:
        """The back-end's own object (a TransformerBridge, an nnsight model, the module)."""
        ...

    def graph(self) -> Any:
        """Linear, add and gate nodes, or a CapabilityError."""
        ...

    def capabilities(self) -> tuple[Capability, ...]:
        """Every site kind and feature, each 'no' with its reason."""
        ...
