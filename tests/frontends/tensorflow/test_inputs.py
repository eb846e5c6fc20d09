from types import SimpleNamespace

import pytest

from planish.errors import InputError, ModelError
from planish.frontends.tensorflow.inputs import ANY_SIZE, ModelInput, equal_sizes, input_types
from planish.graph.dims import symbol
from planish.graph.graph import DimRange
from planish.graph.types import DType


def image(name="image/in", shape=(None, None, None, 3), dtype=DType.FLOAT32):
    return ModelInput(name, f"{name}:0", shape, dtype)


def profile(*shapes):
    return SimpleNamespace(**dict(zip(("min", "opt", "max"), shapes, strict=True)))


def test_unknown_dimensions_get_names():
    types, ranges = input_types([image()])
    names = ["N", "image_in_1", "image_in_2"]
    assert types["image/in"].shape == (*map(symbol, names), 3)
    assert ranges == dict.fromkeys(names, ANY_SIZE)


def test_names_stay_distinct_and_are_identifiers():
    types, ranges = input_types([image("a/b"), image("a_b"), image("9")])
    assert len(ranges) == 1 + 3 * 2
    assert all(name.isidentifier() for name in ranges)
    assert types["a/b"].shape[1] != types["a_b"].shape[1]


@pytest.mark.parametrize("shape", [(1, 8, 8, 3), [1, 8, 8, 3], SimpleNamespace(shape=(1, 8, 8, 3))])
def test_given_shape(shape):
    types, ranges = input_types([image()], {"image/in:0": shape})
    assert types["image/in"].shape == (1, 8, 8, 3)
    assert ranges == {}


def test_profile():
    given = profile((1, 8, 8, 3), (4, 8, 16, 3), (9, 8, 32, 3))
    types, ranges = input_types([image(), image("other")], {"image/in": given})
    assert types["image/in"].shape == (symbol("N"), 8, symbol("image_in_2"), 3)
    assert ranges["N"] == DimRange(1, 4, 9)
    assert ranges["image_in_2"] == DimRange(8, 16, 32)
    assert types["other"].shape[0] == symbol("N")


def test_profiles_that_disagree():
    one, two = profile((1,), (2,), (3,)), profile((1,), (2,), (4,))
    items = [image("a", (None,)), image("b", (None,))]
    assert input_types(items, {"a": one, "b": one})[1] == {"N": DimRange(1, 2, 3)}
    with pytest.raises(InputError, match="disagree"):
        input_types(items, {"a": one, "b": two})


@pytest.mark.parametrize(
    "shape",
    [5, "abc", (1, 2), (1, 8, 8, 2.5), (1, 8, 8, "no name"), (1, -3, 8, 3), (1, object(), 8, 3)],
)
def test_malformed_shapes(shape):
    with pytest.raises(InputError) as caught:
        input_types([image()], {"image/in": shape})
    assert caught.value.cure


@pytest.mark.parametrize("shapes", [((1,), (2,), (3,)), ((4,) * 4, (2,) * 4, (8,) * 4)])
def test_malformed_profiles(shapes):
    with pytest.raises(InputError, match="profile"):
        input_types([image()], {"image/in": profile(*shapes)})


def test_inputs_that_cannot_be():
    with pytest.raises(ModelError, match="unknown number"):
        input_types([image(shape=None)])
    with pytest.raises(ModelError, match="element type"):
        input_types([image(dtype=None)])
    assert input_types([image(shape=None)], {"image/in": (1, None)})[0]["image/in"].rank == 2


def test_equal_sizes():
    tokens, mask = image("tokens", (None, None)), image("mask", (None, None, 1))
    assert equal_sizes([tokens, mask]) == {
        "tokens": (None, "length_1"),
        "mask": (None, "length_1", 1),
    }
    assert equal_sizes([tokens, mask], {"mask": (4, 5, 1)}) is None
    assert equal_sizes([tokens, image("score", (None, 7))]) is None
