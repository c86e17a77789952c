"""Which versions of a domain are there, what would a promotion change, and which one is served from now on?

    python -m engine.versions list DOMAIN
    python -m engine.versions diff DOMAIN VERSION           [--against VERSION] [--limit N]
    python -m engine.versions promote DOMAIN VERSION
    python -m engine.versions rollback DOMAIN [VERSION]

Reads:   HDFS, the versions and choices of `engine.storage.versions`; `diff` their rows, too (`engine.batch.changes`).
Writes:  `promote` and `rollback` one choice, by one rename, which serving and the stream follow; else nothing.

Exit codes: 0 done, or `diff` found nothing; 1 something differs, or there is no such version; 2 a wrong setting; 75 HDFS
did not answer within the retries.
"""

from __future__ import annotations

import argparse
import sys

from engine.batch import changes
from engine.runtime.observe import exit_codes
from engine.runtime.settings import SettingsError, load
from engine.storage.hdfs import Hdfs, HdfsUnavailable
from engine.storage.versions import VersionUnknown, allowed, choice, choose, manifests, named


def main(argv: list[str] | None = None) -> int:
    """The command line; returns 0, or for `diff` 1 if anything differs."""
    parser = argparse.ArgumentParser(
        prog="python -m engine.versions", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what in (
        ("list", "the versions, which one is served, and why"),
        ("diff", "changed groups and amounts between the served version, or another one, and this one"),
        ("promote", "serve this version and what is built on it"),
        ("rollback", "serve this version alone; without a number the one that the served version was built on"),
    ):
        command = commands.add_parser(name, help=what, description=what)
        command.add_argument("domain")
        if name != "list":
            command.add_argument("version", type=int, nargs="?" if name == "rollback" else None)
        if name == "diff":
            command.add_argument("--against", type=int, metavar="VERSION", help="default: the served version")
            command.add_argument("--limit", type=int, default=20, help="differences that are listed per view")
    args = parser.parse_args(argv)
    with exit_codes((SettingsError,), (VersionUnknown, ValueError), (HdfsUnavailable,)):
        chosen = load()
        fs = Hdfs(chosen.hdfs_url, chosen.hadoop_user_name)
        known, made = manifests(fs, args.domain), choice(fs, args.domain)
        served = next(iter(allowed(known, made)), None)
        if served is None:
            raise VersionUnknown(
                f"domain '{args.domain}' has no version yet; run batch_layer.py --domain {args.domain}"
            )
        if args.command == "list":
            for one in known:
                line = f", line {one.line}" if one.line else ""
                state = "  <- served" if one.version == served.version else ""
                print(
                    f"{one.version:>6}  {one.created_at}  {one.events:>12,} events  on {one.parent}{line}  {one.definition_hash}{state}"
                )
            if made:
                print(f"{'promoted' if made.follow else 'rolled back to'} version {made.version} at {made.at}")
            return 0
        version = args.version if args.version is not None else served.parent
        if args.command == "diff":
            by_number = {one.version: one for one in known}
            wanted = (args.against if args.against is not None else served.version, version)
            unknown = [number for number in wanted if number not in by_number]
            if unknown:
                raise VersionUnknown(
                    f"domain '{args.domain}' has no version {unknown[0]}; there are {named(by_number)}"
                )
            before, after = (by_number[number] for number in wanted)
            try:
                found = list(changes.changes(fs, before, after, args.limit))
            except FileNotFoundError as error:
                raise VersionUnknown(f"a version was pruned while it was read: {error}; ask again") from error
            print(f"{args.domain}: version {wanted[0]} → {wanted[1]}")
            print("\n".join(line for one in found for line in changes.told(one)))
            return int(any(one.any for one in found))
        done = choose(fs, args.domain, version, follow=args.command == "promote")
        print(
            f"{args.domain}: version {done.version} is served from now on"
            + (", with what is built on it" if done.follow else "")
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
