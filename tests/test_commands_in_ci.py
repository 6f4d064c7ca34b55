"""Every ``dynbench`` command in workflows, ``.ci/run`` and the docs has options that exist.

A workflow runs elsewhere and on other days: an option that was renamed would be noticed too late.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from dynbench import cli

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
SCRIPT = ROOT / ".ci" / "run"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(path: Path) -> list[list[str]]:
    """Words after ``dynbench`` of each command at the start of a line; lines that begin with an
    option go on with the one before."""
    text = re.sub(r"(?: \\)?\n\s+--", " --", path.read_text(encoding="utf-8"))
    found = re.findall(r"^\s+(?:\.venv/bin/)?dynbench (.*)", text, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in found]


def parse(words: list[str]) -> dict[str, object]:
    """The options that the command line reads; raises the parser's own errors."""
    command = typer.main.get_command(cli.app)
    while subcommands := getattr(command, "commands", None):
        command = subcommands[words[0]]
        words = words[1:]
    context = command.context_class(command)
    options, *_ = command.make_parser(context).parse_args(list(words))
    return {name: value for name, value in options.items() if value is not None}


@pytest.mark.parametrize("path", [*WORKFLOWS, SCRIPT, *PAGES], ids=lambda path: path.name)
def test_every_command_parses(path):
    for words in commands(path):
        parse(words)


def test_an_unknown_option_would_be_found(tmp_path):
    (tmp_path / "x.yml").write_text(
        "  - run: >\n      .venv/bin/dynbench gate\n      --no-such x\n"
    )
    (words,) = commands(tmp_path / "x.yml")
    assert words == ["gate", "--no-such", "x"]
    with pytest.raises(Exception, match="no-such"):
        parse(words)


def test_ci_runs_both_gates():
    """The compile gate with the committed baseline; the speed gate against the merge base."""
    (compile_,) = [parse(words) for words in commands(SCRIPT)]
    assert compile_["compile_"] is True
    assert "baseline" not in compile_
    (speed,) = [parse(words) for path in WORKFLOWS for words in commands(path)]
    assert str(speed["rev"]).startswith("$(git merge-base ")
    assert "fetch-depth: 0" in (ROOT / ".github" / "workflows" / "speed.yml").read_text()


def test_workflows_name_stages_of_the_script():
    named = {
        stage
        for path in WORKFLOWS
        for line in re.findall(r"\.ci/run (.+)", path.read_text())
        for stage in line.split()
    }
    assert named == {"lint", "compile", "test"}
    assert named == set(re.findall(r"^run_(\w+)\(\)", SCRIPT.read_text(), re.MULTILINE))
