"""Do tests pass whatever the shell exports and the parent ignores, and do our processes hear a signal it ignored?"""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from domains import DOMAINS
from engine.runtime.settings import SETTINGS
from stack import doctor
from stack import settings as stack_settings
from stack.config import spark_home
from stack.services import environment
from tests.unit.recorder import recorder

ROOT = Path(__file__).resolve().parents[2]
# Each of them failed before `forget_surroundings`: by a setting, a proxy, a Spark of the shell, or an ignored SIGINT.
SELECTION = (
    "test_settings.py::test_an_error_names_the_flag_when_the_flag_is_wrong",
    "test_export.py::test_ctrl_c_leaves_no_file_and_exits_130[csv]",
    "test_monitoring.py::test_health_is_503_before_the_queries_run_and_when_they_fall_silent",
    "test_stack.py::test_reset_asks_before_it_wipes",
    "test_producer.py::test_a_wrong_variable_is_named_by_its_variable",
    "test_observe.py::test_a_python_worker_that_is_killed_is_start_me_again",
)


def ignore_sigint() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def test_the_tests_pass_in_the_shell_of_another_system_with_sigint_ignored(tmp_path: Path) -> None:
    names = [*(s.name for s in SETTINGS), *(name for domain in DOMAINS for name in domain.settings)]
    strange = dict.fromkeys([*names, *stack_settings.PORTS, "STACK_CASSANDRA", "FAULT_RETRY_SECONDS"], "strange")
    nowhere = stack_settings.Settings(var=Path("/nowhere"), cassandra=True)
    strange |= environment(nowhere)  # eval "$(python -m stack env)"
    strange |= {"SPARK_HOME": "/nowhere", "PYSPARK_PYTHON": "/nowhere/python", "HADOOP_CONF_DIR": "/nowhere"}
    strange |= dict.fromkeys(("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"), "http://127.0.0.1:9")
    (tmp_path / ".env").write_text("DOMAIN=strange\nMSGS_PER_SEC=strange\n")
    strange["HIGHWATER_ENV_FILE"] = str(tmp_path / ".env")
    tests = [f"tests/unit/{name}" for name in SELECTION]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--basetemp", str(tmp_path / "inner"), *tests],
        cwd=ROOT,
        env={**os.environ, **strange},
        preexec_fn=ignore_sigint,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return str(probe.getsockname()[1])


@pytest.mark.parametrize(
    ("command", "ready"),
    [
        (
            ["-c", "from engine.runtime.observe import Stop; s = Stop(); print('waits', flush=True); s.sleep(60)"],
            "waits",
        ),
        (["producer.py", "--to", "jsonl", "--out", os.devnull], "acked"),  # its line of progress
        (["serving_layer.py", "--port", "FREE"], "no answer"),  # its threads ask for HDFS
        (["-m", "stack.supervise", "producer.py", "--to", "jsonl", "--out", os.devnull], "acked"),
    ],
    ids=("layer", "producer", "serving", "supervisor"),
)
def test_a_process_whose_parent_ignores_sigint_hears_it_all_the_same(command: list[str], ready: str) -> None:
    words = [free_port() if word == "FREE" else word for word in command]
    with subprocess.Popen(
        [sys.executable, *words],
        cwd=ROOT,
        env={**os.environ, "HDFS_URL": f"hdfs://127.0.0.1:{free_port()}"},
        preexec_fn=ignore_sigint,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout
        try:
            said = ""
            while ready not in said:
                line = process.stdout.readline()
                assert line, said
                said += line
            process.send_signal(signal.SIGINT)
            said += process.communicate(timeout=60)[0]
        finally:
            process.kill()
    assert process.returncode == 0, said


PROXIES = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
# What each asks for, of a server on loopback; it need not like the answer.
CLIENTS = {
    "probes": "from stack import probes; probes._json({port}, '/json/')",
    "demo": "from stack import demo; demo.get('{url}/v1/ledger')",
    "verify": "from engine.verify.ask import get_json; get_json('{url}/v1/ledger')",
    "export": "from engine.export import extract; extract._page('{url}/v1/views')",
    "movies": "from domains import movies; movies._open_url('{url}/title.basics.tsv.gz')",
    "notebook": "import json, os\nfrom urllib.parse import urlencode\n{notebook}\nask('ledger')",
    "make health": "import sys; from stack.__main__ import main; main(['health'])",
    "make health STACK=compose": "import subprocess; subprocess.run({curl!r}, shell=True)",
}


def explored() -> str:
    """The lines of the notebook that ask the REST interface."""
    cells = json.loads((ROOT / "notebooks" / "explore.ipynb").read_text(encoding="utf-8"))["cells"]
    sources = {cell["id"]: "".join(cell["source"]) for cell in cells}
    imports = [line for line in sources["imports"].splitlines() if line.startswith("from urllib.request")]
    return "\n".join([*imports, sources["rest"].partition("\n\n\n")[0]])


@pytest.mark.parametrize("client", CLIENTS)
def test_loopback_is_never_asked_of_a_proxy(client: str) -> None:
    curl = re.search(r"^HEALTH := (curl .*)", (ROOT / "Makefile").read_text(), re.M)
    with recorder({}) as (port, asked), recorder({}) as (proxy, asked_of_the_proxy):
        if client.endswith("compose"):
            if not shutil.which("curl"):
                pytest.skip("no curl on this machine")
            assert curl
        address = f"127.0.0.1:{port}"
        texts = {"port": port, "url": f"http://{address}", "notebook": explored()}
        texts["curl"] = re.sub(r"\$\$\(.*?\)", address, curl[1]) if curl else ""
        environ = {name: value for name, value in os.environ.items() if name.lower() != "no_proxy"}
        environ |= dict.fromkeys(PROXIES, f"http://127.0.0.1:{proxy}")
        environ |= {"SERVING_PORT": str(port), "SERVING_URL": f"http://{address}"}
        code = CLIENTS[client].format(**texts)
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environ, capture_output=True, text=True, check=False
        )
    assert (len(asked), asked_of_the_proxy) == (1, []), done.stderr


def test_no_program_opens_an_address_without_saying_by_which_proxy() -> None:
    programs = [
        path for path in ROOT.rglob("*.py") if path.relative_to(ROOT).parts[0] not in (".venv", "lib", "var", "tests")
    ]
    assert len(programs) > 70
    opening = re.compile(r"urlopen|build_opener\(\)|import (requests|httpx)|HTTPS?Connection")
    assert [path.name for path in programs if opening.search(path.read_text(encoding="utf-8"))] == []
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        assert not opening.search(notebook.read_text(encoding="utf-8")), notebook


def test_health_checks_of_containers_ask_no_proxy() -> None:
    """What asks by /dev/tcp knows no proxy; wget and curl do, so their services have none."""
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    for name, service in services.items():
        if {"wget", "curl"} & set(service.get("healthcheck", {}).get("test", ())):
            assert service["environment"]["http_proxy"] == service["environment"]["HTTP_PROXY"] == "", name


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a clone")
def test_a_clone_with_autocrlf_has_the_line_ends_of_the_repository(tmp_path: Path) -> None:
    """Bash, Hadoop's .env files and Docker read no CRLF.

    Git for Windows writes it unless a repository says otherwise.
    """
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", "-c", "core.autocrlf=true", str(ROOT), str(clone)], check=True)
    files = [path for path in clone.rglob("*") if path.is_file() and ".git" not in path.relative_to(clone).parts]
    texts = {str(path.relative_to(clone)): data for path in files if b"\0" not in (data := path.read_bytes())}
    assert len(texts) > 200
    assert [name for name, data in texts.items() if b"\r\n" in data] == []
    for script in ("conf/health.sh", ".ci/run"):
        subprocess.run(["bash", "-n", script], cwd=clone, check=True)


def test_left_overs_of_another_spark_lead_no_client_of_this_stack_astray(tmp_path: Path) -> None:
    strange = {"SPARK_HOME": "/nowhere", "PYSPARK_PYTHON": "/nowhere/python", "PYSPARK_DRIVER_PYTHON": "jupyter"}
    strange |= {"HADOOP_CONF_DIR": "/nowhere", "HADOOP_HOME": "/nowhere", "HIGHWATER_VAR": str(tmp_path)}
    show = "import os; from pyspark.find_spark_home import _find_spark_home as home; print([home(), dict(os.environ)])"
    # As `make demo` starts the layers, and as a user starts a script after eval "$(python -m stack env)".
    layer = "import subprocess, sys; from stack import layers, settings; "
    layer += f"subprocess.run([sys.executable, '-c', {show!r}], env=layers.client_environment(settings.load()))"
    shell = f'eval "$({sys.executable} -m stack env)" && exec {sys.executable} -c {shlex.quote(show)}'
    for command in ([sys.executable, "-c", layer], ["bash", "-ec", shell]):
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **strange}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        home, environ = ast.literal_eval(done.stdout)
        assert Path(home).resolve() == spark_home().resolve() and environ["PYSPARK_PYTHON"] == sys.executable
        assert [name for name, value in environ.items() if value in ("/nowhere", "jupyter")] == []


def test_doctor_names_what_would_lead_a_script_astray(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = stack_settings.Settings(var=Path("/var/highwater"))
    assert list(doctor.check_left_over(settings)) == []
    monkeypatch.setenv("SPARK_HOME", "/nowhere")
    monkeypatch.setenv("PYSPARK_PYTHON", settings.python)
    assert [finding.fix for finding in doctor.check_left_over(settings)] == ["unset SPARK_HOME"]
    monkeypatch.setenv("PYSPARK_PYTHON", "/nowhere/python")
    assert [finding.fix for finding in doctor.check_left_over(settings)] == ["unset SPARK_HOME", "unset PYSPARK_PYTHON"]


@pytest.mark.parametrize(
    ("folder", "locale", "told"),
    [("my disk", "C.UTF-8", "a space"), ("größe", "C", "LC_ALL=C.UTF-8"), ("größe", "C.UTF-8", ""), ("plain", "C", "")],
)
def test_a_folder_that_java_cannot_use_is_one_line_before_anything_starts(
    tmp_path: Path, folder: str, locale: str, told: str
) -> None:
    code = "from stack import doctor, lifecycle, settings as s; lifecycle.find_java = lambda: None; "
    code += "lifecycle.jars.ensure = lambda *args: exit('starts'); settings = s.load(); "
    code += (
        "print(*[finding.evidence + finding.fix for finding in doctor.check_paths(settings)]); lifecycle.up(settings)"
    )
    environ = {**os.environ, "HIGHWATER_VAR": str(tmp_path / folder), "LC_ALL": locale}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environ, capture_output=True, text=True, check=False
    )
    last = done.stderr.splitlines()[-1]
    assert (told in done.stdout and told in last) if told else (done.stdout, last) == ("\n", "starts"), done
    assert not (tmp_path / folder).exists()
