"""What a user's provider file declares, read without running it."""

from __future__ import annotations

import ast
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from dynbench.suites.catalog import PROVIDERS
from dynbench.suites.shapes import UsageError

REFERENCES = ("dense", "nsa", "dynnsiha")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class OwnProvider:
    """A user's provider file: its name (the file's stem), its path and what it computes."""

    name: str
    path: Path
    computes: str

    @property
    def version(self) -> str:
        """The file's name and a digest of its content, for the row."""
        return f"{self.path.name} sha256:{hashlib.sha256(self.path.read_bytes()).hexdigest()[:12]}"


def read_own_provider(path: Path) -> OwnProvider:
    """Read a provider file's declarations from its syntax alone; nothing in it runs.

    The file binds ``attention`` at its top level and may set ``REFERENCE`` to one of REFERENCES.
    Raises UsageError, one line, for a missing file, a syntax error, a missing ``attention``, an
    unknown REFERENCE and for a name that a built-in provider has.
    """
    name = path.stem
    if not path.is_file():
        raise UsageError(f"provider file {path} is not a file")
    if path.suffix != ".py" or not _NAME.fullmatch(name):
        raise UsageError(f"provider file {path.name}: name it like my_kernel.py")
    if name in PROVIDERS:
        raise UsageError(f"provider file {path.name}: {name!r} is built in, choose another name")
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, ValueError) as error:
        line = f" line {error.lineno}" if isinstance(error, SyntaxError) else ""
        message = error.msg if isinstance(error, SyntaxError) else str(error)
        raise UsageError(f"provider file {path.name}{line}: {message}") from None
    if not {"attention", "*"} & _bound_names(tree):
        raise UsageError(f"provider file {path.name} has no function attention(q, k, v)")
    computes = _constant(tree, "REFERENCE", default="dense")
    if computes not in REFERENCES:
        raise UsageError(
            f"provider file {path.name}: REFERENCE = {computes!r} must be "
            + " or ".join(map(repr, REFERENCES))
        )
    return OwnProvider(name, path, str(computes))


def _bound_names(tree: ast.Module) -> set[str]:
    """Names that the module's statements bind, also inside top-level if, try and with."""
    names: set[str] = set()
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names.update(alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        else:
            pending.extend(ast.iter_child_nodes(node))
    return names


def _constant(tree: ast.Module, name: str, default: object) -> object:
    """The literal last assigned to ``name`` at top level, as text if it is no literal."""
    value = default
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign) and node.value is not None:
            targets = [node.target]
        if not any(isinstance(t, ast.Name) and t.id == name for t in targets):
            continue
        expression = node.value  # type: ignore[attr-defined]
        try:
            value = ast.literal_eval(expression)
        except ValueError:
            value = ast.unparse(expression)
    return value
