"""What ../gpu.py measures, of a backbone that is there already: turns.py DEVICE MODEL OUT SECONDS.

OUT gets a line of JSON a side, as soon as it is measured.
"""

# ruff: noqa: E402 - the paths of what is imported are set before

import json
import sys
import time
from pathlib import Path
from typing import Any

began = time.perf_counter()
sys.path[:0] = [str(Path.cwd()), str(Path(__file__).parents[1])]

import gpu
import torch
from common import scratch_folder

from audiocls.torchaudio_guard import import_torchaudio

import_torchaudio()
from transformers import Wav2Vec2Config

from audiocls.log.profiling import matmul_flops_per_second

device, model, out, seconds = sys.argv[1:]
peak = matmul_flops_per_second(torch.device(device), torch.bfloat16)
print(f"peak {peak / 1e12:.1f} TFLOP/s", flush=True)


def keep(figures: dict[str, Any]) -> None:
    with Path(out).open("a", encoding="utf-8") as file:
        file.write(json.dumps(figures) + "\n")


with scratch_folder() as folder:
    config = Wav2Vec2Config.from_pretrained(model)
    rounds = 1 if device == "cpu" else 4
    left = float(seconds) - (time.perf_counter() - began)
    gpu.measure(folder, Path(model), config, device, peak, rounds, left, keep)
