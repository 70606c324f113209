import pytest

from ssdistill.record.tracking_settings import TrackingSettings
from ssdistill.record.wandb_environment import has_key, wandb_mode


@pytest.fixture
def no_variables(monkeypatch):
    for name in ("WANDB_MODE", "WANDB_DISABLED", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def test_a_file_of_passwords_in_another_encoding_holds_no_key(no_variables, monkeypatch, tmp_path):
    file = tmp_path / "netrc"
    file.write_bytes(b"machine api.wandb.ai login caf\xe9 password x\n")
    file.chmod(0o600)
    monkeypatch.setenv("NETRC", str(file))
    assert not has_key()
    assert wandb_mode(TrackingSettings()) == "offline"


def test_an_address_that_is_none_has_no_key(no_variables, monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", "http://[nowhere")
    assert not has_key()
