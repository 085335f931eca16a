"""What mypyc compiles to something else than Python does is not written in the modules that it compiles.

Each rule stands for a fault that was found, or that mypyc documents. Where one is in the way, say the same in
other words: the two forms of these modules have to behave alike.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.balancer import ROOT

PURE = {"len", "min", "max"}
# Attributes on the way to what nobody changes.
FROZEN = {"spec", "settings", "limits", "timeouts"}


def hot_modules() -> list[Path]:
    """The modules of `HOT` in setup.py."""
    for node in ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "HOT":
            return [ROOT / name for name in ast.literal_eval(node.value)]
    raise AssertionError("setup.py has no HOT")


def calls_in_slices(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """The bounds of a slice of a union (`bytes | memoryview`) are evaluated once for each of its types."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Slice):
            for inner in ast.walk(node):
                if isinstance(inner, ast.NamedExpr) or (
                    isinstance(inner, ast.Call) and ast.unparse(inner.func) not in PURE
                ):
                    yield inner.lineno, f"{ast.unparse(inner)} may be done twice"


def identity_of_values(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Floats, ints and tuples are unboxed: what comes back is another object."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Is | ast.IsNot):
            for side in (node.left, node.comparators[0]):
                constant = isinstance(side, ast.Constant) and side.value not in (None, True, False)
                if constant or isinstance(side, ast.Tuple) or ast.unparse(side) == "NEVER":
                    yield node.lineno, f"{ast.unparse(side)} is another object each time"


def endings_of_generators(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """A generator that is dropped before its end runs no `finally` and leaves no `with`."""
    for node in ast.walk(tree):
        if (isinstance(node, ast.Try) and node.finalbody) or isinstance(node, ast.With):
            for inner in ast.walk(node):
                if isinstance(inner, ast.Yield | ast.YieldFrom):
                    yield inner.lineno, "nothing is seen to where this generator is dropped here"


def beliefs(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """What was assigned to an attribute, or found in it, is believed (and checked: `TypeError`) until the
    function ends, though what it calls may change the attribute. A property or a local name is asked anew."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        nodes = list(ast.walk(function))
        calls = [node.lineno for node in nodes if isinstance(node, ast.Call)]
        believed = [
            (node.end_lineno or 0, path)
            for node in nodes
            if isinstance(node, ast.stmt)
            for path in narrowed(node)
        ]
        for node in nodes:
            for path in identified(node):
                for since, name in believed:
                    assert isinstance(node, ast.Compare)
                    if name == path and any(since < call < node.lineno for call in calls):
                        yield node.lineno, f"{path} is believed to be what it was in line {since}"


def narrowed(node: ast.stmt) -> Iterator[str]:
    """The attributes of which mypy knows more behind this statement."""
    if isinstance(node, ast.Assign):
        for target in node.targets:
            yield from attributes(target.elts if isinstance(target, ast.Tuple) else [target])
    elif isinstance(node, ast.If) and isinstance(
        node.body[-1], ast.Return | ast.Raise | ast.Continue | ast.Break
    ):
        for inner in ast.walk(node.test):
            yield from identified(inner)


def identified(node: ast.AST) -> Iterator[str]:
    """The attributes whose identity is asked for."""
    if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Is | ast.IsNot):
        yield from attributes([node.left, node.comparators[0]])


def attributes(expressions: list[ast.expr]) -> Iterator[str]:
    for expression in expressions:
        path = ast.unparse(expression)
        if isinstance(expression, ast.Attribute) and not FROZEN & {*path.split(".")}:
            yield path


RULES = (calls_in_slices, identity_of_values, endings_of_generators, beliefs)


@pytest.mark.parametrize("path", hot_modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_in_it_means_something_else_when_compiled(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = sorted(finding for rule in RULES for finding in rule(tree))
    assert not found, "\n".join(f"{path}:{line}: {why}" for line, why in found)


@pytest.mark.parametrize(
    "code",
    [
        "rest = data[take(4):]",
        "rest = data[(at := 4):]",
        "late = self.due is NEVER",
        "same = pair is (1, 2)",
        "def f(self):\n try:\n  yield 1\n finally:\n  self.close()",
        "def f(self):\n with self.lock:\n  yield from self.steps()",
        "def f(self, one):\n self.one = one\n self.run()\n if self.one is one:\n  self.end()",
        "def f(self):\n if self.one is not None:\n  return\n self.run()\n return self.one is None",
    ],
)
def test_the_rules_find_what_they_are_for(code: str) -> None:
    assert [finding for rule in RULES for finding in rule(ast.parse(code))]


def test_the_rules_leave_the_rest_alone() -> None:
    code = """
def f(self, spec):
    rest = self.data[min(4, len(self.data)) :]
    with self.lock:
        self.one = rest
    if self.one is None:
        self.run()
    if spec.idle is None:
        return
    self.run()
    return spec.idle is None
"""
    assert not [finding for rule in RULES for finding in rule(ast.parse(code))]
