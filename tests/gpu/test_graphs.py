"""A micro-batch as a CUDA graph: the same losses, gradients and weights as kernel by kernel."""

import pytest
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from audiocls.data.collators import Batch
from audiocls.devices import autocast
from audiocls.log.phases import Phases
from audiocls.training.graphs import Graphs
from audiocls.training.loss import loss_sum
from audiocls.training.optim import make_optimizer, seed_everything, take_step
from gpu.steps import backbone_to_train, examples

pytestmark = pytest.mark.gpu
SHAPES = ((16_000, 9_000, 5_000), (12_000, 12_000), (8_000, 3_000, 8_000))


@pytest.mark.parametrize("name", ["wav2vec2", "wavlm", "wav2vec2-layer-norm"])
@pytest.mark.parametrize("kind", ["fp32", "bf16", "fp16"])
def test_graphs_change_nothing(name: str, kind: str, cuda: torch.device) -> None:
    """Steps of three micro-batches, of which two have a shape: as it is, captured, and replayed.

    With dropout and SpecAugment; two steps have another number of clips to divide by.
    """
    found = []
    for as_graphs in (False, True):
        loaded = backbone_to_train(name, layerdrop=0.0, hidden_dropout=0.2, attention_dropout=0.2)
        model, collate = loaded.model.to(cuda).train(), loaded.training_collator(0)
        optimizer = make_optimizer(model, 1e-3, 0.01)
        scaler = torch.amp.GradScaler("cuda", enabled=kind == "fp16", init_scale=256.0)

        def forward_backward(
            batch: Batch,
            num_clips: int,
            model: torch.nn.Module = model,
            scaler: torch.amp.GradScaler = scaler,
        ) -> Tensor:
            with autocast(cuda, kind):
                logits = model(**batch.inputs)
            summed = loss_sum(logits, batch.labels, 0.0)
            scaler.scale(summed / num_clips).backward()
            return summed.detach()

        run = Graphs(forward_backward, model, Phases()) if as_graphs else forward_backward
        losses = []
        for step in range(8):
            for number, lengths in enumerate((SHAPES[0], SHAPES[1 + step % 2], SHAPES[0])):
                seed_everything(0, step, number, cuda)
                batch = collate(examples(lengths)).to(cuda)
                losses.append(run(batch, 8 + (step in (3, 4))).clone())
            scaler.unscale_(optimizer)
            norm = clip_grad_norm_(model.parameters(), 1.0)
            take_step(optimizer, torch.isfinite(norm))
            scaler.update()
            optimizer.zero_grad()
            losses.append(norm)
        assert not as_graphs or len(run.graphs) >= 3
        found.append((torch.stack(losses).cpu(), [p.detach().cpu() for p in model.parameters()]))
    (losses_of_kernels, weights), (losses_of_graphs, weights_of_graphs) = found
    # Another dropout would change them by tenths; sums on the GPU come in any order.
    torch.testing.assert_close(losses_of_graphs, losses_of_kernels, rtol=2e-3, atol=2e-3)
    for one, other in zip(weights_of_graphs, weights, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=4e-3)
