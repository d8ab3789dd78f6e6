"""The type checker of the tests, for the import hook of jaxtyping in conftest.py."""

import numpy as np
from beartype import BeartypeConf, FrozenDict, beartype

NUMBERS = {
    bool: bool | np.bool_,
    int: int | np.integer,
    float: float | int | np.floating | np.integer,
}
"""Types that are accepted for an annotation: numpy's numbers serve as Python's."""

check = beartype(conf=BeartypeConf(hint_overrides=FrozenDict(NUMBERS)))
"""Decorator that checks all annotations of a function."""
