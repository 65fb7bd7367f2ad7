"""The Hugging Face Hub: asked quickly, kept from what it must not do here, failing in one line."""

import contextlib
import os
import shlex
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from audiocls.commands import to_type
from audiocls.errors import InputOutputFailed, UserError, reason
from audiocls.lean_torch import complete_torch
from audiocls.storage import CHECKSUMS
from audiocls.streams import say
from audiocls.torchaudio_guard import import_torchaudio

# Read when the libraries are imported, so set before.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")

_no_answer = ["HF_HUB_OFFLINE is set"]  # why the Hub is not asked: the last one counts

TIMEOUT_SECONDS = 10  # for the first answer; the libraries' own retries take 24 s a file


def commit_of(kind: Literal["model", "dataset"], name: str, revision: str | None) -> str | None:
    """The commit that a revision of a Hub repository stands for now, in one quick request.

    None where the Hub is out of reach, or not to be asked (HF_HUB_OFFLINE=1): from then on this process uses
    only what the Hub's local cache holds. Raises UserError where there is no such repository or revision.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    what = {"model": "The model", "dataset": "The data set"}[kind]
    try:
        return HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=TIMEOUT_SECONDS).sha
    except OfflineModeIsEnabled:
        return None
    except GatedRepoError:
        raise UserError(
            f"{what} {name} is gated: accept its terms on the Hub, then log in with `hf auth login`."
        ) from None
    except RevisionNotFoundError:
        raise UserError(f"{what} {name} has no revision {revision!r} on the Hub.") from None
    except (RepositoryNotFoundError, HFValidationError):
        raise UserError(
            f"{what} {name} is neither a local folder nor on the Hub. (If it is private there, log in with "
            "`hf auth login`.)"
        ) from None
    except Exception as error:  # the client lets several libraries' errors through: no useful answer
        use_local_cache(reason(error))
        return None


def use_local_cache(why: str) -> None:
    """From now on this process does not ask the Hub."""
    from huggingface_hub import constants

    constants.HF_HUB_OFFLINE = True
    _no_answer.append(why)


def hub_file(name: str, filename: str, revision: str | None) -> Path | None:
    """A file of a model on the Hub, in the Hub's local cache; None where it has none of that name."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(name, filename, revision=revision))
    except EntryNotFoundError:
        return None


def check_login(name: str) -> str:
    """The repository that --push-to-hub NAME means, OWNER/NAME, before anything is computed.

    Raises UserError where nobody is logged in or NAME cannot be one, InputOutputFailed where the Hub does not
    answer.
    """
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"--push-to-hub {name} is no name of a repository: {reason(error)}") from None
    if constants.HF_HUB_OFFLINE:
        raise UserError("--push-to-hub needs the Hub: unset HF_HUB_OFFLINE, or leave it out.")
    if get_token() is None:
        raise UserError("--push-to-hub needs a login: run `hf auth login`, or set HF_TOKEN to a write token.")
    try:
        owner = HfApi().whoami()["name"]
    except Exception as error:  # the client lets several libraries' errors through
        if getattr(getattr(error, "response", None), "status_code", None) == 401:
            raise UserError("--push-to-hub: the Hub refuses your token: run `hf auth login`.") from None
        raise InputOutputFailed(f"--push-to-hub: the Hub does not answer: {reason(error)}") from None
    return name if "/" in name else f"{owner}/{name}"


def files_to_push(folder: Path) -> list[Path]:
    """What of a saved model goes to the Hub: all but the checksums, which are ours."""
    return sorted(path for path in folder.iterdir() if path.is_file() and path.name != CHECKSUMS)


def push(folder: Path, name: str) -> str:
    """Upload a saved model in one commit, its repository made where there is none; returns its address.

    Raises InputOutputFailed where it does not arrive.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    files = [CommitOperationAdd(path.name, path) for path in files_to_push(folder)]
    try:
        repo = HfApi().create_repo(name, exist_ok=True)
        HfApi().create_commit(repo.repo_id, files, commit_message="Model trained by audiocls")
    except Exception as error:  # the client lets several libraries' errors through
        why = getattr(error, "server_message", None) or reason(error)
        command = shlex.join(["hf", "upload", name, str(folder), ".", "--exclude", CHECKSUMS])
        raise InputOutputFailed(
            f"The model is in {folder}, but could not be uploaded: {why}. Try again with: {command}"
        ) from error
    return str(repo)


def say_push(best: Path, name: str, *, dry_run: bool) -> None:
    """Upload the best model, or with `dry_run` say what would be. Raises InputOutputFailed."""
    if dry_run:
        for file in files_to_push(best):
            say(f"would upload to {name}: {file.name}, {file.stat().st_size:,} bytes")
        return
    say(f"uploaded to {push(best, name)}")


@contextlib.contextmanager
def loading(what: str, *, is_local: bool = False) -> Iterator[None]:
    """Turn the many ways in which the libraries fail to load `what` into one line that says what to do."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        from huggingface_hub import constants

        if constants.HF_HUB_OFFLINE and not is_local:
            raise InputOutputFailed(
                f"{what} is no folder here and not in the local cache, and {constants.ENDPOINT} could not be "
                f"reached ({_no_answer[-1]}). "
                "Give a local folder (--model FOLDER, --dataset FOLDER); "
                f"{to_type('train', '--demo')} and --recipe scratch need no network."
            ) from error
        raise InputOutputFailed(f"{what} could not be loaded: {reason(error)}") from error


def import_datasets() -> Any:
    """The datasets module, quiet, and without progress bars where no person watches."""
    import datasets

    datasets.utils.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    return datasets


def import_transformers() -> Any:
    """The transformers module, made quiet."""
    complete_torch()
    # It imports torchaudio for AST's filter banks: where that is broken, ours must be there first.
    with contextlib.suppress(ModuleNotFoundError):
        import_torchaudio()
    import transformers

    quiet_transformers()
    return transformers


def quiet_transformers() -> None:
    """Silence transformers' tables and warnings, and its progress bars where no person watches."""
    # torch.compile's warning about a cached function in transformers.
    warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`")
    from huggingface_hub.utils import enable_progress_bars
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()  # this switches the Hub's off too
    if sys.stderr.isatty():
        enable_progress_bars()
