#!/usr/bin/env bash
# Versions: quack-kernels 0.6.5, nvidia-cutlass-dsl 4.8.1, torch 2.13.0, on a CPU (seen with triton 3.9.0, Python 3.11).
#
# Behaviour: a GEMM of quack with an epilogue works or not by the name of the folder that nvidia-cutlass-dsl lies in.
# After pip install --target packages, gemm_act raises a TypeError before it looks for a GPU. The same files work after
# the folder is renamed to site-packages (or dist-packages).
#
# Seen:
#     in packages: TypeError: epilogue fn depends on <ContextVar name='_LOC_TRANSFORMS'>, which has no key
#     in site-packages: no such error; stopped for want of a GPU by AssertionError
#
# Why it surprises: pip install --target takes a folder of any name. On its first call quack makes a key of each
# function that an epilogue reaches. It leaves out installed code, which it knows only by "/site-packages/" or
# "/dist-packages/" in the path (_is_extern_function in quack/gemm_runtime/identity.py). Elsewhere it goes on into
# cutlass, and meets objects that it has no key for. The message blames the epilogue, which is quack's own, and does
# not name the folder.
# nvidia-cutlass-dsl 4.8.0 raises the same error; 4.7.0 and 4.7.1 raise it for a Logger. On 29 November 2026, 0.6.5 was
# the newest quack-kernels.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
# quack imports triton without requiring it. The CUDA build of torch pins the two packages that have no pin here.
venv/bin/pip install -qq torch==2.13.0 triton einops==0.8.2 cuda-bindings \
    apache-tvm-ffi==0.1.15.post2 torch-c-dlpack-ext==0.1.5
venv/bin/pip install -qq --no-deps --target packages quack-kernels==0.6.5 nvidia-cutlass-dsl==4.8.1 \
    nvidia-cutlass-dsl-libs-base==4.8.1 nvidia-cutlass-dsl-libs-core==4.8.1 nvidia-cutlass-dsl-libs-cu12==4.8.1

cat > seen.py <<'PYTHON'
import re
import sys

import cutlass
import torch
from quack.gemm_interface import gemm_act

name = sys.argv[1]
assert f"/{name}/nvidia_cutlass_dsl/" in cutlass.__file__, cutlass.__file__
x, w, b = (torch.ones(shape, dtype=torch.bfloat16) for shape in ((64, 64), (64, 64), (64,)))
try:
    gemm_act(x, w.T, bias=b, activation="gelu_tanh_approx", tuned=False)
    outcome = "no error"
except Exception as error:
    refused = r"epilogue fn depends on <ContextVar name='_LOC_TRANSFORMS'.*no fail-closed semantic key"
    if type(error) is TypeError and re.match(refused, str(error)):
        outcome = "TypeError: epilogue fn depends on <ContextVar name='_LOC_TRANSFORMS'>, which has no key"
    elif "quack.epilogue.library" in sys.modules and "CUDA" in str(error):  # the keys are made
        outcome = f"no such error; stopped for want of a GPU by {type(error).__name__}"
    else:
        raise
print(f"in {name}: {outcome}")
sys.exit(outcome.startswith("TypeError") != (name == "packages") and "changed: another outcome than described")
PYTHON
# Warnings are left out; a failure shows them. Python reads no .pth file of a folder in PYTHONPATH, so the folder that
# the one of nvidia-cutlass-dsl adds is named here.
see() {
    local path="$folder/$1:$folder/$1/nvidia_cutlass_dsl/dsl_packages"
    PYTHONPATH="$path" venv/bin/python seen.py "$1" 2> log || { cat log; exit 1; }
}
see packages
mv packages site-packages
see site-packages
echo "as described"
