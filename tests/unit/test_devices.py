"""The device is the one asked for, or an error says why not."""

from __future__ import annotations

import pytest
import torch

from copick_cryosam.devices import resolve_device
from copick_cryosam.errors import DeviceError


@pytest.mark.parametrize(
    ("name", "available", "expected"),
    [
        ("auto", False, "cpu"),
        ("auto", True, "cuda"),
        ("cpu", True, "cpu"),
        ("cpu", False, "cpu"),
        ("cuda", True, "cuda"),
    ],
)
def test_auto_takes_the_gpu_where_there_is_one(monkeypatch, name, available, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert resolve_device(name).type == expected


@pytest.mark.parametrize(("built", "reason"), [(None, "built without CUDA"), ("12.8", "no GPU is visible")])
def test_a_missing_gpu_is_an_error_and_never_the_cpu(monkeypatch, built, reason):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built)
    with pytest.raises(DeviceError, match=f"expected cuda, found none .*{reason}") as caught:
        resolve_device("cuda")
    assert "--device cpu" in caught.value.hint
