"""Which Java would the stack use, and is it new enough? The same rule as Spark's own scripts: JAVA_HOME, then PATH."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stack.settings import StackError

OLDEST = 17  # Spark 4


class JavaError(StackError):
    """No Java, or one that Spark 4 cannot run on."""


@dataclass(frozen=True)
class Java:
    """A Java that runs: its executable, its major version, and how it was found."""

    executable: str
    major: int
    found_by: str


def find_java(environ: Mapping[str, str] | None = None) -> Java:
    """Return the Java of this environment.

    Raises:
        JavaError: none found, it does not run, or it is older than 17.
    """
    values = os.environ if environ is None else environ
    home = values.get("JAVA_HOME", "")
    executable = str(Path(home) / "bin" / "java") if home else shutil.which("java", path=values.get("PATH")) or ""
    found_by = f"JAVA_HOME={home}" if home else f"PATH (JAVA_HOME is not set), {executable or 'nothing there'}"
    way_out = f"install a Java {OLDEST} or newer and set JAVA_HOME to its folder"
    if not executable or not os.access(executable, os.X_OK):
        raise JavaError(f"Java: none found by {found_by}; {way_out}")
    try:
        said = subprocess.run([executable, "-version"], capture_output=True, text=True, check=True, timeout=30).stderr
    except (OSError, subprocess.SubprocessError) as error:
        raise JavaError(f"Java: {executable} does not run ({error}), found by {found_by}; {way_out}") from error
    match = re.search(r'version "(?:1\.)?(\d+)', said)
    major = int(match[1]) if match else 0
    if major < OLDEST:
        first = said.splitlines()[0] if said else "no version printed"
        raise JavaError(f"Java: {first}, found by {found_by}, but Spark 4 needs {OLDEST} or newer; {way_out}")
    return Java(executable, major, found_by)
