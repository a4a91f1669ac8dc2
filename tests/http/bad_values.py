"""Names, amounts and bodies that no route accepts."""

NAMES = {
    "empty": b"",
    "129 characters": b"x" * 129,
    "10,000 characters": b"x" * 10_000,
    "NUL": b"%00",
    "CR LF": b"a%0d%0ab",
    "not UTF-8": b"%ff",
    "overlong UTF-8": b"%c0%af",
    "a surrogate": b"%ed%a0%80",
    "a dot": b"%2e",
    "two dots": b"%2e%2e",
    "a slash": b"a%2fb",
    "a bidi control": b"%e2%80%ae",
    "a line separator": b"a%e2%80%a8b",
    "a private character": b"%ee%80%80",
    "a space before": b"%20a",
}

AMOUNTS = {
    "NaN": b"NaN",
    "Infinity": b"Infinity",
    "1e400": b"1e400",
    "2^63": b"9223372036854775808",
    "5,000 digits": b"9" * 5000,
    "over": b"1000001",
    "zero": b"0",
    "negative": b"-1",
    "a fraction": b"1.5",
    "true": b"true",
    "null": b"null",
    "a string": b'"5"',
    "a list": b"[1]",
    "deep": b"[" * 100_000,
}

BODIES = {
    "invalid UTF-8": b'{"by": "\xff"}',
    "UTF-16": '{"event":"a"}'.encode("utf-16"),
    "truncated": b'{"by": 1',
    "unknown fields": b'{"event": "a", "x": 1}',
    "a user with a space": b'{"event":"a","user":"u "}',
    "a session that is a number": b'{"event":"a","session":7}',
    "a lone surrogate": b'{"event":"\\ud800"}',
    "deep objects": b'{"a":' * 100_000,
    "5 MiB": b"[" + b" " * 5 * 2**20 + b"]",
}
