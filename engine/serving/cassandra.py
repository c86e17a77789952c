"""How do we speak to Cassandra? The verbs of `engine.serving.store.Store`, with bounded retries.

Every read and write is of a quorum, so what was written before the pointer moved is found by who read the pointer. The
pointer moves by a lightweight transaction; an answer that was lost is asked for again. All other writes say the same
when they happen twice. Deleted keys never come back into use (`engine.serving.store`), so tombstones may go after an
hour.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging
import random
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

from engine.runtime.settings import Settings, SettingsError
from engine.serving.store import Cell, Place

RETRY_SECONDS = 40.0
# Serving answers from what it has meanwhile, and looks again at its next poll.
SERVING_RETRY_SECONDS = 5.0
REQUEST_SECONDS = 10.0
WRITES_AT_ONCE = 8
TOMBSTONE_SECONDS = 3600
# Longer than a cursor is held (`engine.serving.service.HOLD_SECONDS`).
NAMED_SECONDS = 600

INSTALL = "python -m pip install --require-hashes -r requirements-cassandra.lock"

TABLES = (
    "pointers (domain text PRIMARY KEY, serial bigint, body blob)",
    "named (domain text, name text, body blob, PRIMARY KEY ((domain, name)))",
    "places (domain text, edition text, part text, bucket int, PRIMARY KEY ((domain), edition, part, bucket))",
    "cells (domain text, edition text, part text, bucket int, item bigint, digest text, number int, data blob, "
    "PRIMARY KEY ((domain, edition, part, bucket), item, digest, number))",
    "keys (purpose text PRIMARY KEY, key blob)",
)
_PLACE = "domain = ? AND edition = ? AND part = ? AND bucket = ?"


class CassandraUnavailable(RuntimeError):
    """Cassandra did not answer within the retries, or has no tables yet; a restart heals once it is back."""


class Cassandra:
    """A connection to one keyspace; it is made at the first request, and made again by the driver when it breaks."""

    def __init__(self, contact_points: str, keyspace: str, replication: int, patience: float = RETRY_SECONDS) -> None:
        self._points, self._keyspace, self._replication = contact_points, keyspace, replication
        self._patience = patience
        self._cluster: Any = None
        self._session: Any = None
        self._prepared: dict[str, Any] = {}

    @staticmethod
    def of(settings: Settings, patience: float = RETRY_SECONDS) -> Cassandra:
        """Return the store of these settings. Raises SettingsError where the driver is not installed."""
        if importlib.util.find_spec("cassandra") is None:
            raise SettingsError(f"Cassandra: its driver is not installed; run: {INSTALL}")
        where = settings.cassandra_contact_points, settings.cassandra_keyspace, settings.cassandra_replication
        return Cassandra(*where, patience)

    def create_tables(self) -> None:
        """Make keyspace and tables where they are missing, and the key that all replicas seal cursors with."""
        strategy = f"{{'class': 'NetworkTopologyStrategy', 'replication_factor': {self._replication}}}"
        options = f"gc_grace_seconds = {TOMBSTONE_SECONDS}"

        def create() -> None:
            session = self._connected()
            session.execute(f"CREATE KEYSPACE IF NOT EXISTS {self._keyspace} WITH replication = {strategy}")
            for table in TABLES:
                session.execute(f"CREATE TABLE IF NOT EXISTS {self._keyspace}.{table} WITH {options}")

        self._retry("make the tables", create)
        made = "cursors", secrets.token_bytes(32)
        self._run("INSERT INTO {}.keys (purpose, key) VALUES (?, ?) IF NOT EXISTS", made)

    def cursor_key(self) -> bytes:
        """Return the key that all replicas seal cursors with."""
        row = self._run("SELECT key FROM {}.keys WHERE purpose = ?", ("cursors",)).one()
        if row is None:
            raise CassandraUnavailable(f"keyspace {self._keyspace} is not complete; run: python -m engine.materialise")
        return bytes(row.key)

    def pointer(self, domain: str, settled: bool = False) -> tuple[int, bytes] | None:
        row = self._run("SELECT serial, body FROM {}.pointers WHERE domain = ?", (domain,), settled).one()
        return (row.serial, bytes(row.body)) if row else None

    def advance(self, domain: str, serial: int, body: bytes) -> bool:
        if serial == 1:
            cql = "INSERT INTO {}.pointers (domain, serial, body) VALUES (?, ?, ?) IF NOT EXISTS"
            row = self._run(cql, (domain, serial, body)).one()
        else:
            cql = "UPDATE {}.pointers SET serial = ?, body = ? WHERE domain = ? IF serial = ?"
            row = self._run(cql, (serial, body, domain, serial - 1)).one()
        # Refused: by another writer, or by our own request before, whose answer was lost.
        return bool(row[0]) or self.pointer(domain, settled=True) == (serial, body)

    def name(self, domain: str, name: str, body: bytes) -> None:
        """Keep a pointer that is about to be left for as long as a cursor may name it."""
        cql = f"INSERT INTO {{}}.named (domain, name, body) VALUES (?, ?, ?) USING TTL {NAMED_SECONDS}"
        self._run(cql, (domain, name, body))

    def named(self, domain: str, name: str) -> bytes | None:
        """Return the body of a pointer that was left a short time ago."""
        row = self._run("SELECT body FROM {}.named WHERE domain = ? AND name = ?", (domain, name)).one()
        return bytes(row.body) if row else None

    def register(self, place: Place) -> None:
        cql = "INSERT INTO {}.places (domain, edition, part, bucket) VALUES (?, ?, ?, ?)"
        self._run(cql, _key(place))

    def places(self, domain: str) -> list[Place]:
        rows = self._run("SELECT edition, part, bucket FROM {}.places WHERE domain = ?", (domain,))
        return [Place(domain, row.edition, row.part, row.bucket) for row in rows]

    def write(self, place: Place, cells: Sequence[Cell]) -> None:
        columns = "domain, edition, part, bucket, item, digest, number, data"
        cql = f"INSERT INTO {{}}.cells ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"

        def write(some: Sequence[Cell]) -> None:
            session, statement = self._connected(), self._statement(cql)
            for future in [
                session.execute_async(statement, (*_key(place), c.item, c.digest, c.number, c.data)) for c in some
            ]:
                future.result()

        for first in range(0, len(cells), WRITES_AT_ONCE):
            some = cells[first : first + WRITES_AT_ONCE]
            self._retry(f"write to {place.part} of {place.domain}", functools.partial(write, some))

    def read(self, place: Place, item: int = 0) -> list[Cell]:
        cql = f"SELECT item, digest, number, data FROM {{}}.cells WHERE {_PLACE} AND item >= ?"
        rows = self._run(cql, (*_key(place), item))
        return [Cell(row.item, row.digest, row.number, bytes(row.data)) for row in rows]

    def drop(self, place: Place) -> None:
        self._run(f"DELETE FROM {{}}.cells WHERE {_PLACE}", _key(place))
        self._run(f"DELETE FROM {{}}.places WHERE {_PLACE}", _key(place))

    def close(self) -> None:
        """Leave the cluster; the next request joins it again."""
        cluster, self._cluster, self._session, self._prepared = self._cluster, None, None, {}
        if cluster is not None:
            with contextlib.suppress(Exception):
                cluster.shutdown()

    def _run(self, cql: str, values: Sequence[Any], settled: bool = False) -> Any:
        def run() -> Any:
            from cassandra import ConsistencyLevel

            statement = self._statement(cql).bind(values)
            if settled:
                statement.consistency_level = ConsistencyLevel.SERIAL
            found = self._connected().execute(statement)
            return _Rows(list(found))  # all pages, inside the retry

        return self._retry(cql.partition(" ")[0].lower(), run)

    def _statement(self, cql: str) -> Any:
        if cql not in self._prepared:
            self._prepared[cql] = self._connected().prepare(cql.format(self._keyspace))
        return self._prepared[cql]

    def _connected(self) -> Any:
        """Return the session, joining the cluster first where there is none."""
        if self._session is None:
            from cassandra import ConsistencyLevel
            from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile
            from cassandra.io.libevreactor import LibevConnection  # in every wheel; asyncore left Python with 3.12
            from cassandra.policies import ConstantReconnectionPolicy, RoundRobinPolicy, TokenAwarePolicy

            logging.getLogger("cassandra").setLevel(logging.CRITICAL)  # what matters comes as an exception
            profile = ExecutionProfile(
                TokenAwarePolicy(RoundRobinPolicy()),
                consistency_level=ConsistencyLevel.QUORUM,
                serial_consistency_level=ConsistencyLevel.SERIAL,
                request_timeout=REQUEST_SECONDS,
            )
            self._cluster = Cluster(
                [_point(text) for text in self._points.split(",")],
                connection_class=LibevConnection,
                execution_profiles={EXEC_PROFILE_DEFAULT: profile},
                reconnection_policy=ConstantReconnectionPolicy(1.0, None),
                connect_timeout=REQUEST_SECONDS,
            )
            try:
                self._session = self._cluster.connect()
            except Exception:
                self.close()
                raise
        return self._session

    def _retry(self, what: str, call: Callable[[], Any]) -> Any:
        from cassandra import DriverException, InvalidRequest, RequestExecutionException
        from cassandra.cluster import NoHostAvailable

        deadline, pause = time.monotonic() + self._patience, 0.1
        while True:
            try:
                return call()
            except InvalidRequest as error:
                if "does not exist" not in str(error):
                    raise
                raise CassandraUnavailable(
                    f"CASSANDRA_KEYSPACE={self._keyspace} has no tables yet; run: python -m engine.materialise"
                ) from error
            except (NoHostAvailable, DriverException, RequestExecutionException, OSError) as error:
                if time.monotonic() + pause > deadline:
                    reason = " ".join(str(error).split())[:200]
                    raise CassandraUnavailable(
                        f"CASSANDRA_CONTACT_POINTS={self._points}: cannot {what}: {reason}; "
                        "see `python -m stack status`"
                    ) from error
            time.sleep(pause * (0.5 + random.random()))
            pause = min(pause * 2, 5.0)


class _Rows(list[Any]):
    def one(self) -> Any:
        return self[0] if self else None


def _key(place: Place) -> tuple[str, str, str, int]:
    return place.domain, place.edition, place.part, place.bucket


def _point(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)
