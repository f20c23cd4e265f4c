"""Strict by default: no silent rank promotion; warnings are errors (pyproject.toml).

A test, and a process that it starts, sees one device, the machine of a newcomer; modules marked `eight_devices` see
eight, with which compiling and running take longer.
"""

import dataclasses
import gc
import os
import subprocess
import sys
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
if "XLA_FLAGS" not in os.environ:  # workers of pytest-xdist inherit the controller's
    # Most of the time goes into compiling. LLVM at its lowest level, without emitters of fused loops by way of MLIR,
    # and without threads for each small program, takes a quarter of it; `.ci/run` compiles some tests as users do.
    # Flags come and go, and at one that it does not know XLA aborts: each is tried in a process of its own.
    tried = {
        flag: subprocess.Popen(
            [sys.executable, "-c", "import jax; jax.devices()"],
            env={**os.environ, "XLA_FLAGS": flag},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for flag in (
            "--xla_backend_optimization_level=0",
            "--xla_cpu_use_fusion_emitters=false",
            "--xla_cpu_parallel_codegen_split_count=1",
        )
    }
    os.environ["XLA_FLAGS"] = " ".join(flag for flag, process in tried.items() if process.wait() == 0)
os.environ["HF_HUB_OFFLINE"] = "1"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # workers of pytest-xdist inherit the controller's
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="onestep-xla-")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hub_server import WRITER, Hub, serving, turn_to

from onestep_jax import Model, load_model
from onestep_jax.devices import placement
from onestep_jax.devices.placement import Pmap
from onestep_jax.model.checkpoint import save_model
from onestep_jax.model.decoder import Decoder
from onestep_jax.model.families import read_config

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 8)

# Tracing makes objects by the million; what the imports above have made is not looked through each time.
gc.freeze()
gc.set_threshold(20_000, 20, 20)


TINY = {
    "model_type": "llama",
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}


def memory_held() -> float:
    """Bytes of memory that this process holds; infinite where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return float("inf")


def memory_share() -> float:
    """Half of the machine's memory, divided by the workers, at most 2.5 GB: beyond it looking through objects costs."""
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(2.5e9, whole / 2 / int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that run whole commands come first: at the end one worker would be at them, with nothing for the others."""
    items.sort(key=lambda item: item.path.parent != Path(__file__).parent)


@pytest.fixture(autouse=True, scope="module")
def machine(request: pytest.FixtureRequest):
    """One device, or eight where the module asks for them."""
    with pytest.MonkeyPatch.context() as patch:
        if request.node.get_closest_marker("eight_devices") is None:
            first = jax.local_devices()[:1]
            patch.setattr(jax, "local_devices", lambda: first)
        yield


@pytest.fixture(autouse=True, scope="session")
def signals_left_alone():
    """What ends a process at its second signal stays for good, so a test calls `cli.parser.main`, not `cli.main`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onestep_jax.cli.end_by_signal", lambda: pytest.fail("call onestep_jax.cli.parser.main"))
        yield


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Compiled programs of a module go with it where a worker holds more than a share of the memory."""
    yield
    if memory_held() < memory_share():
        return
    for kept in (placement._pmapped, placement._row_by_row, placement._as_one):
        kept.cache_clear()
    jax.clear_caches()


@pytest.fixture(scope="session")
def tiny() -> Model:
    """A random Llama of 19 thousand weights, on which 8 tokens are solved in well under 500 steps."""
    _, config = read_config(TINY)
    params = Decoder(config).init(jax.random.key(3), jnp.zeros((2, config.width)))["params"]
    wider = jax.tree_util.tree_map_with_path(lambda path, x: x * 10 if path[-1].key == "kernel" else x, params)
    wider["embed"] = {"embedding": 0.3 * jax.random.normal(jax.random.key(4), (config.vocab_size, config.width))}
    return Model(config, wider, None, "tiny", "0123456789abcdef", TINY)


@pytest.fixture(scope="session")
def token_lists() -> list[list[int]]:
    """Twelve texts of 8 random tokens each."""
    return np.random.default_rng(0).integers(61, size=(12, 8)).tolist()


@pytest.fixture(scope="session")
def one_device() -> Pmap:
    return Pmap(jax.local_devices()[:1])


WORDS = ["<unk>", *(f"w{i}" for i in range(60))]


@pytest.fixture(scope="session")
def tiny_folder(tiny: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a checkpoint folder, with a tokenizer of sixty words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    save_model(tiny, folder)
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    """The server, for the tests of a module."""
    with serving({}) as server:
        yield server


@pytest.fixture
def logged_in(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server without data sets and faults, to which the client is logged in with a token that may write."""
    hub.data_sets.clear()
    hub.faults.clear()
    turn_to(hub, tmp_path / "home", monkeypatch, WRITER)


@pytest.fixture(scope="session")
def two_layers(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The first and the last layer of the packaged model, a quarter of its work.

    It hardly knows a language any more, but emits short texts as well.
    """
    whole = load_model("default")
    blocks = [f"block_{layer}" for layer in range(whole.config.layers)]
    kept = {"block_0": whole.params[blocks[0]], "block_1": whole.params[blocks[-1]]}
    cut = dataclasses.replace(
        whole,
        config=dataclasses.replace(whole.config, layers=2),
        params={name: value for name, value in whole.params.items() if name not in blocks} | kept,
        described={**whole.described, "num_hidden_layers": 2},
    )
    folder = tmp_path_factory.mktemp("two-layers")
    save_model(cut, folder)
    return load_model(folder)
