"""Pretrain the packaged default model: a byte-level BPE tokenizer and a small Llama, from any texts.

The recipe: Muon on the matrices inside the blocks and AdamW on the rest, one warm-up and cosine decay, next-token
cross-entropy on windows cut from the concatenated texts at random places. The result is a folder in Hugging Face format
(bf16) that both `onestep_jax.load_model` and `transformers.AutoModelForCausalLM.from_pretrained` read. Its model card
states data, recipe and losses.

    python experiments/packaged/pretrain_default.py --train TEXTS --validation OTHERS --out runs/my-model

TEXTS and OTHERS are each a folder of .txt files, or a .jsonl or .jsonl.xz with one text a line in the column "text".
`onestep fit --model runs/my-model` uses the result. The packaged model was made by

    python experiments/packaged/pretrain_default.py \
        --train books/train.jsonl.xz --validation books/validation.jsonl.xz \
        --about "public-domain books published up to 1918" --work runs/pretrain --out onestep_jax/data/default

with 157 public-domain books to train on and 15 others to measure the loss. They are not in the repository.

It can be stopped at any time; the same command continues from the last saved step.

`--checkpoints 0,10,100` also writes the model as it was after so many updates, to WORK/checkpoints/step-000010 and the
like: folders in the same format, for the card `dynamics`.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import shutil
import signal
import time
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.custom_batching import custom_vmap
from orbax.checkpoint import v1 as ocp
from rich.progress import Progress

from onestep_jax.model.checkpoint import save_model
from onestep_jax.model.config import ModelConfig
from onestep_jax.model.decoder import Decoder, Model
from onestep_jax.model.families import read_config
from onestep_jax.store.records import json_text
from onestep_jax.texts.files import read_source

END = "<|endoftext|>"
Array: TypeAlias = jax.Array


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides the result; it is printed into the model card.

    `steps` counts optimiser updates on `batch` windows of `window` tokens; the last `long_fraction` of them see windows
    of `context` tokens instead, fewer at a time. `muon_lr` is the peak learning rate of the matrices inside the blocks,
    `adam_lr` that of embeddings and norms.
    """

    vocab_size: int = 4096
    width: int = 256
    layers: int = 8
    heads: int = 8
    kv_heads: int = 4
    ffn: int = 640
    context: int = 512
    window: int = 256
    long_fraction: float = 0.1
    batch: int = 20
    steps: int = 1200
    warmup: int = 100
    muon_lr: float = 0.02
    adam_lr: float = 0.004
    final_lr_fraction: float = 0.02
    weight_decay: float = 0.01
    seed: int = 0

    def described(self) -> dict[str, Any]:
        """The config.json of the model."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocab_size,
            "hidden_size": self.width,
            "intermediate_size": self.ffn,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.width // self.heads,
            "max_position_embeddings": self.context,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": True,
        }

    def model_config(self) -> ModelConfig:
        return read_config(self.described())[1]


# --- data ------------------------------------------------------------------------------------------------------------


def read_texts(source: Path) -> list[str]:
    """Texts of a folder of .txt files, or the `text` column of a .jsonl file (compressed or not)."""
    files = sorted(source.glob("**/*.txt")) if source.is_dir() else [source]
    return [text for path in files for text in read_source(str(path))]


def train_tokenizer(texts: list[str], vocab_size: int, out: Path) -> Any:
    """Byte-level BPE over the texts, saved as a transformers fast tokenizer in `out` (reused if already there)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if not (out / "tokenizer.json").exists():
        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
        bpe.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[END], initial_alphabet=alphabet)  # pyright: ignore[reportCallIssue]
        bpe.train_from_iterator(texts, trainer)
        fast = PreTrainedTokenizerFast(
            tokenizer_object=bpe, bos_token=END, eos_token=END, clean_up_tokenization_spaces=False
        )
        fast.save_pretrained(out)
    return PreTrainedTokenizerFast.from_pretrained(out)


def tokenise(texts: list[str], tokenizer: Any) -> np.ndarray:
    """All texts as one stream of token ids (uint16), each preceded by the end-of-text token."""
    end = tokenizer.convert_tokens_to_ids(END)
    pieces = []
    for encoding in tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False):
        pieces.append(np.asarray([end, *encoding.ids], np.uint16))
    return np.concatenate(pieces)


def batch_at(stream: np.ndarray, step: int, recipe: Recipe) -> np.ndarray:
    """Token windows of update `step`, each one longer than its input, drawn at places that depend on the step alone."""
    is_long = step >= recipe.steps * (1 - recipe.long_fraction)
    window = recipe.context if is_long else recipe.window
    rows = max(1, recipe.batch * recipe.window // window)
    starts = np.random.default_rng([recipe.seed, step]).integers(len(stream) - window, size=rows)
    return np.stack([stream[start : start + window + 1] for start in starts]).astype(np.int32)


# --- training --------------------------------------------------------------------------------------------------------


@jax.custom_vjp
def matmul_bf16(x_MK: Array, w_KN: Array) -> Array:
    """x @ w with bf16 operands and float32 sums, forward and backward: what matrix units are built for."""
    return jnp.matmul(x_MK.astype(jnp.bfloat16), w_KN.astype(jnp.bfloat16), preferred_element_type=jnp.float32)


def _matmul_forward(x_MK: Array, w_KN: Array) -> tuple[Array, tuple[Array, Array]]:
    return matmul_bf16(x_MK, w_KN), (x_MK.astype(jnp.bfloat16), w_KN.astype(jnp.bfloat16))


def _matmul_backward(saved: tuple[Array, Array], g_MN: Array) -> tuple[Array, Array]:
    x_MK, w_KN = saved
    g_MN = g_MN.astype(jnp.bfloat16)
    dx = jnp.matmul(g_MN, w_KN.T, preferred_element_type=jnp.float32)
    return dx, jnp.matmul(x_MK.T, g_MN, preferred_element_type=jnp.float32)


matmul_bf16.defvjp(_matmul_forward, _matmul_backward)


@custom_vmap
def matmul_over_texts(x_TK: Array, w_KN: Array) -> Array:
    """`matmul_bf16` whose batched form folds the texts into the rows, so that dW is one product and not one a text."""
    return matmul_bf16(x_TK, w_KN)


@matmul_over_texts.def_vmap
def _fold_texts(_size: int, batched: list[bool], x_BTK: Array, w_KN: Array) -> tuple[Array, bool]:
    assert batched == [True, False], batched
    B, T, K = x_BTK.shape
    return matmul_bf16(x_BTK.reshape(B * T, K), w_KN).reshape(B, T, -1), True


def dot_general(x: Array, w: Array, dimension_numbers: Any, **_unused: Any) -> Array:
    """Stand-in for lax.dot_general inside the decoder."""
    ((_, (contracted,)), _) = dimension_numbers
    assert contracted == 1, "kernels are (out, in)"
    return matmul_over_texts(x, w.T)


def window_loss(decoder: Decoder, params: Any, window_T1: Array) -> Array:
    """Mean nats per token of predicting window[1:] from window[:-1]."""
    x_TD = decoder.apply({"params": params}, window_T1[:-1], method="embed")
    logits_TV: Any = decoder.apply({"params": params}, x_TD)
    return optax.softmax_cross_entropy_with_integer_labels(logits_TV, window_T1[1:]).mean()


KERNEL = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=0)  # (out, in)


def make_optimizer(recipe: Recipe) -> optax.GradientTransformation:
    def schedule(peak: float) -> optax.Schedule:
        end = peak * recipe.final_lr_fraction
        return optax.warmup_cosine_decay_schedule(0.0, peak, recipe.warmup, recipe.steps, end)

    def label(path: Any, leaf: Array) -> str:
        inside_block = any(str(getattr(key, "key", key)).startswith("block_") for key in path)
        return "muon" if inside_block and leaf.ndim == 2 else "adam"

    parts: dict[Hashable, optax.GradientTransformation] = {
        "muon": optax.contrib.muon(
            schedule(recipe.muon_lr), weight_decay=recipe.weight_decay, muon_weight_dimension_numbers=KERNEL
        ),
        "adam": optax.adamw(schedule(recipe.adam_lr), b1=0.9, b2=0.95, weight_decay=recipe.weight_decay),
    }
    partition = optax.partition(parts, lambda params: jax.tree_util.tree_map_with_path(label, params))
    return optax.chain(optax.clip_by_global_norm(1.0), partition)


def make_step(decoder: Decoder, optimizer: optax.GradientTransformation) -> Any:
    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, opt_state: Any, windows: Array) -> tuple[Any, Any, Array]:
        def mean_loss(params: Any) -> Array:
            return jax.vmap(functools.partial(window_loss, decoder, params))(windows).mean()

        loss, grads = jax.value_and_grad(mean_loss)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    return step


def evaluate(decoder: Decoder, params: Any, stream: np.ndarray, n_bytes: int, recipe: Recipe) -> dict[str, float]:
    """Nats per token and bits per byte over disjoint windows of the whole validation stream."""
    windows = np.lib.stride_tricks.sliding_window_view(stream, recipe.context + 1)[:: recipe.context].astype(np.int32)
    loss_of = jax.jit(lambda params, rows: jax.vmap(functools.partial(window_loss, decoder, params))(rows))
    losses = [loss_of(params, windows[i : i + 16]) for i in range(0, len(windows) - 15, 16)]
    nats = float(np.mean(np.concatenate([np.asarray(loss) for loss in losses])))
    return {"nats_per_token": nats, "bits_per_byte": nats / math.log(2) * len(stream) / n_bytes}


def saved_steps(work: Path) -> list[Path]:
    """Folders of whole saved steps, oldest first (Orbax renames a save into place when it is complete)."""
    return sorted(path for path in work.glob("step-*") if path.name.removeprefix("step-").isdigit())


# --- run -------------------------------------------------------------------------------------------------------------


def train(
    recipe: Recipe,
    stream: np.ndarray,
    work: Path,
    save_every: float,
    stop_after: float,
    keep: Callable[[int, Any], None] = lambda done, params: None,
) -> tuple[Any, int, float]:
    """Train from the newest saved step in `work`; returns (params, updates made, seconds spent in all sessions).

    `keep` is called with the updates made and the params, before the first update of a session and after each.
    """
    decoder, optimizer = Decoder(recipe.model_config(), dot_general), make_optimizer(recipe)
    dummy = jnp.zeros((8, recipe.width))
    params = dict(Decoder(recipe.model_config()).init(jax.random.key(recipe.seed), dummy)["params"])
    table = jax.random.normal(jax.random.key(recipe.seed + 1), (recipe.vocab_size, recipe.width))
    params["embed"] = {"embedding": table / math.sqrt(recipe.width)}
    opt_state = optimizer.init(params)
    done, spent = 0, 0.0
    saved = saved_steps(work)
    leaves, treedef = jax.tree.flatten((params, opt_state))
    if saved:
        target = {"leaves": [np.zeros(leaf.shape, leaf.dtype) for leaf in leaves], "seconds": np.zeros(())}
        restored: Any = ocp.load(str(saved[-1]), target)
        params, opt_state = jax.tree.unflatten(treedef, [jnp.asarray(leaf) for leaf in restored["leaves"]])
        done, spent = int(saved[-1].name.split("-")[1]), float(restored["seconds"])
    step, began, last_save, log = (
        make_step(decoder, optimizer),
        time.time(),
        time.time(),
        (work / "log.jsonl").open("a"),
    )
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))

    def save(at: int) -> None:
        state = {"leaves": [np.asarray(leaf) for leaf in jax.tree.leaves((params, opt_state))]}
        before = saved_steps(work)
        ocp.save(str(work / f"step-{at:06d}"), state | {"seconds": np.asarray(spent + time.time() - began)})
        for path in before:
            shutil.rmtree(path)

    keep(done, params)
    with Progress() as progress:
        bar = progress.add_task("pretraining", total=recipe.steps, completed=done)
        while done < recipe.steps and not stopped and time.time() - began < stop_after:
            params, opt_state, loss = step(params, opt_state, batch_at(stream, done, recipe))
            done += 1
            keep(done, params)
            progress.update(bar, completed=done)
            if done % 20 == 0:
                log.write(json_text({"step": done, "loss": float(loss), "seconds": spent + time.time() - began}) + "\n")
                log.flush()
                progress.update(bar, description=f"pretraining, loss {float(loss):.3f}")
            if time.time() - last_save > save_every:
                save(done)
                last_save = time.time()
    if not (work / f"step-{done:06d}").exists():
        save(done)
    return params, done, spent + time.time() - began


def save_hugging_face(recipe: Recipe, params: Any, tokenizer: Any, out: Path) -> None:
    """The checkpoint in bf16, as transformers writes it for LlamaForCausalLM."""
    end = tokenizer.convert_tokens_to_ids(END)
    described = {**recipe.described(), "bos_token_id": end, "eos_token_id": end}
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    save_model(Model(recipe.model_config(), rounded, tokenizer, described=described), out)
    tokenizer.backend_tokenizer.save(str(out / "tokenizer.json"), pretty=False)  # without indentation: 0.16 MB less
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": END, "eos_token": END}
    about |= {"model_max_length": recipe.context, "clean_up_tokenization_spaces": False}
    (out / "tokenizer_config.json").write_text(json.dumps(about, indent=2) + "\n")


def checkpoint_folder(work: Path, step: int) -> Path:
    """Where the model after so many updates is written."""
    return work / "checkpoints" / f"step-{step:06d}"


def check_checkpoints(steps: Sequence[int], recipe: Recipe, work: Path) -> None:
    """Refuse steps that are never reached, or that a saved state of an earlier session has passed already."""
    done = int(saved_steps(work)[-1].name.split("-")[1]) if saved_steps(work) else 0
    for step in steps:
        if not 0 <= step <= recipe.steps:
            raise SystemExit(f"--checkpoints {step}: expected 0 to {recipe.steps}, the updates of the recipe")
        if step < done and not checkpoint_folder(work, step).exists():
            raise SystemExit(f"--checkpoints {step}: {work} is at update {done} already; give another --work")


def checkpoint_keeper(steps: Sequence[int], recipe: Recipe, tokenizer: Any, work: Path) -> Callable[[int, Any], None]:
    """What `train` calls after each update: it writes a checkpoint at these steps, whole or not at all."""

    def keep(done: int, params: Any) -> None:
        folder = checkpoint_folder(work, done)
        if done in steps and not folder.exists():
            part = folder.with_suffix(".part")
            save_hugging_face(recipe, params, tokenizer, part)
            part.rename(folder)

    return keep


CARD = """---
license: apache-2.0
language: en
pipeline_tag: text-generation
---
# The default model of onestep_jax

A Llama of {millions:.2f} million parameters ({layers} layers, width {width}, {heads} query and {kv_heads} key/value
heads, context {context}, tied head) with a byte-level BPE tokenizer of {vocab_size} tokens. It exists so that one-step
generation can be tried, tested and measured with no download; it is no useful language model.

**Data.** {books} {about} ({train_bytes:,} bytes, {train_tokens:,} tokens).

**Recipe.** `experiments/packaged/pretrain_default.py`, {done} updates on {tokens_per_update:,} tokens each
({seen:,} tokens seen, {epochs:.2f} epochs), bf16 products with float32 sums, {minutes:.0f} minutes on {device}:

```json
{recipe}
```

**Loss.** On {validation_books} others, held out whole ({validation_bytes:,} bytes), after rounding the weights to bf16:
{nats_per_token:.4f} nats per token, **{bits_per_byte:.4f} bits per byte**.
"""


def update_numbers(text: str) -> list[int]:
    """Numbers of updates with commas between, as argparse reads them."""
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--train", type=Path, required=True, help="folder of .txt files, or .jsonl[.xz] with `text`")
    parser.add_argument("--validation", type=Path, required=True, help="the same, for the reported loss")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/pretrain"), help="tokenizer, token streams, saved steps"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the Hugging Face checkpoint")
    parser.add_argument("--about", default="texts", help="what the texts are, for the model card")
    parser.add_argument("--save-every", type=float, default=300, metavar="SECONDS")
    parser.add_argument(
        "--stop-after", type=float, default=math.inf, metavar="SECONDS", help="save and stop after this long"
    )
    parser.add_argument(
        "--checkpoints", type=update_numbers, default=[], metavar="N,N,…", help="updates after which the model is kept"
    )
    for field in dataclasses.fields(Recipe):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    args = parser.parse_args()
    recipe = Recipe(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Recipe)})

    work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    check_checkpoints(args.checkpoints, recipe, work)
    texts, held_out = read_texts(args.train), read_texts(args.validation)
    tokenizer = train_tokenizer(texts, recipe.vocab_size, work / "tokenizer")
    for name, part in (("train", texts), ("validation", held_out)):
        if not (work / f"{name}.npy").exists():
            np.save(work / f"{name}.npy", tokenise(part, tokenizer))
    stream, validation = np.load(work / "train.npy"), np.load(work / "validation.npy")

    keep = checkpoint_keeper(args.checkpoints, recipe, tokenizer, work)
    params, done, seconds = train(recipe, stream, work, args.save_every, args.stop_after, keep)
    if done < recipe.steps:
        print(f"stopped after {done} of {recipe.steps} updates, saved in {work}; the same command goes on")
        return
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), params)
    validation_bytes = sum(len(text.encode()) for text in held_out)
    scores = evaluate(Decoder(recipe.model_config()), rounded, validation, validation_bytes, recipe)
    save_hugging_face(recipe, params, tokenizer, args.out)
    tokens_per_update = recipe.batch * recipe.window
    seen = done * tokens_per_update
    facts = (
        dataclasses.asdict(recipe)
        | scores
        | {
            "millions": sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6,
            "books": len(texts),
            "about": args.about,
            "train_bytes": sum(len(text.encode()) for text in texts),
            "train_tokens": len(stream),
            "done": done,
            "tokens_per_update": tokens_per_update,
            "seen": seen,
            "epochs": seen / len(stream),
            "minutes": seconds / 60,
            "device": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
            "recipe": json.dumps(dataclasses.asdict(recipe)),
            "validation_books": len(held_out),
            "validation_bytes": validation_bytes,
        }
    )
    (args.out / "README.md").write_text(CARD.format(**facts))
    print(json_text({"updates": done, **scores}))


if __name__ == "__main__":
    main()
