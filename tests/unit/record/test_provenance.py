import getpass
import json
import platform
import subprocess
from pathlib import Path

import pytest

from ssdistill.record import provenance as room
from ssdistill.record.provenance import (
    describe_hardware,
    describe_versions,
    git_state,
    package_versions,
    provenance,
)


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True)


@pytest.fixture
def repository(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / "ssdistill").mkdir()
    (tmp_path / "ssdistill" / "a.py").write_text("x = 1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    return tmp_path


def test_clean_repository_has_a_sha_and_no_diff(repository):
    state = git_state(repository)
    assert len(state["sha"]) == 40
    assert (state["dirty"], state["diff_sha256"]) == (False, None)


def test_a_repository_is_the_same_through_a_link(repository, tmp_path_factory):
    link = tmp_path_factory.mktemp("elsewhere") / "link"
    link.symlink_to(repository, target_is_directory=True)
    assert git_state(link) == git_state(repository) is not None


def test_changed_line_and_new_source_file_are_dirty_and_tell_apart(repository):
    (repository / "ssdistill" / "a.py").write_text("x = 2\n")
    changed = git_state(repository)
    (repository / "ssdistill" / "b.py").write_text("y = 1\n")
    added = git_state(repository)
    (repository / "ssdistill" / "b.py").write_text("y = 2\n")
    edited = git_state(repository)
    assert changed["dirty"] and added["dirty"] and edited["dirty"]
    assert len({s["diff_sha256"] for s in (changed, added, edited)}) == 3


def test_results_lying_about_do_not_make_the_code_dirty(repository):
    (repository / "runs").mkdir()
    (repository / "runs" / "run.json").write_text("{}")
    assert not git_state(repository)["dirty"]


def test_outside_git_and_inside_another_repository_there_is_no_state(tmp_path, repository):
    site_packages = repository / "venv" / "site-packages"
    site_packages.mkdir(parents=True)
    assert git_state(site_packages) is None
    assert git_state(Path("/")) is None


def test_missing_git_is_no_error(repository, monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError("git")

    monkeypatch.setattr(room.subprocess, "run", missing)
    assert git_state(repository) is None


def test_facts_name_versions_and_hardware_but_no_place_or_person():
    facts = provenance()
    assert facts["packages"]["torch"] == package_versions(("torch",))["torch"]
    assert facts["hardware"]["cores"] >= 1
    assert facts["python"] == platform.python_version()
    text = json.dumps(facts)
    assert str(Path.home()) + "/" not in text
    assert str(Path(room.__file__).parents[2]) not in text
    for private in (platform.node(), getpass.getuser()):
        assert f'"{private}"' not in text


def test_facts_cannot_be_changed_through_a_copy():
    provenance()["packages"].clear()
    assert provenance()["packages"]


def test_packages_that_are_not_installed_are_left_out():
    assert package_versions(("numpy", "no-such-distribution-at-all")).keys() == {"numpy"}


def test_captions_are_one_phrase_and_empty_without_facts():
    facts = {
        "git": {"sha": "0123456789", "dirty": True},
        "packages": {"torch": "2.9", "lightly": "1.6"},
        "hardware": {"cpu": "Xeon", "cores": 2, "gpus": ["H200", "H200"]},
        "python": "3.12.1",
    }
    assert describe_hardware(facts) == "2x H200, 2 CPU cores (Xeon)"
    assert describe_versions(facts) == "commit 01234567 (modified), python 3.12.1, torch 2.9"
    assert describe_hardware({}) == describe_versions({}) == ""


def test_memory_is_pages_times_their_size_in_gib(monkeypatch):
    pages = {"SC_PHYS_PAGES": 3 * 2**18 + 1000, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(room.os, "sysconf", pages.__getitem__)
    assert room._memory_gib() == 3
