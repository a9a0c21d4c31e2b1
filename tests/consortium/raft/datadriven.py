"""Scenario files: commands with the output that they must give.

The grammar is that of Go's `datadriven` package, which etcd-io/raft uses:

    # a comment
    command argument key=value key=(value,value)
    more input
    ----
    the output, up to a blank line

An output that contains blank lines stands between two lines of `----` and two more.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

_ARGUMENT = re.compile(r"\s*([^\s=]+)(?:=(\([^)]*\)|\S*))?")


@dataclass
class Command:
    """One command of a scenario."""

    where: str
    name: str
    arguments: list[tuple[str, list[str]]]
    """Each with its values; an argument without "=" has none."""
    input: str
    expected: str
    source: str = field(repr=False, default="")

    def plain(self) -> list[str]:
        """The arguments without values."""
        return [key for key, values in self.arguments if not values]

    def option(self, name: str) -> list[str]:
        """The values of `name=`, none when it isn't given."""
        return [value for key, values in self.arguments if key == name for value in values]

    def flag(self, name: str) -> bool | None:
        values = self.option(name)
        return None if not values else values[0] in ("true", "t", "1")


def parse(path: Path) -> list[Command]:
    """Read a scenario file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    commands = []
    at = 0
    while at < len(lines):
        line = lines[at].strip()
        if not line or line.startswith("#"):
            at += 1
            continue
        start = at
        while line.endswith("\\"):
            at += 1
            line = line[:-1].strip() + " " + lines[at].strip()
        at += 1
        given = []
        while at < len(lines) and lines[at] != "----":
            given.append(lines[at])
            at += 1
        source = "\n".join(lines[start:at])
        at += 1
        output = []
        if at < len(lines) and lines[at] == "----":
            at += 1
            while lines[at : at + 2] != ["----", "----"]:
                output.append(lines[at])
                at += 1
            at += 2
        else:
            while at < len(lines) and lines[at].strip():
                output.append(lines[at])
                at += 1
        name, _, rest = line.partition(" ")
        arguments = []
        for match in _ARGUMENT.finditer(rest):
            key, value = match.groups()
            if value is None:
                values = []
            elif value.startswith("("):
                values = [one.strip() for one in value[1:-1].split(",")]
            else:
                values = [value]
            arguments.append((key, values))
        commands.append(
            Command(
                f"{path.name}:{start + 1}",
                name,
                arguments,
                "\n".join(given),
                "".join(f"{one}\n" for one in output),
                source,
            )
        )
    return commands


def run(path: Path, handle: Callable[[Command], str]) -> None:
    """Run a scenario; the first difference fails with the command and both outputs."""
    for command in parse(path):
        actual = handle(command)
        if actual and not actual.endswith("\n"):
            actual += "\n"
        assert actual == command.expected, (
            f"{command.where}: {command.name}\n--- expected\n{command.expected}--- got\n{actual}"
        )


def rewrite(path: Path, handle: Callable[[Command], str]) -> None:
    """Run a scenario and write the outputs that it gives into the file; review the diff."""
    text = path.read_text(encoding="utf-8")
    at = 0
    pieces = []
    for command in parse(path):
        actual = handle(command)
        if actual and not actual.endswith("\n"):
            actual += "\n"
        start = text.index(command.source + "\n----\n", at)
        begin = start + len(command.source) + 6
        end = text.find("\n\n", begin - 1)
        end = len(text) if end < 0 else end + 1
        pieces.append(text[at:begin] + actual)
        at = end
    path.write_text("".join(pieces) + text[at:], encoding="utf-8")
