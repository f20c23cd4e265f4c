"""The vectors that `encode` gives make transformers emit what is stored of them.

Needs torch (`pip install -e .[parity]`).
"""

from __future__ import annotations

import numpy as np
import pytest
from encoders import random_encoder
from transformers import AutoModelForCausalLM

from onestep_jax import encode, load_model
from onestep_jax.model.checkpoint import locate
from onestep_jax.prototokens.prefixes import prefix_tokens

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

WORDS = ["The tide went out at noon and left", "Ein Boot fuhr an das andere Ufer", "x = [1, 2, 3]; y = x[0]"]


@pytest.mark.parametrize(("prefix", "arrangement"), [("none", "one-step"), ("bos", "unguided-e")])
def test_transformers_emits_what_is_stored(prefix, arrangement):
    model = load_model("default", dtype="float32")
    tokens = tuple(int(i) for i in prefix_tokens(model, prefix))
    made = random_encoder(model, length=8, prefix=tokens, arrangement=arrangement)
    results = encode(model, made, WORDS, length=8)
    theirs = AutoModelForCausalLM.from_pretrained(locate("default"), dtype=torch.float32).requires_grad_(False)
    extra = made.design.scheme.extra
    for text in results:
        before = theirs.get_input_embeddings()(torch.tensor(tokens, dtype=torch.long))
        e_D, m_D = (torch.from_numpy(np.array(text.vectors[name])) for name in "em")
        x_TD = torch.cat([before, e_D[None], m_D[None].repeat(len(text.tokens) - 1 + extra, 1)])
        logits_TV = theirs(inputs_embeds=x_TD[None]).logits[0][len(tokens) + extra :]
        np.testing.assert_array_equal(logits_TV.argmax(-1).numpy(), text.predicted)
        log_p_TV = torch.log_softmax(logits_TV.double(), -1)
        nats = -log_p_TV[torch.arange(len(text.tokens)), torch.from_numpy(text.tokens).long()].mean()
        assert text.loss == pytest.approx(float(nats), rel=1e-4)
        assert text.accuracy == (text.predicted == text.tokens).mean()
    assert len({text.loss for text in results}) == 3
