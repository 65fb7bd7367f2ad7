"""Which device computes, and in which precision."""

import contextlib
import ctypes

import torch

from audiocls.config import device_problems
from audiocls.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str) -> torch.device:
    """`auto`: a CUDA GPU, else Apple's, else the CPU, made ready to be computed on.

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
    """`auto`: bf16 on a GPU that has it in hardware, else fp32. Raises UserError for an unknown name."""
    if name not in ("auto", *DTYPES):
        raise UserError(f"--precision is {name!r}: give auto, {', '.join(DTYPES)}.")
    if name != "auto":
        return name
    if device.type == "cuda":
        with torch.cuda.device(device):
            if torch.cuda.is_bf16_supported(including_emulation=False):
                return "bf16"
    return "fp32"


def synchronize(device: torch.device) -> None:
    """Wait until the device has done everything it was asked for."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """Matrix work in `precision`; nothing at all for fp32."""
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")


def device_name(device: torch.device) -> str:
    """The GPU's name; of a CPU its widest instructions and the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"{torch.backends.cpu.get_cpu_capability()} CPU, {torch.get_num_threads()} threads"
    return device.type
