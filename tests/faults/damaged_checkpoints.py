"""Damaged checkpoints: a resumed run goes on from the newest whole one to the same end, or leaves with 4."""

import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cases import parse
from hostile_inputs import OutcomeTally, in_child, save_classifier, script, write_clips
from safetensors.torch import load_file, save_file

from audiocls.storage import manifest_of

Draw = np.random.Generator
# Harms one checkpoint of a run; returns the names of the checkpoints that are no longer whole.
Harm = Callable[[Path, Draw], set[str]]

FILES = ("model.safetensors", "optimizer.safetensors", "training_state.json", "config.json", "manifest.json")


def any_file(checkpoint: Path, draw: Draw) -> Path:
    return checkpoint / FILES[draw.integers(len(FILES))]


def manifest_again(checkpoint: Path) -> None:
    """Make the manifest fit what the files now are, as one who edits them on purpose would."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    for name in manifest["files"]:
        content = (checkpoint / name).read_bytes()
        manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def cut(checkpoint: Path, draw: Draw) -> set[str]:
    file = any_file(checkpoint, draw)
    os.truncate(file, int(draw.integers(file.stat().st_size)))
    return {checkpoint.name}


def flip_bit(checkpoint: Path, draw: Draw) -> set[str]:
    file = checkpoint / FILES[draw.integers(4)]  # in the manifest's blanks a bit may change nothing
    content = bytearray(file.read_bytes())
    content[draw.integers(len(content))] ^= 1 << int(draw.integers(8))
    file.write_bytes(content)
    return {checkpoint.name}


def delete(checkpoint: Path, draw: Draw) -> set[str]:
    any_file(checkpoint, draw).unlink()
    return {checkpoint.name}


def empty(checkpoint: Path, draw: Draw) -> set[str]:
    any_file(checkpoint, draw).write_bytes(b"")
    return {checkpoint.name}


def delete_all(checkpoint: Path, draw: Draw) -> set[str]:
    for file in checkpoint.iterdir():
        file.unlink()
    return {checkpoint.name}


def replace_by_odd(checkpoint: Path, draw: Draw) -> set[str]:
    file = any_file(checkpoint, draw)
    file.unlink()
    (
        file.mkdir,
        lambda: os.mkfifo(file),
        lambda: file.symlink_to("/dev/zero"),
        lambda: file.symlink_to(file),
    )[draw.integers(4)]()
    return {checkpoint.name}


def swap_files(checkpoint: Path, draw: Draw) -> set[str]:
    others = [other for other in checkpoint.parent.iterdir() if other.name != checkpoint.name]
    other = sorted(others)[draw.integers(len(others))]
    name = FILES[draw.integers(3)]
    ours, theirs = (checkpoint / name).read_bytes(), (other / name).read_bytes()
    (checkpoint / name).write_bytes(theirs)
    (other / name).write_bytes(ours)
    return {checkpoint.name, other.name}


def swap_folders(checkpoint: Path, draw: Draw) -> set[str]:
    others = [other for other in checkpoint.parent.iterdir() if other.name != checkpoint.name]
    other = sorted(others)[draw.integers(len(others))]
    aside = checkpoint.with_name("aside")
    checkpoint.rename(aside)
    other.rename(checkpoint)
    aside.rename(other)
    return {checkpoint.name, other.name}


def edit_manifest(checkpoint: Path, draw: Draw) -> set[str]:
    path = checkpoint / "manifest.json"
    manifest: Any = json.loads(path.read_text())
    match draw.integers(9):
        case 0:
            manifest["files"] = {}
        case 1:
            manifest["files"] = list(manifest["files"])
        case 2:
            manifest["files"]["../../run.json"] = {"bytes": 1, "sha256": "0"}
        case 3:
            manifest["files"]["model.safetensors"]["bytes"] += 1
        case 4:
            manifest["files"]["optimizer.safetensors"]["sha256"] = "0" * 64
        case 5:
            manifest["step"] = 10**9
        case 6:
            del manifest["files"]["training_state.json"]
        case 7:
            manifest = [manifest]
        case _:
            path.write_text("[" * 100_000)
            return {checkpoint.name}
    path.write_text(json.dumps(manifest))
    return {checkpoint.name}


def edit_tensors(checkpoint: Path, draw: Draw) -> set[str]:
    """NaN, another shape or kind, missing, left over; with a manifest that fits."""
    name = FILES[draw.integers(2)]
    tensors = load_file(checkpoint / name)
    floats = sorted(key for key, tensor in tensors.items() if tensor.is_floating_point() and tensor.ndim)
    key = floats[draw.integers(len(floats))]
    match draw.integers(6):
        case 0:
            tensors[key].view(-1)[0] = float("nan")
        case 1:
            tensors[key].view(-1)[0] = float("-inf")
        case 2:
            tensors[key] = tensors[key].double()
        case 3:
            tensors[key] = tensors[key][..., None].contiguous()
        case 4:
            del tensors[key]
        case _:
            tensors["evil/exp_avg"] = tensors[key].clone()
    save_file(tensors, checkpoint / name)
    manifest_again(checkpoint)
    return {checkpoint.name}


def edit_state(checkpoint: Path, draw: Draw) -> set[str]:
    """Wrong types and absurd values in training_state.json; with a manifest that fits."""
    path = checkpoint / "training_state.json"
    saved: Any = json.loads(path.read_text())
    fields = [name for name in saved["state"] if name not in ("window", "log_bytes", "wall_seconds")]
    match draw.integers(7):
        case 0:
            saved["state"][fields[draw.integers(len(fields))]] = ["x", {}, [1], True, -1, 1e300, "5"][
                draw.integers(7)
            ]
        case 1:
            del saved["state"][fields[draw.integers(len(fields))]]
        case 2:
            saved["state"]["evil"] = 1
        case 3:
            saved["state"]["step"] += 1
        case 4:
            saved["state"]["window"] = [None, [], {"loss_sum": "x"}][draw.integers(3)]
        case 5:
            saved["scaler"] = [None, {"scale": 0}, {"evil": 1}, []][draw.integers(4)]
        case _:
            saved = [[], "x", {}, {"state": saved["state"]}][draw.integers(4)]
    path.write_text(json.dumps(saved))
    manifest_again(checkpoint)
    return {checkpoint.name}


def deep_state(checkpoint: Path, draw: Draw) -> set[str]:
    (checkpoint / "training_state.json").write_text("[" * 100_000)
    manifest_again(checkpoint)
    return {checkpoint.name}


def garbage(checkpoint: Path, draw: Draw) -> set[str]:
    any_file(checkpoint, draw).write_bytes(draw.bytes(5_000))
    return {checkpoint.name}


def add_files(checkpoint: Path, draw: Draw) -> set[str]:
    """What lies beside the files does not matter."""
    (checkpoint / "evil.py").write_text("raise SystemExit")
    os.mkfifo(checkpoint / "pipe")
    (checkpoint / "folder").mkdir()
    return set()


HARMS: tuple[Harm, ...] = (
    *(cut, flip_bit, delete, empty, delete_all, replace_by_odd, swap_files, swap_folders),
    *(edit_manifest, edit_tensors, edit_state, deep_state, garbage, add_files),
)


def harm(run: Path, number: int, draw: Draw) -> tuple[str, set[str]]:
    """Damage a run: which way, and which checkpoints are then not whole."""
    checkpoints = sorted((run / "checkpoints").iterdir())
    kind = HARMS[number % len(HARMS)]
    match draw.integers(5):
        case 0:
            chosen = checkpoints
        case 1:
            chosen = [checkpoints[draw.integers(len(checkpoints))]]
        case _:
            chosen = checkpoints[-1:]
    damaged: set[str] = set()
    for checkpoint in chosen:
        if "swap" in kind.__name__ and damaged:
            break  # twice would be back
        damaged |= kind(checkpoint, draw)
    what = f"{kind.__name__} of {', '.join(sorted(damaged)) or 'none'}"
    if draw.integers(4) == 0:
        shutil.rmtree(run / "best")
        what += ", best/ gone"
    return f"{number}: {what}", damaged


def weights_of(run: Path) -> str:
    last = max((run / "checkpoints").iterdir(), key=lambda folder: folder.name)
    files = [last / "model.safetensors", last / "optimizer.safetensors", run / "best" / "model.safetensors"]
    return " ".join(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)


def main() -> int:
    arguments = parse(__doc__, 300)
    tally = OutcomeTally("damaged checkpoints")
    with tempfile.TemporaryDirectory(prefix="audiocls-faults-") as folder:
        workplace = Path(folder)
        command = [
            *("train", "--dataset", write_clips(workplace / "clips", 20)),
            *("--model", save_classifier(workplace / "model"), "--cache-dir", workplace / "cache"),
            *("--batch-size", 4, "--gradient-accumulation-steps", 1, "--learning-rate", 1e-3),
            *("--eval-every", 2, "--save-total-limit", 9, "--num-workers", 0, "--max-steps", 12),
        ]
        # Twelve steps in peace; then as if it had been killed after the eighth.
        whole = workplace / "whole"
        begun = in_child(script(*command, "--output-dir", whole))
        if begun.code != 0:
            print(begun.stderr.decode(errors="replace"))
            return 1
        expected = weights_of(whole)
        for step in (10, 12):
            shutil.rmtree(whole / "checkpoints" / f"step-{step:08d}")
        resume = [*command, "--resume", "--output-dir"]
        for number in range(arguments.count):
            draw = np.random.default_rng([arguments.seed, number])
            run = shutil.copytree(whole, workplace / "run")
            checkpoints = (run / "checkpoints").iterdir()
            best_of = {folder.name: manifest_of(folder)["best_step"] for folder in checkpoints}
            case, damaged = harm(run, number, draw)
            exported = manifest_of(run / "best").get("step")
            intact = {
                name
                for name, best in best_of.items()
                # A checkpoint without its best model would go on to another end.
                if name not in damaged and (best == exported or f"step-{best:08d}" not in damaged)
            }
            outcome = in_child(script(*resume, run))
            violations = []
            if outcome.code == 0:
                result = "went on"
                step = re.search(rb"going on after step (\d+)", outcome.stdout)
                newest = f"step-{int(step[1]):08d}" if step else "none"
                # The model files of a damaged one may be whole, and then it does as the best.
                if newest not in (max(intact, default="none"), max(best_of.keys() - damaged, default="none")):
                    violations.append(f"went on from {newest}, whole are {sorted(intact)}")
                for name in sorted(damaged):
                    if name > newest and f"{name} is passed over" not in str(outcome.stdout):
                        violations.append(f"{name} is passed over in silence")
                if weights_of(run) != expected:
                    violations.append("ended with other weights")
            elif outcome.code == 4:
                result = "left with 4"
                if intact:
                    violations.append(f"{sorted(intact)} were whole: {outcome.stderr[:300]!r}")
            else:
                result = f"exit code {outcome.code}"
                violations.append(outcome.stderr[-300:].decode(errors="replace"))
            tally.add_outcome(case, outcome, result, violations)
            shutil.rmtree(run)
    return tally.end()


if __name__ == "__main__":
    sys.exit(main())
