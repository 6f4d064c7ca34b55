import pytest

from dynbench.suites.shapes import SHAPES, Shape, UsageError, resolve_shape


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("paper", (64, 4, 128, 1)),
        ("gqa4", (32, 8, 128, 1)),
        ("headless", (32, 32, 128, 1)),
        ("single", (1, 1, 256, 8)),
        ("cpu", (1, 1, 64, 1)),
    ],
)
def test_named_shapes_are_those_of_the_design(name, heads):
    shape = resolve_shape(name)
    assert (shape.q_heads, shape.kv_heads, shape.head_dim, shape.batch) == heads


def test_every_shape_is_filed_under_its_name():
    assert all(name == shape.name for name, shape in SHAPES.items())


def test_unknown_shape_names_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'paper'"):
        resolve_shape("papr")


def test_heads_that_do_not_divide_name_the_fix_in_one_line():
    with pytest.raises(
        UsageError, match=r"kv_heads=4 .* q_heads=6: use one of 1, 2, 3, 6"
    ) as error:
        Shape("", 6, 4, 64)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("field", ["q_heads", "kv_heads", "head_dim", "batch"])
def test_numbers_below_one_are_refused(field):
    numbers = {"q_heads": 4, "kv_heads": 2, "head_dim": 8, "batch": 1} | {field: 0}
    with pytest.raises(UsageError, match=f"{field}=0"):
        Shape("", **numbers)


def test_width_defaults_to_all_heads():
    assert Shape("", 4, 2, 16).width == 64
    assert Shape("", 4, 2, 16, model_dim=48).width == 48
