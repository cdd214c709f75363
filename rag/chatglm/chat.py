"""Messages -> the ids that a ChatGLM continues, in the format of its generation; tool calls.

The text of a message is data: no word of it becomes a role, a mask or an end, in any generation.
(Upstream parses `[MASK]`, `<sop>` and `<eop>` in ChatGLM-6B's prompts and every special token in
GLM-4's, so that a document could speak as the user.) Only this file adds special tokens.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ingest.errors import UserError

ROLES = ("system", "user", "assistant", "observation")
CONTROL = re.compile(r"<\|\w+\|>|\[\w*MASK\]|<?[se]op>?")
ORIGINAL_ROPE = 10000.0
TOOLS_4 = (
    "你是一个名为 ChatGLM 的人工智能助手。你是基于智谱AI训练的语言模型 GLM-4 模型开发的，"
    "你的任务是针对用户的问题和要求提供适当的答复和支持。\n\n# 可用工具"
)
TOOL_4 = "\n\n## {name}\n\n{schema}\n在调用上述函数时，请使用 Json 格式表示调用的参数。"


@dataclass(frozen=True, slots=True)
class Turn:
    """One message. `metadata` is the name of the tool that the assistant calls."""

    role: str
    text: str
    metadata: str = ""
    tools: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """One generation's prompt, stop tokens and upstream's sampling defaults. `max_length` includes the
    prompt. `encode(turns, tokenizer)` returns the ids to continue. An answer begins with `lead` and
    ends with the token `end`."""

    stops: tuple[str, ...]
    temperature: float
    top_p: float
    max_length: int
    encode: Callable[[Sequence[Turn], Any], list[int]]
    lead: str
    end: str

    def stop_ids(self, tokenizer: Any) -> tuple[int, ...]:
        """The ids that end an answer and do not belong to it. (Upstream's ChatGLM3 always drops the
        last id; here, an answer that is cut at its length keeps it.)"""
        return tuple(_ids(tokenizer, *self.stops))


def encode_chat(messages: Sequence[Any], tokenizer: Any, generation: int) -> list[int]:
    """The prompt with which the model of `generation` (1 to 4) answers the last message, as ids.

    Messages have `role` and `text`, or are mappings with `role` and `content` and, for the tools
    of generations 3 and 4, `metadata` (the assistant's call) and `tools` (the system's list).
    Raises `UserError` if there is nothing to answer, or a role that the generation does not have.
    """
    turns = [_turn(message) for message in messages]
    if not turns or turns[-1].role not in ("user", "observation"):
        last = repr(turns[-1].role) if turns else "none"
        raise UserError(
            "the last message's role is {last}; a chat must end with a question (user)", last=last
        )
    return FORMATS[generation].encode(turns, tokenizer)


def encode_answer(text: str, tokenizer: Any, generation: int) -> list[int]:
    """The ids of an answer of the model of `generation`, including its end. Answer and lead are
    encoded separately, as in upstream's training scripts."""
    chat_format = FORMATS[generation]
    lead = encode_text(chat_format.lead, tokenizer) if chat_format.lead else []
    return lead + encode_text(text, tokenizer) + _ids(tokenizer, chat_format.end)


def encode_text(text: str, tokenizer: Any) -> list[int]:
    """The ids of `text` as data: none of them is a special token."""
    text = text.encode("utf-8", "replace").decode("utf-8")  # halves of surrogate pairs
    if direct := getattr(tokenizer, "encode_data", None):
        return direct(text)
    ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    # A tokenizer.json may add a token that is not marked as special; it is encoded in two halves.
    for word in CONTROL.finditer(text):
        if tokenizer.convert_tokens_to_ids(word[0]) in ids:
            cut = word.start() + 1
            return encode_text(text[:cut], tokenizer) + encode_text(text[cut:], tokenizer)
    return ids


def context_of(config: Any) -> int:
    """The window of the model of `config` in tokens, prompt and answer together.

    ChatGLM2's config.json allows 32,768 positions, but only the 32k variants, which have another
    rope ratio, were trained beyond upstream's 8,192."""
    positions: int = config.max_position_embeddings
    rope = getattr(config, "rope_parameters", None) or {}
    if getattr(config, "generation", 4) in (2, 3) and rope.get("rope_theta") == ORIGINAL_ROPE:
        return min(positions, FORMATS[2].max_length)
    return positions


def glm1(turns: Sequence[Turn], tokenizer: Any) -> list[int]:
    """`prompt [gMASK] <sop>`: a single question as it is, otherwise rounds from 0. ChatGLM-6B has no
    system role: system messages are lines before the first round."""
    system, rounds = _rounds(turns, generation=1)
    query = rounds.pop()[0]
    if rounds:
        past = (f"[Round {i}]\n问：{q}\n答：{a}\n" for i, (q, a) in enumerate(rounds))
        query = "".join(past) + f"[Round {len(rounds)}]\n问：{query}\n答："
    text = "\n".join([*system, query])
    return encode_text(text, tokenizer) + _ids(tokenizer, "[gMASK]", "<sop>")


def glm2(turns: Sequence[Turn], tokenizer: Any) -> list[int]:
    """`[gMASK] sop prompt`: rounds from 1; system messages come before the first."""
    system, rounds = _rounds(turns, generation=2)
    query = rounds.pop()[0]
    past = (f"[Round {i}]\n\n问：{q}\n\n答：{a}\n\n" for i, (q, a) in enumerate(rounds, 1))
    prompt = "".join(past) + f"[Round {len(rounds) + 1}]\n\n问：{query}\n\n答："
    text = "\n\n".join([*system, prompt])
    return _ids(tokenizer, "[gMASK]", "sop") + encode_text(text, tokenizer)


def glm3(turns: Sequence[Turn], tokenizer: Any) -> list[int]:
    """`[gMASK] sop`, the turns under their roles, `<|assistant|>`; tools as JSON in the system."""
    ids = _ids(tokenizer, "[gMASK]", "sop")
    for turn in turns:
        tools = f"\n{_json(turn.tools)}" if turn.tools else ""
        ids += _under_role(turn.role, turn.metadata, turn.text + tools, tokenizer)
    return ids + _ids(tokenizer, "<|assistant|>")


def glm4(turns: Sequence[Turn], tokenizer: Any) -> list[int]:
    """As `glm3`, but a separate system turn describes the tools. As the chat template of GLM-4-9B-chat
    and of its -hf form, but only for tools that are functions."""
    ids = _ids(tokenizer, "[gMASK]", "<sop>")
    for turn in turns:
        if turn.tools:
            functions = [tool.get("function", tool) for tool in turn.tools]
            listed = (TOOL_4.format(name=f["name"], schema=_json(f)) for f in functions)
            ids += _under_role("system", "", TOOLS_4 + "".join(listed), tokenizer)
        if turn.text or not turn.tools:
            ids += _under_role(turn.role, turn.metadata, turn.text, tokenizer)
    return ids + _ids(tokenizer, "<|assistant|>")


# Sampling: v1, v2, v3 as their `chat` methods; GLM-4 as its openai_api_server.py (github.com/THUDM/
# GLM-4, basic_demo), which also names the stop ids 151329, 151336 and 151338.
FORMATS = {
    1: ChatFormat(("<eop>",), 0.95, 0.7, 2048, glm1, "", "<eop>"),
    2: ChatFormat(("</s>",), 0.8, 0.8, 8192, glm2, "", "</s>"),
    3: ChatFormat(("</s>", "<|user|>", "<|observation|>"), 0.8, 0.8, 8192, glm3, "\n", "</s>"),
    4: ChatFormat(("<|endoftext|>", "<|user|>", "<|observation|>"), 0.8, 0.8, 8192, glm4, "\n", "<|user|>"),
}


def _turn(message: Any) -> Turn:
    if isinstance(message, Mapping):
        text, metadata = (message.get(name) or "" for name in ("content", "metadata"))
        turn = Turn(str(message["role"]), text, metadata, tuple(message.get("tools") or ()))
    else:
        turn = Turn(message.role, message.text)
    if turn.role not in ROLES:
        raise UserError("a message has the role {role!r}; known: {roles}", role=turn.role, roles=ROLES)
    return turn


def _rounds(turns: Sequence[Turn], *, generation: int) -> tuple[list[str], list[tuple[str, str]]]:
    """System texts, and rounds of question and answer; the last question's answer is empty.
    Consecutive questions become one question on several lines, and so do answers."""
    system = [turn.text for turn in turns if turn.role == "system" and turn.text]
    rounds: list[tuple[list[str], list[str]]] = []
    for turn in turns:
        if turn.role == "observation" or turn.tools or turn.metadata:
            raise UserError(
                "ChatGLM{generation}-6B can't use tools; use ChatGLM3-6B or GLM-4",
                generation=generation if generation > 1 else "",
            )
        if turn.role == "user" and (not rounds or rounds[-1][1]):
            rounds.append(([], []))
        elif turn.role == "assistant" and not rounds:
            rounds.append(([""], []))
        if turn.role != "system":
            rounds[-1][turn.role == "assistant"].append(turn.text)
    return system, [("\n".join(query), "\n".join(answer)) for query, answer in rounds]


def _under_role(role: str, metadata: str, text: str, tokenizer: Any) -> list[int]:
    """`<|role|>metadata\\n` and the text: two encodings, as upstream's `build_single_message`."""
    ids = _ids(tokenizer, f"<|{role}|>") + encode_text(f"{metadata}\n", tokenizer)
    return ids + encode_text(text, tokenizer)


def _json(value: Any) -> str:
    return json.dumps(value, indent=4, ensure_ascii=False)


def _ids(tokenizer: Any, *names: str) -> list[int]:
    ids: list[int] = []
    for name in names:
        ids.append(tokenizer.convert_tokens_to_ids(name))
        if ids[-1] is None or tokenizer.convert_ids_to_tokens(ids[-1]) != name:
            raise UserError(
                "the tokenizer has no token {name!r}; does it belong to another model?", name=name
            )
    return ids


def tutorial(messages: Sequence[Any]) -> list[Any]:
    """The single-turn form of mymusise/ChatGLM-Tuning (cover_alpaca2jsonl.py), as the only message.

    If there is a system message, it is the instruction and the last message its input; otherwise
    the last message is the instruction. The form has no place for earlier turns."""
    last = messages[-1]
    system = next((message.text for message in messages if message.role == "system"), "")
    text = tutorial_prompt(system, last.text) if system else tutorial_prompt(last.text)
    return [replace(last, text=text)]


def tutorial_prompt(instruction: str, input: str = "") -> str:
    """The context of cover_alpaca2jsonl.py, byte for byte."""
    return f"Instruction: {instruction}\n" + (f"Input: {input}\n" if input else "") + "Answer: "


TEMPLATES: dict[str, Callable[[Sequence[Any]], list[Any]]] = {"chat": list, "tutorial": tutorial}
"""Name of a template in a `Contract` -> its function on messages, which are dataclasses. `chat` is the
generation's own format: the messages stay as they are."""
