"""What a question is about: its text without the words that only make it a question.

Question words are rare in most collections, so BM25 would take them for telling; and so are
English function words in a Chinese one.
"""

import re

from ingest.normalize import fold

# Of folded text: simplified characters, lower case.
_ASKING = re.compile(
    r"请问|为什么|为何|什么时[候间]|什么|甚么|哪一?[些个位年种]?|谁|多少|怎么样?|怎样|如何|第几|几(?![乎何率])"
    r"|是否|何时|何处|[吗呢](?=\W|$)"
)
_FUNCTION = re.compile(
    r"\b(?:an?|the|of|in|on|at|to|for|from|by|with|as|and|or|but|not|no|is|are|was|were|be|been"
    r"|being|do|does|did|has|have|had|can|could|will|would|shall|should|may|might|must|that|this"
    r"|these|those|its?|he|his|him|she|hers?|they|their|them|we|our|you|your|i|my|me|what|which"
    r"|whom?|whose|when|where|why|how|many|much|there|than|then|if|so|such|into|about|after"
    r"|before|during|between|over|under|also)\b"
)


def content(question: str) -> str:
    """The folded question, each such word a space. Blank where nothing else was there."""
    return _FUNCTION.sub(" ", _ASKING.sub(" ", fold(question)))
