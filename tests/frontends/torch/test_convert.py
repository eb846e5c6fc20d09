"""PyTorch modules and exported programs against PyTorch itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import planish

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'planish[torch]'")
pytest.importorskip("onnxscript", reason="needs onnxscript: pip install 'planish[torch]'")


class Net(torch.nn.Module):
    """A convolution, dropout, a mean and a dense layer; two named outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.drop = torch.nn.Dropout(0.5)
        self.dense = torch.nn.Linear(8, 5)

    def forward(self, x, scale=None):
        y = torch.relu(self.conv(x))
        y = self.drop(y).mean((2, 3))
        if scale is not None:
            y = y * scale
        return {"logits": self.dense(y), "features": y}


class Words(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(20, 16)
        self.layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

    def forward(self, ids):
        return self.layer(self.table(ids))


def built(model, **options):
    return planish.build(model, tuning_seconds=0, progress=False, **options)


def same(have: np.ndarray, expected: torch.Tensor) -> None:
    np.testing.assert_allclose(have, expected.numpy(), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_module_with_a_changing_batch() -> None:
    torch.manual_seed(0)
    module = Net().train()
    module.dense.eval()
    engine = built(module, inputs={"x": ("N", 3, 10, 12)})
    assert module.training
    assert module.drop.training
    assert not module.dense.training
    assert [o.name for o in engine.outputs] == ["logits", "features"]
    assert str(engine.inputs[0].shape[0]) == "N"
    module.eval()
    for n in (1, 4):
        x = torch.randn(n, 3, 10, 12)
        have, expected = engine(x.numpy()), module(x)
        same(have["logits"], expected["logits"])
        same(have["features"], expected["features"])


@torch.no_grad()
def test_an_optional_input_and_a_profile() -> None:
    torch.manual_seed(1)
    module = Net().eval()
    profile = planish.Profile((1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8))
    engine = built(module, inputs={"scale": (8,), "x": profile})
    assert [i.name for i in engine.inputs] == ["x", "scale"]
    x, scale = torch.randn(3, 3, 8, 8), torch.randn(8)
    same(engine(x.numpy(), scale.numpy())["logits"], module(x, scale)["logits"])
    with pytest.raises(planish.ShapeError):
        engine(np.zeros((5, 3, 8, 8), np.float32), scale.numpy())


@torch.no_grad()
def test_integers_and_two_changing_dimensions() -> None:
    torch.manual_seed(2)
    module = Words().eval()
    spec = planish.TensorSpec(("N", "length"), "int64")
    engine = built(module, inputs={"ids": spec})
    for shape in ((1, 4), (3, 9)):
        ids = torch.randint(0, 20, shape)
        same(engine(ids.numpy()), module(ids))


@torch.no_grad()
def test_an_array_as_an_example() -> None:
    module = Words().eval()
    ids = np.arange(12).reshape(2, 6)
    engine = built(module, inputs={"ids": ids})
    assert engine.inputs[0].shape == (2, 6)
    same(engine(ids), module(torch.from_numpy(ids)))


@torch.no_grad()
def test_an_exported_program_and_its_file(tmp_path: Path) -> None:
    torch.manual_seed(3)
    module = Net().eval()
    x = torch.randn(2, 3, 8, 8)
    program = torch.export.export(module, (x,))
    expected = module(x)["logits"]
    same(built(program)(x.numpy())["logits"], expected)
    torch.export.save(program, tmp_path / "net.pt2")
    same(built(tmp_path / "net.pt2")(x.numpy())["logits"], expected)


@torch.no_grad()
def test_large_weights_go_through_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planish.frontends.torch.convert.LARGEST_MESSAGE", 0)
    module = Net().eval()
    x = torch.randn(2, 3, 8, 8)
    same(built(module, inputs={"x": x})(x.numpy())["logits"], module(x)["logits"])


class Masked(torch.nn.Module):
    """Attention with a trained mask: where that has a gradient, PyTorch computes it otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = torch.nn.Parameter(torch.randn(2, 1, 1))

    def forward(self, x, mask):
        heads = x.unflatten(2, (2, 8)).transpose(1, 2)
        attend = torch.nn.functional.scaled_dot_product_attention
        y = attend(heads, heads, heads, attn_mask=mask + self.bias)
        return y.transpose(1, 2).flatten(2)


def test_attention_with_a_mask_and_changing_sizes() -> None:
    module, x, mask = Masked(), torch.randn(3, 5, 16), torch.randn(3, 1, 5, 5)
    expected = module(x, mask).detach()
    inputs = {"x": ("N", "length", 16), "mask": ("N", 1, "length", "length")}
    same(built(module, inputs=inputs)(x.numpy(), mask.numpy()), expected)
    dynamic = torch.export.Dim.DYNAMIC
    sizes = {"x": {0: dynamic, 1: dynamic}, "mask": {0: dynamic, 2: dynamic, 3: dynamic}}
    program = torch.export.export(module, (x, mask), dynamic_shapes=sizes)
    same(built(program)(x.numpy(), mask.numpy()), expected)


def test_a_module_needs_inputs() -> None:
    with pytest.raises(planish.InputError, match="needs inputs=") as error:
        built(Net())
    assert '"x"' in error.value.cure


def test_an_unknown_input() -> None:
    with pytest.raises(planish.InputError, match="no input 'y'"):
        built(Net(), inputs={"y": (1, 3, 8, 8)})


def test_a_dimension_that_the_module_fixes() -> None:
    with pytest.raises(planish.ModelError, match="cannot trace Net"):
        built(Net(), inputs={"x": (1, "channels", 8, 8)})


def test_what_depends_on_data_cannot_be_traced() -> None:
    class Branch(torch.nn.Module):
        def forward(self, x):
            return x + 1 if x.sum() > 0 else x - 1

    with pytest.raises(planish.ModelError, match="cannot trace Branch"):
        built(Branch(), inputs={"x": (2,)})


def test_a_pickle_is_no_program(tmp_path: Path) -> None:
    torch.save(Net().state_dict(), tmp_path / "net.pth")
    with pytest.raises(planish.ModelError, match="not a model") as error:
        built(tmp_path / "net.pth")
    assert "torch.export" in error.value.cure
    (tmp_path / "net.pt2").write_bytes(b"PK nonsense")
    with pytest.raises(planish.ModelError, match="not an exported program"):
        built(tmp_path / "net.pt2")


def test_a_dtype_the_model_does_not_have() -> None:
    program = torch.export.export(Net().eval(), (torch.zeros(2, 3, 8, 8),))
    with pytest.raises(planish.InputError, match="is float32, not int64"):
        built(program, inputs={"x": planish.TensorSpec((2, 3, 8, 8), "int64")})
