"""Puts what is served into Cassandra: follows HDFS as serving does, writes rows, and moves the pointer last.

    python -m engine.materialise --domain learning

Reads:   HDFS, as `engine.serving.snapshot.Loader` does.
Writes:  Cassandra, as `engine.serving.store` says; nothing on HDFS.
Promise: what the pointer names was written before it; coverage never goes back, except by a recorded rollback. It may
         be killed at any line and run twice: of two that move the pointer one wins, the other follows.

Exit codes: 0 after SIGTERM, 1 the store holds answers of another cluster, 2 a wrong setting, 75 HDFS or Cassandra did
not answer within the retries.
"""

from __future__ import annotations

import argparse
import sys

import structlog

import domains
from engine.domain import DeclarationError
from engine.runtime import observe
from engine.runtime.settings import SettingsError, add_flags, environment, from_args
from engine.serving.cassandra import Cassandra, CassandraUnavailable
from engine.serving.materialise import Materialiser, OtherCluster, Writer, step_all
from engine.serving.query import open_database
from engine.storage.hdfs import Hdfs, HdfsUnavailable

_log = structlog.get_logger("engine.materialise")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m engine.materialise", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_flags(parser, {"domain": "--domain"})
    args = parser.parse_args(argv)
    again = (HdfsUnavailable, CassandraUnavailable)
    with observe.exit_codes((SettingsError, DeclarationError), (OtherCluster,), again):
        settings = from_args(args)
        chosen = domains.named(settings.domain, environment())
        observe.start_logging(settings)
        stop = observe.Stop()
        fs, store = Hdfs(settings.hdfs_url, settings.hadoop_user_name), Cassandra.of(settings)
        store.create_tables()
        writers = [Materialiser(fs, domain, Writer(store, domain.name), open_database()) for domain in chosen]
        _log.info("materialising", domains=[domain.name for domain in chosen], keyspace=settings.cassandra_keyspace)
        while not stop:
            if not step_all(writers):
                stop.sleep(settings.serving_poll_ms / 1000)
        store.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
