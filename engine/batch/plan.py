"""What would a batch run rebuild, and why? Read from manifests and heads alone; nothing is changed."""

from __future__ import annotations

from typing import Any

from engine.domain import Domain, Stream
from engine.storage.hdfs import Hdfs
from engine.storage.log import LogReader, Partition, typed_root
from engine.storage.versions import Manifest


def planned(fs: Hdfs, domain: Domain, parent: Manifest, full: bool = False, typed: bool = False) -> list[str]:
    """Return lines for people: per topic what would be typed, per view and report what would be folded.

    Args:
        parent: the version that the run would build on.
        full, typed: as the flags of `batch_layer.py`.
    """
    rows = {stream.topic: _rows(fs, stream) for stream in domain.streams}
    if not parent.version and not any(raw for raw, _ in rows.values()):
        return [f"{domain.name}: no events yet, and no version is made of an empty log"]
    on = f"on version {parent.version} of {parent.created_at}" if parent.version else "the first version"
    lines = [f"{domain.name}: definition {domain.definition_hash}, {on}"]
    retyped = {
        s.topic: parent.version > 0 and parent.schema_hashes.get(s.topic) != s.schema_hash for s in domain.streams
    }
    before = {s["topic"]: s for s in parent.definition.get("streams", ())}
    for stream in domain.streams:
        raw, done = rows[stream.topic]
        if typed:
            why = "parsed anew because of --typed"
            done = 0
        elif retyped[stream.topic]:
            old = before.get(stream.topic)
            said = domain.to_json()["streams"][domain.topics.index(stream.topic)]
            why = f"its schema changed: {', '.join(_different(old, said)) or 'the decoder'}" if old else "it is new"
        else:
            why = "what was ingested since" if done else "nothing is typed yet"
        lines.append(f"  topic {stream.topic}: {raw - done:,} of {raw:,} rows to type; {why}")
    lines += [f"  topic {topic}: no longer declared" for topic in parent.schema_hashes if topic not in domain.topics]
    views = {v["name"]: v for v in parent.definition.get("views", ())}
    for view, said in zip(domain.views, domain.to_json()["views"], strict=True):
        entry = parent.views.get(view.name)
        changed = [s.topic for s in view.streams if retyped[s.topic]]
        if full:
            how = "all history, because of --full"
        elif entry is None:
            how = "all history, it is new"
        elif entry["hash"] == view.definition_hash:
            how = f"what came after version {parent.version} is added to its {entry['rows']:,} rows"
        elif changed:
            how = f"all history, the schema of {', '.join(changed)} changed"
        else:
            how = f"all history, it changed: {', '.join(_different(views.get(view.name), said)) or 'its arithmetic'}"
        lines.append(f"  view {view.name}: {how}")
    lines += [
        f"  view {name}: no longer declared" for name in parent.views if name not in {v.name for v in domain.views}
    ]
    lines += [f"  report {report.name}: computed anew from all history" for report in domain.reports]
    return lines


def _rows(fs: Hdfs, stream: Stream) -> tuple[int, int]:
    """Number of raw rows, and of rows that are typed under the present schema."""
    raw, typed = (LogReader(fs, *root).partitions([stream.topic])[stream.topic] for root in ((), (typed_root(stream),)))
    return _count(raw), _count(typed)


def _count(partitions: dict[str, dict[str, Partition]]) -> int:
    return sum(p.rows_between(p.origin, p.head) for by in partitions.values() for p in by.values())


def _different(old: dict[str, Any] | None, new: dict[str, Any]) -> list[str]:
    """Name the fields of a declaration that differ, and inside of them the entries."""
    found = []
    for name, value in new.items():
        was = (old or {}).get(name)
        if was == value or name == "hash":
            continue
        if isinstance(value, dict) and isinstance(was, dict):
            entries = [key for key in {**was, **value} if was.get(key) != value.get(key)]
            found.append(f"{name} ({', '.join(entries) or 'order'})")
        else:
            found.append(name)
    return found
