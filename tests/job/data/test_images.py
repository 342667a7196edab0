import pytest

from konvoi.errors import DataError
from konvoi.job.data.images import images


def test_a_missing_path_is_named_with_the_nearest_name(tmp_path):
    (tmp_path / "xrays.npz").write_bytes(b"")
    with pytest.raises(DataError, match=r"there is no .*xray.npz") as caught:
        images(tmp_path / "xray.npz").prepare()
    assert "hint: did you mean xrays.npz?" in str(caught.value)


def test_sizes_and_shares_that_cannot_be_are_refused_at_once():
    with pytest.raises(DataError, match="height and width"):
        images("x", size=(0, 3))
    with pytest.raises(DataError, match="holdout"):
        images("x", holdout=2)
