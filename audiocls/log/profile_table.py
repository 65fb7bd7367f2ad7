"""The table of `--profile`."""

from pathlib import Path
from typing import Any

from audiocls.errors import number_of
from audiocls.log.trace import Part, with_layers_summed


def as_table(figures: dict[str, Any], parts: dict[str, Part], folder: Path) -> str:
    """Lines for the terminal, of StepProfiler.figures and the parts of the model."""
    alone, as_it_runs = figures["phase_milliseconds"], figures["host_milliseconds"]
    total, step = sum(alone.values()), figures["step_milliseconds"]
    lines = [f"profile on {figures['device']} in {figures['precision']}: the host's time in a step"]
    lines.append(f"  {'':20}{'as it runs':>13}{'one by one':>14}")
    lines += [
        f"  {name:20}{as_it_runs[name]:10.1f} ms{ms:11.1f} ms {ms / total:7.1%}" for name, ms in alone.items()
    ]
    memory = f"{figures['peak_memory_gigabytes']:.2f} GB of {figures['memory_of']} at most"
    lines += [
        f"  {'a step':20}{step:10.1f} ms{total:11.1f} ms",
        f"  {figures['clips_per_second']:.4g} clips/s, {figures['audio_seconds_per_second']:.4g} audio s/s, "
        f"{figures['padding_share']:.1%} padding, {memory}",
    ]
    if "share_of_peak" in figures:
        lines.append(
            f"  {figures['flops_per_second'] / 1e12:.3g} TFLOP/s, {figures['share_of_peak']:.1%} of the "
            f"{figures['peak_flops_per_second'] / 1e12:.3g} of a large matrix product"
        )
    if "gpu_idle_share" in figures:
        idle = figures["gpu_idle_share"]
        bound = {"device": "the GPU", "host": "the host", "batches": "the wait for batches"}
        lines += [
            f"  the GPU is busy for {(1 - idle) * step:.1f} ms of a step, idle for {idle:.1%} of it: "
            f"{bound[figures['bound_by']]} is the bound",
            f"  {figures['kernels_per_step']:,.0f} kernels a step, "
            f"{figures['kernels_per_micro_batch']:,.0f} a micro-batch",
        ]
    lines += lines_of_parts(parts, figures.get("part_shares_of_peak", {}))
    lines.append(f"  next: {figures['next_change']}")
    lines.append(f"  the trace is {folder / 'trace.json.gz'}: open it at https://ui.perfetto.dev")
    return "\n".join(lines)


def lines_of_parts(parts: dict[str, Part], shares_of_peak: dict[str, float]) -> list[str]:
    """A line a part, with its shares of the time of all; the layers in one. None where no time is known."""
    num_layers = sum(name.startswith("layer ") for name in parts)
    parts = with_layers_summed(parts)
    both = sum(part.seconds for part in parts.values())
    if not both:
        return []
    lines = [f"  {'parts of the model:':24} forward backward  of peak      keeps"]
    for name, part in parts.items():
        shown = number_of(num_layers, "layer") if name == "layers" else name
        forward, backward = part.forward_seconds / both, part.backward_seconds / both
        of_peak = f"{shares_of_peak[name]:.1%}" if name in shares_of_peak else ""
        keeps = f"{part.memory_bytes / 1e6:,.0f} MB" if part.memory_bytes else ""
        lines.append(f"    {shown:22} {forward:7.1%} {backward:8.1%} {of_peak:>8} {keeps:>10}".rstrip())
    return lines
