"""Record what the program does and says, and compare two records: a refactoring changes neither.

    python benchmarks/unchanged.py record TREE FOLDER [--only ask,messages] [--sets ../shared/eval]
    python benchmarks/unchanged.py compare BEFORE AFTER [--only ask,messages]

This file and tests/profile_files.py are temporary: they leave with the refactoring.

`record` runs the code of TREE in processes of their own, through its public commands alone, and
writes FOLDER/PART.json for each part:

    ask         every question of corpora/*/questions.jsonl with --json; each sixth in English as well
    commands    other commands and mistakes: exit code, output, errors, in both languages
    help        docs/cli.md as generated, and --help of every command, in both languages
    http        the OpenAPI document, and answers of a server in both languages
    messages    each text in both languages in the product's source, fields as {}, with its count
    english     a list of what is probably shown in English only; for a person to look through
    profile     the files in which a function runs (tests/profile_files.py)
    retrieval   the table of benchmarks/retrieval.py at --limit 250; twenty minutes of a core

`compare` prints what differs and exits with 1 if something does. `english` and `profile` are printed
and may differ. Messages are read from the code or, if there are any, from gettext's .po files.
The ids, probabilities and losses of models are kept by golden tests: tests/rag/chatglm, tests/finetune.
"""

import argparse
import ast
import difflib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

WORK = Path(tempfile.gettempdir(), "chatglm-rag-unchanged")  # fixed: documents' ids come from their paths
LOCALES = {"zh": "zh_CN.UTF-8", "en": "en_US.UTF-8"}
PACKAGES = ("finetune", "ingest", "rag", "server")
PORT = 18765
DRIVER = """
import contextlib, io, json, sys
from rag.cli.app import main
real, lines = sys.stdout, sys.stdin.readlines()
for line in lines:
    words, code, out, err = json.loads(line), 0, io.StringIO(), io.StringIO()
    sys.argv, sys.stdin = ["rag", *words], io.StringIO("")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code
        except Exception as error:
            code = repr(error)
    print(json.dumps([code, out.getvalue(), err.getvalue()]), file=real, flush=True)
"""  # many commands in one process, of which each line of standard input is one
GENERATE = "import runpy, sys; print(runpy.run_path('docs/generate.py')['rendered'](sys.argv[1]))"
ZH, EN = ("试用期最长不得超过几个月？", "How long must an online shop announce its closing in advance?")
COMMANDS = (
    "kb list|kb info --kb demo|kb info --json --kb demo|kb verify --kb demo|kb verify --kb none"
    f"|ask --kb demo {ZH}|ask --kb demo --markdown {ZH}|ask --kb demo -q {ZH}|ask|ask --kb none x"
    "|ask --kb demo 2026年世界杯决赛在哪座城市举行？|ask --kb demo --markdown 谁写了红楼梦？"
    "|ask --kb .x y|ask --kb ftp://a/b y|ask --kb milvus://a:b@c/d y|ask --kb demo --top-p 2 x"
    "|ask --kb demo --model WORK/nothing x|ask --kb WORK/section x|ask --kb WORK/key x"
    f"|ask --kb WORK/type x|search --kb demo -n 3 {ZH}|search --kb demo --json {ZH}|search -n 0 x"
    "|chat --kb none|kb remove nothing.md --kb demo|kb snapshot WORK/copy --kb demo"
    "|kb restore WORK/copy --kb b|kb restore WORK/none --kb c|kb rebuild --kb none|ingest WORK/none|ingest --workers 2 WORK/docs"
    "|ingest --kb demo --json WORK/docs/laws/劳动合同法.md|ingest --kb messy --quiet TREE/tests/data/documents"
    "|kb info --kb messy|eval WORK/none|eval TREE/tests/data/eval-mini|quantize WORK/none WORK/q"
    "|quantize WORK/none WORK/q --bits 5|export WORK/none WORK/e|fill --model WORK/none x|plan --nothing"
    "|finetune check WORK/none|finetune check TREE/tests/data/alpaca/messy_bad_fields.json"
    "|finetune check TREE/tests/data/alpaca/messy_broken_lines.jsonl"
    "|finetune check TREE/tests/data/alpaca/messy_truncated.json"
    "|finetune check TREE/tests/data/alpaca/sharegpt_medical.jsonl"
    "|finetune check TREE/tests/data/alpaca/messy_gbk.json|finetune train|finetune nothing|nothing"
    "|finetune train TREE/tests/data/alpaca/alpaca_zh.json --model WORK/none --out WORK/a"
    "|finetune train TREE/tests/data/alpaca/alpaca_zh.json --model WORK/none --out WORK/a --quant nf4"
    "|finetune train x --model y --out WORK/a --fp16 --bf16|finetune train x --model y --out z --lora-rank 0"
    "|finetune merge WORK/none WORK/none WORK/m|finetune eval WORK/none --model WORK/none"
    "|finetune domain WORK/docs --model WORK/none --out WORK/d"
    "|finetune grounded none WORK/g|finetune prepare WORK/none|finetune export WORK/none WORK/x"
    "|keys list|keys create a --scope bogus|keys revoke nobody|trace nothing|serve --port none"
    "|serve --host 0.0.0.0|serve --demo --host 0.0.0.0|serve --slots 0|mcp --nothing"
)
REQUESTS = (
    ("GET", "/knowledge-bases", None), ("GET", "/knowledge-bases/none", None),
    ("GET", "/knowledge-bases/demo/documents", None), ("GET", "/nothing", None),
    ("POST", "/knowledge-bases", {"name": "demo"}), ("POST", "/knowledge-bases", {"name": "../a"}),
    ("POST", "/ask", {"question": ZH, "knowledge_base": "demo"}),
    ("POST", "/ask", {"question": EN, "knowledge_base": "demo"}),
    ("POST", "/ask", {"question": ZH, "knowledge_base": "none"}),
    ("POST", "/ask", {"question": "", "knowledge_base": "demo"}), ("POST", "/ask", {}),
    ("POST", "/search", {"question": ZH, "knowledge_base": "demo"}), ("GET", "/traces/none", None),
    ("GET", "/jobs/none", None), ("GET", "/v1/models", None), ("GET", "/v1/models/none", None),
    ("POST", "/v1/chat/completions", {"model": "none", "messages": []}),
    ("POST", "/v1/embeddings", {"model": "none", "input": "x"}), ("GET", "/readyz", None),
)  # fmt: skip


def python(tree: Path, *words: str, locale: str = "en", stdin: str = "") -> str:
    """What TREE's code writes to standard output."""
    environment = environ(tree, locale)
    done = subprocess.run(
        [sys.executable, *words], cwd=tree, env=environment, input=stdin, text=True, stdout=-1
    )
    if done.returncode:
        raise SystemExit(f"{words[-1][:60]} ended with {done.returncode}")
    return done.stdout


def environ(tree: Path, locale: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    homes = {f"XDG_{name}_HOME": str(WORK / name.lower()) for name in ("DATA", "CACHE")}
    fixed = {"LC_ALL": LOCALES[locale], "COLUMNS": "100", "PYTHONUTF8": "1", "OMP_NUM_THREADS": "2"}
    return kept | homes | fixed | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}


def rag(tree: Path, locale: str, commands: list[list[str]]) -> list[Any]:
    """Exit code, output and errors of each command."""
    lines = "".join(f"{json.dumps(words)}\n" for words in commands)
    found = python(tree, "-c", DRIVER, locale=locale, stdin=lines).splitlines()
    return [json.loads(line) for line in found]


def stable(part: Any) -> Any:
    """Without lines about time taken."""
    lines = re.compile(r".*(Latency|延迟|latency|/s\b|块/秒).*\n?")
    return lines.sub("", part) if isinstance(part, str) and part[:1] != "{" else part


def prepare(tree: Path) -> None:
    """The knowledge base `demo` from the corpora, and folders whose rag.toml is wrong."""
    if (WORK / "data").exists():
        return
    for corpus in ("laws", "rust-book"):
        shutil.copytree(tree / "corpora" / corpus / "docs", WORK / "docs" / corpus)
    python(tree, "-m", "rag", "ingest", str(WORK / "docs"), "--kb", "demo", "--quiet")
    for name, text in (
        ("section", "[retrive]\nlimit = 1\n"),
        ("key", "[retrieve]\npassage = 1\n"),
        ("type", '[retrieve]\npassages = "x"\n'),
    ):
        shutil.copytree(WORK / "data/chatglm-rag/demo", WORK / name)
        (WORK / name / "rag.toml").write_text(text, "utf-8")


def ask(tree: Path) -> Any:
    prepare(tree)
    lines = [
        json.loads(line)
        for path in sorted(tree.glob("corpora/*/questions.jsonl"))
        for line in path.read_text("utf-8").splitlines()
    ]
    found: dict[str, Any] = {}
    for locale, step in (("zh", 1), ("en", 6)):
        asked = lines[::step]
        commands = [["ask", "--kb", "demo", "--json", each["question"]] for each in asked]
        for each, (code, out, err) in zip(asked, rag(tree, locale, commands), strict=True):
            found[f"{each['id']} {locale}"] = [code, json.loads(out) if out else "", err]
    return found


def commands(tree: Path) -> Any:
    prepare(tree)
    typed = [words.split(" ") for words in COMMANDS.split("|")]
    real = [[w.replace("WORK", str(WORK)).replace("TREE", str(tree)) for w in ws] for ws in typed]
    return {
        f"{' '.join(words)} {locale}": [stable(part) for part in each]
        for locale in LOCALES
        for words, each in zip(typed, rag(tree, locale, real), strict=True)
    }


def help_(tree: Path) -> Any:
    found: dict[str, Any] = {}
    for locale, name in LOCALES.items():
        page = python(tree, "-c", GENERATE, name)
        found[f"docs/cli.md {locale}"] = page
        words = [[*line[3:].split()[1:], "--help"] for line in page.split("\n") if line[:3] == "## "]
        for each, (code, out, err) in zip(words, rag(tree, locale, words), strict=True):
            found[f"{' '.join(each)} {locale}"] = [code, out, err]
    return found


def http(tree: Path) -> Any:
    prepare(tree)
    command = [sys.executable, "-m", "rag", "serve", "--port", str(PORT)]
    with open(WORK / "server.log", "w") as log:
        server = subprocess.Popen(command, cwd=tree, env=environ(tree, "en"), stdout=log, stderr=log)
    try:
        for _ in range(600):
            time.sleep(0.5)
            try:
                found: dict[str, Any] = {"openapi": fetch("GET", "/openapi.json", None, "en")}
                break
            except OSError:
                assert server.poll() is None, (WORK / "server.log").read_text()
        for method, path, body in REQUESTS:
            for language in LOCALES:
                name = f"{method} {path} {json.dumps(body, ensure_ascii=False)} {language}"
                found[name] = fetch(method, path, body, language)
        return found
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)


def fetch(method: str, path: str, body: Any, language: str) -> Any:
    sent = urllib.request.Request(
        f"http://127.0.0.1:{PORT}{path}", json.dumps(body).encode() if body is not None else None,
        {"accept-language": language, "content-type": "application/json"}, method=method,
    )  # fmt: skip
    try:
        answer = urllib.request.urlopen(sent, timeout=120)
    except urllib.error.HTTPError as error:
        answer = error
    text = answer.read().decode()
    text = re.sub(r'"(trace|created|id|seconds|timings?)": ?("[0-9a-f-]{20,}"|[\d.]+)', r'"\1":0', text)
    return [answer.status, json.loads(text)]


def retrieval(tree: Path, sets: Path) -> Any:
    words = [str(sets), "--limit", "250", "--cache", str(WORK / "sets")]
    return rows(python(tree, "benchmarks/retrieval.py", *words))


def rows(table: str) -> dict[str, str]:
    """The rows of Markdown tables, by their first two cells."""
    found = [line for line in table.splitlines() if line]
    return {"|".join(line.split("|")[1:3]).strip(): line for line in found}


def profile(tree: Path) -> Any:
    script = str(Path(__file__).parents[1] / "tests/profile_files.py")
    return json.loads(python(tree, script, str(tree), str(WORK / "profile")))


HAN = re.compile("[\u3400-\u9fff\u3000-\u303f\uff00-\uffef]")
FIELD = re.compile(r"\{\{|\}\}|\{[A-Za-z_0-9][^{}]*\}|%\(\w+\)[sd]")
NO_MESSAGE = re.compile(r"^(content|han|‘’|,!:;\?|\|)$|\\s")  # keys, characters, patterns
SHOWN = re.compile(r"[A-Za-z][\w'’-]*,? [a-z][\w'’-]*")  # two words at least
HIDDEN = re.compile(r"^\s*(SELECT|INSERT|UPDATE|DELETE|CREATE|PRAGMA|WHERE|BEGIN|DROP|WITH)\b|\\[sdw]")


def texts(node: ast.AST) -> list[str]:
    """The texts that an expression may be, each {} standing for a value."""
    match node:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.JoinedStr(values=values):
            return ["".join(v.value if isinstance(v, ast.Constant) else "{}" for v in values)]
        case ast.IfExp(body=one, orelse=other):
            return texts(one) + texts(other)
        case ast.BinOp(left=left, op=ast.Add(), right=right) if texts(left) or texts(right):
            return [a + b for a in texts(left) or ["{}"] for b in texts(right) or ["{}"]]
        case ast.Tuple(elts=[one]):
            return texts(one)
    return []


def couples(node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    """The expressions in a node that may be a text in English and the same in Chinese."""
    several: list[Any] = []
    if isinstance(node, ast.Call):
        named = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
        for name, value in named.items():
            first = named.get(name[:-3]) or named.get("en") or named.get("message")
            if name == "zh" or name.endswith("_zh"):
                yield from [(en, value) for en in [first or (node.args or [None])[0]] if en]
        several = node.args
    elif isinstance(node, ast.Tuple | ast.List):
        several = node.elts
    elif isinstance(node, ast.Dict):
        yield from ((key, value) for key, value in zip(node.keys, node.values, strict=True) if key)
    for body in (getattr(node, "body", None), getattr(node, "orelse", None)):
        if isinstance(body, list):  # en = "..." and in the next line zh = "..."
            pairs = pairwise(body)
            both = [(a, b) for a, b in pairs if isinstance(a, ast.Assign) and isinstance(b, ast.Assign)]
            yield from ((a.value, b.value) for a, b in both if "zh" in ast.unparse(b.targets[0]))
    yield from pairwise(several)


def of_code(tree: Path) -> tuple[Counter[tuple[str, str]], set[str]]:
    """The messages in the code in both languages, and those in English alone."""
    pairs: Counter[tuple[str, str]] = Counter()
    english: set[str] = set()
    for path in (path for package in PACKAGES for path in (tree / package).rglob("*.py")):
        module = ast.parse(path.read_text("utf-8"))
        paired: set[ast.AST] = set()
        for node in ast.walk(module):
            for one, other in couples(node):
                en, zh = texts(one), texts(other)
                is_text = any(map(HAN.search, zh)) and not any(map(HAN.search, en))
                if en and is_text and not any(map(NO_MESSAGE.search, en)):
                    size = max(len(en), len(zh))
                    pairs.update((en[i % len(en)], zh[i % len(zh)]) for i in range(size))
                    paired |= {*ast.walk(one), *ast.walk(other)}
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                paired.add(node.value)  # a docstring
        pairs.pop(("", ""), None)
        for node in ast.walk(module):
            if node not in paired:
                found = [text for text in texts(node) if SHOWN.search(text)]
                english.update(text for text in found if not HIDDEN.search(text))
                paired |= set(ast.walk(node)) if texts(node) else set()
    return pairs, english


def of_catalogs(tree: Path) -> set[tuple[str, str]]:
    """The messages in .po files; fields are {}, whatever their names and order."""
    found = set()
    for path in (path for package in PACKAGES for path in (tree / package).rglob("*.po")):
        from babel.messages.pofile import read_po

        with path.open("rb") as file:
            for message in read_po(file):
                several = isinstance(message.id, tuple)
                for en in message.id if several else [message.id]:
                    zh = message.string[0] if several else message.string
                    if en and zh:
                        found.add((plain(en), plain(str(zh))))
    return found


def plain(text: str) -> str:
    return FIELD.sub(lambda field: {"{{": "{", "}}": "}"}.get(field[0], "{}"), text)


def messages(tree: Path) -> Any:
    pairs = of_code(tree)[0]
    counted = {(*pair, 0) for pair in of_catalogs(tree) - set(pairs)}
    return sorted(counted | {(*pair, count) for pair, count in pairs.items()})


def english(tree: Path) -> Any:
    return sorted(of_code(tree)[1])


PARTS: dict[str, Callable[..., Any]] = {
    "messages": messages, "english": english, "help": help_, "ask": ask, "commands": commands,
    "http": http, "profile": profile, "retrieval": retrieval,
}  # fmt: skip


def record(tree: Path, folder: Path, only: list[str], sets: Path) -> None:
    WORK.mkdir()  # one record at a time
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for part in only:
            began = time.monotonic()
            found = PARTS[part](tree, *([sets] if part == "retrieval" else []))
            text = json.dumps(found, ensure_ascii=False, indent=1)
            text = text.replace(str(tree), "TREE").replace(str(WORK), "WORK")
            text = re.sub(r"\d{4}-\d\d-\d\dT[\d:]+Z", "TIME", text)
            # A store's size differs by a byte or two, and how often it was written by the time taken.
            text = re.sub(r'((?:bytes|sequence)(?:\\?")?: )\d+', r"\g<1>0", text)
            (folder / f"{part}.json").write_text(text + "\n", "utf-8")
            sys.stdout.write(f"{part}: {len(found)} entries, {time.monotonic() - began:.0f} s\n")
            sys.stdout.flush()
    finally:
        shutil.rmtree(WORK)


def compare(before: Path, after: Path, only: list[str]) -> bool:
    """Print what differs; whether nothing does but what may."""
    same = True
    for part in only:
        files = [folder / f"{part}.json" for folder in (before, after)]
        if not all(file.exists() for file in files):
            sys.stdout.write(f"{part}: not recorded\n")
            continue
        old, new = (json.loads(file.read_text("utf-8")) for file in files)
        lines = list(PRINTED.get(part, changes)(old, new))
        sys.stdout.write(f"{part}: {f'{len(lines)} differences' if lines else 'the same'}\n")
        sys.stdout.writelines(f"  {line}\n" for line in lines)
        same = same and (not lines or part in ("english", "profile"))
    return same


def changes(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    for key in [*old, *(key for key in new if key not in old)]:
        if key not in new or key not in old:
            yield f"{'missing' if key in old else 'new'}: {key}"
        elif old[key] != new[key]:
            one, other = (readable(value).splitlines() for value in (old[key], new[key]))
            diff = list(difflib.unified_diff(one, other, lineterm="", n=0))[2:]
            yield "\n    ".join([key, *diff[:40]])


def readable(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1).replace("\\n", "\n")


def changed_messages(old: list[Any], new: list[Any]) -> Iterator[str]:
    """Counts are compared only between two records that were read from code."""
    was, now = ({(en, zh): count for en, zh, count in pairs} for pairs in (old, new))
    gone, come = ([pair for pair in was if pair not in now], [pair for pair in now if pair not in was])
    for en, zh in gone:
        near = [pair for pair in come if pair[0] == en] or [pair for pair in come if pair[1] == zh]
        likely = difflib.get_close_matches(en, [pair[0] for pair in come], 1) if not near else []
        near = near or [pair for pair in come if pair[0] in likely]
        yield "\n    ".join([f"- {en!r} | {zh!r}", *(f"+ {a!r} | {b!r}" for a, b in near[:2])])
        come = [pair for pair in come if pair not in near[:2]]
    yield from (f"+ {en!r} | {zh!r}" for en, zh in come)
    for pair in was.keys() & now.keys():
        if now[pair] and was[pair] and all(now.values()) and was[pair] != now[pair]:
            yield f"{was[pair]} times, now {now[pair]}: {pair[0]!r}"


def changed_lines(old: list[str], new: list[str]) -> Iterator[str]:
    yield from (f"- {text!r}" for text in old if text not in new)
    yield from (f"+ {text!r}" for text in new if text not in old)


def counts(old: dict[str, list[str]], new: dict[str, list[str]]) -> Iterator[str]:
    yield from (f"{use}: {len(files)} files, now {len(new[use])}" for use, files in old.items())


PRINTED = {"messages": changed_messages, "english": changed_lines, "profile": counts}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=["record", "compare"])
    parser.add_argument("first", type=Path, metavar="TREE|BEFORE")
    parser.add_argument("second", type=Path, metavar="FOLDER|AFTER")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between them")
    parser.add_argument("--sets", type=Path, default=Path("../shared/eval"))
    options = parser.parse_args()
    first, second, only = options.first.resolve(), options.second.resolve(), options.only.split(",")
    if options.what == "record":
        record(first, second, only, options.sets)
    else:
        sys.exit(0 if compare(first, second, only) else 1)


if __name__ == "__main__":
    main()
