"""train.py with its own flags, made to wait for its turn after every optimizer step.

`--compile-model`, in front of them, compiles the model.
"""

import runpy
import sys
from typing import Any

from common import HERE, Turns

turns = Turns()


def main() -> None:
    from audiocls.reporting.profiling import StepFacts
    from audiocls.reporting.run_log import RunLog

    advance_log = RunLog.advance

    def advance(log: RunLog, step: StepFacts, *args: Any) -> None:
        advance_log(log, step, *args)
        turns.end(loss=step.loss_sum / step.clips)

    setattr(RunLog, "advance", advance)  # noqa: B010 - the loop calls it at the end of every step
    if sys.argv[1:2] == ["--compile-model"]:
        del sys.argv[1]
        compile_what_is_loaded()
    runpy.run_path(str(HERE.parent / "train.py"), run_name="__main__")


def compile_what_is_loaded() -> None:
    from audiocls.model import backbone

    load = backbone.load_for_training

    def load_and_compile(*args: Any, **kwargs: Any) -> Any:
        loaded = load(*args, **kwargs)
        loaded.model.compile()
        return loaded

    backbone.load_for_training = load_and_compile


if __name__ == "__main__":
    main()
