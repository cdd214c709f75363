"""E-mail: text, attachments, forwarded messages; bounded in depth and number."""

from email.message import EmailMessage
from pathlib import Path

from ingest.parse import MOST_INNER
from ingest.sandbox import Sandbox
from tests.ingest.documents import DATA, kinds, paragraph, parse, whole, word


def message(subject: str, body: str = "正文") -> EmailMessage:
    mail = EmailMessage()
    mail["Subject"], mail["From"] = subject, "张三 <a@b.cn>"
    mail.set_content(body)
    return mail


def test_plain_text_in_its_charset_and_an_attachment_of_no_use(tmp_path: Path) -> None:
    raw = (
        b"From: =?utf-8?B?5byg5LiJ?= <a@b.cn>\r\nSubject: =?gbk?B?u+HS6c2o1qo=?=\r\n"
        b"Date: Mon, 1 Jan 2024 00:00:00 +0800\r\nMIME-Version: 1.0\r\n"
        b'Content-Type: multipart/mixed; boundary="x"\r\n\r\n--x\r\n'
        b"Content-Type: text/plain; charset=gbk\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
    ) + "明天开会。\r\n".encode("gbk")
    raw += b'--x\r\nContent-Type: application/zip; name="a.zip"\r\n'
    raw += b'Content-Disposition: attachment; filename="a.zip"\r\n\r\nPK\3\4\r\n--x--\r\n'
    path = tmp_path / "a.eml"
    path.write_bytes(raw)
    parsed = parse(path)
    text, _ = whole(parsed)
    assert parsed.title == "会议通知"
    assert text.startswith("会议通知\n\nFrom: 张三 <a@b.cn>\nDate:")
    assert "\n\n明天开会。" in text
    assert [warning for warning in parsed.report.warnings if "a.zip" in warning]


def test_attachments_and_forwarded_messages_are_read_under_their_names(tmp_path: Path) -> None:
    mail, forwarded = message("巡检"), message("预算", "批准六万八千元")
    forwarded.add_attachment("负责人：刘洋".encode("gbk"), "text", "plain", filename="../名单.txt")
    mail.add_attachment(forwarded)
    table = word(tmp_path / "a.docx", paragraph("第一章 总则") + paragraph("备件十个")).read_bytes()
    mail.add_attachment(table, "application", "octet-stream", filename="备件.docx")
    path = tmp_path / "a.eml"
    path.write_bytes(bytes(mail))
    parsed = parse(path, ocr=False)
    text, marks = whole(parsed)
    places = [text.index(word) for word in ("正文", "六万八千", "刘洋", "备件十个")]
    assert places == sorted(places)
    assert kinds(marks, "heading") == ["巡检", "预算", "_名单.txt", "备件.docx", "第一章 总则"]
    assert [m.level for m in marks] == [1, 2, 2, 2, 4]
    assert all(text[m.start :].startswith(m.label) for m in marks)
    assert parsed.report.warnings == ()


def test_nested_messages_and_many_attachments_end_in_one_line_each(tmp_path: Path) -> None:
    head = b"Subject: s\r\nMIME-Version: 1.0\r\n"
    nested = head + b"Content-Type: text/plain\r\n\r\ndeep\r\n"
    for at in range(100):
        line = f"b{at}".encode()
        nested = (
            head + b'Content-Type: multipart/mixed; boundary="' + line + b'"\r\n\r\n--' + line
            + b"\r\nContent-Type: message/rfc822\r\n\r\n" + nested + b"\r\n--" + line + b"--\r\n"
        )  # fmt: skip
    (tmp_path / "nested.eml").write_bytes(nested)
    part = (
        b'--x\r\nContent-Type: text/plain\r\nContent-Disposition: attachment; filename="a.txt"\r\n\r\nhi\r\n'
    )
    many = head + b'Content-Type: multipart/mixed; boundary="x"\r\n\r\n' + part * 10_000 + b"--x--\r\n"
    (tmp_path / "many.eml").write_bytes(many)
    with Sandbox(ocr=False) as sandbox:
        deep = sandbox.parse(tmp_path / "nested.eml")
        assert deep.report.warnings == ("messages inside 10 others are not read",)
        wide = sandbox.parse(tmp_path / "many.eml")
        text, _ = whole(wide)
        assert text.count("hi") == MOST_INNER
        assert wide.report.warnings == (f"only the first {MOST_INNER} documents inside it are read",)


def test_a_mail_that_is_one_attachment(tmp_path: Path) -> None:
    raw = b"Subject: s\r\nContent-Type: application/octet-stream; name=a.csv\r\n\r\na,b\r\n1,2\r\n"
    (tmp_path / "a.eml").write_bytes(raw)
    assert whole(parse(tmp_path / "a.eml"))[0].endswith("| a | b |\n| --- | --- |\n| 1 | 2 |")


def test_outlook_messages_keep_subject_sender_and_attachments(tmp_path: Path) -> None:
    content = (DATA / "attachment.msg").read_bytes()
    parsed = parse(DATA / "attachment.msg")
    text, marks = whole(parsed)
    assert parsed.title == "Email with Attachment"
    assert 'From: "Alice Example" <alice@example.com>' in text
    assert "some dummy content" in text
    assert kinds(marks, "heading") == ["Email with Attachment", "test.txt", "report.pdf"]
    (warning,) = parsed.report.warnings  # it is not a PDF
    assert warning.startswith("report.pdf is damaged")
    at = content.index(b"This is a test attachment file.")
    path = tmp_path / "gbk.msg"
    path.write_bytes(content[:at] + "负责人：刘洋，电话一三九".encode("gbk") + content[at + 24 :])
    assert "负责人：刘洋，电话一三九" in whole(parse(path))[0]
