"""The synthetic subject."""


def test_dataset(dataset):
    assert (dataset / "track_params.pt").exists()
