"""Are the pinned jars in lib/, byte for byte? If not, fetch them with the Apache Ivy that ships inside PySpark.

    python -m stack jars                              fetch what is missing, verify all against stack/jars.lock
    python -m stack jars --with cassandra             also those of Cassandra
    python -m stack jars --only spark monitoring      some sets, for the image of the layers
    python -m stack.jars --hash-token-provider 4.2.0  print the lock line of another version, to be added by hand

Jobs never fetch anything: this runs at set-up, and costs a few milliseconds once lib/ is complete.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from stack.java import find_java
from stack.settings import ROOT, StackError

LOCK = ROOT / "stack" / "jars.lock"
TOKEN_PROVIDER = "spark/spark-token-provider-kafka-0-10_2.13"  # the one artifact with several legal versions
CONFS = ("spark", "kafka", "hdfs", "monitoring")
OPTIONAL_CONFS = ("cassandra",)  # fetched only for those who ask
TRIES = 4


class JarError(StackError):
    """A jar is missing, unknown, or not the one in the lock file."""


def read_lock(path: Path = LOCK) -> dict[str, str]:
    """Return `conf/file.jar` → sha-256 in hexadecimal."""
    pairs = (line.split() for line in path.read_text().splitlines() if line.strip() and not line.startswith("#"))
    return {name: digest for digest, name in pairs}


def wanted(lock: dict[str, str], confs: Collection[str]) -> dict[str, str]:
    """Return the part of the lock that belongs to these sets."""
    return {name: digest for name, digest in lock.items() if name.partition("/")[0] in confs}


def token_provider_versions(lock: dict[str, str]) -> list[str]:
    """The legal versions of the token provider, newest first."""
    found = [match[1] for name in lock if (match := re.fullmatch(re.escape(TOKEN_PROVIDER) + r"-([\d.]+)\.jar", name))]
    return sorted(found, key=lambda version: [int(part) for part in version.split(".")], reverse=True)


def missing(lib: Path, lock: dict[str, str]) -> list[str]:
    """The jars of the lock that are not in `lib`; one version of the token provider is enough."""
    absent = [name for name in lock if not (lib / name).is_file()]
    providers = [name for name in lock if name.startswith(TOKEN_PROVIDER)]
    if any(name not in absent for name in providers):
        absent = [name for name in absent if name not in providers]
    return absent


def verify(lib: Path, lock: dict[str, str], *, stamp: bool = True) -> None:
    """Compare every file in `lib` with the lock; a stamp of sizes and times spares files that did not change.

    Args:
        stamp: whether to write the stamp for the next time.

    Raises:
        JarError: names the unknown or wrong file and the way out.
    """
    stamp_file = lib / ".verified"
    before = _read_stamp(stamp_file)
    seen: dict[str, list[str | int]] = {}
    for path in sorted(
        path for conf in (*CONFS, *OPTIONAL_CONFS) for path in (lib / conf).rglob("*") if not path.is_dir()
    ):
        name = path.relative_to(lib).as_posix()
        if name not in lock:
            raise JarError(f"{path}: not in stack/jars.lock; remove it: rm '{path}'")
        state = path.stat()
        mark: list[str | int] = [lock[name], state.st_size, state.st_mtime_ns]
        if before.get(name) != mark and (found := sha256(path)) != lock[name]:
            raise JarError(
                f"{path}: sha-256 is {found}, stack/jars.lock says {lock[name]}; "
                f"remove it and fetch again: rm '{path}' && python -m stack jars"
            )
        seen[name] = mark
    if stamp and seen != before:
        stamp_file.write_text(json.dumps(seen, indent=0))


def sha256(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def ensure(root: Path = ROOT, confs: Collection[str] = CONFS) -> bool:
    """Make lib/ complete and verified. Returns whether anything had to be fetched.

    Args:
        confs: the sets that must be there; whatever else is there is verified as well.

    Raises:
        JarError: a file is not what the lock says, or cannot be fetched.
    """
    lib, lock = root / "lib", read_lock()
    lib.mkdir(exist_ok=True)
    verify(lib, lock)
    needed = wanted(lock, confs)
    if not missing(lib, needed):
        return False
    with _only_one(root / ".cache"):
        absent = missing(lib, needed)
        if not absent:  # another process was faster
            return False
        staging = _fetch(root / ".cache", token_provider_versions(lock), sorted({n.partition("/")[0] for n in absent}))
        verify(staging, lock)
        if still := [name for name in missing(staging, needed) if name in absent]:
            raise JarError(
                f"{', '.join(still)}: in stack/jars.lock, but stack/ivy.xml does not bring it; make them agree"
            )
        for name in lock:
            if (staging / name).is_file() and not (lib / name).is_file():
                (lib / name).parent.mkdir(parents=True, exist_ok=True)
                (staging / name).replace(lib / name)
        shutil.rmtree(staging)
        for provider in [name for name in lock if name.startswith(TOKEN_PROVIDER) and (lib / name).is_file()][1:]:
            (lib / provider).unlink()  # two versions on one class path would hide each other
        verify(lib, lock)
    return True


def _fetch(cache: Path, versions: list[str], confs: Sequence[str] = CONFS) -> Path:
    """Retrieve sets of jars into a staging folder, with the first version of the token provider that resolves."""
    staging = cache / "staging"
    said = ""
    for attempt in range(TRIES):
        for version in versions:
            shutil.rmtree(staging, ignore_errors=True)
            done = _ivy(cache, version, staging, confs)
            if done.returncode == 0:
                return staging
            said = "\n".join(
                line for line in done.stdout.splitlines() if re.search(r"UNRESOLVED|not found|ERROR", line)
            )
        if attempt < TRIES - 1:
            print(f"jars: attempt {attempt + 1} of {TRIES} failed, trying again in {2**attempt * 2} s", file=sys.stderr)
            time.sleep(2**attempt * 2)
    raise JarError(
        f"jars: Ivy could not fetch them (token provider {' or '.join(versions)}):\n{said[-1500:]}\n"
        "check the way to Maven Central, then: python -m stack jars"
    )


def _ivy(cache: Path, version: str, staging: Path, confs: Sequence[str]) -> subprocess.CompletedProcess[str]:
    command = [
        find_java().executable,
        f"-Divy.default.ivy.user.dir={cache / 'ivy-home'}",
        f"-Dtoken.provider.version={version}",
        *("-jar", str(_ivy_jar())),
        *("-ivy", str(ROOT / "stack" / "ivy.xml")),
        *("-cache", str(cache / "ivy")),
        *("-confs", *confs),
        *("-retrieve", f"{staging}/[conf]/[artifact]-[revision](-[classifier]).[ext]"),
    ]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)


def _ivy_jar() -> Path:
    spec = importlib.util.find_spec("pyspark")
    folder = Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None
    jars = sorted(folder.glob("jars/ivy-*.jar")) if folder else []
    if not jars:
        raise JarError(f"PySpark: no ivy-*.jar for {sys.executable}; install it: make setup")
    return jars[-1]


@contextmanager
def _only_one(cache: Path) -> Iterator[None]:
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "jars.busy").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read_stamp(path: Path) -> dict[str, list[str | int]]:
    try:
        stamp: dict[str, list[str | int]] = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return stamp


def main(argv: list[str] | None = None) -> int:
    """Print the lock line of another version of the token provider."""
    parser = argparse.ArgumentParser(prog="python -m stack.jars", description=main.__doc__)
    parser.add_argument("--hash-token-provider", metavar="VERSION", required=True)
    args = parser.parse_args(argv)
    try:
        with _only_one(ROOT / ".cache"):
            staging = _fetch(ROOT / ".cache", [args.hash_token_provider])
        name = f"{TOKEN_PROVIDER}-{args.hash_token_provider}.jar"
        print(f"{sha256(staging / name)}  {name}")
    except StackError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
