"""Span maps of the pair builder: what is typed, what is offered, and that both mean the same."""

from __future__ import annotations

import pytest

from apps.workbench.spans import proposed, read_spans, written
from interp.engine.buckets import buckets_of
from interp.terms import InterpError, PromptPairs


def test_a_typed_span_map_has_both_ends_in_it():
    assert read_spans("3-5 = 3-4, 8=7") == [((3, 6), (3, 5)), ((8, 9), (7, 8))]
    assert read_spans(" ") == []
    for text in ("3-5 = 3-4, 8 = 7", "0 = 0-2"):
        assert written(read_spans(text)) == text


@pytest.mark.parametrize("text", ["3-5", "5-3 = 1", "a = 1", "1 = 2 = 3", "-1 = 2", "3--4 = 1"])
def test_a_span_map_that_cannot_be_read_is_told_with_an_example(text):
    with pytest.raises(InterpError, match="as in 0-3 = 0-3"):
        read_spans(text)


@pytest.mark.parametrize(("clean", "corrupt", "wanted"), [
    ("a b c d e", "a X d e", "1-2 = 1"), ("a b c", "a c", "1-2 = 1"), ("a b", "a b c", "1 = 1-2"),
    ("b a", "a", "0-1 = 0"), ("x y", "p q r", "0-1 = 0-2"), ("a a a", "a a", "2 = "),
])  # fmt: skip
def test_the_offer_is_the_stretch_that_differs(clean, corrupt, wanted):
    left, right = clean.split(), corrupt.split()
    found = proposed(left, right)
    if wanted.endswith("= "):  # repeats can be told apart in several ways: only that it is one
        assert len(found) == 1
    else:
        assert written(found) == wanted
    ids = {w: i for i, w in enumerate(sorted({*left, *right}))}
    pairs = PromptPairs.from_tokens(
        [[ids[w] for w in left]], [[ids[w] for w in right]], [[90]], [[91]], span_map=[found]
    )
    assert read_spans(written(found)) == found
    (bucket,) = buckets_of(pairs, "denoising")
    for base, source in enumerate(bucket.match[0]):
        inside = found[0][1][0] <= base < found[0][1][1]
        if source >= 0 and not inside:  # outside the stretch only equal tokens correspond
            assert left[source] == right[base], (base, source)
    assert bucket.match[0][-1] == len(left) - 1
