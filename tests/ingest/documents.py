"""Small documents made of literals, the committed ones, and what parsing makes of them."""

import zipfile
from pathlib import Path

from ingest.parse import DocumentParser
from ingest.types import Mark, ParsedFile

DATA = Path(__file__).parents[1] / "data" / "documents"

W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
A = 'xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main"'
P = 'xmlns:p="http://schemas.openxmlformats.org/presentationml/2006/main"'
R = 'xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships"'
RELATION = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"


def package(path: Path, parts: dict[str, str | bytes]) -> Path:
    """A zip container of these parts."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return path


def relations(targets: dict[str, tuple[str, str]]) -> str:
    """A .rels part: id -> (kind, target)."""
    rows = "".join(
        f'<Relationship Id="{key}" Type="{RELATION}/{kind}" Target="{target}"/>'
        for key, (kind, target) in targets.items()
    )
    return f"<Relationships>{rows}</Relationships>"


def word(path: Path, body: str, **parts: str) -> Path:
    """A .docx; `parts` are e.g. styles="<w:style .../>"."""
    kinds = {f"r{at}": (kind, f"{kind}.xml") for at, kind in enumerate(parts)}
    return package(
        path,
        {
            "word/document.xml": f"<w:document {W} {R}><w:body>{body}</w:body></w:document>",
            "word/_rels/document.xml.rels": relations(kinds),
            **{f"word/{kind}.xml": f"<w:{kind} {W}>{xml}</w:{kind}>" for kind, xml in parts.items()},
        },
    )


S = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'


def workbook(path: Path, *sheets: str, styles: str = "", states: tuple[str, ...] = ()) -> Path:
    """A .xlsx; each sheet is the XML inside `<worksheet>`, its name `表1`, `表2` …; `states` are theirs."""
    names = [f"s{at}" for at in range(1, len(sheets) + 1)]
    parts = {name: ("worksheet", f"worksheets/{name}.xml") for name in names}
    states = states + ("visible",) * len(sheets)
    listed = "".join(
        f'<sheet name="表{at}" sheetId="{at}" state="{state}" r:id="s{at}"/>'
        for at, state in zip(range(1, len(sheets) + 1), states, strict=False)
    )
    return package(
        path,
        {
            "_rels/.rels": relations({"r": ("officeDocument", "xl/workbook.xml")}),
            "xl/_rels/workbook.xml.rels": relations({**parts, "t": ("styles", "styles.xml")}),
            "xl/workbook.xml": f"<workbook {S} {R}><sheets>{listed}</sheets></workbook>",
            "xl/styles.xml": f"<styleSheet {S}>{styles}</styleSheet>",
            **{
                f"xl/worksheets/{name}.xml": f"<worksheet {S}>{xml}</worksheet>"
                for name, xml in zip(names, sheets, strict=True)
            },
        },
    )


def rows_xml(rows: list[list[object]], *, first: int = 1) -> str:
    """`<sheetData>` of texts and numbers; None is no cell, and a string that begins with < is XML."""
    lines = []
    for number, row in enumerate(rows, first):
        cells = []
        for at, value in enumerate(row):
            place = f'r="{chr(65 + at)}{number}"'
            if isinstance(value, str) and value.startswith("<"):
                cells.append(value.replace("<c", f"<c {place}", 1))
            elif isinstance(value, str):
                cells.append(f'<c {place} t="inlineStr"><is><t>{value}</t></is></c>')
            elif value is not None:
                cells.append(f"<c {place}><v>{value}</v></c>")
        lines.append(f'<row r="{number}">{"".join(cells)}</row>')
    return f"<sheetData>{''.join(lines)}</sheetData>"


def paragraph(text: str, properties: str = "") -> str:
    return f"<w:p><w:pPr>{properties}</w:pPr><w:r><w:t>{text}</w:t></w:r></w:p>"


def pdf(path: Path, pages: list[list[str]]) -> Path:
    """A PDF of lines, one list a page."""
    return drawn(
        path, ["".join(at(72, 750 - 20 * row, line) for row, line in enumerate(lines)) for lines in pages]
    )


def at(x: float, y: float, text: str, size: float = 12) -> str:
    """The operators that show a text, in a Chinese font if it is not ASCII."""
    shown, font = f"({text})", "F1"
    if not text.isascii():
        shown, font = f"<{text.encode('utf-16-be').hex()}>", "F2"
    return f"BT /{font} {size} Tf {x} {y} Td {shown} Tj ET\n"


def rules(xs: list[float], ys: list[float]) -> str:
    """The operators that draw a grid."""
    across = "".join(f"{xs[0]} {y} m {xs[-1]} {y} l S\n" for y in ys)
    return across + "".join(f"{x} {ys[0]} m {x} {ys[-1]} l S\n" for x in xs)


def drawn(path: Path, pages: list[str]) -> Path:
    """A PDF of operators, one string a page, on paper of 612 by 792 points."""
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", "", _FONTS]
    kids = []
    for stream in pages:
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
        kids.append(f"{len(objects) + 1} 0 R")
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {len(objects)} 0 R "
            "/Resources 3 0 R >>"
        )
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} >>"
    out = bytearray(b"%PDF-1.4\n")
    places = []
    for number, content in enumerate(objects, 1):
        places.append(len(out))
        out += f"{number} 0 obj\n{content}\nendobj\n".encode("latin-1")
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    out += (
        f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}"
        f"trailer << /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{len(out)}\n%%EOF"
    ).encode()
    path.write_bytes(out)
    return path


_FONTS = (
    "<< /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> "
    "/F2 << /Type /Font /Subtype /Type0 /BaseFont /STSong-Light /Encoding /UniGB-UCS2-H "
    "/DescendantFonts [<< /Type /Font /Subtype /CIDFontType0 /BaseFont /STSong-Light /DW 1000 "
    "/CIDSystemInfo << /Registry (Adobe) /Ordering (GB1) /Supplement 2 >> >>] >> >> >>"
)


def parse(path: Path, *, ocr: bool = True) -> ParsedFile:
    return DocumentParser(ocr).parse(path)


def whole(parsed: ParsedFile) -> tuple[str, list[Mark]]:
    """The text and the marks with offsets in it."""
    text, marks = "", []
    for segment in parsed.segments:
        marks += [Mark(len(text) + m.start, m.kind, m.label, m.level) for m in segment.marks]
        text += segment.text
    return text, marks


def read(path: Path, content: str | bytes | None = None) -> tuple[str, list[Mark]]:
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return whole(parse(path, ocr=False))


def kinds(marks: list[Mark], kind: str) -> list[str]:
    return [m.label for m in marks if m.kind == kind]
