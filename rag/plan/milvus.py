"""How large a Milvus cluster is: Milvus' published sizing, simulated, not measured here.

SIZING is the sizing tool's own source (milvus-io/milvus.io, src/utils/sizingTool.ts). REPORT is the
Milvus 2.1 benchmark report: HNSW, 1,000,000 vectors of 128 dimensions, 12 cores, ef 64: 6,904
questions/s. AUTOINDEX on a CPU is HNSW_SQ, 4-bit codes refined by 16-bit vectors (milvus#47386).
"""

from dataclasses import dataclass
from math import ceil

from rag.plan.constants import Costs
from rag.plan.made import DIM

GB = 2**30
RAW = 4 * DIM  # bytes of a vector as it is sent
INDEX = DIM / 2 + 2 * DIM + 8 * 16  # AUTOINDEX: codes, 16-bit vectors; SIZING: a graph of M = 16
SEGMENT = 2**30  # SIZING: two segments are held beside the index
SPARE = 1.15  # SIZING
POSTING = 8  # assumed: bytes of a row's number and its weight in a sparse inverted index
COPIES = 4  # of a chunk's text: its own, its passage's, and one for each of two analyzers
ROW = 400  # assumed: bytes of a chunk's names, places and numbers
OFFLOADED = 0.1  # SIZING: of fields mapped from disk, a tenth is in memory
SEARCH = 12 / 6904 * (DIM / 128) * (100 / 64) / 1e6  # REPORT: core seconds a vector, with ef 100
LEGS = 3  # vectors, words, bigrams; assumed: a search by words costs what one by vectors costs
OVERHEAD = 0.01  # assumed: seconds in the proxy and between nodes


@dataclass(frozen=True, slots=True)
class Pods:
    """Containers of one sort; `memory` in GB."""

    name: str
    count: int
    cores: float
    memory: float


@dataclass(frozen=True, slots=True)
class Cluster:
    """`loaded`: bytes that one replica holds in memory; `disk`: of object storage and query nodes."""

    pods: tuple[Pods, ...]
    replicas: int
    loaded: float
    disk: float
    seconds: float
    """Of the searches of one question, alone."""
    capacity: float
    """Questions a second while all its cores search."""

    @property
    def cores(self) -> float:
        return sum(pods.count * pods.cores for pods in self.pods)

    @property
    def memory(self) -> float:
        """Bytes."""
        return sum(pods.count * pods.memory for pods in self.pods) * GB


def cluster(costs: Costs, chunks: int, qps: float, *, busy: float) -> Cluster:
    """The pods that hold `chunks` and search `qps` questions a second, each core `busy` at most."""
    sparse, text = costs.postings * POSTING, costs.characters * COPIES + ROW
    indexes = (chunks * (INDEX + sparse) + 2 * SEGMENT) * SPARE
    loaded = indexes + chunks * text * OFFLOADED
    cores, memory, count = query_nodes(loaded / GB)
    work = LEGS * SEARCH * chunks  # core seconds a question
    alone = work / (cores * count)  # segments lie on all nodes, and each has its core
    replicas = max(1, ceil(qps * work / (busy * cores * count)))
    nodes = replicas * count
    pods = (
        Pods("query node", nodes, cores, memory),
        Pods("stream node", *stream_nodes(cores * nodes)),
        *steady(loaded / GB),
        *dependencies(chunks),
    )
    stored = chunks * (RAW + text + sparse + INDEX)  # SIZING: rows and what is loaded
    return Cluster(
        pods,
        replicas,
        loaded,
        stored + replicas * chunks * text,
        alone + OVERHEAD,
        replicas * cores * count / work,
    )


def query_nodes(memory: float) -> tuple[int, int, int]:
    """SIZING: cores, GB and number of the query nodes that hold so many GB."""
    if memory < 8:
        return 2, 8, 1
    if memory < 96:
        return 4, 16, ceil(memory / 16)
    for least, cores, size in ((2048, 32, 128), (512, 16, 64), (96, 8, 32)):
        if memory >= least:
            return cores, size, ceil(memory / size)
    raise AssertionError(memory)


def stream_nodes(cores: float) -> tuple[int, int, int]:
    """SIZING: number, cores and GB of the streaming nodes beside query nodes of so many cores."""
    units = ceil(cores / 16)
    if units <= 1:
        return 1, 2, 8
    if units == 2:
        return 1, 4, 16
    if units <= 4:
        return 2, 4, 16
    return max(2, ceil(units * 2 / 8)), 8, 32


def steady(memory: float) -> tuple[Pods, ...]:
    """SIZING: the proxy, the coordinator and the nodes that build indexes."""
    if memory < 8:
        return Pods("proxy", 1, 1, 4), Pods("coordinator", 1, 1, 4), Pods("data node", 1, 2, 8)
    if memory < 96:
        count = 1 if memory < 16 else 2 if memory < 64 else 4
        return Pods("proxy", 1, 2, 8), Pods("coordinator", 1, 2, 8), Pods("data node", count, 4, 16)
    return Pods("proxy", 1, 8, 32), Pods("coordinator", 1, 8, 32), Pods("data node", 8, 8, 16)


def dependencies(chunks: int) -> tuple[Pods, ...]:
    """SIZING: etcd, object storage and the log (Pulsar), by the size of the vectors."""
    large = RAW * chunks >= 100e6 * 768 * 4
    return (
        Pods("etcd", 3, 1, 8 if large else 4),
        Pods("minio", 4, 1, 8),
        Pods("pulsar bookie", 3, 2 if large else 1, 16 if large else 8),
        Pods("pulsar broker", 2, 2 if large else 1, 8 if large else 4),
        Pods("pulsar proxy", 2, 1 if large else 0.5, 4),
        Pods("zookeeper", 3, 0.5, 4 if large else 2),
    )
