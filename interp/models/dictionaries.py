"""Dictionaries: sparse autoencoders from ``cfg.json`` and safetensors, obeyed or refused.

``f = act(x W_enc + b_enc)`` and ``x = f W_dec + b_dec + e``, e the error. The layout of the file is
that of SAELens (bloom2024saelens): ``W_enc [d, n]``, ``b_enc``, ``W_dec [n, d]``, ``b_dec``, and a
``threshold [n]`` for JumpReLU (rajamanoharan2024jumprelu). An option that changes what a feature
means is either carried out or refused; nothing is passed over in silence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.models.registry import ZOO
from interp.terms import RefusedError, Site, UnsafeError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

HOOKS = {
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "hook_attn_out": "attn_out",
    "hook_mlp_out": "mlp_out",
}
"""Name of a hook in a config -> the site it stands for."""

PICKLED = (".pt", ".pth", ".bin", ".pkl", ".npz", ".npy")
MOST = 1_000_000
"""Bytes of a config at most."""


@dataclass(frozen=True, eq=False)
class Dictionary:
    """A sparse autoencoder of one site.

    Args:
        name: what it was opened by.
        site: where its input stands, a whole site.
        W_enc: ``[d, n]``; b_enc: ``[n]``; W_dec: ``[n, d]``; b_dec: ``[d]``.
        b_enc: see ``W_enc``; likewise ``W_dec`` and ``b_dec``.
        W_dec: see ``W_enc``.
        b_dec: see ``W_enc``.
        activation: ``relu``, ``jumprelu`` or ``topk``.
        threshold: of JumpReLU, ``[n]``.
        k: of top-k.
        centred: whether ``b_dec`` is taken off the input first.
        weight_hash: of its tensors.
    """

    name: str
    site: Site
    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    activation: str = "relu"
    threshold: Tensor | None = None
    k: int = 0
    centred: bool = False
    weight_hash: str = ""

    @property
    def n_features(self) -> int:
        """How many features."""
        return int(self.W_dec.shape[0])

    @property
    def width(self) -> int:
        """Width of what it reads."""
        return int(self.W_dec.shape[1])

    def encode(self, x: Tensor) -> Tensor:
        """Features ``[…, n]`` of values ``[…, d]``, in the values' dtype."""
        import torch

        x = x - self.b_dec.to(x) if self.centred else x
        f = x @ self.W_enc.to(x) + self.b_enc.to(x)
        if self.activation == "jumprelu":
            assert self.threshold is not None
            return torch.where(f > self.threshold.to(f), f, torch.zeros_like(f)).relu()
        f = f.relu()
        if self.activation == "topk":
            best = f.topk(self.k, -1)
            return torch.zeros_like(f).scatter(-1, best.indices, best.values)
        return f

    def decode(self, f: Tensor) -> Tensor:
        """Values ``[…, d]`` without the error."""
        return f @ self.W_dec.to(f) + self.b_dec.to(f)

    def error(self, x: Tensor) -> Tensor:
        """What the features leave of a value: ``x - decode(encode(x))``."""
        return x - self.decode(self.encode(x))


def load_dictionary(ref: str | Path, *, roots: Iterable[str | Path] | None = None) -> Dictionary:
    """Open a dictionary.

    Args:
        ref: a folder with ``cfg.json`` and one safetensors file, or ``zoo:NAME/HOOK``, as in
            ``zoo:ioi-sae/blocks.2.hook_resid_post``.
        roots: folders it must lie in (by path or by name); None for anywhere.

    Raises:
        UsageError: no such folder, a file without what a dictionary has.
        UnsafeError: weights that are pickled.
        RefusedError: an option of its config that is not carried out here.
    """
    folder = _folder(str(ref), None if roots is None else [Path(r).expanduser() for r in roots])
    path = folder / "cfg.json"
    if not path.is_file() or path.stat().st_size > MOST:
        raise UsageError(
            f"{folder.name} has no cfg.json of a dictionary.",
            remedy="Give the folder that holds cfg.json and the safetensors file.",
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(
            f"cfg.json of {folder.name} is no JSON.", remedy="Copy or download it again."
        ) from error
    if not isinstance(config, dict):
        raise UsageError(f"cfg.json of {folder.name} is no record of options.")
    found = {**config, **_record(config.get("metadata"))}
    return _made(str(ref), _weights(folder), found)


def _record(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def _folder(ref: str, roots: list[Path] | None) -> Path:
    if ref.startswith("zoo:"):
        name = ref.removeprefix("zoo:")
        folder = ZOO / name
        fits = re.fullmatch(r"[a-z0-9-]+(/[a-z0-9_.-]+)?", name) and ".." not in name
        if not fits or not (folder / "cfg.json").is_file():
            raise UsageError(
                f"There is no shipped dictionary {ref!r}.",
                remedy=f"There are: {dictionaries_of() or 'none'}.",
            )
        return folder
    places = [Path(ref).expanduser()] + [r / ref for r in roots or ()]
    for place in places:
        real = place.resolve()
        if place.is_dir() and (
            roots is None or any(real.is_relative_to(r.resolve()) for r in roots)
        ):
            return place
    raise UsageError(
        f"There is no folder {ref!r} with a dictionary here.",
        remedy="Give a folder with cfg.json and safetensors, or zoo:NAME/HOOK.",
    )


def dictionaries_of(name: str = "zoo:") -> str:
    """The shipped dictionaries whose ref begins so, apart by commas."""
    return ", ".join(r for r in list_dictionaries() if r.startswith(name))


def list_dictionaries(roots: Iterable[str | Path] = ()) -> list[str]:
    """Refs of the shipped dictionaries, then of the folders under ``roots`` that hold one."""
    shipped = sorted(p.parent for p in (*ZOO.glob("*/cfg.json"), *ZOO.glob("*/*/cfg.json")))
    out = [f"zoo:{p.relative_to(ZOO).as_posix()}" for p in shipped]
    for root in roots:
        top = Path(root).expanduser()
        for depth in ("*", "*/*", "*/*/*"):
            for path in sorted(top.glob(f"{depth}/cfg.json")):
                if path.resolve().is_relative_to(top.resolve()):
                    out.append(path.parent.relative_to(top).as_posix())
    return out


def _weights(folder: Path) -> tuple[dict[str, Tensor], str]:
    from interp.models.tensors import hash_files, read_tensors

    files = sorted(folder.glob("*.safetensors"))
    if not files and any(p.suffix in PICKLED for p in folder.iterdir()):
        raise UnsafeError(
            f"The weights of {folder.name} are pickled, which can run code when it is opened.",
            remedy="Convert them with `python -m interp.models.convert`, or download safetensors.",
        )
    files = [f for f in files if f.name == "sae_weights.safetensors"] or files
    if len(files) != 1:
        raise UsageError(
            f"{folder.name} holds {len(files)} safetensors files; a dictionary has one.",
            remedy="Give the folder of a single dictionary.",
        )
    return read_tensors(files[0]), hash_files(files)


def _made(name: str, weights: tuple[dict[str, Tensor], str], config: dict[str, Any]) -> Dictionary:
    tensors, digest = weights
    missing = [n for n in ("W_enc", "b_enc", "W_dec", "b_dec") if n not in tensors]
    if missing:
        raise UsageError(
            f"{name} holds no {', '.join(missing)}.",
            remedy=f"A dictionary has W_enc, b_enc, W_dec, b_dec; here are {', '.join(tensors)}.",
        )
    n, d = tensors["W_dec"].shape
    for key, shape in (("W_enc", (d, n)), ("b_enc", (n,)), ("b_dec", (d,))):
        if tuple(tensors[key].shape) != shape:
            raise UsageError(
                f"{key} of {name} has shape {list(tensors[key].shape)}; W_dec asks for "
                f"{list(shape)}.",
                remedy="W_enc is [d, n] and W_dec is [n, d]; transpose what is stored otherwise.",
            )
    act, k = _activation(name, config, tensors)
    _refuse_options(name, config, tensors)
    return Dictionary(
        name,
        _site(name, config),
        *(tensors[key] for key in ("W_enc", "b_enc", "W_dec", "b_dec")),
        activation=act,
        threshold=tensors.get("threshold") if act == "jumprelu" else None,
        k=k,
        centred=bool(config.get("apply_b_dec_to_input", False)),
        weight_hash=digest,
    )


def _activation(name: str, config: dict[str, Any], tensors: Any) -> tuple[str, int]:
    """The activation and, of top-k, its k."""
    kind = str(config.get("architecture", "standard"))
    act = str(config.get("activation_fn", config.get("activation_fn_str", "relu")))
    more = _record(config.get("activation_fn_kwargs"))
    if kind == "jumprelu":
        if "threshold" not in tensors or tensors["threshold"].shape != tensors["b_enc"].shape:
            raise UsageError(f"{name} is a JumpReLU dictionary without a threshold a feature.")
        return "jumprelu", 0
    if kind == "topk" or (kind == "standard" and act == "topk"):
        k = int(config.get("k", more.get("k", 0)) or 0)
        if not 0 < k <= len(tensors["b_enc"]):
            raise UsageError(f"{name} is a top-k dictionary with k = {k}.")
        return "topk", k
    if kind == "standard" and act == "relu":
        return "relu", 0
    raise RefusedError(
        f"{name} has architecture {kind!r} with activation {act!r}.",
        remedy="Use one with relu, jumprelu or topk.",
    )


def _refuse_options(name: str, config: dict[str, Any], tensors: Any) -> None:
    """Options that would change what a feature is and are not carried out."""
    for key, plain in (
        ("normalize_activations", ("none", None, False)),
        ("reshape_activations", ("none", None)),
        ("hook_head_index", (None,)),
        ("hook_z_reshaping", (False, None)),
        ("rescale_acts_by_decoder_norm", (False, None)),
    ):
        if config.get(key, plain[0]) not in plain:
            raise RefusedError(
                f"{name} says {key} = {config[key]!r}, which is not carried out here.",
                remedy="Fold it into the weights (SAELens does so on saving), or use another.",
            )
    if "scaling_factor" in tensors or config.get("finetuning_scaling_factor"):
        raise RefusedError(
            f"{name} rescales its features after training.",
            remedy="Fold the factor into W_dec and W_enc.",
        )


def _site(name: str, config: dict[str, Any]) -> Site:
    hook = str(config.get("hook_name", config.get("hook_point", "")))
    match = re.fullmatch(r"blocks\.(\d+)\.(\w+)", hook)
    if match is None or match[2] not in HOOKS:
        raise RefusedError(
            f"{name} reads {hook or 'an unnamed hook'}, which is no site that it can be put on.",
            remedy=f"Use one of blocks.L.{', '.join(HOOKS)}.",
        )
    return Site(HOOKS[match[2]], layer=int(match[1]))


def check_fits(dictionary: Dictionary, shape: Any) -> None:
    """Refuse a dictionary that was made for another model.

    Raises:
        UsageError: another width, or a layer that is not there.
    """
    layer = dictionary.site.layer
    if dictionary.width != shape.d_model:
        raise UsageError(
            f"{dictionary.name} reads vectors of width {dictionary.width}, and this model's are "
            f"{shape.d_model} wide.",
            remedy="Use a dictionary that was trained on this model.",
        )
    if layer is None or layer >= shape.n_layers:
        raise UsageError(
            f"{dictionary.name} stands at {dictionary.site}; this model has {shape.n_layers} "
            "layers, counted from 0.",
            remedy="Use a dictionary that was trained on this model.",
        )
