"""Is `.env` read alike by everybody who reads it: the scripts, the stack, the verbs of make, and Compose?"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from engine.runtime import envfile
from engine.runtime import settings as engine_settings
from engine.runtime.envfile import SettingsError
from stack import settings as stack_settings
from stack.settings import StackError
from tests.unit.recorder import recorder
from tests.unit.test_compose import read

ROOT = Path(__file__).resolve().parents[2]
# Text → what Compose makes of it where SHELL_HOME=/home/me stands in the environment.
AS_COMPOSE_READS: dict[str, dict[str, str]] = {
    "SERVING_PORT=8010 # api\n": {"SERVING_PORT": "8010"},
    "HIGHWATER_VAR=/tmp/hw # big disk": {"HIGHWATER_VAR": "/tmp/hw"},
    "KAFKA_PORT = 9093\n": {"KAFKA_PORT": "9093"},
    "export SERVING_PORT=8010\n": {"SERVING_PORT": "8010"},
    "export\tSERVING_PORT = 8010  \n": {"SERVING_PORT": "8010"},
    "SERVING_PORT: 8010\n": {"SERVING_PORT": "8010"},
    "# note\n\n   SERVING_PORT=8010\n#KAFKA_PORT=1\n": {"SERVING_PORT": "8010"},
    "SERVING_PORT=8010\r\nKAFKA_PORT=9093 # x\r\n": {"SERVING_PORT": "8010", "KAFKA_PORT": "9093"},
    "\ufeffSERVING_PORT=8010\n": {"SERVING_PORT": "8010"},
    "SERVING_PORT=1\nSERVING_PORT=8010\n": {"SERVING_PORT": "8010"},
    "SERVING_PORT=\nKAFKA_PORT=9093\n": {"SERVING_PORT": "", "KAFKA_PORT": "9093"},
    "SERVING_PORT\nKAFKA_PORT=9093\n": {"KAFKA_PORT": "9093"},
    "SERVING_PORT='8010'\nKAFKA_PORT=\"9093\" # x\n": {"SERVING_PORT": "8010", "KAFKA_PORT": "9093"},
    'SERVING_PORT=""\n': {"SERVING_PORT": ""},
    "SPARK_MASTER='local[*]'\nHDFS_URL=\"hdfs://nn:9000\"\n": {"SPARK_MASTER": "local[*]", "HDFS_URL": "hdfs://nn:9000"},
    "TAG=1.2#3\nCOLOUR=#fff\n": {"TAG": "1.2#3", "COLOUR": "#fff"},
    "HIGHWATER_VAR=/my disk/hw  # x\n": {"HIGHWATER_VAR": "/my disk/hw"},
    'HIGHWATER_VAR="/my # disk" # x\n': {"HIGHWATER_VAR": "/my # disk"},
    "HIGHWATER_VAR='/my # disk'# x\n": {"HIGHWATER_VAR": "/my # disk"},
    "HIGHWATER_VAR=/plattö/größe\n": {"HIGHWATER_VAR": "/plattö/größe"},
    "HIGHWATER_VAR=C:\\new\n": {"HIGHWATER_VAR": "C:\\new"},
    'OTHER="one\\ttwo\\\\ \\"three\\" \\$four"\n': {"OTHER": 'one\ttwo\\ "three" $four'},
    "OTHER='it\\'s $one\\n'\n": {"OTHER": "it's $one\\n"},
    'OTHER="-----\nSERVING_PORT=1\n-----"\nKAFKA_PORT=9093\n': {"OTHER": "-----\nSERVING_PORT=1\n-----", "KAFKA_PORT": "9093"},
    "DISK=/disk\nHIGHWATER_VAR=$DISK/hw\nOTHER=\"${DISK}\"\n": {"DISK": "/disk", "HIGHWATER_VAR": "/disk/hw", "OTHER": "/disk"},
    "HIGHWATER_VAR=${SHELL_HOME}/hw\n": {"HIGHWATER_VAR": "/home/me/hw"},
    "SHELL_HOME=/other\nHIGHWATER_VAR=$SHELL_HOME\n": {"SHELL_HOME": "/other", "HIGHWATER_VAR": "/home/me"},
    "HIGHWATER_VAR=${NOWHERE:-/tmp}/hw\nOTHER=${NOWHERE-x}$NOWHERE\n": {"HIGHWATER_VAR": "/tmp/hw", "OTHER": "x"},
    "OTHER=a$$b$\n": {"OTHER": "a$b$"},
    "a.b=1\nA-B=2\n": {"a.b": "1", "A-B": "2"},
}  # fmt: skip
# What Compose refuses, or takes for something that nobody means.
REFUSED = {
    b"SEED=1\nhunter2 is my password\n": r"line 2: allowed is KEY=VALUE",
    b'SEED=1\n\nPASSWORD="hunter2\n': r"line 3: allowed is KEY=VALUE",
    b"SEED='1' 2\n": r"line 1: allowed is KEY=VALUE",
    b"=3\n": r"line 1: allowed is KEY=VALUE",
    b"HIGHWATER_VAR=/tmp/hw\t# hunter2\n": r"line 1: a # is a comment after a value and a space",
    b"SERVING_PORT= # hunter2\n": r"line 1: a # is a comment after a value and a space",
    b"# a\nHIGHWATER_VAR=${NOWHERE:?hunter2}\n": r"line 2: allowed are \$NAME",
    "SERVING_PORT=8010\n".encode("utf-16"): "is not UTF-8",
    "SERVING_PORT=8010\n".encode("utf-16-le"): "is not UTF-8",
    "DOMAIN=größe\n".encode("latin-1"): "is not UTF-8",
}
SHELL = {"SHELL_HOME": "/home/me"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / ".env"


@pytest.mark.parametrize("text", AS_COMPOSE_READS)
def test_all_readers_give_the_answer_of_compose(file: Path, text: str) -> None:
    file.write_bytes(text.encode())
    expected = AS_COMPOSE_READS[text]
    assert envfile.read(file, SHELL) == expected
    given = {name: value for name, value in expected.items() if value}
    assert engine_settings.environment(SHELL, file) == {**given, **SHELL}
    settings, stack = engine_settings.load(environ=SHELL, env_file=file), stack_settings.load(SHELL, file, saved=False)
    assert settings.serving_port == stack.layer_ports["SERVING_PORT"] == int(given.get("SERVING_PORT", 8000))
    assert stack.ports["KAFKA_PORT"] == int(given.get("KAFKA_PORT", 9092))
    assert settings.hdfs_url == given.get("HDFS_URL", "hdfs://localhost:9000")
    assert stack.var == (ROOT / given.get("HIGHWATER_VAR", "var")).resolve()


@pytest.mark.parametrize("text", AS_COMPOSE_READS)
def test_compose_itself_gives_that_answer(file: Path, text: str) -> None:
    file.write_bytes(text.encode())
    compose = file.with_name("docker-compose.yml")
    compose.write_text("name: x\nservices: {x: {image: x, env_file: [.env]}}\n")
    done = read(compose, **SHELL)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["services"]["x"].get("environment", {}) == AS_COMPOSE_READS[text]


@pytest.mark.parametrize("data", REFUSED)
def test_a_line_that_cannot_be_read_is_one_line_for_all_readers_and_its_text_stays_secret(
    file: Path, data: bytes
) -> None:
    file.write_bytes(data)
    said = []
    with pytest.raises(SettingsError, match=REFUSED[data]) as scripts:
        engine_settings.load(environ={}, env_file=file)
    said.append(str(scripts.value))
    with pytest.raises(SettingsError) as domains:
        engine_settings.environment({}, file)
    said.append(str(domains.value))
    with pytest.raises(StackError) as stack:
        stack_settings.load({}, file)
    said.append(str(stack.value))
    assert len(set(said)) == 1 and said[0].startswith(str(file)) and "\n" not in said[0] and "hunter2" not in said[0]


@pytest.mark.parametrize(
    "command", [["-m", "stack", "status"], ["-m", "stack.demo"], ["serving_layer.py"], ["producer.py"]], ids=" ".join
)
def test_a_file_in_utf16_is_one_line_and_exit_2(file: Path, command: list[str]) -> None:
    file.write_bytes("SERVING_PORT=8010\n".encode("utf-16"))
    environ = {**os.environ, "HIGHWATER_ENV_FILE": str(file)}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environ, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and "is not UTF-8" in done.stderr, done.stderr


def test_a_file_that_is_not_there_gives_nothing(file: Path) -> None:
    assert envfile.read(file) == envfile.read(None) == envfile.read(Path(os.devnull)) == {}


def test_an_empty_text_of_the_environment_leaves_the_file_in_force(file: Path) -> None:
    file.write_text("SERVING_PORT=8010\nTICKERS=A\n")
    shell = {"SERVING_PORT": "", "TICKERS": " "}
    assert engine_settings.load(environ=shell, env_file=file).serving_port == 8010
    assert engine_settings.environment(shell, file)["TICKERS"] == "A"
    assert stack_settings.load(shell, file, saved=False).layer_ports["SERVING_PORT"] == 8010


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_health_asks_the_port_of_the_file_and_prints_the_reasons(file: Path, status: int, code: int) -> None:
    with recorder({"reasons": ["none"]}, status) as (port, asked):
        file.write_text(f"export SERVING_PORT = {port} # api\n")
        environ = {**os.environ, "HIGHWATER_ENV_FILE": str(file), "HIGHWATER_VAR": str(file.parent)}
        command = [sys.executable, "-m", "stack", "health"]
        done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert (done.returncode, json.loads(done.stdout), asked) == (code, {"reasons": ["none"]}, ["GET /health/ready"])


def test_nobody_else_looks_into_the_file() -> None:
    assert not re.search(r"\.env\b", (ROOT / "Makefile").read_text())
    folders = ("engine", "domains", "stack", "bench")
    programs = [*ROOT.glob("*.py"), *(path for folder in folders for path in (ROOT / folder).rglob("*.py"))]
    looking = {path.name for path in programs if re.search(r"""HIGHWATER_ENV_FILE|["']\.env["']""", path.read_text())}
    assert len(programs) > 70 and looking == {"envfile.py"}
