"""What ASE finds through its `ase.plugins` entry point; light, because ASE imports it for every `ase info`."""

from __future__ import annotations

from typing import Any

__ase_plugins__: frozenset[Any]
try:
    from ase._4.plugins.plugin import CalculatorPlugin
except ImportError:  # an ASE without the experimental plugin system
    __ase_plugins__ = frozenset()
else:
    __ase_plugins__ = frozenset(
        {CalculatorPlugin("ase_mlip", implementation="ase_mlip.calculator.MLIPCalculator", citation="arXiv:2206.07697")}
    )
