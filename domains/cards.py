"""Card transactions: who paid how much, where, and whether it went through.

Raw, typed, aggregated and quarantined rows are what a medallion layout calls bronze, silver, gold and quarantine.
"""

from __future__ import annotations

import functools
from datetime import UTC, datetime
from random import Random
from typing import Any

from engine.domain import Domain, Maker, Report, Stream, View, avg, count, distinct, max_of, sum_of

CARDS = 4_000
MERCHANTS = 400
CURRENCIES = ("USD", "EUR", "GBP", "VND", "JPY", "SGD", "AUD", "INR", "BRL")
STATUSES = ("approved",) * 92 + ("declined",) * 7 + ("reversed",)
BURST = 0.001  # share of transactions that begin a series of twenty on one card

# City, country, latitude, longitude, currency.
_CITIES = (
    ("Hà Nội", "VN", 21.0285, 105.8542, "VND"),
    ("Thành phố Hồ Chí Minh", "VN", 10.7769, 106.7009, "VND"),
    ("Singapore", "SG", 1.2897, 103.8501, "SGD"),
    ("Tōkyō", "JP", 35.6895, 139.6917, "JPY"),
    ("Mumbai", "IN", 19.0728, 72.8826, "INR"),
    ("Berlin", "DE", 52.5244, 13.4105, "EUR"),
    ("Paris", "FR", 48.8534, 2.3488, "EUR"),
    ("London", "GB", 51.5085, -0.1257, "GBP"),
    ("New York", "US", 40.7143, -74.006, "USD"),
    ("Austin", "US", 30.2672, -97.7431, "USD"),
    ("São Paulo", "BR", -23.5475, -46.6361, "BRL"),
    ("Sydney", "AU", -33.8679, 151.2073, "AUD"),
)
# Category → median amount in US dollars.
_CATEGORIES = {
    "groceries": 28.0,
    "fuel": 41.0,
    "restaurants": 22.0,
    "travel": 260.0,
    "electronics": 140.0,
    "pharmacy": 16.0,
    "clothing": 55.0,
    "entertainment": 18.0,
}
_PER_DOLLAR = {
    "USD": 1.0,
    "EUR": 0.9,
    "GBP": 0.8,
    "VND": 25_000,
    "JPY": 150.0,
    "SGD": 1.3,
    "AUD": 1.5,
    "INR": 84,
    "BRL": 5.5,
}


@functools.cache
def _world() -> tuple[tuple[tuple[str, str, Any], ...], tuple[tuple[str, str], ...]]:
    """Cards (card, user, home city), heavy ones more often; and merchants (name, category), popular ones more often."""
    from faker import Faker  # slow to import, and only the producer needs it

    faker = Faker("en_US")
    faker.seed_instance(20_210_505)
    rng = Random(20_210_505)
    cards = [(f"card-{n:05d}", f"user-{n * 7 // 10:05d}", rng.choice(_CITIES)) for n in range(CARDS)]
    categories = tuple(_CATEGORIES)
    merchants = [(faker.company(), categories[n % len(categories)]) for n in range(MERCHANTS)]
    return (
        tuple(card for rank, card in enumerate(cards) for _ in range(max(1, 400 // (rank + 1)))),
        tuple(merchant for rank, merchant in enumerate(merchants) for _ in range(max(1, 800 // (rank + 20)))),
    )


@functools.lru_cache(maxsize=64)
def _iso_second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S.")


def generate_transactions(rng: Random, _options: Any) -> Maker:
    """Transactions at the card's home nine times out of ten; now and then one card pays twenty times in a row."""
    cards, merchants = _world()
    burst: list[tuple[str, str, Any]] = []

    def make(now_ms: int) -> dict[str, Any]:
        card = burst.pop() if burst else cards[int(rng.random() * len(cards))]
        if not burst and rng.random() < BURST:
            burst.extend([card] * 19)
        card_id, user_id, home = card
        city, country, lat, lon, currency = home if rng.random() < 0.9 else _CITIES[int(rng.random() * len(_CITIES))]
        merchant, category = merchants[int(rng.random() * len(merchants))]
        amount = _CATEGORIES[category] * rng.lognormvariate(0.0, 0.8) * _PER_DOLLAR[currency]
        return {
            "txn_id": f"{rng.getrandbits(128):032x}",
            "event_ts": f"{_iso_second(now_ms // 1000)}{now_ms % 1000:03d}Z",
            "user_id": user_id,
            "card_id": card_id,
            "merchant": merchant,
            "category": category,
            "amount": round(max(amount, 0.01), 2),
            "currency": currency,
            "status": STATUSES[int(rng.random() * len(STATUSES))],
            "city": city,
            "country": country,
            "lat": round(lat + rng.uniform(-0.1, 0.1), 6),
            "lon": round(lon + rng.uniform(-0.1, 0.1), 6),
        }

    return make


TRANSACTIONS = Stream(
    topic="transactions",
    columns={
        "txn_id": "STRING",
        "event_ts": "TIMESTAMP",
        "user_id": "STRING",
        "card_id": "STRING",
        "merchant": "STRING",
        "category": "STRING",
        "amount": "DECIMAL(12,2)",
        "currency": "STRING",
        "status": "STRING",
        "city": "STRING",
        "country": "STRING",
        "lat": "DECIMAL(9,6)",
        "lon": "DECIMAL(9,6)",
    },
    key="card_id",
    time="event_ts",
    unique=("txn_id",),
    required=("amount", "currency", "status"),
    rules={
        "amount_positive": "amount > 0",
        "known_currency": f"currency IN ({', '.join(repr(code) for code in CURRENCIES)})",
        "known_status": "status IN ('approved', 'declined', 'reversed')",
        "on_the_globe": "lat >= -90 AND lat <= 90 AND lon >= -180 AND lon <= 180",
    },
    generator=generate_transactions,
)

_DECLINED = "status = 'declined'"

VIEWS = (
    View(
        "card_minutes",
        (TRANSACTIONS,),
        by=("card_id",),
        every="1 minute",
        measures={
            "txn_count": count(),
            "sum_amount": sum_of("amount"),
            "avg_amount": avg("amount"),
            "max_amount": max_of("amount"),
        },
    ),
    View(
        "merchant_hours",
        (TRANSACTIONS,),
        by=("merchant", "category"),
        every="1 hour",
        measures={
            "txn_count": count(),
            "declined": count(_DECLINED),
            "sum_amount": sum_of("amount"),
            "distinct_cards": distinct("card_id"),
        },
        show={"decline_rate": "CAST(declined AS DOUBLE) / CAST(txn_count AS DOUBLE)"},
    ),
    View(
        "country_days",
        (TRANSACTIONS,),
        by=("country", "currency"),
        every="1 day",
        measures={
            "txn_count": count(),
            "declined": count(_DECLINED),
            "sum_amount": sum_of("amount"),
            "max_amount": max_of("amount"),
            "distinct_cards": distinct("card_id"),
        },
        show={"decline_rate": "CAST(declined AS DOUBLE) / CAST(txn_count AS DOUBLE)"},
    ),
)

# A card's own mean of a day is per minute (or hour) in which it was used that day.
_VELOCITY = """
WITH minutes AS (
    SELECT date_trunc('day', event_ts) AS day, card_id, date_trunc('hour', event_ts) AS in_hour,
           date_trunc('minute', event_ts) AS in_minute, count(*) AS txns
    FROM transactions GROUP BY 1, 2, 3, 4
), hours AS (
    SELECT day, card_id, in_hour, sum(txns) AS txns FROM minutes GROUP BY day, card_id, in_hour
), busiest AS (
    SELECT m.day, m.card_id, m.transactions, m.busiest_minute, m.mean_per_minute, h.busiest_hour, h.mean_per_hour
    FROM (
        SELECT day, card_id, CAST(sum(txns) AS BIGINT) AS transactions, CAST(max(txns) AS BIGINT) AS busiest_minute,
               CAST(sum(txns) AS DOUBLE) / count(*) AS mean_per_minute
        FROM minutes GROUP BY day, card_id
    ) m JOIN (
        SELECT day, card_id, CAST(max(txns) AS BIGINT) AS busiest_hour, CAST(sum(txns) AS DOUBLE) / count(*) AS mean_per_hour
        FROM hours GROUP BY day, card_id
    ) h ON m.day = h.day AND m.card_id = h.card_id
)
SELECT * FROM busiest WHERE busiest_minute > 5 * mean_per_minute OR busiest_hour > 5 * mean_per_hour
"""

REPORTS = (
    Report(
        "card_velocity",
        by=("day", "card_id"),
        time="day",
        sql=_VELOCITY,
        checks={
            "busiest_within_all": "SELECT count(*) = 0, count(*) AS wrong_rows FROM report WHERE busiest_hour > transactions OR busiest_minute > busiest_hour"
        },
    ),
)

CARD_PAYMENTS = Domain(name="cards", streams=(TRANSACTIONS,), views=VIEWS, reports=REPORTS, title="Card transactions")
