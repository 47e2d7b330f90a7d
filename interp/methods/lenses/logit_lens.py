"""LogitLens: what each residual says when the final norm and the unembedding read it at once."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import numpy as np
import torch
import xarray as xr
from pydantic import Field
from torch import Tensor

from interp.engine.depth import Batch, Corpus, corpus_of, walk, wide
from interp.engine.depth.corpus import tokens_at_once
from interp.engine.depth.walking import slices
from interp.terms import Check, Context, HookedModel, Method, PromptPairs, Texts

CURVES = ("entropy", "cross_entropy", "max_prob", "rank", "overlap")
WORDS = {
    "entropy": ("entropy of the lens", "nat"),
    "cross_entropy": ("cross-entropy of the right token", "nat"),
    "max_prob": ("largest probability", "1"),
    "rank": ("rank of the right token (0 is first)", "1"),
    "overlap": ("overlap of the top tokens with the model's", "1"),
}
DIRECTIONS = ("lens_final", "final_lens")


class LogitLens(Method):
    """p_l = softmax(W_U norm(H_l)) at every boundary l = 0 (embedding) … L (the model's own).

    The norm's divisor is recomputed on each residual, a soft cap is applied. ``kl`` in both
    directions: KL(p_l‖p_L) (csordas2025language) and KL(p_L‖p_l) (belrose2023eliciting). Means are
    over tokens; position 0 is left out unless asked for. Source: nostalgebraist2020interpreting.
    """

    title: ClassVar[str] = "Logit lens"
    question: ClassVar[str] = "At which layer is the answer there?"
    needs: ClassVar[tuple[str, ...]] = ("blocks",)
    citations: ClassVar[tuple[str, ...]] = (
        "nostalgebraist2020interpreting", "belrose2023eliciting", "csordas2025language",
    )  # fmt: skip

    top_k: Annotated[int, Field(ge=1, le=1000)] = 5
    """How many of the most probable tokens are kept and compared."""
    middles: Annotated[bool, Field(json_schema_extra={"advanced": True})] = False
    """Read the residual between attention and MLP too."""
    keep_first: Annotated[bool, Field(json_schema_extra={"advanced": True})] = False
    """Count position 0 too, where a beginning of sequence stands."""
    keep_prompts: Annotated[bool, Field(json_schema_extra={"advanced": True})] = True
    """Keep every prompt's values, not only the means."""

    def needed(self) -> tuple[str, ...]:
        """The residual between attention and MLP, where it is read."""
        return ("blocks", "resid_mid") if self.middles else ("blocks",)

    def measure(
        self, model: HookedModel, task: Texts | PromptPairs, context: Context
    ) -> xr.Dataset:
        """Curves ``[boundary]`` and, for every prompt, ``[prompt, boundary, position]``."""
        corpus = corpus_of(model, task, keep_first=self.keep_first)
        L, top = model.shape.n_layers, min(self.top_k, model.shape.vocab)
        shape = (corpus.n_prompts, L + 1 + L * self.middles, corpus.longest)
        held: dict[str, Any] = {k: np.full(shape, np.nan, np.float32) for k in CURVES}
        held["kl"] = np.full((2, *shape), np.nan, np.float32)
        held["top_id"] = np.full((*shape, top), -1, np.int32)
        held["top_prob"] = np.full((*shape, top), np.nan, np.float32)
        counted = np.zeros((corpus.n_prompts, corpus.longest), bool)
        pieces = list(corpus.pieces(tokens_at_once(model, context.memory)))
        worst = 0.0
        for done, batch in enumerate(pieces):
            counted[batch.rows, : batch.length] = batch.counted
            worst = max(worst, self._read(model, batch, top, held))
            context.advance(done + 1, len(pieces))
        context.check(Check(
            "lens_at_the_end", "log-probabilities of the last boundary against the model's",
            worst, 1e-4 if model.blocks.dtype.itemsize >= 4 else 0.25,
            note="The lens at boundary L is the model itself.",
        ))  # fmt: skip
        return self._dataset(held, counted, corpus, model)

    def _read(self, model: HookedModel, batch: Batch, top: int, held: dict[str, Any]) -> float:
        """Fill in one batch; returns how far boundary L is from the model's own output."""
        blocks: Any = model.blocks
        n, T = batch.tokens.shape
        with torch.no_grad():
            resid, middles = [], []
            for step in walk(blocks, batch.tokens):
                resid += [step.resid, step.following] if step.layer == 0 else [step.following]
                middles += [step.read] if self.middles else []
            own = model.run(batch.tokens[:1], positions=[-1]).logits
            lens = blocks.unembed(resid[-1][:1, -1])
            apart = wide(own[0, -1]).log_softmax(-1) - wide(lens[0]).log_softmax(-1)
            worst = float(apart.abs().max())
            right = torch.from_numpy(batch.targets).to(blocks.device).flatten(0, 1)
            flat = [r.flatten(0, 1) for r in (*resid, *middles)]
            last = flat[len(resid) - 1]
            for part in slices(n * T, model.shape.vocab * 4):
                row, at = np.divmod(np.arange(part.start, part.stop), T)
                rows = batch.rows[row]
                final = wide(blocks.unembed(last[part])).log_softmax(-1)
                final_top = final.topk(top).indices
                for boundary, x in enumerate(flat):
                    logp = wide(blocks.unembed(x[part])).log_softmax(-1)
                    found = _curves(logp, final, final_top, right[part], top)
                    for name, value in found.items():
                        if name == "kl":
                            held[name][:, rows, boundary, at] = value
                        else:
                            held[name][rows, boundary, at] = value
        return worst

    def _dataset(
        self, held: dict[str, Any], counted: np.ndarray, corpus: Corpus, model: HookedModel
    ) -> xr.Dataset:
        L = model.shape.n_layers
        arrays: dict[str, Any] = {}
        between = {k: v[:, L + 1 :] if k != "kl" else v[:, :, L + 1 :] for k, v in held.items()}
        held = {k: v[:, : L + 1] if k != "kl" else v[:, :, : L + 1] for k, v in held.items()}
        for name in CURVES:
            title, units = WORDS[name]
            mean, error = _over_tokens(held[name], counted)
            at = {"units": units, "long_name": title, "signed": 0}
            arrays[f"{name}_mean"] = (("boundary",), mean, {**at, "long_name": f"{title}, mean"})
            arrays[f"{name}_mean_se"] = (
                ("boundary",),
                error,
                {**at, "long_name": "standard error over prompts"},
            )
        kl = {"units": "nat", "long_name": "divergence between lens and model", "signed": 0}
        both = [_over_tokens(held["kl"][d], counted) for d in range(2)]
        arrays["kl_mean"] = (("kl_direction", "boundary"), np.stack([b[0] for b in both]),
                             {**kl, "long_name": f"{kl['long_name']}, mean"})  # fmt: skip
        arrays["kl_mean_se"] = (("kl_direction", "boundary"), np.stack([b[1] for b in both]),
                                {**kl, "long_name": "standard error over prompts"})  # fmt: skip
        if self.keep_prompts:
            dims = ("prompt", "boundary", "position")
            for name in CURVES:
                title, units = WORDS[name]
                arrays[name] = (dims, held[name],
                                {"units": units, "long_name": title, "signed": 0})  # fmt: skip
            arrays["kl"] = (("kl_direction", *dims), held["kl"], kl)
            arrays["top_id"] = ((*dims, "top"), held["top_id"], {
                "units": "token", "long_name": "most probable tokens", "signed": 0,
                "token_ids": 1, "shade": "top_prob"})  # fmt: skip
            arrays["top_prob"] = ((*dims, "top"), held["top_prob"], {
                "units": "1", "long_name": "their probability", "signed": 0})  # fmt: skip
        if self.middles:
            arrays |= _middles(between, counted)
        coords: dict[str, Any] = {
            "boundary": np.arange(L + 1), "depth": ("boundary", np.arange(L + 1) / L),
            "kl_direction": list(DIRECTIONS),
        }  # fmt: skip
        if self.middles:
            coords |= {"layer": np.arange(L), "depth_layer": ("layer", np.arange(L) / L)}
        if self.keep_prompts:
            coords |= {
                "prompt": np.arange(corpus.n_prompts), "position": np.arange(corpus.longest),
                "top": np.arange(held["top_id"].shape[-1]),
            }  # fmt: skip
        return xr.Dataset(arrays, coords, {
            "n_tokens": corpus.n_tokens, "n_prompts": corpus.n_prompts, "n_layers": L,
            "scale": "recomputed", "counted_from": corpus.first,
            "bos": "position 0 is counted" if corpus.first == 0 else "position 0 is not averaged",
        })  # fmt: skip


def _curves(
    logp: Tensor, final: Tensor, final_top: Tensor, right: Tensor, top: int
) -> dict[str, np.ndarray]:
    """Every quantity of one boundary, ``[token]`` (``[token, top]``, ``[2, token]``)."""
    p, p_final = logp.exp(), final.exp()
    best = logp.topk(top)
    known = right >= 0
    picked = logp.gather(1, right.clamp_min(0)).masked_fill(~known, -torch.inf)
    best_right = picked.amax(-1, keepdim=True)
    none = ~known.any(-1)
    rank = (logp > best_right).sum(-1).to(logp.dtype)
    shared = (best.indices[:, :, None] == final_top[:, None]).any(-1).sum(-1) / top
    out = {
        "entropy": -(p * logp).nan_to_num(0.0).sum(-1),
        "cross_entropy": (-torch.logsumexp(picked, -1)).masked_fill(none, torch.nan),
        "max_prob": best.values[:, 0].exp(),
        "rank": rank.masked_fill(none, torch.nan),
        "overlap": shared,
        "kl": torch.stack([_kl(p, logp, final), _kl(p_final, final, logp)]),
        "top_prob": best.values.exp(),
    }
    found = {k: v.double().cpu().numpy() for k, v in out.items()}
    return {**found, "top_id": best.indices.int().cpu().numpy()}


def _middles(between: dict[str, Any], counted: np.ndarray) -> dict[str, Any]:
    """Means of the residuals between attention and MLP, ``[layer]``."""
    out: dict[str, Any] = {}
    for name in CURVES:
        title, units = WORDS[name]
        said = {"units": units, "long_name": f"{title}, between attention and MLP", "signed": 0}
        out[f"{name}_between"] = (("layer",), _over_tokens(between[name], counted)[0], said)
    kl = np.stack([_over_tokens(between["kl"][d], counted)[0] for d in range(2)])
    said = {"units": "nat", "long_name": "divergence, between attention and MLP", "signed": 0}
    return {**out, "kl_between": (("kl_direction", "layer"), kl, said)}


def _kl(p: Tensor, logp: Tensor, logq: Tensor) -> Tensor:
    """KL(p‖q), never below 0 by rounding alone."""
    return (p * (logp - logq)).nan_to_num(0.0).sum(-1).clamp_min(0)


def _over_tokens(values: np.ndarray, counted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Token-weighted mean ``[boundary]`` and its standard error over prompts (whole clusters)."""
    known = np.isfinite(values) & counted[:, None]
    total = np.where(known, values, 0.0).sum(-1, dtype=float)
    count = known.sum(-1)
    n = len(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total.sum(0) / count.sum(0)
        away = total - mean * count
        error = np.sqrt((away**2).sum(0) * n / max(n - 1, 1)) / count.sum(0)
    return mean, np.where(n > 1, error, np.nan)
