"""Names in one buffer are a sequence of strings."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastcnn.data.sources.names import Names

LISTS = [
    [],
    [""],
    ["", "", ""],
    ["a"],
    ["cat/0.jpg", "dog/1.jpg", "", "caf\u00e9 \u732b.png", os.fsdecode(b"latin1-\xe9-\xff.jpg")],
]
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


@pytest.mark.parametrize("names", LISTS, ids=len)
def test_names_are_a_sequence_of_strings(names):
    found = Names.of(names)
    assert len(found) == len(names)
    assert list(found) == names
    assert [found[i] for i in range(-len(names), len(names))] == names * 2
    assert found == names
    assert found == tuple(names)
    assert list(found.encoded()) == [os.fsencode(name) for name in names]
    assert [found.encode(i) for i in range(len(names))] == [os.fsencode(name) for name in names]
    assert Names.of(found) is found
    assert pickle.loads(pickle.dumps(found)) == names


def test_an_index_behind_the_end_is_an_error():
    with pytest.raises(IndexError):
        Names.of(["a"])[1]


@given(st.lists(TEXT), st.data())
def test_parts_and_subsets_are_those_of_a_list(names, data):
    found = Names.of(names)
    start, stop = (data.draw(st.none() | st.integers(-9, 9)) for _ in range(2))
    step = data.draw(st.sampled_from([None, 1, 2, -1]))
    assert found[start:stop:step] == names[start:stop:step]
    indices = data.draw(st.lists(st.integers(0, len(names) - 1))) if names else []
    taken = found.take(np.array(indices, dtype=np.int64))
    assert taken == [names[i] for i in indices]
    assert taken.as_bytes() == [os.fsencode(names[i]) for i in indices]
    assert Names.join([found, taken, found]) == [*names, *(names[i] for i in indices), *names]
    assert Names.pairs(found, found) == [f"{name}/{name}" for name in names]


@given(st.lists(TEXT), st.data())
def test_equal_names_have_equal_bytes_wherever_they_come_from(names, data):
    found = Names.of(names)
    order = np.array(data.draw(st.permutations(range(len(names)))), dtype=np.int64)
    back = found.take(order).take(np.argsort(order))
    assert np.array_equal(back.joined(), found.joined())
    assert back == found
    assert found != [*names, "one more"]


def test_a_text_of_another_number_of_names_is_an_error():
    with pytest.raises(ValueError, match="2 names in a text of 3"):
        Names.split(b"a\0b", 3)


def test_a_subset_takes_no_bytes():
    found = Names.of([f"{i:06}.jpg" for i in range(1000)])
    assert np.shares_memory(found.take(np.arange(0, 1000, 3)).text, found.text)
    assert np.shares_memory(found[3:50].joined(), found.text)
