"""Two versions of one package, each in a folder that a worker can import it from.

The package alone is taken from another revision: what measures it, and what is measured, stay the
same on both sides.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dynbench.harness.gate.errors import NothingToCompare, SettingsError


@dataclass(frozen=True)
class Version:
    """One version of the package: ``folder`` holds it, ``commit`` and ``dirty`` say what it is.

    ``digest`` is a hash of its files.
    """

    name: str
    folder: Path
    commit: str | None
    dirty: bool
    digest: str

    @property
    def environment(self) -> Mapping[str, str]:
        """What a process needs in its environment to import this version."""
        inherited = os.environ.get("PYTHONPATH")
        parts = [str(self.folder), *([inherited] if inherited else [])]
        return {"PYTHONPATH": os.pathsep.join(parts)}

    @property
    def columns(self) -> Mapping[str, object]:
        """Columns of a row that say which code was measured."""
        return {"git_commit": self.commit, "git_dirty": self.dirty}


def find_repository(folder: Path, package: str) -> Path:
    """The top of the checkout around ``folder``. Raises SettingsError where it is no checkout of
    the package."""
    done = _run("-C", str(folder), "rev-parse", "--show-toplevel")
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["git failed"])[0]
        raise SettingsError(f"--rev needs a git checkout, and {folder} is in none ({why})")
    top = Path(done.stdout.strip())
    if not (top / package).is_dir():
        raise SettingsError(
            f"--rev measures the folder {package} of a checkout, and {top} has none; "
            "change to a checkout that has it"
        )
    return top


def parse_range(text: str | None, *, against_itself: bool = False) -> tuple[str, str]:
    """The old and the new revision that ``--rev`` names; empty is the checkout.

    ``OLD`` and ``OLD..`` are compared with the checkout, and None is the checkout alone. Raises
    SettingsError for what would not be compared as it is written.
    """
    if text is None:
        return "", ""
    if not text.strip():
        raise SettingsError(
            f"--rev {text!r}: names no revision, as when the command that should have named it "
            "printed nothing (git merge-base does so in a shallow clone: run git fetch "
            "--unshallow); name one"
        )
    old, dots, new = text.partition("..")
    if new.startswith("."):
        raise SettingsError(
            f"--rev {text}: three dots are no range here; write OLD..NEW, with "
            "$(git merge-base A B) for OLD if that is meant"
        )
    if dots and not old:
        raise SettingsError(f"--rev {text}: has no old side; write OLD..NEW or OLD")
    if dots and against_itself:
        raise SettingsError(
            f"--rev {text}: --self-check measures one version against itself; name one revision"
        )
    return old, new


@contextlib.contextmanager
def versions(
    folder: Path, revision: str | None, package: str, *, against_itself: bool = False
) -> Iterator[tuple[Version, Version]]:
    """The old and the new version: ``OLD..NEW``, ``OLD`` and the checkout around ``folder``, or
    one version twice (the checkout where ``revision`` is None). See ``parse_range``.

    Raises SettingsError and NothingToCompare.
    """
    old, new = parse_range(revision, against_itself=against_itself)
    repository = find_repository(folder, package)
    with contextlib.ExitStack() as stack:

        def enter(name: str) -> Version:
            if not name:
                return stack.enter_context(working_tree(repository, package))
            return stack.enter_context(checked_out(repository, name, package))

        first = enter(old)
        yield first, first if against_itself else enter(new)


@contextlib.contextmanager
def checked_out(repository: Path, revision: str, package: str) -> Iterator[Version]:
    """The package as it was in ``revision``, in a git worktree that ends with the context.

    Raises NothingToCompare for a revision that is not in the repository, or has no such package.
    """
    commit = resolve(repository, revision)
    with tempfile.TemporaryDirectory(prefix="dynbench-gate-") as scratch:
        tree, folder = Path(scratch, "tree"), Path(scratch, "path")
        done = _run("-C", str(repository), "worktree", "add", "--detach", "--quiet", tree, commit)
        if done.returncode:
            raise SettingsError(
                f"--rev {revision}: git worktree add failed: {' '.join(done.stderr.split())}"
            )
        try:
            if not (tree / package).is_dir():
                raise NothingToCompare(f"revision {revision} has no folder {package}: take a later")
            folder.mkdir()
            (folder / package).symlink_to(tree / package, target_is_directory=True)
            name = f"{revision} ({commit[:10]})"
            version = Version(name, folder, commit, False, _digest(tree / package))
            _check_import(version, package)
            yield version
        finally:
            _run("-C", str(repository), "worktree", "remove", "--force", tree)


@contextlib.contextmanager
def working_tree(repository: Path, package: str) -> Iterator[Version]:
    """The package as it lies in the checkout now, copied: edits meanwhile change nothing."""
    with tempfile.TemporaryDirectory(prefix="dynbench-gate-") as scratch:
        skipped = shutil.ignore_patterns("__pycache__")
        shutil.copytree(repository / package, Path(scratch, package), ignore=skipped)
        commit = _run("-C", str(repository), "rev-parse", "HEAD").stdout.strip() or None
        changes = _run("-C", str(repository), "status", "--porcelain", "--", package).stdout
        dirty = bool(changes.strip())
        name = f"this checkout ({(commit or 'no commit')[:10]}{', changed' if dirty else ''})"
        version = Version(name, Path(scratch), commit, dirty, _digest(Path(scratch, package)))
        _check_import(version, package)
        yield version


def resolve(repository: Path, revision: str) -> str:
    """The commit that ``revision`` means. Raises NothingToCompare, and names the fix."""
    wanted = f"{revision}^{{commit}}"
    done = _run(
        "-C", str(repository), "rev-parse", "--verify", "--quiet", "--end-of-options", wanted
    )
    commit = done.stdout.strip()
    if done.returncode == 0 and commit:
        return commit
    shallow = _run("-C", str(repository), "rev-parse", "--is-shallow-repository").stdout.strip()
    if shallow == "true":
        raise NothingToCompare(
            f"revision {revision!r} is not here, this clone is shallow: run git fetch --unshallow "
            "(in a GitHub workflow, give actions/checkout fetch-depth: 0)"
        )
    raise NothingToCompare(
        f"revision {revision!r} is not in {repository}: run git fetch origin {revision}, or name "
        "another"
    )


def _digest(folder: Path) -> str:
    """Hash of the names and contents of all files, caches left out."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            found.update(f"{path.relative_to(folder)} {content}\n".encode())
    return found.hexdigest()[:16]


def _check_import(version: Version, package: str) -> None:
    """Raise SettingsError unless a worker would import this version and no other."""
    script = f"from importlib.util import find_spec; print(find_spec({package!r}).origin)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", script],
        env={**os.environ, **version.environment},
        capture_output=True,
        text=True,
    )
    found = done.stdout.strip()
    if done.returncode or not Path(found).is_relative_to(version.folder):
        raise SettingsError(
            f"--rev: {package} of {version.name} is not what Python imports ({found or 'nothing'});"
            " uninstall import hooks for it, or start Python without them"
        )


def _run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """git, which is told nothing by variables of a hook that this may run in."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_DIR")}
    clean = {k: v for k, v in clean.items() if k not in ("GIT_WORK_TREE", "GIT_INDEX_FILE")}
    try:
        return subprocess.run(
            ["git", *map(str, arguments)], capture_output=True, text=True, env=clean
        )
    except OSError as error:
        raise SettingsError(f"--rev needs git: {error.strerror}") from None
