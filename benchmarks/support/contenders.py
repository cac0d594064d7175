"""Systems that take turns at one task, each time in a process of its own, and the figures that all such tasks have."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from .peers import PeerError, System, described
from .rows import Row, row

Answers = Sequence[Mapping[str, Any]]  # of one contender, one of each turn


@dataclass(frozen=True)
class Contender:
    """One way of one system."""

    system: System
    variant: str
    label: str


@dataclass(frozen=True)
class Turns:
    """What contenders answered in their turns, and which of them failed, by their labels."""

    answers: dict[str, list[dict[str, Any]]]  # of one that failed, those of the turns before
    failed: dict[str, PeerError]

    @property
    def whole(self) -> dict[str, list[dict[str, Any]]]:
        """The answers of contenders that never failed."""
        return {label: found for label, found in self.answers.items() if label not in self.failed}

    @property
    def threads(self) -> str:
        """How many threads worked, every number that was told."""
        return ", ".join(map(str, sorted({found["threads"] for of_one in self.answers.values() for found in of_one})))


def find_contenders(scratch: Path, tasks: str, peers: Sequence[str], notes: list[str]) -> list[Contender]:
    """Every way of every system that is there; ours first. A peer that is not becomes a note."""
    return [
        Contender(system, variant, system.label(told["version"], variant))
        for system, told in described(("seqmill", *peers), tasks, scratch, notes)
        for variant in told["variants"]
    ]


def take_turns(
    contenders: Sequence[Contender], turns: int, folder: Path, one_core: bool, task: str, work: Path, device: str
) -> Turns:
    """Have every contender do `task` in each turn; one that fails is left out from then on.

    Args:
        folder: for the answers, each in a new folder of it.
        one_core: whether threads are held to one.
        work, device: what drivers are told behind the name of the variant.
    """
    found = Turns({}, {})
    for turn in range(turns):
        for one in contenders:
            if one.label in found.failed:
                continue
            system = replace(one.system, one_core=one_core)
            at = folder / f"{one.label.replace(' ', '-')}-{turn}"
            try:
                answer = system.ask(at, task, one.variant, work, device)
            except PeerError as error:
                found.failed[one.label] = error
                continue
            found.answers.setdefault(one.label, []).append(answer.result)
    return found


def speed_rows(shown: str, label: str, answers: Mapping[str, Answers], done: int, unit: str, own: str) -> Iterator[Row]:
    """How much of `done` a second, and of a peer how many times as long it took as ours: medians over the turns."""
    turns = answers[label]
    yield row(f"{shown}: speed", label, median(done / found["seconds"] for found in turns), unit, True)
    if label != own:
        ratio = median(found["seconds"] / ours["seconds"] for found, ours in zip(turns, answers[own], strict=True))
        yield row(f"{shown}: {own} beside this one", label, ratio, "x", True)


def room_rows(shown: str, label: str, turns: Answers) -> Iterator[Row]:
    """Padding, and the most memory of all turns."""
    yield row(f"{shown}: padding", label, 100 * turns[0]["padding_share"], "% of places", False)
    yield row(f"{shown}: peak memory", label, max(found["peak_bytes"] for found in turns) / 1e6, "MB", False)
