"""The text of kernels: names that do not clash, blocks that are indented."""

from __future__ import annotations

from planish.targets.cuda.codegen.source import Source


def test_names_are_used_once():
    k = Source()
    names = [k.name(hint) for hint in ("x_1", "x", "x", "x", "x_1", "y")]
    assert len(set(names)) == len(names)
    assert names[1] == "x" and names[-1] == "y"


def test_text():
    k = Source()
    x = k.let("x", "tl.load(p0)")
    with k.block("for i in range(n0):"), k.block("if i > 3:"):
        k.line(f"{x} += 1")
    k.line(f"tl.store(p1, {x})")
    text = k.finish("kernel", 2, 1)
    assert text.endswith(
        "@triton.jit\n"
        "def kernel(p0, p1, n0):\n"
        "    x = tl.load(p0)\n"
        "    for i in range(n0):\n"
        "        if i > 3:\n"
        "            x += 1\n"
        "    tl.store(p1, x)\n"
    )
    assert Source().finish("nothing", 0, 0).endswith("def nothing():\n    pass\n")


def test_sums_are_settled_where_kernels_overlap() -> None:
    k = Source()
    with k.block("for step in range(2):"):
        k.line("total = tl.dot(a, b, total)")
        k.settle("total")
        k.settle("levels", "tl.int32")
    plain, compiled = k.finish("f", 0, 0), k.finish("f", 0, 0, threads=128)
    assert "inline_asm" not in plain
    lines = [line for line in compiled.splitlines() if "= tl.inline_asm" in line]
    line, other = lines
    assert '"=f,0", [total], dtype=tl.float32' in line
    assert '"=r,0", [levels], dtype=tl.int32' in other
    assert line.startswith("        total = tl.inline_asm_elementwise(")
    assert "[total]" in line


def test_kernels_that_overlap_ask_for_what_later_ones_read() -> None:
    k = Source()
    k.line("tl.store(p0, n0)")
    text = k.finish("f", 1, 1, threads=64)
    assert "def f(p0, n0, _ahead, _lines):" in text
    assert "tl.arange(0, 64)" in text and "prefetch.global.L2" in text
    assert text.index("gdc_wait") < text.index("tl.store") < text.index("prefetch")
    assert "_ahead" not in Source().finish("f", 1, 1)
