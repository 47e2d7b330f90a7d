"""Features of a dictionary: patched exactly as the twin does, and their estimates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from interp.engine import feature_values
from interp.engine.gradients import attribute, rules
from interp.methods import ActivationPatching, AttributionPatching
from interp.models import load_dictionary, load_model
from interp.terms import PromptPairs, UsageError, check_dataset
from tests.checkpoints import FAMILY_NAMES, hard_model
from tests.dictionaries import hand_made
from tests.engine.driven import Remembering, telling_pairs
from tests.twins import attribution as gradients
from tests.twins.features import encoded, patched_feature_logits
from tests.twins.patching import logit_diff

D = 48


class Opening(Remembering):
    """A context that opens dictionaries."""

    def dictionary(self, ref: str) -> Any:
        return load_dictionary(ref)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("sae")
    return str(folder), hand_made(folder, D, hook="blocks.1.hook_resid_post")


def pairs_of(family: str) -> PromptPairs:
    return telling_pairs(hard_model(family).double(), n=3, length=7)


def measured(method: Any, family: str, task: PromptPairs) -> tuple[Any, Opening]:
    model = load_model(hard_model(family).double(), dtype="float64", verify=False)
    context = Opening()
    data = method.measure(model, task, context)
    check_dataset(data)
    failed = [c for c in context.checks if not c.passed]
    assert not failed, failed
    return data, context


def score(logits: torch.Tensor, task: PromptPairs) -> np.ndarray:
    return logit_diff(logits.detach(), list(task.right), list(task.wrong)).numpy()


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_feature_is_patched_as_the_twin_does(family: str, made: Any) -> None:
    ref, book = made
    task, module = pairs_of(family), hard_model(family).double()
    knobs: dict[str, Any] = {"site": "feature", "dictionary": ref, "n_boot": 0, "verify": 3}
    data, _ = measured(ActivationPatching(top=6, **knobs), family, task)
    assert data["effect"].dims == ("feature",) and data.sizes["feature"] == 6
    spread, _ = measured(
        ActivationPatching(features="F3, F8", axes="feature,position", **knobs), family, task
    )
    base, source = torch.tensor(task.corrupt), torch.tensor(task.clean)
    where = (module, family, base, source, "resid_post", 1, book)
    for i in (0, 4):
        wanted = score(patched_feature_logits(*where, int(data["feature_index"][i])), task)
        np.testing.assert_allclose(data["patched_metric"][:, i], wanted, atol=1e-8)
    wanted = score(patched_feature_logits(*where, 8, position=5), task)
    found = spread["patched_metric"].sel(feature="F8", position=5)
    np.testing.assert_allclose(found, wanted, atol=1e-8)
    gap = abs(float((data["metric_source"] - data["metric_base"]).mean()))
    assert float(np.abs(data["effect_raw"]).max()) > 0.02 * gap
    assert data.attrs["dictionary_site"] == "resid_post L1"


@pytest.mark.parametrize("knobs", [
    {"with_": "zero"}, {"with_": "mean"}, {"with_": "mean", "mean_over": "prompts,positions"},
    {"with_": "resample"}, {"with_": "constant", "constant": (0.8,)},
    {"with_": "constant", "constant": (0.8,), "mode": "add"},
])  # fmt: skip
def test_a_feature_takes_every_value(made: Any, knobs: dict[str, Any]) -> None:
    from interp.methods.patching.values import derangement
    from tests.twins.patching import read

    ref, book = made
    task, module = pairs_of("llama"), hard_model("llama").double()
    base, source = torch.tensor(task.corrupt), torch.tensor(task.clean)
    f = encoded(read(module, "llama", "resid_post", 1, source), book)[..., 8]
    own = encoded(read(module, "llama", "resid_post", 1, base), book)[..., 8]
    value = {
        "zero": torch.zeros_like(f),
        "mean": f.mean((0, 1) if "mean_over" in knobs else 0, keepdim=True).expand_as(f),
        "resample": f[torch.from_numpy(derangement(3, 0))],
        "constant": torch.full_like(f, 0.8),
    }[knobs["with_"]]
    value = own + value if knobs.get("mode") == "add" else value
    logits = patched_feature_logits(
        module, "llama", base, source, "resid_post", 1, book, 8, value=value
    )
    method = ActivationPatching(site="feature", dictionary=ref, features="F8", n_boot=0, **knobs)
    data, _ = measured(method, "llama", task)
    np.testing.assert_allclose(data["patched_metric"][:, 0], score(logits, task), atol=1e-9)
    assert np.abs(data["effect_raw"]).max() > 1e-4


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("rule", ["none", "relp"])
def test_features_and_error_add_up_to_the_node(family: str, rule: str, made: Any) -> None:
    ref, book = made
    task, module = pairs_of(family), hard_model(family).double()
    model = load_model(hard_model(family).double(), dtype="float64", verify=False)
    dictionary = load_dictionary(ref)
    with rules(model, rule):
        found = attribute(
            model, task, ["feature", "resid_post"], Remembering(), dictionary=dictionary
        ).values
    whole = found["feature"].sum(-1) + found["feature_error"]
    scale = np.abs(found["resid_post"][:, 1]).max()
    assert scale > 0.01 and np.abs(found["feature_error"]).max() > 1e-3 * scale
    np.testing.assert_allclose(whole, found["resid_post"][:, 1], atol=1e-10 * max(scale, 1))
    np.testing.assert_allclose(found["feature_site"], found["resid_post"][:, 1], atol=1e-10)
    if rule == "none":
        base, source = torch.tensor(task.corrupt), torch.tensor(task.clean)
        answers = list(task.right), list(task.wrong)
        from tests.twins.patching import read

        own, lent = (read(module, family, "resid_post", 1, t) for t in (base, source))
        est = gradients.estimates(module, family, base, source, "resid_post", 1, *answers)
        gradient = torch.where(lent == own, 0.0, est / (lent - own))
        step = encoded(lent, book)[..., 3] - encoded(own, book)[..., 3]
        wanted = (step * (gradient @ book["W_dec"][3])).numpy()
        close = 1e-8 if family == "gpt2" else 1e-4
        np.testing.assert_allclose(found["feature"][..., 3], wanted, atol=close * scale)
        assert np.abs(wanted).max() > 1e-4 * scale


def test_the_largest_features_are_shown_with_the_errors_share(made: Any) -> None:
    ref, _ = made
    task = pairs_of("gpt2")
    method = AttributionPatching(site="feature", dictionary=ref, top=5, verify=3, n_boot=50)
    data, context = measured(method, "gpt2", task)
    assert data["attribution"].dims == ("feature",) and data.sizes["feature"] == 5
    assert {c.name for c in context.checks} >= {"features_and_error", "verified"}
    total = float(data["features_attribution"] + data["error_attribution"])
    assert total == pytest.approx(float(data["site_attribution"]))
    share = float(data["error_attribution"] / data["site_attribution"])
    assert float(data["error_share"]) == pytest.approx(share)
    assert f"{share:.1%}" in next(c.note for c in context.checks if c.name == "features_and_error")
    sizes = np.abs(data["attribution_raw"].values)
    assert (np.diff(sizes) <= 1e-12).all() and sizes[0] > 0
    exact, _ = measured(
        ActivationPatching(site="feature", dictionary=ref, n_boot=0, top=24), "gpt2", task
    )
    for name, effect in zip(data["name"].values, data["verified_effect"].values, strict=True):
        wanted = float(exact["effect_raw"].sel(feature=str(name)))
        assert effect == pytest.approx(wanted, abs=1e-9)
    each, _ = measured(
        AttributionPatching(
            site="feature", axes="feature,position", dictionary=ref, top=5, verify=0, n_boot=0
        ),
        "gpt2",
        task,
    )
    np.testing.assert_allclose(
        each["attribution_raw"].sum("position"), data["attribution_raw"], atol=1e-12
    )


def test_an_error_that_is_lost_turns_the_panel_amber(
    made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from interp.models.dictionaries import Dictionary

    method = AttributionPatching(site="feature", dictionary=made[0], verify=0, n_boot=0)
    model = load_model(hard_model("gpt2").double(), dtype="float64", verify=False)
    honest = Dictionary.encode
    calls = iter(range(10**6))
    monkeypatch.setattr(  # features that change between the two times they are asked for
        Dictionary, "encode", lambda self, x: honest(self, x) * (1 + 1e-3 * next(calls))
    )
    monkeypatch.setattr(
        "interp.engine.gradients.batch.PARTS", ("feature", "feature_error", "feature_site")
    )
    context = Opening()
    method.measure(model, pairs_of("gpt2"), context)
    line = next(c for c in context.checks if c.name == "features_and_error")
    assert line.passed  # the sum is an identity of whatever the features are ...
    from interp.methods.attribution import attribution_patching as room

    honest_attribute = room.attribute

    def losing(*args: Any, **knobs: Any) -> Any:
        found = honest_attribute(*args, **knobs)
        found.values["feature_error"] = 0.9 * found.values["feature_error"]
        return found

    monkeypatch.setattr(room, "attribute", losing)
    context = Opening()
    method.measure(model, pairs_of("gpt2"), context)
    line = next(c for c in context.checks if c.name == "features_and_error")
    assert not line.passed  # ... unless a part is lost


@pytest.mark.parametrize(
    ("knobs", "given", "wanted"),
    [
        ({"features": "F99"}, "'F99' is no feature", "below 24"),
        ({"features": "L1N3"}, "'L1N3' is no feature", "F17"),
        ({"axes": "layer,position"}, "no sweep over", "feature,position"),
        ({"with_": "constant", "constant": (1.0, 2.0), "features": "F1"}, "2 constants", "one"),
    ],
)
def test_what_does_not_fit_is_refused(
    made: Any, knobs: dict[str, Any], given: str, wanted: str
) -> None:
    model = load_model(hard_model("gpt2").double(), dtype="float64", verify=False)
    with pytest.raises(UsageError, match=given) as caught:
        ActivationPatching(site="feature", dictionary=made[0], n_boot=0, **knobs).measure(
            model, pairs_of("gpt2"), Opening()
        )
    assert wanted in str(caught.value)


def test_values_of_features_follow_the_span_map(made: Any) -> None:
    model = load_model(hard_model("gpt2").double(), dtype="float64", verify=False)
    task = PromptPairs.from_tokens(
        [[1, 2, 3, 4]], [[1, 5, 4]], [5], [6], span_map=((((1, 3), (1, 2)),),)
    )
    book = load_dictionary(made[0])
    base, source = feature_values(model, task, book, [0, 1], direction="denoising")
    assert base.shape == source.shape == (1, 3, 2)
    read = model.run(np.array([[1, 2, 3, 4]]), read=[book.site]).reads[book.site]
    clean = book.encode(read)[0, :, [0, 1]].detach().numpy()
    np.testing.assert_allclose(source[0, [0, 2]], clean[[0, 3]], atol=1e-12)
