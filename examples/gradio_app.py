"""A page to drop a recording on, or to speak into: `python examples/gradio_app.py runs/demo-tiny`.

Bars for the best labels, and the waveform coloured by what its windows were taken for. It needs the `gradio`
extra: `pip install -e '.[gradio]'`.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import gradio as gr
import matplotlib
import numpy as np
import soundfile
from matplotlib.figure import Figure

from audiocls import Classifier
from audiocls.errors import UserError
from audiocls.inference.classifier import Prediction

COLUMNS = 1200  # of the drawn waveform


def main() -> None:
    parser = argparse.ArgumentParser(description="Classify recordings on a web page.")
    parser.add_argument("model", help="run folder, saved model or Hub id")
    parser.add_argument("--port", type=int, default=7860)
    args = parser.parse_args()
    classifier = Classifier.from_pretrained(args.model)
    page(classifier, Path(args.model).name).launch(server_port=args.port)


def page(classifier: Classifier, title: str) -> gr.Blocks:
    with gr.Blocks(title=title) as blocks:
        gr.Markdown(f"# {title}")
        with gr.Row():
            with gr.Column():
                audio = gr.Audio(type="filepath", format="wav", label="Drop a recording, or speak")
                window = gr.Slider(0.1, 10, 1, step=0.1, label="Seconds in a window")
            whole = gr.Label(num_top_classes=5, label="The whole recording: its windows' mean")
        plot = gr.Plot(label="Its windows", show_label=False)
        gr.on([audio.change, window.release], answerer(classifier), [audio, window], [whole, plot])
    return blocks


def answerer(classifier: Classifier) -> Callable:
    def answer(path: str | None, window_seconds: float) -> tuple[dict[str, float] | None, Figure | None]:
        if path is None:  # it was taken away
            return None, None
        try:
            *windows, whole = classifier(path, window_seconds=window_seconds, hop_seconds=window_seconds / 2)
        except UserError as error:  # a window longer, or shorter, than the model takes
            raise gr.Error(str(error), print_exception=False) from None
        if whole.error is not None:
            raise gr.Error(f"The recording {whole.error}.", print_exception=False)
        return dict(whole.scores), drawing(path, windows, classifier.labels)

    return answer


def drawing(path: str, windows: list[Prediction], labels: list[str]) -> Figure:
    """The waveform, coloured by the best label of the window whose middle is nearest."""
    with soundfile.SoundFile(path) as file:
        size = max(1, file.frames // COLUMNS)
        peaks = np.array([np.abs(block).max() for block in file.blocks(size, dtype="float32")])
        seconds = np.arange(len(peaks)) * size / file.samplerate
    tab20 = matplotlib.color_sequences["tab20"]
    colors = [*tab20[::2], *tab20[1::2]]  # the strong ones, then their pale twins
    middles = np.array([(window.start + window.end) / 2 for window in windows])
    edges = [0, *(middles[1:] + middles[:-1]) / 2, windows[-1].end]
    figure = Figure(figsize=(12, 3), layout="constrained")
    axes = figure.subplots()
    named: set[str | None] = set()
    for window, start, end in zip(windows, edges, edges[1:], strict=False):
        inside = (seconds >= start) & (seconds <= end)
        color = colors[labels.index(str(window.label)) % len(colors)]
        name = None if window.label in named else window.label
        axes.fill_between(
            seconds[inside], -peaks[inside], peaks[inside], color=color, label=name, linewidth=0
        )
        axes.axvspan(start, end, color=color, alpha=0.15, linewidth=0)
        named.add(window.label)
    axes.set(xlabel="seconds", yticks=[], xlim=(0, edges[-1]))
    figure.legend(loc="outside lower center", ncols=10, frameon=False, fontsize="large")
    return figure


if __name__ == "__main__":
    main()
