"""The two hot loops of MACE, the sum over neighbours and the symmetric contraction, for CPUs and GPUs.

On a CPU they are C++ over vectors of channels, called by XLA: `neighbor_sum.cc` and `contraction.cc` are compiled on
first use by the machine's own C++ compiler, for its own processor, and kept in the user's cache. On an NVIDIA GPU
predictions in float32 run Pallas kernels, `gpu_neighbor_sum.py` and `gpu_contraction.py`. Both give the same numbers as
the plain formulas in `networks`, several times faster. Where there is no compiler, for shapes that they do not cover,
and with the environment variable `ASE_MLIP_KERNELS=off`, the plain formulas run; `describe` says which.
"""

from ase_mlip.kernels.choice import describe, on_gpu, pick_contraction, pick_sum, usable

__all__ = ["describe", "on_gpu", "pick_contraction", "pick_sum", "usable"]
