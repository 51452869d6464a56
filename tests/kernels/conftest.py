"""The emulated GPU as the CuPy backend sees it: NumPy for CuPy, the emulation for the device."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from nearbank.kernels import backends, cupy_backend
from nearbank.kernels.cuda.emulation import EmulatedRuntime, compiler


class DeviceArray(np.ndarray):
    """A NumPy array that says it is on device 0."""

    device = SimpleNamespace(id=0)
    __cuda_array_interface__ = property(lambda self: self.__array_interface__)


class Emulated(EmulatedRuntime):
    """The emulation as the backend's runtime."""

    device, name, array_type = 0, "an emulated GPU", DeviceArray
    xp = SimpleNamespace(ascontiguousarray=lambda a: np.ascontiguousarray(a).view(DeviceArray))

    def empty(self, shape, dtype):
        return super().empty(shape, dtype).view(DeviceArray)


@pytest.fixture
def emulated_gpu(monkeypatch):
    """emulated_gpu(kernels): from now on the backend "cupy" runs these, emulated."""

    def begin(kernels):
        if compiler() is None:
            pytest.skip("emulating CUDA needs a C++ compiler (g++, or CXX)")
        # Hypothesis looks at every module; CuPy's lazy ones then load, for which they need the real CuPy.
        for name, module in list(sys.modules.items()):
            if name.partition(".")[0] in ("cupy", "cupyx"):
                getattr(module, "__file__", None)
        runtime = Emulated(kernels)
        monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(ndarray=DeviceArray))
        monkeypatch.setattr(cupy_backend, "runtime_for", lambda number: runtime)
        monkeypatch.setattr(cupy_backend, "current_runtime", lambda: runtime)
        monkeypatch.setattr(backends, "problem_of", lambda name: None)
        return runtime

    return begin
