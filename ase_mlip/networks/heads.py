"""What every architecture with readout heads has in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self, cast

import flax.linen as nn

from ase_mlip.dataset_info import DatasetInfo
from ase_mlip.networks.neighbor_sum import Kernels
from ase_mlip.networks.tabulate import RadialModel, tabulate


def check_head_names(names: tuple[str, ...] | None, count: int) -> None:
    """Whether a configuration's names, if it gives any, fit its number of heads.

    Raises:
        ValueError: not one name for each head, or one of them twice.
    """
    if names is not None and (len(names) != count or len(set(names)) != count):
        raise ValueError(
            f"head_names={names} with num_readout_heads={count}: give one name for each head, all different"
        )


Params = Mapping[str, Any]


class MultiHeadNetwork(nn.Module):
    """A network made from a configuration with `num_readout_heads` and `head_names`, and the dataset's constants.

    With `kernels`, hot loops run in C++: the same numbers, but only two derivatives, and one where the
    radial weights are tabulated.
    """

    config: Any
    dataset_info: DatasetInfo
    kernels: Kernels | None = None

    @property
    def parts(self) -> Mapping[str, tuple[str, ...]]:
        """Named parts of the network, each with the patterns of its parameters' names; every parameter is in one."""
        raise NotImplementedError

    @property
    def head_names(self) -> tuple[str, ...]:
        """Names of the readout heads, in order; by default those of the dataset's heads, then head_1, head_2, ...

        Raises:
            ValueError: the dataset describes more heads than the configuration.
        """
        names, count = self.config.head_names, self.config.num_readout_heads
        if names is not None:
            return tuple(names)
        known = tuple(head.name for head in self.dataset_info.heads)
        if len(known) > count:
            raise ValueError(f"num_readout_heads={count} but the dataset describes the heads {known}; raise the number")
        return known + tuple(f"head_{number}" for number in range(len(known), count))

    @property
    def has_kernels(self) -> bool:
        """Whether C++ kernels cover this network and run here."""
        return False

    @property
    def has_tables(self) -> bool:
        """Whether kernels run here with tables in place of the radial networks; then this is a `RadialModel`."""
        return False

    @nn.nowrap
    def with_kernels(self) -> Self:
        """The same network with C++ kernels where they run, else itself."""
        wanted = self.kernels is None and self.has_kernels
        return type(self)(self.config, self.dataset_info, Kernels()) if wanted else self

    @nn.nowrap
    def tabulated(self, params: Params) -> tuple[Self, Params]:
        """This network and its parameters with the radial networks as tables, for predictions in float32.

        Itself where the kernels do not run or the radial weights depend on more than the distance.
        """
        if not self.has_tables:
            return self, params
        kernels, params = tabulate(cast(RadialModel, self), params)
        return type(self)(self.config, self.dataset_info, kernels), params

    @nn.nowrap
    def rebuild(self, config: Any, dataset_info: DatasetInfo) -> Self:
        """The same architecture with another configuration and constants."""
        return type(self)(config, dataset_info)
