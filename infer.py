"""Classify audio with a fine-tuned model, or export it: `python infer.py --help`."""

import gc
import sys
from collections.abc import Iterable

from audiocls.errors import INPUTS_REFUSED, OK, exit_code_of, tell
from audiocls.flags import parse_infer
from audiocls.lean_torch import import_lean_torch


def main() -> int:
    config = parse_infer(sys.argv[1:])

    # Only from here on anything heavy is imported. Looking for garbage meanwhile would take a quarter longer.
    gc.disable()
    import_lean_torch()
    from audiocls.inference.classifier import Classifier

    gc.freeze()
    gc.enable()

    if config.export and config.output:
        from audiocls.inference.export import check_packages, export

        check_packages(config.export)
        classifier = Classifier.from_pretrained(config.model, device="cpu", backbone=config.backbone)
        print(export(classifier, config.export, config.output))
        return OK

    from audiocls.inference.inputs import expand
    from audiocls.inference.output import (
        results_file,
        unlike_training,
        with_notes,
        with_progress,
        write_predictions,
    )

    clips = None
    if config.dataset:
        from audiocls.inference.forms import by_recording
        from audiocls.inference.scoring import ScoredClips, in_order_of, labelled_clips

        clips = labelled_clips(config)
    inputs: Iterable = expand(config.inputs) if clips is None else by_recording(clips)
    total = len(clips) if clips is not None else len(inputs) if isinstance(inputs, list) else None
    classifier = Classifier.from_pretrained(
        config.model, device=config.device, precision=config.precision, backbone=config.backbone
    )
    for note in unlike_training(config, classifier.backbone.max_seconds):
        tell(note)
    scored = ScoredClips(classifier, clips) if clips is not None else None
    predictions = classifier.stream(
        inputs,
        top_k=len(classifier.labels) if scored else config.top_k,
        batch_size=config.batch_size,
        max_seconds=config.max_seconds,
        max_decode_seconds=config.max_decode_seconds,
        channel=config.channel,
        trim_silence=config.trim_silence,
        window_seconds=config.window,
        hop_seconds=config.hop,
        aggregate=config.aggregate,
    )
    if scored and clips is not None:
        predictions = in_order_of(clips, scored.watch(predictions, config.top_k))
    predictions = with_notes(predictions)
    if sys.stderr.isatty() and (config.output or not sys.stdout.isatty()):
        predictions = with_progress(predictions, total)
    with results_file(config.output) as file:
        refused = write_predictions(
            predictions,
            config.format,
            min(config.top_k, len(classifier.labels)),
            file,
            windows=config.window is not None,
            true_labels=config.dataset is not None,
        )
    for line in scored.lines() if scored else ():
        tell(line)
    if refused:
        tell(f"{refused}{f' of {total}' if total else ' of the'} inputs were refused")
    return INPUTS_REFUSED if refused else OK


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
