"""Every wait ends when the run is given up."""

import threading
import time
from concurrent.futures import Future

import pytest

from accel_train.system import waiting
from accel_train.system.waiting import StoppedError


@pytest.fixture(autouse=True)
def allowed_again():
    waiting.begin()
    yield
    waiting.begin()


def give_up_soon() -> None:
    threading.Timer(0.05, waiting.give_up).start()


WAYS = {
    "a pause": lambda: waiting.sleep(100),
    "a future": lambda: waiting.result(Future()),
    "a call": lambda: waiting.call(lambda: threading.Event().wait(5)),
    "a lock, here": lambda: waiting.interruptibly(threading.Event().wait, 100),
    "a pause, here": lambda: waiting.interruptibly(time.sleep, 100),
}


@pytest.mark.parametrize("name", WAYS)
def test_it_ends(name):
    give_up_soon()
    started = time.perf_counter()
    with pytest.raises(StoppedError):
        WAYS[name]()
    assert time.perf_counter() - started < 50


@pytest.mark.parametrize("name", ["a pause", "a future", "a call", "a pause in a call"])
def test_last_words_are_waited_for(name):
    coming: Future[int] = Future()
    threading.Timer(0.02, coming.set_result, [5]).start()
    ways = {
        "a pause": lambda: waiting.sleep(0.02),
        "a future": lambda: waiting.result(coming),
        "a call": lambda: waiting.call(lambda: coming.result(5)),
        "a pause in a call": lambda: waiting.call(lambda: waiting.sleep(0.02)),
    }
    waiting.give_up()
    with waiting.to_the_end():
        assert not waiting.given_up() and ways[name]() in (5, None)
    assert waiting.given_up()


def test_nothing_is_interrupted_outside():
    with pytest.raises(StoppedError):
        waiting.interruptibly(waiting.give_up)
    waiting.give_up()
    time.sleep(0.01)
    with pytest.raises(StoppedError):
        waiting.interruptibly(lambda: None)
    with pytest.raises(StoppedError):
        waiting.sleep(0)
    waiting.begin()
    assert waiting.interruptibly(lambda a: a + 1, 2) == 3
    waiting.sleep(0.01)


def test_elsewhere_than_in_the_main_thread_it_is_a_call():
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(waiting.interruptibly(lambda: 5)))
    thread.start()
    thread.join()
    assert found == [5]
