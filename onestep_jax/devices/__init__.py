"""Where programs run: devices, how weights are split over them, compiled programs on disk.

May import `errors`.
"""

from onestep_jax.devices.compile_cache import use_cache
from onestep_jax.devices.placement import Mesh, Placement, Pmap, Together

__all__ = ["Mesh", "Placement", "Pmap", "Together", "use_cache"]
