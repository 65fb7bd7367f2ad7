"""train.py with its own flags, made to wait for its turn after every optimizer step."""

import gc
import runpy
import sys
from typing import Any

from common import HERE, Turns

gc.disable()  # as train.py does before it imports what is imported here
turns = Turns()


def main() -> None:
    from audiocls.log.phases import StepFacts
    from audiocls.log.run_log import RunLog

    advance_log = RunLog.advance

    def advance(log: RunLog, step: StepFacts, *args: Any) -> None:
        advance_log(log, step, *args)
        turns.end(loss=step.loss_sum / step.num_clips)

    setattr(RunLog, "advance", advance)  # noqa: B010 - the loop calls it at the end of every step
    sys.argv[1:1] = ("--recipe", "guide")  # what theirs does
    runpy.run_path(str(HERE.parent / "train.py"), run_name="__main__")


if __name__ == "__main__":
    main()
