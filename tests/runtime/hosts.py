"""Bring up several hosts of our own with `ray up`, search and train on them, and take them down with `ray down`.

    python -m tests.runtime.hosts                  # a desk, a head and two workers, and one that is alone; minutes
    python -m tests.runtime.hosts --workers 1

The hosts are network namespaces (tests/runtime/netns.py) and share no home, no /tmp and no cache, but the folder of
``--storage``. `ray up` reads cluster.local.yaml as a person would fill it in; only the lines that install packages are
left out, for no host has a way to a package index, and each gives Ray one CPU, so that two ranks lie on two hosts. The
results must be those of the same commands on one of the hosts alone. It takes root, Debian's iproute2, openssh-server
and rsync, and the project's extra `cluster`. Where namespaces are not permitted, several raylets on this machine do the
same work (tests/runtime/raylets.py).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from tests.runtime import work
from tests.runtime.netns import Host, NotPermitted, hosts
from tests.search.tiny_run import Tiny, make_tiny

REPOSITORY = Path(__file__).parents[2]
_PROJECT = ("slm_ray", "search_spaces", "sweeps", "pyproject.toml", "README.md", "LICENSE", "cluster.local.yaml")
_OBJECT_STORE_BYTES = 256 << 20
_PORT = 8265
# Hosts on one busy machine: processes that import torch for minutes, and a start that Ray gives up after 30 seconds.
_PATIENT = "RAY_worker_niceness=0 RAY_worker_register_timeout_seconds=600"
_TRIES = 4
_SECONDS = 1800
_GONE_SECONDS = 240


class Report:
    """What was seen, printed as it happens."""

    def __init__(self) -> None:
        self.rows: dict[str, Any] = {}
        self._began = time.monotonic()

    @contextlib.contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Measure a part."""
        start = time.monotonic()
        yield
        self.add(f"{what} [s]", round(time.monotonic() - start, 1))

    def add(self, what: str, value: Any) -> None:
        """A figure or a fact."""
        self.rows[what] = value
        print(f"{time.monotonic() - self._began:7.1f}  {what}: {json.dumps(value)}", flush=True)

    def check(self, what: str, good: bool) -> None:
        """A condition of success.

        Raises:
            SystemExit: It does not hold.
        """
        self.add(what, good)
        if not good:
            raise SystemExit(f"FAILED: {what}")


def cluster_config(
    given: dict[str, Any], head: str, workers: list[str], user: str, python: Path, storage: Path
) -> dict[str, Any]:
    """cluster.local.yaml as filled in for our hosts.

    Args:
        given: The file as it is.
        head: The head's address.
        workers: The workers' addresses.
        user: Of all hosts.
        python: The interpreter that all hosts see, since they cannot install one.
        storage: A folder that all hosts see.
    """
    config = {**given, "provider": {**given["provider"], "head_ip": head, "worker_ips": workers}}
    config["auth"] = {"ssh_user": user, "ssh_private_key": "~/.ssh/id_ed25519"}
    activate = f"export PATH={python.parent}:$PATH PYTHONPATH=$HOME/slm_ray"
    kept = [line for line in given["setup_commands"] if "/uv" not in line]
    config["setup_commands"] = [line.replace(". ~/venv/bin/activate", activate) for line in kept]
    config["setup_commands"].append(f"echo 'export SLM_RAY_STORAGE={storage}' >> ~/.slm_ray_env")
    more = f" --num-cpus=1 --object-store-memory={_OBJECT_STORE_BYTES}"
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        config[name] = [f"export {_PATIENT}; {line}{more}" if "ray start" in line else line for line in given[name]]
    return config


def prepare(machines: dict[str, Host], tiny: Tiny, folder: Path) -> Tiny:
    """The project and the inputs on the desk; the inputs on the head and the host that is alone, too."""
    desk, head = machines["desk"], machines["head"]
    shutil.copy(desk.key, desk.home / ".ssh/id_ed25519")
    project = desk.home / "project"
    project.mkdir()
    for name in _PROJECT:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, project / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, project / name)
    python = Path(sys.prefix) / "bin" / "python"
    workers = [machine.address for name, machine in machines.items() if name.startswith("worker")]
    given = yaml.safe_load((project / "cluster.local.yaml").read_text())
    config = cluster_config(given, head.address, workers, "root", python, folder.parent / "storage")
    (project / "hosts.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    activate = f"export PATH={python.parent}:$PATH PYTHONPATH=$HOME/project RAY_AUTH_MODE=token\n"
    (desk.home / ".bashrc").write_text(activate)
    desk.run("ray get-auth-token --generate")
    for machine in (desk, head, machines["alone"]):
        shutil.copytree(folder, machine.home / "inputs")
    return work.moved(tiny, Path.home() / "inputs")


def alone(machine: Host, tiny: Tiny, report: Report) -> dict[str, Any]:
    """Both commands on one host, without a cluster."""
    for name in ("slm_ray", "search_spaces"):
        shutil.copytree(machine.folder.parent / "desk/home/project" / name, machine.home / "slm_ray" / name)
    before = f"export {_PATIENT} PATH={Path(sys.prefix) / 'bin'}:$PATH PYTHONPATH=$HOME/slm_ray; "
    runs = Path.home() / "runs"
    with report.timed("search on one host"):
        machine.run(before + work.line("python", work.search_words(tiny, runs / "search", 2)), _SECONDS)
    with report.timed("training on one host"):
        machine.run(before + work.line("python", work.pretrain_words(tiny, runs / "training")), _SECONDS)
    search, training = machine.home / "runs/search", machine.home / "runs/training"
    return {"search": work.search_outcome(search), "training": work.pretrain_outcome(training)}


def bring_up(desk: Host, report: Report) -> None:
    """`ray up`, again where Ray's start took longer than the 30 seconds that it gives itself."""
    for attempt in range(1, _TRIES + 1):
        done = desk.run("cd project; ray up -y --no-config-cache hosts.yaml", check=attempt == _TRIES)
        if done.returncode == 0 or "timed out during startup" not in done.stdout + done.stderr:
            break
        report.add("`ray up` again, for Ray's start timed out", attempt)
    if done.returncode:
        raise SystemExit(f"FAILED: `ray up`\n{done.stdout[-3000:]}{done.stderr[-3000:]}")


def refuses_strangers(desk: Host) -> bool:
    """Whether the dashboard's list of jobs wants a token."""
    ask = f"import urllib.request; urllib.request.urlopen('http://127.0.0.1:{_PORT}/api/jobs/')"
    return "HTTP Error 401" in desk.run(f'python -c "{ask}"', check=False).stderr


def wait_for_nodes(head: Host, count: int, report: Report) -> None:
    """Until the head has started all workers."""
    with report.timed(f"the head starts {count - 1} workers"):
        end = time.monotonic() + 600
        while f"ALIVE {count}" not in head.run(f"python -c '{work.ALIVE}'", check=False).stdout:
            if time.monotonic() > end:
                logs = head.run("tail -n 40 /tmp/ray/session_latest/logs/monitor*", check=False).stdout
                raise SystemExit(f"FAILED: not all workers came within 600 seconds\n{logs}")


@contextlib.contextmanager
def dashboard(desk: Host) -> Iterator[None]:
    """Have the head's dashboard on the desk's localhost, through ssh."""
    forward = subprocess.Popen(
        desk.shell(f"cd project; exec ray dashboard hosts.yaml --port {_PORT}"),
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        knock = f"timeout 60 bash -c 'until (echo > /dev/tcp/127.0.0.1/{_PORT}) 2>/dev/null; do sleep 0.2; done'"
        desk.run(knock)
        yield
    finally:
        forward.kill()
        forward.wait()


def together(desk: Host, head: Host, count: int, tiny: Tiny, report: Report) -> dict[str, Any]:
    """Both commands on the cluster: the search sent as a job with the desk's files, the training by `ray exec`."""
    runs, here = Path.home() / "runs", head.home / "runs"
    sent = work.moved(tiny, Path())  # the job's own folder
    search = work.line("python", work.search_words(sent, runs / "search", count), "--address", "auto")
    with dashboard(desk):
        report.check("whoever has no token is refused", refuses_strangers(desk))
    with dashboard(desk), report.timed("search on the cluster, by `ray job submit`"):
        submit = f"ray job submit --address http://127.0.0.1:{_PORT} --working-dir inputs"
        desk.run(f"{submit} -- {search}", timeout=_SECONDS)
        desk.run("cd project; ray rsync-down hosts.yaml '~/runs/search/' ~/fetched")
        report.check("the run folder is fetched", work.search_outcome(desk.home / "fetched") is not None)
    training = work.line("python", work.pretrain_words(tiny, runs / "training"), "--address", "auto")
    with report.timed("training on the cluster, by `ray exec`"):
        desk.run(f"cd project; ray exec hosts.yaml {shlex.quote(training)}", timeout=_SECONDS)
    return {"search": work.search_outcome(here / "search"), "training": work.pretrain_outcome(here / "training")}


def copies(machine: Host) -> dict[str, int]:
    """Bytes of what a host fetched from the head, by folder."""
    folder = machine.home / ".cache/slm_ray/copies"
    there = sorted(path for path in folder.glob("*") if path.is_dir())
    return {path.name: sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) for path in there}


def listens_beyond_itself(machine: Host) -> list[str]:
    """Programs of a host that take connections on more than its own localhost."""
    said = machine.run("ss -Hltnp").stdout
    rows = [row.split() for row in said.splitlines()]
    return sorted({row[5].split('"')[1] for row in rows if len(row) > 5 and not row[3].startswith(("127.", "[::1]"))})


def is_gone(machine: Host) -> bool:
    """Whether Ray has ended on a host: `ray down` stops the head, and the others miss it for a minute first."""
    end = time.monotonic() + _GONE_SECONDS
    while machine.run("pgrep raylet", check=False).stdout:
        if time.monotonic() > end:
            return False
        time.sleep(1)
    return True


def same_work(machines: dict[str, Host], inputs: Path, tiny: Tiny, report: Report) -> None:
    """The whole of it, on hosts that are there."""
    desk, head = machines["desk"], machines["head"]
    there = prepare(machines, tiny, inputs)
    pool = ThreadPoolExecutor(1)
    on_one_host = pool.submit(alone, machines["alone"], there, report)
    try:
        with report.timed("`ray up`"):
            bring_up(desk, report)
        cluster = {name: machine for name, machine in machines.items() if name not in ("desk", "alone")}
        wait_for_nodes(head, len(cluster), report)
        found = together(desk, head, len(cluster), there, report)
        where = work.worked(head.run(f"python -c '{work.WHERE}'").stdout)
        for name, machine in cluster.items():
            report.add(f"workers on {name}", where.get(name, {}))
            report.add(f"bytes fetched by {name}", copies(machine))
        report.add("open to the network on the head", listens_beyond_itself(head))
        expected = on_one_host.result()
        report.check("the search's results are exactly those of one host", found["search"] == expected["search"])
        report.check("the training's losses are exactly those of one host", found["training"] == expected["training"])
        report.check("every host had workers", set(where) >= set(cluster))
        report.check("the two ranks lay on two hosts", sum("RayTrainWorker" in kinds for kinds in where.values()) == 2)
    finally:
        with report.timed("`ray down`"):
            desk.run("cd project; ray down -y hosts.yaml", check=False)
        pool.shutdown(wait=False, cancel_futures=True)
    with report.timed("Ray is gone from all hosts, after `ray down`"):
        gone = all(is_gone(machine) for machine in machines.values())
    report.check("no Ray process is left", gone)


def main(arguments: list[str] | None = None) -> int:
    """Run it; 0 when everything held."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workers", type=int, default=2, help="hosts besides the head [default: 2]")
    parser.add_argument("--raylets", action="store_true", help="several raylets on this machine instead of hosts")
    given = parser.parse_args(arguments)
    if absent := [name for name in ("grpc", "aiohttp_cors") if importlib.util.find_spec(name) is None]:
        print(f"error: {', '.join(absent)} not installed: pip install -e '.[cluster]'", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    report = Report()
    temporary = tempfile.TemporaryDirectory(prefix="slm_ray-inputs-", dir="/var/tmp")
    with contextlib.ExitStack() as stack:
        inputs = Path(stack.enter_context(temporary)) / "inputs"
        inputs.mkdir()
        tiny = make_tiny(inputs)
        machines: dict[str, Host] | None = None
        if not given.raylets:
            names = ["desk", "alone", "head", *(f"worker-{number}" for number in range(1, given.workers + 1))]
            try:
                machines = stack.enter_context(hosts(names))
            except NotPermitted as error:
                print(f"no hosts of our own here ({error}): several raylets on this machine instead", flush=True)
        if machines is not None:
            same_work(machines, inputs, tiny, report)
        else:
            from tests.runtime.raylets import same_work_on_raylets

            same_work_on_raylets(inputs, tiny, given.workers, report)
    print("all held")
    return 0


if __name__ == "__main__":
    sys.exit(main())
