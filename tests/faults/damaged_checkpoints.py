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
from conftest import write_clips
from hostile_inputs import OutcomeTally, in_child, save_classifier, script
from safetensors.torch import load_file, save_file
from what_is_left import differences, fingerprint

from audiocls.storage import checksums_of

Draw = np.random.Generator
# Harms one checkpoint of a run; returns the names of the checkpoints that are no longer whole.
Harm = Callable[[Path, Draw], set[str]]

FILES = ("model.safetensors", "optimizer.safetensors", "training_state.json", "config.json", "checksums.json")


def checksums_again(checkpoint: Path) -> None:
    """Make the manifest fit what the files now are, as one who edits them on purpose would."""
    manifest = json.loads((checkpoint / "checksums.json").read_text())
    for name in manifest["files"]:
        content = (checkpoint / name).read_bytes()
        manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (checkpoint / "checksums.json").write_text(json.dumps(manifest))


def cut(file: Path, draw: Draw) -> None:
    os.truncate(file, int(draw.integers(file.stat().st_size)))


def flip_bit(file: Path, draw: Draw) -> None:
    content = bytearray(file.read_bytes())
    content[draw.integers(len(content))] ^= 1 << int(draw.integers(8))
    file.write_bytes(content)


def replace_by_odd(file: Path, draw: Draw) -> None:
    file.unlink()
    to = file.symlink_to
    (file.mkdir, lambda: os.mkfifo(file), lambda: to("/dev/zero"), lambda: to(file))[draw.integers(4)]()


FILE_HARMS: dict[str, Callable[[Path, Draw], object]] = {
    "cut": cut,
    "flip_bit": flip_bit,
    "delete": lambda file, draw: file.unlink(),
    "empty": lambda file, draw: file.write_bytes(b""),
    "garbage": lambda file, draw: file.write_bytes(draw.bytes(5_000)),
    "replace_by_odd": replace_by_odd,
}


def one_file(what: str) -> Harm:
    """That done to one of the checkpoint's files."""

    def harm(checkpoint: Path, draw: Draw) -> set[str]:
        # In the manifest's blanks a bit may change nothing.
        FILE_HARMS[what](checkpoint / FILES[draw.integers(len(FILES) - (what == "flip_bit"))], draw)
        return {checkpoint.name}

    return harm


def delete_all(checkpoint: Path, draw: Draw) -> set[str]:
    for file in checkpoint.iterdir():
        file.unlink()
    return {checkpoint.name}


def another(checkpoint: Path, draw: Draw) -> Path:
    others = [other for other in checkpoint.parent.iterdir() if other.name != checkpoint.name]
    return sorted(others)[draw.integers(len(others))]


def swap_files(checkpoint: Path, draw: Draw) -> set[str]:
    other = another(checkpoint, draw)
    name = FILES[draw.integers(3)]
    ours, theirs = (checkpoint / name).read_bytes(), (other / name).read_bytes()
    (checkpoint / name).write_bytes(theirs)
    (other / name).write_bytes(ours)
    return {checkpoint.name, other.name}


def swap_folders(checkpoint: Path, draw: Draw) -> set[str]:
    other = another(checkpoint, draw)
    aside = checkpoint.with_name("aside")
    checkpoint.rename(aside)
    other.rename(checkpoint)
    aside.rename(other)
    return {checkpoint.name, other.name}


CHECKSUM_EDITS: tuple[Callable[[dict[str, Any]], Any], ...] = (
    lambda manifest: manifest | {"files": {}},
    lambda manifest: manifest | {"files": list(manifest["files"])},
    lambda manifest: with_file(manifest, "../../run.json", bytes=1, sha256="0"),
    lambda manifest: with_file(manifest, "model.safetensors", bytes=1),
    lambda manifest: with_file(manifest, "optimizer.safetensors", sha256="0" * 64),
    lambda manifest: manifest | {"step": 10**9},
    lambda manifest: manifest["files"].pop("training_state.json") and manifest,
    lambda manifest: [manifest],
)


def with_file(manifest: dict[str, Any], name: str, **about: Any) -> dict[str, Any]:
    manifest["files"][name] = manifest["files"].get(name, {}) | about
    return manifest


def edit_checksums(checkpoint: Path, draw: Draw) -> set[str]:
    path, number = checkpoint / "checksums.json", draw.integers(len(CHECKSUM_EDITS) + 1)
    if number == len(CHECKSUM_EDITS):
        path.write_text("[" * 100_000)
    else:
        path.write_text(json.dumps(CHECKSUM_EDITS[number](json.loads(path.read_text()))))
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
    checksums_again(checkpoint)
    return {checkpoint.name}


def edit_state(checkpoint: Path, draw: Draw) -> set[str]:
    """Wrong types and absurd values in training_state.json; with a manifest that fits."""
    path = checkpoint / "training_state.json"
    saved: Any = json.loads(path.read_text())
    fields = [name for name in saved["state"] if name not in ("since_last_log", "log_bytes", "wall_seconds")]
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
            saved["state"]["since_last_log"] = [None, [], {"loss_sum": "x"}][draw.integers(3)]
        case 5:
            saved["scaler"] = [None, {"scale": 0}, {"evil": 1}, []][draw.integers(4)]
        case _:
            saved = [[], "x", {}, {"state": saved["state"]}][draw.integers(4)]
    path.write_text(json.dumps(saved))
    checksums_again(checkpoint)
    return {checkpoint.name}


def deep_state(checkpoint: Path, draw: Draw) -> set[str]:
    (checkpoint / "training_state.json").write_text("[" * 100_000)
    checksums_again(checkpoint)
    return {checkpoint.name}


def add_files(checkpoint: Path, draw: Draw) -> set[str]:
    """What lies beside the files does not matter."""
    (checkpoint / "evil.py").write_text("raise SystemExit")
    os.mkfifo(checkpoint / "pipe")
    (checkpoint / "folder").mkdir()
    return set()


HARMS: dict[str, Harm] = {what: one_file(what) for what in FILE_HARMS} | {
    harm.__name__: harm
    for harm in (
        *(delete_all, swap_files, swap_folders, edit_checksums, edit_tensors, edit_state),
        *(deep_state, add_files),
    )
}


def harm(run: Path, number: int, draw: Draw) -> tuple[str, set[str]]:
    """Damage a run: which way, and which checkpoints are then not whole."""
    checkpoints = sorted((run / "checkpoints").iterdir())
    name, kind = list(HARMS.items())[number % len(HARMS)]
    match draw.integers(5):
        case 0:
            chosen = checkpoints
        case 1:
            chosen = [checkpoints[draw.integers(len(checkpoints))]]
        case _:
            chosen = checkpoints[-1:]
    damaged: set[str] = set()
    for checkpoint in chosen:
        if "swap" in name and damaged:
            break  # twice would be back
        damaged |= kind(checkpoint, draw)
    what = f"{name} of {', '.join(sorted(damaged)) or 'none'}"
    if draw.integers(4) == 0:
        shutil.rmtree(run / "best")
        what += ", best/ gone"
    return f"{number}: {what}", damaged


def main() -> int:
    arguments = parse(__doc__, 300)
    tally = OutcomeTally("damaged checkpoints")
    with tempfile.TemporaryDirectory(prefix="audiocls-faults-") as folder:
        workplace = Path(folder)
        command = [
            *("train", "--dataset", write_clips(workplace / "clips", [1_200] * 20)),
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
        expected = fingerprint(whole)
        for step in (10, 12):
            shutil.rmtree(whole / "checkpoints" / f"step-{step:08d}")
        resume = [*command, "--resume", "--output-dir"]
        for number in range(arguments.count):
            draw = np.random.default_rng([arguments.seed, number])
            run = shutil.copytree(whole, workplace / "run")
            checkpoints = (run / "checkpoints").iterdir()
            best_of = {folder.name: checksums_of(folder)["best_step"] for folder in checkpoints}
            case, damaged = harm(run, number, draw)
            exported = checksums_of(run / "best").get("step")
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
                violations += differences(run, expected)
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
