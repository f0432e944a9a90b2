"""Answers that are kept to be given again, within bounds."""

from __future__ import annotations

from typing import Generic, TypeVar

Key = TypeVar("Key")
Answer = TypeVar("Answer")


class Remembered(Generic[Key, Answer]):
    """Answers by what was asked. When they are too many, all are forgotten.

    Args:
        most: The sum of the weights that is kept, which `put` is told.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._weight = 0
        self._answers: dict[Key, Answer] = {}

    @property
    def weight(self) -> int:
        """The sum of the weights of what is kept."""
        return self._weight

    def get(self, key: Key) -> Answer | None:
        """The answer, if it is known."""
        return self._answers.get(key)

    def put(self, key: Key, answer: Answer, weight: int) -> None:
        """Keep an answer, unless it is too much by itself."""
        if self._weight + weight > self._most:
            self._answers, self._weight = {}, 0
        if weight <= self._most and key not in self._answers:
            self._answers[key] = answer
            self._weight += weight
