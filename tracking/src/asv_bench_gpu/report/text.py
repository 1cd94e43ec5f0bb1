"""Numbers and errors as pages and tables write them. A ratio is never rounded in the subject's favour."""

from __future__ import annotations

import decimal
import math

NO_BREAK = "\u202f"  # narrow no-break space, between a number and its unit
DASH = "\u2013"
TIMES = "\u00d7"


def ratio(value: float, digits: int = 2) -> str:
    """A ratio, rounded up: lower is better, so up is never in the subject's favour.

    >>> ratio(0.981), ratio(1.001), ratio(1.0), ratio(1.1)
    ('0.99', '1.01', '1.00', '1.10')
    """
    return str(_up(value, digits))


def percent(fraction: float) -> str:
    """A spread, rounded up.

    >>> percent(0.0021)
    '0.3\\u202f%'
    """
    return f"{_up(fraction * 100, 1)}{NO_BREAK}%"


def quantity(value: float, unit: str) -> str:
    """A number with its unit: seconds as a fraction of one, bytes in binary multiples, the others as they are.

    >>> quantity(2.5e-6, "seconds"), quantity(1536, "bytes"), quantity(1000, "bytes"), quantity(3, "registers")
    ('2.50\\u202fµs', '1.50\\u202fKiB', '1000\\u202fB', '3')
    """
    if unit == "seconds":
        if abs(value) >= 1:
            return f"{value:.3g}{NO_BREAK}s"
        if abs(value) >= 1e-2:
            return f"{value * 1e3:.1f}{NO_BREAK}ms"
        return f"{microseconds(value)}{NO_BREAK}µs"
    if unit == "bytes":
        power = 0 if abs(value) < 1024 else min(int(math.log2(abs(value)) // 10), 4)
        scaled = value / 1024**power
        digits = 0 if power == 0 or abs(scaled) >= 100 else 2 if abs(scaled) < 10 else 1
        return f"{scaled:.{digits}f}{NO_BREAK}{('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.3g}"


def microseconds(seconds: float) -> str:
    """A time in microseconds, without the unit.

    >>> microseconds(2.534e-6), microseconds(1.2346e-4)
    ('2.53', '123.5')
    """
    micro = seconds * 1e6
    return f"{micro:.2f}" if abs(micro) < 100 else f"{micro:.1f}"


def probability(value: float) -> str:
    """A probability, rounded up.

    >>> probability(0.0123), probability(0.00001)
    ('0.0123', 'below 0.0001')
    """
    return str(_up(value, 4)) if value >= 1e-4 else "below 0.0001"


def plural(count: int, noun: str) -> str:
    """A count and its noun.

    >>> plural(1, "shape"), plural(2, "shape")
    ('1 shape', '2 shapes')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def gist(message: str) -> str:
    r"""The line of an error's text that says what went wrong: of a traceback the exception's first, else the last.

    >>> gist("Traceback (most recent call last):\n  File ...\nRuntimeError: out of memory\nSee the manual.\n")
    'RuntimeError: out of memory'
    >>> gist("a compiler's output\nerror: no such file\n")
    'error: no such file'
    """
    _, traceback, raised = message.rpartition("Traceback (most recent call last):\n")
    lines = raised.rstrip().splitlines() or [""]
    return next((line for line in lines if traceback and not line.startswith(" ")), lines[-1])


def _up(value: float, digits: int) -> decimal.Decimal:
    # The shortest decimal that reads back as the same number, so that 1.1 does not become 1.11.
    exact = decimal.Decimal(repr(value))
    return exact.quantize(decimal.Decimal(1).scaleb(-digits), rounding=decimal.ROUND_CEILING)
