"""On a recording that nobody here made: event-related BOLD that the package nitime ships, a volume every 2 s."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from accel_train.tasks.sherlock.lag import Lag

TR_S = 2.0


@pytest.fixture(scope="module")
def recording() -> np.ndarray:
    """bold and events (0: none, or one of 6 kinds), of 3,360 volumes."""
    found = importlib.util.find_spec("nitime")
    if found is None or found.origin is None:
        pytest.skip("needs nitime, for its data")
    return np.genfromtxt(Path(found.origin).parent / "data" / "event_related_fmri.csv", delimiter=",", names=True)


def test_the_learned_lag_of_real_bold_is_that_of_a_brain(recording):
    """It begins flat, so that nothing tells it where the peak is: 4 to 6 s, by the signal of all events together."""
    bold = torch.from_numpy(recording["bold"] / recording["bold"].std())[None, :, None]
    events = torch.from_numpy(recording["events"] > 0).double()[None, :, None]
    lag = Lag("fir", 1, TR_S, 9).double()
    with torch.no_grad():
        lag.taps.zero_()
    optimizer = torch.optim.Adam(lag.parameters(), 0.1)
    for _ in range(150):
        optimizer.zero_grad()
        (lag(events) - bold[:, 9:]).square().mean().backward()
        optimizer.step()
    taps = lag.taps.detach()[0]
    assert 4 <= TR_S * int(taps.argmax()) <= 6, taps
    assert taps[7:].min() < 0 < taps[1:4].min()  # an undershoot after the response
