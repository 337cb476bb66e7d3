"""Calls side by side, their results as they come."""

from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import TypeVar

T = TypeVar("T")


def as_they_come(
    work: Callable[[int, Event], T], count: int, threads: int
) -> Iterator[tuple[int, T]]:
    """``work(index, given_up)`` for every index below ``count``, with the index of each.

    The first error ends it and is raised; then, and when the caller stops listening,
    ``given_up`` is set and nothing more is begun. The threads are daemons: what is under way
    then must not keep an interrupted process alive.
    """
    waiting: SimpleQueue[int] = SimpleQueue()
    done: SimpleQueue[tuple[int, T | Exception]] = SimpleQueue()
    given_up = Event()
    for index in range(count):
        waiting.put(index)

    def run() -> None:
        while not given_up.is_set():
            try:
                index = waiting.get_nowait()
            except Empty:
                return
            try:
                done.put((index, work(index, given_up)))
            except Exception as error:
                done.put((index, error))

    for _ in range(min(max(threads, 1), count)):
        Thread(target=run, daemon=True).start()
    try:
        for _ in range(count):
            index, result = done.get()
            if isinstance(result, Exception):
                raise result
            yield index, result
    finally:
        given_up.set()
