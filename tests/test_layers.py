"""The house stands in the order of the dataflow: nothing imports upwards, and what is walled off stays so."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
FILES = sorted(file for package in ("diff_oracle", "data_gen") for file in (REPOSITORY / package).rglob("*.py"))
MAX_LINES = 400

# From the ground up; a unit imports from units before it, and from itself.
ORDER = ("randomness", "subject", "records", "provenance", "tasks", "oracle", "training", "evaluation", "nla")
ENTRY_POINTS = {f"diff_oracle.{name}" for name in ("train", "evaluate", "report", "train_ar", "train_rl", "verbalise")}
ENTRY_POINTS |= {"data_gen.build", "diff_oracle.explain", "diff_oracle.explain_head", "diff_oracle.serve"}
CLI = "diff_oracle.cli"
FRONT_DOOR = ("subject", "oracle")  # what `import diff_oracle` offers
UNDER_DATA_GEN = ("randomness", "subject", "records", "tasks")


def module_name(file: Path) -> str:
    parts = file.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.Module, package: str) -> Iterator[str]:
    """Every module that a module of `package` imports, at its top, in functions and for type checking only.

    `from a import b` gives `a.b`: b may be a module, and a name in `a` belongs to the same unit as `a`.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*base, *filter(None, [node.module])])
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def is_entry_point(module: str) -> bool:
    return any(module == entry or module.startswith(f"{entry}.") for entry in ENTRY_POINTS)


def forbidden(module: str, imported: str) -> str | None:
    """Why `module` may not import `imported`, or None where it may."""
    package, _, rest = imported.partition(".")
    unit, own_unit = rest.partition(".")[0], module.partition(".")[2].partition(".")[0]
    if package == "transformer_lens" and not module.startswith("diff_oracle.subject"):
        return "only diff_oracle.subject imports transformer_lens"
    if package in ("hydra", "omegaconf") and module != CLI and not is_entry_point(module):
        return "only entry points and diff_oracle.cli import hydra and omegaconf"
    if package not in ("diff_oracle", "data_gen") or rest == "__version__":
        return None
    if is_entry_point(module) or (module == "diff_oracle" and unit in FRONT_DOOR):
        return None
    if is_entry_point(imported) or imported.startswith(CLI):
        return "only entry points import entry points and the command line"
    if package == "data_gen":
        return None if module.startswith("data_gen") else "only entry points import data_gen"
    if module.startswith("data_gen"):
        return None if unit in UNDER_DATA_GEN else f"data_gen stands on {', '.join(UNDER_DATA_GEN)}"
    if own_unit not in ORDER:
        return "it has no place in the order and may import nothing of the house"
    if unit not in ORDER or ORDER.index(unit) > ORDER.index(own_unit):
        return f"the order is {' -> '.join(ORDER)}"
    return None


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_imports_follow_the_dataflow(file: Path) -> None:
    module = module_name(file)
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    wrong = {
        f"{module} imports {imported}: {reason}"
        for imported in imports(ast.parse(file.read_text(encoding="utf-8")), package)
        if (reason := forbidden(module, imported))
    }
    assert not wrong


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_file_is_one_thing(file: Path) -> None:
    lines = len(file.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{lines} lines want to be two files"


def test_every_module_has_a_place() -> None:
    units = {module_name(file).split(".")[1] for file in FILES if module_name(file).startswith("diff_oracle.")}
    assert {"subject", "records", "tasks", "cli"} <= units
    assert units <= {*ORDER, "cli", *(entry.partition(".")[2] for entry in ENTRY_POINTS)}


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("diff_oracle.subject.lens", "diff_oracle.records.read"),
        ("diff_oracle.records", "diff_oracle.tasks"),
        ("diff_oracle.oracle.model", "diff_oracle.training.sft"),
        ("diff_oracle.evaluation.report", "data_gen.corpus"),
        ("diff_oracle.evaluation.report", "diff_oracle.train"),
        ("diff_oracle.tasks.logit_lens", "diff_oracle.cli.entry_point"),
        ("diff_oracle.tasks.logit_lens", "omegaconf.DictConfig"),
        ("diff_oracle.oracle.model", "transformer_lens.model_bridge"),
        ("data_gen.logit_lens", "diff_oracle.oracle.prompt"),
        ("data_gen.logit_lens", "data_gen.build.MEASURES"),
        ("diff_oracle", "diff_oracle.tasks"),
        ("diff_oracle.cli", "diff_oracle.records"),
    ],
)
def test_wall_stops(module: str, imported: str) -> None:
    assert forbidden(module, imported)


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("diff_oracle.train", "data_gen.build.run"),
        ("diff_oracle.train", "diff_oracle.cli.entry_point"),
        ("data_gen.build", "data_gen.corpus.Document"),
        ("data_gen.build", "diff_oracle.cli.entry_point"),
        ("data_gen.logit_lens", "diff_oracle.subject.capture"),
        ("diff_oracle.evaluation.controls", "diff_oracle.oracle.model.Oracle"),
        ("diff_oracle.subject.model", "diff_oracle.subject.sites"),
        ("diff_oracle.subject.model", "transformer_lens"),
        ("diff_oracle.cli", "hydra.core"),
    ],
)
def test_door_is_open(module: str, imported: str) -> None:
    assert forbidden(module, imported) is None


def test_all_kinds_of_import_are_seen() -> None:
    tree = ast.parse(
        "import a.b\n"
        "def f():\n"
        "    from ..records import read\n"
        "    from . import sites\n"
        "if TYPE_CHECKING:\n"
        "    from c import d as e\n"
    )
    assert set(imports(tree, "diff_oracle.subject")) == {
        "a.b",
        "diff_oracle.records.read",
        "diff_oracle.subject.sites",
        "c.d",
    }
