"""The domains that ship. A new domain is one new file here and one entry in this tuple."""

from collections.abc import Mapping

from domains.cards import CARD_PAYMENTS
from domains.iot import IOT
from domains.learning import LEARNING
from domains.movies import MOVIES
from domains.stocks import STOCKS
from engine.domain import DeclarationError, Domain

DOMAINS: tuple[Domain, ...] = (LEARNING, IOT, MOVIES, CARD_PAYMENTS, STOCKS)


def named(text: str, given: Mapping[str, str]) -> tuple[Domain, ...]:
    """Return the domains that a comma-separated list names; `all` names every one.

    Args:
        given: settings of the domains, such as TICKERS, in place of their defaults; others are ignored.

    Raises:
        DeclarationError: a name is unknown (the message lists the known ones), or a setting has a wrong value.
    """
    known = {domain.name: domain for domain in DOMAINS}
    names = list(known) if text.strip() == "all" else [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise DeclarationError(
            f"DOMAIN={text!r}: unknown domain; allowed: {', '.join(known)}, several by comma, or all"
        )
    return tuple(known[name].configured(given) for name in dict.fromkeys(names))
