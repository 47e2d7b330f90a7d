"""Agreement: its statistics against scipy, what is left out, what is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from interp.methods import ActivationPatching, Agreement, AttributionPatching
from interp.methods.attribution.agreement import STATISTICS, statistics_of
from interp.models import load_model
from interp.run import check_fit
from interp.terms import UsageError, check_dataset
from tests.checkpoints import hard_model
from tests.engine.driven import Remembering, telling_pairs


class Holding(Remembering):
    """A context that holds results by name."""

    def __init__(self, **results: Any) -> None:
        super().__init__()
        self.held = results

    def result(self, ref: str) -> Any:
        return self.held[ref]


@pytest.fixture(scope="module")
def model() -> Any:
    return load_model(hard_model("gpt2").double(), dtype="float64", verify=False)


@pytest.fixture(scope="module")
def runs(model: Any) -> dict[str, Any]:
    task = telling_pairs(hard_model("gpt2").double(), n=6)
    return {
        key: held(model, method, method.measure(model, task, Remembering()))
        for key, method in {
            "exact": ActivationPatching(site="mlp_out", n_boot=50),
            "estimate": AttributionPatching(site="mlp_out", n_boot=50, verify=0),
            "ranking": AttributionPatching(site="mlp_out", prompt_reduce="abs", verify=0),
            "heads": AttributionPatching(site="z", verify=0),
            "noising": AttributionPatching(site="mlp_out", direction="noising", verify=0),
            "layers": AttributionPatching(site="mlp_out", axes="layer", verify=0),
            "some": AttributionPatching(site="mlp_out", layers=(0, 1), verify=0),
            "windows": ActivationPatching(site="mlp_out", window=2, n_boot=0),
            "zeros": ActivationPatching(site="mlp_out", with_="zero", n_boot=0),
        }.items()
    }


def held(model: Any, method: Any, data: Any, task: str = "one") -> Any:
    spec = {
        "method": method.key(),
        "model": {"weight_hash": model.weight_hash, "ref": "m"},
        "task": {"hash": task},
    }
    return SimpleNamespace(data=data, spec=spec)


def agree(
    model: Any, runs: dict[str, Any], estimate: str = "estimate", exact: str = "exact", **knobs: Any
) -> Any:
    context = Holding(**runs)
    data = Agreement(exact=exact, estimate=estimate, **knobs).measure(  # type: ignore[arg-type]
        model, None, context
    )
    check_dataset(data)
    data.attrs["passed"] = int(all(c.passed for c in context.checks))
    return data


def test_the_statistics_are_scipys_on_the_cells_that_count(
    model: Any, runs: dict[str, Any]
) -> None:
    data = agree(model, runs)
    exact, estimate = runs["exact"].data, runs["estimate"].data
    live = exact["inert"].values.ravel() == 0
    assert 0 < live.sum() < live.size
    a = exact["effect_raw"].values.ravel()[live]
    b = estimate["attribution_raw"].values.ravel()[live]
    got = dict(zip(STATISTICS, data["agreement"].values, strict=True))
    assert got["pearson"] == pytest.approx(stats.pearsonr(a, b)[0])
    assert got["spearman"] == pytest.approx(stats.spearmanr(a, b)[0])
    top = [set(np.argsort(-np.abs(x))[:10]) for x in (a, b)]
    assert got["overlap_top_10"] == pytest.approx(len(top[0] & top[1]) / 10)
    assert got["slope"] == pytest.approx((a @ b) / (a @ a))
    assert int(data["n_cells"]) == live.sum() == data.attrs["n_cells"]
    inflated = stats.pearsonr(
        exact["effect_raw"].values.ravel(), estimate["attribution_raw"].values.ravel()
    )[0]
    assert inflated > got["pearson"]  # the zeros that both share


def test_intervals_layers_and_prompts_are_there(model: Any, runs: dict[str, Any]) -> None:
    data = agree(model, runs, n_boot=200)
    low, high = data["agreement_ci"].sel(statistic="pearson").values
    assert low <= float(data["agreement"].sel(statistic="pearson")) <= high and high - low > 1e-3
    for layer in (0, 1, 2):
        a, b = (
            data[k].sel(layer=layer).values[data["inert"].sel(layer=layer) == 0]
            for k in ("measured", "estimated")
        )
        assert float(data["agreement_by_layer"].sel(layer=layer, statistic="pearson")) == (
            pytest.approx(stats.pearsonr(a, b)[0])
        )
    each = runs["exact"].data["patched_metric"] - runs["exact"].data["metric_base"]
    live = runs["exact"].data["inert"].values == 0
    a = each.transpose("prompt", "layer", "position").values[2][live]
    b = runs["estimate"].data["prompt_attribution"].values[2][live]
    assert float(data["agreement_by_prompt"].sel(prompt=2, statistic="pearson")) == (
        pytest.approx(stats.pearsonr(a, b)[0])
    )


def test_intervals_resample_whole_templates(model: Any, runs: dict[str, Any]) -> None:
    exact, estimate = runs["exact"].data, runs["estimate"].data
    assert exact["template"].values.tolist() == ["t0", "t1"] * 3
    found = agree(model, runs, n_boot=300)["agreement_ci"].sel(statistic="pearson").values
    live = exact["inert"].values.ravel() == 0
    a = (exact["patched_metric"] - exact["metric_base"]).transpose("prompt", "layer", "position")
    a = a.values.reshape(6, -1)[:, live]
    b = estimate["prompt_attribution"].values.reshape(6, -1)[:, live]
    draw = np.random.default_rng(0).multinomial(2, [0.5, 0.5], 300)
    each = [
        stats.pearsonr(*(np.average(x, axis=0, weights=np.tile(w, 3)) for x in (a, b)))[0]
        for w in draw
    ]
    np.testing.assert_allclose(found, np.percentile(each, [2.5, 97.5]), atol=1e-9)
    alone = {
        k: held(model, ActivationPatching(), runs[k].data.drop_vars("template")) for k in ("exact",)
    }
    alone["exact"].spec = runs["exact"].spec
    other = agree(model, {**runs, **alone}, n_boot=300)["agreement_ci"].sel(statistic="pearson")
    assert np.abs(other.values - found).max() > 1e-4


def test_listed_cells_say_where_they_stand_in_the_grid(model: Any, runs: dict[str, Any]) -> None:
    data = agree(model, runs, top=4)
    for axis, value in (("top", "disagreement"), ("cell", None)):
        for i in range(data.sizes[axis]):
            place = {d: data[f"{axis}_{d}"].values[i] for d in ("layer", "position")}
            assert str(data[f"{axis}_name"].values[i]) == f"L{place['layer']} @{place['position']}"
            if value is None:
                wanted = [float(data[k].sel(place)) for k in ("measured", "estimated")]
                assert data["scatter"][:, i].values.tolist() == wanted
            else:
                assert float(data[value][i]) == float(data["difference"].sel(place))


def test_an_agreement_speaks_in_the_tokens_of_its_runs(tmp_path: Path) -> None:
    import interp

    store = interp.Store(tmp_path)
    kwargs: dict[str, Any] = {"store": store, "progress": False}
    where = ("zoo:ioi", "ioi:n=4,seed=0")
    exact = interp.run(ActivationPatching(site="mlp_out", n_boot=0), *where, **kwargs)
    other = interp.run(AttributionPatching(site="mlp_out", n_boot=0, verify=0), *where, **kwargs)
    spec = Agreement(exact=exact.run_id, estimate=other.run_id, n_boot=20)  # type: ignore[arg-type]
    found = interp.run(spec, "zoo:ioi", None, **kwargs)
    assert found.tokens == exact.tokens and found.tokens is not None
    axis = found.figures()["difference"].layout.xaxis
    assert any(str(exact.tokens["clean"][0][-1]).strip() in str(t) for t in axis.ticktext)


def test_the_same_grid_agrees_fully_and_its_negative_not(model: Any, runs: dict[str, Any]) -> None:
    exact, estimate = runs["exact"].data, runs["estimate"].data
    each = (exact["patched_metric"] - exact["metric_base"]).transpose(
        *estimate["prompt_attribution"].dims
    )
    for sign in (1, -1):
        twin = estimate.copy()
        twin["attribution_raw"] = sign * exact["effect_raw"]
        twin["prompt_attribution"] = sign * each
        same = held(model, AttributionPatching(), twin.assign_attrs(estimate.attrs))
        data = agree(model, {**runs, "same": same}, "same")
        got = dict(zip(STATISTICS, data["agreement"].values, strict=True))
        assert got["pearson"] == pytest.approx(sign) == pytest.approx(got["slope"])
        assert got["sign_top_10"] == (1 if sign > 0 else 0) and got["overlap_top_10"] == 1


def test_a_ranking_is_held_against_sizes(model: Any, runs: dict[str, Any]) -> None:
    data = agree(model, runs, "ranking")
    assert (data["measured"] >= 0).all() and (data["estimated"] >= 0).all()
    assert float(data["agreement"].sel(statistic="sign_top_10")) == 1


def test_the_scatter_and_the_worst_cells_are_named(model: Any, runs: dict[str, Any]) -> None:
    data = agree(model, runs, top=3)
    assert data["scatter"].dims == ("measure", "cell") and data.sizes["cell"] == data["n_cells"]
    name = str(data["top_name"].values[0])
    layer, position = (int(w[1:]) for w in name.split())
    worst = np.abs(data["difference"]).where(data["inert"] == 0).max()
    assert abs(float(data["difference"].sel(layer=layer, position=position))) == float(worst)
    assert abs(float(data["disagreement"][0])) == float(worst)
    from interp.figures import figures_of

    figures = figures_of(data)
    assert figures["scatter"].layout.meta["kind"] == "scatter"
    assert name in " ".join(figures["scatter"].data[1].customdata)


def test_constant_vectors_have_no_correlation() -> None:
    flat = statistics_of(np.ones(5), np.arange(5.0))
    assert np.isnan(flat[:2]).all() and np.isfinite(flat[4:]).all()
    assert np.isnan(statistics_of(np.arange(2.0), np.arange(2.0))).all()


def test_too_few_cells_turn_the_panel_amber(model: Any, runs: dict[str, Any]) -> None:
    dead = runs["exact"].data.copy()
    dead["inert"] = dead["inert"] * 0 + 1
    dead["inert"][3, 8] = 0
    lone = held(model, ActivationPatching(), dead.assign_attrs(runs["exact"].data.attrs))
    assert agree(model, runs).attrs["passed"]
    data = agree(model, {**runs, "lone": lone}, exact="lone")
    assert not data.attrs["passed"] and np.isnan(data["agreement"]).all()


@pytest.mark.parametrize(
    ("knobs", "given"),
    [
        ({"estimate": "heads"}, "differ in site"),
        ({"estimate": "noising"}, "differ in direction"),
        ({"estimate": "layers"}, "runs over layer, position"),
        ({"estimate": "some"}, "other layers or positions"),
        ({"exact": "windows"}, "windows"),
        ({"exact": "zeros"}, "differ in with_"),
        ({"exact": "estimate"}, "as exact"),
        ({"estimate": "exact"}, "as estimate"),
    ],
)
def test_runs_about_other_things_are_refused(
    model: Any, runs: dict[str, Any], knobs: dict[str, str], given: str
) -> None:
    with pytest.raises(UsageError, match=given):
        agree(model, runs, **knobs)


def test_other_prompts_and_other_weights_are_refused(model: Any, runs: dict[str, Any]) -> None:
    other = held(model, AttributionPatching(), runs["estimate"].data, task="two")
    with pytest.raises(UsageError, match="other prompts"):
        agree(model, {**runs, "other": other}, "other")
    stranger = SimpleNamespace(weight_hash="x")
    with pytest.raises(UsageError, match="other weights"):
        agree(stranger, runs)


def test_agreement_takes_no_task(model: Any) -> None:
    check_fit(Agreement(exact="a", estimate="b"), model, None)  # type: ignore[arg-type]
    assert Agreement.accepts() == ("none",)
