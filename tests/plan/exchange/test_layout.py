import pytest
from hypothesis import given
from hypothesis import strategies as st

from konvoi.errors import PlanError
from konvoi.plan.exchange.layout import ALIGNED, Layout


@given(
    sizes=st.lists(st.integers(1, 5000), min_size=1, max_size=30),
    fragments=st.integers(1, 30),
    num_parts=st.integers(1, 7),
)
def test_fragments_and_parts_cover_everything_once(sizes, fragments, num_parts):
    shapes = {str(number): (size,) for number, size in enumerate(sizes)}
    if fragments > len(sizes):
        with pytest.raises(PlanError, match="more fragments"):
            Layout.of(shapes, fragments=fragments, num_parts=num_parts)
        return
    layout = Layout.of(shapes, fragments=fragments, num_parts=num_parts)
    assert [n for start, stop in layout.fragments for n in range(start, stop)] == list(range(len(sizes)))
    assert len(layout.fragments) == fragments
    assert all(start < stop for start, stop in layout.fragments)
    for fragment in range(fragments):
        parts = layout.parts(fragment)
        assert [n for start, stop in parts for n in range(start, stop)] == list(range(layout.size(fragment)))
        assert all(start % ALIGNED == 0 for start, stop in parts if start < stop)


def test_fragments_are_about_equally_large():
    layout = Layout.of({str(n): (100,) for n in range(40)}, fragments=4, num_parts=1)
    assert [layout.size(n) for n in range(4)] == [1000] * 4
