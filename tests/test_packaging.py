"""What is installed, and with which versions."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FOLDERS = ("dynnsiha", "harness", "suites", "dashboards")


def name_of(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def test_every_package_is_installed_under_its_public_name():
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("__init__.py")
    }
    public = {name if name.startswith("dynnsiha") else f"dynbench.{name}" for name in found}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == public | {"dynbench"}


def test_no_module_is_left_out_for_want_of_an_init():
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            assert (path.parent / "__init__.py").exists(), path


@pytest.mark.parametrize("extra", ["", "test", "lint", "peers"])
def test_what_make_installs_is_pinned(extra):
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pins = {name_of(line) for line in text.splitlines() if re.match(r"[^#\s]+==\S+$", line)}
    project = PROJECT["project"]
    wanted = project["optional-dependencies"][extra] if extra else project["dependencies"]
    assert {name_of(requirement) for requirement in wanted} - {"dynbench"} <= pins
