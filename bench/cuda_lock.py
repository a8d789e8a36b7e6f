"""Checks that requirements/cuda.txt provides the vLLM and torch names that the trainer uses, on any machine.

    pip install --no-deps -r requirements/cuda.txt    # in a fresh environment, some 9 GB; no GPU is needed
    python -m bench.cuda_lock                         # in that environment; writes requirements/cuda_names.json

It imports every module of the trainer. Then it resolves the names of vLLM and torch that engine and policy use:
imported names, attributes of torch, keywords of vLLM's constructors, attributes of its engine. The file lists these
names and the versions that provide them. A test compares it with the sources and the lock.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import pkgutil
import sys
from collections.abc import Iterator
from functools import reduce
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FILE = ROOT / "requirements/cuda_names.json"
LIBRARIES = ("vllm", "torch")
"""Without flash-attn, which the lock does not contain: its one name is not checked."""
ENGINE = "self._llm"
"""Prefix of attributes of `vllm.LLM`."""


def used_names() -> list[str]:
    """Names in the form `module.name`, `module.name(keyword)` or `self._llm.attribute`."""
    files = sorted(path for folder in ("engine", "policy") for path in (ROOT / "capo_fast" / folder).glob("*.py"))
    return sorted({name for path in files for name in _names_in(ast.parse(path.read_text(encoding="utf-8")))})


def _names_in(tree: ast.Module) -> Iterator[str]:
    imported = dict(_imports(tree))
    yield from imported.values()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            root, _, rest = ast.unparse(node).partition(".")
            if root in imported and rest.replace(".", "").isidentifier():
                yield f"{imported[root]}.{rest}"
            elif f"{root}.{rest}".startswith(f"{ENGINE}.") and rest.replace(".", "").isidentifier():
                yield f"{root}.{rest}"
        elif isinstance(node, ast.Call) and imported.get(ast.unparse(node.func), "").startswith("vllm."):
            yield from (f"{imported[ast.unparse(node.func)]}({word.arg})" for word in node.keywords if word.arg)


def _imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Local name and full name of each import from the libraries."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in LIBRARIES:
            yield from ((each.asname or each.name, f"{node.module}.{each.name}") for each in node.names)
        elif isinstance(node, ast.Import):
            tops = {each.name.partition(".")[0] for each in node.names}
            yield from ((top, top) for top in tops if top in LIBRARIES)


def missing(names: list[str]) -> list[str]:
    return [name for name in names if not _exists(name)]


def _exists(name: str) -> bool:
    if name.startswith(f"{ENGINE}."):
        return _engine_has(name.removeprefix(f"{ENGINE}.").split("."))
    name, _, keyword = name.rstrip(")").partition("(")
    try:
        found = _resolve(name)
    except (ImportError, AttributeError):
        return False
    return not keyword or keyword in _keywords(found)


def _engine_has(parts: list[str]) -> bool:
    """Attributes that only instances have are found as `self.NAME =` in the class's source."""
    from vllm import LLM  # slow to import, and not needed to list the names
    from vllm.v1.engine.llm_engine import LLMEngine

    for owner, part in zip((LLM, LLMEngine), parts, strict=False):
        if not hasattr(owner, part) and f"self.{part} " not in inspect.getsource(owner):
            return False
    return True


def _resolve(name: str) -> Any:
    """Imports the longest part that is a module; the rest are attributes."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            module = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        return reduce(getattr, parts[end:], module)
    raise ImportError(name)


def _keywords(function: Any) -> set[str]:
    """Parameter names; for `vllm.LLM` also those of `EngineArgs`, to which it passes all other keywords."""
    if isinstance(function, type) and issubclass(function, dict):  # a TypedDict has no signature
        return set(function.__annotations__)
    found = set(inspect.signature(function).parameters)
    return found | (_keywords(_resolve("vllm.EngineArgs")) if function.__name__ == "LLM" else set())


def trainer_modules() -> list[str]:
    import capo_fast

    found = pkgutil.walk_packages(capo_fast.__path__, "capo_fast.")
    return [each.name for each in found if not each.name.endswith("__main__")]


def main() -> int:
    for module in trainer_modules():
        importlib.import_module(module)
    names = used_names()
    if lacking := missing(names):
        print("not in this environment:", *lacking, sep="\n  ", file=sys.stderr)
        return 1
    versions = {name: version(name).partition("+")[0] for name in ("torch", "transformers", "vllm")}
    FILE.write_text(json.dumps({"versions": versions, "names": names}, indent=1) + "\n", encoding="utf-8")
    print(f"{len(trainer_modules())} modules imported, {len(names)} names found; {FILE.relative_to(ROOT)} written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
