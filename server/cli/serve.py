"""`rag serve`: the API and the web page."""

from pathlib import Path
from typing import Annotated

import typer

from ingest.errors import UserError
from rag.cli.console import note, out, say
from rag.cli.paths import cache_home
from server.cli import choices

DEMO = Path(__file__).parents[2] / "corpora"


def serve(
    host: choices.Host = "127.0.0.1",
    port: choices.Port = 8765,
    *,
    demo: Annotated[
        bool,
        typer.Option(
            "--demo",
            help=say(
                "Serve the corpora that come with the program, read in at once; your own "
                "knowledge bases stay out of it.",
                "立即导入并展示自带语料；不涉及你自己的知识库。",
            ),
        ),
    ] = False,
    model: choices.Model = "",
    quant: choices.Quant = "auto",
    adapters: choices.Adapters = None,
    embedder: choices.Embedder = None,
    store: choices.StoreUrl = "",
    allow_host: choices.AllowHost = None,
    slots: Annotated[
        int | None,
        typer.Option(
            help=say(
                "Questions worked on at one time; two a core if unset.",
                "同时处理的问题数；默认每核两个。",
            )
        ),
    ] = None,
    queue: Annotated[
        int,
        typer.Option(
            help=say("Questions that may wait; more get 429.", "可排队的问题数；超出返回 429。")
        ),
    ] = 64,
    rate: Annotated[
        int,
        typer.Option(
            help=say(
                "Requests a minute for each key; 0: no limit.", "每个密钥每分钟请求数；0 不限。"
            )
        ),
    ] = 600,
    max_file_mb: Annotated[
        int, typer.Option(help=say("Largest file of an upload.", "上传文件大小上限（MB）。"))
    ] = 200,
    max_files: Annotated[
        int, typer.Option(help=say("Most files of an upload.", "一次上传的文件数上限。"))
    ] = 500,
    ocr: Annotated[
        bool,
        typer.Option(
            help=say("Read pages and images without text.", "识别没有文字层的页面和图片。")
        ),
    ] = True,
) -> None:
    from server.serve import serve as run

    made = choices.options(
        host=host,
        port=port,
        data=choices.demo_data() if demo else None,
        model=model,
        quant=quant,
        adapters=adapters,
        embedders=embedder,
        store=store,
        hosts=tuple(allow_host or ()),
        **({} if slots is None else {"slots": slots}),
        queue=queue,
        rate=rate,
        largest_upload=max_file_mb * 1_000_000,
        most_files=max_files,
        ocr=ocr,
    )
    if demo:
        if not made.on_loopback:
            raise UserError(
                f"--demo is for this machine, and {host} is reached from others; leave --host out",
                zh=f"--demo 只供本机使用，而 {host} 可被其他机器访问；请去掉 --host",
            )
        _demo(made.data)

    def told(address: str) -> None:
        out(say(f"Open {address}   (Ctrl-C ends it)", f"请打开 {address}   （按 Ctrl-C 结束）"))

    run(made, spans=choices.spans(), told=told, note=note)


serve.__doc__ = say(
    "Serve your knowledge bases: an API, and a web page to ask and to upload.",
    "启动服务：提供 API 和网页，可提问、上传文档。",
)


def _demo(data: Path) -> None:
    """A knowledge base for each corpus, made where it is missing or incomplete."""
    from ingest.files import walk
    from ingest.pipeline import Ingestion
    from ingest.sandbox import Sandbox
    from rag.cli.progress import IngestProgress
    from rag.load import background_of, open_writer

    corpora = sorted(path.parent for path in DEMO.glob("*/docs"))
    if not corpora:
        raise UserError(
            f"there are no corpora at {DEMO}; install chatglm-rag anew",
            zh=f"{DEMO} 没有语料；请重新安装 chatglm-rag",
        )
    for corpus in corpora:
        files = [file for file in walk([corpus / "docs"]) if not file.skipped]
        writer = open_writer(data / corpus.name, embedder=None, cache=cache_home())
        size = sum(file.size for file in files)
        with writer.store as store, Sandbox(ocr=False) as sandbox:
            with IngestProgress(len(files), size, quiet=False) as progress:
                work = Ingestion(store, writer.embedder, writer.chunker, sandbox, progress.chunks)
                for outcome in work.run(files):
                    progress.file(outcome)
            background_of(store, writer.embedder)
