"""A micro-batch's kernels as one CUDA graph: the host then asks for all of them at once.

A graph holds what was asked of the card, nothing else. What else is in the forward and the backward pass, a
number that NumPy draws or a branch on a value, is frozen into it as it was when it was captured: hence
`--cuda-graphs` is off unless it is asked for. Dropout, which the card draws, follows the seed as ever.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from audiocls.data.collators import Batch
from audiocls.errors import UserError, is_out_of_memory, reason
from audiocls.log.phases import Phases
from audiocls.model.backbone import Backbone
from audiocls.streams import say

MOST_GRAPHS = 64  # each is some megabytes of the card's memory, besides what all share

ForwardBackward = Callable[[Batch, int], Tensor]  # a micro-batch, the step's clips -> the summed loss


class Graph(NamedTuple):
    graph: torch.cuda.CUDAGraph
    batch: Batch  # what it reads
    loss: Tensor  # what it writes, beside the gradients
    trained: list[nn.Parameter]  # whose gradients it adds to


class Graphs:
    """Calls `run` on a micro-batch: the first of a shape as it is, later ones as a graph made of the second.

    The gradients and the loss are the same. A graph adds to gradients that stay where they are in memory. Its
    loss is to be used before the next call, which may write over it.
    """

    def __init__(self, run: ForwardBackward, model: nn.Module, phase: Phases) -> None:
        self.run, self.phase = run, phase
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.gradients: dict[nn.Parameter, Tensor] = {}  # where graphs add to them
        self.seen: dict[tuple, list[nn.Parameter]] = {}  # of a shape, the parameters that got a gradient
        self.graphs: dict[tuple, Graph] = {}

    def __call__(self, batch: Batch, num_clips: int) -> Tensor:
        if self.phase.is_traced or self.phase.waits_for:  # to tell its parts
            return self.run(batch, num_clips)
        shape = (num_clips, *((name, tensor.shape) for name, tensor in batch.inputs.items()))
        if shape not in self.graphs:
            if len(self.graphs) == MOST_GRAPHS:
                return self.run(batch, num_clips)
            if shape not in self.seen:
                return self.first(shape, batch, num_clips)
            self.graphs[shape] = self.capture(self.seen[shape], batch, num_clips)
            if len(self.graphs) == MOST_GRAPHS:
                say(f"note: {MOST_GRAPHS} CUDA graphs are made; micro-batches of other shapes run without")
        graph = self.graphs[shape]
        self.put_gradients(graph.trained)
        copy(batch, graph.batch)
        graph.graph.replay()
        return graph.loss

    def first(self, shape: tuple, batch: Batch, num_clips: int) -> Tensor:
        """As it is, with the gradients so far set aside, to see which parameters get one."""
        before = {parameter: parameter.grad for parameter in self.parameters}
        for parameter in self.parameters:
            parameter.grad = None
        loss = self.run(batch, num_clips)
        self.seen[shape] = [parameter for parameter in self.parameters if parameter.grad is not None]
        for parameter, gradient in before.items():
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else gradient.add_(parameter.grad)
        return loss

    def capture(self, trained: list[nn.Parameter], batch: Batch, num_clips: int) -> Graph:
        inputs = {name: tensor.clone() for name, tensor in batch.inputs.items()}
        batch = replace(batch, inputs=inputs, labels=batch.labels.clone())
        self.put_gradients(trained)
        graph = torch.cuda.CUDAGraph()
        pool = next((one.graph.pool() for one in self.graphs.values()), None)  # no two run at once
        try:
            # The loader's thread may ask for pinned memory meanwhile: "thread_local" lets it.
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                loss = self.run(batch, num_clips)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            why = f"a micro-batch cannot be a CUDA graph ({reason(error)})"
            raise UserError(f"Leave out --cuda-graphs: {why}.") from error
        return Graph(graph, batch, loss, trained)

    def put_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Have the gradients so far where the graphs add to them: zeros where there is none yet."""
        new = [parameter for parameter in parameters if parameter not in self.gradients]
        self.gradients |= {parameter: torch.zeros_like(parameter) for parameter in new}
        none_yet = [self.gradients[parameter] for parameter in parameters if parameter.grad is None]
        if none_yet:
            torch._foreach_zero_(none_yet)
        for parameter in parameters:
            gradient = self.gradients[parameter]
            if parameter.grad is not None and parameter.grad is not gradient:
                gradient.copy_(parameter.grad)
            parameter.grad = gradient


def copy(batch: Batch, into: Batch) -> None:
    for name, tensor in batch.inputs.items():
        into.inputs[name].copy_(tensor)
    into.labels.copy_(batch.labels)


def check_can_capture(backbone: Backbone, device: torch.device, world_size: int = 1) -> None:
    """Raises UserError where a micro-batch is not the same kernels each time, or not on one CUDA GPU."""
    if device.type != "cuda":
        why = f"they are made on a CUDA GPU, not on {device.type}"
    elif world_size > 1:
        why = "of several GPUs they would have to hold the exchange of gradients, too"
    elif backbone.is_stock:
        why = f"transformers' own {backbone.config.model_type} runs, which may wait for the GPU"
    elif not backbone.is_alike_each_time:
        why = f"the model's config.json has a `layerdrop` of {backbone.config.layerdrop:g}, drawn each time"
    else:
        return
    raise UserError(f"Leave out --cuda-graphs: {why}.")
