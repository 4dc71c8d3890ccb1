"""How fast a model is on this machine, and how far from what the machine could do: `ase-mlip bench`."""
