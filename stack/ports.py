"""Is a port free, and if not, who holds it? Answers from the kernel's own tables, no extra package."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

from stack.settings import HOST


def is_free(port: int) -> bool:
    """Whether a server of ours could listen on this port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # ports that a stopped server left behind are free
        try:
            probe.bind((HOST, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def owner(port: int) -> tuple[int, str] | None:
    """The pid and command of the process that listens on a port; None if none, or not visible to this user."""
    inodes = {inode for _, number, inode in _listening() if number == port}
    for pid in _pids():
        if inodes & _socket_inodes(pid):
            return pid, command(pid)
    return None


def listening(pid: int) -> set[tuple[str, int]]:
    """The (address, port) pairs that a process listens on; addresses as text, IPv4 in IPv6 shown as IPv4."""
    mine = _socket_inodes(pid)
    return {(address, port) for address, port, inode in _listening() if inode in mine}


def command(pid: int) -> str:
    """The command line of a process, shortened for a message."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace").split("\0")
    except OSError:
        return "?"
    text = " ".join(word for word in words if word)
    return text if len(text) <= 120 else f"{text[:40]} … {text[-75:]}"


def _pids() -> Iterator[int]:
    if Path("/proc").is_dir():
        yield from (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())


def _socket_inodes(pid: int) -> set[str]:
    found = set()
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                target = str(entry.readlink())
                if target.startswith("socket:["):
                    found.add(target[8:-1])
    return found


def _listening() -> Iterator[tuple[str, int, str]]:
    """(address, port, inode) of each listening TCP socket, from /proc/net/tcp and tcp6 (proc(5))."""
    for name in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/net/{name}").read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == "0A":  # TCP_LISTEN
                address, port = fields[1].split(":")
                yield _address(address), int(port, 16), fields[9]


def _address(text: str) -> str:
    words = [bytes.fromhex(text[at : at + 8])[::-1] for at in range(0, len(text), 8)]  # little-endian words of 4 bytes
    raw = b"".join(words)
    if len(raw) == 16 and raw.startswith(b"\0" * 10 + b"\xff\xff"):
        raw = raw[12:]
    return socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw)
