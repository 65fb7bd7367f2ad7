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
    "training": {"data", "model", "reporting"},
    "inference": {"data", "model"},
    "reporting": {"data", "model", "training"},
}


def imports(file: Path, *, top_level_only: bool = False) -> set[str]:
    """The audiocls modules that a file imports."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    found |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name for name in found if name.split(".")[0] == "audiocls"}


def test_rooms_look_only_where_they_may() -> None:
    for file in PACKAGE.rglob("*.py"):
        room = file.relative_to(PACKAGE).parts[0]
        if room not in MAY_IMPORT:
            continue
        rooms = {name.split(".")[1] for name in imports(file) if name.count(".") >= 2}
        assert rooms - {room} <= MAY_IMPORT[room], file


def test_ground_floor_knows_no_room() -> None:
    for file in PACKAGE.glob("*.py"):
        if file.name != "__init__.py":
            assert not {name for name in imports(file) if name.split(".")[1:2][0] in MAY_IMPORT}, file


def test_modules_import_each_other_without_cycles() -> None:
    graph = {
        ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts): imports(file, top_level_only=True)
        for file in PACKAGE.rglob("*.py")
        if file.name != "__init__.py"
    }
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
        names = {
            alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names
        }
        modules = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        modules |= {
            alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
        }
        assert not {name.split(".")[0] for name in modules} & {"accelerate", "torchcodec"}, file
        assert not names & {"Trainer", "TrainingArguments"}, file


def test_classifying_imports_no_datasets() -> None:
    code = "import sys, audiocls.inference.classifier; assert 'datasets' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)


def test_training_starts_without_what_only_a_report_needs() -> None:
    program = (
        "import sys; import audiocls.reporting.audit, audiocls.reporting.summary, audiocls.training.loop\n"
        "import audiocls.reporting.wrap_up\n"
        "print([name for name in ('matplotlib', 'jinja2', 'tensorboard', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
