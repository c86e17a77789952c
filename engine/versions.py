"""Which batch versions are there? Immutable folders, committed by one directory rename.

`/data/batch_views/_versions/<domain>/<version, 10 digits>/{manifest.json, <view>/part-*.parquet, <report>/…}`.
Version 0 always exists and is nothing: no rows, its horizon is the origins.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from engine.log import FileSystem, Position

VIEWS = "/data/batch_views"
VERSIONS = f"{VIEWS}/_versions"
SERVED = f"{VIEWS}/_served"


@dataclass(frozen=True)
class Manifest:
    """What a version says about itself.

    Args:
        horizon: H, {topic: {log: {partition: offset}}}, exclusive.
        views: view → {"hash", "rows", "files", "bytes"}; files are names inside the version's folder.
        reports: report → {"rows", "files", "status": "ok" | "held", "failed_checks", "version"}; `version` is the one
            whose files are meant (an older one where a check held this one back).
        counts: {topic: {log: {partition: {"good": n, problem: n, "gap": n}}}} of the typed rows below the horizon.
        digests: {topic: {log: {partition: text}}}, an additive digest of the raw values below the horizon.
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

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), indent=1, sort_keys=True).encode()


def folder(domain: str, version: int) -> str:
    return f"{VERSIONS}/{domain}/{version:010d}"


def numbers(fs: FileSystem, domain: str) -> list[int]:
    """Return the committed version numbers, oldest first."""
    return sorted(
        int(e.name) for e in fs.list(f"{VERSIONS}/{domain}") if e.is_folder and len(e.name) == 10 and e.name.isdigit()
    )


def manifest(fs: Any, domain: str, version: int) -> Manifest:
    """Return the manifest of a committed version. Raises FileNotFoundError (pruned) or ValueError (damaged, by name)."""
    path = f"{folder(domain, version)}/manifest.json"
    try:
        return Manifest(**json.loads(fs.read(path)))
    except (TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: damaged manifest: {error}") from error


def version_zero(domain: str, definition_hash: str, origins: Position) -> Manifest:
    """Return the version before the first run."""
    return Manifest(domain, 0, 0, origins, definition_hash, "", {})


def served(fs: Any, domain: str) -> int | None:
    """Return the version that promote or rollback fixed, or None: then the newest is served."""
    chosen = [e for e in fs.list(f"{SERVED}/{domain}") if not e.is_folder and e.name.endswith(".json")]
    if not chosen:
        return None
    newest = max(chosen, key=lambda entry: int(entry.name[:-5]))
    value = json.loads(fs.read(newest.path))["version"]
    return None if value is None else int(value)


def newest(fs: Any, domain: str, definition_hash: str) -> Manifest:
    """Return the newest committed version, or version 0 with an empty horizon."""
    known = numbers(fs, domain)
    return manifest(fs, domain, known[-1]) if known else version_zero(domain, definition_hash, {})
