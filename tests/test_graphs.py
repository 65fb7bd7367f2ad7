"""Micro-batches as CUDA graphs: what decides that, and where gradients go; tests/gpu/ has them on a GPU."""

import dataclasses
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from data_helpers import run_script
from torch import Tensor, nn

from audiocls.data.collators import Batch
from audiocls.errors import UserError
from audiocls.flags import parse_train
from audiocls.log.phases import Phases
from audiocls.model.backbone import LoadedModel
from audiocls.training import graphs
from audiocls.training.graphs import Graphs, check_can_capture


class FakeGraph:
    """Does again what was done while it was captured: `Graphs.run` on the batch that it reads."""

    def pool(self) -> None:
        return None

    def replay(self) -> None:
        self.again()


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A model with a weight that no micro-batch has a gradient for; and graphs that are made believe."""

    @contextmanager
    def capturing(graph: Any, **options: Any) -> Iterator[None]:
        before = [(p.grad, p.grad.clone()) for p in model.parameters() if p.grad is not None]
        yield
        for gradient, value in before:  # nothing is computed while kernels are captured
            gradient.copy_(value)

    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", capturing)
    torch.manual_seed(0)
    model = nn.ModuleDict({"used": nn.Linear(3, 2), "unused": nn.Linear(3, 2)})
    return model


class Replaying(Graphs):
    def capture(self, trained: Any, batch: Batch, num_clips: int) -> graphs.Graph:
        made = super().capture(trained, batch, num_clips)

        def again() -> None:
            made.loss.copy_(self.run(made.batch, num_clips))

        made.graph.again = again  # type: ignore[attr-defined]
        return made


def batch_of(size: int) -> Batch:
    return Batch({"x": torch.randn(size, 3)}, torch.randint(2, (size,)), size)


def test_gradients_are_added_to_as_without_graphs(model: nn.Module) -> None:
    """Over steps of micro-batches of several shapes: seen first, captured, replayed, in any order."""

    def run(batch: Batch, num_clips: int) -> Tensor:
        loss = nn.functional.cross_entropy(model["used"](batch.inputs["x"]), batch.labels, reduction="sum")
        (loss / num_clips).backward()
        return loss.detach()

    as_graphs = Replaying(run, model, Phases())
    steps = [[4, 5], [4, 6, 4], [5, 4], [6, 5, 4], [4, 4, 4], [7, 4]]
    for sizes in steps:
        batches = [batch_of(size) for size in sizes]
        found = []
        for call in (run, as_graphs):
            losses = [call(batch, sum(sizes[:2])).clone() for batch in batches]
            assert model["unused"].weight.grad is None
            found.append(
                (torch.stack(losses), model["used"].weight.grad.clone(), model["used"].bias.grad.clone())
            )
            model.zero_grad()
        torch.testing.assert_close(*found)
    assert len(as_graphs.graphs) >= 3


def test_what_is_traced_or_timed_runs_kernel_by_kernel(model: nn.Module) -> None:
    phase = Phases()
    seen = []
    as_graphs = Graphs(lambda batch, num_clips: seen.append(batch) or torch.zeros(()), model, phase)
    for traced, timed in ((True, None), (False, torch.device("cpu"))):
        phase.is_traced, phase.waits_for = traced, timed
        for _ in range(3):
            as_graphs(batch_of(4), 4)
    assert len(seen) == 6 and not as_graphs.graphs


@pytest.mark.parametrize(
    ("said", "raised"), [("operation not permitted", UserError), ("CUDA out of memory", RuntimeError)]
)
def test_what_cannot_be_captured_ends_the_run(
    said: str, raised: type[Exception], model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's random generator cannot be used after that. Out of memory has its own advice."""

    @contextmanager
    def refusing(graph: Any, **options: Any) -> Iterator[None]:
        raise RuntimeError(f"{said}\nmore")
        yield

    monkeypatch.setattr(torch.cuda, "graph", refusing)
    as_graphs = Graphs(lambda batch, num_clips: torch.zeros(()), model, Phases())
    as_graphs(batch_of(4), 4)
    with pytest.raises(raised, match=said):
        as_graphs(batch_of(4), 4)


def test_where_there_are_none_the_reason_is_said(build_model: Callable[..., LoadedModel]) -> None:
    cuda, backbone = torch.device("cuda"), build_model().backbone
    check_can_capture(backbone, cuda)
    dropping = dataclasses.replace(backbone, config=dataclasses.replace(backbone.config, layerdrop=0.1))
    stock = build_model(stock=True).backbone
    for words, one, device in (
        ("not on cpu", backbone, torch.device("cpu")),
        ("`layerdrop` of 0.1", dropping, cuda),
        ("transformers' own wav2vec2", stock, cuda),
    ):
        with pytest.raises(UserError, match=re.escape(words)):
            check_can_capture(one, device)
    with pytest.raises(UserError, match="give one of them"):
        parse_train(["--cuda-graphs", "--activation-checkpointing"])


def test_a_run_that_cannot_have_them_ends_before_anything_is_written(tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = run_script("train.py", "--demo", "--device", "cpu", "--cuda-graphs", "--output-dir", run)
    assert done.returncode == 2 and not run.exists()
    assert done.stderr.splitlines()[-1].startswith("error: Leave out --cuda-graphs")
