"""Names of readout heads, as every architecture understands them."""

from __future__ import annotations

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


def complete_head_names(names: tuple[str, ...] | None, count: int, dataset_info: DatasetInfo) -> tuple[str, ...]:
    """The configured names; by default those of the dataset's heads, then head_1, head_2, ...

    Raises:
        ValueError: the dataset describes more heads than `count`.
    """
    if names is not None:
        return names
    known = tuple(head.name for head in dataset_info.heads)
    if len(known) > count:
        raise ValueError(f"num_readout_heads={count} but the dataset describes the heads {known}; raise the number")
    return known + tuple(f"head_{number}" for number in range(len(known), count))
