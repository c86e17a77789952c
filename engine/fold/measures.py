"""How does a measure become a partial, merge, and show? The one arithmetic of batch, speed and serving.

Every measure of a view is stored as one or more *parts*, columns that merge. For each part there is a partial (an
aggregate over events) and a merge (an aggregate over parts), for each measure a shown expression over merged parts,
all as SQL text for Spark or DuckDB. Merging is UNION ALL and GROUP BY, never a join, so NULL is a dimension value.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from decimal import Decimal

import duckdb
import numpy as np
import pyarrow as pa
from datasketches import hll_sketch, hll_union, tgt_hll_type

from engine.domain import GRAINS, Measure, View, decimal_of, table_name
from engine.domain.expressions import fields_of
from engine.domain.operators import Engine

# Quantiles count values in buckets: sign, power of two, and this many equal steps in between, each at most 1.6 % wide.
BUCKET_STEPS = 64
# Added to the exponent, so that no key of a value of up to 15 decimal places comes near 0, the bucket of 0 itself.
BUCKET_ORIGIN = 64
BUCKETS = "MAP<INT, BIGINT>"
# A bucket within a row as one number: the row above these bits, below them the key, moved so that it is not negative.
_KEY_BITS = 32
_KEY_ORIGIN, _KEY_MASK = 1 << (_KEY_BITS - 1), (1 << _KEY_BITS) - 1

# What good rows have besides the columns of their topic.
_POSITION = ("topic", "log", "partition", "offset", "kafka_time", "event_time")

# 2^12 registers: Spark's default, about 1.6 % standard error, at most about 4 kB a sketch.
HLL_LOG_REGISTERS = 12


@dataclass(frozen=True)
class Part:
    """One stored column: its name, SQL type, the aggregate over events and the aggregate over parts."""

    name: str
    sql_type: str
    partial: str
    merge: str


def parts_of(view: View, name: str, engine: Engine) -> tuple[Part, ...]:
    """Return the stored columns of one measure of a view."""
    measure = view.measures[name]
    value = _value(view, measure, engine)
    match measure.kind:
        case "count":
            where = view.where_in(measure, engine)
            condition = f"CASE WHEN {where} THEN 1 END" if where else "1"
            return (Part(name, "BIGINT", f"count({condition})", f"CAST(sum({name}) AS BIGINT)"),)
        case "sum":
            return (_sum(name, value, view.type_of(measure.columns[0])),)
        case "min" | "max":
            return (
                Part(name, view.type_of(measure.columns[0]), f"{measure.kind}({value})", f"{measure.kind}({name})"),
            )
        case "avg":
            return (_sum(f"{name}__s", value, view.type_of(measure.columns[0])), _counted(f"{name}__n", value))
        case "stddev":
            scale = (decimal_of(view.type_of(measure.columns[0])) or (0, 0))[1]
            typed = f"CAST({value} AS DECIMAL(14,{scale}))"
            # DuckDB multiplies decimals of up to 18 digits in 64 bits; a wider factor makes it use 128.
            factor = typed if engine == "spark" else f"CAST({typed} AS DECIMAL(19,{scale}))"
            square = f"CAST({factor} * {factor} AS DECIMAL(28,{2 * scale}))"
            return (
                _sum(f"{name}__s", typed, f"DECIMAL(14,{scale})"),
                _sum(f"{name}__q", square, f"DECIMAL(28,{2 * scale})"),
                _counted(f"{name}__n", value),
            )
        case "first" | "last":
            aggregate = "min" if measure.kind == "first" else "max"
            stored = f"{name}__at"
            return (
                Part(
                    stored,
                    _position_type(view, measure),
                    f"{aggregate}({_positioned(view, measure, engine)})",
                    f"{aggregate}({stored})",
                ),
            )
        case "distinct":
            return (_sketch(f"{name}__hll", value, view.type_of(measure.columns[0]), engine),)
        case "quantiles":
            return (_buckets(f"{measure.columns[0].lower()}__counts", value, engine),)
    raise AssertionError(measure.kind)


def shown_as(view: View, name: str, engine: Engine) -> str:
    """Return the SQL that shows one measure from its merged parts."""
    measure = view.measures[name]
    match measure.kind:
        case "avg":
            return f"CASE WHEN {name}__n > 0 THEN CAST({name}__s AS DOUBLE) / {name}__n END"
        case "stddev":
            return _shown_stddev(name, (decimal_of(view.type_of(measure.columns[0])) or (0, 0))[1])
        case "first" | "last":
            return f"{name}__at.v"
        case "distinct":
            # The union of a sketch with itself is estimated alike however the sketch came about; a sketch that was
            # built in one go would use another estimator than one that was merged.
            spark = f"hll_sketch_estimate(hll_union({name}__hll, {name}__hll))"
            return spark if engine == "spark" else f"hll_estimate({name}__hll)"
        case "quantiles":
            return _shown_quantile(f"{measure.columns[0].lower()}__counts", measure.at or "", engine)
        case "count" | "sum" | "min" | "max":
            return name
    raise AssertionError(measure.kind)


def all_parts(view: View, engine: Engine) -> tuple[Part, ...]:
    """Return the stored columns of all measures of a view, in order."""
    parts = {part.name: part for name in view.measures for part in parts_of(view, name, engine)}
    return tuple(parts.values())


def partial_query(view: View, table: str, engine: Engine) -> str:
    """Return SQL that folds good typed rows (with topic, log, partition, offset, event_time) to one row per key."""
    columns = [f"{_dimension(view, name)} AS {name}" for name in view.by]
    source = f"{table}"
    if view.explode:
        array, dimension = view.explode
        source = f"(SELECT *, {_exploded(array, engine)} AS {dimension}__each FROM {table}) AS exploded"
    if view.every:
        start, end = window_of("event_time", GRAINS[view.every], engine)
        columns += [f"{start} AS window_start", f"{end} AS window_end"]
    bucketed = next((m for m in view.measures.values() if m.kind == "quantiles"), None)
    if engine == "spark" and bucketed:
        return _counted_by_bucket(view, bucketed, columns, source)
    columns += [f"{part.partial} AS {part.name}" for part in all_parts(view, engine)]
    return f"SELECT {', '.join(columns)} FROM {source}{_group_by(len(view.keys))}"


def rows_query(view: View, prefix: str, engine: Engine) -> str:
    """Return what `partial_query` reads: the table of a view's topic, or what the tables of its topics share.

    Args:
        prefix: of the tables of good rows, before the topic's table name.
    """
    tables = [f"{prefix}{table_name(stream.topic)}" for stream in view.streams]
    if len(tables) == 1:
        return tables[0]
    shared = [
        name
        for name, sql_type in view.streams[0].columns.items()
        if all(stream.columns.get(name) == sql_type for stream in view.streams)
    ]
    quote = "`" if engine == "spark" else '"'
    columns = ", ".join(f"{quote}{name}{quote}" for name in (*_POSITION, *shared))
    return f"({' UNION ALL '.join(f'SELECT {columns} FROM {table}' for table in tables)}) AS united"


def merge_query(view: View, table: str, engine: Engine) -> str:
    """Return SQL that merges stored rows of equal key: any split, in any order, gives the same rows."""
    columns = [*view.keys, *(f"{part.merge} AS {part.name}" for part in all_parts(view, engine))]
    return f"SELECT {', '.join(columns)} FROM {table}{_group_by(len(view.keys))}"


def show_query(view: View, table: str, engine: Engine) -> str:
    """Return SQL that adds to merged rows the columns a reader is shown; stored columns stay."""
    stored = [part.name for part in all_parts(view, engine)]
    measured = [f"{shown_as(view, name, engine)} AS {name}" for name in view.measures if name not in stored]
    inner = f"SELECT {', '.join([*view.keys, *stored, *measured])} FROM {table}"
    derived = "".join(f", {sql} AS {name}" for name, sql in view.shown_in(engine).items())
    return f"SELECT *{derived} FROM ({inner}) AS measured"


def window_of(time: str, seconds: int, engine: Engine) -> tuple[str, str]:
    """Return SQL for start (inclusive) and end (exclusive) of the tumbling UTC window that holds `time`."""
    width = seconds * 1_000_000
    if engine == "spark":
        start = f"unix_micros({time}) - pmod(unix_micros({time}), {width})"
        return f"timestamp_micros({start})", f"timestamp_micros({start} + {width})"
    micros = f"epoch_us({time})"
    start = f"{micros} - ((({micros} % {width}) + {width}) % {width})"
    return f"make_timestamp({start})", f"make_timestamp({start} + {width})"


def stored_schema(view: View) -> pa.Schema:
    """Return the Arrow schema of the stored rows of a view: keys, then parts; times are UTC without a zone."""
    fields = [pa.field(name, arrow_type(view.dimension_type(name))) for name in view.by]
    if view.every:
        fields += [pa.field(name, pa.timestamp("us")) for name in ("window_start", "window_end")]
    return pa.schema([*fields, *(pa.field(part.name, arrow_type(part.sql_type)) for part in all_parts(view, "duckdb"))])


def shown_types(view: View) -> dict[str, str]:
    """Return measure or shown column → SQL type, as the API describes them."""
    return {**view.value_types, **dict.fromkeys(view.show, "DOUBLE")}


def register(connection: duckdb.DuckDBPyConnection) -> None:
    """Give a DuckDB connection the functions that the DuckDB side of the measures uses."""
    for name, function, arguments, result in (
        ("hll_of", _hll_of, ["VARCHAR[]"], "BLOB"),
        ("hll_merge", _hll_merge, ["BLOB[]"], "BLOB"),
        ("hll_estimate", _hll_estimate, ["BLOB"], "BIGINT"),
    ):
        # "special": they see NULLs themselves
        connection.create_function(name, function, arguments, result, null_handling="special")  # type: ignore[call-overload]
    counts = "MAP(INTEGER, BIGINT)"
    for name, fold, arguments, result in (
        ("buckets_merge", _buckets_merge, [f"{counts}[]"], counts),
        ("buckets_quantile", _buckets_quantile, [counts, "BIGINT"], "DOUBLE"),
    ):
        connection.create_function(name, fold, arguments, result, type="arrow", null_handling="special")  # type: ignore[call-overload]


def _value(view: View, measure: Measure, engine: Engine) -> str:
    if len(measure.columns) == 1:
        column = measure.columns[0]
    else:
        pairs = [(name, name) for name in measure.columns]
        column = _struct(pairs, engine) if pairs else "1"
    where = view.where_in(measure, engine)
    return f"CASE WHEN {where} THEN {column} END" if where else column


def _sum(stored: str, value: str, sql_type: str) -> Part:
    precision, scale = decimal_of(sql_type) or (19, 0)
    result = f"DECIMAL(38,{scale})"
    # Integers are widened first (a BIGINT sum can overflow), sums are cast back (each merge would widen them).
    exact = f"CAST({value} AS DECIMAL({precision},{scale}))"
    return Part(stored, result, f"CAST(sum({exact}) AS {result})", f"CAST(sum({stored}) AS {result})")


def _counted(stored: str, value: str) -> Part:
    return Part(stored, "BIGINT", f"count({value})", f"CAST(sum({stored}) AS BIGINT)")


def _sketch(stored: str, value: str, sql_type: str, engine: Engine) -> Part:
    precision, scale = decimal_of(sql_type) or (0, -1)
    if precision == scale:  # DuckDB writes .500 where no digit stands before the point, Spark 0.500
        value = f"CAST({value} AS DECIMAL({precision + 1},{scale}))"
    if engine == "spark":
        partial = f"hll_sketch_agg(CAST({value} AS STRING), {HLL_LOG_REGISTERS})"
        return Part(stored, "BINARY", partial, f"hll_union_agg({stored}, false)")
    text = f"CAST({value} AS VARCHAR)"
    return Part(stored, "BINARY", f"hll_of(list(DISTINCT {text}))", f"hll_merge(list({stored}))")


def _buckets(stored: str, value: str, engine: Engine) -> Part:
    if engine == "duckdb":
        partial = f"coalesce(histogram({_bucket(value)}), MAP {{}})"
        return Part(stored, BUCKETS, f"CAST({partial} AS MAP(INTEGER, BIGINT))", f"buckets_merge(list({stored}))")
    # Spark has no such aggregate over events: `_counted_by_bucket` makes the partial. Merges see a version and what
    # came after it, so folding maps pair by pair is cheap; sorted, equal counts are equal bytes.
    added = "map_zip_with(a, b, (k, x, y) -> coalesce(x, 0L) + coalesce(y, 0L))"
    folded = f"reduce(collect_list({stored}), CAST(map() AS {BUCKETS}), (a, b) -> {added})"
    return Part(stored, BUCKETS, "", f"map_from_entries(array_sort(map_entries({folded})))")


def _counted_by_bucket(view: View, measure: Measure, columns: list[str], source: str) -> str:
    """Spark SQL of a partial whose rows are first folded per bucket, then merged with the buckets as one map.

    Of events 3.7, 3.7 and 0 in group `a` the inner query makes the rows (a, 4215, 2) and (a, 0, 1), in which every other
    measure is a partial of those events; the outer one merges them to (a, {0: 1, 4215: 2}).
    """
    (stored,) = (part.name for part in _parts_of_kind(view, "quantiles"))
    others = [part for part in all_parts(view, "spark") if part.name != stored]
    inner = [*columns, f"{_bucket(_value(view, measure, 'spark'))} AS bucket__", "count(1) AS rows__"]
    inner += [f"{part.partial} AS {part.name}" for part in others]
    groups = ", ".join(str(i + 1) for i in range(len(view.keys) + 1))
    entry = "CASE WHEN bucket__ IS NOT NULL THEN named_struct('key', bucket__, 'value', rows__) END"
    outer = [*view.keys, *(f"{part.merge} AS {part.name}" for part in others)]
    outer.append(f"map_from_entries(array_sort(collect_list({entry}))) AS {stored}")
    ordered = [*view.keys, *(part.name for part in all_parts(view, "spark"))]
    by_bucket = f"SELECT {', '.join(inner)} FROM {source} GROUP BY {groups}"
    folded = f"SELECT {', '.join(outer)} FROM ({by_bucket}) AS by_bucket{_group_by(len(view.keys))}"
    return f"SELECT {', '.join(ordered)} FROM ({folded}) AS folded"


def _parts_of_kind(view: View, kind: str) -> list[Part]:
    found = {p.name: p for n, m in view.measures.items() if m.kind == kind for p in parts_of(view, n, "spark")}
    return list(found.values())


def _bucket(value: str) -> str:
    """SQL of the bucket of a number: 0 for 0, else its sign times 1 + steps from the smallest power of two.

    3.7 lies between 2^1 and 2^2, 1.85 times the lower one: exponent 1, step floor(0.85 * 64) = 54, so its bucket is
    (1 + 64) * 64 + 1 + 54 = 4215, that of -3.7 is -4215. It holds 3.6875 to 3.71875 and is shown as 3.703125.

    A logarithm may be wrong in its last digit, so its floor may be one off; what is left after the (exact) division by
    that power of two tells, and the steps are counted from the right one.
    """
    size = f"abs(CAST({value} AS DOUBLE))"
    exponent = f"CAST(floor(log2(nullif({size}, CAST(0 AS DOUBLE)))) AS INT)"
    rest = f"({size} / power(CAST(2 AS DOUBLE), {exponent}))"

    def steps(shift: int, fraction: str) -> str:
        start = f"({exponent} + {BUCKET_ORIGIN + shift}) * {BUCKET_STEPS} + 1"
        return f"{start} + CAST(floor(({fraction} - 1) * {BUCKET_STEPS}) AS INT)"

    key = (
        f"CASE WHEN {rest} < 1 THEN {steps(-1, f'{rest} * 2')} WHEN {rest} >= 2 THEN {steps(1, f'{rest} / 2')} "
        f"ELSE {steps(0, rest)} END"
    )
    return f"CASE WHEN {value} IS NULL THEN NULL WHEN {value} = 0 THEN 0 WHEN {value} > 0 THEN {key} ELSE -({key}) END"


def bucket_value(key: int) -> float:
    """Return the middle of a bucket: 3.703125 of 4215, see `_bucket`."""
    if key == 0:
        return 0.0
    exponent, step = divmod(abs(key) - 1, BUCKET_STEPS)
    return float(math.copysign(math.ldexp(1 + (step + 0.5) / BUCKET_STEPS, exponent - BUCKET_ORIGIN), key))


def _shown_quantile(stored: str, at: str, engine: Engine) -> str:
    millionths = int(Decimal(at) * 1_000_000)
    if engine == "duckdb":
        return f"buckets_quantile({stored}, {millionths})"
    total = f"reduce(map_values({stored}), 0L, (a, b) -> a + b)"
    # The smallest bucket at or below whose values at least ceil(at × number) values lie.
    wanted = f"greatest(1L, ({total} * {millionths}L + 999999L) DIV 1000000L)"
    found = (
        f"reduce(map_entries({stored}), named_struct('seen', 0L, 'bucket', CAST(NULL AS INT)), (a, b) -> named_struct("
        f"'seen', a.seen + b.value, 'bucket', CASE WHEN a.bucket IS NULL AND a.seen + b.value >= {wanted} "
        f"THEN b.key ELSE a.bucket END), a -> a.bucket)"
    )
    exponent = f"CAST(floor((abs({found}) - 1) / {BUCKET_STEPS}) AS INT) - {BUCKET_ORIGIN}"
    fraction = f"(1 + (pmod(abs({found}) - 1, {BUCKET_STEPS}) + CAST(0.5 AS DOUBLE)) / {BUCKET_STEPS})"
    return f"CASE WHEN {found} = 0 THEN CAST(0 AS DOUBLE) ELSE sign({found}) * {fraction} * power(CAST(2 AS DOUBLE), {exponent}) END"


def _positioned(view: View, measure: Measure, engine: Engine) -> str:
    present = " OR ".join(f"{column} IS NOT NULL" for column in measure.columns)
    where = view.where_in(measure, engine)
    condition = f"({present}) AND {where}" if where else present
    plain = Measure(measure.kind, measure.columns)
    fields = [("t", "event_time"), ("topic", "topic"), ("log", "log"), ("p", "CAST(partition AS INT)"), ("o", "offset")]
    quoted = [(name, '"offset"' if engine == "duckdb" and sql == "offset" else sql) for name, sql in fields]
    return f"CASE WHEN {condition} THEN {_struct([*quoted, ('v', _value(view, plain, engine))], engine)} END"


def _struct(pairs: list[tuple[str, str]], engine: Engine) -> str:
    if engine == "spark":
        return f"named_struct({', '.join(f'{name!r}, {sql}' for name, sql in pairs)})"
    return f"struct_pack({', '.join(f'{name} := {sql}' for name, sql in pairs)})"


def _position_type(view: View, measure: Measure) -> str:
    return f"STRUCT<t: TIMESTAMP, topic: STRING, log: STRING, p: INT, o: BIGINT, v: {view.value_type(measure)}>"


def _shown_stddev(name: str, scale: int) -> str:
    # Deviations about a pivot c near the mean, in whole units of the last digit: the textbook formula on doubles
    # was 71 % off on 100000.000 ± 0.001. s, q and c are exact, so only the last division and root round.
    s = f"CAST({name}__s * CAST({10**scale} AS DECIMAL(15,0)) AS DECIMAL(38,0))" if scale else f"{name}__s"
    q = f"CAST({name}__q * CAST({10 ** (2 * scale)} AS DECIMAL(29,0)) AS DECIMAL(38,0))" if scale else f"{name}__q"
    n = f"CAST({name}__n AS DECIMAL(19,0))"
    c = f"CAST(round(CAST({s} AS DOUBLE) / {name}__n) AS DECIMAL(15,0))"
    d = f"CAST({q} - 2 * {c} * {s} + {n} * {c} * {c} AS DOUBLE)"
    e = f"CAST({s} - {n} * {c} AS DOUBLE)"
    variance = f"({d} - {e} * {e} / {name}__n) / ({name}__n - 1)"
    return f"CASE WHEN {name}__n > 1 THEN sqrt(greatest({variance}, CAST(0 AS DOUBLE))) / {float(10**scale)!r} END"


def _dimension(view: View, name: str) -> str:
    return f"{name}__each" if view.explode and name == view.explode[1] else name


def _exploded(column: str, engine: Engine) -> str:
    unknown = "(unknown)"
    if engine == "spark":
        return f"explode(CASE WHEN size({column}) > 0 THEN array_distinct({column}) ELSE array('{unknown}') END)"
    return f"unnest(CASE WHEN len({column}) > 0 THEN list_distinct({column}) ELSE ['{unknown}'] END)"


def _group_by(keys: int) -> str:
    return f" GROUP BY {', '.join(str(i + 1) for i in range(keys))}" if keys else " HAVING count(*) > 0"


@functools.cache
def arrow_type(sql_type: str) -> pa.DataType:
    """Return the Arrow type of a SQL type of the declarations; times are UTC without a zone."""
    dec = decimal_of(sql_type)
    if dec:
        return pa.decimal128(*dec)
    if sql_type.startswith("STRUCT<"):
        return pa.struct([pa.field(name, arrow_type(inner)) for name, inner in fields_of(sql_type).items()])
    return {
        "STRING": pa.string(),
        "BIGINT": pa.int64(),
        "INT": pa.int32(),
        "DOUBLE": pa.float64(),
        "BOOLEAN": pa.bool_(),
        "TIMESTAMP": pa.timestamp("us"),
        "BINARY": pa.binary(),
        "ARRAY<STRING>": pa.list_(pa.string()),
        BUCKETS: pa.map_(pa.int32(), pa.int64()),
    }[sql_type]


def _hll_of(values: list[str | None] | None) -> bytes:
    sketch = hll_sketch(HLL_LOG_REGISTERS, tgt_hll_type.HLL_8)
    for value in values or ():
        if value:  # like Spark, an empty string is no value to a sketch
            sketch.update(value)
    return bytes(sketch.serialize_updatable())


def _hll_merge(sketches: list[bytes | None] | None) -> bytes:
    union = hll_union(HLL_LOG_REGISTERS)
    for sketch in sketches or ():
        if sketch is not None:
            union.update(hll_sketch.deserialize(sketch))
    return bytes(union.get_result(tgt_hll_type.HLL_8).serialize_updatable())


def _hll_estimate(sketch: bytes | None) -> int:
    if sketch is None:
        return 0
    opened = hll_sketch.deserialize(sketch)
    union = hll_union(HLL_LOG_REGISTERS)
    union.update(opened)
    union.update(opened)
    estimate: float = union.get_result(tgt_hll_type.HLL_8).get_estimate()
    return round(estimate)


def _buckets_merge(lists: pa.Array) -> pa.Array:
    """For each list of maps from bucket to count: one map with the counts added, by bucket.

    [{4215: 2}, {0: 1, 4215: 3}] becomes {0: 1, 4215: 5}. All rows are added in one go: each entry is marked with its row
    and key in one number, and equal numbers are summed; sorted, they are in the order of rows, then keys.
    """
    lists = _one_chunk(lists)
    maps = lists.flatten()
    lengths = lists.value_lengths().fill_null(0).to_numpy()
    row_of_map = np.repeat(np.arange(len(lists)), lengths)
    entries = np.diff(maps.offsets.to_numpy()) if len(maps) else np.zeros(0, np.int64)
    row = np.repeat(row_of_map, entries).astype(np.int64)
    # flatten() keeps a slice's offsets: only the entries that the maps speak of are taken.
    first, end = (maps.offsets[0].as_py(), maps.offsets[-1].as_py()) if len(maps) else (0, 0)
    keys = maps.keys.slice(first, end - first).to_numpy() if len(maps) else np.zeros(0, np.int64)
    counts = maps.items.slice(first, end - first).to_numpy() if len(maps) else np.zeros(0, np.int64)
    place, index = np.unique((row << _KEY_BITS) + (keys.astype(np.int64) + _KEY_ORIGIN), return_inverse=True)
    sums = np.zeros(len(place), np.int64)
    np.add.at(sums, index, counts)
    offsets = np.searchsorted(place >> _KEY_BITS, np.arange(len(lists) + 1))
    merged_keys = ((place & _KEY_MASK) - _KEY_ORIGIN).astype(np.int32)
    return pa.MapArray.from_arrays(
        pa.array(offsets, pa.int32()), pa.array(merged_keys, pa.int32()), pa.array(sums, pa.int64())
    )


def _buckets_quantile(maps: pa.Array, millionths: pa.Array) -> pa.Array:
    """For each map from bucket to count: the middle of the bucket in which the quantile lies, NULL of nothing."""
    found = []
    for counts, share in zip(_one_chunk(maps).to_pylist(), _one_chunk(millionths).to_pylist(), strict=True):
        ordered = sorted(counts or ())
        wanted = max(1, -(-sum(n for _, n in ordered) * share // 1_000_000))
        seen = 0
        value = None
        for key, number in ordered:
            seen += number
            if seen >= wanted:
                value = bucket_value(key)
                break
        found.append(value)
    return pa.array(found, pa.float64())


def _one_chunk(array: pa.Array | pa.ChunkedArray) -> pa.Array:
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
