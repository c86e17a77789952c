"""The domains that ship. A new domain is one new file here and one entry in this tuple."""

from domains.learning import LEARNING
from engine.domain import DeclarationError, Domain

DOMAINS: tuple[Domain, ...] = (LEARNING,)


def named(text: str) -> tuple[Domain, ...]:
    """Return the domains that a comma-separated list names; `all` names every one.

    Raises:
        DeclarationError: a name is unknown; the message lists the known ones.
    """
    known = {domain.name: domain for domain in DOMAINS}
    names = list(known) if text.strip() == "all" else [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise DeclarationError(
            f"DOMAIN={text!r}: unknown domain; allowed: {', '.join(known)}, several by comma, or all"
        )
    return tuple(known[name] for name in dict.fromkeys(names))
