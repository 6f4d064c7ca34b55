import pytest

from dynbench.harness.subject import Unavailable, Unsupported
from dynbench.suites.plan import PlanOptions, plan
from dynbench.suites.prepare import prepare
from dynbench.suites.providers.user_file import ProviderFileError


def case_of(**changes):
    options = {"seq_lens": (2048,), "device": "cpu", "providers": ("nsa",)} | changes
    return plan(PlanOptions(**options))[0]


def test_a_sparsity_out_of_reach_names_the_nearest():
    with pytest.raises(
        Unsupported, match=r"sparsity 0\.9 cannot be reached at T=2048.*nearest is 0\."
    ):
        prepare(case_of(sparsities=(0.9,)))


def test_a_sparsity_in_reach_is_measured_near_its_target():
    subject = prepare(case_of(seq_lens=(8192,), sparsities=(0.75,), window=64))
    subject.run()
    assert subject.facts()["sparsity"] == pytest.approx(0.75, abs=0.02)


@pytest.mark.parametrize("provider", ["flash", "flex"])
def test_what_needs_a_gpu_says_so(provider):
    with pytest.raises(Unavailable, match=f"{provider} needs a CUDA device"):
        prepare(case_of(providers=(provider,)))


def test_a_device_that_torch_does_not_see_is_unavailable(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(Unavailable, match="no CUDA device"):
        prepare(case_of(device="cuda"))


def test_both_suites_are_served():
    for suite in ("attention", "layer"):
        subject = prepare(case_of(suite=suite, seq_lens=(64,)))
        assert subject.check(subject.run()).passed
        assert subject.work.flops > 0
        assert subject.version.startswith("dynnsiha ")


def test_a_file_that_was_not_given_is_one_line(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def attention(q, k, v): return q")
    case = case_of(providers=("mine",), provider_files=(path,))
    with pytest.raises(ProviderFileError, match=r"no provider file named mine\.py"):
        prepare(case)
