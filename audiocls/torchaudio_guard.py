"""torchaudio, whether or not its compiled extension loads.

torchaudio 2.11 refuses to import where its extension does not load: beside a CPU build of torch it misses
`libc10_cuda.so`, beside a torch of another CUDA version its check fails. Resampling and filter banks, which
is all that is used here and in transformers, are plain torch and do not need it.
"""

import importlib
import sys
import threading
from types import ModuleType
from typing import Any

IMPORTING = threading.Lock()  # recordings are resampled side by side


def import_torchaudio() -> ModuleType:
    """The torchaudio module. Raises ModuleNotFoundError where it is not installed."""
    with IMPORTING:
        try:
            return importlib.import_module("torchaudio")
        except ModuleNotFoundError:
            raise
        except (ImportError, OSError, RuntimeError):
            for name in list(sys.modules):  # a copy: another thread may import something
                if name.partition(".")[0] == "torchaudio":
                    del sys.modules[name]
            sys.modules["torchaudio._extension"] = without_extension()
            return importlib.import_module("torchaudio")


def without_extension() -> ModuleType:
    """What torchaudio's own `_extension` module holds where no compiled extension was built."""

    def not_available(function: Any) -> Any:
        def fail(*args: Any, **kwargs: Any) -> None:
            raise RuntimeError(
                f"{function.__name__} needs torchaudio's compiled extension, which did not load"
            )

        return fail

    module: Any = ModuleType("torchaudio._extension")
    module._IS_TORCHAUDIO_EXT_AVAILABLE = False
    module._IS_ALIGN_AVAILABLE = False
    module.fail_if_no_align = not_available
    return module
