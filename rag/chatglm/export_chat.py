"""The rows of `chat.py` as chat templates: what another engine renders is, id for id, what we send.

A tokenizer finds special words in all of a rendered prompt, wherever they came from. So the templates
put `MARK` after each `<` and `[` of a message, and the exported tokenizers drop it there again once
special words are found: no message can hold one.
"""

from rag.chatglm.chat import TOOL_4, TOOLS_4

MARK = "\ufdd0"
"""A noncharacter of Unicode, which no text is to hold."""

CHECKS = r"""
{%- macro data(text) -%}
{{ text | replace('<', '<\ufdd0') | replace('[', '[\ufdd0') }}
{%- endmacro -%}
{%- if tools -%}
{{ raise_exception('tools belong into the field tools of a message') }}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role not in ['system', 'user', 'assistant', 'observation'] -%}
{{ raise_exception('unknown role: ' ~ message.role) }}
{%- endif -%}
{%- if message.content is not string and message.content is not none -%}
{{ raise_exception('the content of a message is text') }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and (messages | last).role not in ['user', 'observation'] -%}
{{ raise_exception('a chat must end with a question') }}
{%- endif -%}
"""

# As `_rounds` and `glm2`: questions in a row are one, and so are answers; a namespace, for the lists
# of a sandboxed template can't be added to.
ROUNDS = r"""
{%- set ns = namespace(system='', past='', round=1, query='', asked=false, answer='', answered=false) -%}
{%- for message in messages -%}
{%- set text = message.content or '' -%}
{%- if message.role == 'observation' or message.tools or message.metadata -%}
{{ raise_exception('ChatGLM2-6B knows no tools') }}
{%- elif message.role == 'system' -%}
{%- set ns.system = ns.system ~ (text ~ '\n\n' if text else '') -%}
{%- elif message.role == 'assistant' -%}
{%- set ns.answer = ns.answer ~ '\n' ~ text if ns.answered else text -%}
{%- set ns.asked = true -%}
{%- set ns.answered = true -%}
{%- elif ns.answered -%}
{%- set ns.past = ns.past ~ '[Round ' ~ ns.round ~ ']\n\n问：' ~ ns.query ~ '\n\n答：' ~ ns.answer ~ '\n\n' -%}
{%- set ns.round = ns.round + 1 -%}
{%- set ns.query = text -%}
{%- set ns.answered = false -%}
{%- else -%}
{%- set ns.query = ns.query ~ '\n' ~ text if ns.asked else text -%}
{%- set ns.asked = true -%}
{%- endif -%}
{%- endfor -%}
{%- set last = '[Round ' ~ ns.round ~ ']\n\n问：' ~ ns.query -%}
{%- set answer = '\n\n答：' ~ ns.answer if ns.answered else '\n\n答：' if add_generation_prompt else '' -%}
{{ '[gMASK]<sop>' ~ data(ns.system ~ ns.past ~ last ~ answer) }}
"""

# As `_under_role`: the line of the role and the text are two encodings. A SentencePiece text begins
# with a blank of its own, of which the first is the tokenizer's.
TURNS_3 = r"""
{{ '[gMASK]<sop>' }}
{%- for message in messages -%}
{%- set text = message.content or '' -%}
{%- set text = text ~ ('\n' ~ message.tools | tojson(indent=4) if message.tools else '') -%}
{{ '<|' ~ message.role ~ '|>' ~ data(message.metadata or '') ~ '\n' ~ (' ' ~ data(text) if text else '') }}
{%- endfor -%}
{{ '<|assistant|>' if add_generation_prompt else '' }}
"""

# The same; a mark after a line's end is where the exported tokenizer begins a new encoding.
TURNS_4 = r"""
{{ '[gMASK]<sop>' }}
{%- for message in messages -%}
{%- set text = message.content or '' -%}
{%- if message.tools -%}
{%- set ns = namespace(listed=TOOLS) -%}
{%- for tool in message.tools -%}
{%- set function = tool.function or tool -%}
{%- set ns.listed = ns.listed ~ BEFORE_NAME ~ function.name ~ BEFORE_SCHEMA ~ function | tojson(indent=4) ~ AFTER -%}
{%- endfor -%}
{{ '<|system|>\n\ufdd0' ~ data(ns.listed) }}
{%- endif -%}
{%- if text or not message.tools -%}
{{ '<|' ~ message.role ~ '|>' ~ data(message.metadata or '') ~ '\n' ~ ('\ufdd0' ~ data(text) if text else '') }}
{%- endif -%}
{%- endfor -%}
{{ '<|assistant|>' if add_generation_prompt else '' }}
"""


def template_of(generation: int) -> str:
    """The chat template of ChatGLM2, ChatGLM3 or GLM-4 (2, 3, 4), in transformers' Jinja."""
    if generation == 4:
        before_name, rest = TOOL_4.split("{name}")
        before_schema, after = rest.split("{schema}")
        parts = {
            "TOOLS": TOOLS_4, "BEFORE_NAME": before_name, "BEFORE_SCHEMA": before_schema,
            "AFTER": after,
        }  # fmt: skip
        sets = (f"{{%- set {name} = {_literal(text)} -%}}" for name, text in parts.items())
        body = "".join(sets) + TURNS_4.strip()
    else:
        body = {2: ROUNDS, 3: TURNS_3}[generation].strip()
    return CHECKS.strip() + body


def _literal(text: str) -> str:
    """A Jinja string; the texts hold line ends and no quotes."""
    return "'" + text.replace("\n", r"\n") + "'"
