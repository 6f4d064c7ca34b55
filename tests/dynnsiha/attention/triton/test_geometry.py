"""Tables of packed sequences, against counting one by one."""

from itertools import accumulate, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("triton")
from dynnsiha.attention.triton.geometry import COLUMNS, geometry_of

sizes = st.sampled_from([1, 2, 3, 16])


@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(any),
    tile=sizes,
    block=sizes,
    window=st.integers(1, 20),
    stride=st.integers(1, 8),
    span=st.integers(1, 50),
    most=st.none() | st.integers(1, 30),
)
def test_every_table_counts_each_sequence_from_its_own_start(
    lengths, tile, block, window, stride, span, most
):
    bounds = (0, *accumulate(lengths))
    geometry = geometry_of(bounds, block, window, stride, tile, torch.device("cpu"))
    programs, window_programs, tiles, window_rows, block_rows = [], [], [], [], []
    first_block = first_window = first_tile = 0
    for number, (start, end) in enumerate(pairwise(bounds)):
        length = end - start
        windows = [first for first in range(0, length, stride) if first + window <= length]
        line = [start, end, first_block, first_window, first_tile, number]
        last = end if most is None else min(end, start + most)
        programs += [[row, *line] for row in range(start, last, span)]
        window_programs += [[i, *line] for i in range(0, len(windows), span)]
        tiles += [first_tile + token // tile for token in range(length)]
        window_rows += [start + first for first in windows]
        block_rows += list(range(start, end, block))
        first_block += len(range(0, length, block))
        first_window += len(windows)
        first_tile += len(range(0, length, tile))
    assert (geometry.blocks, geometry.windows, geometry.tiles) == (
        first_block,
        first_window,
        first_tile,
    )
    assert geometry.first_rows == [*block_rows, bounds[-1]]
    for table, wanted, columns in (
        (geometry.programs(span, most), programs, COLUMNS),
        (geometry.window_programs(span), window_programs, COLUMNS),
    ):
        assert table.dtype == torch.int32
        assert table.shape == (len(wanted), columns)
        assert table.tolist() == wanted
    assert geometry.window_rows().dtype == torch.int32
    assert geometry.window_rows().tolist() == window_rows
    assert geometry.tile_of_token().tolist() == tiles


def test_the_default_device_is_no_matter():
    with torch.device("meta"):
        geometry = geometry_of((0, 5, 9), 2, 2, 1, 1, torch.device("cpu"))
        assert (geometry.blocks, geometry.windows, geometry.tiles) == (5, 7, 9)
        assert geometry.programs(4).tolist() == [
            [0, 0, 5, 0, 0, 0, 0],
            [4, 0, 5, 0, 0, 0, 0],
            [5, 5, 9, 3, 4, 5, 1],
        ]
        assert geometry.tile_of_token().tolist() == list(range(9))
