"""Scores of a reply against a known answer: pure functions of two texts, larger is better.

Exact match, containment and F1 compare the content, so spelling is normalized first. ROUGE-L and
BLEU-4 are those of THUDM's ptuning (ChatGLM-6B, `ptuning/main.py`), so that figures are comparable;
they use the unchanged texts.
"""

import re
from collections import Counter
from collections.abc import Sequence
from math import exp, log

from ingest.normalize import HAN, KANA_HANGUL, normalize
from rag.cite import marks

_TOKEN = re.compile(rf"[{HAN}{KANA_HANGUL}]|(?<![^\W_])-?\d+(?:[.:/]\d+)*%?|[^\W_{HAN}{KANA_HANGUL}]+")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


def bare(text: str) -> str:
    """`text` without its marks `[1]`."""
    for mark in reversed(list(marks(text))):
        text = text[: mark.start()] + text[mark.end() :]
    return text.strip()


def tokens(text: str) -> list[str]:
    """Characters of Chinese, Japanese and Korean, whole words and numbers of other scripts.

    In NFKC, lower case and simplified characters; space and punctuation are left out, except in
    numbers (`-3.5%`, `12:30`); `1,000` is 1000. A text without tokens (`√`) gives its characters.
    """
    normal = _THOUSANDS.sub("", normalize(text))
    return _TOKEN.findall(normal) or list("".join(normal.split()))


def exact(reply: str, answer: str) -> float:
    """Exact match: 1 if both have the same tokens, in order."""
    return float(tokens(reply) == tokens(answer))


def contains(reply: str, answer: str) -> float:
    """1 if the answer's tokens occur in the reply without others between them.

    So `cat` is not in `concatenate`, nor 5 in 15.
    """
    whole, part = ("".join(f"\n{token}\n" for token in tokens(text)) for text in (reply, answer))
    return float(part in whole)


_CHOICE = re.compile(r"(?<![a-z])(?:[a-d]|true|false)(?![a-z])|不对|不正确|错|对|正确", re.IGNORECASE)
_SAME = {"正确": "对", "不对": "错", "不正确": "错"}


def chosen(reply: str, answer: str) -> float:
    """1 if the first letter, or the first word for true or false, in the reply is the answer."""
    found = _CHOICE.search(reply)
    return float(found is not None and _SAME.get(found[0], found[0]).lower() == answer.lower())


def f1(reply: str, answer: str) -> float:
    """The harmonic mean of precision and recall over the tokens as a bag, 0 to 1.

    SQuAD's F1 (Rajpurkar et al. 2016), over characters in scripts without spaces, as CMRC 2018
    (which counts the longest common run instead of a bag). Articles are counted.
    """
    first, second = Counter(tokens(reply)), Counter(tokens(answer))
    if not first or not second:
        return float(first == second)
    return 2 * (first & second).total() / (first.total() + second.total())


def rouge_l(reply: str, answer: str) -> float:
    """The F1 of the longest common subsequence of jieba's words, 0 to 1.

    As the package rouge_chinese, except for its 1e-8 in the denominator and for an empty text, which
    is 0 here and an error there. Words (and punctuation) are those of rjieba's `cut` with its HMM:
    jieba's, except that jieba doesn't cut some Latin words with hyphens.
    """
    first, second = words(reply), words(answer)
    if not first or not second:
        return 0.0
    return 2 * _common(first, second) / (len(first) + len(second))


def words(text: str) -> list[str]:
    """The words of the unchanged `text` in order, without blanks."""
    from rjieba import cut

    return [word for word in cut(text) if not word.isspace()]


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    """The length of the longest common subsequence."""
    row = [0] * (len(second) + 1)
    for a in first:
        diagonal = 0
        for j, b in enumerate(second, start=1):
            diagonal, row[j] = row[j], diagonal + 1 if a == b else max(row[j], row[j - 1])
    return row[-1]


def bleu4(reply: str, answer: str) -> float:
    """BLEU-4 of one reply against one answer over characters, spaces too, 0 to 100.

    The geometric mean of the clipped precisions of 1 to 4 characters, times the brevity penalty
    exp(1 - answer/reply) of a reply that is not longer (Papineni et al. 2002). A precision without
    a match counts as 1 / (2^k n), n its number of n-grams (at least 1), k = 1, 2, ... for each in
    turn; texts without a common character give 0. This is nltk's `sentence_bleu` with
    `SmoothingFunction().method3` and THUDM's x 100, not rounded. (ChatGLM3's and GLM-4's scripts
    compute BLEU over jieba words and without x 100: another figure.)
    """
    if not set(reply) & set(answer):
        return 0.0
    total, misses = 0.0, 0
    for n in range(1, 5):
        grams = [Counter(t[i : i + n] for i in range(len(t) - n + 1)) for t in (reply, answer)]
        matches, count = (grams[0] & grams[1]).total(), max(1, grams[0].total())
        if not matches:
            misses += 1
        total += log(matches / count if matches else 1 / (2**misses * count)) / 4
    penalty = 0.0 if len(reply) > len(answer) else 1 - len(answer) / len(reply)
    return 100 * exp(penalty + total)
