"""The Chinese catalog and the messages of the code belong together."""

import importlib.util
from gettext import GNUTranslations
from pathlib import Path
from string import Formatter

import pytest
from babel.messages.pofile import read_po

ROOT = Path(__file__).parents[1]
_spec = importlib.util.spec_from_file_location("messages", ROOT / "docs" / "messages.py")
assert _spec
assert _spec.loader
messages = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(messages)


@pytest.fixture(scope="module")
def templates() -> dict[str, list[str]]:
    return messages.templates()


@pytest.fixture(scope="module")
def translations() -> dict[str, str]:
    with messages.CATALOG.open("rb") as file:
        return {message.id: message.string for message in read_po(file) if message.id}


def fields(template: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(template) if name is not None}


def test_every_message_has_a_translation_and_no_translation_is_unused(
    templates: dict[str, list[str]], translations: dict[str, str]
) -> None:
    assert {text for text in templates if not translations.get(text)} == set()
    assert translations.keys() - templates == set()


def test_a_translation_has_the_fields_of_its_template(translations: dict[str, str]) -> None:
    assert {text for text, chinese in translations.items() if fields(text) != fields(chinese)} == set()


def test_the_compiled_catalog_is_that_of_the_translations(translations: dict[str, str]) -> None:
    with messages.CATALOG.with_suffix(".mo").open("rb") as file:
        compiled = GNUTranslations(file)
    assert {text: compiled.gettext(text) for text in translations} == translations, "run: make messages"


def test_templates_are_found_in_every_form_that_the_code_uses(templates: dict[str, list[str]]) -> None:
    """As the first argument of an error of any kind, of `say`, and of `Translatable`."""
    assert "{path} does not exist{hint}" in templates
    assert "Questions about your documents, answered with sources." in templates
    assert "; did you mean {name}?" in templates
