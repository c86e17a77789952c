"""What would a promotion change? Two versions compared view by view: groups that came, went, or say something else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from engine.domain import View
from engine.storage import versions
from engine.storage.versions import Manifest


@dataclass(frozen=True)
class Changes:
    """How one view differs.

    Args:
        view: its name.
        note: why it cannot be compared group by group, or which columns only one side has; empty if neither.
        added, removed, changed: number of groups.
        examples: up to the limit, {"group": {dimension: value}, "column", "before", "after"}; column None for a
            group that only one side has.
    """

    view: str
    note: str
    added: int = 0
    removed: int = 0
    changed: int = 0
    examples: tuple[dict[str, Any], ...] = ()

    @property
    def any(self) -> bool:
        return bool(self.note or self.added or self.removed or self.changed)


def changes(fs: Any, before: Manifest, after: Manifest, limit: int = 20) -> Iterator[Changes]:
    """Compare the views of two versions of a domain that carry their definitions.

    Raises:
        ValueError: a version does not say by which definition it was built.
    """
    for one in (before, after):
        if not one.definition:
            raise ValueError(f"version {one.version} of '{one.domain}' does not carry its definition; build it anew")
    old, new = (versions.definition_of(one) for one in (before, after))
    old_views, new_views = ({view.name: view for view in domain.views} for domain in (old, new))
    for name in {**old_views, **new_views}:
        if name not in old_views or name not in new_views:
            yield Changes(name, "the view is new" if name in new_views else "the view is gone")
        elif old_views[name].keys != new_views[name].keys:
            yield Changes(
                name, f"other dimensions: {', '.join(old_views[name].keys)} → {', '.join(new_views[name].keys)}"
            )
        else:
            yield _compared(old_views[name], new_views[name], _rows(fs, before, name), _rows(fs, after, name), limit)


def told(found: Changes) -> list[str]:
    """Return the lines that a person reads."""
    lines = [
        f"view {found.view}: {found.changed:,} groups changed, {found.added:,} added, {found.removed:,} removed"
        + (f"; {found.note}" if found.note else "")
    ]
    for one in found.examples:
        group = ", ".join(f"{name}={value}" for name, value in one["group"].items())
        if one["column"] is None:
            lines.append(f"  {group}: {'added' if one['before'] is None else 'removed'}")
            continue
        before, after = one["before"], one["after"]
        amount = f" ({after - before:+})" if _number(before) and _number(after) else ""
        lines.append(f"  {group}: {one['column']} {before} → {after}{amount}")
    return lines


def _compared(old: View, new: View, before: pa.Table, after: pa.Table, limit: int) -> Changes:
    shown = [name for name in (*new.measures, *new.show) if name in old.measures or name in old.show]
    only = [f"+{n}" for n in (*new.measures, *new.show) if n not in shown]
    only += [f"-{n}" for n in (*old.measures, *old.show) if n not in shown]
    con = duckdb.connect(config={"autoinstall_known_extensions": "false"})
    con.register("before_rows", before)
    con.register("after_rows", after)
    keys = " AND ".join(f'b."{key}" IS NOT DISTINCT FROM a."{key}"' for key in new.keys) or "true"
    differ = " OR ".join(f'b."{name}" IS DISTINCT FROM a."{name}"' for name in shown) or "false"
    group = ", ".join(f'coalesce(a."{key}", b."{key}") AS "{key}"' for key in new.keys)
    columns = ", ".join(f'b."{name}" AS "before_{name}", a."{name}" AS "after_{name}"' for name in shown)
    listed = ", ".join(part for part in ("b.here__ AS before__, a.here__ AS after__", group, columns) if part)
    con.execute(
        f"CREATE TEMP TABLE different AS SELECT {listed} FROM (SELECT *, true AS here__ FROM before_rows) b "
        f"FULL JOIN (SELECT *, true AS here__ FROM after_rows) a ON {keys} "
        f"WHERE b.here__ IS NULL OR a.here__ IS NULL OR {differ}"
    )
    counted = "count(*) FILTER (WHERE before__ IS NULL), count(*) FILTER (WHERE after__ IS NULL), count(*)"
    added, removed, every = con.execute(f"SELECT {counted} FROM different").fetchone() or (0, 0, 0)
    answer = con.execute(f"SELECT * FROM different ORDER BY ALL LIMIT {int(limit)}")
    names = [column[0] for column in answer.description]
    examples = [
        example for row in answer.fetchall() for example in _examples(new, shown, dict(zip(names, row, strict=True)))
    ]
    note = f"columns: {', '.join(only)}" if only else ""
    return Changes(new.name, note, added, removed, every - added - removed, tuple(examples[:limit]))


def _examples(view: View, shown: list[str], row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    group = {key: row[key] for key in view.keys if key != "window_end"}
    if row["before__"] is None or row["after__"] is None:
        yield {"group": group, "column": None, "before": row["before__"], "after": row["after__"]}
        return
    for name in shown:
        before, after = row[f"before_{name}"], row[f"after_{name}"]
        if before != after:
            yield {"group": group, "column": name, "before": before, "after": after}


def _rows(fs: Any, manifest: Manifest, view: str) -> pa.Table:
    """Keys and shown columns of a view of a version, times without a zone."""
    folder = f"{versions.folder(manifest.domain, manifest.version)}/{view}"
    files = manifest.views[view]["files"]
    tables = [pq.read_table(pa.BufferReader(fs.read(f"{folder}/{name}"))) for name in files]
    table = pa.concat_tables(tables)
    kept = table.select([name for name in table.column_names if "__" not in name])
    naive = [f.with_type(pa.timestamp("us")) if pa.types.is_timestamp(f.type) else f for f in kept.schema]
    return kept.cast(pa.schema(naive))


def _number(value: Any) -> bool:
    return (
        value is not None and not isinstance(value, bool) and hasattr(value, "__sub__") and hasattr(value, "__round__")
    )
