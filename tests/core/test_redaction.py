import io

import pytest

from slm_ray.core.progress import Console
from slm_ray.core.redact import redact

SECRETS = [
    "hf_abcdefghijklmnopqrstuvwxyz", "sk-abcdefghijklmnop1234", "AKIA1234567890ABCDEF", "wandb_v1_abcdefghij0123456789",
]  # fmt: skip


@pytest.mark.parametrize("secret", SECRETS)
def test_keys_are_known_by_their_shape(secret):
    assert redact(f"got 401 for {secret}, sorry") == "got 401 for [redacted], sorry"


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "db_password", "APIKEY"])
def test_values_of_secret_looking_variables_are_masked(monkeypatch, name):
    monkeypatch.setenv(name, "0123456789abcdef")
    assert redact("key=0123456789abcdef.") == "key=[redacted]."


def test_logins_inside_addresses_are_masked():
    assert redact("https://me:pass@host/simple failed") == "https://[redacted]@host/simple failed"


def test_ordinary_text_is_kept(monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    text = "8,192 calibration tokens at https://host:8080/a@b, false alarm, task-force-of-seventeen"
    assert redact(text) == text


def test_neither_the_screen_nor_the_log_sees_a_key(tmp_path):
    stream = io.StringIO()
    console = Console(tmp_path / "run.log", stream)
    console.line(f"using {SECRETS[0]}")
    assert SECRETS[0] not in stream.getvalue() + (tmp_path / "run.log").read_text()
