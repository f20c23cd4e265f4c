"""Where a checkpoint's files are: the packaged model, a folder, or the hub."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from onestep_jax.config import UserError

DEFAULT = "default"
_WANTED = ("*.json", "*.safetensors", "tokenizer.model", "merges.txt")


def locate(source: str | Path, revision: str | None = None) -> Path:
    """Folder that holds the checkpoint `source`, downloading the needed files of a hub id.

    Args:
      source: the string "default" for the packaged model, a folder, or a hub id.
      revision: branch, tag or commit on the hub.

    Raises:
      UserError: if there is no such folder or the hub does not give it.
    """
    if source == DEFAULT:
        return Path(__file__).parent / "data" / "default"
    if os.path.isdir(source):  # unlike Path.is_dir, no exception for a name that no file can have
        return Path(source)
    name = str(source)
    if name.startswith((".", "/", "~")) or name.count("/") != 1 or os.path.exists(source):
        raise UserError(f"model {name!r}: no such folder; give a folder, a hub id like 'org/name', or 'default'")
    return _download(name, revision)


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(_WANTED)))
    except errors.HFValidationError as error:
        raise UserError(f"model {name!r}: no such folder, and no possible hub id ({error})") from error
    except errors.GatedRepoError as error:
        reason = "gated: accept its licence on the hub and log in with `hf auth login`"
        raise UserError(f"model {name!r} is {reason}") from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"model {name!r}: the hub has no revision {revision!r} of it") from error
    except errors.RepositoryNotFoundError as error:
        reason = "no such repository on the hub, or no access to it; `hf auth login` if it is private"
        raise UserError(f"model {name!r}: {reason}") from error
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, OSError) as error:
        reason = f"not in the local cache and the hub cannot be reached ({type(error).__name__})"
        raise UserError(f"model {name!r}: {reason}") from error


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


def shards(folder: Path) -> list[Path]:
    """Weight files of a checkpoint folder, in order.

    Raises:
      UserError: if there are none, one that the index names is missing, there are only pickles, or a single file and
        an index lie side by side.
    """
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.exists() and single.exists():
        raise UserError(f"{folder}: both {single.name} and {index.name}; remove the one that is not meant")
    if index.exists():
        places = read_object(index).get("weight_map")
        if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
            raise UserError(f"{index}: no weight_map from tensor names to file names; download it again")
        names = sorted(set(places.values()))
        for name in names:
            if not (folder / name).is_file():
                raise UserError(f"{folder / name}: missing, though {index.name} names it; complete the download")
        return [folder / name for name in names]
    if single.exists():
        return [single]
    if list(folder.glob("*.bin")):
        raise UserError(
            f"{folder}: only pickled weights (.bin), which can run code when read; convert them once with "
            "transformers: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder)"
        )
    raise UserError(f"{folder}: no {single.name} and no {index.name}")
