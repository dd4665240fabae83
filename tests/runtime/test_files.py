"""The cluster files, checked as Ray, AWS's own model of its calls and a shell would read them; nothing is started."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import yaml
from botocore.validate import ParamValidator
from ray.autoscaler._private.aws.config import _create_default_inbound_rules
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LAUNCHED = ("cluster.yaml", "cluster.local.yaml")
FILES = (*LAUNCHED, "cluster.kuberay.yaml")
START_OPTIONS = {name.removeprefix("--") for option in start.params for name in (*option.opts, *option.secondary_opts)}
COMMANDS = (
    "initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
    "head_start_ray_commands", "worker_start_ray_commands",
)  # fmt: skip


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def load(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(text_of(name))
    return loaded


def prepared(name: str) -> dict[str, Any]:
    """A file as `ray up` sees it once defaults are filled in; its remarks are kept off the terminal."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        config: dict[str, Any] = prepare_config(copy.deepcopy(load(name)))
    return config


def ray_start(name: str, kind: str) -> str:
    """The line that starts Ray on a head or a worker."""
    (line,) = [command for command in load(name)[f"{kind}_start_ray_commands"] if "ray start" in command]
    return line


def kubernetes() -> dict[str, dict[str, Any]]:
    """The objects of the Kubernetes file by kind."""
    return {loaded["kind"]: loaded for loaded in yaml.safe_load_all(text_of("cluster.kuberay.yaml"))}


def pods() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(group, pod) of the head and of each worker group."""
    spec = kubernetes()["RayCluster"]["spec"]
    return [(group, group["template"]["spec"]) for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]


@pytest.mark.parametrize("name", FILES)
def test_exactly_three_lines_are_to_be_changed(name):
    lines = [line for line in text_of(name).splitlines() if re.search(r"\S.*# CHANGE \d of 3: \w", line)]
    assert [re.findall(r"CHANGE (\d) of 3", line) for line in lines] == [["1"], ["2"], ["3"]]


@pytest.mark.parametrize("name", LAUNCHED)
def test_rays_own_schema_takes_the_file(name):
    validate_config(prepared(name))
    with pytest.raises(Exception, match="Additional properties are not allowed"):
        validate_config({**prepared(name), "max_worker": 3})


@pytest.mark.parametrize("name", LAUNCHED)
def test_every_command_is_one_that_a_shell_can_read(name):
    for command in (line for part in COMMANDS for line in load(name).get(part, [])):
        done = subprocess.run(["bash", "-n"], input=command, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stderr}"


@pytest.mark.parametrize("name", LAUNCHED)
def test_what_is_installed_is_in_pyproject_and_what_is_sent_is_here(name):
    extras = re.findall(r"slm_ray'\[([a-z,]+)\]'", " ".join(load(name)["setup_commands"]))
    assert extras and set(extras[0].split(",")) <= set(PROJECT["project"]["optional-dependencies"])
    mounts = {remote: local for remote, local in load(name)["file_mounts"].items() if not local.startswith("~")}
    assert all(remote == f"~/slm_ray/{local}" and (ROOT / local).exists() for remote, local in mounts.items())
    setuptools = PROJECT["tool"]["setuptools"]
    needed = {setuptools["package-dir"].get(package, "slm_ray") for package in setuptools["packages"]}
    needed |= {"pyproject.toml", PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]}
    assert needed <= set(mounts.values())


@pytest.mark.parametrize("name", LAUNCHED)
@pytest.mark.parametrize("kind", ["head", "worker"])
def test_ray_is_started_with_options_that_it_has(name, kind):
    line = ray_start(name, kind)
    assert set(re.findall(r"--([a-z-]+)", line)) <= START_OPTIONS
    assert ("--head" in line) == (kind == "head")
    assert "RAY_USAGE_STATS_ENABLED=0" in line


@pytest.mark.parametrize("name", LAUNCHED)
def test_the_dashboard_answers_on_the_head_alone(name):
    assert "--dashboard-host=127.0.0.1" in ray_start(name, "head")
    assert "dashboard" not in ray_start(name, "worker")


def test_aws_would_take_what_is_said_of_its_machines():
    takes = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    for kind in load("cluster.yaml")["available_node_types"].values():
        found = ParamValidator().validate({**kind["node_config"], "MinCount": 1, "MaxCount": 1}, takes)
        assert not found.has_errors(), found.generate_report()
    wrong = ParamValidator().validate({"MinCount": 1, "MaxCount": 1, "MarketType": "spot"}, takes)
    assert wrong.has_errors(), "the model names what it does not know"


def test_aws_lets_in_ssh_and_the_clusters_own_machines_only():
    given = load("cluster.yaml")["provider"]["security_group"].get("IpPermissions", [])
    rules = [json.dumps(rule, sort_keys=True).lower() for rule in _create_default_inbound_rules({"sg-own"}, given)]
    assert len(set(rules)) == len(rules), "AWS refuses a rule that is given twice"
    open_to_all = [json.loads(rule) for rule in rules if "0.0.0.0/0" in rule or "::/0" in rule]
    assert [(rule["fromport"], rule["toport"]) for rule in open_to_all] == [(22, 22)]


def test_gpu_machines_on_aws_are_spot_and_none_while_there_is_no_work():
    config = load("cluster.yaml")
    types = dict(config["available_node_types"])
    head = types.pop(config["head_node_type"])
    assert "GPU" not in head["resources"] and head["node_config"]["InstanceType"].startswith("m")
    for kind in types.values():
        assert kind["min_workers"] == 0 and 0 < kind["max_workers"] <= config["max_workers"]
        assert kind["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
        assert kind["node_config"]["IamInstanceProfile"]["Name"] == "ray-autoscaler-v1"
    assert config["provider"]["cache_stopped_nodes"] is False


def test_the_right_that_the_head_is_given_is_a_policy():
    comment = "\n".join(line.lstrip("# ") for line in text_of("cluster.yaml").splitlines() if line.startswith("#"))
    policy = json.loads(re.search(r"--policy-document '(\{.*?\})'", comment, re.DOTALL)[1])
    assert {entry["Action"] for entry in policy["Statement"]} == {"iam:PassRole", "ssm:GetParameters"}
    assert all(entry["Resource"] != "*" for entry in policy["Statement"])


def test_machines_of_ones_own_ask_for_the_token_and_are_started_by_the_first_autoscaler():
    config = load("cluster.local.yaml")
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert any("RAY_AUTH_MODE=token" in command for command in config["setup_commands"])
    line = ray_start("cluster.local.yaml", "head")
    assert line.index("RAY_enable_autoscaler_v2=0") < line.index("ray start")
    assert all("GLOO_SOCKET_IFNAME" in ray_start("cluster.local.yaml", kind) for kind in ("head", "worker"))
    ours = prepared("cluster.local.yaml")["available_node_types"]["local.cluster.node"]
    assert ours["min_workers"] == ours["max_workers"] == len(config["provider"]["worker_ips"])


def test_rays_autoscaler_reads_the_kubernetes_file_as_it_is_meant():
    cluster = copy.deepcopy(kubernetes()["RayCluster"])
    cluster["metadata"]["namespace"] = "default"
    types = _derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]
    head, gpu = types.pop("headgroup"), types.pop("gpu")
    assert not types
    assert head["resources"]["CPU"] == 0 and "GPU" not in head["resources"]
    assert gpu["resources"]["GPU"] == 1 and gpu["min_workers"] == 0 and gpu["max_workers"] > 0


def test_every_pod_says_what_it_needs_and_starts_ray_with_options_that_it_has():
    for group, pod in pods():
        assert set(group["rayStartParams"]) <= START_OPTIONS
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        assert pod["restartPolicy"] == "Never"
        for container in pod["containers"]:
            resources = container["resources"]
            assert resources["limits"] == resources["requests"] and {"cpu", "memory"} <= set(resources["limits"])
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_kubernetes_shows_the_cluster_to_nobody_outside():
    found = kubernetes()
    spec, name = found["RayCluster"]["spec"], found["RayCluster"]["metadata"]["name"]
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert spec["headGroupSpec"]["rayStartParams"]["dashboard-host"] == "127.0.0.1"
    assert spec["authOptions"] == {"mode": "token"}
    (rule,) = found["NetworkPolicy"]["spec"]["ingress"]
    own = {"matchLabels": {"ray.io/cluster": name}}
    assert rule == {"from": [{"podSelector": own}]} and found["NetworkPolicy"]["spec"]["podSelector"] == own


def test_the_shared_volume_is_the_one_that_pods_mount():
    claim = kubernetes()["PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for _, pod in pods():
        (shared,) = [volume for volume in pod["volumes"] if volume["name"] == "shared"]
        assert shared["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
