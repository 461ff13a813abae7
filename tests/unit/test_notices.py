"""Ray's own notices are kept out of a study's output."""

import pytest

from siftune.backend.notices import without_notices


def test_only_rays_notices_are_dropped(capsys: pytest.CaptureFixture[str]) -> None:
    with without_notices():
        print("trial 0001 completed")
        print("(raylet) The node has been marked dead\n\t(1) raylet crashed")
        print("\nbest loss 1", flush=True)
        print()
    print("(raylet) of the user")
    expected = "trial 0001 completed\n\nbest loss 1\n\n(raylet) of the user\n"
    assert capsys.readouterr().out == expected
