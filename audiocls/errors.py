"""Mistakes that are not bugs: one line for the reader, one exit code for the shell."""

import contextlib
import errno
import io
import os
import reprlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from audiocls.lines import fitted

OK = 0
WRONG_USAGE = 2
INPUTS_REFUSED = 3
INPUT_OUTPUT_FAILED = 4
TRAINING_FAILED = 5
STOPPED = 143

MOST_EXAMPLES = 3  # of what a note is about
LONGEST_LINE = 4_000  # characters: an argument or a label may be of any length
DISK_FAILED = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


class UserError(Exception):
    """Wrong usage or configuration. The message says what was wrong and what to type next."""

    exit_code = WRONG_USAGE


class InputsRefused(UserError):
    """Too many of the inputs cannot be used."""

    exit_code = INPUTS_REFUSED


class InputOutputFailed(UserError):
    """Something could not be read, written or reached."""

    exit_code = INPUT_OUTPUT_FAILED


class NumbersBroke(UserError):
    """Training produced losses or gradients that are not finite, again and again."""

    exit_code = TRAINING_FAILED


class OutOfMemory(UserError):
    """Training or classifying needs more memory than there is."""

    exit_code = TRAINING_FAILED


class Stopped(BaseException):
    """A signal asked the run to stop. Like KeyboardInterrupt, it passes every `except Exception`."""


def exit_code_of(main: Callable[[], int]) -> int:
    """Run `main` and return the process's exit code, a UserError printed as one line on stderr."""
    open_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # no name or label fails to be printed
    try:
        return main()
    except BrokenPipeError:  # the reader of our output left (`infer.py ... | head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left has nowhere to go
        return INPUT_OUTPUT_FAILED
    except (Exception, Stopped, KeyboardInterrupt) as error:
        if (ending := ending_of(error)) is None:
            if rank := os.environ.get("RANK"):  # before it could tell the others, see distributed.joined
                tell(f"error: rank {rank}: {reason(error)}")
            raise
        if os.environ.get("LOCAL_RANK", "0") == "0":  # on each machine once, where ranks have not met yet
            tell(ending.says)
        return ending.exit_code


def tell(text: str) -> None:
    """A message on standard error; without what `streams.say` imports to spare a bar."""
    print(fitted(one_line(text), sys.stderr), file=sys.stderr, flush=True)


def is_first_rank() -> bool:
    """Whether this process speaks for those that torchrun started, before they have joined; alone it does."""
    return os.environ.get("RANK", "0") == "0"


class Ending(NamedTuple):
    """How a process ends, where that is no bug."""

    says: str
    exit_code: int


def ending_of(error: BaseException) -> Ending | None:
    """What an exception means to the user; None where it is a bug, whose traceback is printed."""
    match error:
        case UserError():
            return Ending(f"error: {error}", error.exit_code)
        case Stopped() | KeyboardInterrupt():
            return Ending(str(error) or "stopped", STOPPED)
        case OSError() if error.errno in DISK_FAILED:
            what = error.filename or "the output"
            return Ending(f"error: {what} could not be written: {error.strerror}.", INPUT_OUTPUT_FAILED)
    return None


def open_standard_streams() -> None:
    """Open the null device in the place of each stream that we were started without (`2>&-`)."""
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
            setattr(sys, name, os.fdopen(descriptor, mode))


@contextlib.contextmanager
def out_of_memory_explained(advice: str) -> Iterator[None]:
    """Raise OutOfMemory, with `advice` on what to type, where what is within runs out of memory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"Out of memory. Try {advice}.") from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out, as a CPU, CUDA, cuBLAS, cuDNN or Apple's GPUs word it."""
    # The last is a convolution's whose workspace does not fit.
    said = (
        "allocate memory",
        "out of memory",
        "ALLOC_FAILED",
        "ALLOCATION_FAILED",
        "unable to find an engine",
    )
    is_named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return is_named or any(words in str(error) for words in said)


def reason(error: BaseException) -> str:
    """An error's kind and the first line of what it says."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


def named(names: Sequence[str], most: int = 10, separator: str = ", ") -> str:
    """The first `most` names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return separator.join(names[:most]) + more


def number_of(count: int, what: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def shown(value: object) -> str:
    """A value as Python writes it, on a line, its middle left out where it is long."""
    return one_line(reprlib.repr(value))


def one_line(text: str) -> str:
    """`text` on one line of bounded length, with what a terminal obeys (a name may hold it) made visible.

    That is control characters, those of C1 and the marks that turn text around included.
    """
    text = " ".join(text.splitlines())
    if len(text) > LONGEST_LINE:
        text = f"{text[:LONGEST_LINE]}... ({len(text)} characters)"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
