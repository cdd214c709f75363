"""Numbers as Excel shows them; the expected texts are Excel's own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.parse.number_format import BUILTIN, Formulas, general, show


@pytest.mark.parametrize(
    ("value", "code", "expected"),
    [
        (7, "000000", "000007"),
        (0.856, "0.0%", "85.6%"),
        (2.675, "0.00", "2.68"),
        (1234.5, '"¥"#,##0.00', "¥1,234.50"),
        (1234.5, "[$¥-804]#,##0.00", "¥1,234.50"),
        (-1234.5, r"#,##0.00_);[Red]\(#,##0.00\)", "(1,234.50)"),
        (0, '0.00;-0.00;"无"', "无"),
        (-3.5, "#,##0.00", "-3.50"),
        (-0.001, "0.00", "0.00"),
        (12.5, "0.##", "12.5"),
        (1234567, '0.0,,"M"', "1.2M"),
        (123456, '0!.0,"万"', "12.3万"),
        (13800138000, "000 0000 0000", "138 0013 8000"),
        (12345, "0.00E+00", "1.23E+04"),
        (3.25, "# ?/?", "3.25"),
        (1.5, '[>=1]0.0"大";0.00"小"', "1.5大"),
        (0.5, '[>=1]0.0"大";0.00"小"', "0.50小"),
        (45356, "yyyy-mm-dd", "2024-03-05"),
        (45356, '[$-804]yyyy"年"m"月"d"日";@', "2024年3月5日"),
        (45356.5, "yyyy/m/d h:mm", "2024/3/5 12:00"),
        (45356, "mmm-yy", "Mar-24"),
        (45356, "aaaa", "星期二"),
        (61, "yyyy/m/d", "1900/3/1"),
        (59, "yyyy/m/d", "1900/2/28"),
        (0.75, "h:mm AM/PM", "6:00 PM"),
        (0.75, '上午/下午h"时"mm"分"', "下午6时00分"),
        (0.354166667, BUILTIN[21], "08:30:00"),
        (30.25 / 24, "[h]:mm", "30:15"),
        (0.1, "[mm]:ss", "144:00"),
        (-1, "yyyy-mm-dd", "-1"),
        (1e300, "0.00", "1E+300"),
        (0.1 + 0.2, "General", "0.3"),
        (13800138000, "General", "13800138000"),
        (1.2e-6, "General", "0.0000012"),
    ],
)
def test_numbers_read_as_excel_shows_them(value: float, code: str, expected: str) -> None:
    assert show(value, code) == expected


def test_dates_of_old_macs_begin_in_1904() -> None:
    assert show(43894, "yyyy-mm-dd", date1904=True) == "2024-03-05"
    assert show(1.25, "[h]:mm", date1904=True) == "30:00"


@given(st.floats(-1e15, 1e15), st.integers(0, 6))
def test_the_digits_are_those_of_the_number(value: float, places: int) -> None:
    code = "#,##0" + ("." + "0" * places if places else "")
    shown = float(show(value, code).replace(",", ""))
    assert abs(shown - value) <= 0.5 * 10**-places * (1 + 1e-9) + abs(value) * 1e-15
    assert float(general(value)) == pytest.approx(value, rel=1e-14)


@given(st.floats(allow_nan=True, allow_infinity=True), st.text('0#?.,%;/E+-[]hmsyd"_*@G\\年 ', max_size=12))
def test_no_format_stops_the_parser(value: float, code: str) -> None:
    assert isinstance(show(value, code), str)


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        *[("AVERAGE(B2:C2,B3)", "20.0"), ("SUM(A1:C9)", "60.5"), ("-(B2+1)*2/4", "-6.75")],
        *[("$B$2-C9", "12.5"), ("A2*2", ""), ("B2:C2", ""), ("B9/C9", ""), ("S!B2", ""), ("SUM(S!B2)", "")],
        *[
            ("VLOOKUP(B2,B2:C2,1)", ""),
            ("SUM(A1:XFD1048576)", ""),
            ("9**9", ""),
            ("(" * 499, ""),
            ("D2+1", ""),
        ],
    ],
)
def test_simple_formulas_are_computed_and_no_others(formula: str, expected: str) -> None:
    formulas = Formulas()
    cells = {(2, 0): "", (2, 1): "12.5", (2, 2): "40", (3, 1): "7.5", (3, 2): "0.5"}
    for place, value in cells.items():
        formulas.value(place, "n" if value else "s", value or "1", "")
    formulas.value((2, 3), "n", "", "NOW()")
    assert formulas.value((9, 9), "n", "", formula) == expected
