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
from engine.runtime import observe, settings
from engine.serving import openapi
from serving_layer import ROUTES
from stack.settings import PORTS

ROOT = Path(__file__).resolve().parents[2]
EVERY = sorted(path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")))
# These speak of what was, or of what others made.
RECORDS = ("docs/decisions.md", "docs/licences.md")
DOCUMENTS = [name for name in EVERY if name not in RECORDS]
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in EVERY}
README, REFERENCE, ARCHITECTURE = (TEXTS[name] for name in ("README.md", "docs/reference.md", "ARCHITECTURE.md"))
ALL = "\n".join(TEXTS[name] for name in DOCUMENTS)
EACH = pytest.mark.parametrize("name", DOCUMENTS)
EACH_AND_RECORDS = pytest.mark.parametrize("name", EVERY)
WIDEST = 120

SCRIPTS = ("producer.py", "ingest_layer.py", "stream_layer.py", "batch_layer.py", "serving_layer.py")
MODULES = ("engine.verify", "engine.versions", "engine.export", "engine.materialise", "stack.demo", "stack")
STACK_COMMANDS = ("up", "jars", "logs", "reset")  # those with flags of their own
FOLDERS = "engine|stack|domains|docs|tests|conf|web|bench|notebooks|\\.ci"
TOP_LEVEL = ("README.md", "ARCHITECTURE.md", "CHANGELOG.md", "Makefile", "pyproject.toml", "hadoop.env", ".env.example")
TREE = ("engine", "stack", "domains")  # where our modules lie, however deep, besides the scripts

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


def section(text: str, heading: str) -> str:
    """What stands under a heading, up to the next one of its level."""
    level = heading.split()[0]
    assert f"\n{heading}\n" in text, f"no heading {heading!r}"
    return re.split(rf"^{level} ", text.partition(f"\n{heading}\n")[2], maxsplit=1, flags=re.M)[0]


def items(text: str) -> list[str]:
    """The items of its lists, each on one line."""
    return [re.sub(r"\s+", " ", item) for item in re.findall(r"^- (.*(?:\n +\S.*)*)", text, re.M)]


def item(text: str, name: str) -> str:
    """The item that begins with this name, alone or beside others; empty if there is none."""
    heads = ((found, re.match(r"(?:`[^`]+`(?:, )?)+", found)) for found in items(text))
    return next((found for found, head in heads if head and f"`{name}`" in head[0]), "")


# Form -----------------------------------------------------------------------------------------------------------------


def test_the_readme_can_be_read_in_a_few_minutes() -> None:
    assert len(README.splitlines()) <= 200


@EACH_AND_RECORDS
def test_no_line_is_too_long_to_be_read_or_compared(name: str) -> None:
    long = [number for number, line in enumerate(TEXTS[name].splitlines(), 1) if len(line) > WIDEST]
    assert not long, f"{name}: lines of more than {WIDEST} characters; a table whose rows need more is a list: {long}"


def headings(name: str) -> set[str]:
    """The anchors that GitHub gives the headings of a document."""
    text = re.sub(r"^```\w*\n.*?^```", "", TEXTS[name], flags=re.M | re.S)
    plain = (heading.replace("`", "").lower() for heading in re.findall(r"^#+ (.*)$", text, re.M))
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


@EACH_AND_RECORDS
def test_every_link_leads_somewhere(name: str) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", TEXTS[name]):
        target, _, anchor = link.partition("#")
        path = (ROOT / name).parent.joinpath(target).resolve() if target else ROOT / name
        assert path.is_file(), f"{name}: {link}"
        assert not anchor or anchor in headings(path.relative_to(ROOT).as_posix()), f"{name}: {link}: no such heading"


def test_every_document_is_reached_from_the_readme() -> None:
    linked = set(re.findall(r"\]\(([^)#]+)", README))
    assert set(EVERY) - {"README.md"} <= linked, f"README.md leads to no {set(EVERY) - linked}"


# Settings, flags, commands --------------------------------------------------------------------------------------------


def test_the_reference_lists_the_settings_as_the_code_prints_them() -> None:
    assert f"\n{settings.listing()}\n" in REFERENCE, (
        "put what `python -m engine.settings` prints into docs/reference.md"
    )


def test_the_reference_names_every_setting_of_the_stack_with_its_default() -> None:
    for name, port in PORTS.items():
        assert f"`{port}`" in item(REFERENCE, name), (
            f"{name} with its default {port} is in no list of docs/reference.md"
        )


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
def test_every_flag_of_a_program_is_in_the_reference(program: str) -> None:
    named = item(section(REFERENCE, "## Flags"), f"python {program}" if program.startswith("-m") else program)
    known = {setting.name for setting in settings.SETTINGS}
    for flag in flags_of(program) - {"--help", "--proof"}:  # the last is spoken between processes, not by people
        as_setting = flag.removeprefix("--no-").removeprefix("--").replace("-", "_").upper()
        assert as_setting in known or f"`{flag}" in named, f"docs/reference.md does not name {program} {flag}"


def test_every_exit_code_of_the_layers_is_in_the_reference() -> None:
    for name in ("EXIT_FAULT", "EXIT_USAGE", "EXIT_AGAIN"):
        code = getattr(observe, name)
        assert item(section(REFERENCE, "## Exit codes"), str(code)), f"docs/reference.md does not say what {code} means"


def test_every_make_target_that_is_named_exists_and_every_target_is_named() -> None:
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):.*## ", (ROOT / "Makefile").read_text(), re.M))
    spans = [span for name in DOCUMENTS for span in code_spans(TEXTS[name])]
    named = {target for span in spans for target in re.findall(r"\bmake ([a-z0-9-]+)", span)}
    assert named <= targets, f"no such target: {named - targets}"
    assert targets <= set(re.findall(r"`make ([a-z0-9-]+)`", REFERENCE)), "docs/reference.md does not name every target"


@EACH
def test_upper_case_names_are_settings_or_stand_in_the_code(name: str) -> None:
    files = (*(ROOT / path for path in modules()), ROOT / "docker-compose.yml")
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
    """Functions, classes, methods and values that a file defines."""
    found: set[str] = set()

    def walk(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                found.add(f"{prefix}{child.name}")
                if isinstance(child, ast.ClassDef):
                    walk(child, f"{prefix}{child.name}.")
            targets = child.targets if isinstance(child, ast.Assign) else [getattr(child, "target", None)]
            found.update(f"{prefix}{target.id}" for target in targets if isinstance(target, ast.Name))

    walk(ast.parse((ROOT / path).read_text(encoding="utf-8")), "")
    return found


def modules() -> set[str]:
    """Path of every script and module of ours, from the root."""
    paths = [*ROOT.glob("*.py"), *(path for folder in TREE for path in (ROOT / folder).rglob("*.py"))]
    return {path.relative_to(ROOT).as_posix() for path in paths}


def test_the_map_of_the_repository_has_every_module_and_no_other() -> None:
    """A package's `__init__.py` goes by the name of its folder."""
    heads = [re.match(r"(?:`[^`]+`(?:, )?)+", row) for row in items(section(REFERENCE, "## Map of the repository"))]
    mapped = {path for head in heads if head for path in re.findall(r"`([^`]+)`", head[0])}
    found = {path.removesuffix("__init__.py") for path in modules()}
    assert len(found) > 70, "the test looks at the wrong place"
    assert found <= mapped, f"not in the map of docs/reference.md: {sorted(found - mapped)}"
    missing = [path for path in mapped if not (ROOT / path).exists()]
    assert not missing, f"in the map of docs/reference.md, and nowhere else: {missing}"


# Change → words that the code has wherever that change has to reach; each such file must be named.
TOUCHED = {
    "a new measure": ("stddev", "distinct"),
    "a decode rule": (),
    "a REST route": ("/v1/ledger",),
    "a setting": (),
    "a column type": ("BOOLEAN",),
    "a problem": ("malformed", "duplicate"),
    "a domain": (),
}


@pytest.mark.parametrize("change", TOUCHED)
def test_what_to_touch_for_a_change_is_told_whole(change: str) -> None:
    steps = section(section(ARCHITECTURE, "## What to touch for…"), f"### {change}")
    places = re.findall(r"`([\w./-]+?\.(?:py|js|md|yml|example|txt)|domains/)(?::([\w.]+))?`", steps)
    assert len(places) > 2, "too few places"
    for path, place in places:
        assert (ROOT / path).exists(), f"ARCHITECTURE.md, {change}: {path} does not exist"
        assert not place or place in names_in(path), f"ARCHITECTURE.md, {change}: {path} has no {place}"
    forgotten = holders(TOUCHED[change]) - {path for path, _ in places}
    assert not forgotten, f"ARCHITECTURE.md, {change}: {sorted(forgotten)} speak of it, too"


def holders(words: tuple[str, ...]) -> set[str]:
    """Files of the product that hold one of these words as a text of its own, such as "stddev"."""
    paths = {path for path in modules() if not path.startswith(("stack/", "domains/")) and "__init__" not in path}
    paths |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "web").glob("*.js")}
    quoted = [f"{mark}{word}{mark}" for word in words for mark in "\"'"]
    return {path for path in paths if any(text in (ROOT / path).read_text(encoding="utf-8") for text in quoted)}


# Domains, REST --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("domain", DOMAINS, ids=lambda domain: domain.name)
def test_every_domain_is_in_the_reference_with_its_topics_views_and_reports(domain: Any) -> None:
    for name in (domain.name, *domain.topics, *(v.name for v in domain.views), *(r.name for r in domain.reports)):
        assert f"`{name}`" in REFERENCE, f"docs/reference.md does not name {name} of domain {domain.name}"


@pytest.mark.parametrize("domain", DOMAINS, ids=lambda domain: domain.name)
def test_every_setting_of_a_domain_is_in_the_reference_with_its_default(domain: Any) -> None:
    for name, default in domain.settings.items():
        shown = f"`{default}`" if default else "empty"
        assert shown in item(REFERENCE, name), f"docs/reference.md: {name} of domain {domain.name}"


@pytest.mark.parametrize("name", ["README.md", "docs/reference.md"])
def test_every_address_in_a_curl_line_is_a_route_with_these_parameters(name: str) -> None:
    paths = openapi.document(ROUTES, DOMAINS)["paths"]
    lines = re.findall(r"^curl .*'http://localhost:8000([^']*)'$", TEXTS[name], re.M)
    assert len(lines) == len(re.findall(r"^curl ", TEXTS[name], re.M)) > 2
    for line in lines:
        url = urlsplit(line)
        assert url.path in paths, f"{name}: no such route: {url.path}"
        allowed = {parameter["name"] for parameter in paths[url.path]["get"]["parameters"]}
        given = {key for key, _ in parse_qsl(url.query, keep_blank_values=True, strict_parsing=bool(url.query))}
        assert given <= allowed, f"{name}: {url.path} has no {given - allowed}"


def test_every_route_and_parameter_is_in_the_reference() -> None:
    dimensions = {name for domain in DOMAINS for one in (*domain.views, *domain.reports) for name in one.by}
    told = section(REFERENCE, "## REST")
    for path, methods in openapi.document(ROUTES, DOMAINS)["paths"].items():
        route = re.sub(r"^(/v1/(view|report|event)s/)[^/]+", r"\1<name>", path)
        assert item(told, route), f"docs/reference.md has no route {route}"
        for parameter in methods["get"]["parameters"]:
            name = parameter["name"]
            assert name.partition(".")[0] in dimensions or item(told, name), f"docs/reference.md: {path} has {name}"


# What no document may say ---------------------------------------------------------------------------------------------


@EACH
def test_no_document_names_a_path_or_a_host_of_some_machine(name: str) -> None:
    assert not re.findall(r"(?<![\w.$}])/(?:work|home|root|tmp|Users|opt|mnt|usr|var|etc)/\S*|[A-Z]:\\\S*", TEXTS[name])
    hosts = {urlsplit(url).hostname for url in re.findall(r"https?://[^\s)'\"`|,;]+", TEXTS[name])}
    assert hosts <= {"localhost"}, f"{name}: {hosts - {'localhost'}}"


def test_the_changelog_begins_with_what_is_unreleased() -> None:
    assert re.search(r"^## (.*)$", TEXTS["CHANGELOG.md"], re.M)[1] == "Unreleased"  # type: ignore[index]
