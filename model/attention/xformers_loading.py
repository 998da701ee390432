"""Imports xFormers with its CUDA extension, or says why that failed."""

import ctypes
import functools
import importlib.metadata

import torch

from model.attention.backend import first_line

RUNTIME_PACKAGE = "nvidia-cuda-runtime-cu12"


@functools.cache
def loading_problems() -> list[str]:
    """Import xformers once; return why its operators cannot run, or an empty list.

    The PyPI build of xformers links `libcudart.so.12`. With a torch for another CUDA version nothing has loaded
    that library, so it is loaded here from the nvidia-cuda-runtime-cu12 distribution.
    """
    if torch.version.cuda and not torch.version.cuda.startswith("12."):
        try:
            runtime = importlib.metadata.distribution(RUNTIME_PACKAGE)
            library = runtime.locate_file("nvidia/cuda_runtime/lib/libcudart.so.12")
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        except (importlib.metadata.PackageNotFoundError, OSError):
            return [
                f"xformers from PyPI links CUDA 12's runtime and torch is built for CUDA {torch.version.cuda} "
                f"(pip install {RUNTIME_PACKAGE})"
            ]
    try:
        import xformers.ops  # noqa: F401
        from xformers import _cpp_lib
    except (ImportError, OSError) as error:
        return [f"xformers does not import ({first_line(error)}); install the build for this torch"]
    if failure := _cpp_lib._cpp_library_load_exception:
        return [f"xformers' extension does not load ({first_line(failure)}); install the build for this torch"]
    return []
