"""How do the streaming queries of several domains share a process? A fault of one domain leaves the others at work."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import structlog

from engine.domain import Domain
from engine.runtime import observe

# A domain with a fault is left out, and tried again after so long, while the others go on.
LEFT_OUT_SECONDS = 120.0

_log = structlog.get_logger("engine.runtime.queries")


class Query(Protocol):
    """One domain's streaming query."""

    domain: Domain

    def start(self) -> Any:
        """Return Spark's query, at work."""
        ...

    def close(self) -> None:
        """Forget what is of no use once it has ended."""
        ...


@dataclass
class Queries:
    """The queries of all domains of a layer.

    Args:
        make: opens one domain's query; it says to `Ending` what a micro-batch raised.
        started: told of all queries each time that they have begun.
        beat: called about once a second while all of them run.
        faults: what a person has to look at; the domain is left out meanwhile.
        restarts: what a new start of the process heals.
        anew: what a new start of the queries heals.
    """

    chosen: Sequence[Domain]
    make: Callable[[Domain, observe.Ending], Query]
    started: Callable[[Sequence[Any]], None]
    beat: Callable[[], None]
    faults: tuple[type[Exception], ...]
    restarts: tuple[type[Exception], ...]
    anew: tuple[type[Exception], ...] = ()
    left_out: dict[str, float] = field(default_factory=dict)  # domain → when it is tried again

    def run(self, stop: observe.Stop) -> None:
        """Run them until the stop signal.

        Raises:
            What a micro-batch raised that needs another process, or a fault where no domain is without one.
            SystemExit: no query could be opened.
        """
        while not stop:
            self.run_once(observe.Ending(stop))

    def run_once(self, ending: observe.Ending) -> None:
        """Run them until the stop signal, or until all have to be started anew; raises as `run`."""
        codes = {0}
        queries: list[Query] = []
        of_spark: list[Any] = []  # Spark's own query of each

        def start_missing() -> None:
            there, now = [query.domain.name for query in queries], time.monotonic()
            for domain in self.chosen:
                if domain.name in there or self.left_out.get(domain.name, now) > now:
                    continue
                self.left_out[domain.name] = now + LEFT_OUT_SECONDS
                with observe.outcome(codes, self.faults, self.restarts):
                    query = self.make(domain, ending)
                    of_spark.append(query.start())
                    queries.append(query)
                    del self.left_out[domain.name]

        def beat() -> None:
            self.beat()
            start_missing()

        start_missing()
        if not queries:
            sys.exit(observe.worst(codes))
        self.started(queries)
        try:
            observe.await_queries(of_spark, ending, beat)
        except self.anew as reason:
            _log.info("started anew", reason=str(reason))
        except self.faults:
            failed = [query for query, spark in zip(queries, of_spark, strict=True) if spark.exception()]
            if len(failed) == len(queries):
                raise
            with observe.outcome(codes, self.faults, self.restarts):
                raise
            self.left_out |= {query.domain.name: time.monotonic() + LEFT_OUT_SECONDS for query in failed}
        finally:
            for query in queries:
                query.close()
