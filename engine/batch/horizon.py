"""Up to where does a batch version speak? To an epoch's end that the typed log has reached, so nothing is cut in two.

Only where no such end can be had (the stream has been down for over a minute, its data is gone, or it speaks of
another definition) the horizon is the typed heads themselves; the stream then begins a new chain there. A candidate
chooses nothing: it stands at its parent's horizon (`batch_layer.py`).
"""

from __future__ import annotations

from datetime import datetime, timedelta

from engine.storage.chains import Chain, Epoch, speaks_of
from engine.storage.log import Position, covers, overlay, reaches

STREAM_DOWN_AFTER = timedelta(minutes=1)


def choose_horizon(
    typed: Position, parent: Position, chain: Chain | None, epochs: list[Epoch], now: datetime
) -> Position:
    """Return H, at least as far as the parent's horizon in every partition.

    Args:
        typed: heads of the typed log.
        parent: horizon of the newest version.
        chain: newest chain of this definition, or None.
        epochs: its consecutive epochs, oldest first; the front may have been pruned.
        now: current time, UTC.
    """
    if chain is None:
        return overlay(parent, typed)
    start = epochs[0].start if epochs else chain.start
    boundaries = [start, *(epoch.end for epoch in epochs)]
    reached = [boundary for boundary in boundaries if reaches(typed, boundary, chain.origins)]
    newest = epochs[-1] if epochs else None
    written = datetime.fromisoformat(newest.created_at if newest else chain.created_at)
    behind = not covers(newest.end if newest else chain.start, _of_chain(typed, chain))
    if not reached or (behind and now - written > STREAM_DOWN_AFTER):
        return overlay(parent, typed)
    # Other logs stand at their typed heads. A partition that was added after this boundary is left to the epochs.
    others = {t: {lg: by for lg, by in logs.items() if not speaks_of(chain, t, lg)} for t, logs in typed.items()}
    chosen = overlay(overlay(parent, others), reached[-1])
    return chosen if covers(chosen, parent) else overlay(parent, typed)


def _of_chain(typed: Position, chain: Chain) -> Position:
    """Return the typed heads of those logs that the chain speaks of (other logs are no backlog of the stream)."""
    return {topic: {lg: p for lg, p in logs.items() if speaks_of(chain, topic, lg)} for topic, logs in typed.items()}
