"""Who may look into whom: the package's rooms, and what a fast start must not import."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "audiocls"
MAY_IMPORT = {
    # room: the rooms it may look into, besides itself and the ground floor
    "data": set(),
    "model": {"data"},
    "log": {"data", "model"},
    "training": {"data", "model", "log"},
    "inference": {"data", "model"},
    "reporting": set(),  # it reads a run folder
}
PROGRAMS = {"audiocls.compare", "audiocls.folds", "audiocls.trials"}  # on top of all, as train.py is


def imports(file: Path) -> set[str]:
    """The audiocls modules that a file imports: also within functions, and for types alone."""
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            # `from audiocls.reporting import figures` is of a module, too.
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {name for name in submodules if module_file(name).exists()}
            found |= modules or {node.module}
    return {name for name in found if name.split(".")[0] == "audiocls"}


def module_file(name: str) -> Path:
    return PACKAGE.parent.joinpath(*name.split(".")).with_suffix(".py")


def test_rooms_look_only_where_they_may() -> None:
    for file in PACKAGE.rglob("*.py"):
        room = file.relative_to(PACKAGE).parts[0]
        rooms = {name.split(".")[1] for name in imports(file) if name.count(".") >= 2}
        if f"audiocls.{file.stem}" in PROGRAMS:
            continue
        assert not imports(file) & PROGRAMS, file
        if file.parent != PACKAGE:
            assert rooms - {room} <= MAY_IMPORT[room], file
        elif file.name != "__init__.py":
            assert not rooms, file


def test_modules_import_each_other_without_circles() -> None:
    graph = {
        ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts): imports(file)
        for file in PACKAGE.rglob("*.py")
        if file.name != "__init__.py"
    }
    assert not [name for name, others in graph.items() if "audiocls" in others], "ask audiocls.version"
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join((*above, module))
        if module not in done:
            for other in graph.get(module, ()):
                visit(other, (*above, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_nothing_imports_the_trainer_accelerate_or_torchcodec() -> None:
    for file in [*PACKAGE.rglob("*.py"), *PACKAGE.parent.glob("*.py")]:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {alias.name for node in nodes for alias in node.names}
        names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
        unwanted = {"accelerate", "torchcodec", "Trainer", "TrainingArguments"}
        assert not {name.split(".")[0] for name in names} & unwanted, file


def test_classifying_imports_no_datasets() -> None:
    code = "import sys, audiocls.inference.classifier; assert 'datasets' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)


def test_training_starts_without_what_only_a_report_needs() -> None:
    program = (
        "import sys; import audiocls.data.audit, audiocls.log.summary, audiocls.training.loop\n"
        "import audiocls.reporting.audit, audiocls.reporting.wrap_up\n"
        "print([name for name in ('matplotlib', 'jinja2', 'tensorboard', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
