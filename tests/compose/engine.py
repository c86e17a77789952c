"""The Docker Engine that runs here, or one of the tests' own: Debian's, in a network namespace without a way out.

python -m tests.compose.engine up FOLDER     starts it, makes the images, prints lines for a shell
python -m tests.compose.engine down FOLDER   stops it; FOLDER keeps images and layers for the next time

Nothing can be pulled in there, so the images of others are stand-ins under the official tags: their own servers and the
translation of the very environment names that the official images read, but not the official entry points. The image of
the layers is built from the Dockerfile as users build it, on a base that debootstrap made. An engine builds with the
machine's network first (it has no bridge), then a second one on the same data runs the containers in the namespace.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from stack import config, jars, services
from stack import settings as stack_settings

ROOT = Path(__file__).resolve().parents[2]
IMAGES = Path(__file__).resolve().parent / "images"
DEBIAN_PACKAGES = ("docker.io", "iptables", "debootstrap")
COMPOSE = "github.com/docker/compose/v2/cmd"
COMPOSE_VERSION = "v2.40.3"
# Tag → folder of its stand-in. There is none for Grafana: no registry of packages has it.
STAND_INS = {
    "confluentinc/cp-zookeeper:7.9.10": "kafka",
    "confluentinc/cp-kafka:7.9.10": "kafka",
    "apache/hadoop:3.4.1": "hadoop",
}
OF_PROFILES = {"cassandra:5.0.5": "cassandra", "prom/prometheus:v2.55.1": "prometheus"}
JARS = {"kafka": "kafka", "hadoop": "hdfs", "cassandra": "cassandra"}  # folder of a stand-in → its jars in lib
BASE = "debian:bookworm-slim"
# Target of the Dockerfile → tag in docker-compose.yml.
OWN = {"highwater": "highwater:1.0", "notebook": "highwater-notebook:1.0"}
READY_SECONDS = 30.0


class EngineMissing(RuntimeError):
    """This machine cannot run an engine; the message says why."""


@dataclass(frozen=True)
class Engine:
    """An engine: of the tests' own, with its folder (data, socket, client configuration), or the one that runs here."""

    folder: Path
    own: bool = True

    @property
    def namespace(self) -> Path:
        return self.folder / "net"

    @property
    def socket(self) -> str:
        return f"unix://{self.folder}/docker.sock"

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a client."""
        if not self.own:
            return dict(os.environ)
        return {
            **os.environ,
            "DOCKER_HOST": self.socket,
            "DOCKER_CONFIG": str(self.folder / "client"),
            "DOCKER_BUILDKIT": "0",
        }

    def inside(self, command: Sequence[str]) -> list[str]:
        """The command that runs where published ports answer."""
        return ["nsenter", f"--net={self.namespace}", *command] if self.own else list(command)

    def docker(self, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
        """Run the client; CalledProcessError with its output when it fails."""
        return run(["docker", *arguments], env=self.environment, **options)


def run(command: Sequence[str], **options: object) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; a failure says what it printed."""
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, **options}
    done: subprocess.CompletedProcess[str] = subprocess.run(list(command), check=False, **given)  # type: ignore[call-overload]
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}\n{(done.stdout or '')[-4000:]}")
    return done


def up(folder: Path, profiles: bool = True) -> Engine:
    """Take the engine that runs here; else install what is missing, build the images, start one in a namespace.

    Args:
        profiles: also the images that only Compose's profiles need.

    Raises:
        EngineMissing: not root, no Debian, not to be installed, it does not start here, or no stand-ins can be made.
        RuntimeError: the image of the layers cannot be built.
    """
    running = Engine(folder.resolve(), own=False)
    if answers(running):
        return running
    engine = Engine(folder.resolve())
    try:
        install(engine)
        make_namespace(engine)
    except RuntimeError as error:
        raise EngineMissing(str(error)) from error
    start(engine, building=False)  # where it cannot run, nobody waits for images
    with daemon(engine, building=True):
        stand_ins = {**STAND_INS, **(OF_PROFILES if profiles else {})}
        if not stand_ins_are_new(engine, stand_ins):
            try:
                build_stand_ins(engine, stand_ins)
            except RuntimeError as error:  # equipment of the tests, unlike the image of the layers
                raise EngineMissing(f"the stand-ins for images of others cannot be made here: {error}") from error
        for target, tag in OWN.items() if profiles else [("highwater", OWN["highwater"])]:
            engine.docker("build", "--network", "host", "--target", target, "-t", tag, str(ROOT))
    start(engine, building=False)
    return engine


def answers(engine: Engine) -> bool:
    """Whether a client reaches the engine and has Compose."""
    asked = (["docker", "version"], ["docker", "compose", "version"])
    return shutil.which("docker") is not None and not any(
        subprocess.run(words, env=engine.environment, capture_output=True, check=False).returncode for words in asked
    )


def install(engine: Engine) -> None:
    """Debian's engine and a compose plugin; both stay for the next time."""
    if os.geteuid() != 0:
        raise EngineMissing("an engine needs root")
    for name in ("dockerd", "debootstrap", "iptables"):
        if shutil.which(name) is None:
            if shutil.which("apt-get") is None:
                raise EngineMissing(f"{name} is not installed, and this is no Debian")
            run(["apt-get", "update", "-qq"])
            run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *DEBIAN_PACKAGES])
            break
    plugin = engine.folder / "client/cli-plugins/docker-compose"
    plugin.parent.mkdir(parents=True, exist_ok=True)
    (engine.folder / "client/config.json").write_text("{}")
    if not plugin.exists():
        if shutil.which("go") is None:
            raise EngineMissing("no compose plugin, and no Go to build one")
        source = engine.folder / "compose"
        source.mkdir(exist_ok=True)
        if not (source / "go.mod").exists():
            run(["go", "mod", "init", "compose"], cwd=source)
        run(["go", "get", "-tool", f"{COMPOSE}@{COMPOSE_VERSION}"], cwd=source)
        run(["go", "build", "-o", str(plugin), COMPOSE], cwd=source)


@contextmanager
def daemon(engine: Engine, building: bool) -> Iterator[None]:
    """An engine for the length of a block."""
    start(engine, building)
    try:
        yield
    finally:
        stop(engine)


def start(engine: Engine, building: bool) -> None:
    """Start dockerd and wait until it answers."""
    stop(engine)
    command = [
        "dockerd",
        *("--data-root", f"{engine.folder}/data"),
        *("--exec-root", f"{engine.folder}/exec"),
        *("--pidfile", f"{engine.folder}/dockerd.pid"),
        *("-H", engine.socket),
        *("--storage-driver", "overlay2"),
    ]
    if building:
        command += ["--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false"]
    else:
        command = engine.inside([*command, "--userland-proxy=false"])
    with (engine.folder / "dockerd.log").open("a") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if answers(engine):
            return
        time.sleep(0.2)
    stop(engine)
    tail = (engine.folder / "dockerd.log").read_text(errors="replace")[-1500:]
    raise EngineMissing(f"dockerd does not start here:\n{tail}")


def stop(engine: Engine) -> None:
    """Stop dockerd, if it runs; its containers stop with it."""
    pid_file = engine.folder / "dockerd.pid"
    if not pid_file.exists():
        return
    pid = int(pid_file.read_text())
    deadline = time.monotonic() + READY_SECONDS
    try:
        os.kill(pid, signal.SIGTERM)
        while time.monotonic() < deadline:
            os.kill(pid, 0)
            time.sleep(0.1)
    except ProcessLookupError:
        pass
    pid_file.unlink(missing_ok=True)


def down(engine: Engine) -> None:
    """Stop the tests' own engine and give its namespaces back.

    dockerd leaves one mounted, and its folder could not be deleted.
    """
    if not engine.own:
        return
    stop(engine)
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mounted = Path(line.split()[4])
        if mounted.is_relative_to(engine.folder):
            run(["umount", str(mounted)])


def make_namespace(engine: Engine) -> None:
    """A network namespace of its own; bridges, rules and forwarding stay in it."""
    if os.path.ismount(engine.namespace):
        return
    engine.namespace.touch()
    run(["unshare", f"--net={engine.namespace}", "true"])
    run(engine.inside(["ip", "link", "set", "lo", "up"]))


def stand_ins_are_new(engine: Engine, stand_ins: Mapping[str, str]) -> bool:
    """Whether the stand-ins were made from what lies in `images` and `lib` now."""
    mark = engine.folder / "images.json"
    made = json.loads(mark.read_text()) if mark.exists() else {}
    return sources(stand_ins).items() <= made.items()


def sources(stand_ins: Mapping[str, str]) -> dict[str, str]:
    """What the stand-ins are made from: name → size and time."""
    names = set(stand_ins.values())
    folders = [IMAGES / name for name in names] + [ROOT / "lib" / JARS[name] for name in names if name in JARS]
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    return {
        str(p.relative_to(ROOT)): f"{p.stat().st_size} {p.stat().st_mtime_ns}" for p in files if p.name != ".verified"
    }


def build_stand_ins(engine: Engine, stand_ins: Mapping[str, str]) -> None:
    """The base by debootstrap, then the stand-ins."""
    if not engine.docker("images", "-q", BASE).stdout.strip():
        rootfs = engine.folder / "rootfs"
        if not (rootfs / "etc/debian_version").exists():
            shutil.rmtree(rootfs, ignore_errors=True)
            run(["debootstrap", "--variant=minbase", "--include=ca-certificates", "bookworm", str(rootfs)])
        trust_like_this_machine(rootfs)
        archive = engine.folder / "rootfs.tar"
        run(["tar", "-C", str(rootfs), "-cf", str(archive), "."])
        engine.docker("import", str(archive), BASE)
        archive.unlink()
    jars.ensure(ROOT, (*jars.CONFS, *({"cassandra"} & set(stand_ins.values()))))
    for tag, folder in stand_ins.items():
        with packed(folder) as context:
            engine.docker("build", "--network", "host", "-t", tag, str(context))
    (engine.folder / "images.json").write_text(json.dumps(sources(stand_ins)))


def trust_like_this_machine(rootfs: Path) -> None:
    """Builds go out as this machine does: the same certificate authorities, the same package mirror."""
    local = Path("/usr/local/share/ca-certificates")
    if local.is_dir() and any(local.iterdir()):
        shutil.copytree(local, rootfs / "usr/local/share/ca-certificates", dirs_exist_ok=True)
        run(["chroot", str(rootfs), "update-ca-certificates"])
        (rootfs / "etc/pip.conf").write_text("[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n")
    for pattern in ("apt/sources.list.d/*.sources", "apt/apt.conf.d/99*"):
        for path in Path("/etc").glob(pattern):
            shutil.copy(path, rootfs / path.relative_to("/"))
            (rootfs / "etc/apt/sources.list").unlink(missing_ok=True)


@contextmanager
def packed(folder: str) -> Iterator[Path]:
    """A build context: the stand-in's folder, the jars of its servers, and what the native stack tells Cassandra."""
    context = ROOT / ".cache" / f"image-{folder}"
    shutil.rmtree(context, ignore_errors=True)
    shutil.copytree(IMAGES / folder, context)
    if folder in JARS:
        shutil.copytree(ROOT / "lib" / JARS[folder], context / "lib")
    if folder == "cassandra":
        native = stack_settings.load({}).with_cassandra()
        (context / "cassandra.json").write_text(json.dumps(config.cassandra_properties(native)))
        (context / "logback.xml").write_text(config.CASSANDRA_LOG)
        (context / "options").write_text(" ".join(services.CASSANDRA_OPTIONS))
    try:
        yield context
    finally:
        shutil.rmtree(context)


def main(argv: list[str]) -> int:
    """Start or stop; the way to look at things by hand."""
    if len(argv) != 2 or argv[0] not in ("up", "down"):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        if argv[0] == "down":
            down(Engine(Path(argv[1]).resolve()))
            return 0
        folder = Path(argv[1])
        folder.mkdir(parents=True, exist_ok=True)
        engine = up(folder)
    except EngineMissing as error:
        print(f"no engine: {error}", file=sys.stderr)
        return 1
    if not engine.own:
        print("# an engine runs here already")
        return 0
    print(f"export DOCKER_HOST={engine.socket} DOCKER_CONFIG={engine.folder}/client DOCKER_BUILDKIT=0")
    print(f"# published ports answer inside: nsenter --net={engine.namespace} curl http://127.0.0.1:8000/")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
