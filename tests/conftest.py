"""What several test files share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a small ChatGLM3 that answers from passages (`tests.tiny`)."""
    from tests.tiny import train

    return train(tmp_path_factory.mktemp("models") / "tiny-chatglm3")
