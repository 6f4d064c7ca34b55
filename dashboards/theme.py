"""Colours, markers, dashes, and plotly's light and dark templates.

Colour is a function of the provider's base name alone (``sdpa`` of ``sdpa:cudnn``), from palettes
that readers with any colour vision can tell apart: Okabe and Ito's for what most reports show, Paul
Tol's for forms that few do. Marker and dash tell a provider's variants apart, and markers the
providers too, so that nothing rests on colour only.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import plotly.graph_objects as go

OKABE_ITO = {
    "black": "#000000",
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "green": "#009E73",
    "yellow": "#F0E442",
    "blue": "#0072B2",
    "vermillion": "#D55E00",
    "purple": "#CC79A7",
}

TOL = {
    "indigo": "#332288",
    "teal": "#44AA99",
    "olive": "#999933",
    "wine": "#882255",
    "magenta": "#AA4499",
}

_KNOWN = {
    "sdpa": OKABE_ITO["blue"],
    "flash": OKABE_ITO["orange"],
    "flex": OKABE_ITO["sky"],
    "nsa": OKABE_ITO["green"],
    "dynsiha": OKABE_ITO["purple"],
    "dynnsiha": OKABE_ITO["vermillion"],
    "fla": OKABE_ITO["yellow"],
    "sliding": TOL["olive"],
    "dimension": TOL["indigo"],
    "flat": TOL["teal"],
    "recursive": TOL["wine"],
    "transformer": TOL["magenta"],
}
# A user's own providers never look like a built-in one; markers tell them apart.
_OWN = OKABE_ITO["black"]

SWAPS = {
    "light": {OKABE_ITO["yellow"]: "#9A8C00"},
    "dark": {
        OKABE_ITO["black"]: "#F4F6F8",
        TOL["indigo"]: "#8F84E0",
        TOL["wine"]: "#E5325F",
    },
}
"""Palette colours that the page replaces in one theme, where they could not be seen."""

DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
_FIRST_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "pentagon", "star", "hourglass")
SYMBOLS = (*_FIRST_SYMBOLS, "triangle-down", "bowtie", "triangle-left", "triangle-right")
STYLE_COUNT = len(DASHES) * len(SYMBOLS)
"""Styles of a provider that differ in dash or marker."""

PAGE_COLOURS = {
    "light": {"ink": "#17202B", "muted": "#5B6776", "grid": "#E3E7EC", "axis": "#B9C1CB"},
    "dark": {"ink": "#E8ECF1", "muted": "#9AA6B4", "grid": "#2A323D", "axis": "#465160"},
}
MAP_COLOURS = {
    "light": ("#F2A36E", "#F1F3F5", "#7DBBE6"),
    "dark": ("#9C4700", "#29313B", "#1B5F94"),
}
"""Slower, equal, faster: pale (dark) enough for the theme's ink on each of them."""

MUTED = "#7C8794"
"""Reference lines and notes: readable on both backgrounds."""

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


@dataclass(frozen=True)
class Style:
    """How one line is drawn."""

    colour: str
    dash: str
    symbol: str


def base_name(provider: str) -> str:
    """The provider without its variant: ``sdpa`` of ``sdpa:cudnn``."""
    return provider.split(":", 1)[0]


def colour_of(provider: str) -> str:
    """The colour of a provider's base name: the same in every figure and in every report."""
    return _KNOWN.get(base_name(provider), _OWN)


def style_of(provider: str, variant: int) -> Style:
    """The style of the ``variant``-th variant (from 0) of a provider's base name.

    The marker starts at one of the first ones, another for each base name (arrows on a line look
    like a direction); dash and marker advance together, and since their counts share no factor all
    STYLE_COUNT pairs pass before one comes again.
    """
    base = base_name(provider)
    first = list(_KNOWN).index(base) if base in _KNOWN else _digest(base)
    return Style(
        colour=colour_of(provider),
        dash=DASHES[variant % len(DASHES)],
        symbol=SYMBOLS[(first % len(_FIRST_SYMBOLS) + variant) % len(SYMBOLS)],
    )


def translucent(colour: str, alpha: float) -> str:
    """A hexadecimal colour as rgba with the opacity ``alpha``."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def template(theme: str) -> go.layout.Template:
    """Plotly's template for ``light`` or ``dark``."""
    colours = PAGE_COLOURS[theme]
    axis = {
        "gridcolor": colours["grid"],
        "linecolor": colours["axis"],
        "tickcolor": colours["axis"],
        "zeroline": False,
        "showline": True,
        "ticks": "outside",
        "ticklen": 4,
        "automargin": True,
        "title": {"font": {"size": 13, "color": colours["muted"]}, "standoff": 10},
        "tickfont": {"size": 12},
    }
    return go.layout.Template(
        layout={
            "font": {"family": FONT, "size": 13, "color": colours["ink"]},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "xaxis": axis,
            "yaxis": axis,
            "legend": {"bgcolor": "rgba(0,0,0,0)", "font": {"size": 12}},
            "hoverlabel": {
                "bgcolor": "#FFFFFF" if theme == "light" else "#1D242D",
                "bordercolor": colours["axis"],
                "font": {"family": FONT, "size": 12, "color": colours["ink"]},
                "align": "left",
            },
            "modebar": {
                "bgcolor": "rgba(0,0,0,0)",
                "color": colours["muted"],
                "activecolor": colours["ink"],
            },
            "annotationdefaults": {"font": {"size": 12, "color": colours["muted"]}},
        },
        data={
            "heatmap": [
                {
                    "colorscale": [[i / 2, colour] for i, colour in enumerate(MAP_COLOURS[theme])],
                    "textfont": {"color": colours["ink"]},
                    "colorbar": {"outlinewidth": 0, "tickfont": {"size": 12}},
                }
            ]
        },
    )


def _digest(text: str) -> int:
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:4], "big")
