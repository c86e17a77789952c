"""Batch layer: folds all history into one immutable version of every view and report.

    spark-submit batch_layer.py --domain learning           one run
    python batch_layer.py --domain learning --every 10m     again and again
    … --full            fold all typed events anew;   --full --typed   parse the raw log anew, too
    … --dry-run         tell what would be rebuilt and why
    … --candidate       build a version beside the served one, to compare, promote or forget (python -m engine.versions)

Reads    /data/master_dataset (raw segments), the parent version, the ends of the speed layer's epochs.
Writes   /data/events/<schema hash>/topic=/log=/partition=/<base>.parquet  typed events, one row per raw row
         /data/batch_views/_versions/<domain>/<version>/{manifest.json, <view>/part-*, <report>/part-*}
         /data/batch_views/<view>/part-*.parquet  plain copy of the newest version, for any reader
Keeps    nothing beside them; what a run did not finish lies in /data/.staging until the next one deletes it.
Promises raw → decode → rules → duplicates → typed log; choose H, an epoch's end → fold the offsets below H → all views
         and reports in one directory rename. Of two runs at once one wins, the other says so and exits 0. Incremental,
         --full and --full --typed give equal rows. A failed check or an error holds back that report alone: the version
         is published, its last good rows stay served, and a line on standard error names check and measured value. A
         domain that fails is told, and the next ones are run. Small old segments of both logs are merged, and what dead
         writers staged is deleted.
Shows    /metrics and /health on :8085.
Exit     The worst of the domains': 0 done or nothing new; 1 a named fault, or a report of the newest version is held
         back; 2 a wrong setting; 75 start again. With --every 1 goes on, and 75 ends the process once every domain had
         its turn.
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from typing import Any

import structlog
from pyspark.sql import SparkSession

import domains
from engine.batch import build
from engine.batch.events import RowsDiffer, extend_typed, forget_typed, spark_writer
from engine.batch.horizon import choose_horizon
from engine.batch.plan import planned
from engine.domain import DeclarationError, Domain
from engine.runtime import metrics, observe
from engine.runtime.session import side_by_side, spark_session
from engine.runtime.settings import Settings, SettingsError, add_flags, environment, from_args
from engine.storage import derived, versions
from engine.storage.commit import OffsetGap, TooSlow
from engine.storage.compact import clean_staging, compact
from engine.storage.hdfs import Hdfs, HdfsUnavailable
from engine.storage.log import MASTER, MasterWentBack, typed_root
from engine.storage.versions import Manifest, VersionUnknown, held_back

# A fresh system has nothing to fold yet; its first real version does not wait for a whole interval.
EMPTY_SECONDS = 15.0
# A run that meets a file that is gone lists again so often, before it asks to be started again.
ATTEMPTS = 3
FAULTS = (OffsetGap, MasterWentBack, VersionUnknown)
RESTARTS = (observe.StartAgain, HdfsUnavailable, RowsDiffer, TooSlow)

_log = structlog.get_logger("batch")


def run(
    spark: SparkSession,
    fs: Hdfs,
    domain: Domain,
    settings: Settings,
    args: argparse.Namespace,
    shown: metrics.BatchMetrics,
    again: bool,
) -> Manifest | None:
    """One batch run of one domain; `again` if this process has made one before.

    Returns:
        The version that was made or, if nothing was new, is there; None if another run was first.

    Raises:
        StartAgain: the domain file has changed since this process read it, and newer code has made a version.
        VersionUnknown: the version that was chosen to be served is gone.
        VersionDamaged: the version that this run built on was set aside.
    """
    started = time.monotonic()
    shown.set_aside(domain.name, len(versions.set_aside(fs, domain.name)))
    domain, parent, number = build.basis(fs, domain, args.candidate)
    if again and parent.definition_hash != domain.definition_hash:
        raise observe.StartAgain(
            f"definition_changed domain {domain.name}: version {parent.version} was made by other code; start again with it"
        )
    if args.typed:
        forget_typed(fs, domain)
    typed = side_by_side(
        *(partial(extend_typed, fs, s, spark_writer(spark, s, settings.hdfs_url)) for s in domain.streams)
    )
    rows = dict(zip(domain.topics, typed, strict=True))
    shown.typed(domain.name, rows)
    _log.info(
        "typed", domain=domain.name, rows=sum(rows.values()), topics=rows, ms=round((time.monotonic() - started) * 1000)
    )

    log = build.typed_log(fs, domain)
    if not parent.version and not build.any_rows(log):
        _log.info("no events yet", domain=domain.name)
        return parent
    before = build.horizon_of(fs, parent, domain, log)
    if args.candidate:
        horizon = before  # beside the served version: what differs comes from the definition alone
    else:
        chain, epochs = build.newest_chain(fs, domain)
        horizon = choose_horizon(build.heads(log), before, chain, epochs, build.utc_now())
    same = (
        parent.version
        and horizon == parent.horizon
        and parent.definition_hash == domain.definition_hash
        and parent.report_hash == domain.report_hash
    )
    newest: Manifest | None = parent
    is_new = args.full or not same
    try:
        if is_new:
            newest = build.version(
                spark, fs, domain, settings.hdfs_url, parent, horizon, log, args.full, number, args.candidate
            )
        else:
            build.check_views(fs, parent)
    except build.VersionDamaged as damage:
        derived.set_aside(fs, versions.folder(domain.name, parent.version), damage)
        shown.set_aside(domain.name, 1)
        raise
    if not is_new:
        _log.info("nothing new", domain=domain.name, version=parent.version, held=list(held_back(parent)))
    elif newest is None:
        _log.info("another run was first", domain=domain.name, version=number)
    else:
        what = "candidate" if args.candidate else "published"
        facts = {"version": newest.version, "events": newest.events, "held": list(held_back(newest))}
        _log.info(what, domain=domain.name, **facts, ms=round((time.monotonic() - started) * 1000))
    shown.version(domain.name, newest or parent)
    build.refresh_plain_folders(fs, domain)
    pruned = build.prune(fs, domain, settings.keep_versions)
    if any(pruned.values()):
        _log.info("pruned", domain=domain.name, **pruned)
    merged = compact(fs, MASTER, domain.topics) + sum(compact(fs, typed_root(s), [s.topic]) for s in domain.streams)
    shown.compacted(domain.name, merged)
    if merged:
        _log.info("compacted", domain=domain.name, segments=merged)
    return newest


def run_listed_again(*work: Any, **more: Any) -> Manifest | None:
    """A run that begins anew where a file was gone, or the version it built on was set aside.

    Raises as `run` at last.
    """
    for _ in range(ATTEMPTS - 1):
        try:
            with build.fresh_listing():
                return run(*work, **more)
        except RowsDiffer as reason:
            _log.warning("once more", reason=str(reason)[:300])
    with build.fresh_listing():
        return run(*work, **more)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, {"domain": (), "batch_interval": "--every", "keep_versions": ()})
    parser.add_argument(
        "--full", action="store_true", help="fold all typed events anew instead of adding to the newest version"
    )
    parser.add_argument("--typed", action="store_true", help="with --full: parse the raw log anew, too")
    parser.add_argument(
        "--candidate", action="store_true", help="build a version beside the served one, at its horizon; not served"
    )
    parser.add_argument("--dry-run", action="store_true", help="tell what would be rebuilt and why; change nothing")
    with observe.exit_codes((SettingsError, DeclarationError), FAULTS, RESTARTS):
        args = parser.parse_args(argv)
        settings = from_args(args)
        chosen = domains.named(settings.domain, environment())
        if args.typed and not args.full:
            raise SettingsError("--typed: allowed only together with --full")
        observe.start_logging(settings)
        stop = observe.Stop()
        fs = Hdfs(settings.hdfs_url, settings.hadoop_user_name)
        codes = {0}
        if args.dry_run:
            for domain in chosen:
                with observe.outcome(codes, FAULTS, RESTARTS):
                    print("\n".join(planned(fs, *build.basis(fs, domain, args.candidate)[:2], args.full, args.typed)))
            _leave(codes)
            return
        shown = metrics.BatchMetrics(chosen, settings.batch_interval)
        host, port = settings.metrics_host, settings.batch_metrics_port
        metrics.serve("batch", shown.registry, shown.health, host, port)
        rounds = 0
        while not stop:
            spark = spark_session("highwater-batch", settings)
            clean_staging(fs)
            empty = True
            codes = {0}
            for domain in chosen:
                newest = None
                with observe.outcome(codes, FAULTS, RESTARTS), shown.run(domain.name):
                    newest = run_listed_again(spark, fs, domain, settings, args, shown, again=rounds > 0)
                held = held_back(newest) if newest else {}
                empty = empty and not (newest and newest.events)
                for name, why in held.items():
                    print(f"held: {domain.name} report '{name}': {why}", file=sys.stderr)
                codes |= {observe.EXIT_FAULT} if held else set()
            observe.stop_spark(spark)  # an executor that waits for the next round would take memory from other jobs
            if not settings.batch_interval or observe.EXIT_AGAIN in codes:
                _leave(codes)
                break
            rounds += 1
            stop.sleep(min(settings.batch_interval, EMPTY_SECONDS) if empty else settings.batch_interval)


def _leave(codes: set[int]) -> None:
    if code := observe.worst(codes):
        sys.exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
