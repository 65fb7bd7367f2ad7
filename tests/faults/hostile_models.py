"""Malicious model folders: refused in one line or as good as clean; nothing of theirs is run or opened."""

import importlib
import json
import os
import pickle
import random
import shutil
import struct
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import soundfile
import torch
from cases import parse
from conftest import write_clips
from data_helpers import noise
from hostile_inputs import RATE, OutcomeTally, in_child, save_classifier, script
from safetensors.torch import load_file, save_file

Spoil = Callable[[Path], None]  # makes a clean model folder hostile
Case = tuple[str, str, Spoil]  # what, what must come of it
Cases = Iterator[Case]
REFUSED, CLEAN, EITHER = "refused", "clean", "either"
MAY_OPEN = ("config.json", "preprocessor_config.json", "checksums.json", "run.json")
WEIGHTS = (".safetensors", ".bin", ".index.json")

EVIL = "import pathlib; pathlib.Path({canary!r}).touch()\n"


class Payload:
    """Unpickled, it runs a command."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.canary}",)


def config(**changes: Any) -> Spoil:
    return edited("config.json", changes)


def preprocessor(**changes: Any) -> Spoil:
    return edited("preprocessor_config.json", changes)


def edited(name: str, changes: dict[str, Any]) -> Spoil:
    def spoil(folder: Path) -> None:
        values = json.loads((folder / name).read_text()) | changes
        (folder / name).write_text(json.dumps(values))

    return spoil


def written(name: str, content: bytes) -> Spoil:
    return replaced(name, lambda path: path.write_bytes(content))


def replaced(name: str, make: Callable[[Path], object] = lambda path: None) -> Spoil:
    """That file gone, and in its place what `make` makes."""

    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return spoil


def tensors(change: Callable[[dict[str, torch.Tensor]], None]) -> Spoil:
    def spoil(folder: Path) -> None:
        values = load_file(folder / "model.safetensors")
        change(values)
        save_file(values, folder / "model.safetensors")

    return spoil


def as_bin(change: Callable[[dict[str, Any], Path], Any], legacy: bool = False) -> Spoil:
    """Weights as pytorch_model.bin instead, holding what `change` returns."""

    def spoil(folder: Path) -> None:
        values = change(dict(load_file(folder / "model.safetensors")), folder.parent / "canary")
        (folder / "model.safetensors").unlink()
        torch.save(values, folder / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)

    return spoil


def index(weight_map: Any, weights: str = "model.safetensors", keep: bool = False) -> Spoil:
    """An index in place of the weights; `keep`: which lie beside it as shard.safetensors."""

    def spoil(folder: Path) -> None:
        values = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
        if keep:
            save_file(values, folder / "shard.safetensors")
        shards = weight_map if not isinstance(weight_map, str) else dict.fromkeys(values, weight_map)
        (folder / f"{weights}.index.json").write_text(json.dumps({"weight_map": shards}))

    return spoil


def pickles() -> Cases:
    def with_payload(values: dict[str, Any], canary: Path) -> dict[str, Any]:
        return values | {"evil": Payload(canary)}

    yield "pickle: a command among the tensors", REFUSED, as_bin(with_payload)
    yield "pickle: a command, torch's old format", REFUSED, as_bin(with_payload, legacy=True)
    yield "pickle: a command alone", REFUSED, as_bin(lambda values, canary: Payload(canary))
    yield "pickle: whole modules", REFUSED, as_bin(lambda values, canary: torch.nn.Linear(2, 2))
    yield "pickle: no dict", REFUSED, as_bin(lambda values, canary: list(values.values()))
    yield "pickle: numbers for tensors", REFUSED, as_bin(lambda values, canary: dict.fromkeys(values, 1))
    yield "pickle: tensors alone", CLEAN, as_bin(lambda values, canary: values)
    yield "pickle: tensors alone, torch's old format", CLEAN, as_bin(lambda values, canary: values, True)

    def huge(values: dict[str, Any], canary: Path) -> dict[str, Any]:
        return values | {"classifier.weight": torch.zeros(1).expand(10**6, 10**6)}

    yield "pickle: a tensor expanded to 4 TB", REFUSED, as_bin(huge)

    def plain(name: str) -> Spoil:
        def spoil(folder: Path) -> None:
            (folder / "model.safetensors").unlink()
            (folder / name).write_bytes(pickle.dumps(Payload(folder.parent / "canary")))

        return spoil

    yield "pickle: not torch's at all", REFUSED, plain("pytorch_model.bin")
    yield "pickle named .safetensors", REFUSED, plain("model.safetensors")

    def bomb(folder: Path) -> None:
        torch.save(load_file(folder / "model.safetensors"), folder / "small.bin")
        (folder / "model.safetensors").unlink()
        with (
            zipfile.ZipFile(folder / "small.bin") as old,
            zipfile.ZipFile(folder / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as new,
        ):
            for name in old.namelist():
                with new.open(name, "w", force_zip64=True) as file:
                    for _ in range(200 if name.endswith("/data/0") else 0):
                        file.write(bytes(2**24))
                    file.write(old.read(name))

    yield "pickle: an archive that unpacks to 3 GB", REFUSED, bomb


def code() -> Cases:
    for name in ("modeling_evil.py", "configuration_evil.py", "__init__.py"):

        def remote(folder: Path, name: str = name) -> None:
            (folder / name).write_text(EVIL.format(canary=str(folder.parent / "canary")))
            module = name.removesuffix(".py")
            kinds = ("AutoConfig", "AutoModel", "AutoModelForAudioClassification", "AutoFeatureExtractor")
            auto_map = dict.fromkeys(kinds, f"{module}.Evil")
            edited("config.json", {"auto_map": auto_map, "trust_remote_code": True})(folder)
            edited("preprocessor_config.json", {"auto_map": auto_map})(folder)

        yield f"auto_map to {name}", CLEAN, remote
    repository = "evil/kernels"
    yield "auto_map to the Hub", CLEAN, config(auto_map={"AutoConfig": "evil/repo--configuration.Evil"})
    for key in ("attn_implementation", "_attn_implementation", "_attn_implementation_internal"):
        yield f"{key} from the Hub", CLEAN, config(**{key: f"{repository}:flash"})
        yield f"{key} unknown", CLEAN, config(**{key: "flash_attention_9"})
    yield "experts_implementation", CLEAN, config(experts_implementation=repository)
    for method in ("gptq", "bitsandbytes", "hqq", "evil"):
        yield f"quantization {method}", CLEAN, config(quantization_config={"quant_method": method})
    yield "use_kernels", CLEAN, config(use_kernels=True, kernel_config={"RMSNorm": repository})
    yield "torchscript and fusion", CLEAN, config(torchscript=True, fusion_config={"patch_embeddings": True})
    outputs = {"return_dict": False, "output_hidden_states": True, "output_attentions": True}
    yield "return_dict off", CLEAN, config(**outputs)
    yield "custom pipelines", CLEAN, config(custom_pipelines={"audio-classification": {"impl": "evil.Evil"}})
    yield "tensor parallel plan", CLEAN, config(base_model_tp_plan={"*": "colwise"}, distributed_config={})
    yield "per_layer_config", CLEAN, config(per_layer_config={"0": {"hidden_size": 10**9}})
    yield "setters", CLEAN, config(__class__="evil", forward="evil", name_or_path="../evil", dtype="load")
    yield "commit and paths", CLEAN, config(_commit_hash="../..", _name_or_path="/etc/passwd")
    yield "adapter config", CLEAN, written("adapter_config.json", b'{"base_model_name_or_path": "evil/repo"}')


def jsons() -> Cases:
    deep = b"[" * 200_000 + b"]" * 200_000
    # run.json is only asked what was trained on: an odd one is no run's.
    files = {"config.json": REFUSED, "preprocessor_config.json": REFUSED, "run.json": CLEAN}
    for name, expected in files.items():
        yield f"{name}: deep", expected, written(name, b'{"model_type": ' + deep + b"}")
        yield f"{name}: a list", expected, written(name, b"[]")
        yield f"{name}: not UTF-8", expected, written(name, b"\xff\xfe{}")
        yield f"{name}: 30 MB", expected, written(name, b'{"a": "' + b"x" * 30_000_000 + b'"}')
        yield f"{name}: empty", expected, written(name, b"")
        yield f"{name}: a number of 10,000 digits", expected, written(name, b'{"a": ' + b"9" * 10_000 + b"}")

        yield f"{name}: a pipe", expected, replaced(name, os.mkfifo)
        yield f"{name}: /dev/zero", expected, replaced(name, lambda path: path.symlink_to("/dev/zero"))
    yield "model_type of a path", REFUSED, config(model_type="../evil")
    yield "model_type with escapes", REFUSED, config(model_type="\x1b[2J\nevil\u202e")
    yield "model_type a list", REFUSED, config(model_type=["wav2vec2"])
    yield "model_type of text", REFUSED, config(model_type="bert")
    yield "model_type of another", REFUSED, config(model_type="whisper")


def settings() -> Cases:
    sizes = {
        "hidden_size": 10**6,
        "num_hidden_layers": 10**9,
        "intermediate_size": 10**7,
        "conv_dim": [10**7] * 3,
        "conv_kernel": [10**9] * 3,
        "conv_stride": [0, 4, 2],
        "num_attention_heads": 0,
        "num_conv_pos_embeddings": 10**7,
        "classifier_proj_size": 10**7,
        "layer_norm_eps": float("nan"),
        "hidden_act": "evil",
        "feat_extract_norm": {"a": 1},
        "adapter_attn_dim": -1,
        "mask_time_length": 10**9,
        "attention_dropout": 2.0,
        "hidden_dropout": "0.1; evil",
        "initializer_range": 1e400,
        "num_feat_extract_layers": 10**9,
        "id2label": None,
    }
    for name, value in sizes.items():
        expected = EITHER if name in ("num_feat_extract_layers", "id2label") else REFUSED
        yield f"config: {name} is {value}"[:60], expected, config(**{name: value})
    yield "conv strides of an hour", REFUSED, config(conv_stride=[1000, 1000, 1000])
    labels: dict[str, Any] = {
        "twice": {"0": "a", "1": "a", "2": "b"},
        "a hole": {"0": "a", "1": "b", "3": "c"},
        "no number": {"0": "a", "1": "b", "x": "c"},
        "negative": {"-1": "a", "0": "b", "1": "c"},
        "numbers": {"0": 1, "1": 2, "2": 3},
        "a million": {str(number): str(number) for number in range(1_000_000)},
        "too few": {"0": "a", "1": "b"},
        "a list": ["a", "b", "c"],
    }
    for what, id2label in labels.items():
        yield f"labels: {what}", REFUSED, config(id2label=id2label)
    extractors: dict[str, Any] = {
        "sampling_rate": 10**9,
        "sampling_rate ": 0,
        "sampling_rate  ": "16000; evil",
        "sampling_rate   ": 16_000.5,
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_extractor_type ": "../evil.Evil",
        "feature_size": 10**9,
        "padding_value": "x",
        "do_normalize": "yes",
    }
    for name, value in extractors.items():
        yield f"preprocessor: {name.strip()} is {value}", REFUSED, preprocessor(**{name.strip(): value})
    yield "preprocessor: padding on the left", CLEAN, preprocessor(padding_side="left")


def weights() -> Cases:
    outside = ("../outside.safetensors", "/etc/passwd", "a/../../outside.safetensors")
    for shard in (*outside, "", ".", "..", "x.bin"):
        yield f"index names {shard!r}", REFUSED, index(shard)
    yield "index names a missing shard", REFUSED, index("missing.safetensors")
    yield "index of a list", REFUSED, index(["a"])
    yield "index of numbers", REFUSED, index({"a": 1})
    yield "index of nothing", REFUSED, index({})
    yield "index names 2,000 shards", REFUSED, index({str(i): f"{i}.safetensors" for i in range(2_000)})
    yield "index of one good shard", CLEAN, index("shard.safetensors", keep=True)
    yield "index of a pickle", REFUSED, index("../outside.bin", "pytorch_model.bin")
    for number in (float("nan"), float("inf")):

        def spread(values: dict[str, torch.Tensor], number: float = number) -> None:
            values["projector.weight"][0, 0] = number

        yield f"a weight is {number}", REFUSED, tensors(spread)
    yield "a tensor missing", REFUSED, tensors(lambda values: values.pop("classifier.weight"))
    yield "a tensor left over", REFUSED, tensors(lambda values: values.update(evil=torch.zeros(2)))
    other_shape = {"classifier.weight": torch.zeros(3, 17)}
    yield "a tensor of another shape", REFUSED, tensors(lambda values: values.update(other_shape))
    shape = json.dumps({"a": {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 4]}}).encode()
    deep = b'{"a":' * 50_000 + b"1" + b"}" * 50_000
    for what, size, header in (
        ("a huge shape", len(shape), shape + bytes(4)),
        ("a huge header", 2**60, b"{}"),
        ("a deep header", len(deep), deep),
    ):
        content = struct.pack("<Q", size) + header
        yield f"safetensors: {what}", REFUSED, written("model.safetensors", content)
    yield "safetensors: empty", REFUSED, written("model.safetensors", b"")

    def cut(folder: Path) -> None:
        os.truncate(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size // 2)

    yield "safetensors: cut", REFUSED, cut
    yield "no weights", REFUSED, replaced("model.safetensors")
    yield "weights: a pipe", REFUSED, replaced("model.safetensors", os.mkfifo)


def watched(work: Callable[[], int], folder: Path) -> Callable[[], int]:
    """`work`, ended with code 99 and a word where anything of the folder is run, or opened without need."""

    def hook(event: str, arguments: tuple) -> None:
        why = None
        match event:
            case "open" if str(arguments[0]).startswith(f"{folder}/"):
                name = str(arguments[0])[len(str(folder)) + 1 :]
                if name not in MAY_OPEN and not name.endswith(WEIGHTS):
                    why = f"opened {name}"
            case "open" if "outside." in str(arguments[0]):
                why = f"opened {arguments[0]}"
            case "compile" | "exec" | "import":
                code = arguments[0] if event == "exec" else arguments[1]
                origin = getattr(code, "co_filename", code)
                if str(folder) in str(origin):
                    why = f"{event} {origin}"
            case (
                "subprocess.Popen" | "os.system" | "os.exec" | "os.posix_spawn" | "os.fork" | "socket.connect"
            ):
                why = f"{event} {arguments}"
            case "socket.getaddrinfo" | "ctypes.dlopen" if str(arguments[0]) not in ("None", "libc.so.6"):
                why = f"{event} {arguments}"
            case "pickle.find_class" if arguments[0].split(".")[0] not in ("torch", "collections"):
                why = f"pickle.find_class {arguments}"
        if why is not None:
            os.write(2, f"EXECUTED {why}\n".encode())
            os._exit(99)

    def run() -> int:
        sys.addaudithook(hook)
        return work()

    return run


def all_cases(count: int, seed: int) -> list[Case]:
    cases = [case for kind in (pickles, code, jsons, settings, weights) for case in kind()]
    if count >= len(cases):
        return cases
    draw = random.Random(seed)
    return [cases[index] for index in sorted(draw.sample(range(len(cases)), count))]


def main() -> int:
    arguments = parse(__doc__, 150)
    tally = OutcomeTally("malicious model folders")
    with tempfile.TemporaryDirectory(prefix="audiocls-faults-") as folder:
        workplace = Path(folder)
        clean = save_classifier(workplace / "clean")
        soundfile.write(workplace / "good.wav", noise(5_000), RATE)
        infer = [workplace / "good.wav", "--format", "jsonl"]
        good = in_child(script("infer", clean, *infer))
        clips = write_clips(workplace / "clips", [1_200] * 12)
        train = ["--dataset", clips, "--max-steps", 1, "--num-workers", 0, "--cache-dir", workplace / "cache"]
        # Everything that is imported on the way is imported now, out of the hook's sight: matplotlib asks
        # a program for fonts when it is.
        script("infer", clean, *infer)
        importlib.import_module("matplotlib.font_manager")
        from audiocls.model.loading import load_for_inference

        load_for_inference(str(clean))
        if good.code != 0:
            print(good.stderr.decode(errors="replace"))
            return 1
        # The watch is awake: what it must not miss ends the process.
        for work in (lambda: os.system("true"), lambda: (clean / "README.md").open("w") and 0):
            if (seen := in_child(watched(work, clean))).code != 99:
                print(f"the audit hook missed something: {seen}")
                return 1
        for number, (case, expected, spoil) in enumerate(all_cases(arguments.count, arguments.seed)):
            here = workplace / f"{number:04d}"
            model = shutil.copytree(clean, here / "model")
            spoil(model)
            # As a backbone to fine-tune it may be more: its labels and its head are learned anew.
            for use, arguments, expects in (
                ("infer", [model, *infer], expected),
                ("train", ["--model", model, "--output-dir", here / "run", *train], EITHER),
            ):
                outcome = in_child(watched(script(use, *arguments), model))
                result = {0: CLEAN, 2: REFUSED, 4: REFUSED}.get(outcome.code, "neither")
                violations = []
                if use == "infer" and result == CLEAN and outcome.stdout != good.stdout:
                    violations.append("classified, with other scores than the clean model's")
                if result == "neither" or expects not in (EITHER, result):
                    violations.append(
                        f"was {result}, not {expects}: {outcome.code} {outcome.stderr[-300:]!r}"
                    )
                if (here / "canary").exists():
                    violations.append("its code was executed")
                tally.add_outcome(f"{case} ({use}.py)", outcome, f"{result} for {use}.py", violations)
            shutil.rmtree(here)
    return tally.end()


if __name__ == "__main__":
    sys.exit(main())
