"""Every architecture on a device: scores as on the CPU, and steps in each precision: archs.py DEVICE.

tests/gpu asks the same and more of them; this prints the figures.
"""

# ruff: noqa: E402 - the paths of what is imported are set before

import sys
import traceback
from pathlib import Path

sys.path[:0] = [str(Path.cwd()), str(Path.cwd() / "tests")]

import torch
from architectures import CONFIGS
from gpu.steps import Stepper, backbone_to_train, classifier_of_spread_scores, examples, scores

from audiocls.config import TrainConfig
from audiocls.devices import pick_device, pick_precision
from audiocls.errors import UserError


def main(device: torch.device) -> int:
    precisions = []
    for name in TrainConfig.__dataclass_fields__["precision"].metadata["choices"][1:]:  # without auto
        try:
            precisions.append(pick_precision(name, device))
        except UserError as error:
            print(error)
    failed = 0
    for name in CONFIGS:
        try:
            print(f"{name:30}", tried(name, device, precisions), flush=True)
        except Exception:
            failed += 1
            print(f"{name:30} FAILED {traceback.format_exc()[-700:]}", flush=True)
    return failed


def tried(name: str, device: torch.device, precisions: list[str]) -> str:
    """In each precision how far the scores are from the CPU's, and the first and the last loss."""
    said = []
    for precision in precisions:
        pick_device(str(device), precision)  # tf32 is a setting of the whole process
        loaded = classifier_of_spread_scores(name)
        expected = scores(loaded, torch.device("cpu"), "fp32")
        distance = (scores(loaded, device, precision) - expected).abs().max()
        loaded = backbone_to_train(name)
        stepper, batch = Stepper(loaded, device, precision), loaded.training_collator(0)(examples())
        losses = [stepper.step(batch).wait()[0].item() for _ in range(3)]
        said.append(f"{precision} {distance:.1e} off, loss {losses[0]:.4f}->{losses[-1]:.4f}")
    return f"{loaded.backbone.forward_pass}: " + ", ".join(said)


if __name__ == "__main__":
    sys.exit(main(pick_device(sys.argv[1])) > 0)
