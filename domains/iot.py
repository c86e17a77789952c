"""Devices: events of thermostats, cameras, locks, meters, lights and wearables, with how long each lasted."""

from __future__ import annotations

import functools
from datetime import UTC, datetime
from random import Random
from typing import Any

from engine.domain import Domain, Report, Stream, View, avg, count, each, max_of, min_of, quantile, stddev

# Device type → median of its durations in seconds, and how far they spread (sigma of the logarithm).
DEVICE_TYPES = {
    "thermostat": (12.0, 0.4),
    "camera": (45.0, 0.9),
    "lock": (2.5, 0.3),
    "meter": (5.0, 0.2),
    "light": (180.0, 1.1),
    "wearable": (30.0, 0.7),
}
DEVICES = 60
OUTLIERS = 0.004  # share of events that last 20 to 60 times as long


@functools.cache
def _devices() -> tuple[tuple[str, str], ...]:
    """(device id, type), the chatty ones more often: the first of 60 sends about a fifth of all events."""
    types = tuple(DEVICE_TYPES)
    devices = [(f"dev-{number:04d}", types[number % len(types)]) for number in range(DEVICES)]
    return tuple(device for rank, device in enumerate(devices) for _ in range(max(1, 2_000 // (rank + 1))))


@functools.lru_cache(maxsize=64)
def _iso_second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S.")


def generate_event(rng: Random, now_ms: int) -> dict[str, Any]:
    """One event of a device; a few last far too long."""
    pool = _devices()
    device_id, device_type = pool[int(rng.random() * len(pool))]
    median, spread = DEVICE_TYPES[device_type]
    duration = median * rng.lognormvariate(0.0, spread)
    if rng.random() < OUTLIERS:
        duration *= 20 + 40 * rng.random()
    return {
        "event_id": f"{rng.getrandbits(128):032x}",
        "device_id": device_id,
        "device_type": device_type,
        "event_duration": round(max(duration, 0.001), 3),
        "timestamp": f"{_iso_second(now_ms // 1000)}{now_ms % 1000:03d}Z",
    }


EVENTS = Stream(
    topic="iot-events",
    columns={
        "event_id": "STRING",
        "device_id": "STRING",
        "device_type": "STRING",
        "event_duration": "DECIMAL(10,3)",
        "timestamp": "TIMESTAMP",
    },
    key="device_id",
    time="timestamp",
    unique=("event_id",),
    required=("device_type", "event_duration"),
    rules={
        "duration_positive": "event_duration > 0",
        "known_device_type": f"device_type IN ({', '.join(repr(name) for name in DEVICE_TYPES)})",
    },
    generator=each(generate_event),
)

_SPREAD = {"events": count(), "avg_duration": avg("event_duration"), "stddev_duration": stddev("event_duration")}

VIEWS = (
    View(
        "device_type_minutes",
        (EVENTS,),
        by=("device_type",),
        every="1 minute",
        measures={
            **_SPREAD,
            "min_duration": min_of("event_duration"),
            "max_duration": max_of("event_duration"),
            "p50_duration": quantile("event_duration", "0.5"),
            "p95_duration": quantile("event_duration", "0.95"),
            "p99_duration": quantile("event_duration", "0.99"),
            "up_to_1s": count("event_duration <= 1"),
            "up_to_10s": count("event_duration > 1 AND event_duration <= 10"),
            "up_to_100s": count("event_duration > 10 AND event_duration <= 100"),
            "over_100s": count("event_duration > 100"),
        },
    ),
    View("device_days", (EVENTS,), by=("device_id", "device_type"), every="1 day", measures=_SPREAD),
)

# Four ways to leave outliers out, side by side. Bounds come from all events of that day and type, or (z_score) of that
# day and device; devices with fewer than 500 events that day take no part.
_PERCENTILES = """
WITH durations AS (
    SELECT date_trunc('day', event_time) AS day, device_type, device_id, CAST(event_duration AS DOUBLE) AS duration
    FROM iot_events
), busy AS (
    SELECT d.*, avg(duration) OVER device AS own_mean, stddev_samp(duration) OVER device AS own_deviation
    FROM (SELECT *, count(*) OVER (PARTITION BY day, device_id) AS that_day FROM durations) d
    WHERE that_day >= 500
    WINDOW device AS (PARTITION BY day, device_id)
), of_type AS (
    SELECT day, device_type, count(DISTINCT device_id) AS devices, count(*) AS events, avg(duration) AS mean,
           stddev_samp(duration) AS deviation, min(duration) AS least, max(duration) AS most,
           percentile_cont(0.01) WITHIN GROUP (ORDER BY duration) AS p01,
           percentile_cont(0.25) WITHIN GROUP (ORDER BY duration) AS p25,
           percentile_cont(0.75) WITHIN GROUP (ORDER BY duration) AS p75,
           percentile_cont(0.99) WITHIN GROUP (ORDER BY duration) AS p99
    FROM busy GROUP BY day, device_type
), judged AS (
    SELECT t.*, b.duration,
           abs(b.duration - t.mean) <= 3 * t.deviation AS three_sigma,
           abs(b.duration - b.own_mean) <= 3 * b.own_deviation AS z_score,
           b.duration >= p25 - 1.5 * (p75 - p25) AND b.duration <= p75 + 1.5 * (p75 - p25) AS iqr,
           b.duration >= p01 AND b.duration <= p99 AS percentile
    FROM busy b JOIN of_type t ON b.day = t.day AND b.device_type = t.device_type
), methods AS (
    SELECT *, 'three_sigma' AS outlier_method, three_sigma AS inside FROM judged
    UNION ALL SELECT *, 'z_score', z_score FROM judged
    UNION ALL SELECT *, 'iqr', iqr FROM judged
    UNION ALL SELECT *, 'percentile', percentile FROM judged
)
SELECT day, device_type, outlier_method, max(devices) AS devices, max(events) AS events, max(mean) AS mean_duration,
       max(deviation) AS stddev_duration, max(least) AS min_duration, max(most) AS max_duration,
       sum(CASE WHEN inside THEN 1 ELSE 0 END) AS events_kept, sum(CASE WHEN inside THEN 0 ELSE 1 END) AS events_removed,
       percentile_cont(0.95) WITHIN GROUP (ORDER BY CASE WHEN inside THEN duration END) AS p95_duration
FROM methods GROUP BY day, device_type, outlier_method
"""

REPORTS = (
    Report(
        "duration_percentiles",
        by=("day", "device_type", "outlier_method"),
        time="day",
        sql=_PERCENTILES,
        checks={
            "kept_and_removed_are_all": "SELECT count(*) = 0, count(*) AS wrong_rows FROM report WHERE events_kept + events_removed <> events",
            "p95_within_range": (
                "SELECT count(*) = 0, count(*) AS wrong_rows FROM report WHERE p95_duration < min_duration OR p95_duration > max_duration"
            ),
            "no_negative_duration": "SELECT count(*) = 0, min(min_duration) AS smallest FROM report WHERE min_duration < 0",
        },
    ),
)

IOT = Domain(name="iot", streams=(EVENTS,), views=VIEWS, reports=REPORTS, title="Device events")
