"""Who may import whom? ARCHITECTURE.md, "Import rules", as a test."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = {"producer", "ingest_layer", "stream_layer", "batch_layer", "serving_layer"}
# Programs of their own, which may import any package, and those of them that take domains by name.
PROGRAMS = {"engine.materialise", "engine.prepare", "engine.settings", "engine.versions"}
WITH_DOMAINS = {"engine.materialise", "engine.prepare", "engine.export.__main__", "engine.verify.__main__"}
# Package → the packages of the engine that it may import.
BELOW: dict[str, set[str]] = {
    "domain": set(),
    "runtime": {"domain"},
    "fold": {"domain"},
    "storage": {"domain", "fold", "runtime"},
    "ingest": {"domain", "storage", "runtime"},
    **{layer: {"domain", "fold", "storage", "runtime"} for layer in ("batch", "speed", "serving", "export")},
    "produce": {"domain", "runtime"},
    "verify": {"domain", "runtime"},
}
# What the oracle shares with the layers.
SHARED = {"engine.domain", "engine.runtime.settings"}


def modules(everywhere: bool = True) -> dict[str, set[str]]:
    """Module → what it imports of ours, and the packages of others; inside functions, too, if `everywhere`."""
    imported = {}
    packages = (path for folder in ("engine", "domains", "stack") for path in (ROOT / folder).rglob("*.py"))
    for path in [*ROOT.glob("*.py"), *packages]:
        names: set[str] = set()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree) if everywhere else tree.body:
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                ours = {
                    i for i in inner if (at := ROOT / i.replace(".", "/")).is_dir() or at.with_suffix(".py").exists()
                }
                names |= ours or {node.module}
        imported[module_name(path)] = names
    return imported


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = modules()


def of(package: str) -> list[str]:
    return sorted(name for name in MODULES if name == package or name.startswith(f"{package}."))


def package_of(module: str) -> str:
    return module.split(".")[1]


IN_PACKAGES = [name for name in of("engine") if name.count(".") and name not in PROGRAMS]


def test_the_rules_look_at_everything() -> None:
    assert {package_of(name) for name in IN_PACKAGES} == set(BELOW)
    assert len(IN_PACKAGES) >= 60 and len(MODULES) >= 95
    assert sum(len({i for i in names if i.startswith("engine.")}) for names in MODULES.values()) >= 250


@pytest.mark.parametrize("name", IN_PACKAGES)
def test_a_package_imports_only_what_lies_below_it(name: str) -> None:
    ours = {package_of(i) for i in MODULES[name] if i.startswith("engine.")} - {package_of(name)}
    assert ours <= BELOW[package_of(name)], ours - BELOW[package_of(name)]


@pytest.mark.parametrize("package", sorted(BELOW))
def test_a_package_says_what_is_found_there_and_what_it_may_import(package: str) -> None:
    doc = ast.get_docstring(ast.parse((ROOT / f"engine/{package}/__init__.py").read_text(encoding="utf-8"))) or ""
    assert "Imports" in doc
    assert {name for name in BELOW[package] if f"`{name}" in doc} == BELOW[package]


@pytest.mark.parametrize("name", of("engine"))
def test_the_engine_imports_neither_scripts_nor_domains_nor_the_stack(name: str) -> None:
    tops = {imported.partition(".")[0] for imported in MODULES[name]}
    assert not tops & (SCRIPTS | {"stack"})
    assert "domains" not in tops or name in WITH_DOMAINS


@pytest.mark.parametrize("name", [name for name in of("domains") if name != "domains"])
def test_a_domain_imports_the_declarations_alone(name: str) -> None:
    ours = {i for i in MODULES[name] if i.partition(".")[0] in SCRIPTS | {"engine", "domains", "stack"}}
    assert ours == {"engine.domain"}


@pytest.mark.parametrize("name", of("stack"))
def test_the_stack_knows_nothing_of_the_engine_but_the_reader_of_the_env_file(name: str) -> None:
    others = {i for i in MODULES[name] if i not in ("engine.runtime.envfile",)}
    assert not {i.partition(".")[0] for i in others} & (SCRIPTS | {"engine", "domains", "pyspark"})


def test_the_reader_of_the_env_file_needs_the_standard_library_alone() -> None:
    assert {i.partition(".")[0] for i in MODULES["engine.runtime.envfile"]} <= sys.stdlib_module_names


@pytest.mark.parametrize("name", of("engine.verify"))
def test_the_recount_shares_only_declarations_and_settings_with_the_layers(name: str) -> None:
    ours = {i for i in MODULES[name] if i.startswith("engine.") and not i.startswith("engine.verify")}
    assert ours <= SHARED, ours - SHARED


@pytest.mark.parametrize(
    "name",
    [
        "engine.domain",
        "engine.runtime.settings",
        "engine.storage.log",
        "engine.storage.chains",
        "engine.storage.versions",
    ],
)
def test_what_needs_no_spark_does_not_load_it(name: str) -> None:
    reached, waiting = set(), [name]
    while waiting:
        current = waiting.pop()
        if current not in reached:
            reached.add(current)
            waiting += [i for i in MODULES[current] if i in MODULES]
            waiting += [package for package in (current.rpartition(".")[0],) if package in MODULES]
    everything = {i.partition(".")[0] for module in reached for i in MODULES[module]}
    assert "pyspark" not in everything


def test_no_import_of_ours_loads_the_driver_of_cassandra() -> None:
    loading = [
        name
        for name, names in modules(everywhere=False).items()
        if {i.partition(".")[0] for i in names} & {"cassandra"}
    ]
    assert loading == [] and "cassandra.cluster" in MODULES["engine.serving.cassandra"]


def test_the_engine_has_no_circles() -> None:
    """Neither at import nor within a function: what has to be imported late hides a circle."""
    done: set[str] = set()

    def walk(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " → ".join([*path, name])
        if name not in done:
            for imported in sorted(MODULES[name] & set(of("engine"))):
                walk(imported, (*path, name))
            done.add(name)

    for name in of("engine"):
        walk(name, ())
