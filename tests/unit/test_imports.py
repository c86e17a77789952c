"""Who may import whom? ARCHITECTURE.md, "Import rules", as a test."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = {"producer", "ingest_layer", "stream_layer", "batch_layer", "serving_layer"}
# Programs of their own, which take domains by name.
PROGRAMS = {"engine.export", "engine.materialise", "engine.prepare", "engine.verify"}
RECOUNT = {"engine.verify", "engine.compare", "engine.rawlog", "engine.recount", "engine.recompute"}
SHARED_WITH_THE_RECOUNT = {"engine.domain", "engine.settings", "engine.observe"}


def modules(everywhere: bool = True) -> dict[str, set[str]]:
    """Module → what it imports of ours, and the packages of others; inside functions, too, if `everywhere`."""
    found = {}
    for path in [*ROOT.glob("*.py"), *(p for f in ("engine", "domains", "stack") for p in (ROOT / f).glob("*.py"))]:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        names: set[str] = set()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree) if everywhere else tree.body:
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                ours = {i for i in inner if (ROOT / f"{i.replace('.', '/')}.py").exists()}
                names |= ours or {node.module}
        found[name] = names
    return found


MODULES = modules()


def of(package: str) -> list[str]:
    return sorted(name for name in MODULES if name == package or name.startswith(f"{package}."))


@pytest.mark.parametrize("name", of("engine"))
def test_the_engine_imports_neither_scripts_nor_domains_nor_the_stack(name: str) -> None:
    tops = {imported.partition(".")[0] for imported in MODULES[name]}
    assert not tops & (SCRIPTS | {"stack"})
    assert "domains" not in tops or name in PROGRAMS


@pytest.mark.parametrize("name", [name for name in of("domains") if name != "domains"])
def test_a_domain_imports_the_declarations_alone(name: str) -> None:
    ours = {i for i in MODULES[name] if i.partition(".")[0] in SCRIPTS | {"engine", "domains", "stack"}}
    assert ours == {"engine.domain"}


@pytest.mark.parametrize("name", of("stack"))
def test_the_stack_knows_nothing_of_the_engine_but_the_reader_of_the_env_file(name: str) -> None:
    others = {i for i in MODULES[name] if i not in ("engine.envfile",)}
    assert not {i.partition(".")[0] for i in others} & (SCRIPTS | {"engine", "domains", "pyspark"})


def test_the_reader_of_the_env_file_needs_the_standard_library_alone() -> None:
    assert {i.partition(".")[0] for i in MODULES["engine.envfile"]} <= sys.stdlib_module_names


@pytest.mark.parametrize("name", sorted(RECOUNT))
def test_the_recount_shares_only_declarations_and_settings_with_the_layers(name: str) -> None:
    ours = {i for i in MODULES[name] if i.startswith("engine.")}
    assert ours <= RECOUNT | SHARED_WITH_THE_RECOUNT, ours - RECOUNT - SHARED_WITH_THE_RECOUNT


@pytest.mark.parametrize("name", ["engine.domain", "engine.settings", "engine.log", "engine.chain", "engine.versions"])
def test_what_needs_no_spark_does_not_load_it(name: str) -> None:
    reached, waiting = set(), [name]
    while waiting:
        current = waiting.pop()
        if current not in reached:
            reached.add(current)
            waiting += [i for i in MODULES.get(current, ()) if i in MODULES]
    everything = {i.partition(".")[0] for module in reached for i in MODULES.get(module, ())}
    assert "pyspark" not in everything


def test_no_import_of_ours_loads_the_driver_of_cassandra() -> None:
    loading = [
        name
        for name, names in modules(everywhere=False).items()
        if {i.partition(".")[0] for i in names} & {"cassandra"}
    ]
    assert loading == [] and "cassandra.cluster" in MODULES["engine.cassandra"]


def test_the_engine_has_no_circles() -> None:
    done: set[str] = set()
    at_import = modules(everywhere=False)

    def walk(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " → ".join([*path, name])
        if name not in done:
            for imported in sorted(at_import[name] & set(of("engine"))):
                walk(imported, (*path, name))
            done.add(name)

    for name in of("engine"):
        walk(name, ())
