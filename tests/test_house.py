"""Limits on functions and dataclasses that ruff has no rule for."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ROOT / "fastcnn", ROOT / "kernels" / "fastcnn_kernels"
MAX_LINES, MAX_POSITIONAL, MAX_FIELDS = 60, 5, 4
TORCH_SIGNATURES = {"depthwise_conv.py", "lrn.py", "reference.py"}
"""Operators, functions and layers with the positional parameters of torch's."""
TABLES = {"Depthwise"}
"""Dataclasses whose instances are rows of a table in the code."""


def nodes(kind: type) -> Iterator[tuple[Path, ast.AST]]:
    """Yield the nodes of a kind in all files but the kernels, which are unrolled and have many parameters."""
    for package in PACKAGES:
        for path in sorted(package.rglob("*.py")):
            if not path.name.endswith("_triton.py"):
                tree = ast.parse(path.read_text())
                yield from ((path, node) for node in ast.walk(tree) if isinstance(node, kind))


def place(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"  # type: ignore[attr-defined]


def test_functions_are_short():
    found = [
        place(path, node)
        for path, node in nodes(ast.FunctionDef)
        if node.end_lineno - node.lineno >= MAX_LINES  # type: ignore[attr-defined]
    ]
    assert not found


def test_many_parameters_are_keywords():
    found = [
        place(path, node)
        for path, node in nodes(ast.FunctionDef)
        if path.name not in TORCH_SIGNATURES and positional(node) > MAX_POSITIONAL
    ]
    assert not found


def positional(node: ast.AST) -> int:
    assert isinstance(node, ast.FunctionDef)
    names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
    return len([name for name in names if name not in ("self", "cls")])


def test_large_dataclasses_take_keywords():
    found = []
    for path, node in nodes(ast.ClassDef):
        assert isinstance(node, ast.ClassDef)
        decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
        fields = [
            line
            for line in node.body
            if isinstance(line, ast.AnnAssign) and "ClassVar" not in ast.unparse(line.annotation)
        ]
        is_dataclass = any("dataclass" in text for text in decorators)
        takes_keywords = any("kw_only=True" in text for text in decorators) or node.name in TABLES
        if is_dataclass and len(fields) > MAX_FIELDS and not takes_keywords:
            found.append(place(path, node))
    assert not found


def test_the_package_has_six_files_beside_its_packages():
    assert len([path for path in (ROOT / "fastcnn").iterdir() if path.suffix == ".py"]) <= 6


WRITES = {"write_text", "write_bytes", "savefig", "mkstemp", "NamedTemporaryFile"}
WRITERS = {
    "files.py",
    "data/sources/demo.py",  # a whole folder, renamed
    "runtime/shared.py",  # an anonymous file of this machine
    "setup/run_lock.py",  # its open file is the lock
}


def test_files_are_written_in_one_place():
    package = PACKAGES[0]
    found = [
        f"{path.relative_to(package)}:{node.lineno}"
        for path, node in nodes(ast.Call)
        if isinstance(node, ast.Call) and path.is_relative_to(package) and writes(node)
    ]
    assert [place for place in found if place.partition(":")[0] not in WRITERS] == []
    assert any(place.startswith("files.py:") for place in found)


def writes(call: ast.Call) -> bool:
    """Return whether a call writes a file by itself."""
    words = ast.unparse(call.func).split(".")
    modes = [a.value for a in (*call.args, *(k.value for k in call.keywords)) if isinstance(a, ast.Constant)]
    opens = words[-1] == "open" and words[0] != "tarfile"
    writes = any(isinstance(mode, str) and set(mode) <= set("wbax+") and mode != "b" for mode in modes)
    own = words[-1] in WRITES and words[0] != "files"
    return own or words == ["os", "replace"] or (opens and writes and modes != ["rb"])
