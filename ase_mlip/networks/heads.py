"""What every architecture with readout heads has in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import flax.linen as nn

from ase_mlip.dataset_info import DatasetInfo


def check_head_names(names: tuple[str, ...] | None, count: int) -> None:
    """Whether a configuration's names, if it gives any, fit its number of heads.

    Raises:
        ValueError: not one name for each head, or one of them twice.
    """
    if names is not None and (len(names) != count or len(set(names)) != count):
        raise ValueError(
            f"head_names={names} with num_readout_heads={count}: give one name for each head, all different"
        )


class MultiHeadNetwork(nn.Module):
    """A network made from a configuration with `num_readout_heads` and `head_names`, and the dataset's constants."""

    config: Any
    dataset_info: DatasetInfo

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

    @nn.nowrap
    def rebuild(self, config: Any, dataset_info: DatasetInfo) -> Self:
        """The same architecture with another configuration and constants."""
        return type(self)(config, dataset_info)
