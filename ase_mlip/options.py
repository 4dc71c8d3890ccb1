"""Options of a command in one frozen dataclass: what Python, the command line and a YAML file share."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, Self, Union, get_args, get_origin, get_type_hints

import yaml

KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
LISTS = {int: "a list of whole numbers", str: "a list of text"}


class Options:
    """What a frozen dataclass gets whose every field is `Annotated[type, "help"]` and has a default.

    Attributes:
        SOURCES: fields that may hold frames or a model in memory instead of a file's name; then the options cannot be
            written to a file.
    """

    SOURCES: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def options(cls) -> Iterator[tuple[str, Any, Any, str]]:
        """Name, type, default and help of every option, in order."""
        hints = get_type_hints(cls, include_extras=True)
        for f in fields(cls):  # type: ignore[arg-type]
            kind, text = get_args(hints[f.name])
            yield f.name, kind, f.default, text

    @classmethod
    def types(cls) -> dict[str, Any]:
        """Name and type of every option."""
        return {name: kind for name, kind, _, _ in cls.options()}

    def changed(self, given: Mapping[str, Any]) -> Self:
        """A copy with other values.

        Raises:
            ValueError: an option that does not exist, or a value of the wrong kind.
        """
        types = self.types()
        for name, value in given.items():
            if name not in types:
                raise ValueError(f"there is no option {name!r}; the options are {', '.join(types)}")
            if not _fits(value, types[name]):
                raise ValueError(f"{name}={value!r}: expected {_describe_type(types[name])}")
        return replace(self, **{name: _plain(value, types[name]) for name, value in given.items()})  # type: ignore[type-var]

    def to_dict(self) -> dict[str, Any]:
        """Plain data that says what was asked for; frames that came from no file are described by their number."""
        plain = {name: getattr(self, name) for name in self.types()}
        plain |= {name: _describe_source(plain[name]) for name in self.SOURCES}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a YAML file that `load` reads and `--config` of the command runs.

        Raises:
            ValueError: frames that came from no file.
        """
        plain = self.to_dict()
        for name in self.SOURCES:
            if "in memory" in str(plain[name]):
                raise ValueError(
                    f"{name} is {plain[name]}: only a run on files can be written down; write the frames first"
                )
        Path(path).write_text(yaml.safe_dump(plain, sort_keys=False))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a YAML file; what it does not name has its default.

        Raises:
            ValueError: not YAML, a key that does not exist, or a value that cannot be.
        """
        try:
            data = yaml.safe_load(Path(path).read_text())
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is not YAML: {error}") from error
        if not isinstance(data, dict):
            raise ValueError(f"{path} holds no mapping of options to values")
        return cls().changed(data)

    @classmethod
    def parse(cls, name: str, text: str) -> tuple[Any, ...]:
        """The values of an option that is a list, from the command line: "64,64".

        Raises:
            ValueError: not numbers where numbers are due.
        """
        (kind,) = {kind for kind in alternatives(cls.types()[name]) if get_origin(kind) is tuple}
        item = get_args(kind)[0]
        try:
            return tuple(item(part) for part in text.split(","))
        except ValueError:
            raise ValueError(f"{name}={text!r}: expected {LISTS[item]}, joined by commas") from None


def is_list(kind: Any) -> bool:
    """Whether an option's type is a tuple, or may be one."""
    return any(get_origin(option) is tuple for option in alternatives(kind))


def alternatives(kind: Any) -> tuple[Any, ...]:
    """The members of a union, or the type itself."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value may stand for an annotated type; whole numbers are numbers, paths are text, lists are tuples."""
    if kind is Any:
        return True
    if isinstance(value, tuple | list):
        return any(is_list(k) and all(_fits(v, get_args(k)[0]) for v in value) for k in alternatives(kind))
    allowed = {option for option in alternatives(kind) if not is_list(option)}
    if isinstance(value, bool):
        return bool in allowed
    also = {float: (int,), str: (os.PathLike,)}
    return any(isinstance(value, (option, *also.get(option, ()))) for option in allowed)


def _describe_type(kind: Any) -> str:
    return " or ".join(
        LISTS[get_args(option)[0]] if is_list(option) else KINDS.get(option, "nothing") for option in alternatives(kind)
    )


def _plain(value: Any, kind: Any) -> Any:
    """Paths as text, lists as tuples where the option is a list."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return tuple(value) if isinstance(value, list) and is_list(kind) else value


def _describe_source(source: Any) -> Any:
    """The source itself if it can be written down, else what it is."""
    if source is None or isinstance(source, str | int | float):
        return source
    if isinstance(source, os.PathLike):
        return os.fspath(source)
    if isinstance(source, Mapping):
        return {str(level): _describe_source(part) for level, part in source.items()}
    what = f"{len(source)} frames" if hasattr(source, "__len__") else type(source).__name__
    return f"<{what} in memory>"
