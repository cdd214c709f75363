"""An address -> an open store, made where it is not there; and its end."""

import json
import time
from collections.abc import Mapping
from contextlib import closing

from ingest.errors import Absent, UserError
from ingest.store.identity import check_identity
from ingest.store.milvus.address import Address
from ingest.store.milvus.client import CREATED, EMBEDDER, SHARED, Tables
from ingest.store.milvus.store import MilvusStore
from ingest.store.protocol import Identity


def open_milvus(
    address: Address, *, create: Identity | None = None, expect: Identity | None = None
) -> MilvusStore:
    """The knowledge base at `address`; as `open_store` for a folder.

    Its embedder is written in the properties of the collection, which all tenants share.
    """
    tables = Tables.connect(address)
    try:
        if not tables.exist():
            if create is None:
                raise no_store(address)
            tables.create(create, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
        tables.load()
        properties = tables.properties()
        if EMBEDDER not in properties:  # a copy, by a tool that leaves them out
            raise UserError(
                f"{address} does not say which encoder made it; copy its properties too, or choose "
                "another name",
                zh=f"{address} 没有写明由哪个编码器建立；请一并复制其属性，或换一个名称",
            )
        check_tenant(address, properties)
        identity = Identity(**json.loads(properties[EMBEDDER]))
        for embedder in filter(None, (create, expect)):
            check_identity(str(address), identity, embedder)
        store = MilvusStore(tables, identity, properties[CREATED])
        if not store.sequence:  # its collections are others' or half made
            if create is None:
                raise no_store(address)
            with store.change(reason="making it"):
                pass
    except BaseException:
        tables.close()
        raise
    return store


def check_tenant(address: Address, properties: Mapping[str, str]) -> None:
    """Raises `UserError` where tenants share the collections and none is named, or the reverse."""
    shared = properties.get(SHARED) == "yes"
    if shared and not address.tenant:
        raise UserError(
            f"{address} is shared by tenants; name yours: {address}?tenant=NAME",
            zh=f"{address} 由多个租户共用；请写明租户：{address}?tenant=名称",
        )
    if address.tenant and not shared:
        raise UserError(
            f"{address} names a tenant, but that knowledge base is not shared; leave ?tenant= out",
            zh=f"{address} 写明了租户，但该知识库不是共用的；请去掉 ?tenant=",
        )


def drop_milvus(address: Address) -> None:
    """Remove a knowledge base for good; of tenants that share collections, this one's rows."""
    with closing(Tables.connect(address)) as tables:
        if properties := tables.properties():
            check_tenant(address, properties)
        tables.drop()


def no_store(address: Address) -> Absent:
    return Absent(
        f"no knowledge base at {address}; make one: rag ingest PATH... --kb {address}",
        zh=f"{address} 没有知识库；请先建立：rag ingest 路径 --kb {address}",
    )
