"""Files to a data set of the hub and from it, by huggingface_hub; what the hub refuses becomes one line.

The token is that of huggingface_hub's login, or of the environment. No function here takes or returns it.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from onestep_jax.errors import UserError
from onestep_jax.store.reading import FORMAT, read_description
from onestep_jax.store.records.kinds import ConfigKind
from onestep_jax.store.sharing.layout import CARD, CONFIG, CURE, check_files, is_ours
from onestep_jax.store.storage import refusal

PREFIX = "hf:"
_KIND = "dataset"
_MEANT = f"{PREFIX}OWNER/NAME, a data set of the hub"
_FREE = {CARD, ".gitattributes"}  # what a data set without data may have
_CHANGED = (409, 412)  # HTTP statuses: a conflict, or the parent commit is not the last one


def repository(address: str) -> str:
    """OWNER/NAME of an address "hf:OWNER/NAME".

    Raises:
      UserError: for anything else.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    name = address.removeprefix(PREFIX)
    if name == address or name.count("/") != 1:
        raise UserError(f"{address!r}: expected {_MEANT}")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"{address!r}: expected {_MEANT} ({_in_line(error)})") from error
    return name


def check_login(name: str) -> None:
    """Refuse to send anything without a token, or offline.

    Raises:
      UserError: saying how to log in.
    """
    from huggingface_hub import get_token

    with _asking(name):
        if not get_token():
            raise UserError(f"{PREFIX}{name}: not logged in to the hub; `hf auth login`, or set HF_TOKEN")


def upload(
    name: str,
    folder: Path,
    files: Sequence[str],
    identity: Mapping[str, Any],
    *,
    private: bool = False,
    branch: str | None = None,
    message: str,
) -> str:
    """Send the files of a run to a data set, in one commit, which also takes away what an earlier push left there.

    Args:
      name: OWNER/NAME; made if there is none.
      folder: that has the files.
      files: paths within both.
      identity: of the run.
      private: only its owner sees it.
      branch: made if there is none; the default one by default.
      message: of the commit.

    Returns:
      The address of its page.

    Raises:
      UserError: if the hub refuses, the data set holds something else, or it is public although it should not be.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    with _asking(name, token=True) as api:
        api.create_repo(name, repo_type=_KIND, private=True if private else None, exist_ok=True)
        about = api.repo_info(name, repo_type=_KIND)
        if private and not about.private:
            raise UserError(f"{PREFIX}{name}: is public already; make it private on the hub, or give another name")
        head = _head_of(api, name, branch) if branch else about.sha
        there = [path for path, _ in _files(api, name, head)]
        _check_place(api, name, head, there, identity)
        changes: list[Any] = [CommitOperationAdd(file, str(folder / file)) for file in files]
        changes += [CommitOperationDelete(path) for path in there if is_ours(path) and path not in files]
        api.create_commit(name, changes, repo_type=_KIND, commit_message=message, revision=branch, parent_commit=head)
        return f"{api.endpoint}/datasets/{name}"


def download(name: str, revision: str | None = None) -> Path:
    """Fetch the files of a run into huggingface_hub's cache; the folder that they are in.

    Raises:
      UserError: if the hub refuses, or the data set is none that `upload` has made.
    """
    with _asking(name) as api:
        commit = api.repo_info(name, repo_type=_KIND, revision=revision).sha
        files = check_files(name, _files(api, name, commit))
        return Path(api.snapshot_download(name, repo_type=_KIND, revision=commit, allow_patterns=files))


def _files(api: Any, name: str, commit: str) -> list[tuple[str, int]]:
    """Path and bytes of each file of a data set."""
    from huggingface_hub.hf_api import RepoFile

    tree = api.list_repo_tree(name, repo_type=_KIND, recursive=True, revision=commit)
    return [(entry.path, entry.size) for entry in tree if isinstance(entry, RepoFile)]


def _head_of(api: Any, name: str, branch: str) -> str:
    """The last commit of a branch; one that is not there is made of the first commit, which has no data."""
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        return api.repo_info(name, repo_type=_KIND, revision=branch).sha
    except RevisionNotFoundError:
        first = api.list_repo_commits(name, repo_type=_KIND)[-1].commit_id
        api.create_branch(name, repo_type=_KIND, branch=branch, revision=first, exist_ok=True)
        return api.repo_info(name, repo_type=_KIND, revision=branch).sha


def _check_place(api: Any, name: str, head: str, there: Sequence[str], identity: Mapping[str, Any]) -> None:
    """Refuse to write over anything but an earlier push of the same run."""
    others = [path for path in there if path not in _FREE]
    if not others:
        return
    cure = "give another name, or another --branch"
    if CONFIG not in others:
        raise UserError(f"{PREFIX}{name}: holds other files, such as {others[0]!r}, and no run; {cure}")
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(api.hf_hub_download(name, CONFIG, repo_type=_KIND, revision=head, local_dir=scratch))
        try:
            found = read_description(path, ConfigKind, kind="run", version=FORMAT, cure=CURE)
        except UserError as error:
            raise UserError(f"{PREFIX}{name}: its {CONFIG} is none of a run ({error}); {cure}") from error
    if found is None or found["identity"] != identity:
        raise UserError(f"{PREFIX}{name}: holds another run; {cure}")


# --- what the hub says ---


@contextmanager
def _asking(name: str, token: bool | None = None) -> Iterator[Any]:
    """`HfApi`, whose errors become one line; its bars are shown on a terminal only, and its log not at all."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, logging

    if constants.HF_HUB_OFFLINE:
        raise UserError(f"{PREFIX}{name}: HF_HUB_OFFLINE is set, so the hub is not asked; unset it and run this again")
    seen = sys.stderr is not None and sys.stderr.isatty()
    silence = not seen and constants.HF_HUB_DISABLE_PROGRESS_BARS is None and not are_progress_bars_disabled()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    if silence:
        disable_progress_bars()
    try:
        yield HfApi(token=token, library_name="onestep_jax")
    except UserError:
        raise
    except Exception as error:
        told = _refusal(name, error)
        if told is None:
            raise
        raise told from error
    finally:
        logging.set_verbosity(verbosity)
        if silence:
            enable_progress_bars()


def _refusal(name: str, error: Exception) -> UserError | None:
    """What the hub, the network or the disk said, as one line; None for an error of another kind."""
    from huggingface_hub import constants, errors

    failed = errors.HfHubHTTPError.__bases__[0]  # HTTPError of httpx, or of httpx2 from huggingface_hub 2 on
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):  # of one of several uploads
        error = error.__cause__
    if isinstance(error, errors.HfHubHTTPError):
        told = _status(error)
    elif isinstance(error, (failed, ConnectionError, TimeoutError, errors.LocalEntryNotFoundError)):
        told = f"the hub cannot be reached ({type(error).__name__}); see that {constants.ENDPOINT} is, and try again"
    elif isinstance(error, OSError) and error.errno is not None:
        return refusal(Path(error.filename or constants.HF_HUB_CACHE), error)
    elif isinstance(error, OSError | RuntimeError | ValueError):
        told = f"the hub did not take or give it whole ({_in_line(error)}); run the same command again"
    else:
        return None
    return UserError(f"{PREFIX}{name}: {told}")


def _status(error: Any) -> str:
    """What an HTTP status means here."""
    from huggingface_hub import errors

    status, said = error.response.status_code, f" ({_in_line(error.server_message)})" if error.server_message else ""
    if isinstance(error, errors.GatedRepoError):
        return "gated: accept its terms on the hub and log in with `hf auth login`"
    if isinstance(error, errors.RevisionNotFoundError):
        return "the hub has no such branch, tag or commit of it; leave --revision out for the default one"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "no such data set on the hub, or no access to it; see the name, and `hf auth login` if it is private"
    if status == 401:
        return f"the hub does not know this login{said}; `hf auth login` again, or set HF_TOKEN anew"
    if status == 403:
        return f"this login may not do that{said}; it needs a token that may write there"
    if status in _CHANGED:
        return f"somebody else changes it at the same time{said}; run the same command again"
    if status == 429 or status >= 500:
        return f"the hub is busy (HTTP status {status}){said}; try again later"
    return f"the hub refuses (HTTP status {status}){said}"


def _in_line(error: object) -> str:
    """What an error says, in one line and not without end."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:300]}…"
