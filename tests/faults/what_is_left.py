"""What a run left: how far it came, whether it is whole, and whether it is the same as another's."""

import hashlib
import json
from pathlib import Path

from conftest import without_times

from audiocls.storage import damage


def fingerprint(run: Path) -> dict[str, str]:
    """All that a finished run leaves, but for the times."""
    newest = max((run / "checkpoints").iterdir())
    weights = [
        newest / "model.safetensors",
        newest / "optimizer.safetensors",
        run / "best" / "model.safetensors",
    ]
    found = {
        str(file.relative_to(run)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in [*weights, run / "predictions.jsonl"]
    }
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    found["metrics.jsonl"] = str(without_times(records))
    return found


def differences(run: Path, expected: dict[str, str]) -> list[str]:
    found = fingerprint(run)
    return [f"{name} differs" for name in expected | found if found.get(name) != expected.get(name)]


def newest_step(run: Path) -> int:
    """The step of the newest checkpoint; 0 where there is none."""
    return max((int(path.name[5:]) for path in (run / "checkpoints").glob("step-*")), default=0)


def reached_step(run: Path) -> int:
    """The last step that metrics.jsonl has."""
    try:
        lines = (run / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return 0
    steps = [json.loads(line)["step"] for line in lines if line.endswith("}")]
    return max(steps, default=0)


def damaged(run: Path) -> list[str]:
    """What is there under its own name without being whole."""
    folders = [*(run / "checkpoints").glob("step-*"), *run.glob("best")]
    return [f"{folder.name}: {why}" for folder in folders if (why := damage(folder))]


def leftovers(*folders: Path) -> list[str]:
    """What is unfinished, or was put aside, below the folders."""
    patterns = ("**/.*.unfinished", "**/.*.old", "**/unfinished-*")
    return [f"left over: {path.name}" for folder in folders for p in patterns for path in folder.glob(p)]
