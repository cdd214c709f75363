"""Equations, scripts and symbol fonts as plain text."""

from xml.etree import ElementTree

import pytest

from ingest.parse.notation import equation, scripts, symbol

M = "http://schemas.openxmlformats.org/officeDocument/2006/math"


def omml(xml: str) -> str:
    return equation(ElementTree.fromstring(f'<m:oMath xmlns:m="{M}">{xml}</m:oMath>'))


def run(text: str) -> str:
    return f"<m:r><m:t>{text}</m:t></m:r>"


@pytest.mark.parametrize(
    ("xml", "text"),
    [
        (f"<m:f><m:num>{run('a+b')}</m:num><m:den>{run('c')}</m:den></m:f>", "(a+b)/c"),
        (f"<m:sSup><m:e>{run('(1+r)')}</m:e><m:sup>{run('n')}</m:sup></m:sSup>", "(1+r)^n"),
        (f"<m:sSup><m:e>{run('(a)(b)')}</m:e><m:sup>{run('n-1')}</m:sup></m:sSup>", "((a)(b))^(n-1)"),
        (
            f"<m:sSubSup><m:e>{run('x')}</m:e><m:sub>{run('i')}</m:sub><m:sup>{run('2')}</m:sup></m:sSubSup>",
            "x_i^2",
        ),
        (
            f'<m:nary><m:naryPr><m:chr m:val="∑"/></m:naryPr><m:sub>{run("i=1")}</m:sub><m:sup>{run("n")}</m:sup>'
            f"<m:e>{run('x')}</m:e></m:nary>",
            "∑_(i=1)^n x",
        ),
        (f"<m:nary><m:e>{run('f')}</m:e></m:nary>", "∫ f"),
        (f"<m:rad><m:deg/><m:e>{run('2')}</m:e></m:rad>", "√(2)"),
        (f"<m:rad><m:deg>{run('5')}</m:deg><m:e>{run('x')}</m:e></m:rad>", "^5√(x)"),
        (
            f'<m:d><m:dPr><m:begChr m:val="{{"/><m:endChr m:val=""/></m:dPr><m:e><m:eqArr><m:e>{run("a")}</m:e>'
            f"<m:e>{run('b')}</m:e></m:eqArr></m:e></m:d>",
            "{a; b",
        ),
        (
            f"<m:m><m:mr><m:e>{run('1')}</m:e><m:e>{run('0')}</m:e></m:mr><m:mr><m:e>{run('0')}</m:e>"
            f"<m:e>{run('1')}</m:e></m:mr></m:m>",
            "[1, 0; 0, 1]",
        ),
        (
            f"<m:func><m:fName><m:limLow><m:e>{run('lim')}</m:e><m:lim>{run('x→0')}</m:lim></m:limLow></m:fName>"
            f"<m:e>{run('f')}</m:e></m:func>",
            "lim_(x→0) f",
        ),
    ],
)  # fmt: skip
def test_equations_are_one_line_of_text(xml: str, text: str) -> None:
    assert omml(xml) == text


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        ([("", "5.97×10"), ("superscript", "2"), ("superscript", "4"), ("", " kg")], "5.97×10^24 kg"),
        ([("", "10"), ("superscript", "-3")], "10^-3"),
        ([("", "e"), ("superscript", "n+1")], "e^(n+1)"),
        ([("", "H"), ("subscript", "2"), ("", "SO"), ("subscript", "4")], "H2SO4"),
        ([("", "x"), ("subscript", "max")], "x_max"),
        ([("", "the 2"), ("superscript", "nd")], "the 2nd"),
        ([("", "引文"), ("superscript", "[3]"), ("", "，")], "引文[3]，"),
        ([("", "本公司"), ("superscript", "注1")], "本公司注1"),
    ],
)
def test_scripts_do_not_run_into_their_base(pieces: list[tuple[str, str]], text: str) -> None:
    assert scripts(pieces) == text


def test_symbols_of_symbol_fonts() -> None:
    boxes = [("Wingdings", 0xFE), ("Wingdings", 0xA8), ("Wingdings 2", 0xF052), ("Wingdings 2", 0xF0A3)]
    assert [symbol(*one) for one in boxes] == ["☑", "☐", "☑", "☐"]
    assert [symbol("Symbol", code) for code in (0xF0B0, 0xB1, 0x57, 0xE5)] == ["°", "±", "Ω", "∑"]
    assert symbol("Wingdings", 0x21) == symbol("Unknown", 0x41) == "•"
