"""Which batch versions are there, and which one is served? Immutable folders, committed by one directory rename.

`/data/batch_views/_versions/<domain>/<version, 10 digits>/{manifest.json, <view>/part-*.parquet, <report>/…}`.
Version 0 always exists and is nothing: no rows, its horizon is the origins.

Versions stand in *lines*. A batch run continues the line of its parent; a candidate begins a line of its own beside it.
Line 0 is served, newest version first, until `_served/<domain>/<n>.json` chooses: a promoted version with what is built
on it, or, after a rollback, one version alone. The newest choice counts; each is one rename.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from engine.domain import Domain
from engine.storage import derived
from engine.storage.derived import Damaged
from engine.storage.hdfs import Entry
from engine.storage.log import STAGING, FileSystem, Position

VIEWS = "/data/batch_views"
VERSIONS = f"{VIEWS}/_versions"
SERVED = f"{VIEWS}/_served"
# The newest numbers that were taken (`engine.storage.derived`), beside what bears them, so that they survive its
# deletion.
TAKEN_VERSIONS, TAKEN_CHOICES = f"{VIEWS}/_taken/versions", f"{VIEWS}/_taken/choices"


class VersionUnknown(LookupError):
    """No such version, or the chosen one was deleted; the message names those that are there."""


@dataclass(frozen=True)
class Manifest:
    """What a version says about itself.

    Args:
        horizon: H, {topic: {log: {partition: offset}}}, exclusive.
        views: view → {"hash", "rows", "files", "bytes"}; files are names inside the version's folder.
        reports: report → {"rows", "files", "status": "ok" | "held", "failed_checks", "version"}; `version` is the one
            whose files are meant. Where checks, or an error, hold the newest rows back it is an older one, or None if
            there never was one, `held_since` the first version of which this is true, `failed_checks` {check:
            {"passed", measured value…}}, and `error` what Spark said.
        counts: {topic: {log: {partition: {"good": n, problem: n}}}} of the typed rows below the horizon.
        digests: {topic: {log: {partition: text}}}, an additive digest of the raw values below the horizon.
        line: number of the candidate that this version goes back to, 0 if to none.
        definition: `Domain.to_json` of what it was built from; `definition_of` reads it.
        unknown: {topic: {field: rows}} of the fields that the schema does not know, of rows that decode below the
            horizon.
        newest: {topic: ISO-8601 UTC} of the newest good row below the horizon.
        events: good rows below the horizon; `event_time_max` ISO-8601 UTC of the newest one, or None.
    """

    domain: str
    version: int
    parent: int
    horizon: Position
    definition_hash: str
    report_hash: str
    schema_hashes: dict[str, str]
    views: dict[str, dict[str, Any]] = field(default_factory=dict)
    reports: dict[str, dict[str, Any]] = field(default_factory=dict)
    counts: dict[str, Any] = field(default_factory=dict)
    digests: dict[str, Any] = field(default_factory=dict)
    events: int = 0
    event_time_max: str | None = None
    created_at: str = ""
    line: int = 0
    definition: dict[str, Any] = field(default_factory=dict)
    unknown: dict[str, dict[str, int]] = field(default_factory=dict)
    newest: dict[str, str] = field(default_factory=dict)

    @property
    def identity(self) -> tuple[int, str]:
        """What tells it from another version, whatever number that bears."""
        return self.version, self.created_at

    def to_json(self) -> bytes:
        # The order of a definition's columns is part of its hash: nothing may be sorted here.
        return json.dumps(asdict(self), indent=1).encode()


def held_back(manifest: Manifest) -> dict[str, str]:
    """Return a sentence for each report of a version that its checks hold back: since when, what is served, and why."""
    told = {}
    for name, entry in manifest.reports.items():
        if entry["status"] == "held":
            instead = (
                f"version {entry['version']} of it is served" if entry["version"] else "no version of it is there yet"
            )
            why = "; ".join(
                f"check {check}: {', '.join(f'{what} {json.dumps(value)}' for what, value in said.items())}"
                for check, said in entry["failed_checks"].items()
            )
            why = why or f"it fails: {entry.get('error')}"
            told[name] = f"held back since version {entry['held_since']}, {instead}; {why}"
    return told


@dataclass(frozen=True)
class Choice:
    """Which version an operator wants served; `follow`: and the versions built on it, as they come."""

    number: int
    version: int
    follow: bool
    at: str


def folder(domain: str, version: int) -> str:
    return f"{VERSIONS}/{domain}/{version:010d}"


def folders(fs: FileSystem, domain: str) -> dict[int, Entry]:
    """Return the folders of the committed versions by number, oldest first.

    An entry tells a folder from one made anew.
    """
    there = (e for e in fs.list(f"{VERSIONS}/{domain}") if e.is_folder and len(e.name) == 10 and e.name.isdigit())
    return {int(entry.name): entry for entry in there}


def numbers(fs: FileSystem, domain: str) -> list[int]:
    """Return the committed version numbers, oldest first."""
    return list(folders(fs, domain))


def manifest(fs: Any, domain: str, version: int) -> Manifest:
    """Return the manifest of a committed version. Raises FileNotFoundError (pruned) or Damaged."""
    path = f"{folder(domain, version)}/manifest.json"
    found = parsed(fs.read(path), path)
    if found.version != version:
        raise Damaged(path, f"it says that it is of version {found.version}")
    return found


def parsed(data: bytes, path: str) -> Manifest:
    """Return the manifest that these bytes are. Raises Damaged."""
    try:
        return Manifest(**derived.known_fields(Manifest, json.loads(data)))
    except (TypeError, ValueError) as error:
        raise Damaged(path, error) from error


def definition_of(manifest: Manifest) -> Domain:
    """Return the domain that a version was built from, with the hashes that the version bears.

    They are what is compared, whatever hash this code would give the same declaration: see `Domain.is_of_this_code`.
    """
    said = manifest.definition
    hashes = {v["name"]: manifest.views.get(v["name"], {}).get("hash") or v.get("hash", "") for v in said["views"]}
    streams = [{**s, "hash": manifest.schema_hashes.get(s["topic"]) or s.get("hash", "")} for s in said["streams"]]
    views = [{**v, "hash": hashes[v["name"]]} for v in said["views"]]
    return Domain.from_json({**said, "hash": manifest.definition_hash, "streams": streams, "views": views})


def restricted(where: Position, topics: Iterable[str]) -> Position:
    """Return what a position says of these topics: a version may name topics that its domain has left since."""
    return {topic: where[topic] for topic in topics if topic in where}


def version_zero(domain: str, definition_hash: str, origins: Position) -> Manifest:
    """Return the version before the first run."""
    return Manifest(domain, 0, 0, origins, definition_hash, "", {})


def manifests(fs: Any, domain: str, damaged: Callable[[Damaged], None] = derived.left_out) -> list[Manifest]:
    """Return the manifests of all committed versions, oldest first; one that is being pruned is left out.

    Args:
        damaged: what to do with one that cannot be read.
    """
    found = []
    for number in numbers(fs, domain):
        try:
            found.append(manifest(fs, domain, number))
        except FileNotFoundError:
            continue
        except Damaged as damage:
            damaged(damage)
    return found


def choice(fs: Any, domain: str, damaged: Callable[[Damaged], None] = derived.left_out) -> Choice | None:
    """Return the newest choice that can be read; None if there never was one, or it chooses no version.

    Args:
        damaged: what to do with one that cannot be read.
    """
    for number in sorted(choices(fs, domain), reverse=True):
        path = f"{SERVED}/{domain}/{number}.json"
        try:
            said = json.loads(fs.read(path))
            if said["version"] is None:
                return None
            return Choice(number, int(said["version"]), bool(said.get("follow")), str(said.get("at", "")))
        except FileNotFoundError:
            continue
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            damaged(Damaged(path, f"{error!r}; the choice before it counts"))
    return None


def choices(fs: Any, domain: str) -> dict[int, Entry]:
    """Return the files of the choices by number; an entry tells a file from one made anew."""
    files = ((e, *e.name.partition(".")) for e in fs.list(f"{SERVED}/{domain}") if not e.is_folder)
    return {int(stem): entry for entry, stem, _, ending in files if ending == "json" and stem.isdigit()}


def choice_number(fs: Any, domain: str) -> int:
    """Return the number of the newest choice, 0 if there never was one."""
    return max(choices(fs, domain), default=0)


def set_aside(fs: Any, domain: str) -> list[str]:
    """Set aside manifests, with their versions, and choices that cannot be read; return their paths.

    For the batch layer alone.
    """
    aside: list[str] = []

    def put(damage: Damaged) -> None:
        path = damage.path.removesuffix("/manifest.json")
        derived.set_aside(fs, path, damage)
        aside.append(path)

    manifests(fs, domain, put)
    choice(fs, domain, put)
    return aside


def line_of(known: Iterable[Manifest], chosen: Choice | None) -> list[Manifest]:
    """Return the versions on which a batch run may build, newest first.

    Raises:
        VersionUnknown: the chosen version is gone.
    """
    by_number = {m.version: m for m in known}
    if chosen is None:
        return sorted((m for m in by_number.values() if m.line == 0), key=lambda m: -m.version)
    line = _line(by_number, chosen)
    return sorted((m for n, m in by_number.items() if m.line == line and n >= chosen.version), key=lambda m: -m.version)


def allowed(known: Iterable[Manifest], chosen: Choice | None) -> list[Manifest]:
    """Return the versions that may be served, newest first: of the line, or after a rollback one alone.

    Raises VersionUnknown.
    """
    line = line_of(known, chosen)
    return line if chosen is None or chosen.follow else line[-1:]


def _line(by_number: Mapping[int, Manifest], chosen: Choice) -> int:
    """The line of the chosen version; of one that is gone, what was built on it and is followed stands for it."""
    built_on_it = (m for m in by_number.values() if m.parent == chosen.version and m.line != m.version)
    there = by_number.get(chosen.version) or (next(built_on_it, None) if chosen.follow else None)
    if there is None:
        raise VersionUnknown(
            f"version {chosen.version} was chosen to be served and is gone; there are {named(by_number)}; "
            f"python -m engine.versions promote or rollback chooses another"
        )
    return there.line


def followed(fs: Any, domain: Domain) -> Manifest:
    """Return the version that serving and the stream go by, or version 0 of this definition with an empty horizon."""
    found = allowed(manifests(fs, domain.name), choice(fs, domain.name))
    return found[0] if found else version_zero(domain.name, domain.definition_hash, {})


def definition_followed(fs: Any, domain: Domain) -> Domain:
    """Return the domain as the followed version defines it; the given one where there is none, or the same."""
    newest = followed(fs, domain)
    if newest.definition_hash == domain.definition_hash or not newest.definition:
        return domain
    return definition_of(newest)


def choose(fs: Any, domain: str, version: int, follow: bool) -> Choice:
    """Choose the version to serve, by one rename; of two at once one wins and the other is tried again.

    Raises:
        VersionUnknown: there is no such version.
    """
    known = numbers(fs, domain)
    if version not in known:
        raise VersionUnknown(f"domain '{domain}' has no version {version}; there are {named(known)}")
    fs.mkdirs(f"{SERVED}/{domain}")
    while True:
        record = f"{TAKEN_CHOICES}/{domain}"
        number = 1 + max(choice_number(fs, domain), derived.newest_taken(fs, record, f"{SERVED}/{domain}"))
        if not derived.take(fs, record, number):
            continue
        made = Choice(number, version, follow, datetime.now(UTC).isoformat())
        staged, target = f"{STAGING}/served-{domain}-{time.time_ns()}", f"{SERVED}/{domain}/{number}.json"
        said = {"version": made.version, "follow": made.follow, "at": made.at}
        fs.create(staged, json.dumps(said).encode())
        try:
            fs.rename(staged, target)
        except FileExistsError:
            continue
        finally:
            fs.delete(staged)
        # A batch run that prunes looks at the choices after it took a version away, and before it deletes it.
        if version not in numbers(fs, domain):
            fs.delete(target)
            raise VersionUnknown(f"version {version} was pruned meanwhile; there are {named(numbers(fs, domain))}")
        return made


def named(known: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(known))) or "none"
