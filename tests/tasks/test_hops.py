"""Pointer chains: the answer is where the pairs lead, and one changed pair leads elsewhere."""

from __future__ import annotations

import pytest

from interp.tasks import hops, load_task
from interp.terms import TaskError, UsageError
from tests.tasks.readers import chain_reader, word_reader


def followed(tokens):
    """The answer, read off the prompt alone."""
    pairs = dict(
        divmod(t - hops.FIRST_PAIR, 10) for t in tokens if hops.FIRST_PAIR <= t < hops.FIRST_QUERY
    )
    (asked,) = (t for t in tokens if hops.FIRST_QUERY <= t < hops.READER)
    at, count = divmod(asked - hops.FIRST_QUERY, hops.CHAIN + 1)
    for _ in range(count):
        at = pairs[at]
    return hops.FIRST_SYMBOL + at


@pytest.mark.parametrize("count", [1, 4, 6, 0])
def test_following_the_pairs_gives_the_answers(count):
    task = load_task(f"hops:n=40,hops={count}", chain_reader())
    for clean, corrupt, right, wrong in zip(
        task.clean, task.corrupt, task.right, task.wrong, strict=True
    ):
        assert followed(clean) == right[0] != wrong[0] == followed(corrupt)
        assert sum(a != b for a, b in zip(clean, corrupt, strict=True)) == 1


def test_slots_stand_on_the_pairs_of_the_chain_in_order():
    task = load_task("hops:n=20,hops=6,seed=3", chain_reader())
    for i, row in enumerate(task.clean):
        ends = [divmod(row[task.slots[f"hop{j}"][i]] - hops.FIRST_PAIR, 10) for j in range(1, 7)]
        assert all(a[1] == b[0] for a, b in zip(ends, ends[1:], strict=False))


def test_every_token_has_words_of_its_own():
    assert len({hops.spoken(t) for t in range(hops.VOCAB)}) == hops.VOCAB


def test_what_cannot_be_asked_is_refused_with_a_remedy():
    with pytest.raises(TaskError, match="zoo:hops"):
        load_task("hops", word_reader())
    with pytest.raises(UsageError, match="at most 5"):
        load_task("hops:hops=6,reader=true", chain_reader())
