import itertools
import math

import plotly.graph_objects as go
import pytest

from dynbench.dashboards import theme
from dynbench.suites.catalog import PROVIDERS

KNOWN = list(PROVIDERS)
PALETTE = [*theme.OKABE_ITO.values(), *theme.TOL.values()]


def test_colour_depends_on_the_base_name_only() -> None:
    assert theme.colour_of("sdpa") == theme.colour_of("sdpa:cudnn") == theme.colour_of("sdpa:math")
    assert len({theme.colour_of(name) for name in KNOWN}) == len(KNOWN)
    assert {theme.colour_of(name) for name in KNOWN} <= set(PALETTE)


def test_a_users_provider_never_looks_like_a_built_in_one() -> None:
    built_in = {theme.colour_of(name) for name in KNOWN}
    own = {theme.colour_of(f"kernel_{i}") for i in range(50)}
    assert own <= set(theme.OKABE_ITO.values())
    assert not own & built_in
    markers = {theme.style_of(f"kernel_{i}", 0).symbol for i in range(50)}
    assert markers == set(theme.SYMBOLS[:7])


def test_variants_differ_in_dash_and_marker() -> None:
    found = [theme.style_of("dynnsiha", i) for i in range(theme.STYLE_COUNT)]
    styles = {(style.dash, style.symbol) for style in found}
    assert len(styles) == theme.STYLE_COUNT == 66
    assert not {"circle", "hexagon"} <= set(theme.SYMBOLS), "alike at the size of a legend"


@pytest.mark.parametrize("name", ["light", "dark"])
def test_template_is_valid_and_transparent(name: str) -> None:
    template = theme.template(name)
    assert isinstance(template, go.layout.Template)
    assert template.layout.paper_bgcolor == "rgba(0,0,0,0)"


@pytest.mark.parametrize("name", ["light", "dark"])
def test_numbers_on_the_heat_map_have_contrast(name: str) -> None:
    (heat,) = theme.template(name).data.heatmap
    ink = _luminance(heat.textfont.color)
    stops = [colour for _, colour in heat.colorscale]
    for one, other in itertools.pairwise(stops):
        for part in (0, 0.25, 0.5, 0.75, 1):
            pairs = [(int(one[i : i + 2], 16), int(other[i : i + 2], 16)) for i in (1, 3, 5)]
            mixed = "#" + "".join(f"{round((1 - part) * a + part * b):02x}" for a, b in pairs)
            low, high = sorted([_luminance(mixed), ink])
            assert (high + 0.05) / (low + 0.05) >= 4.5


def _luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(("name", "page"), [("light", "#ffffff"), ("dark", "#161b22")])
def test_text_has_contrast(name: str, page: str) -> None:
    for key in ("ink", "muted"):
        values = sorted([_luminance(theme.PAGE_COLOURS[name][key]), _luminance(page)])
        assert (values[1] + 0.05) / (values[0] + 0.05) >= 4.5


@pytest.mark.parametrize("name", ["light", "dark"])
def test_no_two_providers_look_alike(name: str) -> None:
    """By their distance in CIELAB, as a theme draws them."""
    drawn = [theme.SWAPS[name].get(colour, colour) for colour in PALETTE]
    for one, other in itertools.combinations(map(_lab, drawn), 2):
        assert math.dist(one, other) > 12


def _lab(colour: str) -> tuple[float, float, float]:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    x = (0.4124 * r + 0.3576 * g + 0.1805 * b) / 0.9505
    y = 0.2126 * r + 0.7152 * g + 0.0722 * b
    z = (0.0193 * r + 0.1192 * g + 0.9505 * b) / 1.0888
    fx, fy, fz = (t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in (x, y, z))
    return 116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)


@pytest.mark.parametrize(("name", "page"), [("light", "#ffffff"), ("dark", "#161b22")])
def test_lines_can_be_seen(name: str, page: str) -> None:
    for colour in PALETTE:
        drawn = theme.SWAPS[name].get(colour, colour)
        values = sorted([_luminance(drawn), _luminance(page)])
        assert (values[1] + 0.05) / (values[0] + 0.05) >= 2.0
