"""Nested columns of every kind of list give what reading them row by row gives, and bad rows are named."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel_train.data.bad import BadRows
from accel_train.data.formats.arrow import column, nested, vectors
from accel_train.errors import DataError

NUMBERS = (pa.float16(), pa.float32(), pa.float64(), pa.int8(), pa.uint16(), pa.int64())
KINDS = ("list", "large_list", "fixed")


def list_type(kind: str, of: pa.DataType, width: int) -> pa.DataType:
    return {"list": pa.list_(of), "large_list": pa.large_list(of), "fixed": pa.list_(of, width)}[kind]


@st.composite
def nested_columns(draw):
    """Rows (None or lists of equally long lists of small integers), their width, and an Arrow column of them."""
    width = draw(st.integers(1, 4))
    entry = st.lists(st.integers(0, 100), min_size=width, max_size=width)
    rows = draw(st.lists(st.none() | st.lists(entry, max_size=4), max_size=12))
    kind = list_type(draw(st.sampled_from(KINDS)), draw(st.sampled_from(NUMBERS)), width)
    outer = draw(st.sampled_from([pa.list_, pa.large_list]))(kind)
    return rows, width, draw(cut(rows, outer))


@st.composite
def cut(draw, rows, kind):
    """An Arrow column of the rows: one array, a slice of a longer one, or chunks."""
    a, b = sorted((draw(st.integers(0, len(rows))), draw(st.integers(0, len(rows)))))
    how = draw(st.sampled_from(["array", "slice", "chunks"]))
    if how == "array":
        return pa.array(rows, kind)
    if how == "slice":
        return pa.array(rows[b:] + rows + rows[:a], kind).slice(len(rows) - b, len(rows))
    return pa.chunked_array([pa.array(part, kind) for part in (rows[:a], rows[a:b], rows[b:])], kind)


@given(nested_columns())
def test_nested_as_row_by_row(drawn):
    rows, width, data = drawn
    counts, values = nested(data, "x", width)
    entries = [entry for row in rows for entry in row or []]
    assert counts.tolist() == [len(row or []) for row in rows] and counts.dtype == np.int64
    assert values.shape == (len(entries), width) and values.dtype == np.float32
    assert values.tolist() == entries
    if entries:
        assert nested(data, "x")[1].shape == values.shape


@given(st.data(), st.integers(1, 4), st.sampled_from(KINDS), st.sampled_from(NUMBERS))
def test_vectors_as_row_by_row(data, width, kind, numbers):
    rows = data.draw(st.lists(st.lists(st.integers(0, 100), min_size=width, max_size=width), max_size=12))
    values = vectors(data.draw(cut(rows, list_type(kind, numbers, width))), "x", width)
    assert values.shape == (len(rows), width) and values.dtype == np.float32
    assert values.tolist() == rows


@given(
    st.lists(st.lists(st.lists(st.integers(0, 9) | st.none(), max_size=3), max_size=3), max_size=8), st.integers(1, 3)
)
def test_exactly_the_rows_that_do_not_fit_are_refused(rows, width):
    """Rows with another length first; once they are gone, rows with nulls."""
    data = pa.array(rows, pa.list_(pa.list_(pa.float32())))
    other = [i for i, row in enumerate(rows) if any(len(entry) != width for entry in row)]
    null = [i for i, row in enumerate(rows) if any(None in entry for entry in row)]
    bad = other or null
    if not bad:
        assert nested(data, "x", width)[1].tolist() == [entry for row in rows for entry in row]
        return
    with pytest.raises(BadRows) as error:
        nested(data, "x", width)
    assert error.value.rows.tolist() == bad


def test_float32_is_not_copied():
    data = pa.array([[[1.0, 2.0]], [], [[3.0, 4.0], [5.0, 6.0]]], pa.list_(pa.list_(pa.float32())))
    address = data.values.values.buffers()[1].address
    assert nested(data, "x")[1].ctypes.data == address
    assert nested(data[1:], "x")[1].ctypes.data == address + 8
    assert vectors(data.values, "x").ctypes.data == address


def test_a_null_list_is_empty_even_with_numbers_under_it():
    numbers = pa.array([1.0, 2.0, 3.0, 4.0], pa.float32())
    inner = pa.FixedSizeListArray.from_arrays(numbers, 2)
    outer = pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), inner, mask=pa.array([True, False]))
    counts, values = nested(outer, "x")
    assert counts.tolist() == [0, 1] and values.tolist() == [[3, 4]]


@pytest.mark.parametrize("rows", [[], [[], []], [None, None]])
@pytest.mark.parametrize("kind", [pa.list_(pa.list_(pa.float32())), pa.list_(pa.null()), pa.list_(pa.list_(pa.null()))])
def test_no_entries_at_all(rows, kind):
    counts, values = nested(pa.array(rows, kind), "x", 3)
    assert counts.tolist() == [0] * len(rows) and values.shape == (0, 3)
    assert nested(pa.array(rows, kind), "x")[1].shape == (0, 0)


def test_a_column_of_nothing_but_nulls():
    counts, values = nested(pa.nulls(3), "x", 3)
    assert counts.tolist() == [0, 0, 0] and values.shape == (0, 3)


def test_the_usual_width_counts():
    """One bad row, be it the first, does not make all others bad."""
    with pytest.raises(BadRows, match="^x: 2 numbers, not 3$") as error:
        vectors(pa.array([[1.0, 2.0], [1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), "x")
    assert error.value.rows.tolist() == [0]
    with pytest.raises(BadRows, match=r"^x: 2 numbers, not 3 \(entry 1\)$") as error:
        nested(pa.array([[], [[1.0, 2.0, 3.0], [1.0, 2.0]], [[1.0, 2.0, 3.0]]]), "x")
    assert error.value.rows.tolist() == [1]


@pytest.mark.parametrize("width", [None, 2])
def test_a_null_vector_is_refused(width):
    for kind in KINDS:
        with pytest.raises(BadRows, match="0 numbers, not 2") as error:
            vectors(pa.array([[1.0, 2.0], None, [3.0, 4.0], [5.0, 6.0]], list_type(kind, pa.float32(), 2)), "x", width)
        assert error.value.rows.tolist() == [1]


def test_too_large_for_float32_is_infinite():
    assert vectors(pa.array([[1e300]]), "x").tolist() == [[np.inf]]


def test_wrong_types_and_names_are_said():
    with pytest.raises(DataError, match="^column 'x' must be a list of numbers, but there is double$"):
        vectors(pa.array([1.0]), "x")
    with pytest.raises(DataError, match="must be a list of lists of numbers, but there is string"):
        nested(pa.array(["[[1, 2]]"]), "x")
    with pytest.raises(DataError, match="must hold numbers, but there is string"):
        vectors(pa.array([["a"]]), "x")
    with pytest.raises(DataError, match="must be a list of numbers, but there is double"):
        nested(pa.array([[1.0]]), "x")
    with pytest.raises(DataError, match="^needs one column 'z'; there are 'x', 'y'$"):
        column(pa.table({"x": [1], "y": [2]}), "z")
