"""A user's rows: what is read is what was written, and what is not is named by file and line."""

import gzip
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvguard.errors import KvguardError
from kvguard.tasks import make_task
from kvguard.tasks.jsonl import read_jsonl, text_of

TEXTS = st.text(
    st.characters(exclude_categories=["Cs"])
    | st.sampled_from("\u2028\u2029\u0085\x0b\x0c\x1c\x1d\x1e\r\n\t\0")
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
ROWS = st.lists(st.dictionaries(TEXTS, VALUES, max_size=4), min_size=1, max_size=5)


def attempted(call: Callable[[], list]) -> tuple[list, str | None]:
    """What a call returns, and the one line that it raises instead."""
    try:
        return call(), None
    except KvguardError as error:
        return [], str(error)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rows") / "rows.jsonl"


@given(
    ROWS,
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
    st.sampled_from(["", "\ufeff"]),
    st.sampled_from(["", "\n"]),
)
def test_what_is_written_is_read(
    path: Path, rows: list, end: str, escaped: bool, bom: str, blank: str
) -> None:
    lines = [json.dumps(row, ensure_ascii=escaped) for row in rows]
    path.write_bytes((bom + blank + end.join(lines) + end).encode())
    read = read_jsonl(path)
    assert [row for _, row in read] == rows
    assert [number for number, _ in read] == list(range(1 + len(blank), 1 + len(blank) + len(rows)))


@given(st.binary(max_size=60) | st.text('{}[]":,\\ude01n ltrue-.e\n9').map(lambda text: text.encode()))
def test_any_file_is_read_or_rejected_in_one_line(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    rows, message = attempted(lambda: read_jsonl(path))
    if message is None:
        assert rows
        json.dumps(rows, ensure_ascii=False, allow_nan=False).encode()
    else:
        assert str(path) in message
        assert "\n" not in message


@given(st.dictionaries(st.sampled_from(["question", "answer", "id"]), VALUES | st.just("#### 5"), max_size=3))
def test_any_row_is_a_problem_or_rejected_in_one_line(path: Path, row: dict) -> None:
    path.write_text(json.dumps(row), encoding="utf-8")
    samples, message = attempted(lambda: make_task("gsm8k", source=str(path)).samples(1, 0))
    if message is None:
        assert [sample.question for sample in samples] == [row["question"]]
    else:
        assert f"{path}, line 1: " in message
        assert "\n" not in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no rows"),
        (b"\xef\xbb\xbf\n \r\n", "holds no rows"),
        (gzip.compress(b"{}", mtime=0), r"is compressed \(gzip\): unpack it"),
        ("{}".encode("utf-16"), "is UTF-16: save it as UTF-8"),
        (b'{}\n{"a": "\xe9"}', "line 2: byte 8 is not UTF-8"),
        (b'{}\n{"a": "\\ud800"}', r"line 2: \\ud800 is half of a surrogate pair"),
        (b'{"\\udc00": 1}', r"line 1: \\udc00 is half"),
        (b'{"a": {"b": ["\\ude00\\ud83d"]}}', r"line 1: \\ude00 is half"),
        (b'{"a": NaN}', "line 1: NaN is no JSON number"),
        (b'{"a": [-Infinity]}', "line 1: -Infinity is no JSON number"),
        (b'{"a": 1e999}', "line 1: 1e999 is beyond any float"),
        (b'{"a": 1, "a": 2}', "line 1: the key 'a' stands twice"),
        (b"null", "line 1: it is null"),
        (b'"text"', "line 1: it is a string"),
        (b"{} {}", "line 1: not JSON"),
        (b'{"a":' + b"[" * 100_000, "line 1: not read"),
        (b'{"a": ' + b"9" * 5000 + b"}", "line 1: not read"),
    ],
)
def test_a_damaged_file_is_named_with_its_line(path: Path, content: bytes, message: str) -> None:
    path.write_bytes(content)
    with pytest.raises(KvguardError, match=message) as error:
        read_jsonl(path)
    assert "\n" not in str(error.value)


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.jsonl", Path("a\0b")):
        with pytest.raises(KvguardError, match=r"cannot read .*: give a file of JSON Lines"):
            read_jsonl(path)


@pytest.mark.parametrize("value", [None, 1, 2.5, True, [], ["a"], {}, "", " \n", math.nan])
def test_only_text_is_text(value: object) -> None:
    with pytest.raises(KvguardError, match=r"^rows, line 3: 'question' is "):
        text_of({"question": value}, "question", "rows, line 3")
