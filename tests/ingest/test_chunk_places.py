"""Names of places."""

from hypothesis import given
from hypothesis import strategies as st

from ingest.chunk import Places
from ingest.types import Mark

MARKS = st.lists(
    st.builds(
        Mark,
        st.integers(0, 40),
        st.sampled_from(["page", "heading", "sheet", "row"]),
        st.text("甲乙丙", min_size=1, max_size=2),
        st.integers(1, 3),
    ),
    max_size=12,
).map(lambda marks: sorted(marks, key=lambda mark: mark.start))


def slow_name(marks: list[Mark], offset: int) -> str:
    """The oracle: replay every mark up to `offset`."""
    kinds: dict[str, str] = {}
    headings: list[Mark] = []
    for mark in marks:
        if mark.start > offset:
            break
        if mark.kind == "heading":
            headings = [above for above in headings if above.level < mark.level] + [mark]
        else:
            kinds[mark.kind] = mark.label
            if mark.kind == "sheet":
                kinds.pop("row", None)
    path = " › ".join(mark.label for mark in headings)
    return " · ".join([*kinds.values(), *([path] if path else [])])


@given(MARKS)
def test_names_equal_a_replay_of_all_marks(marks: list[Mark]) -> None:
    places = Places()
    places.extend(marks, 0)
    assert [places.at(i) for i in range(45)] == [slow_name(marks, i) for i in range(45)]


@given(MARKS, st.integers(0, 41))
def test_two_segments_name_as_one(marks: list[Mark], cut: int) -> None:
    places = Places()
    places.extend([mark for mark in marks if mark.start < cut], 0)
    later = [mark for mark in marks if mark.start >= cut]
    places.extend([Mark(m.start - cut, m.kind, m.label, m.level) for m in later], cut)
    assert [places.at(i) for i in range(cut, 45)] == [slow_name(marks, i) for i in range(cut, 45)]


@given(MARKS, st.integers(0, 40), st.integers(1, 10))
def test_places_within_a_span_name_each_of_its_characters(
    marks: list[Mark], start: int, width: int
) -> None:
    places = Places()
    places.extend(marks, 0)
    within = places.within(start, start + width)
    for offset in range(start, start + width):
        name = next((label for at, label in reversed(within) if at <= offset), "")
        assert name == places.at(offset)
