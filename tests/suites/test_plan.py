from dataclasses import replace

import pytest

from dynbench.suites.plan import PlanOptions, plan
from dynbench.suites.shapes import SHAPES, Shape, UsageError
from dynbench.suites.sparsity import solve_top_n

CPU = PlanOptions((8192, 32768), "cpu")
GPU = PlanOptions((8192,), "cuda")


def kinds(cases):
    return [
        (c.provider, c.settings.get("query_tile"), c.settings.get("private_blocks")) for c in cases
    ]


def test_cpu_default_states_exact_and_hybrid_lists():
    cases = plan(CPU)
    one_length = [
        ("sdpa", None, None),
        ("nsa", 1, 0),
        ("dynsiha", None, None),
        ("dynnsiha", 1, 0),
        ("dynnsiha", 16, 1),
    ]
    assert kinds(cases) == one_length * 2
    assert [c.workload["seq_len"] for c in cases] == [8192] * 5 + [32768] * 5
    case = cases[0]
    assert (case.suite, case.pass_, case.dtype, case.timer) == (
        "attention",
        "forward",
        "float32",
        "wall",
    )
    heads = (case.workload["q_heads"], case.workload["kv_heads"], case.workload["head_dim"])
    assert heads == (1, 1, 64)


def test_gpu_default_is_the_papers_shape_in_both_passes():
    cases = plan(GPU)
    assert {c.pass_ for c in cases} == {"forward", "backward"}
    assert {(c.dtype, c.timer, c.workload["q_heads"]) for c in cases} == {("bfloat16", "event", 64)}
    assert ("dynnsiha", 4, 1) in kinds(cases)


def test_dense_cases_carry_no_sparse_settings():
    case = plan(CPU)[0]
    assert dict(case.settings) == {"lists": "dense"}
    assert "model_dim" not in case.workload


def test_axes_apply_to_dynnsiha_alone_and_drop_duplicates():
    cases = plan(replace(CPU, seq_lens=(8192,), query_tiles=(1, 16), private_blocks=(0, 2)))
    tiles = [k for k in kinds(cases) if k[0] == "dynnsiha"]
    assert tiles == [("dynnsiha", 1, 0), ("dynnsiha", 16, 0), ("dynnsiha", 16, 2)]
    assert [k for k in kinds(cases) if k[0] == "nsa"] == [("nsa", 1, 0)]
    assert len({c.case_id for c in cases}) == len(cases)


def test_providers_share_a_workload_but_not_a_case():
    cases = plan(replace(CPU, seq_lens=(8192,)))
    assert len({c.workload_id for c in cases}) == 1
    assert len({c.case_id for c in cases}) == len(cases)


def test_private_blocks_are_clamped_to_what_top_n_leaves():
    options = replace(
        CPU, providers=("dynnsiha",), query_tiles=(16,), private_blocks=(2, 9), top_n=4
    )
    assert {c.settings["private_blocks"] for c in plan(options)} == {1}
    assert len(plan(options)) == 2  # one per length: both values clamp to the same case


def test_sparsity_solves_top_n_and_leaves_dense_alone():
    options = replace(CPU, seq_lens=(16384,), sparsities=(0.5, 0.75, 0.99))
    cases = plan(options)
    assert [c.provider for c in cases].count("sdpa") == 1
    nsa = [c for c in cases if c.provider == "nsa"]
    assert [c.settings["target_sparsity"] for c in nsa] == [0.5, 0.75, 0.99]
    solved = [solve_top_n(16384, 512, s) for s in (0.5, 0.75, 0.99)]
    assert [c.settings["top_n"] for c in nsa] == solved
    assert solved[-1] == 3  # out of reach, planned all the same


def test_branches_apply_to_sparse_providers_and_are_not_settings_otherwise():
    both = ("selected", "compressed")
    cases = plan(replace(CPU, seq_lens=(8192,), branches=both))
    named = {c.provider: (c.settings.get("branches"), c.settings.get("window")) for c in cases}
    assert named["sdpa"] == (None, None)
    assert named["nsa"] == named["dynnsiha"] == ("compressed,selected", 0)
    assert len({c.workload_id for c in cases}) == 1


def test_a_provider_without_a_branch_leaves_it_out_unless_it_is_asked_for():
    alone = replace(CPU, seq_lens=(8192,), providers=("nsa", "fla"))
    assert [c.settings.get("branches") for c in plan(alone)] == [None, "compressed,selected"]
    every = replace(alone, branches=("compressed", "selected", "sliding"))
    assert [c.settings.get("branches") for c in plan(every)] == [None, None]


def test_sparsity_is_solved_without_the_window_where_it_is_left_out():
    options = replace(CPU, seq_lens=(16384,), providers=("nsa",), sparsities=(0.9,))
    (case,) = plan(replace(options, branches=("selected",)))
    assert case.settings["top_n"] == solve_top_n(16384, 0, 0.9) > solve_top_n(16384, 512, 0.9)


def test_layer_cases_know_their_width():
    options = replace(GPU, suite="layer", shapes=(SHAPES["paper"], Shape("", 4, 2, 32)))
    widths = {c.workload["q_heads"]: c.workload["model_dim"] for c in plan(options)}
    assert widths == {64: 2560, 4: 128}
    assert {c.workload["inputs"] for c in plan(options)} == {"text"}
    assert plan(replace(options, model_dim=96))[0].workload["model_dim"] == 96


@pytest.mark.parametrize(("suite", "pass_"), [("generation", "decode"), ("training", "train_step")])
def test_model_cases_know_their_width_and_layers(suite, pass_):
    for base, layers, width in ((CPU, 2, 64), (GPU, 4, 2560)):
        cases = plan(replace(base, suite=suite))
        assert {case.pass_ for case in cases} == {pass_}
        assert {case.workload["layers"] for case in cases} == {layers}
        assert {case.workload["model_dim"] for case in cases} == {width}
        assert {case.workload["inputs"] for case in cases} == {"text"}
        assert cases[0].provider == "sdpa"
        assert {case.provider for case in cases} == {
            "sdpa",
            "nsa",
            "dynsiha",
            "dynnsiha",
            "flat",
            "recursive",
        }
    assert plan(replace(CPU, suite=suite, layers=7))[0].workload["layers"] == 7
    with pytest.raises(UsageError, match="layers=0: must be at least 1"):
        plan(replace(CPU, suite=suite, layers=0))
    with pytest.raises(UsageError, match="unknown pass 'forward'"):
        plan(replace(CPU, suite=suite, passes=("forward",)))


@pytest.mark.parametrize("suite", ["attention", "layer"])
def test_layers_are_of_models_alone(suite):
    assert all("layers" not in case.workload for case in plan(replace(CPU, suite=suite)))
    with pytest.raises(UsageError, match="layers=3: only the suites of models take it: generation"):
        plan(replace(CPU, suite=suite, layers=3))


def test_attention_alone_has_no_width_of_a_stream():
    with pytest.raises(UsageError, match="model_dim=96: suite attention begins at q, k and v"):
        plan(replace(CPU, model_dim=96))


def test_batch_is_the_shapes_unless_given():
    options = replace(CPU, shapes=(SHAPES["single"],))
    assert plan(options)[0].workload["batch"] == 8
    assert plan(replace(options, batch=3))[0].workload["batch"] == 3


def test_timers_are_the_devices_own():
    assert {c.timer for c in plan(replace(GPU, timer="graph"))} == {"graph"}
    ids = [{c.case_id for c in plan(replace(GPU, timer=name))} for name in ("event", "graph")]
    assert not ids[0] & ids[1]
    assert ids[0] == {c.case_id for c in plan(GPU)}


def test_own_files_stand_beside_the_others(tmp_path):
    for name, text in (("mine", ""), ("sparse", "REFERENCE = 'dynnsiha'")):
        (tmp_path / f"{name}.py").write_text(f"{text}\ndef attention(*operands): ...")
    files = (tmp_path / "mine.py", tmp_path / "sparse.py")
    cases = plan(replace(CPU, seq_lens=(64,), provider_files=files))
    assert kinds(cases)[-3:] == [("mine", None, None), ("sparse", 1, 0), ("sparse", 16, 1)]
    alone = plan(replace(CPU, seq_lens=(64,), providers=("mine",), provider_files=files[:1]))
    assert kinds(alone) == [("mine", None, None)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"suite": "layr"}, "unknown suite 'layr': did you mean 'layer'"),
        ({"providers": ("sdpaa",)}, "did you mean 'sdpa'"),
        ({"passes": ("backwards",)}, "did you mean 'backward'"),
        ({"device": "tpu"}, "unknown device"),
        ({"timer": "proton"}, "--timer proton needs a GPU: --device cpu takes --timer wall"),
        ({"timer": "grpah"}, "unknown timer 'grpah': did you mean 'graph'"),
        ({"dtype": "bfloat"}, "did you mean 'bfloat16'"),
        ({"inputs": "text"}, "suite attention takes inputs normal"),
        ({"seq_lens": ()}, "no sequence length"),
        ({"seq_lens": (0,)}, "seq_lens=0: must be at least 1"),
        ({"window": 0}, "window=0"),
        ({"batch": 0}, "batch=0"),
        ({"top_n": 2}, "top_n=2: must be at least 3"),
        ({"window": 10**20}, "at most 1099511627776"),
        ({"seed": -(10**20)}, "seed=-100000000000000000000: must be at most"),
        ({"private_blocks": (-1,)}, "private_blocks=-1"),
        ({"branches": ("selectd",)}, "unknown branch 'selectd': did you mean 'selected'"),
        ({"branches": ("compressed",)}, "branches=compressed: must have selected among them"),
        ({"query_tiles": (24,)}, "query_tile=24 does not divide blocks of 64: use 1, 2"),
        ({"sparsities": (1.5,)}, "sparsity=1.5"),
        ({"sparsities": (0.5,), "top_n": 16}, "exclude each other"),
    ],
)
def test_bad_requests_get_one_line(changes, message):
    with pytest.raises(UsageError, match=message) as error:
        plan(replace(CPU, **changes))
    assert "\n" not in str(error.value)


def test_two_files_of_one_name_are_refused(tmp_path):
    paths = [tmp_path / folder / "mine.py" for folder in "ab"]
    for path in paths:
        path.parent.mkdir()
        path.write_text("def attention(q, k, v): ...")
    with pytest.raises(UsageError, match="same name"):
        plan(replace(CPU, provider_files=tuple(paths)))
