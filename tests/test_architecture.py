"""The direction of dependence, and files that fit on a few screens."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

RAD = Path(__file__).parents[1] / "rad"
FILES = sorted(RAD.rglob("*.py"))

# Which parts of the library each part may import besides itself.
MAY_IMPORT = {
    "sketch": set(),
    "functional": {"sketch"},
    "nn": {"functional", "sketch"},
    "measure": {"functional", "nn", "sketch"},
    "budget": {"functional", "measure", "nn", "sketch"},
    "graph": {"sketch"},
    "pde": {"sketch"},
}
FOREIGN = {"experiments", "scripts", "hydra", "omegaconf", "pandas", "wandb", "torchvision", "mlxtend"}


def imported(source: str, package: str) -> set[str]:
    """Dotted names of everything a file of ``package`` imports, ``from a import b`` as ``a.b``."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *filter(None, [node.module])])
            names.update(f"{base}.{alias.name}" for alias in node.names)
    return names


def parts(names: set[str]) -> set[str]:
    """Parts of the library among dotted names."""
    return {name.split(".")[1] for name in names if name.startswith("rad.")}


def relative(path: Path) -> str:
    return path.relative_to(RAD.parent).as_posix()


def imports_of(path: Path) -> set[str]:
    return imported(path.read_text(encoding="utf-8"), ".".join(path.relative_to(RAD.parent).parent.parts))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import rad.nn", {"nn"}),
        ("from rad import sketch, nn", {"sketch", "nn"}),
        ("from rad.nn.convert import convert", {"nn"}),
        ("def f():\n    from ..nn import convert", {"nn"}),
        ("from . import kernels", {"sketch"}),
        ("import torch.nn", set()),
    ],
)
def test_imports_are_seen(source, expected):
    assert parts(imported(source, "rad.sketch")) == expected


@pytest.mark.parametrize("path", [p for p in FILES if p.parent != RAD], ids=relative)
def test_arrows_point_one_way(path):
    part = path.relative_to(RAD).parts[0]
    assert part in MAY_IMPORT, f"say in MAY_IMPORT what rad.{part} may use"
    assert parts(imports_of(path)) <= MAY_IMPORT[part] | {part}


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_library_knows_no_study(path):
    assert not {name.split(".")[0] for name in imports_of(path)} & FOREIGN


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_files_stay_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300
