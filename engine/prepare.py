"""One-shot preparations of a fresh cluster: the topics of the domains, and who may write where on HDFS.

    python -m engine.prepare topics --domain learning      make what is missing, wait for leaders
    python -m engine.prepare folders                       as HDFS's superuser: folders, owners, access lists

Both may run again at any time and change nothing that is right already. The layers need neither: each makes its own
topics, and where all of them share one user, folders appear as they are written.

Exit codes: 0 done, 1 HDFS refuses this user, 2 a wrong setting, 75 start again.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass

import structlog

import domains
from engine.domain import DeclarationError
from engine.runtime import kafka
from engine.runtime.observe import exit_codes, start_logging
from engine.runtime.settings import SettingsError, add_flags, environment, from_args
from engine.storage.hdfs import Hdfs, HdfsUnavailable
from engine.storage.log import EVENTS, MASTER, STAGING

SUPERUSER = "hadoop"


@dataclass(frozen=True)
class Folder:
    """A folder on HDFS: owner, mode, others that may write in it, and those who may write in all folders below it."""

    path: str
    owner: str
    mode: int = 0o755
    beside: tuple[str, ...] = ()
    below: tuple[str, ...] = ()


# Each layer is a user of its own and owns what it writes; serving and the proof own nothing and read all but
# checkpoints. The batch layer is the caretaker: it merges raw segments, prunes epochs and cleans staging, and so may
# write there.
FOLDERS = (
    Folder("/data", SUPERUSER),
    Folder(STAGING, SUPERUSER, beside=("ingest", "stream", "batch"), below=("batch",)),
    # An owner is named below, too: what the superuser put there by hand must not lock it out.
    Folder(MASTER, "ingest", below=("ingest", "batch")),
    Folder(EVENTS, "batch", below=("batch",)),
    Folder("/data/batch_views", "batch", below=("batch",)),
    Folder("/data/speed_views", "stream", below=("stream", "batch")),
    Folder("/checkpoints", SUPERUSER),
    Folder("/checkpoints/ingest", "ingest", 0o700),
    Folder("/checkpoints/speed", "stream", 0o700),
)

_log = structlog.get_logger("engine.prepare")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m engine.prepare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("topics", "folders"))
    add_flags(parser, ("domain", "hdfs_url", "hadoop_user_name"))
    with exit_codes(
        (SettingsError, DeclarationError, kafka.TopicRefused),
        (PermissionError,),
        (HdfsUnavailable, kafka.KafkaUnreachable),
    ):
        args = parser.parse_args(argv)
        settings = from_args(args)
        start_logging(settings)
        if args.what == "topics":
            streams = [stream for domain in domains.named(settings.domain, environment()) for stream in domain.streams]
            kafka.ensure_topics(settings, streams)
            _log.info("topics", ready=[stream.topic for stream in streams])
        else:
            fs = Hdfs(settings.hdfs_url, settings.hadoop_user_name)
            for folder in FOLDERS:
                fs.grant(folder.path, folder.owner, folder.mode, {*folder.beside, *folder.below}, folder.below)
            _log.info("folders", ready=[f"{folder.path} ({folder.owner})" for folder in FOLDERS])


if __name__ == "__main__":
    main(sys.argv[1:])
