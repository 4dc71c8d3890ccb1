"""Where the data files are that the package itself uses."""

from __future__ import annotations

from importlib import resources
from pathlib import Path


def shipped_file(name: str) -> Path:
    """A data file by its name: inside the installed package, or in the data folder of a checkout.

    Raises:
        FileNotFoundError: it is in neither place.
    """
    package = Path(str(resources.files("ase_mlip")))
    places = [package / "models" / name, package.parent / "data" / name]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(f"{name} is missing from the installation; looked for {', '.join(map(str, places))}")
