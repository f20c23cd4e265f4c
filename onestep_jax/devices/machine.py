"""What a measurement was made on, for records and model cards."""

from __future__ import annotations

import platform
from pathlib import Path

import jax


def processor() -> str:
    """Name of the CPU."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.processor()


def device_name() -> str:
    """Name of a local device: of a CPU that of the processor, which JAX does not tell."""
    device = jax.local_devices()[0]
    return processor() if device.platform == "cpu" else device.device_kind
