"""A calculator for tool calls in traces: exact, bounded, and never an evaluator of code.

What a language model writes is data. The text is tokenised against a short list of symbols,
parsed by `ast.parse`, and only a whitelist of nodes is computed, in exact rational arithmetic.
"""

import ast
import datetime
import math
import re
from collections.abc import Callable, Sequence
from decimal import Context, Decimal
from fractions import Fraction

_MAX_LENGTH = 200  # characters of one expression
_MAX_NESTING = 32  # parentheses
_MAX_DEPTH = 100  # nodes from the root of the parsed tree to a leaf
_MAX_BITS = 1024  # of any numerator or denominator on the way, about 308 decimal digits
_DIGITS = 10  # significant digits of a result that is not an integer

_DATE = r"(\d{4})-(\d{1,2})-(\d{1,2})"
_DAYS = re.compile(rf"\bdays\s*\(\s*{_DATE}\s*,\s*{_DATE}\s*\)", re.ASCII)
_WEEKDAY = re.compile(rf"weekday\s*\(\s*{_DATE}\s*\)", re.ASCII)
_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

_SYMBOLS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "[": "(", "]": ")"})
_NUMBER = re.compile(r"\d+(?:\.\d*)?|\.\d+", re.ASCII)
# Thousands commas; inside the arguments of a function a comma always separates.
_GROUPED = re.compile(r"\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d*)?", re.ASCII)
_NAME = re.compile(r"[A-Za-z_]+", re.ASCII)
_OPERATOR = re.compile(r"\*\*|//|[-+*/^%(),]")
# A percent sign before an operand is a remainder; before anything else it means "/ 100".
_OPERAND_NEXT = re.compile(r"\s*(?:[\d.(]|(?!of\b|x\b)[A-Za-z])", re.ASCII | re.IGNORECASE)


class CalculatorError(ValueError):
    """An expression that the calculator refuses; the message says why and what to write."""


def run_calculator(text: str) -> str:
    """The tool as a trace sees it: the result, or ``"error: ..."`` as one line of text."""
    try:
        return calculate(text)
    except CalculatorError as error:
        return f"error: {error}"


def calculate(expression: str) -> str:
    """The value of an arithmetic expression as text.

    Understands ``+ - * / // % ** ^``, ``×``, ``÷``, ``x`` between operands, parentheses,
    decimals, thousands commas (``1,234``), percent (``15%`` is 0.15, ``15% of 80`` is 12, while
    ``17 % 5`` is the remainder 2), the functions gcd, lcm, min, max, abs, round (half away from
    zero) and sqrt, ``days(2024-01-03, 2024-02-01)`` (days from the first date to the second)
    and ``weekday(2024-01-03)``.

    Integers are written out; other numbers are exact if 10 significant digits hold them, and
    rounded otherwise, but never to fewer than two digits after the point.

    Raises:
      CalculatorError: for everything else: other syntax, a division by zero, an invalid date,
        and input or values beyond the bounds (200 characters, 32 nested parentheses, 1024 bits).
    """
    text = expression.strip().rstrip("=? ")
    if not text:
        raise CalculatorError("empty expression; write for example 12*3.")
    if len(text) > _MAX_LENGTH:
        raise CalculatorError(
            f"expression of {len(text)} characters; split it, at most {_MAX_LENGTH} are allowed."
        )
    if match := _WEEKDAY.fullmatch(text):
        return _WEEKDAYS[_date(match.groups()).weekday()]
    text = _DAYS.sub(lambda m: f"({(_date(m.groups()[3:]) - _date(m.groups()[:3])).days})", text)
    source = " ".join(_tokens(text.translate(_SYMBOLS)))
    try:
        tree = ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise CalculatorError(f"cannot parse {text!r}; write for example (12 + 3)*4.") from None
    return _format(_value(tree, 0))


def _date(parts: Sequence[str]) -> datetime.date:
    try:
        return datetime.date(*map(int, parts))
    except ValueError as error:
        raise CalculatorError(f"{'-'.join(parts)} is not a date: {error}.") from None


def _tokens(text: str) -> list[str]:
    """The expression in Python's own spelling, with decimals as exact quotients."""
    tokens: list[str] = []
    calls: list[bool] = []  # for each open parenthesis, whether it holds a function's arguments
    position = 0
    while position < len(text):
        if text[position].isspace():
            position += 1
            continue
        in_call = bool(calls) and calls[-1]
        match = (None if in_call else _GROUPED.match(text, position)) or _NUMBER.match(
            text, position
        )
        if match:
            whole, _, decimals = match.group().replace(",", "").partition(".")
            number = str(int(whole + decimals or "0"))
            tokens.append(f"({number}/{10 ** len(decimals)})" if decimals else number)
        elif match := _NAME.match(text, position):
            name = match.group().lower()
            tokens.append("*" if name in ("x", "of") else name)
        elif match := _OPERATOR.match(text, position):
            tokens.append(_operator(match.group(), text, match.end(), tokens, calls))
        else:
            raise CalculatorError(f"symbol {text[position]!r} is not arithmetic; leave it out.")
        position = match.end()
    return tokens


def _operator(symbol: str, text: str, end: int, tokens: list[str], calls: list[bool]) -> str:
    if symbol == "(":
        calls.append(bool(tokens) and tokens[-1].isalpha())
        if len(calls) > _MAX_NESTING:
            raise CalculatorError(f"more than {_MAX_NESTING} nested parentheses; simplify.")
    elif symbol == ")" and calls:
        calls.pop()
    elif symbol == "^":
        return "**"
    elif symbol == "%" and not _OPERAND_NEXT.match(text, end):
        # Binds tighter than any operator: 100/50% is 200.
        tokens.insert(_operand_start(tokens), "((")
        return ")/100)"
    return symbol


def _operand_start(tokens: list[str]) -> int:
    """Index of the first token of the number, parenthesis or call that ends the list."""
    start, open_count = len(tokens) - 1, 0
    while start >= 0:
        open_count += tokens[start].count(")") - tokens[start].count("(")
        if open_count == 0:
            break
        start -= 1
    start = max(start, 0)
    named = start > 0 and tokens[start].startswith("(") and tokens[start - 1].isalpha()
    return start - 1 if named else start


def _value(node: ast.expr, depth: int) -> Fraction:
    if depth > _MAX_DEPTH:
        raise CalculatorError(f"expression nested deeper than {_MAX_DEPTH} levels; split it.")
    match node:
        case ast.Constant(value=int(number)):
            result = Fraction(number)
        case ast.UnaryOp(op=ast.UAdd() | ast.USub() as sign, operand=inner):
            value = _value(inner, depth + 1)
            result = -value if isinstance(sign, ast.USub) else value
        case ast.BinOp(left=left, op=op, right=right):
            result = _binary(op, _value(left, depth + 1), _value(right, depth + 1))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
            result = _call(name, [_value(arg, depth + 1) for arg in args])
        case ast.Name(id=name):
            raise CalculatorError(f"unknown name {name!r}; write numbers only.")
        case _:
            raise CalculatorError(
                "only numbers, + - * / // % **, parentheses and "
                f"{', '.join(sorted(_FUNCTIONS))} are understood; write 2*(3), not 2(3)."
            )
    if max(result.numerator.bit_length(), result.denominator.bit_length()) > _MAX_BITS:
        raise CalculatorError(f"number too large: more than {_MAX_BITS} bits.")
    return result


def _binary(op: ast.operator, left: Fraction, right: Fraction) -> Fraction:
    match op:
        case ast.Add():
            return left + right
        case ast.Sub():
            return left - right
        case ast.Mult():
            return left * right
        case ast.Pow():
            return _power(left, right)
        case ast.Div() | ast.FloorDiv() | ast.Mod() if right == 0:
            raise CalculatorError("division by zero.")
        case ast.Div():
            return left / right
        case ast.FloorDiv():
            return Fraction(left // right)
        case ast.Mod():
            return left % right
    raise CalculatorError(f"operator {type(op).__name__} is not arithmetic.")


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        raise CalculatorError(f"exponent {_format(exponent)} is not an integer; use sqrt().")
    if base == 0 and exponent < 0:
        raise CalculatorError("division by zero.")
    if abs(base) in (0, 1):
        return base ** (int(exponent) % 2 if base == -1 else min(int(exponent), 1))
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    # The size is known before the power is taken, so that a huge one costs nothing.
    if (bits - 1) * abs(exponent) > _MAX_BITS:
        raise CalculatorError(f"power too large: more than {_MAX_BITS} bits.")
    return base ** int(exponent)


def _integers(name: str, values: Sequence[Fraction]) -> list[int]:
    for value in values:
        if value.denominator != 1:
            raise CalculatorError(f"{name} needs integers, got {_format(value)}.")
    return [int(value) for value in values]


def _lcm(*values: Fraction) -> Fraction:
    result = 1
    for number in _integers("lcm", values):
        result = math.lcm(result, number)
        if result.bit_length() > _MAX_BITS:
            raise CalculatorError(f"number too large: more than {_MAX_BITS} bits.")
    return Fraction(result)


def _sqrt(value: Fraction) -> Fraction:
    if value < 0:
        raise CalculatorError(f"sqrt of the negative number {_format(value)}.")
    root = Fraction(math.isqrt(value.numerator), math.isqrt(value.denominator))
    if root * root == value:
        return root
    # 40 correct digits: far beyond what is shown, even if more arithmetic follows. The scale
    # follows the size, so that tiny numbers keep them too.
    bits = value.numerator.bit_length() - value.denominator.bit_length()
    scale = 10 ** max(40 - bits * 3 // 20, 1)
    return Fraction(math.isqrt(math.floor(value * scale**2)), scale)


def _round(value: Fraction, digits: Fraction = Fraction(0)) -> Fraction:
    (places,) = _integers("round", [digits])
    if abs(places) > 50:
        raise CalculatorError(f"round to {places} digits; at most 50 are allowed.")
    scaled = abs(value) * Fraction(10) ** places
    rounded = math.floor(scaled + Fraction(1, 2)) / Fraction(10) ** places
    return rounded if value >= 0 else -rounded


# Name to function and its smallest and largest number of arguments.
_FUNCTIONS: dict[str, tuple[Callable[..., Fraction], int, int]] = {
    "abs": (lambda value: abs(value), 1, 1),
    "gcd": (lambda *values: Fraction(math.gcd(*_integers("gcd", values))), 1, _MAX_LENGTH),
    "lcm": (_lcm, 1, _MAX_LENGTH),
    "max": (lambda *values: max(values), 1, _MAX_LENGTH),
    "min": (lambda *values: min(values), 1, _MAX_LENGTH),
    "round": (_round, 1, 2),
    "sqrt": (_sqrt, 1, 1),
}


def _call(name: str, values: list[Fraction]) -> Fraction:
    if name not in _FUNCTIONS:
        raise CalculatorError(
            f"unknown function {name!r}; there are {', '.join(sorted(_FUNCTIONS))}, "
            "days(2024-01-03, 2024-02-01) and weekday(2024-01-03)."
        )
    function, least, most = _FUNCTIONS[name]
    if not least <= len(values) <= most:
        wanted = str(least) if least == most else f"{least} to {most}"
        raise CalculatorError(f"{name} needs {wanted} arguments, got {len(values)}.")
    return function(*values)


def _format(value: Fraction) -> str:
    if value.denominator == 1:
        return str(value.numerator)
    digits = max(_DIGITS, len(str(abs(int(value)))) + 2)
    rounded = Context(prec=digits).divide(Decimal(value.numerator), Decimal(value.denominator))
    if rounded.adjusted() < -_DIGITS:
        return f"{rounded.normalize():e}"
    return f"{rounded:f}".rstrip("0").rstrip(".")
