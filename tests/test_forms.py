"""Forms: schema in, controls out; what is typed comes back as the method's values."""

from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from interp.forms import errors_by_field, fields_of, parse_values, text_of
from interp.terms import Method, ModelRef, ResultRef


class Toy(Method):
    """A method with a field of every kind."""

    site: Literal["resid_pre", "z"] = "resid_pre"
    """Where."""
    at: Literal["last"] | int = "last"
    """Which position."""
    layers: tuple[int, ...] | None = None
    """Which layers."""
    n_boot: Annotated[int, Field(ge=0, le=10_000)] = 1000
    """How many."""
    width: Annotated[float, Field(gt=0)] = 0.5
    """How wide."""
    keep: bool = True
    """Whether to keep."""
    axes: tuple[Literal["layer", "position"], ...] = ("layer",)
    """Which axes."""
    with_: Literal["source", "zero"] | tuple[float, ...] = "source"
    """What to put."""
    words: tuple[str, ...] = ()
    """Some words."""
    slots: tuple[str, ...] | None = ("all",)
    """Some slots, or none."""
    name: str = "toy"
    """A name."""
    other: ModelRef | None = None
    """Another model."""
    results: tuple[ResultRef, ...] = ()
    """Earlier results."""
    span: tuple[int, float] = (0, 1.0)
    """Two numbers."""

    def measure(self, model: Any, task: None, context: Any) -> Any:
        """Nothing."""


FIELDS = fields_of(Toy.model_json_schema())
BY_NAME = {f.name: f for f in FIELDS}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("site", "choice"),
        ("at", "text"),
        ("layers", "list"),
        ("n_boot", "int"),
        ("width", "float"),
        ("keep", "bool"),
        ("axes", "choices"),
        ("with_", "list"),
        ("words", "list"),
        ("slots", "list"),
        ("name", "text"),
        ("other", "ref"),
        ("results", "refs"),
        ("span", "list"),
    ],
)
def test_each_type_has_its_control(name, kind):
    assert BY_NAME[name].kind == kind


def test_a_field_carries_its_bounds_choices_phrase_and_reference():
    assert BY_NAME["n_boot"].bounds == (0, 10_000)
    assert BY_NAME["n_boot"].phrase == "How many."
    assert BY_NAME["site"].choices == ("resid_pre", "z")
    assert (BY_NAME["other"].ref, BY_NAME["results"].ref) == ("model", "result")
    assert BY_NAME["layers"].nullable and not BY_NAME["keep"].nullable
    assert BY_NAME["with_"].option == "--with"


def test_few_fields_are_unfolded_and_none_is_lost():
    unfolded = [f.name for f in FIELDS if not f.advanced]
    assert unfolded == ["site", "axes", "with_"]
    assert [f.name for f in FIELDS] == list(Toy.model_fields)


def test_a_required_field_is_never_folded_away():
    schema = {
        "type": "object",
        "required": ["deep"],
        "properties": {
            **{k: {"type": "integer", "default": 0} for k in "abcdefg"},
            "deep": {"type": "integer"},
        },
    }
    fields = {f.name: f for f in fields_of(schema)}
    assert not fields["deep"].advanced and sum(not f.advanced for f in fields.values()) == 5
    assert parse_values(fields.values(), {}).errors["deep"].startswith("deep is missing")


@pytest.mark.parametrize(
    ("name", "typed", "value"),
    [
        ("site", "z", "z"),
        ("at", "last", "last"),
        ("at", "-1", -1),
        ("layers", "0-2, 7", [0, 1, 2, 7]),
        ("layers", "[3]", [3]),
        ("layers", "none", None),
        ("slots", "none", None),
        ("slots", "null", None),
        ("n_boot", "10", 10),
        ("width", "2e-3", 0.002),
        ("keep", "no", False),
        ("axes", "layer,position", ["layer", "position"]),
        ("with_", "zero", "zero"),
        ("with_", "0.5, 1", [0.5, 1.0]),
        ("with", "[1, 2]", [1.0, 2.0]),
        ("--with", "zero", "zero"),
        ("words", '["a,b", "c"]', ["a,b", "c"]),
        ("words", "0-2", ["0-2"]),
        ("name", "", ""),
        ("other", "zoo:ioi", "zoo:ioi"),
        ("span", "1, 2.5", [1, 2.5]),
        ("results", "abc,def", ["abc", "def"]),
        ("n-boot", "7", 7),
        ("layers", [1, 2], [1, 2]),
    ],
)
def test_what_is_typed_is_read_and_the_method_takes_it(name, typed, value):
    parsed = parse_values(FIELDS, {name: typed})
    assert parsed.errors == {}
    (found,) = parsed.values.values()
    assert found == value and type(found) is type(value)
    Toy(**parsed.values)


@pytest.mark.parametrize(
    ("name", "typed", "said"),
    [
        ("site", "resid_per", "'resid_pre'"),
        ("n_boot", "10001", "a whole number from 0 to 10000"),
        ("n_boot", "1.5", "a whole number"),
        ("n_boot", "nan", "a whole number"),
        ("width", "0", "a number above 0"),
        ("width", "inf", "a number above 0"),
        ("keep", "maybe", "true or false"),
        ("axes", "layer,positon", "'positon'"),
        ("at", "lst", "last or a whole number"),
        ("layers", "1,x", "a whole number"),
        ("layers", "[1", "a whole number"),
        ("span", "1", "2 entries"),
        ("sitee", "z", "'site'"),
        ("n_boot", "9" * 5000, "a whole number"),
    ],
)
def test_what_does_not_fit_is_said_under_its_field(name, typed, said):
    parsed = parse_values(FIELDS, {name: typed})
    assert parsed.values == {} and list(parsed.errors) == [name]
    assert said in parsed.errors[name] and len(parsed.errors[name]) < 400


def test_what_is_left_empty_stays_at_its_default():
    assert parse_values(FIELDS, {"site": "", "layers": " ", "n_boot": None}).values == {}


@given(
    st.builds(
        Toy,
        site=st.sampled_from(["resid_pre", "z"]),
        at=st.one_of(st.just("last"), st.integers()),
        layers=st.one_of(st.none(), st.lists(st.integers(0, 99), min_size=1).map(tuple)),
        n_boot=st.integers(0, 10_000),
        width=st.floats(1e-9, 1e9),
        keep=st.booleans(),
        words=st.lists(st.text(), min_size=1).map(tuple),
        name=st.text(min_size=1).filter(str.strip),
    )
)
def test_every_value_reads_back_from_its_own_text(toy):
    typed = {k: text_of(v) for k, v in toy.model_dump(mode="json").items()}
    parsed = parse_values(FIELDS, typed)
    assert parsed.errors == {}
    assert Toy(**parsed.values) == toy


def test_pydantics_errors_are_told_by_field():
    with pytest.raises(ValidationError) as caught:
        Toy(n_boot=-1, sitee=1)
    told = errors_by_field(caught.value.errors())
    assert set(told) == {"n_boot", "sitee"} and "-1" in told["n_boot"]
