"""Two versions of a package from a real repository, and every way it may not have them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dynbench.harness.gate.errors import NothingToCompare, SettingsError
from dynbench.harness.gate.revision import find_repository, parse_range, resolve, versions

PACKAGE = "tinylib"


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    command = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def commit(folder: Path, version: int) -> str:
    (folder / PACKAGE).mkdir(exist_ok=True)
    (folder / PACKAGE / "__init__.py").write_text(f"VERSION = {version}\n")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", f"version {version}")
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q")
    for version in (1, 2):
        commit(folder, version)
    return folder


def imported(version) -> str:
    """What a process with the version's environment imports."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"import {PACKAGE}; print({PACKAGE}.VERSION)"],
        env={**os.environ, **version.environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_each_version_is_what_a_process_imports(repository):
    (repository / PACKAGE / "__init__.py").write_text("VERSION = 3\n")
    with versions(repository, "HEAD~1", PACKAGE) as (old, new):
        (repository / PACKAGE / "__init__.py").write_text("VERSION = 4\n")  # an edit meanwhile
        assert (imported(old), imported(new)) == ("1", "3")
        assert old.columns == {
            "git_commit": git(repository, "rev-parse", "HEAD~1"),
            "git_dirty": False,
        }
        assert new.columns == {
            "git_commit": git(repository, "rev-parse", "HEAD"),
            "git_dirty": True,
        }
        assert new.name.endswith(", changed)")
        assert old.digest != new.digest
    assert len(git(repository, "worktree", "list").splitlines()) == 1
    assert not old.folder.exists()


def test_two_revisions_and_one_against_itself(repository):
    with versions(repository, "HEAD~1..HEAD", PACKAGE) as (old, new):
        assert (imported(old), imported(new)) == ("1", "2")
    with versions(repository, "HEAD~1", PACKAGE, against_itself=True) as (old, new):
        assert old is new
        assert imported(old) == "1"
    with versions(repository, None, PACKAGE, against_itself=True) as (old, _):
        assert imported(old) == "2"
        assert not old.dirty


def test_a_range_is_what_it_says():
    assert parse_range(None) == ("", "")
    assert parse_range("v1") == parse_range("v1..") == ("v1", "")
    assert parse_range("v1..v2") == ("v1", "v2")
    assert parse_range("v1", against_itself=True) == ("v1", "")


@pytest.mark.parametrize(
    ("text", "itself", "complaint"),
    [
        ("", False, r"--rev '': names no revision, .* printed nothing .*git fetch --unshallow"),
        ("", True, "printed nothing"),
        (" \n", False, "printed nothing"),
        ("..v2", False, r"--rev \.\.v2: has no old side; write OLD\.\.NEW"),
        ("..", False, "has no old side"),
        ("v1...v2", False, r"--rev v1\.\.\.v2: three dots are no range here"),
        ("...", False, "three dots"),
        ("v1..v2", True, "--self-check measures one version against itself; name one revision"),
        ("v1..", True, "name one revision"),
    ],
)
def test_a_range_that_would_be_read_otherwise_is_refused(tmp_path, text, itself, complaint):
    """An empty one above all: the checkout against itself would always pass."""
    with (
        pytest.raises(SettingsError, match=complaint) as refusal,
        versions(tmp_path, text, PACKAGE, against_itself=itself),
    ):
        pass
    assert "\n" not in str(refusal.value)


def test_the_worktree_ends_with_an_error(repository):
    with pytest.raises(KeyboardInterrupt), versions(repository, "HEAD~1", PACKAGE):
        raise KeyboardInterrupt
    assert len(git(repository, "worktree", "list").splitlines()) == 1


def test_a_revision_that_is_not_there_names_the_fix(repository, tmp_path):
    with pytest.raises(NothingToCompare, match="git fetch origin nothing") as refusal:
        resolve(repository, "nothing")
    assert refusal.value.exit_code == 3
    shallow = tmp_path / "shallow"
    git(tmp_path, "clone", "-q", "--depth", "1", f"file://{repository}", str(shallow))
    with pytest.raises(NothingToCompare, match=r"git fetch --unshallow .*fetch-depth: 0"):
        resolve(shallow, "HEAD~1")
    with pytest.raises(NothingToCompare, match="'--all' is not in"):
        resolve(repository, "--all")


def test_a_revision_without_the_package(repository):
    (repository / PACKAGE / "__init__.py").unlink()
    (repository / "other").write_text("x")
    git(repository, "add", "-A")
    git(repository, "commit", "-q", "-m", "no package")
    with (
        pytest.raises(NothingToCompare, match=f"has no folder {PACKAGE}"),
        versions(repository, "HEAD..HEAD~1", PACKAGE),
    ):
        pass
    assert len(git(repository, "worktree", "list").splitlines()) == 1


def test_a_folder_that_is_no_checkout(tmp_path, repository):
    with pytest.raises(SettingsError, match="needs a git checkout"):
        find_repository(tmp_path, PACKAGE)
    with pytest.raises(SettingsError, match="measures the folder nothing"):
        find_repository(repository, "nothing")


def test_a_package_that_something_else_shadows_is_refused(repository, monkeypatch, tmp_path):
    """An import hook that wins over PYTHONPATH would measure one version twice."""
    hook = (
        "import sys\nfrom importlib.machinery import ModuleSpec\n"
        "class Hook:\n"
        "    def find_spec(name, path=None, target=None):\n"
        f"        if name == '{PACKAGE}':\n"
        "            return ModuleSpec(name, None, origin='elsewhere')\n"
        "sys.meta_path.insert(0, Hook)\n"
    )
    (tmp_path / "sitecustomize.py").write_text(hook)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with (
        pytest.raises(SettingsError, match="is not what Python imports"),
        versions(repository, "HEAD", PACKAGE),
    ):
        pass
