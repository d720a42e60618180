"""One Python file that holds the sources of a module and of all that it imports of this project, to be read and trusted.

diffusers takes the code of a model's own classes from one file a component. The sources stand in it unchanged but for
the names of the packages, which get a suffix, so that a bundle and an installed package do not meet in one process.
"""

from __future__ import annotations

import ast
import hashlib
import re
from pathlib import Path

PACKAGES = ("l2p", "l2p_kernels")
LOADER = '''\
"""Made by `l2p export --to diffusers`, latent2pixel {version}, Apache-2.0: {names}.

Below stand the sources of these classes as they are in the package, one text a module; the last lines import them.
Each line of theirs is marked, as diffusers would take their imports for those of this file.
"""

import importlib.abc
import importlib.util
import sys

SOURCES = {{}}
{sources}

class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives Python the modules of SOURCES."""

    def find_spec(self, name, path=None, target=None):
        if name not in SOURCES:
            return None
        is_package = any(other.startswith(name + ".") for other in SOURCES)
        return importlib.util.spec_from_loader(name, self, is_package=is_package)

    def get_source(self, name):
        return "".join(line[2:] for line in SOURCES[name].splitlines(keepends=True))

    def exec_module(self, module):
        name = module.__name__.replace(".", "/") + ".py"  # no "<...>": Triton reads its kernels' sources by this name
        exec(compile(self.get_source(module.__name__), name, "exec"), module.__dict__)


if not any(type(finder).__name__ == "_Finder" and getattr(finder, "mark", "") == "{mark}" for finder in sys.meta_path):
    _finder = _Finder()
    _finder.mark = "{mark}"
    sys.meta_path.insert(0, _finder)
_module = importlib.import_module("{module}")
{exports}
'''


def write_bundle(module: str, names: list[str], path: Path, version: str) -> None:
    """Write a file that defines `names` of `module` (such as "l2p.hub.pixel_pipeline") without the package.

    Args:
        version: of the package, for the file's first line.
    """
    sources = dict(sorted(closure(module).items()))
    mark = hashlib.sha256(repr(sources).encode()).hexdigest()[:12]
    renamed = {_rename(name, mark): _rename(text, mark) for name, text in sources.items()}
    for name, text in renamed.items():
        if "'''" in text or text.endswith("\\"):
            raise ValueError(f"{name} cannot stand between triple quotes")
    written = "\n".join(f"SOURCES[{name!r}] = r'''{_marked(text)}'''\n" for name, text in renamed.items())
    exports = "\n".join(f"{name} = _module.{name}" for name in names)
    text = LOADER.format(
        version=version,
        names=", ".join(names),
        sources=written,
        mark=mark,
        module=_rename(module, mark),
        exports=exports,
    )
    path.write_text(text, encoding="utf-8")


def _marked(text: str) -> str:
    return "".join(f"| {line}" for line in text.splitlines(keepends=True))


def _rename(text: str, mark: str) -> str:
    """Packages' names get the mark where they are imported or name an operator; words in comments stay."""
    text = re.sub(r"^(\s*(?:from|import)\s+)(l2p(?:_kernels)?)\b", rf"\1\2_{mark}", text, flags=re.MULTILINE)
    text = re.sub(r"\bl2p_kernels::", f"l2p_kernels_{mark}::", text)
    text = re.sub(r"\btorch\.ops\.l2p_kernels\b", f"torch.ops.l2p_kernels_{mark}", text)
    return re.sub(r"^(l2p(?:_kernels)?)(?=\.|$)", rf"\1_{mark}", text) if "\n" not in text else text


def closure(module: str) -> dict[str, str]:
    """Sources of a module and of all of this project that running it may import; unused packages are empty."""
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if found.get(name):
            continue
        path = _file(name)
        found[name] = path.read_text(encoding="utf-8") if path else ""
        for parent in _parents(name):
            found.setdefault(parent, "")
        if path:
            waiting += _imports(name, path)
    return found


def _bound(module: str) -> set[str]:
    """Names that a module's own statements define; those of its submodules do not count."""
    path, names = _file(module), set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body if path else ():
        if isinstance(node, (ast.ImportFrom, ast.Import)):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found = (name for target in targets for name in ast.walk(target))  # a, b = ... names both
            names |= {name.id for name in found if isinstance(name, ast.Name)}
    return names


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def _file(name: str) -> Path | None:
    root = _root(name.split(".")[0])
    base = root.joinpath(*name.split(".")[1:])
    return next((file for file in (base.with_suffix(".py"), base / "__init__.py") if file.is_file()), None)


def _root(package: str) -> Path:
    import importlib

    return Path(importlib.import_module(package).__file__).parent


def _imports(name: str, path: Path) -> list[str]:
    """Modules of this project that a source imports at any time; what is for type checkers alone does not count."""
    source_text = path.read_text(encoding="utf-8")
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    # as the operators import the kernels that need Triton, when they run
    late = re.findall(r'import_module\("\.(\w+)", __package__\)', source_text)
    found, nodes = [".".join([*package, name]) for name in late], list(ast.parse(source_text).body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            source = ".".join(part for part in (base, node.module or "") if part)
            if source.split(".")[0] in PACKAGES:
                for alias in node.names:
                    # a package may give a function the name of the folder it comes from
                    of_package = alias.name in _bound(source)
                    found.append(source if of_package else f"{source}.{alias.name}")
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in PACKAGES]
        nodes += ast.iter_child_nodes(node)
    return found
