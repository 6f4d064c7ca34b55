"""DeepEmbed: the formula, the ones that change nothing, and a table on disk to the last bit."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from dynnsiha import DeepEmbed
from dynnsiha.embedding import MappedTable, write_table

FORMS = ("1x", "4x")
every_form = pytest.mark.parametrize("form", FORMS)
WIDTH, VOCAB = 8, 50


def _layer(form: str, vocab: int = VOCAB, learned: bool = True) -> DeepEmbed:
    torch.manual_seed(0)
    layer = DeepEmbed(WIDTH, vocab, form=form)
    if learned:
        nn.init.normal_(layer.table.weight)
    return layer


def _input(batch: int = 2, seq_len: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, seq_len, WIDTH, generator=generator)
    return x, torch.randint(0, VOCAB, (batch, seq_len), generator=generator)


def _mapped(layer: DeepEmbed, path: Path) -> DeepEmbed:
    """A copy of the layer that reads its table from ``path``."""
    layer.write_table(path)
    mapped = copy.deepcopy(layer)
    mapped.map_table(path)
    return mapped


@every_form
def test_output_equals_the_formula_token_by_token(form):
    layer = _layer(form).double()
    x, ids = _input()
    x = x.double()
    y = layer(x, ids).detach()
    table, key, value = layer.table.weight, layer.key.weight, layer.value.weight
    assert table.shape == (VOCAB, WIDTH if form == "1x" else 4 * WIDTH)
    for b in range(2):
        for t in range(12):
            last = x[b, t - 1] if t else torch.zeros(WIDTH, dtype=torch.float64)
            k = (1 - layer.mix) * x[b, t] + layer.mix * last
            hidden = (key @ k).clamp(min=0) ** 2
            row = table[ids[b, t]]
            expected = (value @ hidden) * row if form == "1x" else value @ (hidden * row)
            torch.testing.assert_close(y[b, t], expected.detach())


@every_form
def test_ones_change_nothing(form):
    layer = _layer(form, learned=False)
    x, ids = _input()
    k = x + (torch.cat((torch.zeros(2, 1, WIDTH), x[:, :-1]), dim=1) - x) * layer.mix
    plain = nn.functional.relu(k @ layer.key.weight.T) ** 2 @ layer.value.weight.T
    torch.testing.assert_close(layer(x, ids), plain)
    assert torch.equal(layer(x, ids), layer(x, ids.flip(1)))
    mix = layer.mix.tolist()
    assert 0 == mix[0] < max(mix) < 1


@every_form
def test_the_id_decides_the_function(form):
    layer = _layer(form)
    x, ids = _input()
    other = ids.clone()
    other[:, 5] = (ids[:, 5] + 1) % VOCAB
    before, after = layer(x, ids), layer(x, other)
    changed = (before != after).any(dim=-1)
    assert changed[:, 5].all()
    assert int(changed.sum()) == 2


@every_form
@pytest.mark.parametrize("position", [1, 6, 11])
def test_later_tokens_never_change_earlier_outputs(form, position):
    layer = _layer(form)
    x, ids = _input()
    changed, other = x.clone(), ids.clone()
    changed[:, position:] = -3 * x[:, position:].flip(1)
    other[:, position:] = (ids[:, position:] + 7) % VOCAB
    before, after = layer(x, ids), layer(changed, other)
    assert torch.equal(before[:, :position], after[:, :position])
    assert not torch.equal(before[:, position:], after[:, position:])


@every_form
def test_a_shift_the_other_way_fails_that_check(form):
    layer = _layer(form)
    x, ids = _input()
    changed = x.clone()
    changed[:, 6:] += 1
    before, after = (layer(part.flip(1), ids.flip(1)).flip(1) for part in (x, changed))
    assert not torch.equal(before[:, :6], after[:, :6])


@every_form
def test_parts_continue_a_text(form):
    layer = _layer(form).double()
    x, ids = _input()
    x = x.double()
    whole = layer(x, ids)
    steps = [layer(x[:, :5], ids[:, :5])]
    for t in range(5, 12):
        steps.append(layer(x[:, t : t + 1], ids[:, t : t + 1], x[:, t - 1]))
    torch.testing.assert_close(torch.cat(steps, dim=1), whole)
    assert not torch.allclose(layer(x[:, 5:], ids[:, 5:]), whole[:, 5:])


@every_form
def test_gradients_reach_every_parameter_and_only_the_rows_in_use(form):
    layer = _layer(form)
    x, ids = _input()
    layer(x.requires_grad_(), ids).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name
    touched = layer.table.weight.grad.abs().sum(dim=-1).nonzero().flatten()
    assert set(touched.tolist()) <= set(ids.flatten().tolist())
    assert len(touched) > ids.unique().numel() / 2
    assert x.grad.isfinite().all()


# --- the table on disk ---


@every_form
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_mapped_equals_in_memory_bit_for_bit(form, dtype, tmp_path):
    layer = _layer(form)
    mapped = _mapped(layer, tmp_path / "table").to(dtype)
    layer.to(dtype)
    assert mapped.table.rows.dtype == torch.float32
    x, ids = _input()
    x = x.to(dtype)
    results = []
    for module in (layer, mapped):
        inputs = x.clone().requires_grad_()
        y = module(inputs, ids)
        parts = (module.mix, module.key.weight, module.value.weight)
        results.append((y, *torch.autograd.grad(y.float().square().sum(), (inputs, *parts))))
    for in_memory, on_disk in zip(*results, strict=True):
        assert torch.equal(in_memory, on_disk)


@every_form
def test_mapped_equals_in_memory_under_autocast(form, tmp_path):
    layer = _layer(form)
    mapped = _mapped(layer, tmp_path / "table")
    x, ids = _input()
    with torch.autocast("cpu", torch.bfloat16):
        in_memory, on_disk = layer(x, ids), mapped(x, ids)
    assert in_memory.dtype == torch.bfloat16
    assert torch.equal(in_memory, on_disk)
    exact = layer(x, ids)
    assert float(((in_memory.float() - exact).norm() / exact.norm()).detach()) < 0.03


def test_a_bfloat16_table_is_stored_as_it_is(tmp_path):
    layer = _layer("4x").bfloat16()
    mapped = _mapped(layer, tmp_path / "table")
    assert mapped.table.rows.dtype == torch.bfloat16
    assert os.path.getsize(tmp_path / "table") < VOCAB * 4 * WIDTH * 2 + 4096
    x, ids = _input()
    assert torch.equal(mapped(x.bfloat16(), ids), layer(x.bfloat16(), ids))


class _AllocatedBytes(TorchDispatchMode):
    """Bytes of all tensors that operations make while it is active, but for views of others."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        inputs = {a.untyped_storage().data_ptr() for a in args if isinstance(a, Tensor)}
        for made in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(made, Tensor) and made.untyped_storage().data_ptr() not in inputs:
                self.total += made.untyped_storage().nbytes()
        return result


def _held_bytes(layer: nn.Module) -> int:
    """Bytes that move to a device with the layer."""
    held = [*layer.parameters(), *layer.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in held)


@every_form
def test_memory_does_not_depend_on_the_size_of_a_mapped_table(form, tmp_path):
    x, ids = _input()
    held, allocated = {}, {}
    for vocab in (VOCAB, 20_000):
        layer = _layer(form, vocab)
        rows = layer.table.weight.numel() * 4
        in_memory = _held_bytes(layer)
        mapped = _mapped(layer, tmp_path / f"table{vocab}")
        with _AllocatedBytes() as counter:
            mapped(x, ids).square().sum().backward()
        held[vocab], allocated[vocab] = _held_bytes(mapped), counter.total
        assert in_memory - held[vocab] == rows
    assert held[VOCAB] == held[20_000]
    assert allocated[VOCAB] == allocated[20_000]
    with _AllocatedBytes() as counter:
        layer(x, ids).square().sum().backward()
    assert counter.total > rows  # the count does see a table's gradient


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_form
def test_device_memory_does_not_depend_on_the_size_of_a_mapped_table(form, tmp_path):
    x, ids = _input()
    peaks = []
    for vocab in (VOCAB, 200_000):
        write_table(tmp_path / "table", torch.ones(vocab, WIDTH * int(form[0])))
        torch.manual_seed(0)
        layer = DeepEmbed(WIDTH, vocab, form=form, table_file=tmp_path / "table").cuda()
        for _ in range(2):
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            y = layer(x.cuda(), ids)
            peak = torch.cuda.max_memory_allocated() - before
        peaks.append(peak)
        assert torch.equal(y, layer(x.cuda(), ids.cuda()))
    assert peaks[0] == peaks[1]


def test_the_table_stays_out_of_the_state(tmp_path):
    mapped = _mapped(_layer("4x"), tmp_path / "table")
    assert set(mapped.state_dict()) == {"mix", "key.weight", "value.weight"}
    torch.manual_seed(7)
    target = DeepEmbed(WIDTH, VOCAB, table_file=tmp_path / "table")
    x, ids = _input()
    assert not torch.equal(target(x, ids), mapped(x, ids))
    target.load_state_dict(mapped.state_dict())
    assert torch.equal(target(x, ids), mapped(x, ids))
    rows = target.table(torch.arange(VOCAB))
    target.reset_parameters()
    assert torch.equal(target.table(torch.arange(VOCAB)), rows)


def test_copies_map_the_file_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mapped = _mapped(_layer("1x", vocab=5000), Path("table"))  # 160 kB of table
    monkeypatch.chdir("/")
    x, ids = _input()
    pickled = pickle.dumps(mapped)
    assert len(pickled) < 4 * (mapped.key.weight.numel() + mapped.value.weight.numel()) + 8192
    for other in (copy.deepcopy(mapped), pickle.loads(pickled)):
        assert torch.equal(other(x, ids), mapped(x, ids))


def test_a_file_that_is_written_again_leaves_the_mapped_one_alone(tmp_path):
    layer = _layer("1x")
    mapped = _mapped(layer, tmp_path / "table")
    x, ids = _input()
    before = mapped(x, ids)
    nn.init.zeros_(layer.table.weight)
    layer.write_table(tmp_path / "table")
    assert torch.equal(mapped(x, ids), before)
    assert MappedTable(tmp_path / "table", VOCAB, WIDTH)(ids).abs().sum() == 0
    assert [path.name for path in tmp_path.iterdir()] == ["table"]


def test_a_table_in_a_safetensors_file_is_mapped_by_its_name(tmp_path):
    layer = _layer("4x", vocab=5000)
    save_file({"a": torch.zeros(3), "b": layer.table.weight.detach()}, tmp_path / "weights")
    mapped = copy.deepcopy(layer)
    mapped.map_table(tmp_path / "weights", name="b")
    x, ids = _input()
    for one in (mapped, copy.deepcopy(mapped), pickle.loads(pickle.dumps(mapped))):
        assert torch.equal(one(x, ids), layer(x, ids))
    for name, message in (("c", "holds no table 'c'"), ("a", "must be a float table of")):
        with pytest.raises(ValueError, match=message):
            mapped.map_table(tmp_path / "weights", name=name)
    with pytest.raises(FileNotFoundError, match="no such file"):
        mapped.map_table(tmp_path / "nothing", name="b")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_mapping_a_safetensors_file_reads_none_of_it(tmp_path):
    """In a process of its own: 256 MiB that are mapped do not become memory of the process."""
    script = """
import sys, re, torch
from safetensors.torch import save_file
from dynnsiha.embedding import MappedTable
from pathlib import Path
def peak():  # KiB, since the process began: ru_maxrss would count the parent's
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
if sys.argv[2] == "write":
    save_file({"table": torch.ones(2**16, 1024)}, sys.argv[1])
else:
    before = peak()
    table = MappedTable(sys.argv[1], 2**16, 1024, name="table")
    assert table(torch.tensor([5, 60_000])).sum() == 2048
    print(peak() - before)
"""
    path = str(tmp_path / "weights")
    grown = [
        subprocess.run(
            [sys.executable, "-c", script, path, what], check=True, capture_output=True, text=True
        ).stdout
        for what in ("write", "read")
    ]
    assert int(grown[1]) < 64 * 1024  # KiB


def test_rows_come_in_the_shape_of_the_ids(tmp_path):
    rows = torch.randn(VOCAB, 3)
    write_table(tmp_path / "table", rows)
    table = MappedTable(tmp_path / "table", VOCAB, 3)
    for ids in (torch.tensor(4), torch.tensor([3, 3, 0]), torch.zeros(2, 0, dtype=torch.long)):
        assert torch.equal(table(ids), rows[ids])
    with pytest.raises(IndexError):
        table(torch.tensor([VOCAB]))


@pytest.mark.parametrize("on_disk", [False, True])
@every_form
def test_checkpointing_and_compilation_repeat_the_gradients(form, on_disk, tmp_path):
    layer = _layer(form)
    if on_disk:
        layer = _mapped(layer, tmp_path / "table")
    # Rows on disk cut the graph: their number depends on the ids.
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=not on_disk)
    x, ids = _input()
    calls = (layer, lambda x, ids: checkpoint(layer, x, ids, use_reentrant=False), compiled)
    results = []
    for call in calls:
        inputs = x.clone().requires_grad_()
        y = call(inputs, ids)
        results.append((y, *torch.autograd.grad(y.sum(), (inputs, *layer.parameters()))))
    for eager, recomputed, traced in zip(*results, strict=True):
        assert torch.equal(eager, recomputed)
        torch.testing.assert_close(eager, traced)


@every_form
def test_float32_follows_float64_and_state_returns(form):
    source, target = _layer(form), DeepEmbed(WIDTH, VOCAB, form=form)
    x, ids = _input()
    target.load_state_dict(source.state_dict())
    assert torch.equal(source(x, ids), target(x, ids))
    double = target.double()(x.double(), ids)
    assert double.dtype == torch.float64
    torch.testing.assert_close(source(x, ids).double(), double, rtol=1e-4, atol=1e-5)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"):
        DeepEmbed(WIDTH, VOCAB, table_file=tmp_path / "missing")
    write_table(tmp_path / "small", torch.ones(VOCAB, WIDTH))
    with pytest.raises(ValueError, match=r"holds torch.float32 \[50, 8\]: must be .* \[50, 32\]"):
        DeepEmbed(WIDTH, VOCAB, table_file=tmp_path / "small")
    write_table(tmp_path / "whole", torch.ones(VOCAB, WIDTH, dtype=torch.long))
    with pytest.raises(ValueError, match=r"holds torch.int64 .*: must be a float table"):
        DeepEmbed(WIDTH, VOCAB, form="1x", table_file=tmp_path / "whole")
    torch.save({"rows": 1}, tmp_path / "state")
    with pytest.raises(ValueError, match=r"holds <class 'dict'>: must be"):
        DeepEmbed(WIDTH, VOCAB, table_file=tmp_path / "state")
    (tmp_path / "text").write_text("not a table")
    with pytest.raises(ValueError, match=r"text is no table: write one with write_table"):
        DeepEmbed(WIDTH, VOCAB, table_file=tmp_path / "text")
    (tmp_path / "short").write_bytes((tmp_path / "whole").read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"short is no table: write one with write_table"):
        DeepEmbed(WIDTH, VOCAB, table_file=tmp_path / "short")
    mapped = _mapped(_layer("1x"), tmp_path / "table")
    with pytest.raises(ValueError, match=r"the table is already the file .*table; copy that"):
        mapped.write_table(tmp_path / "other")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"d_model": 0}, r"d_model=0: must be at least 1"),
        ({"vocab": 0}, r"vocab=0: must be at least 1"),
        ({"form": "2x"}, r"form='2x': must be '1x' or '4x'"),
    ],
)
def test_bad_arguments_name_the_fix(arguments, message):
    with pytest.raises(ValueError, match=message):
        DeepEmbed(**{"d_model": 4, "vocab": 9} | arguments)


@pytest.mark.parametrize("on_disk", [False, True])
def test_bad_inputs_name_the_fix(on_disk, tmp_path):
    layer = _layer("1x")
    if on_disk:
        layer = _mapped(layer, tmp_path / "table")
    x, ids = _input()
    with pytest.raises(ValueError, match=r"ids has shape \(2, 11\): must be \[batch, seq_len\]"):
        layer(x, ids[:, :11])
    with pytest.raises(ValueError, match=r"ids has 50: the table has 50 rows, from 0; raise vocab"):
        layer(x, torch.full_like(ids, 50))
    with pytest.raises(ValueError, match=r"ids has -1: the table has 50 rows"):
        layer(x, torch.full_like(ids, -1))
    with pytest.raises(ValueError, match=r"previous has shape \(2, 1, 8\): must be"):
        layer(x, ids, x[:, :1])
