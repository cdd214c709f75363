"""Writes the encoder as an ONNX graph of ONNX Runtime's fused operators."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ingest.embed.e5s1 import BLOCK, Checkpoint

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

_WEIGHTS = "weights.bin"
_ALIGNMENT = 4096  # bytes: page-aligned weights are mapped into memory, not read


def write(checkpoint: Checkpoint, folder: Path, *, levels: dict[str, int]) -> None:
    """Write `<name>.onnx` into `folder` for each of `levels`, and the weights that they share.

    A level is `MatMulNBits`' `accuracy_level`: 1 multiplies the checkpoint's very weights in
    float32; 4 rounds the other side to int8, one scale per block of 32 values.
    Inputs: `ids` and `mask`, int32 (texts, tokens); mask is 1 for a token, 0 for padding.
    Output: `vectors`, float32 (texts, hidden), of unit length.
    """
    import onnx

    for name, level in levels.items():
        with (folder / _WEIGHTS).open("wb") as file:
            model = _Graph(file, level).model(checkpoint)
        onnx.save_model(model, folder / f"{name}.onnx")


class _Graph:
    """Collects nodes and weights; every method appends one operator and returns its output."""

    def __init__(self, file: BinaryIO, level: int) -> None:
        self.file = file
        self.level = level
        self.nodes: list[Any] = []
        self.weights: list[TensorProto] = []

    def model(self, c: Checkpoint) -> "ModelProto":
        """BertModel with masked mean pooling: modeling_bert.py, post-norm, exact GELU."""
        from onnx import TensorProto, helper

        x = self.embeddings(c)
        for layer in range(c.layers):
            x = self.layer(c, x, f"l{layer}")
        # The mean's direction is the sum's; only the direction is left after normalisation.
        row = self.op("Unsqueeze", [self.op("Cast", ["mask"], to=TensorProto.FLOAT), self.ints(1)])
        total = self.op("Squeeze", [self.op("MatMul", [row, x]), self.ints(1)])
        self.op("LpNormalization", [total], output="vectors", axis=-1, p=2)
        ids = [
            helper.make_tensor_value_info(name, TensorProto.INT32, ["texts", "tokens"])
            for name in ("ids", "mask")
        ]
        out = helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["texts", c.hidden])
        graph = helper.make_graph(self.nodes, "encoder", ids, [out], self.weights)
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)

    def embeddings(self, c: Checkpoint) -> str:
        """Word, place (from 0) and type, summed and normalised: (texts, tokens, hidden)."""
        words = c.matrices["emb.word"]
        nibbles = words.nibbles.reshape(len(words.nibbles), -1)
        word = self.op(
            "GatherBlockQuantized",
            [self.weight("emb.word", nibbles), "ids", self.weight("emb.scale", words.scales)],
            domain="com.microsoft",
            bits=4,
            block_size=BLOCK,
            gather_axis=0,
            quantize_axis=1,
        )
        places = self.weight("emb.pos", (c.vectors["emb.pos"] + c.vectors["emb.type"][0])[None])
        tokens = self.op("Shape", ["ids"], start=1, end=2)
        place = self.op("Slice", [places, self.ints(0), tokens, self.ints(1)])
        return self.add_norm(c, word, place, "emb.ln")

    def layer(self, c: Checkpoint, x: str, name: str) -> str:
        """Self-attention and feed-forward, each added to its input and normalised."""
        q, k, v = (self.linear(c, x, f"{name}.{part}") for part in "qkv")
        attended = self.op(
            "MultiHeadAttention",
            [q, k, v, "", "mask"],
            domain="com.microsoft",
            num_heads=c.heads,
        )
        x = self.add_norm(c, x, self.linear(c, attended, f"{name}.ao"), f"{name}.aln")
        wide = self.op("Gelu", [self.linear(c, x, f"{name}.fi")], domain="com.microsoft")
        return self.add_norm(c, x, self.linear(c, wide, f"{name}.fo"), f"{name}.oln")

    def linear(self, c: Checkpoint, x: str, name: str) -> str:
        matrix = c.matrices[f"{name}.w"]
        outputs, blocks, _ = matrix.nibbles.shape
        weight = self.weight(f"{name}.w", matrix.nibbles)
        scale = self.weight(f"{name}.scale", matrix.scales)
        bias = self.weight(f"{name}.b", c.vectors[f"{name}.b"])
        return self.op(
            "MatMulNBits",
            [x, weight, scale, "", "", bias],
            domain="com.microsoft",
            K=blocks * BLOCK,
            N=outputs,
            bits=4,
            block_size=BLOCK,
            accuracy_level=self.level,
        )

    def add_norm(self, c: Checkpoint, x: str, y: str, name: str) -> str:
        gain = self.weight(f"{name}.w", c.vectors[f"{name}.w"])
        shift = self.weight(f"{name}.b", c.vectors[f"{name}.b"])
        return self.op(
            "SkipLayerNormalization",
            [x, y, gain, shift],
            domain="com.microsoft",
            epsilon=c.epsilon,
        )

    def op(
        self, kind: str, inputs: list[str], *, domain: str = "", output: str = "", **attributes: Any
    ) -> str:
        from onnx import helper

        output = output or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], domain=domain, **attributes))
        return output

    def ints(self, value: int) -> str:
        """The one-element int64 tensor that axes and bounds are written as."""
        from onnx import helper

        name = f"int{value}"
        if all(weight.name != name for weight in self.weights):
            self.weights.append(helper.make_tensor(name, 7, [1], [value]))
        return name

    def weight(self, name: str, array: NDArray[Any]) -> str:
        """Append `array` to the weights file and refer to it there."""
        from onnx import TensorProto, helper
        from onnx.external_data_helper import set_external_data

        self.file.write(b"\0" * (-self.file.tell() % _ALIGNMENT))
        tensor = TensorProto(name=name, dims=array.shape)
        tensor.data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
        tensor.raw_data = b""
        data = np.ascontiguousarray(array).tobytes()
        set_external_data(tensor, _WEIGHTS, self.file.tell(), len(data))
        tensor.ClearField("raw_data")
        self.file.write(data)
        self.weights.append(tensor)
        return name
