"""Lists that programs write out as text, in a cell of a table: as JSON, Python and numpy do."""

from __future__ import annotations

import ast
import json
import re
import warnings
from typing import Any

BEGINNING = re.compile(r"""[\[({]|[bB]['"]""")
PIECE = re.compile(
    r"""(?P<value>[bB]?'(?:[^'\\]|\\.)*'|[bB]?"(?:[^"\\]|\\.)*"|[\])}]|\b(?:None|nan)\b)"""
    r"""(?P<blank>\s+(?=[bB]?['"]|[\[({]|None\b|nan\b))?""",
    re.DOTALL,
)
"""A value or its end, with the blank behind it where another value follows without a comma."""
WRAPPERS = ("array", "np.array", "np.str_", "np.bytes_")
"""What numpy writes around values."""


def written_out(text: str) -> Any:
    """The list, record or bytes that a text writes out, such as `["a dog", null]`,
    `('a dog', 'a cat')` or numpy's `['a dog' 'a cat']`, sets as lists; None where it is none."""
    if not BEGINNING.match(text):
        return None
    try:
        return json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        pass
    with_commas = PIECE.sub(lambda m: m["value"] + ("," if m["blank"] else ""), text)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's, of backslashes
            value = _value(ast.parse(with_commas, mode="eval").body)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return value if isinstance(value, list | dict | bytes) else None


def _value(node: ast.expr) -> Any:
    """What an expression stands for.

    Raises:
        ValueError: it is no value, or of no use in a list.
    """
    match node:
        case ast.List() | ast.Tuple() | ast.Set():
            return [_value(inner) for inner in node.elts]
        case ast.Dict():
            names = [key and ast.literal_eval(key) for key in node.keys]
            return dict(zip(names, map(_value, node.values), strict=True))
        case ast.Call(args=[inner]) if ast.unparse(node.func) in WRAPPERS:
            return _value(inner)
        case ast.Name(id="nan"):
            return None
    return ast.literal_eval(node)
