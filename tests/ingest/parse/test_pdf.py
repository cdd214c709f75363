"""The text of a PDF's pages; and a page as a picture, with the passage on it."""

from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ingest.errors import Unreadable
from ingest.parse.pdf import alike, draw, find, is_doubtful, missing
from ingest.sandbox import Sandbox
from tests.ingest.documents import DATA, at, drawn, parse, read, whole

PAGED = DATA / "zh-toc-cid-font.pdf"


def marked(png: bytes) -> int:
    """How many pixels have the mark's hue."""
    picture = Image.open(BytesIO(png)).convert("RGB")
    return sum(count for count, (r, g, b) in picture.getcolors(1 << 24) if r > b + 60 and g > b + 60)


def test_a_passage_is_marked_on_its_page() -> None:
    with Sandbox(ocr=False) as sandbox:
        text = "".join(segment.text for segment in sandbox.parse(PAGED).segments)
        passage = text.strip()[:40]
        png, pages, top = sandbox.draw(PAGED, 1, passage)
        plain, _, none = sandbox.draw(PAGED, 1, "")
        _, _, elsewhere = sandbox.draw(PAGED, 1, "这些字不在这一页上，也不在别处。")
    assert pages > 0
    assert top is not None
    assert 0 < top < 1
    assert none is elsewhere is None
    assert marked(png) > marked(plain) + 500
    assert Image.open(BytesIO(png)).size == Image.open(BytesIO(plain)).size


@pytest.mark.parametrize("number", [0, 10_000])
def test_a_missing_page_is_an_error_that_names_it(number: int) -> None:
    with pytest.raises(Unreadable, match=rf"pages, not {number}"):
        draw(PAGED, number, "")


def test_the_child_reports_a_file_that_is_no_pdf_or_is_locked() -> None:
    with Sandbox(ocr=False) as sandbox:
        for name in ("zh-demo.xlsx", "password-aes-256.pdf"):
            with pytest.raises(Unreadable, match=name):
                sandbox.draw(DATA / name, 1, "x")


@given(st.text(max_size=60), st.text(max_size=30), st.integers(0, 60))
def test_the_span_found_is_the_passage_or_an_end_of_it(page: str, part: str, at: int) -> None:
    whole = page[:at] + part + page[at:]
    start, end = find(whole, part)
    assert whole[start:end] == part


@pytest.mark.parametrize(
    ("page", "passage", "found"),
    [
        ("abcdefghij", "efghijklmnop", "efghij"),
        ("klmnopqrst", "efghijklmnop", "klmnop"),
        ("abcdefgh", "ghijkl", ""),
        ("", "x", ""),
        ("x", "", ""),
    ],
)
def test_a_passage_over_two_pages_is_marked_on_both(page: str, passage: str, found: str) -> None:
    start, end = find(page, passage)
    assert page[start:end] == found


def test_columns_are_read_one_after_the_other(tmp_path: Path) -> None:
    """Also if the page draws them line by line across; a title over both stands before them."""
    left = [f"左栏第{at}行文字写到栏的右边缘为止" for at in "一二三四五六"]
    right = [f"右栏第{at}行文字写到栏的右边缘为止" for at in "一二三四五六"]
    page = at(150, 760, "智能电表安装规程与验收办法的全文在这里", 14)
    for row, pair in enumerate(zip(left, right, strict=True)):
        page += at(60, 720 - 18 * row, pair[0], 10) + at(330, 720 - 18 * row, pair[1], 10)
    text, _ = read(drawn(tmp_path / "a.pdf", [page]))
    assert text.replace("\n", "").endswith("".join([*left, *right]))


def test_running_lines_are_left_out_and_listed(tmp_path: Path) -> None:
    """Headers and page numbers; the words of a sentence that crosses the page stay together."""
    body = [
        "员工离职时，所在部门应当在其离职之日起",
        "两个工作日内通知信息中心，注销全部账号，并且",
        "收回门禁卡。",
    ]
    pages = [
        at(60, 770, "集团信息安全管理办法", 9) + at(280, 30, f"第 {number} 页 共 3 页", 9)
        + at(60, 740, f"第{number}条　本条所指的部门，由信息中心和安全部门商定。", 12) * (number == 1)
        + at(60, 700, line, 12)
        for number, line in enumerate(body, 1)
    ]  # fmt: skip
    parsed = parse(drawn(tmp_path / "a.pdf", pages), ocr=False)
    text, marks = whole(parsed)
    assert "".join(body) in text
    assert "管理办法" not in text
    assert "共" not in text
    assert [text[m.start :][:3] for m in marks if m.kind == "page"] == ["第1条", "两个工", "收回门"]
    assert "集团信息安全管理办法" in str(parsed.report.warnings)


def test_numbers_of_running_lines_may_be_spaced(tmp_path: Path) -> None:
    pages = [at(60, 700, f"Text of {word}.") + at(60, 30, f"Page {n}", 9) for word, n in
             (("one", "1 1"), ("two", "12"))]  # fmt: skip
    text, _ = read(drawn(tmp_path / "a.pdf", pages))
    assert "Text of one." in text


def test_a_hyphen_stays_unless_the_word_is_known_without_it(tmp_path: Path) -> None:
    lines = ["We train the encoder of a simple and fast dual-", "encoder on pairs of questions, which all re-",
             "trieve passages that can retrieve an answer."]  # fmt: skip
    page = "".join(at(60, 700 - 14 * row, line, 12) for row, line in enumerate(lines))
    text, _ = read(drawn(tmp_path / "a.pdf", [page]))
    assert "dual-encoder" in text
    assert "all retrieve passages" in text


def test_pages_that_are_nearly_the_same_keep_their_text(tmp_path: Path) -> None:
    path = drawn(tmp_path / "a.pdf", [at(60, 740, f"Receipt {n}") + at(60, 700, "Paid") for n in (1, 2)])
    text, _ = read(path)
    assert text.count("Paid") == 2


def test_headings_by_size_and_number(tmp_path: Path) -> None:
    page = at(200, 760, "设备手册", 20)
    for row, (size, line) in enumerate(
        [(15, "安全说明"), (10, "使用前请阅读本手册的全部内容，并且保存到以后。"), (10, "3.2 更换滤芯"),
         (10, "先关闭电源，再打开前盖，取出旧的滤芯。"), (10, "3.2 毫米的间隙是允许的，更大的间隙需要维修。")]
    ):  # fmt: skip
        page += at(60, 720 - 30 * row, line, size)
    text, marks = read(drawn(tmp_path / "a.pdf", [page]))
    found = [(m.label, m.level) for m in marks if m.kind == "heading"]
    assert [label for label, _ in found] == ["设备手册", "安全说明", "3.2 更换滤芯"]
    assert found[0][1] < found[1][1] < found[2][1]
    assert all(text[m.start :].startswith(m.label) for m in marks if m.kind == "heading")


def test_radicals_become_characters(tmp_path: Path) -> None:
    text, _ = read(drawn(tmp_path / "a.pdf", [at(60, 700, "\u2f00\u2ea0\u2ed3\u2ecb\u2ed4")]))
    assert text == "一民长车门"


def test_a_footnote_is_not_in_the_sentence(tmp_path: Path) -> None:
    line = "设备应当每季度检查一次，检查的结果由负责人签字以后，在三个工作日内报送到"
    first = "".join(at(60, 740 - 18 * row, line, 12) for row in range(3)) + at(
        60, 60, "① 见附录的检查表。", 8
    )
    text, _ = read(drawn(tmp_path / "a.pdf", [first, at(60, 740, "安全部门。", 12)]))
    assert "报送到安全部门。" in text
    assert "\n\n① 见附录的检查表。" in text


@pytest.mark.parametrize(
    ("text", "doubtful"),
    [
        ("本公司董事会保证季度报告内容的真实、准确、完整，不存在虚假记载。", False),
        ("本公司董事會保證季度報告內容的真實、準確、完整，不存在虛假記載。", False),
        ("".join(chr(0x4E00 + 97 * at) for at in range(120)), True),
        ("The quick brown fox jumps over the lazy dog and runs away from all of the others.", False),
        ("Wkh txlfn eurzq ira mxpsv ryhu wkh odcb grj dqg uxqv dzdb iurp doo ri wkh rwkhuv.", True),
    ],
)
def test_a_wrong_character_map_is_noticed(text: str, doubtful: bool) -> None:
    assert is_doubtful(text) == doubtful


def test_two_readings_of_a_page_are_compared() -> None:
    assert alike("本公司董事会保证季度报告", "本公司董事会 保正季度报告")
    assert not alike("本公司董事会保证季度报告", "乘丝乶丸乞亏亐今互什")


def test_a_missing_character_is_seen() -> None:
    assert missing("营业收入 12.5", "收入 营业 1.5")
    assert not missing("营业收入 ........ 12.5", "| 营业收入 | 12.5 |")


def test_values_of_a_form_stand_beside_their_labels() -> None:
    text, _ = read(DATA / "filled-form-and-notes.pdf")
    for line in ("工号： E20240815", "岗位： Test Engineer", "Reviewer note: start date is 2024-09-02"):
        assert line in text.split("\n")


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_a_turned_page_reads_the_same(tmp_path: Path, turn: int) -> None:
    import pypdfium2

    lines = ["Alpha 1 beta 2", "gamma delta 3", "epsilon 4 zeta"]
    path = drawn(
        tmp_path / "a.pdf", ["".join(at(60, 700 - 40 * row, line) for row, line in enumerate(lines))]
    )
    with pypdfium2.PdfDocument(path) as document:
        document[0].set_rotation(turn)
        document.save(tmp_path / "b.pdf")
    assert read(tmp_path / "b.pdf")[0] == read(path)[0]


def test_a_watermark_is_left_out(tmp_path: Path) -> None:
    stamp = "BT /F1 30 Tf 0.7 0.7 -0.7 0.7 150 200 Tm (CONFIDENTIAL) Tj ET\n"
    pages = [at(60, 700, f"Chapter {word} has a text of its own.") + stamp for word in ("one", "two")]
    parsed = parse(drawn(tmp_path / "a.pdf", pages), ocr=False)
    text, _ = whole(parsed)
    assert text == "Chapter one has a text of its own.\n\nChapter two has a text of its own."
    assert "CONFIDENTIAL" in str(parsed.report.warnings)


@pytest.mark.parametrize(
    ("matrix", "step"), [("0 1 -1 0", (1, 0)), ("0 -1 1 0", (-1, 0)), ("-1 0 0 -1", (0, 1))]
)
def test_text_drawn_in_another_direction_reads_the_same(
    tmp_path: Path, matrix: str, step: tuple[int, int]
) -> None:
    lines = ["Alpha 1 beta 2", "gamma delta 3", "epsilon 4 zeta"]
    page = "".join(
        f"BT /F1 12 Tf {matrix} {300 + 40 * row * step[0]} {300 + 40 * row * step[1]} Tm ({line}) Tj ET\n"
        for row, line in enumerate(lines)
    )
    upright = read(
        drawn(tmp_path / "a.pdf", [at(60, 700, lines[0]) + at(60, 660, lines[1]) + at(60, 620, lines[2])])
    )
    assert read(drawn(tmp_path / "b.pdf", [page])) == upright
