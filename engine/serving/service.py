"""What does a serving process hold? Per domain a loader and a watch; a database; threads that keep them current.

Three threads ask the outside: HDFS, or the serving store, for versions and epochs, HDFS for the logs, Kafka for its
ends. Requests only read what these left; when one of them gets no answer the last good state is served on, and
staleness grows.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import duckdb
import structlog

from engine.domain import Domain, View
from engine.runtime import kafka
from engine.runtime.settings import Settings
from engine.serving.query import open_database
from engine.serving.replica import Replica, reopened
from engine.serving.reply import Cursors, Problem
from engine.serving.snapshot import Loader, Snapshot, needed
from engine.serving.store import Torn
from engine.serving.watch import Watch
from engine.storage.hdfs import HdfsUnavailable
from engine.storage.log import LogReader, Position, covers
from engine.storage.versions import definition_of

HOLD_SECONDS = 300.0
DEADLINE_SECONDS = 20.0
SILENCE_SECONDS = 30.0
QUERY_THREADS = 4
HDFS_THREADS = 2
WAITING_QUERIES = 64

_log = structlog.get_logger("engine.serving.service")


@dataclass
class Service:
    """The state behind the routes; only its own threads change it.

    Args:
        fs: HDFS; versions and epochs, unless there is a store, and the logs.
        store: the serving store (`engine.serving.store.Store`) to read versions and epochs from, None for HDFS.
    """

    settings: Settings
    domains: Sequence[Domain]
    fs: Any
    clock: Callable[[], float] = time.time
    store: Any = None
    database: duckdb.DuckDBPyConnection = field(default_factory=open_database)
    cursors: Cursors = field(default_factory=Cursors)

    def __post_init__(self) -> None:
        self.loaders = {d.name: self._loader(d) for d in self.domains}
        self.watches = {d.name: Watch(d) for d in self.domains}
        names = ("HDFS", "Kafka", *(("Cassandra",) if self.store else ()))
        self.heard = dict.fromkeys(names, self.clock())
        self._silence: dict[str, str] = {}
        self._sealed_alike = False
        self.pool = ThreadPoolExecutor(QUERY_THREADS, "query")
        self.readers = ThreadPoolExecutor(HDFS_THREADS, "reader")
        self._waiting = 0
        self._held: dict[str, tuple[Snapshot, float]] = {}
        self._holding = threading.Lock()
        self._raw = LogReader(self.fs)
        self._ids: dict[str, str] = {}
        self._admin: Any = None
        # Loader and watch of a version with another definition, until they may take over.
        self._coming: dict[str, tuple[Loader | Replica, Watch]] = {}
        self._stop = threading.Event()

    def start(self) -> None:
        """Start the threads; they die with the process."""
        for work, pause in ((self.poll, self.settings.serving_poll_ms / 1000), (self.look, 2.0), (self.ask, 1.0)):
            threading.Thread(target=self._repeat, args=(work, pause), name=work.__name__, daemon=True).start()

    def stop(self) -> None:
        self._stop.set()
        for pool in (self.pool, self.readers):
            pool.shutdown(wait=False, cancel_futures=True)

    def poll(self) -> None:
        """Look for new versions and epochs of every domain."""
        if self.store and not self._sealed_alike:
            self.cursors, self._sealed_alike = Cursors(self.store.cursor_key()), True
        failed: Exception | None = None
        for name, loader in self.loaders.items():
            try:
                loader.poll()
                self._follow_definition(name, loader)
            except Exception as error:  # the other domains go on
                failed = failed or error
        if failed:
            raise failed
        self.heard["Cassandra" if self.store else "HDFS"] = self.clock()

    def _loader(self, domain: Domain) -> Loader | Replica:
        if self.store:
            return Replica(self.store, domain, self.database)
        return Loader(self.fs, domain, self.database)

    def _follow_definition(self, name: str, loader: Loader | Replica) -> None:
        """Serve by the definition that the version to serve was built from, as soon as it covers what is served now."""
        target = loader.target
        if target is None or not target.definition or target.definition_hash == loader.domain.definition_hash:
            self._coming.pop(name, None)
            return
        if name not in self._coming or self._coming[name][0].domain.definition_hash != target.definition_hash:
            domain = definition_of(target)
            self._coming[name] = self._loader(domain), Watch(domain)
        coming, watch = self._coming[name]
        now, then = loader.current, coming.poll()
        if then is None:
            return
        # What it covered of topics that the definition has left is of no matter any more.
        least: Position = {}
        if now and loader.pinned is None:
            least = needed(self.fs, now.coverage, now.chain, [then.chain], coming.domain.topics)
        if not covers(then.coverage, least):
            return
        watch.look(self._raw, self._ids)
        watch.take_over(self.watches[name])
        self.loaders = {**self.loaders, name: coming}
        self.watches = {**self.watches, name: watch}
        self.domains = [coming.domain if domain.name == name else domain for domain in self.domains]
        del self._coming[name]
        _log.warning("definition", domain=name, version=target.version, definition=target.definition_hash)

    def look(self) -> None:
        """List the logs of every domain."""
        failed: Exception | None = None
        for watch in self.watches.values():
            try:
                watch.look(self._raw, self._ids)
            except Exception as error:  # the other domains go on
                failed = failed or error
        if failed:
            raise failed
        if self.store:
            self.heard["HDFS"] = self.clock()

    def ask(self) -> None:
        """Ask Kafka where its logs end."""
        topics = [topic for domain in self.domains for topic in domain.topics]
        if self._admin is None:
            self._admin = kafka.admin(self.settings)
        asked, shown = self.clock(), {name: loader.current for name, loader in self.loaders.items()}
        self._ids = kafka.topic_ids(self._admin, topics)
        ranges = kafka.log_ranges(self._admin, topics)
        ends = {
            topic: (self._ids[topic], {p: end for p, (_, end) in by.items()})
            for topic, by in ranges.items()
            if topic in self._ids
        }
        for name, loader in self.loaders.items():
            if isinstance(loader, Loader):
                loader.note(shown.get(name), ends)
        for watch in self.watches.values():
            watch.note(asked, self._ids, ranges)
        self.heard["Kafka"] = self.clock()

    def _repeat(self, work: Callable[[], None], pause: float) -> None:
        said = ""
        while not self._stop.is_set():
            try:
                work()
                said = ""
                self._silence.pop(work.__name__, None)
            except Exception as error:
                text = f"{type(error).__name__}: {str(error).splitlines()[0][:300] if str(error) else ''}"
                self._silence[work.__name__] = text
                if text != said:
                    _log.warning("no answer", work=work.__name__, reason=text)
                said = text
            self._stop.wait(pause)

    def domain(self, name: str) -> Domain:
        """Raises Problem 404 with the known names."""
        found = next((domain for domain in self.domains if domain.name == name), None)
        return found or _unknown("domain", [domain.name for domain in self.domains])

    def view(self, name: str) -> tuple[Domain, View]:
        """Raises Problem 404 with the known names."""
        views = {view.name: (domain, view) for domain in self.domains for view in domain.views}
        return views.get(name) or _unknown("view", views)

    def report(self, name: str) -> tuple[Domain, Any]:
        """Raises Problem 404 with the known names."""
        reports = {report.name: (domain, report) for domain in self.domains for report in domain.reports}
        return reports.get(name) or _unknown("report", reports)

    def topic(self, name: str) -> Domain:
        """Raises Problem 404 with the known names."""
        topics = {topic: domain for domain in self.domains for topic in domain.topics}
        return topics.get(name) or _unknown("topic", topics)

    def snapshot(self, domain: Domain, held: str | None = None) -> Snapshot:
        """Return what to answer from, of this very definition.

        Args:
            held: name of a snapshot that a cursor holds.

        Raises:
            Problem: 503 where there is nothing right to say yet, 410 where the held snapshot is gone.
        """
        if held is not None:
            with self._holding:
                self._drop_held()
                kept = self._held.get(held)
            if kept is None or kept[0].domain.definition_hash != domain.definition_hash:
                raise _gone()
            return kept[0]
        current = self.loaders[domain.name].current
        if current is None:
            raise Problem(
                503, f"domain '{domain.name}' has neither a batch version nor epochs of this definition", retry_after=2
            )
        if current.domain.definition_hash != domain.definition_hash:
            raise Problem(503, f"the definition of domain '{domain.name}' has just changed; ask again", retry_after=1)
        if self.watches[domain.name].seen is None:
            raise Problem(503, f"the logs of domain '{domain.name}' have not been listed yet", retry_after=2)
        return current

    async def held(self, domain: Domain, name: str) -> Snapshot:
        """Return the snapshot that a cursor names, also one of another replica, as long as the store has it.

        Raises:
            Problem: 410 where it is gone, 503 where the store does not answer.
        """
        if self.store is None or name in self._held:
            return self.snapshot(domain, name)
        current = self.snapshot(domain)
        if current.name == name:
            return current
        try:
            loop = asyncio.get_running_loop()
            found = await loop.run_in_executor(self.pool, reopened, self.store, domain, self.database, name)
        except Torn:
            raise _gone() from None
        except Exception as error:
            _log.warning("no answer", work="held", reason=str(error)[:300])
            raise Problem(503, "the serving store does not answer", retry_after=2) from None
        if found is None:
            raise _gone()
        self.hold(found)
        return found

    def hold(self, snapshot: Snapshot) -> str:
        """Keep a snapshot for the time that a cursor may name it."""
        with self._holding:
            self._drop_held()
            self._held[snapshot.name] = snapshot, self.clock()
        return snapshot.name

    def _drop_held(self) -> None:
        now = self.clock()
        self._held = {name: kept for name, kept in self._held.items() if now - kept[1] <= HOLD_SECONDS}

    def facts(self, snapshot: Snapshot) -> dict[str, Any]:
        """What every data answer says of itself."""
        watch = self.watches[snapshot.domain.name]
        missing = watch.missing(snapshot)
        stale = round(watch.staleness(snapshot, self.clock()), 3)
        return {"as_of": snapshot.as_of, "complete": not missing, "missing": missing, "staleness_seconds": stale}

    async def run(self, work: Callable[[duckdb.DuckDBPyConnection], Any], reads_hdfs: bool = False) -> Any:
        """Run a query in the pool on a cursor of its own. Raises Problem 503 when full, or at a deadline that stops it.

        Args:
            reads_hdfs: in a pool of its own, so that answers from memory do not wait where HDFS is away.
        """
        with self._holding:
            if self._waiting >= WAITING_QUERIES:
                raise Problem(503, "too many queries are waiting", retry_after=1)
            self._waiting += 1
        cursor = self.database.cursor()
        job = (self.readers if reads_hdfs else self.pool).submit(work, cursor)
        job.add_done_callback(self._done)  # a job that goes on after its deadline still takes its place
        try:
            return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(job)), DEADLINE_SECONDS)
        except TimeoutError:
            if job.cancel():
                cursor.close()
            else:
                cursor.interrupt()
            said = "HDFS does not answer" if reads_hdfs and self.silent("HDFS") else "narrow the request"
            raise Problem(503, f"not answered within {DEADLINE_SECONDS:g} s; {said}", retry_after=5) from None
        except HdfsUnavailable as error:
            raise Problem(503, str(error), retry_after=5) from None

    def _done(self, _job: Any) -> None:
        with self._holding:
            self._waiting -= 1

    def silent(self, who: str) -> bool:
        """Whether a service has not answered for longer than readiness allows."""
        return self.clock() - self.heard[who] > SILENCE_SECONDS

    def _why(self, who: str) -> str:
        works = {"Kafka": "ask", "HDFS": "look" if self.store else "poll", "Cassandra": "poll"}
        said = self._silence.get(works[who])
        return f": {said}" if said else ""

    def reasons(self) -> tuple[list[str], list[str]]:
        """Return why the process is not ready, and what should worry an operator."""
        now = self.clock()
        failing = [
            f"domain '{name}' has no snapshot" for name, loader in self.loaders.items() if loader.current is None
        ]
        failing += [
            f"{who} has not answered for {now - at:.0f} s{self._why(who)}"
            for who, at in self.heard.items()
            if self.silent(who)
        ]
        worrying = []
        for name, loader in self.loaders.items():
            if loader.current is not None:
                stale, bound = self.watches[name].staleness(loader.current, now), self.settings.ready_staleness
                behind = f"domain '{name}' is {stale:.0f} s behind Kafka"
                if bound and stale > bound:
                    failing.append(f"{behind}, READY_STALENESS allows {bound:g}")
                elif stale > 60:
                    worrying.append(behind)
                worrying += [f"{m['reason']}: {m}" for m in self.watches[name].missing(loader.current)]
        return failing, worrying


def _gone() -> Problem:
    return Problem(410, f"the snapshot of this cursor is gone after {HOLD_SECONDS:g} s; begin again without it")


def _unknown(what: str, known: Any) -> Any:
    raise Problem(404, f"no such {what}", known=known)
