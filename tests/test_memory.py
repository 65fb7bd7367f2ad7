"""Out of memory: what to type for the same steps; --batch-size auto, on a GPU that is made believe."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from audiocls.config import TrainConfig
from audiocls.data.prepare import RunData
from audiocls.errors import OutOfMemory, UserError, out_of_memory_explained
from audiocls.flags import parse_train
from audiocls.model.backbone import LoadedModel
from audiocls.training import memory
from audiocls.training.memory import advice, bytes_needed, fit_batch_size, fits, smaller_work

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
FP32 = TrainConfig(precision="fp32")
MakeData = Callable[..., RunData]
MakeModel = Callable[..., LoadedModel]


@pytest.mark.parametrize(
    ("batch_size", "accumulation", "words"),
    [
        (32, 4, "--batch-size 16 --gradient-accumulation-steps 8"),
        (6, 1, "--batch-size 3 --gradient-accumulation-steps 2"),
        (5, 3, "--batch-size 1 --gradient-accumulation-steps 15"),
        (1, 8, "--max-seconds"),
    ],
)
def test_what_to_type_makes_the_same_steps_of_at_most_half_the_size(
    batch_size: int, accumulation: int, words: str
) -> None:
    assert words in advice(TrainConfig(batch_size=batch_size, gradient_accumulation_steps=accumulation))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB). Tried to allocate 1 GB."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
        torch.OutOfMemoryError(),
        MemoryError(),
    ],
    ids=["CUDA", "CPU", "MPS", "cuBLAS", "cuDNN", "cuDNN's workspace", "wordless", "Python"],
)
def test_running_out_of_memory_is_one_line_and_exit_code_5(error: Exception) -> None:
    words = "--batch-size 16 --gradient-accumulation-steps 8"
    with pytest.raises(OutOfMemory, match=words) as caught, out_of_memory_explained(advice(TrainConfig())):
        raise error
    assert caught.value.exit_code == 5


def test_where_one_clip_is_too_much_no_smaller_batch_is_advised() -> None:
    frozen = "--activation-checkpointing or a shorter --max-seconds"
    assert smaller_work(TrainConfig()) == f"{frozen} or --freeze feature-encoder"
    assert smaller_work(TrainConfig(freeze="feature-encoder")) == frozen
    assert "checkpointing" not in smaller_work(TrainConfig(activation_checkpointing=True))


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="shapes"), out_of_memory_explained("less"):
        raise RuntimeError("shapes differ")


def test_a_step_may_be_given_as_clips_and_auto_keeps_the_guides() -> None:
    assert parse_train(["--global-batch-size", "24"]).clips_per_step == 24
    assert parse_train(["--batch-size", "auto"]).clips_per_step == 128
    assert parse_train(["--batch-size", "auto", "--global-batch-size", "48"]).clips_per_step == 48
    with pytest.raises(UserError, match="--batch-size"):
        parse_train(["--batch-size", "large"])


def test_without_a_gpu_auto_is_the_usual(run_data: MakeData, build_model: MakeModel) -> None:
    clips = run_data(12).train
    for step, size in ((128, 32), (20, 20)):
        config = TrainConfig(global_batch_size=step)
        fitted = fit_batch_size(config, build_model(), clips, CPU)
        assert (fitted.batch_size, fitted.clips_per_step) == (size, step)
    typed = TrainConfig(batch_size=5)
    assert fit_batch_size(typed, build_model(), clips, CPU) == typed


def test_a_resumed_run_has_the_micro_batches_it_had(run_data: MakeData, build_model: MakeModel) -> None:
    fitted = fit_batch_size(TrainConfig(), build_model(), run_data(12).train, CUDA, before=48)
    assert (fitted.batch_size, fitted.clips_per_step, fitted.global_batch_size) == (48, 128, 128)


def test_what_is_counted_is_what_the_backward_pass_keeps(run_data: MakeData, build_model: MakeModel) -> None:
    """Of two clips twice as much as of one, and no weights; a frozen encoder keeps little."""
    clips, loaded = run_data(12).train, build_model()
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    trained = 3 * sum(parameter.nbytes for parameter in loaded.model.parameters())
    one, two, three = (bytes_needed(size, FP32, loaded, clips, CPU) - trained for size in (1, 2, 3))
    frames = loaded.backbone.frames_of_samples(clips.num_samples.max())
    assert two - one == three - two > 4 * frames * loaded.backbone.config.intermediate_size
    assert all(torch.equal(before[name], tensor) for name, tensor in loaded.model.state_dict().items())
    for parameter in loaded.model.encoder.parameters():
        parameter.requires_grad_(False)
    assert bytes_needed(2, FP32, loaded, clips, CPU) < 0.2 * two


@pytest.fixture
def gpu_for(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, LoadedModel], list[int]]:
    """gpu_for(n, loaded): a GPU with room for n clips, for all memory.py can tell; returns what it tries."""
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 1)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 2)
    monkeypatch.setattr(memory, "fits", lambda size, config, *rest: fits(size, FP32, *rest[:2], CPU))
    counted = lambda size, config, *rest: bytes_needed(size, FP32, *rest[:2], CPU)  # noqa: E731
    monkeypatch.setattr(memory, "bytes_needed", counted)

    def make(most: int, loaded: LoadedModel) -> list[int]:
        tried: list[int] = []

        def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            tried.append(len(kwargs["input_values"]))
            if tried[-1] > most:
                raise torch.OutOfMemoryError("CUDA out of memory.")

        loaded.model.register_forward_pre_hook(hook, with_kwargs=True)
        return tried

    return make


GpuFor = Callable[[int, LoadedModel], list[int]]


@pytest.mark.parametrize(
    ("room", "found", "tried"),
    [(100, 20, [1, 2, 20]), (7, 5, [1, 2, 20, 10, 5]), (1, 1, [1, 2, 20, 10, 5, 3, 2, 1])],
)
def test_auto_halves_until_the_longest_clips_fit_and_keeps_the_step(
    room: int, found: int, tried: list[int], gpu_for: GpuFor, run_data: MakeData, build_model: MakeModel
) -> None:
    data, loaded = run_data(40), build_model()
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    seen = gpu_for(room, loaded)
    config = TrainConfig(batch_size="auto", global_batch_size=20)
    fitted = fit_batch_size(config, loaded, data.train, CUDA)
    assert (fitted.batch_size, fitted.clips_per_step, seen) == (found, 20, tried)
    assert all(torch.equal(before[name], tensor) for name, tensor in loaded.model.state_dict().items())
    assert all(parameter.grad is None for parameter in loaded.model.parameters())


def test_auto_gives_up_where_one_clip_is_too_much(
    gpu_for: GpuFor, run_data: MakeData, build_model: MakeModel
) -> None:
    loaded = build_model()
    gpu_for(0, loaded)
    with pytest.raises(OutOfMemory, match="Not even one clip fits"):
        fit_batch_size(TrainConfig(batch_size="auto"), loaded, run_data(12).train, CUDA)


@pytest.mark.parametrize(("free", "size"), [(1e12, 20), (2.0, 5)], ids=["plainly", "by trying"])
def test_a_step_that_plainly_fits_is_one_micro_batch(
    free: float,
    size: int,
    gpu_for: GpuFor,
    run_data: MakeData,
    build_model: MakeModel,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    loaded = build_model()
    tried = gpu_for(7, loaded)
    monkeypatch.setattr(memory, "free_bytes", lambda device: free)
    config = TrainConfig(global_batch_size=20)
    fitted = fit_batch_size(config, loaded, run_data(40).train, CUDA)
    assert (fitted.batch_size, fitted.clips_per_step) == (size, 20)
    assert tried == ([1, 2] if free > 2 else [1, 2, 20, 10, 5])  # the first are counted
    assert ("a step of 20 clips is one micro-batch" in capsys.readouterr().out) == (free > 2)


def test_layers_that_may_be_dropped_are_counted(run_data: MakeData, build_model: MakeModel) -> None:
    clips = run_data(12).train
    loaded = build_model(layerdrop=0.5, num_hidden_layers=4)
    counted = {bytes_needed(2, FP32, loaded, clips, CPU) for _ in range(4)}
    assert counted == {bytes_needed(2, FP32, build_model(num_hidden_layers=4), clips, CPU)}
    assert loaded.model.encoder.encoder.config.layerdrop == 0.5  # as it was


def test_no_more_than_a_micro_batch_may_last_is_counted(run_data: MakeData, build_model: MakeModel) -> None:
    clips, loaded = run_data(12).train, build_model()
    seconds = clips.num_samples.max() / loaded.backbone.sampling_rate
    bounded = TrainConfig(precision="fp32", max_batch_seconds=float(3.5 * seconds))
    assert bytes_needed(12, bounded, loaded, clips, CPU) == bytes_needed(3, FP32, loaded, clips, CPU)


def test_cuda_graphs_are_counted_beside_what_runs_without(run_data: MakeData, build_model: MakeModel) -> None:
    clips, loaded = run_data(12).train, build_model()
    trained = 3 * sum(parameter.nbytes for parameter in loaded.model.parameters())
    both = (TrainConfig(precision="fp32", cuda_graphs=graphs) for graphs in (False, True))
    without, with_them = (bytes_needed(3, config, loaded, clips, CPU) - trained for config in both)
    assert with_them == 2 * without > 0
