"""The worst errors' sound: `errors/01.flac` and on, so that the report can let one hear them."""

from pathlib import Path

import soundfile

from audiocls.data.audio import BadAudio
from audiocls.data.cache import Waveforms
from audiocls.data.prepare import RunData
from audiocls.reporting.results import MOST_ERRORS, MOST_SECONDS, predictions_digest, read_run
from audiocls.storage import complete_folder


def keep_worst_errors(run_folder: Path, data: RunData) -> None:
    """Write `errors/`: what the model heard of the clips it judged worst, complete or not at all."""
    predictions = read_run(run_folder).predictions
    if predictions is None:
        return
    clips = data.test if predictions.split == "test" else data.evaluation
    assert clips is not None
    waveforms: Waveforms = clips.decoded
    rate = waveforms.sampling_rate
    with complete_folder(run_folder / "errors", predictions=predictions_digest(run_folder)) as unfinished:
        for place, index in enumerate(predictions.worst(MOST_ERRORS), start=1):
            try:
                heard = waveforms[clips.rows[index]][: MOST_SECONDS * rate]
            except BadAudio:  # where nothing could be cached, the file may be gone by now
                continue
            soundfile.write(unfinished / f"{place:02d}.flac", heard, rate)
