"""A GPU that is not there, for what cuDNN is asked for."""

import jax
import pytest

from mlperf_jax.ops import attention as attentions


@pytest.fixture
def hopper(monkeypatch):
    """As on an H200, with cuDNN's part taken by XLA; lists the keyword arguments of the calls."""
    calls = []
    plain = jax.nn.dot_product_attention

    def stand_in(*args, implementation, **kwargs):
        assert implementation == "cudnn"
        calls.append(kwargs)
        return plain(*args, implementation="xla", **kwargs)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    monkeypatch.setattr(attentions, "_cuda_capability", lambda: (9, 0))
    monkeypatch.setattr(attentions, "platform", lambda: "gpu")
    return calls
