"""How a device is made ready; what is read back from it."""

from collections.abc import Iterator

import pytest
import torch

from audiocls.devices import Readback, autocast, pick_device, pick_precision


@pytest.fixture
def made_believe_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]
    torch.backends.cuda.enable_cudnn_sdp(True)


@pytest.mark.usefixtures("made_believe_gpu")
@pytest.mark.parametrize("precision", ["auto", "bf16", "fp32", "tf32"])
def test_on_a_gpu_only_tf32_is_tf32_and_cudnns_attention_is_off(precision: str) -> None:
    assert pick_device("cuda", "tf32" if precision != "tf32" else "fp32").type == "cuda"  # another one before
    pick_device("cuda", precision)
    is_tf32 = precision == "tf32"
    assert torch.get_float32_matmul_precision() == ("high" if is_tf32 else "highest")
    assert torch.backends.cudnn.allow_tf32 == is_tf32
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_tf32_is_float32_and_elsewhere_than_on_cuda_it_is_fp32() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert pick_precision("tf32", cuda) == "tf32" and pick_precision("tf32", cpu) == "fp32"
    with autocast(cpu, "tf32"):
        assert not torch.is_autocast_enabled("cpu")


def test_what_is_read_back_is_what_it_was_and_has_no_gradient() -> None:
    numbers = torch.tensor([1.5, 2.5], requires_grad=True)
    read = Readback(numbers).wait()
    assert read.tolist() == [1.5, 2.5] and not read.requires_grad
