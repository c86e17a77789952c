"""How is a batch version made? Views, reports and a manifest in staging, then one directory rename that may be lost."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial, reduce
from typing import Any

import structlog
from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from engine.batch.events import Ranges, RowsDiffer, read_typed, torn
from engine.domain import (
    ALL_ROWS,
    FURTHER_FIELDS,
    NEW_ROWS,
    OTHER_FIELDS,
    UNKNOWN_FIELDS,
    Domain,
    Stream,
    unknown_order,
)
from engine.fold import spark_fold
from engine.runtime.session import side_by_side
from engine.storage import chains, derived, versions
from engine.storage.chains import Chain, Epoch
from engine.storage.hdfs import Hdfs, HdfsUnavailable
from engine.storage.log import (
    STAGING,
    DamagedSegment,
    FileSystem,
    LogReader,
    MasterWentBack,
    Partition,
    Partitions,
    Position,
    covers,
    each,
    offset_in,
    position,
    typed_root,
)
from engine.storage.versions import VIEWS, Manifest, restricted

# The digest of a partition is the sum over its rows of CRC-32(value) × (offset mod this prime + 1): it sees edited,
# lost, doubled and swapped rows, and two ranges add up to their union.
DIGEST_PRIME = 1_000_003

# How Spark says that a file is gone: while it reads, while it plans, and while it lists.
GONE = ("FILE_NOT_EXIST", "PATH_NOT_FOUND", "java.io.FileNotFoundException")

# SQLSTATEs of what a report's own SQL and data are to blame for: it divides by zero, overflows, is no SQL, raises an
# error. A service that is away, a file that is gone and a task that was lost have others, or none.
OWN_FAULT = re.compile(r"SQLSTATE: (21|22|42|P0)\w{3}")

_log = structlog.get_logger("engine.batch.build")


class VersionDamaged(RowsDiffer):
    """The rows of the version on which a run builds are not what its manifest says.

    The run sets it aside and builds on another.
    """


def utc_now() -> datetime:
    return datetime.now(UTC)


@contextmanager
def fresh_listing() -> Iterator[None]:
    """Turn "a file that was listed is gone" into RowsDiffer: compaction or another run took it.

    Listing again finds its rows.
    """
    try:
        yield
    except (FileNotFoundError, PySparkException, Py4JJavaError) as error:
        if not isinstance(error, FileNotFoundError) and not _is_gone(error):
            raise
        raise RowsDiffer(f"a file went away while it was read: {str(error).splitlines()[0][:300]}") from error


def _is_gone(error: Exception) -> bool:
    return any(sign in str(error) for sign in GONE)


def basis(fs: Hdfs, domain: Domain, candidate: bool) -> tuple[Domain, Manifest, int]:
    """Return by which definition a run builds, on which version, and the number of what it builds.

    A run builds what the domain's file says, on the newest version of the served line. Once a version was chosen by
    hand the line keeps that version's definition: another one gets in as a candidate, to be compared and promoted.

    Raises:
        VersionUnknown: the chosen version is gone, or there is none yet to which a candidate could be compared.
    """
    known, chosen = versions.manifests(fs, domain.name), versions.choice(fs, domain.name)
    zero = versions.version_zero(domain.name, domain.definition_hash, {})
    parent = next(iter((versions.allowed if candidate else versions.line_of)(known, chosen)), zero)
    if candidate and not parent.version:
        raise versions.VersionUnknown(
            f"domain '{domain.name}' has no version yet beside which a candidate could stand; run batch_layer.py without --candidate"
        )
    changed = parent.definition_hash != domain.definition_hash
    if chosen and changed and not candidate:
        _log.warning(
            "the file says otherwise", domain=domain.name, goes_by_version=parent.version, way_out="--candidate"
        )
        # The line keeps what was declared; where this code reads it otherwise, all is built anew under another hash.
        domain = versions.definition_of(parent)
        domain = domain if domain.is_of_this_code else domain.declared_anew()
    return domain, parent, _next_number(fs, domain.name, chosen)


def _next_number(fs: Hdfs, domain: str, chosen: versions.Choice | None) -> int:
    """Return a number that no version ever had.

    It is neither one that is there, nor one that something names, nor the newest taken.
    """
    named = [chain.version for chain in chains.chains(fs, domain)] + ([chosen.version] if chosen else [])
    taken = derived.newest_taken(fs, f"{versions.TAKEN_VERSIONS}/{domain}", f"{versions.VERSIONS}/{domain}")
    return 1 + max([*versions.numbers(fs, domain), *named, taken])


def horizon_of(fs: FileSystem, parent: Manifest, domain: Domain, log: Partitions) -> Position:
    """Return where the parent stands in the topics that the domain has now.

    Raises:
        MasterWentBack: the raw log ends below it.
        RowsDiffer: the typed log does: another run is making it again.
    """
    horizon = restricted(parent.horizon, domain.topics)
    if covers(heads(log), horizon):
        return horizon
    if covers(heads(LogReader(fs).sound(domain.topics)), horizon):
        raise RowsDiffer(
            f"the typed log of {domain.name} ends below version {parent.version}: it was taken away to be made again"
        )
    raise MasterWentBack(
        f"MASTER_WENT_BACK domain {domain.name}: version {parent.version} lies beyond the raw log; restore the master dataset"
    )


def typed_log(fs: FileSystem, domain: Domain) -> Partitions:
    """Return the typed partitions of every topic of a domain; those without a row yet stand at their origin.

    Raises:
        RowsDiffer: one of them does not begin where the raw log does, has a hole, or is damaged.
    """
    try:
        typed = {s.topic: LogReader(fs, typed_root(s)).partitions([s.topic])[s.topic] for s in domain.streams}
    except DamagedSegment as damage:
        raise RowsDiffer(f"the typed log of {domain.name} has to be made again: {damage}") from damage
    raw = LogReader(fs).sound(domain.topics)
    for topic in domain.topics:
        if reason := torn(topic, raw[topic], typed[topic]):
            raise RowsDiffer(f"the typed log of topic '{topic}' is being made again: {reason}")
    for topic, lg, p, partition in each(raw):
        # A horizon that names it is held against coverage, which names it, too.
        typed[topic].setdefault(lg, {}).setdefault(p, Partition((), partition.origin, partition.origin))
    return typed


def any_rows(log: Partitions) -> bool:
    return any(part.head > part.origin for logs in log.values() for by in logs.values() for part in by.values())


def heads(log: Partitions) -> Position:
    return position(log, lambda partition: partition.head)


def newest_chain(fs: Hdfs, domain: Domain) -> tuple[Chain | None, list[Epoch]]:
    """Return the newest chain of this definition with the footers of its consecutive epochs."""
    known = [c for c in chains.chains(fs, domain.name) if c.definition_hash == domain.definition_hash]
    if not known:
        return None, []
    return known[-1], chains.epochs(fs, domain.name, known[-1].number)


def version(
    spark: SparkSession,
    fs: Hdfs,
    domain: Domain,
    url: str,
    parent: Manifest,
    horizon: Position,
    log: Partitions,
    full: bool,
    number: int,
    candidate: bool = False,
) -> Manifest | None:
    """Build and commit version `number` on `parent` at a horizon; None if another run committed it first.

    Args:
        candidate: begin a line of its own, which is not served unless it is promoted.

    Raises:
        RowsDiffer: the typed log did not give the rows that were planned.
        MasterWentBack: it gave other rows below the parent's horizon than those of which the parent was made.
        VersionDamaged: the parent's rows cannot be added to.
    """
    staging = f"{STAGING}/version-{domain.name}-{number}-{utc_now():%Y%m%dT%H%M%S%f}"
    everything = {s.topic: _ranges(log[s.topic], s.topic, horizon, {}) for s in domain.streams}
    since = {s.topic: _since(s, parent, log, horizon, full) for s in domain.streams}
    _register(spark, url, domain, log, since, NEW_ROWS)
    _register(spark, url, domain, log, everything, ALL_ROWS)
    (counts, digests, newest), unknown, reports, *views = side_by_side(
        partial(_ledger, spark, url, domain, parent, log, since, full),
        partial(_unknown_fields, spark, url, domain, parent, log, since, full),
        # All in one piece: a report may read an earlier one.
        partial(_write_reports, spark, fs, domain, url, staging, parent, number),
        *(partial(_write_view, spark, fs, domain, v.name, url, staging, parent, full) for v in domain.views),
    )
    _check_rows(domain, log, horizon, counts)
    built = Manifest(
        domain=domain.name,
        version=number,
        parent=parent.version,
        horizon=horizon,
        definition_hash=domain.definition_hash,
        report_hash=domain.report_hash,
        schema_hashes={s.topic: s.schema_hash for s in domain.streams},
        counts=counts,
        digests=digests,
        events=sum(p.get("good", 0) for logs in counts.values() for by in logs.values() for p in by.values()),
        event_time_max=max(newest.values(), default=None),
        newest=newest,
        unknown=unknown,
        created_at=utc_now().isoformat(),
        line=number if candidate else parent.line,
        definition=domain.to_json(),
        views=dict(zip((view.name for view in domain.views), views, strict=True)),
        reports=reports,
    )
    return commit_version(fs, built, staging)


def commit_version(fs: FileSystem, built: Manifest, staging: str) -> Manifest | None:
    """Commit what was staged under the version's number; None if another run took it, or a later one, first.

    Raises:
        HdfsUnavailable: it is not known whether the version is there.
    """
    fs.create(f"{staging}/manifest.json", built.to_json())
    fs.mkdirs(f"{versions.VERSIONS}/{built.domain}")
    if not derived.take(fs, f"{versions.TAKEN_VERSIONS}/{built.domain}", built.version):
        fs.delete(staging, recursive=True)
        return None
    try:
        fs.rename(staging, versions.folder(built.domain, built.version))
    except FileExistsError:
        fs.delete(staging, recursive=True)
        return None
    except (OSError, RuntimeError) as error:
        raise HdfsUnavailable(
            f"domain {built.domain}: in doubt whether version {built.version} is there: {error}"
        ) from error
    return built


def refresh_plain_folders(fs: Hdfs, domain: Domain) -> None:
    """Bring the plain folder per view up to the served version; a later run finishes what a crash left half done."""
    manifest = versions.followed(fs, domain)
    number = manifest.version
    if not number:
        return
    for name, entry in manifest.views.items():
        plain, marker = f"{VIEWS}/{name}", f"_version-{number:010d}"
        if _marked(fs, f"{plain}/{marker}", manifest):
            continue
        staged = f"{STAGING}/plain-{name}-{number}-{utc_now():%Y%m%dT%H%M%S%f}"
        fs.mkdirs(staged)
        for file in entry["files"]:
            fs.create(f"{staged}/{file}", fs.read(f"{versions.folder(domain.name, number)}/{name}/{file}"))
        fs.create(f"{staged}/{marker}", manifest.created_at.encode())
        old = f"{STAGING}/plain-old-{name}-{utc_now():%Y%m%dT%H%M%S%f}"
        try:
            if fs.status(plain):
                fs.rename(plain, old)
            fs.rename(staged, plain)
        except (FileExistsError, FileNotFoundError):
            continue  # another run is doing the same
        finally:
            fs.delete(old, recursive=True)
            fs.delete(staged, recursive=True)


def _marked(fs: Hdfs, marker: str, manifest: Manifest) -> bool:
    """True if the plain folder holds this version, and not another one of its number."""
    try:
        return fs.read(marker) == manifest.created_at.encode()
    except FileNotFoundError:
        return False


def prune(fs: Hdfs, domain: Domain, keep: int) -> dict[str, int]:
    """Delete versions beyond `keep` and epochs behind the oldest kept H.

    A version stays if it is served or chosen, if the newest chain starts from it, or if one that stays names it for a
    report. A chain stays that fits one of them, or has counted further than the newest one: a server may show that yet,
    and if Kafka loses it, only what the chain has noted of its rows can tell.
    """
    manifests = versions.manifests(fs, domain.name)
    known = chains.chains(fs, domain.name)
    chosen = versions.choice(fs, domain.name)
    wanted = {m.version for m in [*manifests[-keep:], *versions.allowed(manifests, chosen)[:1]]}
    wanted |= {c.version for c in known[-1:]} | ({chosen.version} if chosen else set())
    for manifest in reversed(manifests):  # what a version names is older than it
        if manifest.version in wanted:
            wanted |= {int(entry["version"] or 0) for entry in manifest.reports.values()}
    gone = [m.version for m in manifests if m.version not in wanted and _taken_away(fs, domain.name, m.version)]
    kept = [m for m in manifests if m.version not in gone]
    pruned = {"versions": len(gone), "epochs": 0, "chains": 0}
    for number, chain in enumerate(known):
        epochs = chains.epochs(fs, domain.name, chain.number)
        below = [chains.fits(chain, epochs, m.horizon, m.version) for m in kept]
        fitting = [count for count in below if count is not None]
        counted = epochs[-1].end if epochs else chain.start
        passed = all(
            offset_in(kept[-1].horizon if kept else {}, topic, log, p, 0) >= offset
            for topic, log, p, offset in each(counted)
            if chains.speaks_of(known[-1], topic, log)
        )
        if not fitting and passed and number < len(known) - 1:
            fs.delete(chain.folder, recursive=True)
            pruned["chains"] += 1
            continue
        for epoch in epochs[: min([*fitting, len(epochs) - 1]) if fitting else 0]:  # the last one holds the chain's end
            fs.delete(chains.epoch_path(domain.name, chain.number, epoch.number))
            pruned["epochs"] += 1
    return pruned


def _taken_away(fs: Hdfs, domain: str, version: int) -> bool:
    """Delete a version, unless it is chosen at this very moment.

    Whoever chooses looks afterwards whether it is still there.
    """
    folder = versions.folder(domain, version)
    doomed = f"{STAGING}/pruned-{domain}-{version}-{utc_now():%Y%m%dT%H%M%S%f}"
    fs.mkdirs(STAGING)
    try:
        fs.rename(folder, doomed)
    except FileNotFoundError:
        return True  # another run prunes, too
    chosen = versions.choice(fs, domain)
    if chosen and chosen.version == version:
        fs.rename(doomed, folder)
        return False
    fs.delete(doomed, recursive=True)
    return True


def _ranges(
    partitions: Mapping[str, Mapping[str, Partition]], topic: str, horizon: Position, start: Position
) -> Ranges:
    ranges = {}
    for lg, by in partitions.items():
        for p, partition in by.items():
            begin = max(partition.origin, offset_in(start, topic, lg, p, partition.origin))
            end = min(partition.head, offset_in(horizon, topic, lg, p, partition.origin))
            if begin < end:
                ranges[lg, p] = (begin, end)
    return ranges


def _since(stream: Stream, parent: Manifest, log: Partitions, horizon: Position, full: bool) -> Ranges:
    start = parent.horizon if _continues(stream, parent, full) else {}
    return _ranges(log[stream.topic], stream.topic, horizon, start)


def _register(
    spark: SparkSession, url: str, domain: Domain, log: Partitions, ranges: Mapping[str, Ranges], prefix: str
) -> None:
    good = {}
    for stream in domain.streams:
        rows = read_typed(spark, url, stream, log[stream.topic], ranges[stream.topic])
        good[stream.topic] = rows.where("problem IS NULL")
    spark_fold.register_good_rows(good, prefix)


def _ledger(
    spark: SparkSession,
    url: str,
    domain: Domain,
    parent: Manifest,
    log: Partitions,
    since: Mapping[str, Ranges],
    full: bool,
) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
    """Count folded rows by problem and add up digests per partition; find the newest event time per topic.

    Raises:
        MasterWentBack: rows that the parent was made of are not those that are there now.
    """
    frames = []
    for stream in domain.streams:
        rows = read_typed(spark, url, stream, log[stream.topic], since[stream.topic])
        frames.append(
            rows.select(
                "topic",
                "log",
                "partition",
                F.coalesce("problem", F.lit("good")).alias("problem"),
                "offset",
                "crc",
                "event_time",
            )
        )
    union = reduce(DataFrame.unionByName, frames)
    weighted = F.expr(f"CAST(crc AS DECIMAL(20,0)) * CAST(`offset` % {DIGEST_PRIME} + 1 AS DECIMAL(10,0))")
    newest_good = F.max(F.expr("CASE WHEN problem = 'good' THEN unix_micros(event_time) END"))
    # What was folded before is added up apart where it is folded again, and compared with what the parent says.
    known = [row for s in domain.streams if not _continues(s, parent, full) for row in _ends(parent, s.topic)]
    cases = " ".join(f"WHEN '{topic}/{lg}/{p}' THEN `offset` < {end}" for topic, lg, p, end in known)
    place = "concat(topic, '/', log, '/', `partition`)"
    below = F.expr(f"CASE {place} {cases} ELSE false END" if known else "false").alias("below")
    found = union.groupBy("topic", "log", "partition", "problem", below).agg(
        F.count("*").alias("rows"), F.sum(weighted).alias("digest"), newest_good.alias("newest")
    )
    counts: dict[str, Any] = {}
    digests: dict[str, Any] = {}
    times: dict[str, str] = {}
    before: dict[tuple[str, str, str], Decimal] = {}
    for stream in domain.streams:
        if _continues(stream, parent, full):
            times |= {stream.topic: parent.newest[stream.topic]} if stream.topic in parent.newest else {}
            for lg, by in parent.counts.get(stream.topic, {}).items():
                counts.setdefault(stream.topic, {})[lg] = {p: dict(c) for p, c in by.items()}
                digests.setdefault(stream.topic, {})[lg] = dict(parent.digests[stream.topic][lg])
    for row in found.collect():
        if row.below:
            at = (row.topic, row.log, row.partition)
            before[at] = before.get(at, Decimal(0)) + row.digest
        of = counts.setdefault(row.topic, {}).setdefault(row.log, {}).setdefault(row.partition, {})
        of[row.problem] = of.get(row.problem, 0) + row.rows
        sums = digests.setdefault(row.topic, {}).setdefault(row.log, {})
        sums[row.partition] = str(int(Decimal(sums.get(row.partition, "0")) + row.digest))
        if row.newest is not None:
            moment = datetime.fromtimestamp(row.newest / 1_000_000, UTC).isoformat(timespec="microseconds")
            times[row.topic] = max(moment, times.get(row.topic, moment))
    for topic, lg, p, end in known:
        said = parent.digests.get(topic, {}).get(lg, {}).get(p, "0")
        if int(before.get((topic, lg, p), Decimal(0))) != int(said):
            origin = log[topic][lg][p].origin if p in log[topic].get(lg, {}) else end
            raise MasterWentBack(
                f"MASTER_WENT_BACK topic '{topic}' log {lg} partition {p}: the rows [{origin}, {end}) are not those of which version "
                f"{parent.version} was made; run --full --typed, and if it says the same restore the raw segments from a copy"
            )
    return counts, digests, times


def _ends(parent: Manifest, topic: str) -> list[tuple[str, str, str, int]]:
    """Topic, log, partition and end of what the parent folded of a topic; empty where it has no digests of it."""
    logs = parent.horizon.get(topic, {}) if topic in parent.digests else {}
    return [(topic, lg, p, offset) for lg, by in logs.items() for p, offset in by.items()]


def _unknown_fields(
    spark: SparkSession,
    url: str,
    domain: Domain,
    parent: Manifest,
    log: Partitions,
    since: Mapping[str, Ranges],
    full: bool,
) -> dict[str, dict[str, int]]:
    """Count the rows that carry a field which the schema does not know.

    Per topic and name of the field, the shortest by name.
    """
    found: dict[str, dict[str, int]] = {}
    frames = []
    for stream in domain.streams:
        if _continues(stream, parent, full) and stream.topic in parent.unknown:
            found[stream.topic] = dict(parent.unknown[stream.topic])
        rows = read_typed(spark, url, stream, log[stream.topic], since[stream.topic])
        frames.append(rows.selectExpr("topic", "explode(unknown) AS name"))
    # One job for all topics: each job has a price of its own, however few rows there are. What a sender may invent
    # without end never leaves the executors.
    counted = reduce(DataFrame.unionByName, frames).groupBy("topic", "name").count()
    further = F.col("name") == FURTHER_FIELDS
    place = F.row_number().over(
        Window.partitionBy("topic").orderBy(further, F.col("name") != OTHER_FIELDS, F.length("name"), "name")
    )
    kept = counted.select("topic", F.when(place <= UNKNOWN_FIELDS, F.col("name")).alias("name"), "count")
    for row in kept.groupBy("topic", "name").agg(F.sum("count").alias("rows")).collect():
        of = found.setdefault(row["topic"], {})
        name = row["name"] or FURTHER_FIELDS
        of[name] = of.get(name, 0) + row["rows"]
    return {topic: _shortest(names) for topic, names in found.items()}


def _shortest(names: Mapping[str, int]) -> dict[str, int]:
    """Keep the counts of as many names as a manifest holds, the others together."""
    kept = sorted(names.keys() - {FURTHER_FIELDS}, key=unknown_order)[:UNKNOWN_FIELDS]
    rest = sum(names.values()) - sum(names[name] for name in kept)
    return {name: names[name] for name in kept} | ({FURTHER_FIELDS: rest} if rest else {})


def _continues(stream: Stream, parent: Manifest, full: bool) -> bool:
    """True if what the parent counted of a stream still holds."""
    return not full and parent.schema_hashes.get(stream.topic) == stream.schema_hash


def _check_rows(domain: Domain, log: Partitions, horizon: Position, counts: Mapping[str, Any]) -> None:
    for topic in domain.topics:
        for lg, by in log[topic].items():
            for p, partition in by.items():
                end = offset_in(horizon, topic, lg, p, partition.origin)
                planned = partition.rows_between(partition.origin, end)
                got = sum(counts.get(topic, {}).get(lg, {}).get(p, {}).values())
                if got != planned:
                    raise RowsDiffer(
                        f"topic '{topic}' log {lg} partition {p}: {planned} typed rows below offset {end} planned, {got} read"
                    )


def _write_view(
    spark: SparkSession, fs: Hdfs, domain: Domain, name: str, url: str, staging: str, parent: Manifest, full: bool
) -> dict[str, Any]:
    view = domain.view(name)
    entry = parent.views.get(name)
    continues = entry is not None and not full and entry["hash"] == view.definition_hash
    earlier = None
    if continues and entry and entry["files"]:
        folder = f"{versions.folder(domain.name, parent.version)}/{name}"
        _check_files(fs, folder, entry)
        earlier = spark.read.parquet(*(f"{url}{folder}/{file}" for file in entry["files"]))
    fresh = spark_fold.partials(spark, view, NEW_ROWS if continues else ALL_ROWS)
    rows = spark_fold.merged(spark, view, earlier, fresh)
    try:
        written = _write(fs, rows.sortWithinPartitions(*view.keys) if view.keys else rows, url, f"{staging}/{name}")
    except (PySparkException, Py4JJavaError) as error:
        if earlier is not None and f"{folder}/" in str(error) and not _is_gone(error):
            raise VersionDamaged(f"{folder}: {_first_line(error)}") from error
        raise
    return {"hash": view.definition_hash, **written}


def check_views(fs: Hdfs, version: Manifest) -> None:
    """Raise as `_check_files` where the rows of a view are not what the manifest of a version says."""
    for name, entry in version.views.items():
        _check_files(fs, f"{versions.folder(version.domain, version.version)}/{name}", entry)


def _check_files(fs: Hdfs, folder: str, entry: Mapping[str, Any]) -> None:
    """Raise VersionDamaged where the files of a view do not hold the rows that the manifest says.

    FileNotFoundError if it was pruned.
    """
    try:
        rows = sum(fs.open_parquet(f"{folder}/{file}").metadata.num_rows for file in entry["files"])
    except ValueError as error:
        raise VersionDamaged(f"{folder}: {error}") from error
    except FileNotFoundError as error:
        if fs.status(f"{folder.rpartition('/')[0]}/manifest.json") is None:
            raise
        raise VersionDamaged(f"{folder}: a file is gone: {error}") from error
    if rows != entry["rows"]:
        raise VersionDamaged(f"{folder}: {rows} rows in its files, the manifest says {entry['rows']}")


def _first_line(error: Exception) -> str:
    """What Spark's error says, without the trace."""
    return str(error).strip().splitlines()[0][:300]


def _write_reports(
    spark: SparkSession, fs: Hdfs, domain: Domain, url: str, staging: str, parent: Manifest, number: int
) -> dict[str, dict[str, Any]]:
    entries: dict[str, dict[str, Any]] = {}
    computed = []
    for report in domain.reports:
        failed: dict[str, dict[str, Any]] = {}
        error = None
        try:
            rows, failed = spark_fold.report_rows(spark, report)
            computed.append(rows)
            written = {} if failed else _write(fs, rows, url, f"{staging}/{report.name}")
        except (PySparkException, Py4JJavaError) as raised:
            error = _own_fault(raised)
            if error is None:
                raise
            fs.delete(f"{staging}/{report.name}", recursive=True)
        if failed or error:
            why = {"failed_checks": failed} | ({"error": error} if error else {})
            _log.warning("report held back", domain=domain.name, report=report.name, **why)
            last_good = parent.reports.get(report.name) or {"rows": 0, "files": [], "bytes": 0, "version": None}
            kept = {name: value for name, value in last_good.items() if name != "error"}
            entries[report.name] = {"held_since": number, **kept, "status": "held", **why}
        else:
            entries[report.name] = {**written, "status": "ok", "failed_checks": {}, "version": number}
    for rows in computed:
        rows.unpersist()
    return entries


def _own_fault(error: Exception) -> str | None:
    """The line in which Spark says what is wrong with a report's SQL or its data; None for any other error."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line[:300] for line in lines if OWN_FAULT.search(line)), None) if not _is_gone(error) else None


def _write(fs: Hdfs, rows: DataFrame, url: str, folder: str) -> dict[str, Any]:
    rows.write.parquet(f"{url}{folder}")
    files = [entry for entry in fs.list(folder) if entry.name.endswith(".parquet")]
    total = sum(fs.open_parquet(entry.path).metadata.num_rows for entry in files)
    return {"rows": total, "files": [entry.name for entry in files], "bytes": sum(entry.length for entry in files)}
