"""`rag quantize`: a model in fewer bits, which loads in seconds."""

from typing import Annotated

import typer

from ingest.errors import UserError
from rag.cli.console import out, say
from rag.cli.model_options import Source, Target
from rag.cli.paths import cache_home


def quantize(
    source: Source,
    target: Target,
    bits: Annotated[
        int, typer.Option(metavar="4|8", help=say("Bits of a weight.", "每个权重的位数。"))
    ] = 4,
) -> None:
    if bits not in (4, 8):
        raise UserError(f"--bits is {bits}; it is 4 or 8", zh=f"--bits 为 {bits}；应为 4 或 8")
    from rag.chatglm.hub import fetch
    from rag.chatglm.save import pack
    from rag.cli.progress import loading

    directory = fetch(source, cache=cache_home() / "models")
    with loading(directory.name) as progress:
        pack(directory, target, bits=bits, progress=progress)
    size = sum(path.stat().st_size for path in target.iterdir()) / 1e9
    out(say(f"{target}: int{bits}, {size:.2f} GB", f"{target}：int{bits}，{size:.2f} GB"))


quantize.__doc__ = say(
    "Write a model's weights in 4 or 8 bits to a new folder, which loads in seconds.",
    "把模型权重以 4 位或 8 位写入新文件夹，之后几秒即可加载。",
)
