"""``planish inspect``."""

from __future__ import annotations

from pathlib import Path

from planish.cli.stages import pass_names


def test_layers(cli, plan: Path) -> None:
    document = cli("inspect", plan, "--layers", "--json").document
    assert document["layers"]
    assert {"name", "origin", "tactic", "output", "share"} <= set(document["layers"][0])


def test_default_is_summary_and_layers(cli, plan: Path) -> None:
    outcome = cli("inspect", plan)
    assert outcome.code == 0
    assert "input  x: float32[N, 6]" in outcome.out
    assert "dense" in outcome.out


def test_profile_measures_every_layer(cli, plan: Path) -> None:
    layers = cli("inspect", plan, "--profile", "--batch", 4, "--json").document["layers"]
    assert all(layer["microseconds"] > 0 for layer in layers)
    assert abs(sum(layer["share"] for layer in layers) - 1) < 1e-6


def test_memory(cli, plan: Path) -> None:
    memory = cli("inspect", plan, "--memory", "--batch", 4, "--json").document["memory"]
    assert memory["weights"] >= (6 * 4 + 4) * 4
    assert memory["arena"] >= memory["largest live set"]


def test_a_fixed_batch_cannot_be_chosen(cli, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "fixed.plan"
    cli("build", model, "-o", path, "--input", "x=2x6", "--tuning-seconds", 0)
    outcome = cli("inspect", path, "--memory", "--batch", 4)
    assert outcome.code == 1
    assert "The batch of this engine is fixed" in outcome.err


def test_stages_of_a_model(cli, model: Path) -> None:
    imported = cli("inspect", model, "--graph", "--stage", "import")
    assert "# dense (Gemm)" in imported.out
    optimized = cli("inspect", model, "--graph").out
    assert optimized == cli("inspect", model, "--graph", "--stage", "passes").out
    assert optimized != imported.out
    assert "task " in cli("inspect", model, "--graph", "--stage", "tasks").out
    assert "steps" in cli(
        "inspect", model, "--graph", "--stage", "plan", "--tuning-seconds", 0
    ).out  # fmt: skip


def test_the_graph_after_one_pass(cli, model: Path) -> None:
    outcomes = [cli("inspect", model, "--graph", "--stage", name) for name in pass_names()]
    assert {o.code for o in outcomes} == {0, 1}
    for outcome in outcomes:
        assert ("graph small" in outcome.out) == (outcome.code == 0)
        assert ("changed nothing" in outcome.err) == (outcome.code == 1)


def test_unknown_stage(cli, model: Path, plan: Path) -> None:
    outcome = cli("inspect", model, "--graph", "--stage", "nonsense")
    assert outcome.code == 1
    assert "fold_constants" in outcome.err
    assert cli("inspect", plan, "--graph", "--stage", "import").code == 1


def test_a_plan_as_text(cli, plan: Path) -> None:
    text = cli("inspect", plan, "--graph", "--json").document["graph"]
    assert text.startswith("graph small(%x: f32[N, 6])")
    assert "at N=1: " in text
