"""Plotly's script, the page's own, and how text is packed into a page."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from functools import cache
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from dynbench.dashboards import theme
from dynbench.dashboards.cases import schema_json
from dynbench.dashboards.figures.samples import case_figures

_SCRIPTS = ("base.js", "plots.js", "filters.js", "cases.js", "drawer.js", "start.js")


def packed(text: str) -> str:
    """Text as gzip in base64; the same text gives the same bytes."""
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


def packed_json(value: Any) -> str:
    """A value as JSON, packed."""
    return packed(json.dumps(value, separators=(",", ":")))


@cache
def packed_plotly() -> str:
    """Plotly's script, packed."""
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode()


def licence() -> str:
    """The first comment of plotly's script: its version, copyright and licence."""
    comment = get_plotlyjs().partition("/*")[2].partition("*/")[0]
    words = (line.strip(" *") for line in comment.splitlines())
    return ". ".join(word for word in words if word).replace("--", "-")


@cache
def page_script() -> str:
    """The page's own script: its files in one function of its own."""
    parts = "\n".join(template_source(f"js/{name}") for name in _SCRIPTS)
    return f'"use strict";\n(() => {{\n{parts}\n}})();\n'


def policy(*scripts: str, files: bool = False) -> str:
    """Only these scripts run (plotly compiles code of its own); nothing is requested.

    ``files`` allows script files beside the page, too.
    """
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for text in scripts
    )
    beside = " 'self' file:" if files else ""
    return (
        f"default-src 'none'; script-src {hashes}{beside} 'unsafe-eval'; "
        "style-src 'unsafe-inline'; img-src data: blob:"
    )


@cache
def settings_json() -> Markup:
    """What the script needs beside the data: themes, the schema, the drawer's figure."""
    themes = {
        name: {"template": theme.template(name).to_plotly_json(), "swaps": theme.SWAPS[name]}
        for name in ("light", "dark")
    }
    return script_json(
        {
            "themes": themes,
            "schema": schema_json(),
            "caseFigures": [figure.json for figure in case_figures()],
        }
    )


def script_json(value: Any) -> Markup:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


@cache
def environment() -> jinja2.Environment:
    """The templates, every string of data escaped."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("dynbench.dashboards", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )


def template_source(name: str) -> str:
    """The text of a template or of a file beside them."""
    held = environment()
    assert held.loader is not None
    return held.loader.get_source(held, name)[0]
