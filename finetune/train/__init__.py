"""Rows of tokens and a model -> an adapter: layout, loss, steps, checkpoints, what is written."""

import logging

# PEFT imports bitsandbytes, which misses an optional kernel on CPUs with AVX512-BF16 and warns of it.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(
    lambda record: "gemm_4bit_forward" not in str(record.msg)
)
