"""Where a checkpoint's files are: the packaged model, a folder, a GGUF file, or the hub."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path, PureWindowsPath
from typing import Any

from onestep_jax.errors import UserError
from onestep_jax.model.gguf import is_gguf

DEFAULT = "default"
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
_DESCRIPTION = ("config.json", "generation_config.json")
_TOKENIZER = """tokenizer.json tokenizer_config.json tokenizer.model special_tokens_map.json added_tokens.json
vocab.json merges.txt""".split()


def locate(source: str | Path, revision: str | None = None, *, weights: bool = True) -> Path:
    """Folder or GGUF file that holds the checkpoint `source`, downloading the needed files of a hub id.

    Args:
      source: the string "default" for the packaged model, a folder, a GGUF file, or a hub id.
      revision: branch, tag or commit on the hub.
      weights: fetch weights and tokenizer too, not only the description of the model.

    Raises:
      UserError: if there is no such folder or file, or the hub does not give it.
    """
    if revision is not None and (source == DEFAULT or os.path.exists(source)):
        raise UserError(f"--revision {revision}: model {str(source)!r} is not on the hub, so it has no revisions")
    if source == DEFAULT:
        return Path(__file__).parent.parent / "data" / "default"
    if is_gguf(source):
        return Path(os.path.abspath(source))
    if os.path.isdir(source):  # unlike Path.is_dir, no exception for a name that no file can have
        return Path(os.path.abspath(source))
    name = str(source)
    if name.lower().endswith(".gguf"):
        reason = (
            "not a GGUF file: it does not begin with the letters GGUF" if os.path.exists(source) else "no such file"
        )
        raise UserError(f"model {name!r}: {reason}; give a GGUF file, a folder, or a hub id like 'org/name'")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or os.path.exists(source):
        raise UserError(f"model {name!r}: no such folder; give a folder, a hub id like 'org/name', or 'default'")
    folder = _download(name, revision, (*_DESCRIPTION, *_TOKENIZER, INDEX) if weights else _DESCRIPTION)
    if weights:
        # Weights come in many formats side by side; only the safetensors that the index names are wanted.
        index = folder / INDEX
        folder = _download(name, revision, _indexed(index) if index.exists() else [SINGLE])
        if not index.exists() and not (folder / SINGLE).exists():
            raise UserError(f"model {name!r}: {_no_safetensors(name, revision)}")
    return folder


def _download(name: str, revision: str | None, files: Iterable[str]) -> Path:
    """Snapshot folder of a hub id, with those of the files that it has."""
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except errors.HFValidationError as error:
        raise UserError(f"model {name!r}: no such folder, and no possible hub id ({error})") from error
    except errors.GatedRepoError as error:
        reason = "gated: accept its licence on the hub and log in with `hf auth login`"
        raise UserError(f"model {name!r} is {reason}") from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"model {name!r}: the hub has no revision {revision!r} of it") from error
    except errors.RepositoryNotFoundError as error:
        reason = (
            "no such folder, and no such repository on the hub, or no access to it; `hf auth login` if it is private"
        )
        raise UserError(f"model {name!r}: {reason}") from error
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, OSError) as error:
        reason = f"no such folder, not in the local cache, and the hub cannot be reached ({type(error).__name__})"
        raise UserError(f"model {name!r}: {reason}") from error


def _no_safetensors(name: str, revision: str | None) -> str:
    """Why a hub id has no weights for us, as far as the hub says."""
    from huggingface_hub import errors, list_repo_files

    try:
        files = list_repo_files(name, revision=revision)
    except (errors.HfHubHTTPError, errors.OfflineModeIsEnabled, OSError):
        return f"no {SINGLE} and no {INDEX} in the local cache, and the hub cannot be asked"
    pickled = any(file.endswith(".bin") for file in files)
    return _pickles(name, revision) if pickled else f"no {SINGLE} and no {INDEX} on the hub"


def _pickles(source: str, revision: str | None = None) -> str:
    which = repr(source) if revision is None else f"{source!r}, revision={revision!r}"
    return (
        "only pickled weights (.bin), which can run code when read; convert them once with transformers: "
        f"AutoModelForCausalLM.from_pretrained({which}).save_pretrained('a new folder')"
    )


def read_object(path: Path) -> dict[str, Any]:
    """Contents of a file that holds one JSON object.

    Raises:
      UserError: if it is missing or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        cure = "a checkpoint folder needs config.json and safetensors weights"
        raise UserError(f"{path}: no such file; {cure}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def _indexed(index: Path) -> list[str]:
    """File names in an index, in order."""
    places = read_object(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise UserError(f"{index}: no weight_map from tensor names to file names; download it again")
    for name in sorted(set(places.values())):
        if PureWindowsPath(name).anchor or name.startswith("/") or ".." in PureWindowsPath(name).parts:
            raise UserError(f"{index}: names the file {name!r}; expected one inside its folder, without '..'")
    return sorted(set(places.values()))


def shards(folder: Path) -> list[Path]:
    """Weight files of a checkpoint folder, in order; a GGUF file is its own.

    Raises:
      UserError: if there are none, one that the index names is missing, there are only pickles, or a single file lies
        beside an index of other files.
    """
    if is_gguf(folder):
        return [folder]
    index, single = folder / INDEX, folder / SINGLE
    if index.exists():
        names = _indexed(index)
        if single.exists() and names != [SINGLE]:  # mlx-lm writes an index of a single file, too
            raise UserError(f"{folder}: both {SINGLE} and {INDEX} of other files; remove the one that is not meant")
        for name in names:
            if not (folder / name).is_file():
                raise UserError(f"{folder / name}: missing, though {INDEX} names it; complete the download")
        return [folder / name for name in names]
    if single.exists():
        return [single]
    if list(folder.glob("*.bin")):
        raise UserError(f"{folder}: {_pickles(str(folder))}")
    raise UserError(f"{folder}: no {SINGLE} and no {INDEX}")
