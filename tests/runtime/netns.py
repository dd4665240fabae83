"""Hosts of our own on one machine: network namespaces on a bridge, each with its own processes, home, /tmp and sshd."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

NETWORK = "10.213.77"  # of a bridge in a namespace of its own, which has no way out
_TOOLS = {
    "ip": "iproute2", "ss": "iproute2", "sshd": "openssh-server", "ssh": "openssh-client", "rsync": "rsync",
    "unshare": "util-linux", "pgrep": "procps",
}  # fmt: skip
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SSHD = """
HostKey /run/slm/host_key
AuthorizedKeysFile /run/slm/key.pub
ListenAddress {address}
PidFile none
PermitRootLogin yes
PasswordAuthentication no
UsePAM no
UseDNS no
StrictModes no
Subsystem sftp internal-sftp
"""
# What a host does first. What it needs of the real home and /tmp is bound before these are hidden.
_BOOT = """
set -e
hostname {name}
ip link set lo up
mount --make-rprivate /
{binds}
mount --rbind {folder}/tmp /tmp
mount --rbind {folder}/home {home}
mount -t tmpfs -o size=1g tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mkdir -p /run/sshd /run/slm
cp {folder}/etc/* /run/slm/
chmod 600 /run/slm/host_key
exec $(command -v sshd) -D -e -f /run/slm/sshd_config
"""


class NotPermitted(Exception):
    """This machine makes no hosts, and why."""


@dataclass(frozen=True)
class Host:
    """A machine of our own.

    Attributes:
        name: Its hostname.
        address: Its address on the bridge.
        folder: Where its home, /tmp and sshd's files lie on the real machine.
        process: What keeps its namespaces; its end ends everything in them.
        key: The private key that every host takes.
    """

    name: str
    address: str
    folder: Path
    process: subprocess.Popen[bytes]
    key: Path

    @property
    def home(self) -> Path:
        """Its home, seen from the real machine."""
        return self.folder / "home"

    def run(self, command: str, timeout: float = 600, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a shell's line on it, as a person would who has logged in.

        Raises:
            RuntimeError: It failed, and ``check`` is set.
        """
        done = subprocess.run(
            self.shell(command), capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL
        )
        if check and done.returncode:
            said = done.stdout[-3000:] + done.stderr[-3000:]
            raise RuntimeError(f"{self.name}: `{command}` ended with {done.returncode}:\n{said}")
        return done

    def shell(self, command: str) -> list[str]:
        """The command line that runs a shell's line on it: in its namespaces, with nothing of our environment."""
        kept = f"HOME={Path.home()} PATH={_PATH} USER=root TERM=dumb"
        inside = f"cd; env -i {kept} bash --login -i -c {shlex.quote('source ~/.bashrc; ' + command)}"
        return ["nsenter", "--target", str(_first_process(self.process.pid)), "--all", "bash", "-c", inside]


def missing_tools() -> list[str]:
    """Debian's packages of what is not installed."""
    return sorted({package for tool, package in _TOOLS.items() if shutil.which(tool, path=_PATH) is None})


@contextlib.contextmanager
def hosts(names: Sequence[str]) -> Iterator[dict[str, Host]]:
    """Have hosts, by name, that reach one another and nothing else; nothing of them is left afterwards.

    Raises:
        NotPermitted: The machine does not let this user make namespaces, or has not what it takes.
    """
    if os.geteuid():
        raise NotPermitted("network namespaces take root")
    if missing := missing_tools():
        raise NotPermitted(f"not installed: {', '.join(missing)}")
    tag = f"slm{uuid.uuid4().hex[:5]}"
    folder = Path(tempfile.mkdtemp(prefix="slm_ray-hosts-", dir="/var/tmp"))
    made: list[Host] = []
    spaces: list[str] = []
    try:
        key = _make_keys(folder)
        _add_namespace(tag, spaces)
        _ip("-n", tag, "link", "add", "br0", "type", "bridge")
        _ip("-n", tag, "addr", "add", f"{NETWORK}.1/24", "dev", "br0")
        _ip("-n", tag, "link", "set", "br0", "up")
        for number, name in enumerate(names, 10):
            space, address = f"{tag}-{number}", f"{NETWORK}.{number}"
            _add_namespace(space, spaces)
            _join(tag, space, number, address)
            made.append(_boot(name, space, address, folder / name, key))
        for host in made:
            _wait_for_sshd(host)
        yield {host.name: host for host in made}
    finally:
        for host in made:
            host.process.kill()
            host.process.wait()
        for space in reversed(spaces):
            subprocess.run(["ip", "netns", "del", space], capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise NotPermitted(f"`ip {' '.join(words)}`: {done.stderr.strip()}")


def _add_namespace(name: str, spaces: list[str]) -> None:
    _ip("netns", "add", name)
    spaces.append(name)


def _join(bridge: str, space: str, number: int, address: str) -> None:
    """Plug a namespace into the bridge. The default route leads nowhere: Ray looks for a machine's address along it."""
    _ip("-n", bridge, "link", "add", f"port{number}", "type", "veth", "peer", "name", "eth0", "netns", space)
    _ip("-n", bridge, "link", "set", f"port{number}", "master", "br0", "up")
    _ip("-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
    _ip("-n", space, "link", "set", "eth0", "up")
    _ip("-n", space, "route", "add", "default", "via", f"{NETWORK}.1")


def _make_keys(folder: Path) -> Path:
    for name in ("key", "host_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    return folder / "key"


def _boot(name: str, space: str, address: str, folder: Path, key: Path) -> Host:
    for part in ("home/.ssh", "tmp", "etc"):
        (folder / part).mkdir(parents=True)
    (folder / "tmp").chmod(0o1777)
    (folder / "home/.bashrc").touch()
    (folder / "etc/sshd_config").write_text(_SSHD.format(address=address))
    for path in (key.with_name("host_key"), key.with_name("key.pub")):
        shutil.copy(path, folder / "etc")
    boot = _BOOT.format(name=name, folder=folder, home=Path.home(), binds="\n".join(_binds(folder)))
    (folder / "boot.sh").write_text(boot)
    apart = ["unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "ip", "netns", "exec", space, *apart, "bash", str(folder / "boot.sh")],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    return Host(name, address, folder, process, key)


def _binds(folder: Path) -> Iterator[str]:
    """Lines that keep the interpreter in sight where a host's own home or /tmp would hide it."""
    interpreter = {sys.prefix, sys.base_prefix, *(entry for entry in sys.path if "site-packages" in entry)}
    for path in map(Path, sorted(interpreter)):
        for top, own in ((Path.home(), folder / "home"), (Path("/tmp"), folder / "tmp")):
            if path.is_relative_to(top):
                target = shlex.quote(str(own / path.relative_to(top)))
                yield f"mkdir -p {target}; mount --bind {shlex.quote(str(path))} {target}"


def _first_process(pid: int) -> int:
    """The process that is number 1 inside: the child of `unshare`."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    if not children:
        raise RuntimeError("a host has ended")
    return int(children[0])


def _wait_for_sshd(host: Host) -> None:
    end = time.monotonic() + 20
    while b"listening on" not in (log := (host.folder / "log").read_bytes()):
        if host.process.poll() is not None or time.monotonic() > end:
            raise NotPermitted(f"{host.name} did not start: {log.decode(errors='replace').strip()[-300:] or 'no sshd'}")
        time.sleep(0.05)
