"""What W&B's variables, its tags and a login file come to."""

import os

import pytest

from ssdistill.record.tracking_settings import TrackingSettings
from ssdistill.record.wandb_environment import (
    LONGEST_NAME,
    LONGEST_TAG,
    all_tags,
    has_key,
    run_arguments,
    tidy_environment,
    wandb_mode,
)

LOGIN = "machine {host} login user password {key}\n"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch, tmp_path):
    """No variable of W&B's, no login and no home of the user who runs the tests."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"])
def test_either_variable_is_a_key_and_an_empty_one_is_none(monkeypatch, name):
    assert not has_key()
    monkeypatch.setenv(name, " ")
    assert not has_key()
    monkeypatch.setenv(name, "k")
    assert has_key()


def test_the_login_is_read_from_the_file_that_netrc_names(monkeypatch, tmp_path):
    (tmp_path / "login").write_text(LOGIN.format(host="api.wandb.ai", key="k"))
    monkeypatch.setenv("NETRC", str(tmp_path / "login"))
    assert has_key() and wandb_mode(TrackingSettings()) == "online"


def test_the_login_is_read_from_home_where_netrc_is_empty(monkeypatch, tmp_path):
    (tmp_path / ".netrc").write_text(LOGIN.format(host="api.wandb.ai", key="k"))
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", "")
    assert has_key()


@pytest.mark.parametrize("content", [LOGIN.format(host="api.wandb.ai", key='""'), "machine\n"])
def test_a_login_without_a_password_or_a_damaged_file_is_no_key(monkeypatch, tmp_path, content):
    (tmp_path / "login").write_text(content)
    monkeypatch.setenv("NETRC", str(tmp_path / "login"))
    assert not has_key() and wandb_mode(TrackingSettings()) == "offline"


def test_a_login_counts_for_its_own_server_alone(monkeypatch, tmp_path):
    (tmp_path / "login").write_text(LOGIN.format(host="wandb.lab.org", key="k"))
    monkeypatch.setenv("NETRC", str(tmp_path / "login"))
    assert not has_key()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.lab.org:8080/")
    assert has_key()


def arguments(tmp_path, **defaults):
    names = {"name": "n", "group": "g", "job_type": "j"} | defaults
    return run_arguments(TrackingSettings(), tmp_path, (), **names)


def test_names_of_ours_are_cut_to_what_wandb_takes_and_those_of_the_user_are_not(
    tmp_path, monkeypatch
):
    long = "x" * (LONGEST_NAME + 5)
    made = arguments(tmp_path, name=long, group=long)
    assert made["name"] == made["group"] == "x" * LONGEST_NAME
    monkeypatch.setenv("WANDB_NAME", long)
    monkeypatch.setenv("WANDB_RUN_GROUP", long)
    made = arguments(tmp_path)
    assert made["name"] == made["group"] == long


def test_tags_come_once_each_the_environments_first_and_as_long_as_wandb_takes(monkeypatch):
    monkeypatch.setenv("WANDB_TAGS", f"b,, a ,{'y' * (LONGEST_TAG + 1)}")
    assert all_tags(("a", "", "c")) == ["b", "a", "y" * LONGEST_TAG, "c"]


def test_empty_variables_and_empty_tags_are_taken_out_and_others_stay(monkeypatch):
    given = {"WANDB_NAME": " ", "WANDB_NOTES": "n", "WANDB_TAGS": f"a, ,{'y' * 70}", "OTHER": ""}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    tidy_environment()
    assert "WANDB_NAME" not in os.environ
    assert (os.environ["WANDB_NOTES"], os.environ["OTHER"]) == ("n", "")
    assert os.environ["WANDB_TAGS"] == f"a,{'y' * LONGEST_TAG}"


def test_tags_that_are_commas_alone_are_none(monkeypatch):
    monkeypatch.setenv("WANDB_TAGS", " ,, ")
    tidy_environment()
    assert "WANDB_TAGS" not in os.environ
