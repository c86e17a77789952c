"""How does the stack come up, heal, go down and get wiped?

`up` starts only what does not run and waits for a real answer of every service. Chains of services (ZooKeeper → Kafka,
NameNode → DataNode, Spark master → worker) start side by side. One command at a time works on one stack.
"""

from __future__ import annotations

import fcntl
import importlib.util
import locale
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from stack import jars, layers, ports, process
from stack.config import write_config
from stack.java import find_java
from stack.probes import hdfs_client
from stack.services import (
    KAFKA,
    NAMENODE,
    Service,
    command,
    format_command,
    service_chains,
    service_environment,
    services,
)
from stack.settings import Settings, StackError, free_ports, save_ports, saved_ports

DEADLINE = 90.0  # seconds for one service to answer, on a slow and busy machine
KAFKA_RETRY = 30.0  # seconds in which ZooKeeper surely forgets a broker that was killed
PATIENCE = 20.0  # seconds to end after SIGTERM
HDFS_FOLDERS = ("/data", "/checkpoints")
INSTALL_DRIVER = "python -m pip install --require-hashes -r requirements-cassandra.lock"

Say = Callable[[str], None]


def up(settings: Settings, *, free: bool = False, say: Say = print) -> Settings:
    """Start what does not run and wait until everything answers. Returns the settings with the ports in force.

    Args:
        free: choose free ports (once; later commands find them in var/run/ports.json).
        say: gets one line per service.

    Raises:
        StackError: names the service or port and the way out.
    """
    began = time.monotonic()
    say_one = _one_at_a_time(say)
    find_java()
    if reason := driver_missing(settings) or path_refused(settings):
        raise StackError(reason)
    if jars.ensure(settings.root, jars_of(settings)):
        say(f"{'jars':<13} fetched and verified after {time.monotonic() - began:.1f} s")
    with _alone(settings):
        settings = _choose_ports(settings, free)
        write_config(settings)
        save_ports(settings, free or saved_ports(settings)[1])
        for folder in ("spark", "spark-work"):
            (settings.tmp / folder).mkdir(parents=True, exist_ok=True)
        chains = service_chains(settings)
        with ThreadPoolExecutor(len(chains)) as pool:
            errors = [
                f.exception() for f in [pool.submit(_start_chain, chain, settings, began, say_one) for chain in chains]
            ]
    strange = [error for error in errors if error is not None and not isinstance(error, StackError)]
    if strange:
        raise strange[0]
    if failed := [str(error) for error in errors if error is not None]:
        raise StackError("\n".join(failed))
    return settings


def down(settings: Settings, say: Say = print) -> bool:
    """Stop everything, layers first, later services before those they need. Returns whether nothing is left."""
    for line in layers.stop(settings):
        say(line)
    say_one = _one_at_a_time(say)
    chains = service_chains(settings)
    with _alone(settings), ThreadPoolExecutor(len(chains)) as pool:
        list(pool.map(lambda chain: _stop_chain(chain, settings, say_one), chains))
        left = [service.name for service in services(settings) if process.running_pid(service.pid_file(settings))]
        if not left and not saved_ports(settings)[1]:
            settings.ports_file.unlink(missing_ok=True)  # ports of the environment hold for one run only
    return not left


def reset(settings: Settings, say: Say = print) -> None:
    """Stop everything and wipe Kafka's log, ZooKeeper, HDFS (data and checkpoints) and temporary files, together.

    Raises:
        StackError: something still runs; nothing was wiped.
    """
    if not down(settings, say):
        raise StackError("reset: a service still runs, nothing was wiped; see: python -m stack status")
    with _alone(settings):
        for folder in (settings.data, settings.tmp, settings.conf):
            if folder.exists():
                shutil.rmtree(folder)
                say(f"wiped {folder}")
        settings.ports_file.unlink(missing_ok=True)


def status(settings: Settings) -> list[tuple[Service, int | None, str]]:
    """Return (service, pid, what is wrong) of every service; a service that answers has "" there."""

    def one(service: Service) -> tuple[Service, int | None, str]:
        pid = process.running_pid(service.pid_file(settings))
        return service, pid, service.ready(settings) if pid else "is not running"

    ours = services(settings)
    with ThreadPoolExecutor(len(ours)) as pool:
        return list(pool.map(one, ours))


def jars_of(settings: Settings) -> tuple[str, ...]:
    """The sets of jars that this stack needs."""
    return (*jars.CONFS, *(jars.OPTIONAL_CONFS if settings.cassandra else ()))


def driver_missing(settings: Settings) -> str:
    """Return "" unless Cassandra belongs to this stack and its driver, which not everybody needs, is not installed."""
    if not settings.cassandra or importlib.util.find_spec("cassandra"):
        return ""
    return f"Cassandra: its driver is not installed; run: {INSTALL_DRIVER}"


def path_refused(settings: Settings) -> str:
    """Return "" unless Java, or Spark's and Hadoop's scripts and options, could not work in these folders."""
    for path in map(str, (settings.root, settings.var)):
        if any(letter.isspace() for letter in path):
            return f"{path!r}: has a space, at which options of Spark and Java end; move it, or set HIGHWATER_VAR to a folder without"
        if not path.isascii() and locale.getencoding().lower() != "utf-8":
            return f"{path!r}: Java cannot open it in this locale ({locale.getencoding()}); run: export LC_ALL=C.UTF-8"
    return ""


def complaints(said: str) -> list[str]:
    """The lines of a log that name an error; all of them if none does."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return [line for line in lines if "Exception" in line or "ERROR" in line or "FATAL" in line] or lines


def port_conflicts(settings: Settings) -> list[tuple[Service, str, int]]:
    """Return (service, setting, port) for each port that a service which is not running would not get."""
    stopped = [service for service in services(settings) if not process.running_pid(service.pid_file(settings))]
    wanted = [(service, name, settings.port(name)) for service in stopped for name in service.ports]
    return [(service, name, port) for service, name, port in wanted if not ports.is_free(port)]


def _choose_ports(settings: Settings, free: bool) -> Settings:
    # Also those of the optional service: it may be asked for later.
    every = services(settings.with_cassandra())
    stopped = [service for service in every if not process.running_pid(service.pid_file(settings))]
    taken = [name for _, name, _ in port_conflicts(settings)]
    if free:  # keep those chosen before: HDFS addresses may be written down in checkpoints
        owned = {name for service in every for name in service.ports}
        # A port that no service of ours listens on is that of the Prometheus which `python -m stack monitor` becomes.
        fresh = [*(name for service in stopped for name in service.ports), *(settings.ports.keys() - owned)]
        chosen = [name for name in fresh if name in taken or not saved_ports(settings)[1]]
        return settings.with_ports(free_ports(chosen))
    for name in taken[:1]:
        holder = ports.owner(settings.port(name))
        who = f"pid {holder[0]} ({holder[1]})" if holder else "a process of another user"
        raise StackError(
            f"{name}: port {settings.port(name)} is taken by {who}; "
            f"stop it, or set {name} to another port, or let all be chosen: python -m stack up --free-ports"
        )
    return settings


def _start_chain(chain: tuple[Service, ...], settings: Settings, began: float, say: Say) -> None:
    """Start a chain's services; a DataNode looks for its NameNode itself, others wait for the one before."""
    hdfs = NAMENODE in chain
    if hdfs:
        _format_namenode(settings)
    fresh, marks = {}, {}
    for service in chain:
        fresh[service] = not process.running_pid(service.pid_file(settings))
        marks[service] = _log_size(service, settings)
        if fresh[service]:
            _start(service, settings)
        if not hdfs:
            _await(service, settings, marks[service])
            _report(service, settings, fresh[service], began, say)
    if hdfs:
        for service in chain:
            _await(service, settings, marks[service], {other: marks[other] for other in chain if other != service})
            _report(service, settings, fresh[service], began, say)
        client = hdfs_client(settings)
        for folder in HDFS_FOLDERS:
            client.mkdirs(folder)


def _start(service: Service, settings: Settings) -> None:
    process.start(
        command(service, settings),
        pid_file=service.pid_file(settings),
        log=service.log_file(settings),
        folder=service.folder(settings),
        env=service_environment(service, settings),
    )


def _await(service: Service, settings: Settings, log_mark: int, beside: Mapping[Service, int] | None = None) -> None:
    """Wait until a started service answers; a broker that ZooKeeper still knows from before is started again.

    Args:
        log_mark: where its log ended before it was started, in bytes.
        beside: services that it waits for in turn, with their log marks: if one ends, waiting is in vain.
    """
    began, pause = time.monotonic(), 0.5
    while reason := service.ready(settings):
        waited = time.monotonic() - began
        if not process.running_pid(service.pid_file(settings)):
            said = process.tail(service.log_file(settings), 200, log_mark)
            if service == KAFKA and "NodeExists" in said and waited < KAFKA_RETRY:
                time.sleep(pause)
                pause, log_mark = min(pause * 2, 4.0), _log_size(service, settings)
                _start(service, settings)
                continue
            raise StackError(_ended(service, settings, said))
        for other, other_mark in (beside or {}).items():
            if not process.running_pid(other.pid_file(settings)):
                raise StackError(_ended(other, settings, process.tail(other.log_file(settings), 200, other_mark)))
        if waited > DEADLINE:
            log = service.log_file(settings)
            raise StackError(f"{service.name}: {reason} after {waited:.0f} s; see {log}, then: python -m stack doctor")
        time.sleep(0.15)


def _ended(service: Service, settings: Settings, said: str) -> str:
    why = "\n  ".join(complaints(said)[-3:])
    log = service.log_file(settings)
    return f"{service.name}: ended while starting; see {log}, then: python -m stack doctor\n  {why}"


def _report(service: Service, settings: Settings, fresh: bool, began: float, say: Say) -> None:
    how = f"ready after {time.monotonic() - began:.1f} s" if fresh else "already running"
    say(f"{service.name:<13} {how:<20} {service.url(settings)}")


def _format_namenode(settings: Settings) -> None:
    """Make an empty NameNode, but only beside an empty DataNode: else blocks would become orphans for ever."""
    name, data = settings.data / "nn", settings.data / "dn"
    if (name / "current" / "VERSION").exists():
        return
    if (data / "current" / "VERSION").exists():
        raise StackError(
            f"namenode: {name} is empty, but {data} holds blocks; put the NameNode's folder back, "
            "or if the data may go: python -m stack reset"
        )
    NAMENODE.folder(settings).mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        format_command(settings),
        env=service_environment(NAMENODE, settings),
        cwd=NAMENODE.folder(settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = "\n  ".join(done.stderr.splitlines()[-5:])
        raise StackError(f"namenode: could not format {name} (exit {done.returncode}):\n  {last}")


def _stop_chain(chain: tuple[Service, ...], settings: Settings, say: Say) -> None:
    for service in reversed(chain):
        say(f"{service.name:<13} {process.stop(service.pid_file(settings), PATIENCE)}")


def _one_at_a_time(say: Say) -> Say:
    """`say` for several threads: their lines must not run into each other."""
    lock = threading.Lock()

    def say_one(line: str) -> None:
        with lock:
            say(line)

    return say_one


def _log_size(service: Service, settings: Settings) -> int:
    log = service.log_file(settings)
    return log.stat().st_size if log.exists() else 0


@contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    settings.run.mkdir(parents=True, exist_ok=True)
    with (settings.run / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
