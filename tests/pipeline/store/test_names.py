from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.store.dataset import Names


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=9), min_size=1))
def test_names_are_the_list_they_were_made_of(names: list[str]) -> None:
    made = Names.of(names)
    assert list(made) == names
    assert len(made) == len(names)
    assert made[-1] == names[-1]
    assert made[1:3] == names[1:3]
    assert Names.of(made) is made
    assert made == names
    assert names == made
    assert made != [*names, "another"]
    assert made != ["another", *names[1:]] or names[0] == "another"


def test_file_names_that_are_no_utf_8_come_back() -> None:
    names = [b"gr\xf6\xdfe.jpg".decode("utf-8", "surrogateescape"), "größe.jpg", ""]
    assert list(Names.of(names)) == names


def test_a_row_that_is_not_there() -> None:
    with pytest.raises(IndexError):
        Names.of(["a"])[1]


def test_a_million_names_take_little_memory() -> None:
    made = Names.of(f"images/{i}.jpg" for i in range(100_000))
    assert made.text.nbytes + made.ends.nbytes < 100_000 * 26
    assert made[99_999] == "images/99999.jpg"
