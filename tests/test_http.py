"""When a server wants to be asked again."""

import time
from email.utils import formatdate

import pytest

from accel_train.system.http import retry_after


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("3", 3.0), (" 0.6 ", 0.6), ("9999", 60.0), ("1e999", 60.0), (None, 0.0), ("", 0.0), ("-5", 0.0), ("nan", 0.0),
     ("inf", 0.0), ("soon", 0.0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0), ("Wed, 99 Oct 2015", 0.0)],
)  # fmt: skip
def test_a_number_of_seconds_or_nothing(text, seconds):
    assert retry_after(text, 60.0) == seconds


def test_a_date():
    assert 27 < retry_after(formatdate(time.time() + 30, usegmt=True), 60.0) <= 30
    assert retry_after(formatdate(time.time() + 3000, usegmt=True), 60.0) == 60.0
