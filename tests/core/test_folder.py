"""What the folder of checkpoints says of files that cannot be read or written."""

import pytest

from mlperf_jax.core.checkpoints.folder import is_storage_error, reason


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "INTERNAL: Error writing \"a\": write failed: No space left on device [os_error_code='28']",
            "No space left on device",
        ),
        (
            'OUT_OF_RANGE: Error writing "half/.zarray" in OCDBT database at local file "/x/": bytes',
            "half/.zarray was cut short",
        ),
        (
            'DATA_LOSS: Error reading "w/0.0" in OCDBT database at local file "/x/": checksum',
            "DATA_LOSS reading w/0.0",
        ),
        (
            'NOT_FOUND: Error opening "zarr" driver: Error writing "w/.zarray" in OCDBT database at local file '
            '"/x/": Error reading Byte range [0, 162) of local file "/x/d/0b2a" [tensorstore_spec=…]',
            "/x/d/0b2a is gone",
        ),
    ],
)
def test_the_store_says_briefly_what_it_stumbled_over(text, told):
    assert is_storage_error(ValueError(text))
    assert reason(ValueError(text)) == told
