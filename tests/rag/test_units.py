"""Units: exact spans, leads, groups, and what is no answer."""

from hypothesis import given, settings
from hypothesis import strategies as st

from rag.units import list_shown, records, units, words_of

TEXT = st.text(st.sampled_from("甲乙丙。？：；|-#\n 12.、AQ：答"), max_size=300)


@settings(max_examples=150, deadline=None)
@given(TEXT, st.sampled_from(["", "| 甲 | 乙 |"]))
def test_units_lie_in_the_text_in_order(text: str, header: str) -> None:
    found = units(text, {"甲乙"}, header)
    for unit in found:
        assert 0 <= unit.start < unit.end <= len(text)
        assert text[unit.start : unit.end] == text[unit.start : unit.end].strip()
        assert words_of(text, unit)
        assert all(unit.start <= start < end <= unit.end for start, end in unit.parts)
    single = [unit.start for unit in found if not unit.parts]
    assert single == sorted(single)


def test_a_unit_knows_the_heading_and_the_line_above() -> None:
    text = "质保期\n\n5年。\n\n职务：经理；补助标准：\n1.住宿：400元；\n2.交通：60元。"
    found = units(text, {"质保期"})
    by_text = {text[unit.start : unit.end]: unit for unit in found}
    assert not by_text["质保期"].answers
    assert by_text["5年。"].lead == "质保期"
    assert "职务：经理" in by_text["1.住宿：400元；"].lead
    [group] = [unit for unit in found if unit.parts]
    assert list_shown(text, group) == "职务：经理；补助标准：1.住宿：400元；2.交通：60元。"


def test_a_heading_is_no_part_of_the_sentence_below_it() -> None:
    text = "Intro\n## Battery\nThe battery charges in four hours.\n第一章 总则\n本法所称劳动者，是指自然人。"
    found = units(text, {"Battery", "第一章 总则"})
    answers = {text[unit.start : unit.end]: unit.lead for unit in found if unit.answers}
    assert answers["The battery charges in four hours."] == "Battery"
    assert answers["本法所称劳动者，是指自然人。"] == "第一章 总则"
    assert not any("Battery" in answer or "总则" in answer for answer in answers)


def test_rows_know_their_columns_and_the_caption() -> None:
    text = "利润表\n单位：元\n\n| 项目 | 本期 |\n| --- | --- |\n| 收入 | 4,755 |"
    found = units(text)
    row = found[-1]
    assert row.names == ("项目", "本期")
    assert "利润表" in row.lead
    assert words_of(text, row) == "项目：收入；本期：4,755"
    assert not next(unit for unit in found if text[unit.start : unit.end] == "利润表").answers


def test_a_numbered_heading_is_one_heading() -> None:
    text = "1.4. 子节标题\n\n使用小四号字，黑体。"
    found = units(text, {"1.4. 子节标题"})
    assert [text[u.start : u.end] for u in found if u.answers] == ["使用小四号字，黑体。"]
    assert found[-1].lead == "1.4. 子节标题"


def test_a_header_that_repeats_makes_records() -> None:
    assert records(["号", "名", "号", "名"]) == [slice(0, 2), slice(2, 4)]
    assert records(["号", "名", "价"]) == [slice(0, 3)]
