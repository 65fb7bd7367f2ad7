"""Which device computes, and in which precision."""

import contextlib
import ctypes
import os

import torch
from torch import Tensor

from audiocls.config import device_problems
from audiocls.errors import UserError

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str, precision: str = "auto") -> torch.device:
    """`auto`: a CUDA GPU, else Apple's, else the CPU, made ready to compute in `precision`.

    Whether a GPU computes float32 exactly or in TF32 holds for the whole process, until this is asked again.
    Raises UserError where the one named is not there.
    """
    if problems := device_problems(name):
        raise UserError(problems[0])
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {name}: torch {torch.__version__} sees no CUDA GPU. Use --device cpu.")
    if device.type == "cuda" and device.index is not None and device.index >= torch.cuda.device_count():
        raise UserError(f"--device {name}: there are {torch.cuda.device_count()} GPUs, counted from cuda:0.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"--device {name}: torch sees no Apple GPU. Use --device cpu.")
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # for what names none: pinned memory, and waiting
    if device.type == "cuda":
        # torch computes convolutions in TF32 unless told not to, and matrix products in float32.
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
        # cuDNN's attention, where torch prefers it: wrong shares of dropout in torch 2.11 (pytorch pull
        # 174245), NaN in gradients with a mask at some lengths (pytorch issue 196678), a graph built for each
        # new shape.
        torch.backends.cuda.enable_cudnn_sdp(False)
    if device.type == "cpu":
        keep_freed_memory()
    return device


def keep_freed_memory() -> None:
    """Let the C library keep what is freed (glibc; elsewhere nothing happens).

    It would return the large tensors of every step to the system and fault them in again at the next: a step
    on six clips of 6 s then takes 1.5 times as long (benchmarks/kernels.py).
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
        for size in (2**25, 2**30):  # older ones refuse more than the first
            libc.mallopt(m_mmap_threshold, size)
        libc.mallopt(m_trim_threshold, 2**31 - 1)


def pick_precision(name: str, device: torch.device) -> str:
    """`auto`: bf16 on a GPU that has it in hardware, else fp32; `tf32` is only there on CUDA GPUs, too.

    Raises UserError for an unknown name.
    """
    if name not in ("auto", *DTYPES):
        raise UserError(f"--precision is {name!r}: give auto, {', '.join(DTYPES)}.")
    if name == "tf32" and device.type != "cuda":
        return "fp32"
    if name != "auto":
        return name
    if device.type == "cuda":
        with torch.cuda.device(device):
            if torch.cuda.is_bf16_supported(including_emulation=False):
                return "bf16"
    return "fp32"


def available_cores() -> int:
    """How many CPU cores this process may use."""
    return (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()) or 1


def synchronize(device: torch.device) -> None:
    """Wait until the device has done everything it was asked for."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


class Readback:
    """A tensor on its way from the device to the host."""

    def __init__(self, tensor: Tensor) -> None:
        """Of a CUDA GPU `tensor` is copied when what it is made by is done: nothing waits."""
        on_gpu = tensor.device.type == "cuda"
        self.copy = tensor.detach().to("cpu", non_blocking=on_gpu)  # into pinned memory
        self.arrival = torch.cuda.current_stream(tensor.device).record_event() if on_gpu else None

    def wait(self) -> Tensor:
        """The tensor on the host; the device may still be at what it was asked for since."""
        if self.arrival is not None:
            self.arrival.synchronize()
        return self.copy


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """Matrix work in `precision`; nothing at all for fp32 and tf32."""
    dtype = DTYPES[precision]
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def device_name(device: torch.device) -> str:
    """The GPU's name; of a CPU its widest instructions and the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"{torch.backends.cpu.get_cpu_capability()} CPU, {torch.get_num_threads()} threads"
    return device.type
