"""How a reply compares with a known answer: pure functions of two texts, larger is better.

Exact match, containment and F1 look at what is said, so spelling is folded first. ROUGE-L and
BLEU-4 are those of THUDM's ptuning (ChatGLM-6B, `ptuning/main.py`), so that figures can be set
beside its; they look at the texts as they are.
"""

import re
from collections import Counter
from collections.abc import Sequence
from math import exp, log

from ingest.normalize import HAN, KANA_HANGUL, normalize
from rag.prompt import marks

_TOKEN = re.compile(
    rf"[{HAN}{KANA_HANGUL}]|(?<![^\W_])-?\d+(?:[.:/]\d+)*%?|[^\W_{HAN}{KANA_HANGUL}]+"
)
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


def bare(text: str) -> str:
    """`text` without its marks `[1]`."""
    kept, end = [], 0
    for mark in marks(text):
        kept.append(text[end : mark.start()])
        end = mark.end()
    return "".join([*kept, text[end:]]).strip()


def tokens(text: str) -> list[str]:
    """Characters of Chinese, Japanese and Korean, whole words and numbers of other scripts.

    In NFKC, lower case and simplified characters; space and punctuation are left out, except what
    belongs to a number (`-3.5%`, `12:30`); `1,000` is 1000. A text of nothing else (`√`) is its
    characters.
    """
    folded = _THOUSANDS.sub("", normalize(text))
    return _TOKEN.findall(folded) or list("".join(folded.split()))


def exact(reply: str, answer: str) -> float:
    """Exact match: 1 where both have the same tokens, in order."""
    return float(tokens(reply) == tokens(answer))


def contains(reply: str, answer: str) -> float:
    """1 where the answer's tokens stand in the reply, one behind the other.

    So `cat` is not in `concatenate`, nor 5 in 15.
    """
    whole, part = ("".join(f"\n{token}\n" for token in tokens(text)) for text in (reply, answer))
    return float(part in whole)


def f1(reply: str, answer: str) -> float:
    """The harmonic mean of precision and recall over the tokens as a bag, 0 to 1.

    SQuAD's F1 (Rajpurkar et al. 2016), over characters where words are not spaced, as CMRC 2018
    (which counts the longest common run instead of a bag). Articles stay.
    """
    said, wanted = Counter(tokens(reply)), Counter(tokens(answer))
    if not said or not wanted:
        return float(said == wanted)
    return 2 * (said & wanted).total() / (said.total() + wanted.total())


def rouge_l(reply: str, answer: str) -> float:
    """The F1 of the longest common subsequence of jieba's words, 0 to 1.

    As the package rouge_chinese, but for its 1e-8 in the denominator and for an empty text, which
    is 0 here and an error there. Words are those of rjieba's `cut` (with its HMM), punctuation too:
    jieba's, except that jieba leaves some Latin words with hyphens whole.
    """
    said, wanted = words(reply), words(answer)
    if not said or not wanted:
        return 0.0
    return 2 * _common(said, wanted) / (len(said) + len(wanted))


def words(text: str) -> list[str]:
    """The words of `text` as it is, in order; what is blank is none."""
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
    a match counts as 1 / (2^k n), n its number of n-grams (1 at least), k = 1, 2, ... for each in
    turn; no common character at all is 0. This is nltk's `sentence_bleu` with
    `SmoothingFunction().method3` and THUDM's x 100, not rounded. (ChatGLM3's and GLM-4's scripts
    compute BLEU over jieba words and without x 100: another figure.)
    """
    if not set(reply) & set(answer):
        return 0.0
    total, misses = 0.0, 0
    for n in range(1, 5):
        said, wanted = _grams(reply, n), _grams(answer, n)
        matches, count = (said & wanted).total(), max(1, said.total())
        if not matches:
            misses += 1
        total += log(matches / count if matches else 1 / (2**misses * count)) / 4
    penalty = 0.0 if len(reply) > len(answer) else 1 - len(answer) / len(reply)
    return 100 * exp(penalty + total)


def _grams(text: str, n: int) -> Counter[str]:
    return Counter(text[i : i + n] for i in range(len(text) - n + 1))
