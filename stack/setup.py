"""What does `make setup` do? It makes .venv and lib/: the packages that run, and the jars, fetched side by side.

    python3 -m stack.setup

PySpark comes first, because the Ivy in it fetches the jars while pip fetches the other packages.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import venv
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from stack.steps import Steps

ROOT = Path(__file__).resolve().parent.parent
OLDEST = (3, 11)
PIP = ("-m", "pip", "install", "--disable-pip-version-check", "--require-hashes", "--progress-bar", "off")
SHOWN_LINES = 15  # of a command that failed


class Failed(RuntimeError):
    """A command did not end well; says what it printed last."""


def main(argv: list[str] | None = None) -> int:
    """Returns 0, or 2 with the reason on standard error."""
    argparse.ArgumentParser(
        prog="python3 -m stack.setup", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args(argv)
    if sys.version_info < OLDEST:
        found, oldest = (".".join(map(str, version)) for version in (sys.version_info[:2], OLDEST))
        print(f"Python {found} is too old; choose one: make setup PYTHON=python{oldest}", file=sys.stderr)
        return 2
    try:
        set_up(Steps())
    except Failed as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; make setup goes on where it was", file=sys.stderr)
        return 130
    return 0


def set_up(steps: Steps, root: Path = ROOT) -> None:
    """Make what is missing. Raises Failed."""
    python = root / ".venv" / "bin" / "python"
    lock = (root / "requirements.lock").read_text(encoding="utf-8")
    with steps.step("PySpark"):
        if not python.exists():
            venv.create(root / ".venv", with_pip=True, symlinks=True)
        only_spark = root / ".venv" / "spark.lock"
        only_spark.write_text(entry(lock, "pyspark"), encoding="utf-8")
        _run([str(python), *PIP, "--no-deps", "-r", str(only_spark)], root, lambda line: None)

    def packages() -> None:
        with steps.step("packages") as note:
            _run([str(python), *PIP, "-r", "requirements.lock"], root, lambda line: _note_package(line, note))
            note("all there")

    def jars() -> None:
        total = len((root / "stack" / "jars.lock").read_text(encoding="utf-8").splitlines())
        with steps.step("jars") as note:
            note(f"{total} of them, into lib/")
            _run([str(python), "-m", "stack", "jars"], root, lambda line: None)

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(packages), pool.submit(jars)]:
            done.result()


def entry(lock: str, package: str) -> str:
    """Return the lines of one package with its hashes."""
    lines = re.search(rf"^{package}==.*\n(?:[ \t]+--hash.*\n)+", lock, re.M)
    if lines is None:
        raise Failed(f"requirements.lock: no {package} in it; run: make lock")
    return lines[0].rstrip().rstrip("\\") + "\n"


def _note_package(line: str, note: Callable[[str], None]) -> None:
    if found := re.match(
        r"(?:Collecting|Using cached|Requirement already satisfied:|Installing collected) (\S+)", line
    ):
        note("installing" if line.startswith("Installing") else found[1].partition(";")[0])


def _run(command: list[str], folder: Path, each_line: Callable[[str], None]) -> None:
    with subprocess.Popen(
        command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        lines: list[str] = []
        for line in process.stdout:
            lines = [*lines, line][-SHOWN_LINES:]
            each_line(line)
    if process.returncode:
        raise Failed(f"{' '.join(command)}: exit {process.returncode}\n{''.join(lines)}".rstrip())


if __name__ == "__main__":
    sys.exit(main())
