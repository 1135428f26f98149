# SPDX-License-Identifier: MIT
"""The application ramdisk: the runtime's own modules and those of `attestation` that they import, and nothing else."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from .errors import BuildFailed
from .guest import Guest
from .initramfs import Tree, read_tree
from .rootfs import PACKAGES

SOURCE = Path(__file__).resolve().parent.parent  # holds the packages `attestation` and `enclave_image`
OURS = ("attestation", "enclave_image")
START = "enclave_image.runtime.start"
NOT_INSIDE = ("attestation.channel", "attestation.participant", "attestation.cli", "enclave_image.runtime.process")


def _module_path(name: str) -> Path | None:
    base = SOURCE / name.replace(".", "/")
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """Yield a module's statements, also those within others, but for what stands under `if TYPE_CHECKING:`.

    Statements alone, not their expressions: no import stands in one, and they are nine nodes of ten.
    """
    skipped = isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    for block in ("orelse",) if skipped else ("body", "orelse", "finalbody", "handlers", "cases"):
        for child in getattr(node, block, ()):
            yield child
            yield from statements(child)


def imported_modules(name: str) -> set[str]:
    """Return the modules of ours that one imports, also inside its functions."""
    path = _module_path(name)
    if path is None:
        raise BuildFailed(f"the runtime imports {name}, which is not there")
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in statements(ast.parse(path.read_bytes())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            names = [origin, *(f"{origin}.{alias.name}" for alias in node.names)]
        found.update(n for n in names if n.split(".")[0] in OURS and _module_path(n) is not None)
    return found


def find_modules(start: str = START) -> tuple[str, ...]:
    """Return every module that runs inside, with the packages that hold them; raise for one that must not."""
    seen: set[str] = set()
    todo = {start}
    while todo:
        name = todo.pop()
        if name in NOT_INSIDE:
            raise BuildFailed(f"{name} must not be in an isolate; something in the runtime imports it")
        seen.add(name)
        parents = {name.rsplit(".", depth)[0] for depth in range(1, name.count(".") + 1)}
        todo |= (imported_modules(name) | parents) - seen
    return tuple(sorted(seen))


def stage_application(guest: Guest, stage: Path) -> Tree:
    """Compile the application's modules in the empty directory `stage` by the guest's interpreter.

    Returns the ramdisk's tree: /app and nothing else.
    """
    app = stage / "app"
    for name in find_modules():
        path = _module_path(name)
        assert path is not None
        target = app / path.relative_to(SOURCE)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    start = app / (START.replace(".", "/") + ".py")
    start.rename(app / "start.py")  # what /init executes
    guest.python(["compile", stage], what="bytecode compilation of the runtime")
    packages = guest.root / PACKAGES
    guest.python(["smoke", f"{app}:{packages}", "enclave_image.runtime"], what="the runtime's import test")
    return read_tree(stage)
