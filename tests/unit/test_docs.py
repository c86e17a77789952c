"""Do the documents say what the code does? Every name in them must exist, and what exists must be in them."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from domains import DOMAINS
from engine.runtime import settings
from engine.serving import openapi
from stack.settings import PORTS

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ("README.md", "ARCHITECTURE.md", "docs/operations.md", "docs/add-a-domain.md", "CHANGELOG.md")
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS}
README = TEXTS["README.md"]
ALL = "\n".join(TEXTS.values())
EACH = pytest.mark.parametrize("name", DOCUMENTS)

SCRIPTS = ("producer.py", "ingest_layer.py", "stream_layer.py", "batch_layer.py", "serving_layer.py")
MODULES = ("engine.verify", "engine.versions", "engine.export", "engine.materialise", "stack.demo", "stack")
STACK_COMMANDS = ("up", "jars", "logs", "reset")  # those with flags of their own
FOLDERS = "engine|stack|domains|docs|tests|conf|web|bench|notebooks|\\.ci"
TOP_LEVEL = ("README.md", "ARCHITECTURE.md", "CHANGELOG.md", "Makefile", "pyproject.toml", "hadoop.env", ".env.example")

_COMMAND = re.compile(
    r"(?:(?P<script>[a-z_]+\.py)|python -m (?P<module>engine\.verify|engine\.versions|engine\.export|engine\.materialise|stack\.demo|stack)(?: (?P<sub>[a-z]+))?)"
    r"(?![\w./:])(?P<rest>[^`\n|;#]*)"
)
_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]+")


def commands(text: str) -> list[tuple[str, list[str]]]:
    """(program, flags after it) of every command in a text; a program is a script, or a module with its command."""
    found = []
    for match in _COMMAND.finditer(text.replace("\\\n", " ")):
        program = match["script"] or " ".join(word for word in ("-m", match["module"], _sub(match)) if word)
        if match["script"] is None or match["script"] in SCRIPTS:
            found.append((program, _FLAG.findall(match["rest"])))
    return found


def _sub(match: re.Match[str]) -> str:
    return match["sub"] or "" if match["module"] == "stack" else ""


@functools.cache
def helps() -> dict[str, str]:
    """What each program says to --help."""
    programs = [*SCRIPTS, *(f"-m {m}" for m in MODULES), *(f"-m stack {command}" for command in STACK_COMMANDS)]

    def said(program: str) -> str:
        command = [sys.executable, *program.split(), "--help"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout

    with ThreadPoolExecutor(4) as pool:
        return dict(zip(programs, pool.map(said, programs), strict=True))


def flags_of(program: str) -> set[str]:
    return set(_FLAG.findall(helps()[program].partition("\noptions:\n")[2]))


def code_spans(text: str) -> list[str]:
    """What stands between backticks on one line, and the lines of blocks."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    rest = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.M | re.S)
    return [*re.findall(r"`([^`\n]+)`", rest), *(line for block in blocks for line in block.splitlines())]


# Settings, flags, commands --------------------------------------------------------------------------------------------


def test_the_readme_holds_the_settings_table_as_the_code_prints_it() -> None:
    assert f"\n{settings.table()}\n" in README


def test_the_readme_names_every_setting_of_the_stack_with_its_default() -> None:
    for name, port in PORTS.items():
        row = next((line for line in README.splitlines() if line.startswith("| `") and f"`{name}`" in line), "")
        assert f"`{port}`" in row, f"{name} with its default {port} is in no table of README.md"


@EACH
def test_every_flag_in_a_command_exists(name: str) -> None:
    for program, flags in commands(TEXTS[name]):
        if program.startswith("-m stack "):
            assert re.search(rf"^ +{program.split()[2]} +\w", helps()["-m stack"], re.M), f"{name}: no such {program}"
        if not flags:
            continue
        unknown = set(flags) - flags_of(program)
        assert not unknown, f"{name}: {program} has no {', '.join(sorted(unknown))}"


def test_commands_are_found_in_the_documents() -> None:
    found = commands(ALL)
    assert ("ingest_layer.py", ["--domain", "--accept-gap"]) in found
    assert ("-m stack reset", ["--yes"]) in found
    assert {program for program, _ in found} >= {*SCRIPTS, "-m stack.demo", "-m engine.verify", "-m stack up"}
    assert commands("`python producer.py --no-such`") == [("producer.py", ["--no-such"])]


@pytest.mark.parametrize(
    "program", [*SCRIPTS, "-m engine.verify", "-m engine.export", "-m engine.materialise", "-m stack.demo"]
)
def test_every_flag_of_a_program_is_in_the_readme(program: str) -> None:
    known = {setting.name for setting in settings.SETTINGS}
    for flag in flags_of(program) - {"--help"}:
        as_setting = flag.removeprefix("--no-").removeprefix("--").replace("-", "_").upper()
        row = next((line for line in README.splitlines() if line.startswith("|") and program in line), "")
        shown = flag in README or as_setting in known or f"`{flag}" in row
        own = flag in ("--proof",)  # spoken between processes, not by people
        assert shown or own, f"README.md does not name {program} {flag}"


def test_every_make_target_that_is_named_exists_and_every_target_is_named() -> None:
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):.*## ", (ROOT / "Makefile").read_text(), re.M))
    named = {
        t for text in TEXTS.values() for span in code_spans(text) for t in re.findall(r"\bmake ([a-z0-9-]+)", span)
    }
    assert named <= targets, f"no such target: {named - targets}"
    assert targets <= set(re.findall(r"`make ([a-z0-9-]+)`", README)), "README.md does not name every target"


@EACH
def test_upper_case_names_are_settings_or_stand_in_the_code(name: str) -> None:
    scripts = [
        *ROOT.glob("*.py"),
        *(path for folder in ("engine", "stack", "domains") for path in (ROOT / folder).rglob("*.py")),
    ]
    files = (*scripts, ROOT / "docker-compose.yml")
    names = [*(s.name for s in settings.SETTINGS), *(name for domain in DOMAINS for name in domain.settings)]
    sources = "\n".join([*names, *(path.read_text(encoding="utf-8") for path in files)])
    for word in {w for span in code_spans(TEXTS[name]) for w in re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", span)}:
        assert word in sources, f"{name}: {word} is nowhere in the code"


# Files, functions, links ----------------------------------------------------------------------------------------------


@EACH
def test_every_file_and_function_that_is_named_exists(name: str) -> None:
    for span in code_spans(TEXTS[name]):
        for path, place in re.findall(
            rf"(?<![\w/.$}}>-])((?:(?:{FOLDERS})/[\w./-]*|[a-z_]+\.py))(?::([A-Za-z_][\w.]*))?", span
        ):
            if path.startswith(("conf/tools", "conf/hadoop")):
                continue  # generated below var/
            assert (ROOT / path.rstrip(".")).exists(), f"{name}: {path} does not exist"
            assert not place or place in names_in(path), f"{name}: {path} has no {place}"
    for path in TOP_LEVEL:
        assert (ROOT / path).is_file()


@functools.cache
def names_in(path: str) -> set[str]:
    """Functions, classes and methods that a file defines."""
    found: set[str] = set()

    def walk(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                found.add(f"{prefix}{child.name}")
                if isinstance(child, ast.ClassDef):
                    walk(child, f"{prefix}{child.name}.")

    walk(ast.parse((ROOT / path).read_text(encoding="utf-8")), "")
    return found


@EACH
def test_every_link_leads_to_a_file(name: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", TEXTS[name]):
        assert (ROOT / name).parent.joinpath(target).resolve().is_file(), f"{name}: {target}"


def test_the_map_of_the_repository_has_every_module_and_no_other() -> None:
    rows = README.partition("## Map of the repository")[2].splitlines()
    mapped = {path for row in rows for path in re.findall(r"`([^`]+)`", row.partition(" | ")[0])}
    paths = [
        *ROOT.glob("*.py"),
        *(path for folder in ("engine", "stack", "domains") for path in ROOT.glob(f"{folder}/**/*.py")),
    ]
    modules = {path.relative_to(ROOT).as_posix() for path in paths if path.name != "__init__.py"}
    assert len(modules) > 80
    assert modules <= mapped, f"not in the map of README.md: {sorted(modules - mapped)}"
    assert all((ROOT / path).exists() for path in mapped), [path for path in mapped if not (ROOT / path).exists()]


# Domains, REST --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("domain", DOMAINS, ids=lambda domain: domain.name)
def test_every_domain_is_in_the_readme_with_its_topics_views_and_reports(domain: Any) -> None:
    for name in (domain.name, *domain.topics, *(v.name for v in domain.views), *(r.name for r in domain.reports)):
        assert f"`{name}`" in README, f"README.md does not name {name} of domain {domain.name}"


@pytest.mark.parametrize("domain", DOMAINS, ids=lambda domain: domain.name)
def test_every_setting_of_a_domain_is_in_the_readme_with_its_default(domain: Any) -> None:
    for name, default in domain.settings.items():
        row = next((line for line in README.splitlines() if line.startswith("| `") and f"`{name}`" in line), "")
        assert (f"`{default}`" if default else "(empty)") in row, f"README.md: {name} of domain {domain.name}"


def test_every_address_in_a_curl_line_is_a_route_with_these_parameters() -> None:
    paths = openapi.document(DOMAINS)["paths"]
    lines = re.findall(r"^curl .*'http://localhost:8000([^']*)'$", README, re.M)
    assert len(lines) == len(re.findall(r"^curl ", README, re.M)) > 10
    for line in lines:
        url = urlsplit(line)
        if url.path == "/openapi.json":
            continue
        assert url.path in paths, f"README.md: no such route: {url.path}"
        allowed = {parameter["name"] for parameter in paths[url.path]["get"]["parameters"]}
        given = {name for name, _ in parse_qsl(url.query, keep_blank_values=True, strict_parsing=bool(url.query))}
        assert given <= allowed, f"README.md: {url.path} has no {given - allowed}"


def test_every_parameter_of_the_interface_is_in_the_readme() -> None:
    dimensions = {name for domain in DOMAINS for one in (*domain.views, *domain.reports) for name in one.by}
    for path, item in openapi.document(DOMAINS)["paths"].items():
        for parameter in item["get"]["parameters"]:
            name = parameter["name"]
            assert name.partition(".")[0] in dimensions or f"`{name}`" in README, f"README.md: {path} has {name}"


# What no document may say ---------------------------------------------------------------------------------------------


@EACH
def test_no_document_names_a_path_or_a_host_of_some_machine(name: str) -> None:
    assert not re.findall(r"(?<![\w.$}])/(?:work|home|root|tmp|Users|opt|mnt|usr|var|etc)/\S*|[A-Z]:\\\S*", TEXTS[name])
    hosts = {urlsplit(url).hostname for url in re.findall(r"https?://[^\s)'\"`|,;]+", TEXTS[name])}
    assert hosts <= {"localhost"}, f"{name}: {hosts - {'localhost'}}"


def test_the_changelog_begins_with_what_is_unreleased() -> None:
    assert re.search(r"^## (.*)$", TEXTS["CHANGELOG.md"], re.M)[1] == "Unreleased"  # type: ignore[index]
