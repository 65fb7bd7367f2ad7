"""Every architecture on a device: scores as on the CPU, and steps in each precision: archs.py DEVICE."""

# ruff: noqa: E402 - the paths of what is imported are set before

import sys
import tempfile
import traceback
from pathlib import Path

sys.path[:0] = [str(Path.cwd()), str(Path.cwd() / "tests")]

import numpy as np
import torch
from architectures import CONFIGS, save_backbone

from audiocls.data.collators import Example
from audiocls.devices import autocast
from audiocls.model.loading import load_for_training, open_backbone
from audiocls.training.loss import loss_sum
from audiocls.training.optim import make_optimizer, seed_everything


def main(device: torch.device) -> int:
    failed = 0
    for name in CONFIGS:
        try:
            print(f"{name:30}", tried(name, device), flush=True)
        except Exception:
            failed += 1
            print(f"{name:30} FAILED {traceback.format_exc()[-700:]}", flush=True)
    return failed


def tried(name: str, device: torch.device) -> str:
    """The logits' distance from the CPU's, and the first and last loss in each precision."""
    generator = np.random.default_rng(0)
    noise = [generator.standard_normal(length).astype(np.float32) for length in (16_000, 9_000, 5_000)]
    clips = [Example(waveform, number % 3, number) for number, waveform in enumerate(noise)]
    said = []
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        save_backbone(name, Path(folder))
        for precision in ("fp32", "bf16", "fp16"):
            loaded = load_for_training(open_backbone(folder), ["a", "b", "c"], seed=0)
            model, collate = loaded.model, loaded.training_collator(0)
            if precision == "fp32":
                batch = loaded.collator()(clips)
                with torch.no_grad():
                    on_cpu = model.eval()(**batch.inputs)
                    on_device = model.to(device)(**batch.to(device).inputs).cpu()
                said.append(
                    f"{loaded.backbone.forward_pass}, |device - cpu| {(on_device - on_cpu).abs().max():.1e}"
                )
            model.to(device).train()
            optimizer = make_optimizer(model, 1e-3, 0.01)
            scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
            losses = []
            for step in range(3):
                batch = collate(clips).to(device)
                seed_everything(0, step, 0, device)
                with autocast(device, precision):
                    logits = model(**batch.inputs)
                loss = loss_sum(logits, batch.labels) / len(batch.labels)
                scaler.scale(loss).backward()
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
                losses.append(loss.item())
            said.append(f"{precision} {losses[0]:.4f}->{losses[-1]:.4f}")
    return ", ".join(said)


if __name__ == "__main__":
    sys.exit(main(torch.device(sys.argv[1])) > 0)
