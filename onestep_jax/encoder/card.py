"""The model card of an encoder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_CARD = """---
library_name: onestep_jax
---
# An encoder into the space of proto-tokens

It maps a text to {vectors} with which the frozen model {source!r} (fingerprint {model}) emits the text in one forward
pass, as far as it can. It has {parameters:,} weights, and belongs to this model alone.

**Use.** `onestep encode --encoder DIR --model MODEL --texts SOURCE --length {length} --run RUN`

**Parts.**

```json
{design}
```

**Training.** {training}

**On held-out windows** of {length} tokens:

{table}
"""


def model_card(about: Mapping[str, Any], parameters: int) -> str:
    """The card of what config.json says of an encoder with so many weights."""
    design, trained = about["design"], about["trained"]
    return _CARD.format(
        vectors="one vector" if design["arrangement"] == "one-vector" else "two vectors",
        source=about["model source"],
        model=about["model"],
        parameters=parameters,
        length=design["length"],
        design=json.dumps(design, indent=2),
        training=_training(trained),
        table=_table(trained.get("figures")),
    )


def _training(trained: Mapping[str, Any]) -> str:
    if not trained:
        return "none is recorded."
    recipe = json.dumps(trained.get("recipe", {}), indent=2)
    told = (
        f"{trained.get('updates', 0):,} updates on windows of {trained.get('texts', '?')} texts of "
        f"{trained.get('data', '?')!r} ({trained.get('tokens', 0):,} tokens), {trained.get('hours', 0.0):.2f} hours on "
        f"{trained.get('device', '?')}; {trained.get('held out', '?')} texts were held out whole."
    )
    if "start" in trained:
        start = trained["start"]
        before = start.get("trained", {}).get("updates", 0)
        told = f"{told} It began with the weights of the encoder {start.get('fingerprint')}, after {before:,} updates."
    return f"{told}\n\n```json\n{recipe}\n```"


def _table(figures: Mapping[str, Any] | None) -> str:
    if not figures:
        return "not measured."
    rows = ["| corrections | nats per token | tokens exact | texts exact |", "|---|---|---|---|"]
    columns = zip(figures["nats"], figures["accuracy"], figures["exact"], strict=True)
    rows += [f"| {k} | {nats:.3f} | {hits:.1%} | {exact:.1%} |" for k, (nats, hits, exact) in enumerate(columns)]
    return "\n".join(rows)
