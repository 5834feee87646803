"""The modules of segment-anything, without what only its demonstrations need.

`import segment_anything` pulls in torchvision, for resizing 8-bit pictures and for automatic masks, neither of
which is used here; and torchvision has to be built for exactly the installed torch. So the package's own
`modeling` and `build_sam` are imported under another package name, whose `__init__` is empty.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from copick_cryosam.errors import NotFoundError

_ALIAS = "copick_cryosam_segment_anything"


@cache
def official(module: str) -> ModuleType:
    """A module of segment-anything, such as ``"modeling"`` or ``"build_sam"``.

    Raises
    ------
    NotFoundError
        segment-anything is not installed.
    """
    if _ALIAS not in sys.modules:
        spec = find_spec("segment_anything")
        if spec is None or spec.submodule_search_locations is None:
            raise NotFoundError(
                "segment-anything: expected the package, found none", hint="pip install segment-anything"
            )
        package = ModuleType(_ALIAS)
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules[_ALIAS] = package
    return import_module(f"{_ALIAS}.{module}")
