"""Classify audio files with a fine-tuned model: `python infer.py --help`."""

import sys

from audiocls.config import parse_infer
from audiocls.errors import INPUTS_REFUSED, OK, exit_code_of


def main() -> int:
    config = parse_infer(sys.argv[1:])

    # Only from here on anything heavy is imported.
    from audiocls.inference.classifier import Classifier
    from audiocls.inference.output import expand, results_file, write_predictions

    paths = expand(config.inputs)
    classifier = Classifier.from_pretrained(config.model, device=config.device, precision=config.precision)
    predictions = classifier.stream(
        paths,
        top_k=config.top_k,
        batch_size=config.batch_size,
        max_seconds=config.max_seconds,
        max_decode_seconds=config.max_decode_seconds,
    )
    with results_file(config.output) as file:
        refused = write_predictions(predictions, config.format, config.top_k, file)
    if refused:
        print(f"{refused} of {len(paths)} inputs were refused", file=sys.stderr)
    return INPUTS_REFUSED if refused else OK


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
