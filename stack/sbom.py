"""What is Highwater made of? Writes a CycloneDX bill of materials: Python packages and jars, with their licences.

    python -m stack.sbom [FILE]        sbom.json by default

Packages are those of requirements.lock; what requirements-notebook.lock and requirements-cassandra.lock add has the
scope "optional", what only requirements-dev.lock brings "excluded". The jars are those of stack/jars.lock, with its
SHA-256. Licences of packages come from their own metadata.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from stack.jars import read_lock
from stack.settings import ROOT, StackError

APACHE = "Apache-2.0"
# File name of a jar without its version → (group, licence), longest name first where one begins with another. Most jars
# do not carry their licence; these come from the descriptions that their makers published with them.
JARS = {
    "affinity": ("net.openhft", APACHE),
    "agrona": ("org.agrona", APACHE),
    "airline": ("io.airlift", APACHE),
    "antlr-runtime": ("org.antlr", "BSD-3-Clause"),
    "asm": ("org.ow2.asm", "BSD-3-Clause"),
    "asm-*": ("org.ow2.asm", "BSD-3-Clause"),
    "big-math": ("ch.obermuhlner", "MIT"),
    "cassandra-*": ("org.apache.cassandra", APACHE),
    "chronicle-*": ("net.openhft", APACHE),
    "commons-lang3": ("org.apache.commons", APACHE),
    "commons-math3": ("org.apache.commons", APACHE),
    "compiler": ("net.openhft", APACHE),
    "concurrent-trees": ("com.googlecode.concurrent-trees", APACHE),
    "ecj": ("org.eclipse.jdt", "EPL-2.0"),
    "failureaccess": ("com.google.guava", APACHE),
    "guava": ("com.google.guava", APACHE),
    "HdrHistogram": ("org.hdrhistogram", "CC0-1.0 OR BSD-2-Clause"),
    "high-scale-lib": ("com.boundary", "MIT"),
    "hppc": ("com.carrotsearch", APACHE),
    "ipaddress": ("com.github.seancfoley", APACHE),
    "j2objc-annotations": ("com.google.j2objc", APACHE),
    "jamm": ("com.github.jbellis", APACHE),
    "javax.inject": ("javax.inject", APACHE),
    "jbcrypt": ("org.mindrot", "ISC"),
    "jcl-over-slf4j": ("org.slf4j", APACHE),
    "jcommander": ("com.beust", APACHE),
    "jctools-core": ("org.jctools", APACHE),
    "jffi": ("com.github.jnr", APACHE),
    "jna": ("net.java.dev.jna", "LGPL-2.1-or-later OR Apache-2.0"),
    "jna-*": ("net.java.dev.jna", "LGPL-2.1-or-later OR Apache-2.0"),
    "jnr-x86asm": ("com.github.jnr", "MIT"),
    "jnr-*": ("com.github.jnr", APACHE),
    "jsr305": ("com.google.code.findbugs", APACHE),
    "jvector": ("io.github.jbellis", APACHE),
    "jvm-attach-api": ("org.gridkit.lab", APACHE),
    "log4j-over-slf4j": ("org.slf4j", APACHE),
    "logback-*": ("ch.qos.logback", "EPL-1.0 OR LGPL-2.1-only"),
    "lucene-*": ("org.apache.lucene", APACHE),
    "lz4-java-1.8": ("org.lz4", APACHE),
    "metrics-jvm": ("io.dropwizard.metrics", APACHE),
    "metrics-logback": ("io.dropwizard.metrics", APACHE),
    "mxdump": ("org.gridkit.jvmtool", APACHE),
    "ohc-*": ("org.caffinitas.ohc", APACHE),
    "posix": ("net.openhft", APACHE),
    "psjava": ("org.psjava", "MIT"),
    "semver4j": ("com.vdurmont", "MIT"),
    "sigar": ("org.fusesource", APACHE),
    "sjk-*": ("org.gridkit.jvmtool", APACHE),
    "snakeyaml": ("org.yaml", APACHE),
    "ST4": ("org.antlr", "BSD-3-Clause"),
    "stream": ("com.clearspring.analytics", APACHE),
    "argparse4j": ("net.sourceforge.argparse4j", "MIT"),
    "audience-annotations": ("org.apache.yetus", APACHE),
    "caffeine": ("com.github.ben-manes.caffeine", APACHE),
    "commons-beanutils": ("commons-beanutils", APACHE),
    "commons-cli": ("commons-cli", APACHE),
    "commons-collections": ("commons-collections", APACHE),
    "commons-digester": ("commons-digester", APACHE),
    "commons-io": ("commons-io", APACHE),
    "commons-logging": ("commons-logging", APACHE),
    "commons-pool2": ("org.apache.commons", APACHE),
    "commons-validator": ("commons-validator", APACHE),
    "error_prone_annotations": ("com.google.errorprone", APACHE),
    "hadoop-client-*": ("org.apache.hadoop", APACHE),
    "jackson-dataformat-*": ("com.fasterxml.jackson.dataformat", APACHE),
    "jackson-datatype-*": ("com.fasterxml.jackson.datatype", APACHE),
    "jackson-module-*": ("com.fasterxml.jackson.module", APACHE),
    "jackson-*": ("com.fasterxml.jackson.core", APACHE),
    "jaxb-api": ("javax.xml.bind", "CDDL-1.1 OR GPL-2.0-only WITH Classpath-exception-2.0"),
    "jmx_prometheus_*": ("io.prometheus.jmx", APACHE),
    "jopt-simple": ("net.sf.jopt-simple", "MIT"),
    "jose4j": ("org.bitbucket.b_c", APACHE),
    "kafka-*": ("org.apache.kafka", APACHE),
    "kafka_*": ("org.apache.kafka", APACHE),
    "lz4-java": ("at.yawk.lz4", APACHE),
    "metrics-core-2": ("com.yammer.metrics", APACHE),
    "metrics-core": ("io.dropwizard.metrics", APACHE),
    "netty-*": ("io.netty", APACHE),
    "paranamer": ("com.thoughtworks.paranamer", "BSD-3-Clause"),
    "pcollections": ("org.pcollections", "MIT"),
    "reload4j": ("ch.qos.reload4j", APACHE),
    "scala-library": ("org.scala-lang", APACHE),
    "scala-reflect": ("org.scala-lang", APACHE),
    "scala-logging_*": ("com.typesafe.scala-logging", APACHE),
    "scala-*": ("org.scala-lang.modules", APACHE),
    "slf4j-*": ("org.slf4j", "MIT"),
    "snappy-java": ("org.xerial.snappy", APACHE),
    "spark-*": ("org.apache.spark", APACHE),
    "zookeeper": ("org.apache.zookeeper", APACHE),
    "zookeeper-jute": ("org.apache.zookeeper", APACHE),
    "zstd-jni": ("com.github.luben", "BSD-2-Clause"),
}
# Packages whose metadata names no licence; from the licence file inside of them, or of their source.
PACKAGES = {
    "asttokens": APACHE,
    "bleach": APACHE,
    "datasketches": APACHE,
    "hdfs-native": APACHE,
    "kubernetes-validate": APACHE,
    "overrides": APACHE,
    "protobuf": "BSD-3-Clause",
    "uv": "MIT OR Apache-2.0",
}
_VERSION = re.compile(r"(?P<name>.+?)-(?P<version>\d[\w.]*(?:-\w+)?)\.jar")


def main(argv: list[str] | None = None) -> int:
    """Write the bill. Returns 2 if something that is needed for it is not installed."""
    parser = argparse.ArgumentParser(prog="python -m stack.sbom", description=main.__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=ROOT / "sbom.json")
    args = parser.parse_args(argv)
    try:
        found = bill(environment_bill())
    except StackError as error:
        print(error, file=sys.stderr)
        return 2
    args.file.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    print(f"{args.file}: {len(found['components'])} components")
    return 0


def bill(environment: dict[str, Any]) -> dict[str, Any]:
    """Reduce the bill of an environment to what the lock files name, and add the jars.

    Raises:
        StackError: a jar or a package without a known licence, or a package of the product that is not installed.
    """
    names = ("requirements.lock", "requirements-notebook.lock", "requirements-cassandra.lock", "requirements-dev.lock")
    runtime, notebook, cassandra, everything = (locked(ROOT / name) for name in names)
    packages = []
    for component in environment["components"]:
        name = normal(component["name"])
        if everything.get(name) != component["version"]:
            continue
        component["scope"] = (
            "required" if name in runtime else "optional" if name in notebook | cassandra else "excluded"
        )
        if not component.get("licenses"):
            if name not in PACKAGES:
                raise StackError(f"{name}: its metadata names no licence; add it to PACKAGES in stack/sbom.py")
            component["licenses"] = [{"expression": PACKAGES[name]}]
        packages.append(component)
    if absent := sorted(unconditional(ROOT / "requirements.lock") - {normal(each["name"]) for each in packages}):
        raise StackError(f"{', '.join(absent)}: not installed in the version of requirements.lock; run: make setup")
    kept = {component["bom-ref"] for component in packages}
    return {
        **environment,
        "components": [*packages, *(jar(name, digest) for name, digest in sorted(read_lock().items()))],
        "dependencies": [
            {**each, "dependsOn": [ref for ref in each.get("dependsOn", []) if ref in kept]}
            for each in environment.get("dependencies", [])
            if each["ref"] in kept
        ],
    }


def jar(path: str, digest: str) -> dict[str, Any]:
    """Return the component of one line of stack/jars.lock, `set/file.jar` and its SHA-256."""
    group, licence = jar_licence(path)
    name, version = jar_name(path)
    return {
        "bom-ref": path,
        "type": "library",
        "group": group,
        "name": name,
        "version": version,
        "purl": f"pkg:maven/{group}/{name}@{version}",
        "hashes": [{"alg": "SHA-256", "content": digest}],
        "licenses": [{"expression": licence}],
        "scope": "required",
    }


def jar_name(path: str) -> tuple[str, str]:
    """Return name and version of `set/name-version.jar`."""
    match = _VERSION.fullmatch(Path(path).name)
    if not match:
        raise StackError(f"{path}: the name of a jar in stack/jars.lock should end in -VERSION.jar")
    return match["name"], match["version"]


def jar_licence(path: str) -> tuple[str, str]:
    """Return group and licence of a jar."""
    name, version = jar_name(path)
    for pattern, found in JARS.items():
        if pattern == name or (pattern.endswith("*") and name.startswith(pattern[:-1])):
            return found
        if f"{name}-{version}".startswith(f"{pattern}.") and pattern != name:
            return found  # one name, and another maker from some version on
    raise StackError(f"{path}: licence unknown; add it to JARS in stack/sbom.py and to docs/licences.md")


def locked(path: Path) -> dict[str, str]:
    """Return package → version of a lock file."""
    pins = re.findall(r"^([A-Za-z0-9][\w.-]*)==([^\s;\\]+)", path.read_text(encoding="utf-8"), re.M)
    return {normal(name): version for name, version in pins}


def unconditional(path: Path) -> set[str]:
    """Return the packages of a lock file that every platform needs."""
    return {
        normal(name)
        for name in re.findall(r"^([A-Za-z0-9][\w.-]*)==[^\s;\\]+ \\$", path.read_text(encoding="utf-8"), re.M)
    }


def normal(name: str) -> str:
    """The one spelling of a package's name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def environment_bill() -> dict[str, Any]:
    """Ask cyclonedx-py for the packages of this Python."""
    command = [
        sys.executable,
        "-m",
        "cyclonedx_py",
        "environment",
        "--output-reproducible",
        "--sv",
        "1.6",
        "--of",
        "JSON",
    ]
    done = subprocess.run([*command, sys.executable], capture_output=True, text=True, check=False)
    if done.returncode:
        raise StackError(f"cyclonedx-py: {done.stderr.strip()[-500:]}; install it: make setup")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    sys.exit(main())
