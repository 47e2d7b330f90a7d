"""Axes: the closed list of dimension names, and the check every dataset passes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import xarray as xr

AXES: dict[str, str] = {
    **dict.fromkeys(("layer", "boundary", "layer_skipped", "layer_a", "layer_b"), "layer"),
    **dict.fromkeys(("head", "kv_head"), "head"),
    **dict.fromkeys(("position", "query", "key", "slot"), "position"),
    **dict.fromkeys(("neuron", "feature", "component"), "component"),
    **dict.fromkeys(("src", "dst"), "graph"),
    **dict.fromkeys(("epoch", "epsilon", "mix", "fraction"), "curve"),
    **dict.fromkeys(("prompt", "label", "label_b", "metric", "kl_direction", "side"), "selector"),
    "bound": "bound",
    **dict.fromkeys(("row", "column", "channel"), "image"),
}
"""Axis -> kind. The kind decides how it is drawn (``figures/``)."""

SMALL_AXES: dict[str, str] = {
    "top": "rank in a list of the largest",
    "d_model": "coordinate of the residual stream",
    "d_head": "coordinate of a head",
    "draw": "one random draw",
    "token": "token of the vocabulary",
    "coordinate": "coordinate of a drawing: one of two or three leading directions",
    "share": "share of all samples that one class has",
    "decay": "weight decay, equal for weights and features",
    "statistic": "which number of agreement",
    "measure": "measured or estimated",
    "variant": "which bound, from branch and bound to the product of norms, or what sampling found",
    "budget": "branches that a search may bound",
    "observable": "a linear read-out of the logits",
    "path": "a path from the logits back to the embedding, or to a node",
    "evidence": "attribution, or effect with queries and keys fixed or live",
    "prefix": "a path from the logits back to a node",
    "route": "a path with its positions summed",
    "reading": "what a token gives the first of two feature vectors",
    "steered": "by a feature vector, or by a random direction of the same length",
    "dose": "a dose that is given with both signs",
    "n_train": "labelled prompts a class",
    "alpha": "length of a steering vector, in median lengths of the residual",
    "cell": "one cell of a grid, in the order of its axes",
    "ranking_by": "what edges are ordered by: the score, its size, or chance",
    "part": "attention, MLP, or the whole layer",
    "mode": "what a skip or an erasure stands for: current or future tokens, direct dependence; "
    "or a singular direction, the largest first",
    "pixel": "the pixel whose row or column of a matrix is shown",
    "channel_out": "channel of an output that is a picture",
    "row_out": "row of an output that is a picture",
    "column_out": "column of an output that is a picture",
    "stat": "how tokens are put together: largest, mean, or 95 % quantile",
    "gap": "how many layers two residuals are apart",
    "definition": "which definition of effective depth",
    "readout": "what a depth score is taken from",
    "order": "how many sublayers a path goes through",
    "window": "how many layers in a row read one residual",
    "times": "how often a stretch of layers is run",
    "control": "the programs themselves, or what they are held against",
    "ranking": "how a map is laid out: as it is, or against its row or column mean",
    "program": "a list of layers that is run in place of the model's own",
    "target": "what an integrated gradient is taken of: the residual, attention, the MLP",
    "drop": "how many parts are left out",
    "score": "which ranking of layers",
    "seed": "one random control",
}
"""Axes that a method adds for itself, each with its meaning; docs/glossary.md lists them."""


def check_dataset(data: xr.Dataset, small: dict[str, str] | None = None) -> None:
    """Assert the house's rules of a dataset.

    Raises:
        AssertionError: an axis that is not on the list, or a variable without ``units``,
            ``long_name`` or ``signed`` (0 or 1).
    """
    known = {*AXES, *SMALL_AXES, *(small or {})}
    for name, variable in data.data_vars.items():
        foreign = set(map(str, variable.dims)) - known
        assert not foreign, f"{name} has axes that are on no list: {sorted(foreign)}"
        for key in ("units", "long_name", "signed"):
            assert key in variable.attrs, f"{name} lacks the attribute {key!r}"
        assert variable.attrs["signed"] in (0, 1), f"{name}: signed is 0 or 1"
