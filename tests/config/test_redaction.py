import io

import pytest

from slm_ray.config.redact import redact
from slm_ray.runtime.progress import Console

SECRETS = [
    "hf_abcdefghijklmnopqrstuvwxyz", "sk-abcdefghijklmnop1234", "AKIA1234567890ABCDEF", "wandb_v1_abcdefghij0123456789",
    "ASIA1234567890ABCDEF", "ghp_abcdefghijklmnop1234", "github_pat_abcdefghijklmnop1234",
]  # fmt: skip


@pytest.mark.parametrize("secret", SECRETS)
def test_keys_are_known_by_their_shape(secret):
    assert redact(f"got 401 for {secret}, sorry") == "got 401 for [redacted], sorry"


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "HF_TOKEN", "db_password", "AZURE_STORAGE_CONNECTION_STRING"])
def test_values_of_secret_looking_variables_are_masked(monkeypatch, name):
    monkeypatch.setenv(name, "0123456789abcdef")
    assert redact("key=0123456789abcdef.") == "key=[redacted]."


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("s3://name:word@bucket/x?region=here", "s3://[redacted]@bucket/x?region=here"),
        ("abfs://box@account/x?sas_token=abc123&a=b", "abfs://box@account/x?sas_token=[redacted]&a=b"),
        ("https://host/f?X-Amz-Signature=00ff&X-Amz-Date=1", "https://host/f?X-Amz-Signature=[redacted]&X-Amz-Date=1"),
        ("s3://b/x?access_key=a&secret_key=c", "s3://b/x?access_key=[redacted]&secret_key=[redacted]"),
    ],
)
def test_logins_and_keys_of_storages_are_masked(address, shown):
    assert redact(f"{address} failed") == f"{shown} failed"


@pytest.mark.parametrize("secret", [*SECRETS, "s3://me:word@host/x", "abfs://b@c/x?sas_token=abc"])
def test_an_option_with_a_key_in_it_is_refused_before_it_is_kept(secret, tmp_path, capsys):
    from slm_ray.pretrain.command import PRETRAIN
    from slm_ray.runtime.commands import run_command

    arguments = ["--student", "x", "--storage", secret, "--out", str(tmp_path / "run")]
    assert run_command(PRETRAIN.main, arguments) == 2
    said = capsys.readouterr().err
    assert "--storage: has a login or key in it" in said and "word" not in said and secret not in said
    assert not list(tmp_path.iterdir())


def test_ordinary_text_is_kept(monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    text = "8,192 calibration tokens at https://host:8080/a@b, false alarm, task-force-of-seventeen"
    assert redact(text) == text


def test_neither_the_screen_nor_the_log_sees_a_key(tmp_path):
    stream = io.StringIO()
    console = Console(tmp_path / "run.log", stream)
    console.line(f"using {SECRETS[0]}")
    assert SECRETS[0] not in stream.getvalue() + (tmp_path / "run.log").read_text()
