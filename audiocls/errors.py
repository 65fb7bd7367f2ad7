"""Mistakes that are not bugs: one line for the reader, one exit code for the shell."""

import errno
import sys
from collections.abc import Callable

OK = 0
BUG = 1
WRONG_USAGE = 2
INPUTS_REFUSED = 3
INPUT_OUTPUT_FAILED = 4
NUMBERS_BROKE = 5
STOPPED = 143

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

    exit_code = NUMBERS_BROKE


class Stopped(BaseException):
    """A signal asked the run to stop. Like KeyboardInterrupt, it passes every `except Exception`."""


def exit_code_of(main: Callable[[], int]) -> int:
    """Run `main` and return the process's exit code, a UserError printed as one line on stderr."""
    try:
        return main()
    except UserError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return error.exit_code
    except (Stopped, KeyboardInterrupt) as stop:
        print(str(stop) or "stopped", file=sys.stderr)
        return STOPPED
    except BrokenPipeError:  # the reader of our output left (`infer.py ... | head`)
        sys.stderr.close()
        return INPUT_OUTPUT_FAILED
    except OSError as error:
        if error.errno not in DISK_FAILED:
            raise
        print(
            f"error: {error.filename or 'the output'} could not be written: {error.strerror}.",
            file=sys.stderr,
        )
        return INPUT_OUTPUT_FAILED


def one_line(text: str) -> str:
    """`text` on one line, with control characters (a file's name may hold any) made visible."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(text.splitlines()))
