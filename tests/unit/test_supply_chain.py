"""Is what gets installed what was looked at?

Lock files, bill of materials and the list of licences, held against each other.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from stack import sbom
from stack.jars import read_lock
from stack.settings import StackError
from tests.unit.test_imports import SCRIPTS, modules

ROOT = Path(__file__).resolve().parents[2]
# What runs, what notebooks and Cassandra need besides, and what the tests need: all of that and more.
INPUTS = {f"requirements{part}.txt": f"requirements{part}.lock" for part in ("", "-notebook", "-cassandra", "-dev")}
LICENCES = (ROOT / "docs" / "licences.md").read_text(encoding="utf-8")
_ENTRY = re.compile(
    r"^([A-Za-z0-9][\w.-]*)==([^\s;\\]+)[^\n]*\\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.M
)


def pinned(name: str) -> dict[str, str]:
    """Package → version of a file that people edit."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith(("#", "-r")))
    return {sbom.normal(package): version for package, version in pairs}


def rows(heading: str) -> dict[str, list[str]]:
    """First cell → the other cells of a table of docs/licences.md."""
    section = LICENCES.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:3] == "| `"
    ]
    return {row[0].strip("`"): row[1:] for row in cells}


# Lock files -----------------------------------------------------------------------------------------------------------


def test_the_five_required_packages_stay_on_top() -> None:
    assert list(pinned("requirements.txt"))[:5] == ["pyspark", "kafka-python", "faker", "pyarrow", "pytest"]


@pytest.mark.parametrize("name", INPUTS)
def test_every_pinned_package_is_locked_in_that_version(name: str) -> None:
    locked = sbom.locked(ROOT / INPUTS[name])
    differing = {package: version for package, version in pinned(name).items() if locked.get(package) != version}
    assert not differing, f"{INPUTS[name]} is not in step with {name}; run: make lock"


@pytest.mark.parametrize("name", INPUTS.values())
def test_every_locked_package_has_hashes_and_comes_from_no_place_of_its_own(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    entries = {sbom.normal(package) for package, _, _ in _ENTRY.findall(text)}
    assert entries == set(sbom.locked(ROOT / name)) and len(entries) >= len(pinned(name.replace(".lock", ".txt"))) > 0
    assert not re.findall(r"^-|://|file:|^/| @ ", text, re.M), "an address or a path got in"


def test_what_is_developed_with_is_what_is_run() -> None:
    runtime, notebook, cassandra, development = (sbom.locked(ROOT / name) for name in INPUTS.values())
    assert runtime.items() <= notebook.items() <= development.items() >= cassandra.items()


def test_each_target_installs_what_it_runs_and_no_more() -> None:
    """`make demo` needs neither JupyterLab nor a type checker: 1.8 GB, of which it runs a third."""
    runtime = sbom.locked(ROOT / "requirements.lock")
    assert not {"jupyterlab", "mypy", "ruff", "playwright", "hypothesis", "cassandra-driver", "uv"} & set(runtime)
    makefile = (ROOT / "Makefile").read_text()
    recipes = dict(re.findall(r"^([a-z0-9-]+): .*##.*\n((?:\t.*\n)+)", makefile, re.M))
    needing = {name for name, recipe in recipes.items() if re.search(r"pytest|ruff|\$\(UV\)|stack\.sbom", recipe)}
    needing -= {"clean"}  # it deletes their caches
    assert needing >= {"test-unit", "check", "lock", "sbom"}
    for name in needing:
        assert re.search(rf"^{name}: (\$\(DEV\)|test-unit) ##", makefile, re.M), name
    assert re.search(r"^demo: setup ##", makefile, re.M)


def test_what_the_product_imports_is_what_is_installed_to_run_it() -> None:
    runtime, found = set(sbom.locked(ROOT / "requirements.lock")), importlib.metadata.packages_distributions()
    beside = {"engine.serving.cassandra": {"cassandra"}, "stack.probes": {"cassandra"}, "domains.stocks": {"yfinance"}}
    for module, names in modules().items():
        tops = {name.partition(".")[0] for name in names} - sys.stdlib_module_names - beside.get(module, set())
        for top in tops - {"engine", "domains", "stack", *SCRIPTS}:
            assert {sbom.normal(package) for package in found[top]} & runtime, f"{module} imports {top}"


def test_the_jars_are_fetched_while_packages_are_still_missing() -> None:
    """Beside PySpark, in which Ivy lies, `python -m stack jars` needs the standard library alone."""
    at_import = modules(everywhere=False)
    reached: set[str] = set()
    waiting = ["stack.__main__"]
    while waiting:
        name = waiting.pop()
        if name in at_import and name not in reached:
            reached.add(name)
            waiting += at_import[name]
    others = {i.partition(".")[0] for name in reached for i in at_import[name]} - {"stack", "engine"}
    assert "stack.jars" in reached and others <= sys.stdlib_module_names, others - sys.stdlib_module_names


def test_what_is_installed_is_compared_with_hashes() -> None:
    makefile = (ROOT / "Makefile").read_text()
    installs = re.findall(r"pip install .*|\$\(INSTALL\).*", makefile)
    assert len(installs) == 2 and all("--require-hashes" in each or "$(INSTALL)" in each for each in installs), installs
    if (ROOT / "Dockerfile").exists():
        installs = re.findall(r"pip install .*", (ROOT / "Dockerfile").read_text())
        assert installs and all(
            re.search(r"--require-hashes( -r requirements(-notebook|-cassandra)?\.lock)+$", line) for line in installs
        ), installs


# Bill of materials ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bill(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file = tmp_path_factory.mktemp("sbom") / "sbom.json"
    done = subprocess.run([sys.executable, "-m", "stack.sbom", str(file)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    read: dict[str, Any] = json.loads(file.read_text())
    return read


def test_the_bill_has_every_jar_of_the_lock_with_its_hash_and_licence(bill: dict[str, Any]) -> None:
    jars = {each["bom-ref"]: each for each in bill["components"] if each["purl"].startswith("pkg:maven/")}
    assert {name: each["hashes"][0]["content"] for name, each in jars.items()} == read_lock()
    for path, each in jars.items():
        assert Path(path).name == f"{each['name']}-{each['version']}.jar"
        assert each["licenses"][0]["expression"]


def test_the_bill_has_every_package_that_is_run_with_its_licence(bill: dict[str, Any]) -> None:
    packages = {sbom.normal(each["name"]): each for each in bill["components"] if each["purl"].startswith("pkg:pypi/")}
    runtime = sbom.locked(ROOT / "requirements.lock")
    required = {name for name, each in packages.items() if each["scope"] == "required"}
    assert sbom.unconditional(ROOT / "requirements.lock") <= required <= set(runtime)
    assert all(each["licenses"] for each in packages.values())
    assert (packages["jupyterlab"]["scope"], packages["ruff"]["scope"]) == ("optional", "excluded")
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    refs = [each["bom-ref"] for each in bill["components"]]
    assert len(refs) == len(set(refs))


def test_the_bill_fits_the_schema_of_cyclonedx(bill: dict[str, Any]) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bill)) is None


def test_a_jar_or_a_package_without_a_known_licence_is_named() -> None:
    with pytest.raises(StackError, match=r"kafka/left-pad-1\.0\.jar: licence unknown"):
        sbom.jar("kafka/left-pad-1.0.jar", "0" * 64)
    silent = {"name": "ruff", "version": sbom.locked(ROOT / "requirements-dev.lock")["ruff"], "bom-ref": "ruff"}
    with pytest.raises(StackError, match="ruff: its metadata names no licence"):
        sbom.bill({"components": [silent]})
    with pytest.raises(StackError, match=r"pyspark.*: not installed"):
        sbom.bill({"components": []})


def test_two_jars_of_one_name_are_told_apart() -> None:
    assert sbom.jar_licence("kafka/metrics-core-2.2.0.jar")[0] == "com.yammer.metrics"
    assert sbom.jar_licence("kafka/metrics-core-4.1.12.1.jar")[0] == "io.dropwizard.metrics"
    assert sbom.jar_licence("kafka/scala-logging_2.13-3.9.5.jar")[0] == "com.typesafe.scala-logging"


# Licences -------------------------------------------------------------------------------------------------------------


def test_the_list_of_licences_has_every_package_that_we_ask_for_and_no_other() -> None:
    assert set(rows("Python packages")) == {package for name in INPUTS for package in pinned(name)}


def test_the_list_of_licences_says_what_the_packages_say(bill: dict[str, Any]) -> None:
    by_name = {sbom.normal(each["name"]): each for each in bill["components"] if each["purl"].startswith("pkg:pypi/")}
    for name, (licence, _) in rows("Python packages").items():
        for said in by_name[name]["licenses"]:
            word = said.get("expression") or said["license"].get("id") or said["license"]["name"]
            vague = {"License :: OSI Approved :: BSD License": "BSD-3-Clause"}
            vague |= {
                "License :: OSI Approved :: GNU Lesser General Public License v2 or later (LGPLv2+)": "LGPL-2.1-or-later"
            }
            vague |= {"License :: OSI Approved :: Apache Software License": "Apache-2.0"}
            assert vague.get(word, word) == licence, name


def test_the_list_of_licences_has_every_jar_that_we_ask_for() -> None:
    assert {name: (group.strip("`"), licence) for name, (group, licence) in rows("Jars").items()} == sbom.JARS
    for dependency in ET.parse(ROOT / "stack" / "ivy.xml").iter("dependency"):
        version = dependency.attrib["rev"].replace("${token.provider.version}", "4.0.0")
        group, _ = sbom.jar_licence(f"any/{dependency.attrib['name']}-{version}.jar")
        assert group == dependency.attrib["org"]


def test_the_list_of_licences_has_every_vendored_file_and_image() -> None:
    folder = ROOT / "web" / "vendor"
    vendored = {path.relative_to(ROOT).as_posix() for ending in ("js", "css") for path in folder.glob(f"*.{ending}")}
    assert set(rows("Files in this repository")) == vendored
    sums = dict(line.split()[::-1] for line in (folder / "SHA256SUMS").read_text().splitlines())
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.name != "SHA256SUMS"}
    assert sums == {
        name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items() if path.is_file()
    }
    overlays = (ROOT / "k8s").rglob("kustomization.yaml")
    images = {name for path in overlays for name in re.findall(r"\{name: ([\w./-]+), newTag", path.read_text())}
    compose = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    images |= set(re.findall(r"_IMAGE:-([\w./-]+):[\w.-]+\}", compose))
    assert set(rows("Images")) == images
