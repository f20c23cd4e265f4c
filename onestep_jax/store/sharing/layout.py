"""The files of a run as a data set.

    README.md                  the card: what the run is, how its texts are decoded
    config.json                identity and settings of the run
    texts.parquet              index, text_id, tokens, prefix: all texts, finished or not
    data/texts-NNNNN.parquet   a row for each recorded text, with its vectors
    data/trials-NNNNN.parquet  a row for each seed of these texts: curves, recorded vectors

Vectors are columns of Parquet and not Orbax arrays, so that other programs read them, and so that what comes from a
stranger is parsed against declared types only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from onestep_jax.errors import UserError

CARD, CONFIG, TEXTS = "README.md", "config.json", "texts.parquet"
TABLES = ("texts", "trials")  # the configurations of the data set; the first is what `load_dataset(NAME)` reads
SHARD = 2**28  # bytes of vectors in a file
MOST_BYTES = {CARD: 2**20, CONFIG: 2**24, TEXTS: 2**31}
MOST_TABLE_BYTES = 2**30
MOST_FILES = 2**14
CURE = "fetch it again; if that does not help, whoever pushed it has to push it again"
_TABLE = re.compile(rf"data/({'|'.join(TABLES)})-[0-9]{{5}}\.parquet")


def table_file(table: str, number: int) -> str:
    """Path of a file of a table within the data set."""
    return f"data/{table}-{number:05d}.parquet"


def is_ours(path: str) -> bool:
    """Whether a path within a data set is one of these files."""
    return path in MOST_BYTES or _TABLE.fullmatch(path) is not None


def configurations() -> list[dict[str, Any]]:
    """What the head of the card says of the tables, for `datasets.load_dataset`."""
    files = [{"config_name": table, "data_files": f"data/{table}-*.parquet"} for table in TABLES]
    return [{**files[0], "default": True}, *files[1:]]


def check_files(name: str, sizes: Iterable[tuple[str, int]]) -> list[str]:
    """The files of a run among those of a data set.

    Args:
      name: of the data set, for messages.
      sizes: path within the data set and bytes of each of its files.

    Raises:
      UserError: if it is no pushed run, or more or larger than one can be.
    """
    ours = {path: size for path, size in sizes if is_ours(path)}
    missing = next((path for path in (CONFIG, TEXTS, table_file("texts", 0)) if path not in ours), None)
    if missing is not None:
        raise UserError(f"hf:{name}: no run that onestep push has made (no {missing}); give the name of one")
    if len(ours) > MOST_FILES:
        raise UserError(f"hf:{name}: {len(ours):,} files of a run; expected at most {MOST_FILES:,}")
    for path, size in ours.items():
        most = MOST_BYTES.get(path, MOST_TABLE_BYTES)
        if size > most:
            raise UserError(f"hf:{name}: {path} has {size:,} bytes; expected at most {most:,}")
    return sorted(ours)
