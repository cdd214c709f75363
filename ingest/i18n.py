"""Messages in two languages: English templates in the code, Chinese in a gettext catalog.

`make messages` collects the templates into `locale/` and compiles the catalog.
"""

import gettext
from collections.abc import Callable, Collection, Mapping
from functools import cache
from pathlib import Path
from string import Formatter
from typing import Any, Literal, LiteralString, Self

from ingest.normalize import readable

Language = Literal["en", "zh"]
LOCALE = Path(__file__).parent / "locale"
DOMAIN = "chatglm_rag"
SEPARATORS = {
    "en": {"": ", ", "and": " and ", "or": " or ", ";": "; "},
    "zh": {"": "、", "and": "、", "or": " 或 ", ";": "；"},
}
"""Between the items of a list, by the language and the format specification of the field."""

LARGE = {"en": (1e9, "billion"), "zh": (1e8, "亿")}
"""The unit of large numbers (`{parameters:large}`) and its name."""


class Translatable(str):
    """A line in English that knows its template and its fields, so that it can be translated.

    `Translatable("{count} files in {folder}", count=2, folder=path)` is equal to the English text. A
    field may be another message, or a list (`{names}`, `{names:and}`, `{names:or}`).
    """

    template: str
    fields: Mapping[str, object]

    def __new__(cls, template: LiteralString, /, **fields: object) -> Self:
        return cls.of(template, fields)

    @classmethod
    def of(cls, template: str, fields: Mapping[str, object]) -> Self:
        """A message whose template is not a literal in the code, or is a message already."""
        if isinstance(template, cls):
            return template
        self = super().__new__(cls, readable(_Lines("en").vformat(template, (), fields)))
        self.template, self.fields = template, fields
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return self.of, (self.template, dict(self.fields))

    def replace_fields(self, change: Callable[[Any], object]) -> "Translatable":
        """The same message with `change(value)` for the value of each field, nested ones included."""

        def changed(value: object) -> object:
            if isinstance(value, Translatable):
                return value.replace_fields(change)
            return [changed(item) for item in value] if isinstance(value, list) else change(value)

        return Translatable.of(self.template, {k: changed(v) for k, v in self.fields.items()})


def translate(text: str, language: Language) -> str:
    """A message in `language`; any other text as it is."""
    if language == "en" or not isinstance(text, Translatable):
        return str(text)
    template = _chinese().gettext(text.template)
    return readable(_Lines(language).vformat(template, (), text.fields))


def to_json(value: object) -> Any:
    """A message as a JSON value, from which `from_json` restores it in another process."""
    if isinstance(value, Translatable):
        fields = {name: to_json(field) for name, field in value.fields.items()}
        return {"template": value.template, "fields": fields}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return value if isinstance(value, bool | int | float | None) else str(value)


def from_json(value: Any) -> Any:
    """The text that `to_json` turned into `value`."""
    if isinstance(value, dict) and value.keys() == {"template", "fields"}:
        fields = {name: from_json(field) for name, field in value["fields"].items()}
        return Translatable.of(value["template"], fields)
    return [from_json(item) for item in value] if isinstance(value, list) else value


def language_of(environment: Mapping[str, str]) -> Language:
    """`zh` for a Chinese locale (POSIX order: LC_ALL, LC_MESSAGES, LANG), otherwise `en`."""
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        if value := environment.get(name):
            return "zh" if value.lower().startswith("zh") else "en"
    return "en"


class Translator:
    """Writes messages in one language: `say("{count} documents", count=2)`."""

    def __init__(self, language: Language) -> None:
        self.language: Language = language

    def __call__(self, text: LiteralString | Translatable, /, **fields: object) -> str:
        return translate(Translatable.of(text, fields), self.language)


class _Lines(Formatter):
    def __init__(self, language: Language) -> None:
        self.language: Language = language

    def format_field(self, value: Any, format_spec: str) -> str:
        if isinstance(value, Translatable):
            return translate(value, self.language)
        if format_spec == "large":
            unit, name = LARGE[self.language]
            return f"{value / unit:.3g} {name}"
        if isinstance(value, Collection) and not isinstance(value, str | bytes):
            items = (self.format_field(item, "") for item in value)
            return SEPARATORS[self.language][format_spec].join(items)
        return super().format_field(value, format_spec)


@cache
def _chinese() -> gettext.NullTranslations:
    return gettext.translation(DOMAIN, LOCALE, ["zh_CN"])
