"""The PyTorch way, as the papers do it: transformers' frozen model, AdamW on the vectors, the loss over all logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from onestep_jax.bench.models import import_torch, torch_subject
from onestep_jax.fitting.optimizers import PRESETS


class Fitted(NamedTuple):
    """Whether a text was reconstructed, and after how many gradient evaluations."""

    solved: bool
    steps: int


class Reference:
    """A frozen model of transformers, and fits on it by the paper's protocol.

    Args:
      source: see `models.torch_subject`.
      dtype: "float32" or "bfloat16".
      compiled: whether the model goes through `torch.compile`.
    """

    def __init__(self, source: str, dtype: str, *, compiled: bool = False):
        self.torch = import_torch()
        self.device = "cuda" if self.torch.cuda.is_available() else "cpu"
        self.model = torch_subject(source, dtype, self.device)
        self.dtype = getattr(self.torch, dtype)
        self.forward = self.torch.compile(self.model) if compiled else self.model
        self.vocabulary, self.width = self.model.get_input_embeddings().weight.shape

    def begin(self, tokens: Sequence[Sequence[int]], seed: int = 0) -> Training:
        """Training of B texts of one length N, from start vectors drawn from N(0, 1)."""
        generator = self.torch.Generator().manual_seed(seed)
        e_BD, m_BD = self.torch.randn((2, len(tokens), self.width), generator=generator)
        return Training(self, tokens, e_BD.to(self.device), m_BD.to(self.device))

    def fit(self, tokens: Sequence[int], steps: int, seed: int = 0) -> Fitted:
        """Fit one text until it is reconstructed, for at most `steps` gradient evaluations."""
        training = self.begin([tokens], seed)
        for done in range(1, steps + 1):
            if training.step() == 1:
                return Fitted(solved=True, steps=done)
        return Fitted(solved=False, steps=steps)

    def wait(self) -> None:
        """Wait until the device has finished all its work."""
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def peak_bytes(self) -> int | None:
        """Peak device memory since the last call, in bytes; None on a CPU, where PyTorch does not count it."""
        if self.device != "cuda":
            return None
        peak = self.torch.cuda.max_memory_allocated()
        self.torch.cuda.reset_peak_memory_stats()
        return int(peak)


class Training:
    """The training loop over a batch of texts, each with its own `e` and `m`, together (B, D)."""

    def __init__(self, reference: Reference, tokens: Sequence[Sequence[int]], e_BD: Any, m_BD: Any):
        self.reference, self.torch = reference, reference.torch
        self.targets_BT = self.torch.as_tensor(np.asarray(tokens, np.int64), device=reference.device)
        self.vectors = [e_BD.requires_grad_(), m_BD.requires_grad_()]
        options = PRESETS["paper"].optimizer.arguments
        betas, decay = (options["b1"], options["b2"]), options["weight_decay"]
        rate = options["learning_rate"]
        self.optimizer = self.torch.optim.AdamW(self.vectors, lr=rate, betas=betas, weight_decay=decay)

    def loss(self) -> tuple[Any, Any]:
        """Sum over the texts of their mean nats per token (Eq. 1), and the least accuracy (Eq. 2)."""
        torch, (e_BD, m_BD) = self.torch, self.vectors
        length = self.targets_BT.shape[1]
        x_BTD = torch.cat([e_BD[:, None], m_BD[:, None].expand(-1, length - 1, -1)], dim=1)
        out = self.reference.forward(inputs_embeds=x_BTD.to(self.reference.dtype), use_cache=False)
        logits_BTV = out.logits.float()
        nats = torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), self.targets_BT.flatten(), reduction="sum")
        return nats / length, (logits_BTV.argmax(-1) == self.targets_BT).float().mean(-1).min()

    def step(self) -> float:
        """Evaluate the gradient and update every text; returns the least accuracy before the update.

        The accuracy is copied to the host every step, since training stops at a perfect one.
        """
        loss, accuracy = self.loss()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return accuracy.item()
