"""torchaudio is usable whether its compiled extension loads, does not load, or does not fit."""

import sys

import pytest
from data_helpers import run_script

from audiocls.torchaudio_guard import import_torchaudio

# What a broken installation does, whatever this one does.
DOES_NOT_LOAD = """
def load_library(path, load=torch.ops.load_library):
    if "torchaudio" in str(path):
        raise OSError(f"Could not load this library: {path}")
    return load(path)

torch.ops.load_library = load_library
"""
# An extension that loads (its operators are stood in for) and was built for CUDA `cuda_version`.
LOADS = """
class Operators:
    cuda_version = staticmethod(lambda: 13000)
    is_align_available = staticmethod(lambda: False)
    _lfilter_core_loop = _overdrive_core_loop = None

torch.ops.load_library = lambda path: None
torch.ops._torchaudio = torch.ops.torchaudio = Operators()
"""
OTHER_CUDA = LOADS + 'torch.version.cuda = "12.6"\n'
SAME_CUDA = LOADS + 'torch.version.cuda = "13.0"\n'

USE = """
import sys
from audiocls.torchaudio_guard import import_torchaudio

try:
    import torchaudio
    sys.exit("torchaudio was meant not to import")
except (OSError, RuntimeError) as error:
    print(type(error).__name__)

import numpy as np
from audiocls.data.resampling import resample
torchaudio = import_torchaudio()
assert import_torchaudio() is torchaudio is sys.modules["torchaudio"]
waveform = np.sin(np.arange(8_000, dtype=np.float32) / 5)
resampled = resample(waveform, 8_000, 16_000)
again = torchaudio.functional.resample(torch.from_numpy(waveform), 8_000, 16_000)
assert len(resampled) == 16_000 and (resampled == again.numpy()).all()

from transformers import ASTFeatureExtractor, Wav2Vec2FeatureExtractor
spectrogram = ASTFeatureExtractor()(resampled, sampling_rate=16_000, return_tensors="pt")["input_values"]
assert spectrogram.shape == (1, 1024, 128) and spectrogram.isfinite().all()
Wav2Vec2FeatureExtractor()(resampled, sampling_rate=16_000)

try:
    torchaudio.functional.forced_align(torch.zeros(1, 1, 1), torch.ones(1, 1, dtype=torch.int32))
except RuntimeError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("broken", "error"), [(DOES_NOT_LOAD, "OSError"), (OTHER_CUDA, "RuntimeError")], ids=["missing", "cuda"]
)
def test_resampling_and_feature_extractors_work_where_the_extension_does_not(broken: str, error: str) -> None:
    finished = run_script("-c", "import torch\n" + broken + USE)
    assert finished.returncode == 0, finished.stderr
    failed, *said = finished.stdout.splitlines()
    assert failed == error
    assert "forced_align needs torchaudio's compiled extension" in " ".join(said)


def test_threads_that_need_it_at_once_get_the_same_one() -> None:
    check = """
from concurrent.futures import ThreadPoolExecutor
from audiocls.torchaudio_guard import import_torchaudio
sys.setswitchinterval(1e-5)
with ThreadPoolExecutor(4) as pool:
    found = list(pool.map(lambda _: import_torchaudio(), range(4)))
assert all(one is sys.modules["torchaudio"] for one in found)
"""
    finished = run_script("-c", "import torch, sys\n" + DOES_NOT_LOAD + check)
    assert finished.returncode == 0, finished.stderr


def test_a_torchaudio_that_loads_is_left_as_it_is() -> None:
    check = """
from audiocls.torchaudio_guard import import_torchaudio
import sys
torchaudio = import_torchaudio()
extension = sys.modules["torchaudio._extension"]
assert extension.__file__ and extension._IS_TORCHAUDIO_EXT_AVAILABLE
import torchaudio as imported
assert imported is torchaudio is import_torchaudio()
"""
    finished = run_script("-c", "import torch\n" + SAME_CUDA + check)
    assert finished.returncode == 0, finished.stderr


def test_where_torchaudio_is_not_installed_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchaudio", None)
    with pytest.raises(ModuleNotFoundError, match="torchaudio"):
        import_torchaudio()
