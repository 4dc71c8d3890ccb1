"""Network architectures: neighbour vectors in, node energies per head out."""
