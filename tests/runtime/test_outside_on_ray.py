"""A command through Ray's client, on a real cluster of several raylets."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import psutil
import pytest

from tests.runtime.nodes import Nodes
from tests.runtime.test_files import ROOT
from tests.runtime.victims import wait_until
from tests.search.tiny_run import make_tiny, trials_of

pytest.importorskip("grpc", reason="Ray's client needs grpcio: install the extra dev or cluster")


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.slow
def test_a_search_from_outside_that_is_killed_and_resumed(tmp_path, monkeypatch):
    """The driver on the head ends with the command here; a resumed one goes on there, and its files come back."""
    tiny = make_tiny(tmp_path)
    desk = tmp_path / "desk"
    desk.mkdir()
    monkeypatch.setenv("SLM_RAY_CACHE", str(tmp_path / "head"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("RAY_CLIENT_RECONNECT_GRACE_PERIOD", "2")  # of 30 s, in which a broken connection may come back
    # Ray's client server looks for its head at the machine's own address in place of localhost, unless told so.
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    port = free_port()
    words = [sys.executable, "-m", "slm_ray.search", "--address", f"ray://127.0.0.1:{port}"]
    environment = os.environ | {"SLM_RAY_CACHE": str(tmp_path / "desk-cache")}
    nodes = Nodes(1, client_port=port)
    try:
        first = [*words, *tiny.arguments(None, "--workers", "1", "--trials", "60"), "--out", "runs/x"]
        begun = subprocess.Popen(first, cwd=desk, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        assert wait_until(lambda: begun.poll() is not None or some_trials(tmp_path / "head"), 600)
        assert begun.poll() is None, begun.stderr.read().decode()[-2000:]
        there = some_trials(tmp_path / "head")[0].parent
        begun.kill()
        begun.wait()
        assert wait_until(lambda: not drivers(nodes), 300), "the driver on the head went on"
        before = (there / "trials.jsonl").read_bytes()
        assert before.count(b"\n") < 60, "it had ended before"
        assert not (desk / "runs").exists()
        done = subprocess.run(
            [*words, "--resume", "runs/x"], cwd=desk, env=environment, capture_output=True, text=True, timeout=900
        )
    finally:
        nodes.close()
    assert done.returncode == 0, done.stderr[-2000:]
    run = desk / "runs" / "x"
    assert (run / "trials.jsonl").read_bytes().startswith(before), "what was measured is measured again"
    assert len(trials_of(run)) == 60 and (run / "winners/0/model.safetensors").is_file()
    assert f"teacher {tiny.teacher}" in done.stdout + done.stderr, "the teacher has its name of here"
    assert not (tmp_path / "desk-cache" / "commands").exists()


def some_trials(cache):
    """The trials of a run on the head, once there are two and not yet all."""
    return [path for path in cache.glob("commands/*/runs/x/trials.jsonl") if path.read_bytes().count(b"\n") >= 2]


def drivers(nodes):
    found = []
    for pid in nodes.processes():
        try:
            words = psutil.Process(pid).cmdline()
        except psutil.Error:
            continue
        if "slm_ray.search" in words and f"{nodes.address}" in words:
            found.append(pid)
    return found
