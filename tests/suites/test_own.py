import pytest

from dynbench.suites.own import read_own_provider
from dynbench.suites.shapes import UsageError


def write(tmp_path, text, name="my_kernel.py"):
    path = tmp_path / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "text",
    [
        "def attention(q, k, v): return q",
        "from kernels import attention",
        "from kernels import fast as attention",
        "from kernels import *",
        "attention = lambda q, k, v: q",
        "try:\n    from a import attention\nexcept ImportError:\n    from b import attention",
    ],
)
def test_files_that_bind_attention_are_dense_by_default(tmp_path, text):
    own = read_own_provider(write(tmp_path, text))
    assert (own.name, own.computes) == ("my_kernel", "dense")


@pytest.mark.parametrize("text", ["REFERENCE = 'nsa'", "REFERENCE: str = 'nsa'"])
def test_reference_is_read_without_running_the_file(tmp_path, text):
    body = f"{text}\ndef attention(q, k, v, gates, config): return q\nraise SystemExit(3)\n"
    assert read_own_provider(write(tmp_path, body)).computes == "nsa"


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("def attend(q, k, v): return q", "my_kernel.py", "has no function attention"),
        ("class A:\n    def attention(self): ...", "my_kernel.py", "has no function attention"),
        ("def attention(q, k, v:", "my_kernel.py", "my_kernel.py line 1: "),
        ("REFERENCE = 'nas'\ndef attention(): ...", "my_kernel.py", "REFERENCE = 'nas' must be"),
        ("REFERENCE = x\ndef attention(): ...", "my_kernel.py", "REFERENCE = 'x' must be"),
        ("def attention(): ...", "sdpa.py", "'sdpa' is built in"),
        ("def attention(): ...", "my:kernel.py", "name it like my_kernel.py"),
        ("def attention(): ...", "my_kernel.txt", "name it like my_kernel.py"),
    ],
)
def test_broken_files_get_one_line(tmp_path, text, name, message):
    with pytest.raises(UsageError, match=message) as error:
        read_own_provider(write(tmp_path, text, name))
    assert "\n" not in str(error.value)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"absent\.py is not a file"):
        read_own_provider(tmp_path / "absent.py")
