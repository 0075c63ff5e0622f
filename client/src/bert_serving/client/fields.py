"""Reading one field of a header: each either has the type and range it must have, or is refused."""

from __future__ import annotations

import math

from .errors import MalformedMessage
from .frames import Header

MAX_LIST = (1 << 16) + 1


def integer(header: Header, name: str, least: int, most: int) -> int:
    """Return a field that is an int between two bounds."""
    value = header.get(name)
    if type(value) is not int or not least <= value <= most:
        got = f"{value}" if type(value) is int else type(value).__name__
        raise MalformedMessage(f"{name} is {got}, expected an int between {least} and {most}")
    return value


def number(header: Header, name: str) -> float:
    """Return a field that is an int or a float, finite and not negative, as a float."""
    value = header.get(name)
    if type(value) is not float and type(value) is not int:
        raise MalformedMessage(f"{name} is {type(value).__name__}, expected a number")
    if not 0 <= value < math.inf:
        raise MalformedMessage(f"{name} is {value}, expected a finite number of at least 0")
    return float(value)


def boolean(header: Header, name: str) -> bool:
    """Return a field that is true or false; a missing one is false."""
    value = header.get(name, False)
    if type(value) is not bool:
        raise MalformedMessage(f"{name} is {type(value).__name__}, expected true or false")
    return value


def string(header: Header, name: str, max_chars: int) -> str:
    """Return a field that is a string of limited length."""
    value = header.get(name)
    if type(value) is not str or len(value) > max_chars:
        raise MalformedMessage(f"{name} must be a string of at most {max_chars} characters")
    return value


def name(header: Header, name: str, max_chars: int) -> str:
    """Return a field that is a string of limited length and not empty."""
    value = string(header, name, max_chars)
    if not value:
        raise MalformedMessage(f"{name} must not be empty")
    return value


def mapping(header: Header, name: str) -> Header:
    """Return a field that is a map."""
    value = header.get(name)
    if type(value) is not dict:
        raise MalformedMessage(f"{name} is {type(value).__name__}, expected a map")
    return value


def numbers(header: Header, name: str) -> list[float]:
    """Return a field that is a list of ints and floats, each finite and not negative."""
    value = header.get(name)
    if type(value) is not list or len(value) > MAX_LIST:
        raise MalformedMessage(f"{name} must be a list of at most {MAX_LIST} numbers")
    for item in value:
        if type(item) not in (int, float) or not 0 <= item < math.inf:
            raise MalformedMessage(f"{name} holds something that is no finite number of at least 0")
    return value


def integers(header: Header, name: str, most: int) -> list[int]:
    """Return a field that is a list of ints from 0 to `most`."""
    value = header.get(name)
    if type(value) is not list or len(value) > MAX_LIST:
        raise MalformedMessage(f"{name} must be a list of at most {MAX_LIST} ints")
    if value and not (set(map(type, value)) == {int} and min(value) >= 0 and max(value) <= most):
        raise MalformedMessage(f"{name} holds something that is no int between 0 and {most}")
    return value
