"""What the tests share: a home of their own, no network, short synthetic clips, and a model that is exact."""

# ruff: noqa: E402 - the environment must be set before anything of Hugging Face is imported, which reads it once

import os
import tempfile

TEST_HOME = tempfile.TemporaryDirectory(prefix="audiocls-tests-")
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_HOME": f"{TEST_HOME.name}/huggingface",
    "XDG_CACHE_HOME": f"{TEST_HOME.name}/cache",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # The suite runs on all cores: more threads than that slow torch down many times over.
    "OMP_NUM_THREADS": "1",
}

from audiocls.torchaudio_guard import import_torchaudio

import_torchaudio()  # transformers imports torchaudio, whose compiled extension need not load everywhere

import json
import signal
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from audiocls.config import TrainConfig
from audiocls.data.collators import Batch, Collator, WaveformCollator
from audiocls.data.prepare import RunData, prepare_data
from audiocls.distributed import ALONE, Ranks
from audiocls.errors import Stopped
from audiocls.hub import quiet_transformers
from audiocls.log.profiling import StepProfiler
from audiocls.log.run_log import RunLog
from audiocls.model.backbone import Backbone, LoadedModel
from audiocls.model.loading import load_for_training, open_backbone
from audiocls.signals import StopSignal
from audiocls.training.checkpoint import TrainState
from audiocls.training.loop import finish, train

SAMPLING_RATE = 16_000
LABELS = ("hiss", "hum", "rise")  # sorted, as a folder's classes are
CLIP_SAMPLES = 800  # 50 ms
DROPOUTS = [f"{name}_dropout" for name in ("hidden", "attention", "activation", "feat_proj", "final")]

# A Wav2Vec2 of the base model's kind (group norm, no attention mask) with everything random switched off. Its
# three convolutions make 19 frames of 800 samples: room for SpecAugment's masks where a test wants them.
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "conv_dim": (16, 16, 16),
    "conv_kernel": (10, 3, 2),
    "conv_stride": (5, 4, 2),
    "feat_extract_norm": "group",
    "do_stable_layer_norm": False,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 16,
    "layerdrop": 0.0,
    "apply_spec_augment": False,
    "mask_time_prob": 0.0,
} | dict.fromkeys(DROPOUTS, 0.0)
# Everything random that Wav2Vec2 has, strong enough to show in every step.
RANDOM: dict[str, Any] = {
    "layerdrop": 0.3,
    "apply_spec_augment": True,
    "mask_time_prob": 0.3,
    "mask_time_length": 2,
    "mask_feature_prob": 0.1,
    "mask_feature_length": 2,
} | dict.fromkeys(DROPOUTS, 0.1)


# The process


def pytest_unconfigure() -> None:
    """Also where the suite runs in several processes, which end without cleaning up."""
    TEST_HOME.cleanup()


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Any connection to another machine fails at once and says so."""
    connect, here = socket.socket.connect, ("127.0.0.1", "::1", "localhost")

    def connect_here(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in here:
            raise PermissionError(f"a test tried to reach {address}")
        return connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect_here)
        yield


@pytest.fixture(autouse=True)
def own_randomness() -> None:
    """No test hangs on what another one drew."""
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture
def signal_handlers() -> Iterator[None]:
    """Puts back the process's signal handlers, which a StopSignal replaces."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


# Clips


def waveform(label: str, num_samples: int, generator: np.random.Generator) -> np.ndarray:
    """float32 [samples]: a clip of one of LABELS, unlike every other clip."""
    seconds = np.arange(num_samples) / SAMPLING_RATE
    pitch = generator.uniform(200, 2000)
    match label:
        case "hum":
            sound = np.sin(2 * np.pi * pitch * seconds)
        case "rise":
            sound = np.sin(2 * np.pi * pitch * (1 + 20 * seconds) * seconds)
        case _:
            sound = generator.standard_normal(num_samples) / 3
    noise = 0.1 * generator.standard_normal(num_samples)
    return (generator.uniform(0.1, 0.8) * (sound + noise) / 2).astype(np.float32)


def write_clips(
    folder: Path, lengths: Sequence[int], seed: int = 0, sampling_rate: int = SAMPLING_RATE
) -> Path:
    """`folder/<label>/<nnnn>.wav`, one for each length in samples; the labels take turns."""
    for index, num_samples in enumerate(lengths):
        label = LABELS[index % len(LABELS)]
        path = folder / label / f"{index:04d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        sound = waveform(label, num_samples, np.random.default_rng([seed, index]))
        soundfile.write(path, sound, sampling_rate, subtype="FLOAT")
    return folder


@pytest.fixture(scope="session")
def run_data(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RunData]:
    """run_data(num_clips, num_eval=12, num_test=0, samples=800) -> RunData, by way of files and prepare_data.

    Clips have `samples` samples each, or where it is a pair, lengths between its two.
    """
    made: dict[tuple, RunData] = {}

    def make(
        num_clips: int, num_eval: int = 12, num_test: int = 0, samples: int | tuple[int, int] = CLIP_SAMPLES
    ) -> RunData:
        key = (num_clips, num_eval, num_test, samples)
        if key not in made:
            folder = tmp_path_factory.mktemp("run-data")
            splits = {"train": num_clips, "validation": num_eval, "test": num_test}
            for seed, (split, count) in enumerate(splits.items()):
                shortest, longest = samples if isinstance(samples, tuple) else (samples, samples)
                lengths = np.random.default_rng(seed).integers(shortest, longest, count, endpoint=True)
                write_clips(folder / "clips" / split, lengths.tolist(), seed)
            config = TrainConfig(
                dataset=str(folder / "clips"), cache_dir=str(folder / "cache"), max_seconds=None
            )
            made[key] = prepare_data(config, SAMPLING_RATE, min_samples=40)
        return made[key]

    return make


# Models


def save_backbone(folder: Path, dtype: torch.dtype = torch.float32, **config: Any) -> Path:
    """A Wav2Vec2 without a head, of random weights: a backbone to fine-tune.

    `dtype` is what its weights are stored in; the other settings go into its config.json, SMALL below them.
    """
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    quiet_transformers()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Wav2Vec2Model(Wav2Vec2Config(**SMALL | config))
    # Weights of a trained model's size: as initialised (std 0.02) all clips sound nearly alike.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    model.to(dtype).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def build_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., LoadedModel]:
    """build_model(seed=0, stock=False, **config) -> LoadedModel: SMALL changed by `config`."""
    folders: dict[str, Path] = {}

    def make(seed: int = 0, stock: bool = False, **config: Any) -> LoadedModel:
        if repr(config) not in folders:
            folders[repr(config)] = save_backbone(tmp_path_factory.mktemp("model"), **config)
        backbone = open_backbone(str(folders[repr(config)]), stock=stock)
        return load_for_training(backbone, LABELS, seed=seed)

    return make


def collator(backbone: Backbone) -> Collator:
    """As evaluation has it: padded no further than the batch needs."""
    return WaveformCollator(backbone.feature_extractor)


@torch.no_grad()
def spread_logits(model: Any, batch: Batch) -> float:
    """Scale and shift `model`'s classifier so that its logits' std over clips and labels is 1.

    Each label's logit is made to differ between the clips, about a mean of 0: two outputs that agree then
    agree in what the encoder made of the clips. A random head gives logits near 0, where anything is close to
    anything. Returns the std that was reached.
    """
    was_training = model.training
    model.eval()
    logits = model(**batch.inputs)  # [clips, labels]
    factor = 1 / (logits - logits.mean(dim=0)).std()
    head = getattr(model, "model", model).classifier  # of transformers' own model one further down
    head.weight.mul_(factor)
    head.bias.copy_((head.bias - logits.mean(dim=0)) * factor)
    spread = model(**batch.inputs).std().item()
    model.train(was_training)
    return spread


# Runs

TIMES = ("seconds", "clips_per_second", "audio_seconds_per_second", "data_wait_seconds", "wall_seconds")


def without_times(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key not in TIMES} for record in records]


@dataclass
class Run:
    """What a training run left."""

    state: TrainState | None  # None where it was stopped
    loaded: LoadedModel
    folder: Path

    def records(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, of one kind or all."""
        lines = (self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [record for record in map(json.loads, lines) if kind in (None, record["kind"])]

    def logged(self, kind: str, key: str) -> list[Any]:
        """What metrics.jsonl has under `key` in the lines of one kind."""
        return [record[key] for record in self.records(kind)]

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in self.loaded.model.state_dict().items()}


@pytest.fixture
def stop(signal_handlers: None) -> StopSignal:
    """As train.py has it, with the process's own signal handlers put back after the test."""
    return StopSignal()


@dataclass
class Lab:
    """What the tests of training work with."""

    data: Callable[..., RunData]
    build: Callable[..., LoadedModel]
    stop: StopSignal
    folder: Path  # where the runs lie, each under its name

    def spread(self, data: RunData, **config: Any) -> LoadedModel:
        """build(**config), spread_logits over `data`'s first 32 clips."""
        loaded = self.build(**config)
        clips = [data.train[index] for index in range(min(32, len(data.train)))]
        assert abs(spread_logits(loaded.model, collator(loaded.backbone)(clips)) - 1) < 0.1
        return loaded

    def train(
        self,
        name: str,
        loaded: LoadedModel,
        data: RunData,
        *,
        with_finish: bool = False,
        profiler: StepProfiler | None = None,
        ranks: Ranks = ALONE,
        **settings: Any,
    ) -> Run:
        """The real loop on the CPU, without the command line.

        Settings are TrainConfig's; `with_finish=True` adds what comes after the loop.
        """
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        defaults = {"device": "cpu", "precision": "fp32", "log_every": 1, "num_workers": 0}
        config, device = TrainConfig(**defaults | settings), torch.device("cpu")
        with RunLog(folder if ranks.is_first else None, profiler) as log:
            try:
                state = train(config, loaded, data, device, folder, log, self.stop, ranks)
            except Stopped:
                return Run(None, loaded, folder)
            if with_finish:
                finish(config, loaded, data, device, folder, log, self.stop, state, ranks)
        return Run(state, loaded, folder)


@pytest.fixture
def lab(
    run_data: Callable[..., RunData],
    build_model: Callable[..., LoadedModel],
    stop: StopSignal,
    tmp_path: Path,
) -> Lab:
    return Lab(run_data, build_model, stop, tmp_path)
