"""TRANSITION"""

from ingest.i18n import Language, Translator, language_of

Speaker = Translator
__all__ = ["Language", "Speaker", "Translator", "language_of"]
