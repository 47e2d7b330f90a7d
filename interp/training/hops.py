"""The weights of ``zoo:hops``, set by hand: one hop of a pointer chain a layer, and nothing else.

The residual stream holds cur, key, val (one coordinate a symbol), flag_0 … flag_5, isq, isbos,
isr. A pair writes key and val, a query its start into cur and flag_j = 1 for j < hops. Layer j has
three heads, each scoring the beginning-of-sequence token at half of a match, so that it is looked
at (and gives nothing) unless something matches:

- A looks from flag_j · cur at the pair with that key and adds its val to cur;
- B looks from flag_j at the query itself and takes its cur away;
- C (last layer alone) looks from the reader at the query and copies its cur.

Logits are 40 · cur on symbols; other tokens get -200. So at boundary l the stream holds entity
min(l, hops) and nothing else ever changes. The architecture is GPT-2's. Its layer norms are made
the identity: every coordinate has a mirrored one of opposite sign, so that the mean is 0, and with
eps = 10¹², gain = 10⁶ a vector of variance v comes back with relative error v / 2·10¹². Its MLPs
have zero inputs and add nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.tasks import hops as words
from interp.training.checkpoints import CARD, write_checkpoint, write_json

LAYERS, HEADS, WIDTH, NEURONS, CONTEXT = 6, 3, 84, 4, 16
N = len(words.SYMBOLS)
SCALE, LOGIT, NEVER = 60.0, 40.0, -200.0
CUR, KEY, VAL = 0, N, 2 * N
FLAG = 3 * N
ISQ, ISBOS, ISR, MASK = (FLAG + LAYERS + i for i in range(4))
HALF = MASK + 1
"""Coordinates, and how many there are before their mirrored ones."""


def embeddings() -> Tensor:
    """``[vocab, width]``."""
    table = torch.zeros(words.VOCAB, HALF)
    table[words.BOS, ISBOS] = 1
    for key in range(N):
        for value in range(N):
            table[words.pair(key, value), [KEY + key, VAL + value]] = 1
    for start in range(N):
        for count in range(words.CHAIN + 1):
            row = table[words.query(start, count)]
            row[CUR + start] = row[ISQ] = 1
            row[FLAG : FLAG + count] = 1
    table[words.READER, ISR] = 1
    return mirrored(table)


def mirrored(table: Tensor) -> Tensor:
    """Each coordinate and its negative: mean 0, whatever stands in them; ``[…, width]``."""
    spare = torch.zeros(*table.shape[:-1], WIDTH - 2 * HALF)
    return torch.cat([table, -table, spare], -1)


class Heads:
    """The projections of one layer while they are written."""

    def __init__(self) -> None:
        self.size = WIDTH // HEADS
        self.q, self.k, self.v = (torch.zeros(WIDTH, WIDTH) for _ in range(3))
        self.q_bias, self.k_bias = torch.zeros(WIDTH), torch.zeros(WIDTH)
        self.out = torch.zeros(WIDTH, WIDTH)

    def write(self, head: int, matches: list[tuple[int | None, int]], flag: int) -> None:
        """score = 60 · (match + (flag - 1) · not BOS + ½ · BOS).

        Args:
            head: which.
            matches: pairs (coordinate of the query, or None for 1; coordinate of the key).
            flag: coordinate of the query that switches the head on.
        """
        first = head * self.size
        scale = SCALE * math.sqrt(self.size)
        for i, (ours, theirs) in enumerate(matches):
            if ours is None:
                self.q_bias[first + i] = scale
            else:
                self.q[ours, first + i] = scale
            self.k[theirs, first + i] = 1
        at = first + len(matches)
        self.q[flag, at], self.q_bias[at] = scale, -scale
        self.k[ISBOS, at], self.k_bias[at] = -1, 1
        self.q_bias[at + 1] = 0.5 * scale
        self.k[ISBOS, at + 1] = 1

    def copy(self, head: int, source: int, sign: float) -> None:
        """Add ``sign`` times the symbol at ``source`` of what is looked at to cur."""
        first = head * self.size
        for i in range(N):
            self.v[source + i, first + i] = 1
            self.out[first + i, CUR + i] = sign
            self.out[first + i, HALF + CUR + i] = -sign


def layer(number: int) -> Heads:
    """The heads of one layer."""
    made = Heads()
    made.write(0, [(CUR + i, KEY + i) for i in range(N)], FLAG + number)
    made.copy(0, VAL, 1.0)
    made.write(1, [(None, ISQ)], FLAG + number)
    made.copy(1, CUR, -1.0)
    made.write(2, [(None, ISQ)], ISR)
    if number == LAYERS - 1:
        made.copy(2, CUR, 1.0)
    return made


def tensors() -> dict[str, Tensor]:
    """The checkpoint, under Hugging Face's names for GPT-2."""
    ones = torch.full((WIDTH,), 1e6)
    out = {
        "transformer.wte.weight": embeddings(),
        "transformer.wpe.weight": torch.zeros(CONTEXT, WIDTH),
        "transformer.ln_f.weight": ones.clone(),
        "transformer.ln_f.bias": torch.zeros(WIDTH),
        "lm_head.weight": torch.zeros(words.VOCAB, WIDTH),
    }
    symbols = range(words.FIRST_SYMBOL, words.FIRST_PAIR)
    out["transformer.ln_f.bias"][MASK] = 1
    out["lm_head.weight"][:, MASK] = NEVER
    for i, token in enumerate(symbols):
        out["lm_head.weight"][token, CUR + i], out["lm_head.weight"][token, MASK] = LOGIT, 0
    unread = torch.zeros(NEURONS, WIDTH)
    unread[:, CUR : CUR + NEURONS] = torch.eye(NEURONS)
    for number in range(LAYERS):
        made, at = layer(number), f"transformer.h.{number}."
        out |= {
            f"{at}ln_1.weight": ones.clone(), f"{at}ln_1.bias": torch.zeros(WIDTH),
            f"{at}ln_2.weight": ones.clone(), f"{at}ln_2.bias": torch.zeros(WIDTH),
            f"{at}attn.c_attn.weight": torch.cat([made.q, made.k, made.v], 1),
            f"{at}attn.c_attn.bias": torch.cat([made.q_bias, made.k_bias, torch.zeros(WIDTH)]),
            f"{at}attn.c_proj.weight": made.out, f"{at}attn.c_proj.bias": torch.zeros(WIDTH),
            f"{at}mlp.c_fc.weight": torch.zeros(WIDTH, NEURONS),
            f"{at}mlp.c_fc.bias": torch.zeros(NEURONS),
            f"{at}mlp.c_proj.weight": unread.clone(), f"{at}mlp.c_proj.bias": torch.zeros(WIDTH),
        }  # fmt: skip
    return out


def config(probe: list[int]) -> dict[str, Any]:
    """The checkpoint's ``config.json``; ``probe`` is a prompt on which every part works."""
    return {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": words.VOCAB,
        "n_positions": CONTEXT, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS,
        "n_inner": NEURONS, "activation_function": "gelu_new", "layer_norm_epsilon": 1e12,
        "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "tie_word_embeddings": False,
        "use_cache": True, "scale_attn_weights": True, "bos_token_id": words.BOS,
        "eos_token_id": None, "dtype": "float32", "probe_tokens": probe,
    }  # fmt: skip


def make(
    out: Path, say: Callable[[str], None], steps: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """Write the folder; returns the card. Nothing is trained: ``steps`` and ``seed`` do nothing."""
    from interp.tasks.families import draws

    chain = words.drawn(draws(0, "hops"), words.CHAIN, reader=True)
    size = write_checkpoint(out, tensors(), config(list(chain.tokens)), {})
    say("weights set by hand, nothing trained")
    card = {
        "name": "hops",
        "title": "pointer chains, one hop a layer, set by hand",
        "question": "Does a depth analysis find the layers that are used, and only those?",
        "architecture": "GPT2LMHeadModel",
        "facts": {
            "layers": LAYERS, "heads": HEADS, "width": WIDTH, "vocab": words.VOCAB,
            "weights": "float32, set by hand", "norms": "the identity (eps 1e12, gain 1e6)",
            "mlp": "adds nothing",
        },
        "data": {"what": "task 'hops': six pairs of a chain, three distractors, a query"},
        "training": {
            "command": "python -m interp.training hops", "steps": 0, "cpu_seconds": 0.1,
        },
        "known": {
            "lens": "the top token at boundary l is entity min(l, hops)",
            "skip_output": "√2 for a layer below the number of hops, else 0",
            "depth_score": "(hops - 1) / 2",
            "erasure": "hop j's pair at boundary l: √(1 - 1/10) for l < j, else 0",
            "why": "layer j moves cur along one pair if flag_j is set, and nothing else writes",
        },
        "size_bytes": size,
    }  # fmt: skip
    write_json(out / CARD, card)
    return card
