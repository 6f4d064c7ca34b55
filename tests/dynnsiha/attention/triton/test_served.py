"""Unusual configurations: right if the backend takes them, else refused in one line.

What is refused names the setting, and "auto" takes another backend (``test_errors.py``).
"""

from dataclasses import replace

import pytest

from dynnsiha import NSAConfig

from .cases import LIGHT_EXACT, LIGHT_HYBRID, ON_GPU
from .lists_oracle import assert_lists
from .oracle import BACKEND, assert_accurate

LENGTH = 777 if ON_GPU else 200

ONE_OF = {
    "tile_scoring": NSAConfig(query_tile=16, private_blocks=1, top_n=5, tile_scoring="aggregate"),
    "block_size": NSAConfig(
        block_size=24, compress_block=24, compress_stride=24, top_n=6, window=50
    ),
    "block_size=32": NSAConfig(
        block_size=32, compress_block=32, compress_stride=32, top_n=6, query_tile=8
    ),
    "block_size=128": NSAConfig(
        block_size=128, compress_block=64, compress_stride=32, top_n=4, local_blocks=1
    ),
    "compress_block": NSAConfig(compress_block=48, compress_stride=16, top_n=5),
    "compress_stride": NSAConfig(compress_block=16, compress_stride=4, top_n=5),
    "private_blocks": NSAConfig(query_tile=16, private_blocks=5, top_n=9),
    "top_n": NSAConfig(top_n=200 if ON_GPU else 40),
    "window": NSAConfig(window=1, top_n=4),
    "window=10**9": NSAConfig(window=10**9, top_n=4),
    "window=2**31 - 30": NSAConfig(window=2**31 - 30, top_n=4),
    "init_blocks": NSAConfig(init_blocks=5, top_n=8),
    "local_blocks": NSAConfig(init_blocks=0, local_blocks=6, top_n=8),
    "query_tile": NSAConfig(query_tile=2, private_blocks=1, top_n=6),
}


@pytest.mark.parametrize("name", ONE_OF)
def test_right_or_refused(name):
    config = ONE_OF[name]
    kind = LIGHT_EXACT if config.query_tile == 1 else LIGHT_HYBRID
    case = replace(kind, config=config).at(LENGTH)
    inputs = case.inputs(structured=True)
    try:
        whole = assert_accurate(inputs, config, per_branch=False)
    except (ValueError, TypeError) as error:
        message = str(error)
        assert name.split("=")[0] in message
        assert BACKEND in message.lower()
        assert "\n" not in message
        return
    assert_lists(whole.aux, case, inputs)
