"""One table of every refusal: method × site × family × reason (tests/cases/refusals.json).

A 'no' that is not in the table fails, and so does a row that no longer refuses. After a change that
is meant: ``python -m tests.models.test_refusals`` writes the table anew; read the difference.
"""

from __future__ import annotations

import json
import typing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interp.engine import Cell, plain, sweep, undriven
from interp.engine.metrics import METRICS
from interp.methods import METHODS
from interp.run import check_fit
from interp.terms import CapabilityError, Edit, InterpError, PromptPairs, Site
from tests.checkpoints import FAMILY_NAMES
from tests.engine.driven import Remembering, telling_pairs
from tests.models.wrapped import raw, wrapped

TABLE = Path(__file__).parents[1] / "cases" / "refusals.json"
BACKENDS = ("transformer_lens", "nnsight")


def sites_of(method: Any) -> list[str | None]:
    """The values that a method's field ``site`` may have."""
    field = method.model_fields.get("site")
    if field is None:
        return [None]
    return list(typing.get_args(field.annotation)) or ["embed", "resid_mid", "z", "pattern"]


def refused(family: str, backend: str) -> list[list[str]]:
    """Rows ``[method, site, family, reason]`` of what does not fit a model of a family."""
    lacking, rows = [c for c in wrapped(family, backend).capabilities() if not c.ok], []
    for key, method in METHODS.items():
        for site in sites_of(method):
            try:
                spec = method() if site is None else method(site=site)
            except ValueError:  # fields that only a person can fill in, such as another model
                spec = method.model_construct()
            needs = spec.needed()
            rows += [
                [key, site or "-", family, f"{c.name}: {c.reason}"]
                for c in lacking
                if c.name in needs
            ]
    return rows


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_every_refusal_of_every_method_stands_in_the_table(family: str, backend: str):
    table = [r for r in json.loads(TABLE.read_text(encoding="utf-8")) if r[2] == family]
    found = refused(family, backend)
    assert found == table, f"not in the table, or no longer refused; see {__name__}"
    pairs = PromptPairs.from_tokens([[4, 7, 1]], [[4, 7, 3]], [9], [8])
    for key, site, _, reason in found:
        if "PromptPairs" in METHODS[key].accepts():
            spec = METHODS[key]() if site == "-" else METHODS[key](site=site)
            with pytest.raises(CapabilityError) as said:
                check_fit(spec, wrapped(family, backend), pairs)
            assert reason.split(": ")[1][:40] in str(said.value)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_method_that_looks_at_prompts_runs_on_every_family(family: str):
    model = wrapped(family)
    pairs = PromptPairs.from_tokens([[4, 7, 1, 5]], [[4, 7, 3, 5]], [9], [8])
    for key in ("next_tokens", "pair_check", "attention_patterns", "head_page"):
        data = METHODS[key]().measure(model, pairs, Remembering())
        assert data.data_vars, key


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_gradients_are_refused_by_the_table_alone(family: str, backend: str):
    """Every site of attribution and relevance, under rules, runs or stands in the table."""
    model = wrapped(family, backend)
    pairs = telling_pairs(raw(family), n=2, length=6)
    table = {tuple(r[:3]) for r in json.loads(TABLE.read_text(encoding="utf-8"))}
    for key, fields in (
        ("attribution_patching", {"rules": "none", "n_boot": 0, "verify": 0}),
        ("attribution_patching", {"rules": "relp", "n_boot": 0, "verify": 0}),
        ("relevance", {"rules": "attnlrp", "n_boot": 0}),
    ):
        for site in sites_of(METHODS[key]):
            if site == "feature":  # of a dictionary: tests/methods/test_features.py
                continue
            if key == "relevance" and site in ("q", "k") and family == "qwen3":
                fields = {
                    **fields,
                    "qk_norm_rule": "linear",
                }  # else zero: tests/methods/attribution
            spec = METHODS[key](site=site, **fields)
            said = (key, site, family) in table
            try:
                check_fit(spec, model, pairs)
                context = Remembering()
                data = spec.measure(model, pairs, context)
            except CapabilityError:
                assert said, (key, site)
                continue
            assert not said, (key, site)
            assert all(c.passed for c in context.checks), [
                c for c in context.checks if not c.passed
            ]
            raw_name = "attribution_raw" if "attribution_raw" in data else "relevance"
            assert float(np.nanmax(np.abs(data[raw_name]))) > 1e-6, (key, site)


WALKED = "gpt_neox"
"""Of the families the one that lacks most (parallel blocks); the others are walked in test-all."""

ELSEWHERE = ("attribution_patching", "relevance", "agreement")
"""Methods whose every site runs on every family in the test above (agreement holds two of them)."""


def walked_families() -> list[Any]:
    """One family in every run of the tests, all of them in the long one."""
    return [f if f == WALKED else pytest.param(f, marks=pytest.mark.slow) for f in FAMILY_NAMES]


@pytest.mark.parametrize("family", walked_families())
def test_what_a_method_refuses_while_it_measures_stands_in_the_table(family: str):
    """Needs that a method does not declare: every method, every site, measured on a small task."""
    model, pairs = wrapped(family), telling_pairs(raw(family), n=2, length=6)
    table = {tuple(r[:3]) for r in json.loads(TABLE.read_text(encoding="utf-8"))}
    ran = 0
    for key, method in METHODS.items():
        if "PromptPairs" not in method.accepts() or key in ELSEWHERE:
            continue
        cheap = {k: 0 for k in ("n_boot", "verify") if k in method.model_fields}
        for site in sites_of(method):
            if site == "feature":
                continue
            try:
                spec = method(**cheap, **({} if site is None else {"site": site}))
            except ValueError:
                continue
            said = (key, site or "-", family) in table
            try:
                check_fit(spec, model, pairs)
                spec.measure(model, pairs, Remembering())
            except CapabilityError as error:
                assert said, (key, site, str(error))
            except InterpError:  # asks for what only a person can give: a head, another model
                continue
            else:
                assert not said, (key, site)
                ran += 1
    assert ran >= 20


def cells_of(model: Any) -> list[Cell]:
    """One cell at every kind that the packed engine edits, in an early and a late layer."""
    have = {s.kind for s in model.sites}
    kinds = ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z", "v", "mlp_post"]
    found = []
    for kind in [k for k in kinds if k in have]:
        for layer, position in ((0, 5), (1, None), (2, -1)):
            head = 1 if kind in ("z", "v") else None
            site = Site(kind, layer=layer, head=head, position=position)
            found.append(Cell((Edit(site, "source"),)))
    return found


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_sweep_is_the_same_on_both_back_ends_packed_and_plain(family: str):
    pairs = telling_pairs(raw(family), n=2, length=7)
    one, two = (wrapped(family, b) for b in BACKENDS)
    cells = cells_of(one)
    assert undriven(one, cells) == undriven(two, cells) == "", "the packed engine drives both"
    packed = [sweep(m, pairs, cells, Remembering()) for m in (one, two)]
    slow = [
        plain.plain_metrics(m, pairs, cells, METRICS["logit_diff"], direction="denoising")
        for m in (one, two)
    ]
    scale = np.abs(packed[0].source - packed[0].base).max()
    effect = packed[0].patched - packed[0].base
    assert np.abs(effect).max() >= 0.1 * scale > 0, "a grid of zeros proves nothing"
    for other in (packed[1].patched, *slow):
        assert np.abs(other - packed[0].patched).max() < 1e-9 * scale


if __name__ == "__main__":
    rows = [r for f in FAMILY_NAMES for r in refused(f, BACKENDS[0])]
    TABLE.parent.mkdir(exist_ok=True)
    lines = ",\n".join(json.dumps(r) for r in rows)
    TABLE.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
