"""How samples that were read from a file are named: by their place in it and by what they say."""

import hashlib
import re

_DIGEST = re.compile(r"-[0-9a-f]{8}(?=@|$)")


def row_id(number: int, *texts: str) -> str:
    """Return the sample id of a row, such as "00017-5f2c9a01".

    The digest is of the row's own texts: answers to two rows pair exactly where the rows are the same, whatever else
    is in their files and wherever the files lie.
    """
    return f"{number:05d}-{hashlib.sha256(chr(10).join(texts).encode()).hexdigest()[:8]}"


def row_number(sample_id: str) -> str:
    """Return a sample id without its digest: what it has in common with any other row that stands in the same place."""
    return _DIGEST.sub("", sample_id)
