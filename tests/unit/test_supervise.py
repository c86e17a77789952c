"""What keeps a layer running: which ends are final, which are tried again, when, and who is told."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stack import layers, process, supervise
from stack.settings import Settings, StackError, load

# Ends with the next of some exit codes at each start, a negative one by that signal; then runs until it is told to
# stop.
ACTOR = """
import os, signal, sys, time
from pathlib import Path
left = Path(sys.argv[1])
first, *rest = left.read_text().split()
left.write_text(" ".join(rest) or "run")
if first == "run":
    print("runs", flush=True)
    signal.sigwait({signal.SIGTERM})
    sys.exit(0)
if first.startswith("-"):
    os.kill(os.getpid(), -int(first))
os._exit(int(first))
"""


@pytest.fixture
def actor(tmp_path: Path) -> Path:
    script = tmp_path / "actor.py"
    script.write_text("import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})\n" + ACTOR)
    return script


def supervised(actor: Path, codes: str, *options: str, name: str = "actor.py") -> subprocess.Popen[str]:
    """Start a supervisor over a script that ends with these codes, its pauses a hundredth as long."""
    script = actor.with_name(name)
    if script != actor:
        script.write_text(actor.read_text())
    left = actor.with_name("left")
    left.write_text(codes)
    run = "from stack import supervise as s; import sys; s.longer = lambda p, ran: 0.02; sys.exit(s.main(sys.argv[1:]))"
    command = [sys.executable, "-c", run, *options, str(script), str(left)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_the_pause_doubles_up_to_a_minute_and_begins_anew_after_a_good_while() -> None:
    pauses = [0.0]
    for _ in range(8):
        pauses.append(supervise.longer(pauses[-1], 40.0))  # as long as Spark takes to find out that HDFS is away
    assert pauses[1:] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert supervise.longer(60.0, 301.0) == 1


def test_crashes_bugs_and_exit_75_are_started_again_and_a_wrong_setting_is_final(actor: Path) -> None:
    with supervised(actor, "75 -9 3 120 137 2") as running:
        said = running.communicate(timeout=30)[0]
    assert running.returncode == 2
    assert said.count("; again in 0 s") == 5
    assert "was killed by signal 9" in said and "ended with exit 120" in said


@pytest.mark.parametrize("code", [0, 2, 130, 143])
def test_what_somebody_wanted_is_final(actor: Path, code: int) -> None:
    with supervised(actor, str(code), "--fault-retry", "0.05") as running:
        assert running.communicate(timeout=30)[0] == ""
    assert running.returncode == code


def test_a_named_fault_is_tried_again_after_its_own_pause(actor: Path) -> None:
    with supervised(actor, "1 1 75 0", "--fault-retry", "0.3") as running:
        said = running.communicate(timeout=30)[0].splitlines()
    assert running.returncode == 0
    assert ["a named fault" in line for line in said] == [True, True, False]


@pytest.mark.parametrize(
    ("options", "name"), [(["--fault-retry", "0"], "actor.py"), (["--fault-retry", "0.1"], "batch_layer.py")]
)
def test_a_fault_is_final_where_nobody_wants_it_tried_again_or_the_caller_waits_for_a_single_run(
    actor: Path, options: list[str], name: str
) -> None:
    with supervised(actor, "1 0", *options, name=name) as running:
        running.communicate(timeout=30)
    assert running.returncode == 1


def test_a_batch_layer_that_repeats_is_tried_again() -> None:
    assert supervise._repeats(["spark-submit", "batch_layer.py", "--every", "10m"])
    assert supervise._repeats(["python", "/x/batch_layer.py", "--batch-interval=10m"])
    assert not supervise._repeats(["spark-submit", "batch_layer.py", "--full"])
    assert supervise._repeats(["spark-submit", "stream_layer.py"])


@pytest.mark.parametrize("codes", ["run", "1 run"])
def test_a_stop_signal_ends_the_layer_and_a_pause_alike(actor: Path, codes: str) -> None:
    with supervised(actor, codes, "--fault-retry", "60") as running:
        assert running.stdout and running.stdout.readline()
        running.send_signal(signal.SIGTERM)
        assert running.wait(20) == 0


def test_a_disk_without_room_ends_no_supervisor(actor: Path) -> None:
    """Its log lies on the disk that is full, as do the layer's."""
    run = "from stack import supervise as s; import sys; s.longer = lambda p, ran: 0.02; sys.exit(s.main(sys.argv[1:]))"
    actor.with_name("left").write_text("75 75 2")
    command = [sys.executable, "-c", run, "--state", "/dev/full/state", str(actor), str(actor.with_name("left"))]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, timeout=30, check=False)
    # 120 is what Python makes of an exit code whose last words found no room
    assert done.returncode in (2, 120) and actor.with_name("left").read_text() == "run"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load({"HIGHWATER_VAR": str(tmp_path / "var"), "FAULT_RETRY_SECONDS": "600"}, env_file=tmp_path / "none")


def test_status_tells_a_layer_that_waits_after_a_fault_and_when_it_goes_on(
    settings: Settings, actor: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = actor.with_name("left")
    left.write_text("1")
    monkeypatch.setitem(layers.LAYERS, "ingest", str(actor))
    assert layers.status(settings) == []
    layers.start(settings, "ingest", [str(left)])
    try:
        deadline = time.monotonic() + 30
        while not (found := layers.status(settings)) or not found[0][2]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        ((name, pid, wrong),) = found
        assert name == "ingest" and pid and process.alive(pid, process.start_time(pid))
        assert wrong.startswith("named fault (exit 1), again at 20") and wrong.endswith("logs ingest")
        assert "ended with exit 1, a named fault" in process.tail(layers.log_file(settings, "ingest"), 5)
    finally:
        layers.stop(settings)
    assert layers.status(settings) == []


def test_status_tells_a_layer_that_ended_for_good_and_one_whose_supervisor_was_killed(settings: Settings) -> None:
    settings.run.mkdir(parents=True)
    layers.state_file(settings, "stream").write_text(json.dumps({"exit": 2}))
    layers.state_file(settings, "serving").write_text(json.dumps({}))
    layers.state_file(settings, "producer").write_text(json.dumps({"exit": 0}))  # it has sent what was asked for
    assert layers.status(settings) == [
        ("stream", None, "exit 2, ended for good; see: python -m stack logs stream"),
        ("serving", None, "is not running: its supervisor was killed"),
    ]


def test_the_pause_after_a_fault_is_a_setting(tmp_path: Path) -> None:
    assert load({"HIGHWATER_VAR": str(tmp_path)}, env_file=tmp_path / "none").fault_retry == 300
    with pytest.raises(StackError, match=r"FAULT_RETRY_SECONDS: 'soon' is not a number of seconds"):
        load({"HIGHWATER_VAR": str(tmp_path), "FAULT_RETRY_SECONDS": "soon"}, env_file=tmp_path / "none")
