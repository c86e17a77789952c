"""Do the tests pass whatever the shell exports and the parent ignores, and do our processes hear a signal that it ignored?"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from domains import DOMAINS
from engine import metrics
from engine.settings import SETTINGS
from stack import demo
from stack import settings as stack_settings
from stack.services import environment

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
        (["-c", "from engine.observe import Stop; s = Stop(); print('waits', flush=True); s.sleep(60)"], "waits"),
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


def test_the_demo_asks_loopback_whatever_proxy_the_shell_names(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    port = free_port()
    metrics.serve("batch", metrics.new_registry(), lambda: (True, {"status": "ok"}), "127.0.0.1", int(port))
    assert demo.get(f"http://127.0.0.1:{port}/health") == {"status": "ok"}


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a clone")
def test_a_clone_with_autocrlf_has_the_line_ends_of_the_repository(tmp_path: Path) -> None:
    """Bash, Hadoop's .env files and Docker read no CRLF; Git for Windows writes it unless a repository says otherwise."""
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", "-c", "core.autocrlf=true", str(ROOT), str(clone)], check=True)
    files = [path for path in clone.rglob("*") if path.is_file() and ".git" not in path.relative_to(clone).parts]
    assert len(files) > 200
    assert [str(path.relative_to(clone)) for path in files if b"\r\n" in path.read_bytes()] == []
    for script in ("conf/health.sh", ".ci/run"):
        subprocess.run(["bash", "-n", script], cwd=clone, check=True)
