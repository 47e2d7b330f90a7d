"""Registry: the models that ship with interp, and what lies in a person's own folders. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from interp.terms import InterpError, unknown_name

NETWORK = "Network"
"""What a card and a config call a network of plain layers (``networks.py``)."""

DICTIONARY = "SparseAutoencoder"
"""What a card calls dictionaries (``dictionaries.py``)."""

ZOO = Path(__file__).with_name("zoo")
"""Folder of the shipped models: one folder each, with weights and ``card.json``."""


@dataclass(frozen=True)
class Card:
    """What a shipped model is.

    Args:
        name: key of ``MODELS``; ``zoo:NAME`` opens it.
        title: a few words.
        question: what it is good for, one sentence.
        architecture: the Hugging Face architecture.
        folder: folder under ``zoo/``, or None where it is built from a seed.
        given: facts that stand here rather than in the folder's ``card.json``.
    """

    name: str
    title: str
    question: str
    architecture: str
    folder: str | None = None
    given: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> Path | None:
        """The folder with its weights, or None."""
        return None if self.folder is None else ZOO / self.folder

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights on disk (0 where nothing is shipped), checkpoints left out."""
        pattern = "*/*.safetensors" if self.architecture == DICTIONARY else "*.safetensors"
        files = [] if self.path is None else self.path.glob(pattern)
        return sum(p.stat().st_size for p in files)

    @property
    def facts(self) -> dict[str, Any]:
        """Data, accuracy, mechanism and how it was verified; or the recipe and seed."""
        path = self.path
        if path is None or not (path / "card.json").is_file():
            return dict(self.given)
        return {**self.given, **json.loads((path / "card.json").read_text(encoding="utf-8"))}


def _random(family: str, architecture: str, what: str) -> Card:
    return Card(
        f"random-{family}".replace("_", "-"),
        f"hard random {family}",
        f"Does a method hold where every part of the architecture matters ({what})?",
        architecture,
        given={
            "recipe": family,
            "seed": 0,
            "tokens": "97 token ids, no tokenizer",
            "answer": "none: weights are random, so there is no circuit to find",
        },
    )


MODELS: dict[str, Card] = {
    "ioi": Card(
        "ioi",
        "indirect objects and four other grammars",
        "Which heads find the name that was not repeated?",
        "GPT2LMHeadModel",
        folder="ioi",
    ),
    "induction": Card(
        "induction",
        "two layers of attention that complete a run of letters",
        "Which head looks one back, and which finds what followed the last time?",
        "GPT2LMHeadModel",
        folder="induction",
    ),
    "modadd": Card(
        "modadd",
        "addition modulo 53, with the way to it",
        "How does a network that knew sums by heart come to compute them?",
        "GPT2LMHeadModel",
        folder="modadd",
    ),
    "deep": Card(
        "deep",
        "the grammar of zoo:ioi in twelve thin layers",
        "What does a network do with more layers than the work needs?",
        "GPT2LMHeadModel",
        folder="deep",
    ),
    "shallow": Card(
        "shallow",
        "the grammar of zoo:ioi in four thin layers",
        "Which layers of zoo:deep do what these four do?",
        "GPT2LMHeadModel",
        folder="shallow",
    ),
    "hops": Card(
        "hops",
        "pointer chains, one hop a layer, set by hand",
        "Does a depth analysis find the layers that are used, and only those?",
        "GPT2LMHeadModel",
        folder="hops",
    ),
    "hops-trained": Card(
        "hops-trained",
        "pointer chains of one to four hops, trained, with layers to spare",
        "Does a trained network use more layers for questions of more steps?",
        "GPT2LMHeadModel",
        folder="hops-trained",
    ),
    "digits-mlp": Card(
        "digits-mlp",
        "small network that reads 8 × 8 digits",
        "How far may a pixel change before the digit it reads can?",
        "Network",
        folder="digits-mlp",
    ),
    "digits-cnn": Card(
        "digits-cnn",
        "convolutional network that reads digits, with biases",
        "How do pixels and biases vote for each digit?",
        "Network",
        folder="digits-cnn",
    ),
    "digits-cnn-nobias": Card(
        "digits-cnn-nobias",
        "convolutional network that reads digits, without any bias",
        "How do pixels vote for a digit where nothing else can?",
        "Network",
        folder="digits-cnn-nobias",
    ),
    "digits-cnn-bn": Card(
        "digits-cnn-bn",
        "convolutional network that reads digits, with batch norm and biases",
        "How much of a digit's score comes from no pixel at all?",
        "Network",
        folder="digits-cnn-bn",
    ),
    "digits-sr": Card(
        "digits-sr",
        "super-resolution of small scenes, 12 × 12 to 24 × 24",
        "Which coarse pixels make a sharp one, and with what filter?",
        "Network",
        folder="digits-sr",
    ),
    "digits-denoise": Card(
        "digits-denoise",
        "takes noise off digits, by convolutions",
        "Does a denoiser copy pixels or draw templates?",
        "Network",
        folder="digits-denoise",
    ),
    "digits-autoencoder": Card(
        "digits-autoencoder",
        "takes noise off digits, through 16 ReLU units",
        "Does a denoiser copy pixels or draw templates?",
        "Network",
        folder="digits-autoencoder",
    ),
    "monotone-mlp": Card(
        "monotone-mlp",
        "network that is monotone in four of ten inputs",
        "In which inputs does the output rise, in which does it fall, and for sure?",
        "Network",
        folder="monotone-mlp",
    ),
    "digits-collapse": Card(
        "digits-collapse",
        "digits, trained into neural collapse",
        "How do features and classifier collapse to a symmetric frame?",
        "Network",
        folder="digits-collapse",
    ),
    "digits-mixup": Card(
        "digits-mixup",
        "digits, trained on mixtures",
        "Where does a network put mixtures of two inputs?",
        "Network",
        folder="digits-mixup",
    ),
    "random-gpt2": _random("gpt2", "GPT2LMHeadModel", "learned positions, layer norms, biases"),
    "random-gpt-neo": _random("gpt_neo", "GPTNeoForCausalLM", "unscaled scores, local windows"),
    "random-gpt-neox": _random(
        "gpt_neox", "GPTNeoXForCausalLM", "parallel residual, partial rotary positions"
    ),
    "random-llama": _random("llama", "LlamaForCausalLM", "grouped queries, rotary, gated MLP"),
    "random-mistral": _random("mistral", "MistralForCausalLM", "a window shorter than a prompt"),
    "random-qwen2": _random("qwen2", "Qwen2ForCausalLM", "biases of queries, keys and values"),
    "random-qwen3": _random("qwen3", "Qwen3ForCausalLM", "norms of queries and keys"),
    "random-gemma2": _random(
        "gemma2", "Gemma2ForCausalLM", "post-norms, soft caps, alternating windows"
    ),
    "random-olmo2": _random("olmo2", "Olmo2ForCausalLM", "post-norms alone, norms over all heads"),
}
"""The shipped models by name."""

DICTIONARIES: dict[str, Card] = {
    "ioi-sae": Card(
        "ioi-sae",
        "sparse autoencoders of zoo:ioi, one a layer",
        "Which directions of the residual stream stand for something by themselves?",
        DICTIONARY,
        folder="ioi-sae",
    ),
}
"""The shipped dictionaries: no models, but what methods with features take beside one."""


def card_of(name: str) -> Card:
    """The card of ``NAME`` or ``zoo:NAME``, a model or a set of dictionaries.

    Raises:
        UsageError: no such model, with the near misses.
    """
    name = name.removeprefix("zoo:")
    known = {**MODELS, **DICTIONARIES}
    if name not in known:
        raise unknown_name("model", f"zoo:{name}", [f"zoo:{n}" for n in MODELS])
    return known[name]


@dataclass(frozen=True)
class Listed:
    """A model that can be named.

    Args:
        ref: what to write after ``--model``.
        title: a few words.
        question: what it is good for (shipped models).
        architecture: the Hugging Face architecture, or what was found instead.
        size_bytes: bytes of its weights.
        n_params: number of weights, 0 if unknown.
        ok: whether it opens.
        reason: why it does not.
        origin: ``zoo``, ``folder`` or ``dictionary``.
    """

    ref: str
    title: str
    question: str = ""
    architecture: str = ""
    size_bytes: int = 0
    n_params: int = 0
    ok: bool = True
    reason: str = ""
    origin: str = "zoo"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def list_models(roots: Iterable[str | Path] = (), dictionaries: bool = False) -> list[Listed]:
    """The shipped models, then every checkpoint folder under ``roots``; reads no weights.

    A folder that is a checkpoint but cannot be opened is listed with the reason. Links that
    lead out of a root are not followed.

    Args:
        roots: folders to look into.
        dictionaries: list the shipped dictionaries too, behind the shipped models.
    """
    found = [
        Listed(f"zoo:{c.name}", c.title, c.question, c.architecture, c.size_bytes)
        for c in MODELS.values()
    ]
    if dictionaries:
        found += [
            Listed(
                f"zoo:{c.name}", c.title, c.question, c.architecture, c.size_bytes,
                origin="dictionary",
            )
            for c in DICTIONARIES.values()
        ]  # fmt: skip
    for root in roots:
        top = Path(root).expanduser()
        for folder in _checkpoint_folders(top):
            found.append(_listed(folder, top))
    return found


def _checkpoint_folders(root: Path, depth: int = 3) -> list[Path]:
    """Folders with a ``config.json`` at most ``depth`` levels below a root, sorted."""
    real = root.resolve()
    found: list[Path] = []
    level = [root]
    for _ in range(depth + 1):
        below: list[Path] = []
        for folder in level:
            if not folder.is_dir() or not folder.resolve().is_relative_to(real):
                continue
            if (folder / "config.json").is_file():
                found.append(folder)
            else:
                below += [p for p in folder.iterdir() if p.is_dir() and p.name[:1] != "."]
        level = below
    return sorted(found)


def is_network(folder: Path) -> bool:
    """Whether a folder's ``config.json`` names a network of plain layers; no torch."""
    path = folder / "config.json"
    if not path.is_file() or path.stat().st_size > 1_000_000:
        return False
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(found, dict) and found.get("architectures") == [NETWORK]


def _listed(folder: Path, root: Path) -> Listed:
    from interp.models.safety import inspect

    title = str(folder.relative_to(root)) if folder != root else folder.name
    try:
        if is_network(folder):
            size = sum(p.stat().st_size for p in folder.glob("*.safetensors"))
            return Listed(
                str(folder), title, architecture=NETWORK, size_bytes=size, origin="folder"
            )
        seen = inspect(folder)
    except InterpError as error:
        return Listed(str(folder), title, ok=False, reason=str(error), origin="folder")
    return Listed(
        str(folder),
        title,
        architecture=seen.family.architecture,
        size_bytes=seen.size_bytes,
        n_params=seen.n_params,
        origin="folder",
    )


def find_in_roots(name: str, roots: Iterable[str | Path]) -> Path | None:
    """The checkpoint folder that a listed title or folder name stands for, or None."""
    for root in roots:
        top = Path(root).expanduser()
        for folder in _checkpoint_folders(top):
            if name in (folder.name, str(folder.relative_to(top))):
                return folder
    return None
