"""The linear interpreter's tours on shipped networks: sums, pictures, cards, faces, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import interp
from interp import figures, forms
from interp.methods import METHODS
from interp.terms import CancelledError, LabelledInputs, TaskError, Texts, UsageError
from tests.engine.driven import Remembering
from tests.engine.straight import Residual, hard

Spec = METHODS["linear_interpreter"]


@pytest.fixture(scope="module")
def nets():
    kept = {}

    def open_(name, dtype="float64"):
        if (name, dtype) not in kept:
            kept[name, dtype] = interp.load_model(f"zoo:{name}", dtype=dtype, verify=False)
        return kept[name, dtype]

    return open_


def measured(model, task, **knobs):
    given = interp.load_task(task, model) if isinstance(task, str) else task
    return interp.run(Spec(**knobs), model, given, progress=False)


def check_of(result, name):
    return next(c for c in result.checks if c.name == name)


@pytest.mark.parametrize("name", ["digits-cnn", "digits-cnn-nobias", "digits-cnn-bn", "digits-mlp"])
def test_votes_and_sources_make_up_every_logit(nets, name):
    model = nets(name)
    result = measured(model, "digits:n=5")
    data = result.data
    with torch.no_grad():
        logits = model.module()(torch.tensor(interp.load_task("digits:n=5", model).inputs))
    assert np.allclose(data["logit"], logits, rtol=1e-12, atol=1e-12)
    pixels = [d for d in data["vote"].dims if d not in ("prompt", "label")]
    votes = data["vote"].sum(pixels)
    assert np.allclose(votes, data["linear"], rtol=1e-11, atol=1e-12)
    assert np.allclose(votes + data["residual"], data["logit"], rtol=1e-11, atol=1e-12)
    total = votes + data["residual_by_source"].sum("component")
    assert np.allclose(total, data["logit"], rtol=1e-11, atol=1e-11)
    assert np.abs(data["unattributed"]).max() < 1e-11
    assert result.passed and check_of(result, "completeness").value < 1e-12
    if name == "digits-cnn-nobias":
        assert np.abs(data["residual"]).max() < 1e-12 and data.sizes.get("component", 0) == 0


def test_on_a_relu_network_votes_are_gradient_times_input(nets):
    model = nets("digits-cnn")
    task = interp.load_task("digits:n=3,seed=4", model)
    data = measured(model, task).data
    x = torch.tensor(task.inputs, requires_grad=True)
    for label in (0, 7):
        grad = torch.autograd.grad(model.module()(x)[:, label].sum(), x)[0]
        assert np.allclose(data["vote"].sel(label=str(label)), (grad * x).detach(), atol=1e-13)


def test_batch_norm_and_the_bias_before_it_are_one_source(nets):
    names = measured(nets("digits-cnn-bn"), "digits:n=1").data["component"].values.tolist()
    assert names == [
        "Conv2d 0 bias + BatchNorm2d 1", "Conv2d 3 bias + BatchNorm2d 4", "Linear 8 bias",
    ]  # fmt: skip


def test_rows_and_columns_are_of_one_matrix(nets):
    model = nets("digits-sr")
    outs, ins = (30, 200, 511), (5, 77, 100)
    rows = measured(model, "scenes:n=2", tour="rows", pixels=outs).data["row_image"].values
    columns = measured(model, "scenes:n=2", tour="columns", pixels=ins).data["column_image"].values
    for i, out in enumerate(outs):
        for j, into in enumerate(ins):
            a = rows[:, i].reshape(2, -1)[:, into]
            b = columns[:, j].reshape(2, -1)[:, out]
            assert np.allclose(a, b, rtol=1e-10, atol=1e-13)
    assert np.abs(rows).max() > 0.1


@pytest.mark.parametrize("solver", ["dense", "lanczos"])
def test_singular_vectors_solve_f_v_is_sigma_u(nets, solver):
    model = nets("digits-sr")
    result = measured(model, "scenes:n=1", tour="svd", k=4, solver=solver)
    data = result.data.isel(prompt=0)
    task = interp.load_task("scenes:n=1", model)
    x, v = torch.tensor(task.inputs), torch.tensor(data["eigen_input"].values[:1])
    _, through = torch.autograd.functional.jvp(model.module(), x, v)
    assert np.allclose(
        through[0], data["singular_value"].values[0] * data["eigen_output"].values[0], atol=1e-9
    )
    assert check_of(result, "certificate").value < 1e-8
    assert (np.diff(data["singular_value"]) <= 1e-12).all()
    assert np.isnan(data["rank"]) == (solver == "lanczos")


def test_the_bottlenecks_rank_is_its_open_gates_on_each_of_20_inputs(nets):
    model = nets("digits-autoencoder")
    task = interp.load_task("digits:n=20,noise=0.3", model)
    data = measured(model, task, tour="copy_template").data
    net = model.module()
    with torch.no_grad():
        gates = (net[:4](torch.tensor(task.inputs)) > 0).sum(1)
    assert data["rank"].values.tolist() == gates.tolist()
    assert 5 <= int(gates.min()) and int(gates.max()) <= 16


def test_convolutions_copy_and_a_bottleneck_draws_templates(nets):
    near = [
        measured(nets(n), "digits:n=6,noise=0.3", tour="copy_template").data["local_share"].mean()
        for n in ("digits-denoise", "digits-autoencoder")
    ]
    assert near[0] > 0.5 > 0.35 > near[1] > 0.05


def test_the_remainder_decides_with_batch_norm_and_hardly_without(nets):
    shares = {}
    for name in ("digits-cnn", "digits-cnn-bn"):
        data = measured(nets(name), "digits:n=100,seed=1", tour="residual").data
        shares[name] = float(data["share"].mean())
        right = data["right"].mean("prompt")
        assert right.sel(side="f") > 0.9 > 0.75 > right.sel(side="r alone")
    assert shares["digits-cnn-bn"] > 1.5 * shares["digits-cnn"]


def test_transformers_votes_are_of_tokens_and_pairs_name_their_answers(nets):
    model = nets("ioi", "float32")
    task = interp.load_task("ioi:n=3", model)
    for knobs in ({}, {"input_site": "resid_pre L2"}):
        result = measured(model, task, **knobs)
        data = result.data
        assert data["label"].values.tolist() == ["right", "wrong", "right - wrong"]
        total = data["vote"].sum("position") + data["residual_by_source"].sum("component")
        assert np.allclose(total, data["logit"], rtol=1e-4, atol=1e-4)
        assert np.allclose(
            data["logit"].sel(label="right") - data["logit"].sel(label="wrong"),
            data["logit"].sel(label="right - wrong"), atol=1e-4,
        )  # fmt: skip
        assert result.passed
    first = measured(model, task).data["component"].values.tolist()
    assert first[0] == "position embedding" and "layer 0 b_O" in first
    texts = Texts(tuple(task.clean))
    data = measured(model, texts).data
    assert data["label_id"].dtype.kind == "i" and data["label"].values[0] == "top"
    gains = measured(model, texts, tour="svd", k=2).data["gain"]
    assert gains.dims == ("prompt", "layer") and float(gains.min()) > 0.1


def test_a_cancelled_run_goes_on_and_ends_the_same(nets):
    model = nets("digits-sr")
    task = interp.load_task("scenes:n=3", model)
    whole = Spec(tour="svd", k=2).measure(model, task, Remembering())
    broken = Remembering(cancel_after=1)
    with pytest.raises(CancelledError):
        Spec(tour="svd", k=2).measure(model, task, broken)
    assert broken.chunks
    again = Remembering()
    again.chunks = broken.chunks
    data = Spec(tour="svd", k=2).measure(model, task, again)
    assert data.identical(whole)
    assert {c.name for c in again.checks} >= {"completeness", "adjoint", "certificate"}


def test_how_far_f_is_from_the_gradient_is_told_on_request(nets):
    gap = measured(nets("digits-cnn"), "digits:n=2", jacobian=True).data["gradient_gap"]
    assert gap.shape == (2, 10) and np.abs(gap).max() == 0
    net = interp.load_model(hard(Residual("tanh", "instance")), example=np.zeros((1, 1, 6, 6)))
    task = LabelledInputs(np.random.default_rng(0).random((2, 1, 6, 6)), [0, 1])
    assert float(measured(net, task, jacobian=True).data["gradient_gap"].min()) > 0.1
    tokens = measured(nets("ioi", "float32"), "ioi:n=1", jacobian=True).data["gradient_gap"]
    assert tokens.dims == ("prompt", "label") and float(tokens.min()) > 0.05


# -- what is not covered, and what is refused ----------------------------------------------------


class RMS(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6))

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def test_a_part_that_no_rule_covers_turns_the_panel_amber_and_is_named():
    net = hard(nn.Sequential(nn.Linear(6, 6), RMS(), nn.Linear(6, 3)))
    x = np.random.default_rng(0).normal(size=(2, 6))
    model = interp.load_model(net, example=x, dtype="float64")
    task = LabelledInputs(x, [0, 1])
    result = measured(model, task)
    bad = check_of(result, "completeness")
    assert not bad.passed and "1 (RMS)" in bad.note and "declare" in bad.note.lower()
    assert result.data.attrs["complete"] == 0
    assert measured(model, task, declared=("1=secant",)).passed


def test_a_residual_network_of_ones_own_is_taken_as_it_is():
    net = hard(Residual("silu", "batch"))
    x = np.random.default_rng(0).random((2, 1, 6, 6))
    result = measured(interp.load_model(net, example=x), LabelledInputs(x, [0, 1]))
    assert result.passed and result.data.sizes["label"] == 5
    sources = result.data["component"].values.tolist()
    assert sources == ["conv1 bias + norm1", "conv2 bias + norm2", "head bias"]


@pytest.mark.parametrize(
    ("task", "knobs", "words"),
    [
        ("digits:n=1", {"labels": (10,)}, "outputs 0 to 9"),
        ("digits:n=1", {"tour": "rows", "pixels": (99,)}, "there are 0 to 9"),
        ("digits:n=1", {"tour": "copy_template"}, "from pictures to pictures"),
        ("digits:n=1", {"input_site": "embed"}, "module:PATH"),
        ("digits:n=1", {"output_site": "module:nowhere"}, "nowhere"),
    ],
)
def test_what_a_network_does_not_have_is_said(nets, task, knobs, words):
    with pytest.raises(UsageError, match=words):
        measured(nets("digits-cnn"), task, **knobs)


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"tour": "columns"}, "networks of pictures"),
        ({"input_site": "input"}, "Use embed"),
        ({"input_site": "resid_pre L9"}, "below 4"),
        ({"output_site": "module:x"}, "at the logits"),
        ({"labels": (10**6,)}, "vocabulary"),
        ({"at": "40"}, "no position"),
    ],
)
def test_what_a_prompt_does_not_have_is_said(nets, knobs, words):
    with pytest.raises(UsageError, match=words):
        measured(nets("ioi", "float32"), "ioi:n=1", **knobs)


def test_numbers_that_are_not_finite_are_named(nets):
    x = np.zeros((2, 1, 8, 8))
    x[1, 0, 2, 3] = np.nan
    with pytest.raises(TaskError, match=r"input 2: entry \(0, 2, 3\)"):
        measured(nets("digits-cnn"), LabelledInputs(x, [0, 0]))


def test_more_vectors_than_there_are_are_clipped_and_said(nets):
    result = measured(nets("digits-cnn"), "digits:n=1", tour="svd", k=64)
    assert result.data.sizes["mode"] == 10
    assert "10 singular values" in str(result.provenance)


def test_a_vanishing_output_has_no_ratio(nets):
    model = nets("digits-cnn-nobias")
    data = measured(model, LabelledInputs(np.zeros((1, 1, 8, 8)), [0]), tour="residual").data
    assert np.isnan(data["share"]).all()


# -- faces ---------------------------------------------------------------------------------------


def test_each_array_gets_its_figure(nets):
    votes = measured(nets("digits-cnn"), "digits:n=2")
    kinds = {n: f.layout.meta["kind"] for n, f in votes.figures().items()}
    assert kinds["vote"] == "sheet" and kinds["residual_by_source"] == "waterfall"
    assert kinds["input"] == "image" and next(iter(kinds)) == "vote"
    sheet = votes.figures()["vote"]
    pictures = [t for t in sheet.data if t.type == "heatmap"]
    assert len(pictures) == 11
    limits = {(t.zmin, t.zmax) for t in pictures[1:]}
    assert len(limits) == 1 and next(iter(limits))[0] == -next(iter(limits))[1]
    assert pictures[1].customdata[0][0].count("<br>") >= 10  # a pixel's vote in every class
    fall = votes.figures()["residual_by_source"]
    total = float(votes.data["logit"][0, 0])
    bars = {float(x): float(y) for t in fall.data if t.type == "bar"
            for x, y in zip(t.x, t.y, strict=True)}  # fmt: skip
    assert bars[max(bars)] == pytest.approx(total, rel=1e-5)
    svd = measured(nets("digits-sr"), "scenes:n=1", tour="svd", k=3)
    kinds = {n: f.layout.meta["kind"] for n, f in svd.figures().items()}
    assert kinds["eigen_input"] == kinds["eigen_output"] == "sheet"
    assert kinds["singular_value"] == "bars"


def test_the_form_takes_what_the_spec_takes():
    fields = {f.name: f for f in forms.fields_of(Spec.model_json_schema())}
    assert fields["tour"].kind == "choice" and fields["declared"].advanced
    parsed = forms.parse_values(
        list(fields.values()),
        {"tour": "svd", "labels": "3, 5", "image": "8,8", "k": 4, "declared": "a=secant"},
    )
    spec = Spec(**parsed.values)
    assert spec.labels == (3, 5) and spec.image == (8, 8) and spec.declared == ("a=secant",)
    with pytest.raises(ValueError, match="PATH=secant"):
        Spec(declared=("a",))


def test_figures_say_in_words_what_they_show(nets):
    data = measured(nets("digits-cnn-bn"), "digits:n=2", tour="residual").data
    for name in figures.drawn_names(data):
        assert data[name].attrs["long_name"] and data[name].attrs["units"]
