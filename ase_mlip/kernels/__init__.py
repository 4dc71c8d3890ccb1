"""The two hot loops of MACE on a CPU: C++ over vectors of channels, called by XLA.

`neighbor_sum.cc` and `contraction.cc` are compiled on first use by the machine's own C++ compiler, for its own
processor, and kept in the user's cache. They give the same numbers as the plain formulas in `networks`, several times
faster, and leave XLA far less to compile. Where there is no compiler, on a GPU, for shapes that they do not cover, and
with the environment variable `ASE_MLIP_KERNELS=off`, the plain formulas run; `describe` says which.
"""

from ase_mlip.kernels.build import describe, usable

__all__ = ["describe", "usable"]
