"""The cluster's size against Milvus' sizing tool, worked out by hand."""

import pytest

from rag.plan.constants import shipped
from rag.plan.milvus import GB, cluster, query_nodes, stream_nodes

COSTS = shipped().costs


@pytest.mark.parametrize(
    ("memory", "nodes"),
    [
        (1, (2, 8, 1)),
        (10, (4, 16, 1)),
        (17, (4, 16, 2)),
        (95, (4, 16, 6)),
        (100, (8, 32, 4)),
        (600, (16, 64, 10)),
        (3000, (32, 128, 24)),
    ],
)
def test_query_nodes_are_as_large_as_the_tool_makes_them(
    memory: float, nodes: tuple[int, int, int]
) -> None:
    assert query_nodes(memory) == nodes
    _, size, count = nodes
    assert size * count >= memory


@pytest.mark.parametrize(
    ("cores", "nodes"), [(2, (1, 2, 8)), (24, (1, 4, 16)), (60, (2, 4, 16)), (768, (12, 8, 32))]
)
def test_stream_nodes_follow_the_cores_of_the_query_nodes(
    cores: int, nodes: tuple[int, int, int]
) -> None:
    assert stream_nodes(cores) == nodes


def test_replicas_are_made_until_the_questions_can_be_searched() -> None:
    for qps in (1, 100, 10_000):
        made = cluster(COSTS, 10**7, qps, busy=0.7)
        assert 0.7 * made.capacity >= qps
        if made.replicas > 1:
            assert 0.7 * made.capacity * (made.replicas - 1) / made.replicas < qps


def test_a_million_vectors_need_what_the_formula_says() -> None:
    """1,088 bytes a vector and a share of words and text, two segments of 1 GB, 15 % more."""
    words, text = 8 * COSTS.postings, 4 * COSTS.characters + 400
    by_hand = 1.15 * (10**6 * (1088 + words) + 2 * GB) + 10**6 * text / 10
    assert cluster(COSTS, 10**6, 1, busy=0.7).loaded == pytest.approx(by_hand)
