"""The rows of older training scripts, restated one id at a time as the scripts make them.

Nothing of finetune.data is used but `turns_of`. `tokenizer` is the model's own.
"""

from collections.abc import Sequence
from typing import Any

from finetune.data.template import turns_of
from finetune.types import IGNORED, Example
from rag.types import Message

Lists = tuple[list[int], list[int]]
"""The ids and labels of a row."""


def tutorial(tokenizer: Any, version: int, example: Example, most: int) -> Lists:
    """mymusise/ChatGLM-Tuning: tokenize_dataset_rows.py of what cover_alpaca2jsonl.py writes, and
    the collator of finetune.py for a batch of one."""
    context = "Instruction: " + example.question + "\n"
    if example.input:
        context = context + "Input: " + example.input + "\n"
    context = context + "Answer: "
    if version == 2:
        context = "[Round 1]\n\n问：" + context + "\n\n答："
    prompt = tokenizer.encode(context, max_length=most, truncation=True)
    target = tokenizer.encode(example.answer, max_length=most, truncation=True, add_special_tokens=False)
    ids, seq_len = prompt + target + [tokenizer.eos_token_id], len(prompt)
    return ids, [IGNORED if place < seq_len - 1 else id for place, id in enumerate(ids)]


def history_of(example: Example) -> list[tuple[str, str]]:
    texts = [message.text for message in example.messages if message.role != "system"][:-2]
    return [(texts[i], texts[i + 1]) for i in range(0, len(texts), 2)]


def ptuning_1(tokenizer: Any, example: Example) -> Lists:
    """THUDM/ChatGLM-6B, ptuning/main.py, without padding; a history column is named if there is a
    history."""
    prompt = example.question
    if turns := history_of(example):
        prompt = ""
        for number, (question, answer) in enumerate(turns):
            prompt += f"[Round {number}]\n问：{question}\n答：{answer}\n"
        prompt += f"[Round {len(turns)}]\n问：{example.question}\n答："
    a = tokenizer.encode(prompt, add_special_tokens=False)
    b = tokenizer.encode(example.answer, add_special_tokens=False)
    ids = tokenizer.build_inputs_with_special_tokens(a, b)
    start = ids.index(tokenizer.bos_token_id)
    return ids, [IGNORED] * start + ids[start:]


def ptuning_2(tokenizer: Any, example: Example) -> Lists:
    """THUDM/ChatGLM2-6B, ptuning/main.py, without padding."""
    prompt, turns = "", history_of(example)
    for number, (question, answer) in enumerate(turns):
        prompt += f"[Round {number + 1}]\n\n问：{question}\n\n答：{answer}\n\n"
    prompt += f"[Round {len(turns) + 1}]\n\n问：{example.question}\n\n答："
    a = tokenizer.encode(prompt)
    b = tokenizer.encode(example.answer, add_special_tokens=False)
    ids = [*a, *b, tokenizer.eos_token_id]
    return ids, [IGNORED] * len(a) + ids[len(a) :]


def chatglm3(tokenizer: Any, example: Example) -> Lists:
    """process_batch of ChatGLM3's finetune_hf.py."""
    name = tokenizer.convert_tokens_to_ids
    ids, masks = [name("[gMASK]"), name("sop")], [False, False]
    for turn in turns_of(example, "chat"):
        new = [name(f"<|{turn.role}|>")]
        new += tokenizer.encode("\n", add_special_tokens=False)
        new += tokenizer.encode(turn.text, add_special_tokens=False)
        ids += new
        masks += [turn.role == "assistant"] * len(new)
    return _shifted([*ids, tokenizer.eos_token_id], masks)


def glm4(tokenizer: Any, example: Example) -> Lists:
    """process_batch of GLM-4's finetune.py, with `combine: false`."""

    def rendered(turns: Sequence[Message]) -> list[int]:
        """What apply_chat_template gives without tools."""
        text = "".join(f"<|{turn.role}|>\n{turn.text}" for turn in turns if turn.text)
        return tokenizer.encode("[gMASK]<sop>" + text, add_special_tokens=False)

    ids, masks = rendered([]), [False, False]
    for turn in turns_of(example, "chat"):
        new = rendered([turn])[2:]
        ids += new
        masks += [turn.role == "assistant"] * len(new)
    return _shifted([*ids, tokenizer.convert_tokens_to_ids("<|user|>")], masks)


def _shifted(ids: list[int], masks: list[bool]) -> Lists:
    """A token is learnt if the token before it is masked as the assistant's."""
    masks = [False, *masks]
    return ids, [id if mask else IGNORED for id, mask in zip(ids, masks, strict=True)]
