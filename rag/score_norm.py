"""Scores against unrelated questions: what an encoder and a knowledge base make of any question.

An encoder puts all questions of a language near one direction, and passages that lie there (short
ones, ones in the question's own language) look alike to every question. The mean of questions
about nothing in particular shows that direction, and how well they match shows what a match is
worth in this knowledge base. See docs/decisions/005-fusion.md and 007-refusal.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingest.embed import Vector, Vectors
from rag.question import script_of
from rag.types import Script

Similarities = NDArray[np.floating]

SCRIPTS: tuple[Script, Script] = ("han", "latin")

CENTRING = 0.75
"""How much of the common direction is taken off a question's vector (flat between .5 and .9)."""

NATIVE = 0.2
"""The share of the chunks from which a script is one of the knowledge base's own."""


@dataclass(frozen=True, slots=True)
class ScoreNorm:
    """Statistics of one encoder over one knowledge base, by the script of the question.

    `questions` and `passages` are mean vectors (dim,); `spread` is the standard deviation of an
    unrelated question's similarity over the chunks; `level` the median of the best fused score that
    unrelated questions reach: what a question gets that the knowledge base does not answer. `native`
    says whether a fair part of the chunks is in the script; questions in another one share no words.
    """

    questions: dict[Script, Vector]
    passages: Vector
    spread: dict[Script, float]
    level: dict[Script, float]
    native: dict[Script, bool]

    def centred(self, script: Script, vector: Vector) -> Vector:
        """The vector (dim,) to search with instead of the question's own; not of unit length."""
        return (vector - CENTRING * self.questions[script]).astype(np.float32)

    def standard(self, script: Script, centred: Vector, similarity: Similarities) -> Similarities:
        """Dot products with a `centred` vector as deviations above the mean chunk's, (n,)."""
        return (similarity - self.passages @ centred) / self.spread[script]

    def to_json(self) -> dict[str, Any]:
        """Plain values to keep with the knowledge base, for `from_json`."""
        return {
            "questions": {script: v.tolist() for script, v in self.questions.items()},
            "passages": self.passages.tolist(),
            "spread": dict(self.spread),
            "level": dict(self.level),
            "native": dict(self.native),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "ScoreNorm":
        return cls(
            questions={s: np.array(value["questions"][s], np.float32) for s in SCRIPTS},
            passages=np.array(value["passages"], np.float32),
            spread={s: float(value["spread"][s]) for s in SCRIPTS},
            level={s: float(value["level"][s]) for s in SCRIPTS},
            native={s: bool(value["native"][s]) for s in SCRIPTS},
        )


def measure(
    questions: Mapping[Script, Vectors], sample: Vectors, texts: Sequence[str]
) -> ScoreNorm:
    """Means, spreads and scripts, with levels still at 0.

    `questions` are the embedded `UNRELATED` ones, (n, dim) each; `sample` are vectors of chunks of
    the knowledge base, evenly drawn, (m, dim), and `texts` theirs; a few hundred are enough, and it
    may be empty.
    """
    scripts = [script_of(text) for text in texts]
    native: dict[Script, bool] = {
        script: scripts.count(script) >= NATIVE * len(scripts) for script in SCRIPTS
    }
    if not len(sample):
        sample = np.zeros((1, sample.shape[1]), np.float32)
    means: dict[Script, Vector] = {script: questions[script].mean(axis=0) for script in SCRIPTS}
    spread: dict[Script, float] = {}
    for script, mean in means.items():
        similarity = (questions[script] - CENTRING * mean) @ sample.T
        spread[script] = max(float(similarity.std(axis=1).mean()), 1e-6)
    return ScoreNorm(means, sample.mean(axis=0), spread, dict.fromkeys(SCRIPTS, 0.0), native)


def level(best: Mapping[Script, Sequence[float]]) -> dict[Script, float]:
    """`ScoreNorm.level` from the best fused score of each unrelated question.

    A median, because a knowledge base may happen to answer some of them.
    """
    return {script: float(np.median(best[script])) for script in SCRIPTS}


_HAN_QUESTIONS = (
    "这家公司是哪一年成立的？",
    "合同的违约金怎么计算？",
    "这座城市的面积有多大？",
    "谁是这部小说的作者？",
    "感冒发烧应该吃什么药？",
    "学校什么时候开学？",
    "如何申请退款？",
    "这种植物主要分布在哪里？",
    "地震发生在什么时间？",
    "他毕业于哪所大学？",
    "发动机的最大功率是多少？",
    "员工每年有几天年假？",
    "这场战役的结果如何？",
    "为什么天空是蓝色的？",
    "这条河流经过哪些省份？",
    "电影的导演是谁？",
    "怎样重置路由器的密码？",
    "该法律自何时起施行？",
    "球队在哪一年获得冠军？",
    "这种病有哪些症状？",
    "房屋租赁需要哪些手续？",
    "火车从北京到上海要多久？",
    "这个词是什么意思？",
    "光合作用的产物是什么？",
    "他的父亲是做什么工作的？",
    "项目的预算是多少？",
    "博物馆的开放时间是几点？",
    "哪种动物跑得最快？",
    "数据备份保存在什么地方？",
    "首都是哪座城市？",
    "歌曲收录在哪张专辑里？",
    "怎么做红烧肉？",
    "该协会的主席由谁担任？",
    "人口最多的是哪个国家？",
    "孩子几岁可以上小学？",
    "这款手机的电池容量是多少？",
    "皇帝在位多少年？",
    "事故的原因是什么？",
    "如何预防高血压？",
    "这座桥连接哪两个地方？",
    "个人所得税的起征点是多少？",
    "该理论由谁提出？",
    "产品的保修期是多长？",
    "两者之间有什么区别？",
    "机场距离市中心多远？",
    "比赛在哪个体育场举行？",
    "申请人应当提交哪些材料？",
    "这座寺庙供奉的是什么神？",
)
_LATIN_QUESTIONS = (
    "When was the company founded?",
    "How is the penalty for breach of contract calculated?",
    "How large is the area of the city?",
    "Who wrote this novel?",
    "What medicine should I take for a cold with fever?",
    "When does the school year begin?",
    "How do I apply for a refund?",
    "Where does this plant mainly grow?",
    "At what time did the earthquake happen?",
    "Which university did he graduate from?",
    "What is the maximum power of the engine?",
    "How many days of annual leave do employees get?",
    "What was the outcome of the battle?",
    "Why is the sky blue?",
    "Which provinces does the river flow through?",
    "Who directed the film?",
    "How can I reset the password of the router?",
    "From what date is the law in force?",
    "In which year did the team win the championship?",
    "What are the symptoms of this disease?",
    "What paperwork is needed to rent a house?",
    "How long does the train from Paris to London take?",
    "What does this word mean?",
    "What are the products of photosynthesis?",
    "What did his father do for a living?",
    "How much is the budget of the project?",
    "What are the opening hours of the museum?",
    "Which animal runs the fastest?",
    "Where are the backups of the data kept?",
    "Which city is the capital?",
    "On which album was the song released?",
    "How do you cook beef stew?",
    "Who is the chairman of the association?",
    "Which country has the largest population?",
    "At what age can children start primary school?",
    "What is the battery capacity of this phone?",
    "How many years did the emperor reign?",
    "What caused the accident?",
    "How can high blood pressure be prevented?",
    "Which two places does the bridge connect?",
    "What is the threshold of the personal income tax?",
    "Who proposed the theory?",
    "How long is the warranty of the product?",
    "What is the difference between the two?",
    "How far is the airport from the city centre?",
    "In which stadium was the match held?",
    "What documents must the applicant submit?",
    "Which god is worshipped in the temple?",
)
UNRELATED: Mapping[Script, tuple[str, ...]] = MappingProxyType(
    {"han": _HAN_QUESTIONS, "latin": _LATIN_QUESTIONS}
)
"""Questions about nothing in particular, for `measure`."""
