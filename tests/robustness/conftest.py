"""The sound input that broken files and options are made from, made once."""

import pytest
from samples import Samples, make


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    return make(tmp_path_factory.mktemp("samples"))
