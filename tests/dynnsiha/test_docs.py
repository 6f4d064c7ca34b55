"""The two pages name every public class and function, with every option that it has."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

import pytest

import dynnsiha

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [(DOCS / f"{page}.md").read_text(encoding="utf-8") for page in ("architecture", "learning")]
TEXT = "".join(PAGES)
WORDS = set(re.findall(r"\w+", TEXT))


@pytest.mark.parametrize("name", dynnsiha.__all__)
def test_it_stands_in_the_docs_with_its_options(name):
    public = getattr(dynnsiha, name)
    assert re.search(rf"\b{name}\b", TEXT)
    made = inspect.signature(public).parameters.values()
    options = {one.name for one in made if one.default is not inspect.Parameter.empty}
    if dataclasses.is_dataclass(public):
        options = {field.name for field in dataclasses.fields(public)}
    assert options - WORDS == set()
