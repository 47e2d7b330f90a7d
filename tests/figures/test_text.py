"""Labels: no token is merged, swallowed, expanded or turned around."""

import html
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.figures import escape, glyphs, token_axis
from tests.figures.arrays import HOSTILE


@pytest.mark.parametrize(
    ("token", "label"),
    [
        (" Mary", "␣Mary"),
        ("\n", "⏎"),
        ("\t", "⇥"),
        ("", "∅"),
        ("\u202ex", r"\u202ex"),
        ("\x00", r"\u0000"),
        ("\U000e0001", r"\U000e0001"),
        ("\u00a0", r"\u00a0"),
        ("é", "é"),
    ],
)
def test_what_cannot_be_seen_is_written_as_a_glyph_or_its_code(token, label):
    assert glyphs(token) == label


def test_every_repeated_token_keeps_its_own_column():
    axis = token_axis([" the", " cat", " the"])
    assert axis.x == [0, 1, 2]
    assert axis.tickvals == [0, 1, 2]
    assert axis.ticktext == ["␣the", "␣cat", "␣the"]
    assert axis.layout()["tickmode"] == "array"


def test_no_token_is_markup():
    axis = token_axis(list(HOSTILE))
    for label in (*axis.ticktext, *axis.names):
        assert "<" not in label and ">" not in label and "$" not in label
    assert html.unescape(axis.names[1]) == "</script><img␣src=x␣onerror=window.__pwn=1>"
    assert html.unescape(axis.names[2]) == "&lt;"


def test_an_empty_token_keeps_its_tick():
    assert token_axis(["a", "", "b"]).ticktext == ["a", "∅", "b"]


def test_a_right_to_left_token_cannot_turn_its_neighbours_around():
    name = token_axis(["שלום"]).names[0]
    assert name[0] == "\u2068" and name[-1] == "\u2069"


def test_long_tokens_are_cut_on_the_axis_and_whole_in_the_hover():
    axis = token_axis(["x" * 60])
    assert len(axis.ticktext[0]) < 20 and axis.ticktext[0].endswith("…")
    assert axis.names[0] == "x" * 60


def test_above_64_positions_ticks_thin_and_positions_stay():
    axis = token_axis([f"t{i}" for i in range(200)])
    assert len(axis.x) == 200 and len(axis.tickvals) <= 64
    assert axis.ticktext[1] == f"{axis.tickvals[1]} t{axis.tickvals[1]}"


@given(st.text(max_size=30))
def test_the_label_reads_back_as_the_token(token):
    assert html.unescape(escape(token)) == token
    seen = glyphs(token)
    assert seen and all(unicodedata.category(c) not in ("Cc", "Cf", "Zl", "Zp") for c in seen)
