"""Options as text. That a repeated command plans the same case is tested in tests/test_cli.py."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynbench.harness.gpus import Gpu
from dynbench.harness.sweep import SweepError
from dynbench.suites import request
from dynbench.suites.plan import PlanOptions, plan
from dynbench.suites.request import (
    choose_device,
    choose_gpus,
    choose_shapes,
    describe,
    overridden,
    parse_duration_s,
    parse_names,
    parse_numbers,
    parse_tiles,
    read_config,
    repeat_command,
    used_gpus,
    wanted_by,
)
from dynbench.suites.shapes import SHAPES, Shape, UsageError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("10m", 600), ("1.5h", 5400), (" 2 m ", 120), ("0.5s", 0.5)],
)
def test_durations(text, seconds):
    assert parse_duration_s(text, "--budget") == seconds


@pytest.mark.parametrize("text", ["", "0", "0m", "-5s", "10 minutes", "m", "1h30m", "nan", "inf"])
def test_bad_durations_name_option_and_example(text):
    with pytest.raises(UsageError, match=r"--budget: .*10m"):
        parse_duration_s(text, "--budget")


@given(st.lists(st.text("abc:-_", min_size=1), min_size=1))
def test_names_keep_their_order_and_lose_duplicates(names):
    assert parse_names(" , ".join(names), "--providers") == tuple(dict.fromkeys(names))


def test_no_option_is_no_list():
    assert parse_names(None, "--pass") is None
    assert parse_tiles(None) is None
    assert parse_numbers(None, "--private-blocks") is None
    with pytest.raises(UsageError, match="--pass"):
        parse_names(" , ", "--pass")


def test_tiles_and_numbers():
    assert parse_tiles("1,auto,16") == (1, "auto", 16)
    assert parse_numbers("0,2", "--private-blocks") == (0, 2)
    with pytest.raises(SweepError, match="--query-tile"):
        parse_tiles("0")


def test_shapes_by_name_or_by_numbers():
    assert choose_shapes(None, None, None, None, "cpu") is None
    assert choose_shapes("paper,gqa4", None, None, None, "cpu") == (SHAPES["paper"], SHAPES["gqa4"])
    assert choose_shapes(None, 8, None, None, "cpu") == (Shape("", 8, 8, 64),)
    assert choose_shapes(None, None, 4, None, "cuda") == (Shape("", 64, 4, 128),)
    assert choose_shapes(None, 8, 2, 32, "cuda") == (Shape("", 8, 2, 32),)
    with pytest.raises(UsageError, match="--shape"):
        choose_shapes("paper", 8, None, None, "cpu")


def test_the_device_is_what_is_there(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert choose_device(None) == choose_device("cpu") == "cpu"
    with pytest.raises(UsageError, match="no GPU"):
        choose_device("cuda")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert choose_device(None) == choose_device("cuda") == "cuda"
    assert choose_device("cpu") == "cpu"
    with pytest.raises(UsageError, match="unknown device 'cdua': did you mean 'cuda'"):
        choose_device("cdua")


def test_config_values_become_text(tmp_path):
    path = tmp_path / "sweep.toml"
    path.write_text('seq = 8192\nq_heads = 4\nsparsity = [0.5, 0.9]\nprovider-file = "a.py"\n')
    known = {"seq": False, "q-heads": False, "sparsity": False, "provider-file": True}
    assert read_config(path, known) == {
        "seq": "8192",
        "q-heads": "4",
        "sparsity": "0.5,0.9",
        "provider-file": ["a.py"],
    }


def test_config_that_is_not_text(tmp_path):
    path = tmp_path / "sweep.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"sweep\.toml"):
        read_config(path, {})


def test_the_timer_of_a_table_and_of_a_command(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    (case,) = plan(
        wanted_by({"timer": "graph", "seq": 128, "providers": "sdpa", "pass": "forward"})
    )
    assert case.timer == "graph"
    assert "--timer graph" in repeat_command(case)


def test_own_provider_is_named_by_its_command_alone(tmp_path):
    files = tuple(tmp_path / name for name in ("one.py", "two three.py"))
    for path in files[:1]:
        path.write_text("def attention(q, k, v): ...")
    cases = plan(PlanOptions((128,), "cpu", providers=("sdpa",), provider_files=files[:1]))
    commands = {case.provider: repeat_command(case, files) for case in cases}
    assert f"--provider-file {files[0]} " in commands["one"]
    assert "--provider-file" not in commands["sdpa"]
    assert "two" not in commands["one"]


def test_the_kind_of_work_in_one_line():
    cases = plan(PlanOptions((128, 256), "cpu", passes=("forward", "backward")))
    assert describe(cases) == (
        "attention backward in float32, attention forward in float32, heads (H/K/D) 1/1/64"
    )


@pytest.mark.parametrize(
    ("given", "gone"),
    [
        ({"q-heads"}, {"q-heads", "shape"}),
        ({"shape"}, {"shape", "q-heads", "kv-heads", "head-dim"}),
        ({"top-n"}, {"top-n", "sparsity"}),
        ({"sparsity"}, {"sparsity", "top-n"}),
        ({"seed"}, {"seed", "seeds"}),
        ({"seeds"}, {"seeds", "seed"}),
        ({"seq"}, {"seq"}),
        (set(), set()),
    ],
)
def test_a_command_line_overrides_what_excludes_it(given, gone):
    assert overridden(given) == gone


def test_further_words_of_a_command():
    (case,) = plan(PlanOptions((128,), "cpu", providers=("sdpa",)))
    assert repeat_command(case, how=["--quick"]) == repeat_command(case) + " --quick"


def test_a_table_of_options_is_the_request_that_the_command_line_makes():
    table = {"seq": [128, 256], "providers": "sdpa,nsa", "pass": ["forward"], "q-heads": 2}
    table |= {"sparsity": [0.5, 0.75], "device": "cpu", "query_tile": 16, "seed": 3}
    assert wanted_by(table) == PlanOptions(
        seq_lens=(128, 256),
        device="cpu",
        providers=("sdpa", "nsa"),
        passes=("forward",),
        shapes=(Shape("", 2, 2, 64),),
        query_tiles=(16,),
        sparsities=(0.5, 0.75),
        seed=3,
    )


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ({"sequence": "8k"}, "unknown key 'sequence': did you mean 'seq'"),
        ({"provider_files": "x.py"}, "provider_files"),
        ({"passes": "forward"}, "passes"),
        ({"quick": True}, "quick"),
        ({"seq": {"from": 1}}, "must be a value or a list of values"),
        ({"seed": "one"}, "must be a whole number"),
        ({"seed": True}, "must be a value"),
    ],
)
def test_a_table_of_other_things_is_refused(table, complaint):
    with pytest.raises(UsageError) as refusal:
        wanted_by({"device": "cpu", **table})
    assert complaint in str(refusal.value)


FOUND = [Gpu(0, "one", "aa"), Gpu(1, "two", "bb")]


@pytest.mark.parametrize(
    ("text", "indices"),
    [(None, []), ("all", [0, 1]), (" all ", [0, 1]), ("0", [0]), ("1,0", [1, 0]), ("1,1", [1])],
)
def test_gpus_are_named_by_number(text, indices, monkeypatch):
    monkeypatch.setattr(request, "visible_gpus", lambda: FOUND)
    assert [gpu.index for gpu in choose_gpus(text, None)] == indices


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2", "--gpus 2: no GPU 2, GPUs 0 to 1 are here; name those, or all"),
        ("0,7", "--gpus 0,7: no GPU 7, GPUs 0 to 1 are here; name those, or all"),
        ("x", "--gpus: cannot read 'x'; write for example 0,1 or all"),
        ("-1", "--gpus: cannot read '-1'; write for example 0,1 or all"),
        ("", "--gpus: is empty; write for example 0,1 or all"),
        ("0,,1", "--gpus: '0,,1' has an empty part; write for example 0,1 or all"),
    ],
)
def test_wrong_gpus_name_the_option_and_the_fix(text, message, monkeypatch):
    monkeypatch.setattr(request, "visible_gpus", lambda: FOUND)
    with pytest.raises((UsageError, SweepError)) as error:
        choose_gpus(text, "cuda")
    assert str(error.value) == message


def test_gpus_need_a_gpu_and_no_other_device(monkeypatch):
    monkeypatch.setattr(request, "visible_gpus", lambda: FOUND[:1])
    with pytest.raises(UsageError, match="--gpus 1: no GPU 1, only GPU 0 is here"):
        choose_gpus("1", None)
    with pytest.raises(UsageError, match="--gpus all: excludes --device cpu"):
        choose_gpus("all", "cpu")
    monkeypatch.setattr(request, "visible_gpus", list)
    with pytest.raises(UsageError, match="--gpus all: torch finds no GPU here"):
        choose_gpus("all", None)


def test_a_sweep_uses_the_first_gpu_unless_others_are_named(monkeypatch):
    monkeypatch.setattr(request, "visible_gpus", lambda: FOUND)
    assert used_gpus((), "cuda") == (FOUND[0],)
    assert used_gpus(FOUND[1:], "cuda") == (FOUND[1],)
    assert used_gpus((), "cpu") == ()


def test_branches_that_a_provider_lacks_are_asked_for_again():
    """The row is `unsupported`; without the option, other branches would be planned."""
    branches = ("compressed", "selected", "sliding")
    (case,) = plan(PlanOptions((128,), "cpu", providers=("fla",), branches=branches))
    assert "--branches compressed,selected,sliding" in repeat_command(case)
    (case,) = plan(PlanOptions((128,), "cpu", providers=("fla",)))
    assert "--branches compressed,selected " in repeat_command(case)
    (case,) = plan(PlanOptions((128,), "cpu", providers=("nsa",)))
    assert "--branches" not in repeat_command(case)
