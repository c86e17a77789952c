"""Price ticks of a few shares: a seeded random walk, or live quotes."""

from __future__ import annotations

import functools
import itertools
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from random import Random
from typing import Any

from engine.domain import (
    DeclarationError,
    Domain,
    Maker,
    Report,
    Stream,
    View,
    avg,
    count,
    first,
    last,
    max_of,
    min_of,
    sum_of,
)

MICROS = 1_000_000  # prices are whole millionths
# Before or beyond these distances from a symbol's newest tick lies a late or future event, not the next tick; the third
# in a row beyond is no exception any more, but a clock that went on.
NEAR_MS, FAR_MS = 600_000, 1_800_000


@functools.lru_cache(maxsize=64)
def _iso_second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S.")


def _tick(symbol: str, price_micros: int, volume: int | None, at_ms: int) -> dict[str, Any]:
    return {
        "symbol": symbol,
        "price": price_micros / MICROS,
        "volume": volume,
        "ts": f"{_iso_second(at_ms // 1000)}{at_ms % 1000:03d}Z",
        "ts_epoch_ms": at_ms,
    }


def tickers(options: Mapping[str, str]) -> tuple[str, ...]:
    """Return the symbols of TICKERS. Raises DeclarationError."""
    names = tuple(dict.fromkeys(name.strip().upper() for name in options["tickers"].split(",") if name.strip()))
    if not names:
        raise DeclarationError(f"TICKERS={options['tickers']!r}: allowed are symbols, several by comma")
    return names


def generate_ticks(rng: Random, options: Mapping[str, str]) -> Maker:
    """Random walks, one per symbol; two ticks of a symbol never share a millisecond."""
    symbols = tickers(options)
    if options["live"].lower() in ("1", "true", "yes"):
        return live_quotes(symbols)
    prices = {symbol: rng.randrange(20 * MICROS, 500 * MICROS) for symbol in symbols}
    newest, ahead = dict.fromkeys(symbols, 0), dict.fromkeys(symbols, 0)

    def next_moment(symbol: str, now_ms: int) -> int:
        """Now, or the first millisecond after the symbol's newest tick; late and future events stay where they are."""
        gap = now_ms - newest[symbol]
        ahead[symbol] = ahead[symbol] + 1 if gap > FAR_MS else 0
        if newest[symbol] and (gap < -NEAR_MS or 0 < ahead[symbol] < 3):
            return now_ms
        newest[symbol] = max(now_ms, newest[symbol] + 1)
        return newest[symbol]

    def make(now_ms: int) -> dict[str, Any]:
        symbol = symbols[int(rng.random() * len(symbols))]
        price = max(MICROS // 100, int(prices[symbol] * (1 + rng.gauss(0, 0.0004))))
        prices[symbol] = price
        volume = None if rng.random() < 0.02 else min(int(rng.paretovariate(1.2) * 100), 10**9)
        return _tick(symbol, price, volume, next_moment(symbol, now_ms))

    return make


def live_quotes(symbols: tuple[str, ...]) -> Maker:
    """Quotes as they are now, symbol after symbol; one that fails is skipped with a warning, never invented.

    Raises:
        DeclarationError: yfinance is not installed.
    """
    try:
        import yfinance  # type: ignore[import-not-found]
    except ImportError:
        raise DeclarationError("LIVE=true: live quotes need yfinance; pip install yfinance") from None
    turn = itertools.cycle(symbols)

    def make(_now_ms: int) -> dict[str, Any] | None:
        symbol = next(turn)
        try:
            quote = yfinance.Ticker(symbol).fast_info
            price, volume = float(quote["lastPrice"]), quote["lastVolume"]
            return _tick(
                symbol, round(price * MICROS), None if volume is None else int(volume), int(time.time() * 1000)
            )
        except Exception as error:  # whatever a foreign service does, the other symbols go on
            print(f"stocks: no quote of {symbol}: {type(error).__name__}", file=sys.stderr)
            return None

    return make


TICKS = Stream(
    topic="stock-ticks",
    columns={
        "symbol": "STRING",
        "price": "DECIMAL(18,6)",
        "volume": "BIGINT",
        "ts": "TIMESTAMP",
        "ts_epoch_ms": "BIGINT",
    },
    key="symbol",
    time="ts",
    unique=("symbol", "ts_epoch_ms"),
    required=("price",),
    rules={"price_positive": "price > 0", "volume_not_negative": "volume IS NULL OR volume >= 0"},
    generator=generate_ticks,
    options={"tickers": "AAPL,MSFT,GOOG,AMZN,TSLA", "live": "false"},
)

_CANDLE = {
    "ticks": count(),
    "avg_price": avg("price"),
    "min_price": min_of("price"),
    "max_price": max_of("price"),
    "first_price": first("price"),
    "last_price": last("price"),
    "volume": sum_of("volume"),
}
_CHANGE = {
    "pct_change": "100 * (CAST(last_price AS DOUBLE) - CAST(first_price AS DOUBLE)) / CAST(first_price AS DOUBLE)"
}

VIEWS = (
    View("price_minutes", (TICKS,), by=("symbol",), every="1 minute", measures=_CANDLE, show=_CHANGE),
    View("price_days", (TICKS,), by=("symbol",), every="1 day", measures=_CANDLE, show=_CHANGE),
)

_MOVERS = """
WITH days AS (
    SELECT date_trunc('day', ts) AS day, symbol, min_by(price, ts_epoch_ms) AS open, max_by(price, ts_epoch_ms) AS close,
           max(price) - min(price) AS range, CAST(sum(volume) AS BIGINT) AS volume
    FROM stock_ticks GROUP BY 1, 2
), changes AS (
    SELECT *, 100 * (CAST(close AS DOUBLE) - CAST(open AS DOUBLE)) / CAST(open AS DOUBLE) AS pct_change FROM days
)
SELECT day, symbol, open, close, close - open AS change, pct_change, range, volume,
       rank() OVER (PARTITION BY day ORDER BY abs(pct_change) DESC, symbol) AS rank
FROM changes
"""

REPORTS = (
    Report(
        "daily_movers",
        by=("day", "symbol"),
        time="day",
        sql=_MOVERS,
        checks={
            "close_within_range": "SELECT count(*) = 0, count(*) AS wrong_rows FROM report WHERE abs(close - open) > range",
            "first_is_ranked_1": "SELECT count(*) = 0 OR min(rank) = 1, min(rank) AS smallest FROM report",
        },
    ),
)

STOCKS = Domain(name="stocks", streams=(TICKS,), views=VIEWS, reports=REPORTS, title="Price ticks")
