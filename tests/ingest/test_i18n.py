"""Messages with fields, in English and in Chinese."""

import copy
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.errors import Mismatch, UserError
from ingest.i18n import Translatable, Translator, from_json, language_of, to_json, translate

NEAR = Translatable("; did you mean {name}?", name="a{b}.txt")
MESSAGE = Translatable("{path} does not exist{hint}", path=Path("x{0}"), hint=NEAR)


def test_a_message_is_its_english_text_and_is_translated_with_what_it_holds() -> None:
    assert MESSAGE == "x{0} does not exist; did you mean a{b}.txt?"
    assert translate(MESSAGE, "en") == MESSAGE
    assert translate(MESSAGE, "zh") == "x{0} 不存在；是否指 a{b}.txt？"
    assert translate("a plain text {x}", "zh") == "a plain text {x}"
    assert Translator("zh")("{path} does not exist{hint}", path="x", hint="") == "x 不存在"


def test_lists_are_joined_as_the_language_does_it() -> None:
    message = Translatable("the base is to be held as {names:and}; give one of them", names=["a", NEAR])
    assert message == "the base is to be held as a and ; did you mean a{b}.txt?; give one of them"
    assert "a、；是否指" in translate(message, "zh")


@given(st.recursive(st.text() | st.integers() | st.floats(allow_nan=False), st.lists, max_leaves=5))
def test_a_message_survives_json_and_copying(value: object) -> None:
    message = Translatable.of("{value}: {message}", {"value": value, "message": MESSAGE})
    back = from_json(json.loads(json.dumps(to_json(message))))
    for other in (back, copy.deepcopy(message)):
        assert other == message
        assert translate(other, "zh") == translate(message, "zh")


def test_an_error_survives_copying_with_all_that_it_holds() -> None:
    error = Mismatch("{path} does not exist{hint}", path="a{b}", hint="")
    other = copy.copy(error)
    assert (type(other), str(other), other.message) == (Mismatch, "a{b} does not exist", error.message)


def test_fields_are_replaced_at_any_depth() -> None:
    error = UserError(MESSAGE)
    error.replace_fields(lambda value: "…" if isinstance(value, Path) else value)
    assert str(error) == "… does not exist; did you mean a{b}.txt?"
    assert translate(error.message, "zh") == "… 不存在；是否指 a{b}.txt？"


def test_names_that_are_not_text_can_be_shown() -> None:
    assert Translatable("{name} is empty", name="\udcff").encode() == rb"\xff is empty"


@pytest.mark.parametrize(
    ("environment", "language"),
    [
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": "en_US.UTF-8"}, "en"),
        ({"LC_MESSAGES": "zh_TW", "LANG": "en"}, "zh"),
        ({}, "en"),
    ],
)
def test_the_language_is_that_of_the_locale(environment: dict[str, str], language: str) -> None:
    assert language_of(environment) == language
