"""Dictionaries: what is obeyed, what is refused, features against the twin."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from interp.models import load_dictionary
from interp.models.dictionaries import check_fits
from interp.terms import InterpError, RefusedError, Site, UnsafeError, UsageError
from tests.dictionaries import hand_made
from tests.twins.features import encoded


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("act", ["relu", "jumprelu", "topk"])
def test_features_are_the_twins(tmp_path: Path, act: str, centred: bool) -> None:
    plain = hand_made(tmp_path, 16, act=act, centred=centred)
    book = load_dictionary(tmp_path)
    x = 2 * torch.randn(3, 5, 16, dtype=torch.float64)
    f, wanted = book.encode(x), encoded(x, plain)
    torch.testing.assert_close(f, wanted, rtol=0, atol=1e-12)
    share = float((f > 0).double().mean())
    assert 0.1 < share < 0.9  # some fire, some do not
    whole = wanted @ plain["W_dec"] + plain["b_dec"]
    torch.testing.assert_close(book.decode(f) + book.error(x), x, rtol=0, atol=1e-12)
    torch.testing.assert_close(book.error(x), x - whole, rtol=0, atol=1e-12)
    assert book.site == Site("resid_post", layer=2) and book.n_features == 24
    assert len(book.weight_hash) == 64


def test_options_may_stand_among_the_metadata(tmp_path: Path) -> None:
    hand_made(tmp_path, 16, hook="", metadata={"hook_name": "blocks.1.hook_mlp_out"})
    assert load_dictionary(tmp_path).site == Site("mlp_out", layer=1)


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"normalize_activations": "layer_norm"}, "normalize_activations = 'layer_norm'"),
        ({"reshape_activations": "hook_z"}, "reshape_activations"),
        ({"hook_head_index": 3}, "hook_head_index"),
        ({"architecture": "gated"}, "architecture 'gated'"),
        ({"activation_fn": "tanh-relu"}, "activation 'tanh-relu'"),
        ({"hook": "blocks.1.attn.hook_z"}, "no site that it can be put on"),
        ({"tensors": {"scaling_factor": torch.ones(24)}}, "rescales"),
    ],
)
def test_options_that_are_not_carried_out_are_refused(
    tmp_path: Path, knobs: dict[str, Any], words: str
) -> None:
    hand_made(tmp_path, 16, **knobs)
    with pytest.raises(RefusedError, match=words):
        load_dictionary(tmp_path)


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"tensors": {"W_enc": torch.ones(24, 16)}}, "W_enc .* has shape"),
        ({"tensors": {"b_enc": torch.ones(3)}}, "b_enc .* has shape"),
        ({"architecture": "jumprelu"}, "without a threshold"),
        ({"architecture": "topk", "k": 99}, "k = 99"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    tmp_path: Path, knobs: dict[str, Any], words: str
) -> None:
    hand_made(tmp_path, 16, **knobs)
    with pytest.raises(UsageError, match=words):
        load_dictionary(tmp_path)


def test_pickled_weights_are_not_opened(tmp_path: Path) -> None:
    hand_made(tmp_path, 16)
    (tmp_path / "sae_weights.safetensors").rename(tmp_path / "sae_weights.pt")
    with pytest.raises(UnsafeError, match="can run code"):
        load_dictionary(tmp_path)


def test_another_models_dictionary_is_refused(tmp_path: Path) -> None:
    hand_made(tmp_path, 16)
    book = load_dictionary(tmp_path)
    check_fits(book, SimpleNamespace(d_model=16, n_layers=3))
    with pytest.raises(UsageError, match="width 16"):
        check_fits(book, SimpleNamespace(d_model=24, n_layers=3))
    with pytest.raises(UsageError, match="2 layers"):
        check_fits(book, SimpleNamespace(d_model=16, n_layers=2))


def test_only_folders_under_the_roots_are_opened(tmp_path: Path) -> None:
    inside, outside = tmp_path / "models" / "sae", tmp_path / "else"
    for folder in (inside, outside):
        hand_made(folder, 16)
    roots = [tmp_path / "models"]
    assert load_dictionary("sae", roots=roots).n_features == 24
    assert load_dictionary(inside, roots=roots).n_features == 24
    (tmp_path / "models" / "link").symlink_to(outside)
    for ref in (str(outside), "../else", "link", "zoo:../else", "zoo:nothing"):
        with pytest.raises(InterpError):
            load_dictionary(ref, roots=roots)


def test_dictionaries_under_the_roots_are_listed_by_the_names_that_open_them(
    tmp_path: Path,
) -> None:
    from interp.models import list_dictionaries

    for name in ("one", "set/layer.2", "set/layer.3"):
        hand_made(tmp_path / name, 16)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    found = [r for r in list_dictionaries([tmp_path]) if not r.startswith("zoo:")]
    assert found == ["one", "set/layer.2", "set/layer.3"]
    for ref in found:
        assert load_dictionary(ref, roots=[tmp_path]).n_features == 24


def test_the_worker_opens_no_dictionary_outside_its_folders(tmp_path: Path) -> None:
    from interp.jobs.answers import ShortContext
    from interp.jobs.context import JobContext

    inside, outside = tmp_path / "models", tmp_path / "else"
    for folder in (inside / "sae", outside):
        hand_made(folder, 16)
    short, job = (object.__new__(kind) for kind in (ShortContext, JobContext))
    short._desk = SimpleNamespace(roots=(inside,))  # type: ignore[assignment]
    job.roots = (inside,)
    for context in (short, job):
        assert context.dictionary("sae").n_features == 24
        for ref in (str(outside), "../else"):
            with pytest.raises(UsageError, match="no folder"):
                context.dictionary(ref)
