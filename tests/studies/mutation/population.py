"""Which mutants count: those of code in function bodies, without annotations."""

import ast
import warnings
from collections.abc import Iterator
from typing import NamedTuple

Position = tuple[int, int]


class Span(NamedTuple):
    """Lines and columns, the end left out, as Cosmic Ray counts them: lines from 1, columns from 0."""

    start: Position
    end: Position

    def holds(self, position: Position) -> bool:
        """Tell whether `position` is inside."""
        return self.start <= position < self.end


class Code:
    """The source of one module: which of its code is what a test runs."""

    def __init__(self, source: str) -> None:
        tree = ast.parse(source)
        self.annotations = [_span(node) for node in _annotations(tree)]
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        self.bodies = [Span(_span(node.body[0]).start, _span(node.body[-1]).end) for node in functions]
        # A clause ("except X:") has a header and a body as a statement has.
        self.statements = [
            (_span(node), _header(node)) for node in ast.walk(tree) if isinstance(node, ast.stmt | ast.excepthandler)
        ]

    def lines_at(self, position: Position) -> range:
        """Return the lines of the statement at `position`, none where it is outside functions or an annotation."""
        if not any(body.holds(position) for body in self.bodies):
            return range(0)
        if any(annotation.holds(position) for annotation in self.annotations):
            return range(0)
        around = [(span, header) for span, header in self.statements if span.holds(position)]
        _, header = max(around, key=lambda found: found[0].start)
        return header


def is_python(source: str) -> bool:
    """Tell whether `source` compiles: a mutant that does not is no test of the tests."""
    try:
        with warnings.catch_warnings():
            # "is" with a literal: what a mutant may well say.
            warnings.simplefilter("ignore", SyntaxWarning)
            compile(source, "mutant", "exec")
    except (SyntaxError, ValueError):
        return False
    return True


def _span(node: ast.stmt | ast.expr | ast.excepthandler) -> Span:
    start, end = (node.lineno, node.col_offset), (node.end_lineno or node.lineno, node.end_col_offset or 0)
    for decorator in getattr(node, "decorator_list", ()):
        start = min(start, (decorator.lineno, decorator.col_offset - 1))
    return Span(start, end)


def _header(node: ast.stmt | ast.excepthandler) -> range:
    """Return the lines of a statement without those of the statements in it."""
    span = _span(node)
    body = getattr(node, "body", None)
    last = span.end[0] if not body else max(span.start[0], _span(body[0]).start[0] - 1)
    return range(span.start[0], last + 1)


def _annotations(tree: ast.AST) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation:
            yield node.annotation
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.returns:
            yield node.returns
