#!/usr/bin/env bash
# Install flwr_splitkd for a device, an edge or a cloud into a virtual environment, and leave the torch that is there as it is.
#
# The images (deploy/Dockerfile) are made with this script, and a machine without Docker can be, too: deploy/README.md.
# What a JetPack or an image of NVIDIA's brings (torch, numpy that it was built for, CUDA's packages) goes into a file of
# constraints, so that pip has to fail where it would have to replace any of it. Afterwards torch is looked at again.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

usage() {
    cat <<'TEXT'
Usage: install.sh --role device|edge|cloud --into FOLDER [options] [SOURCE]

  --role ROLE           what the machine is: device, edge or cloud
  --into FOLDER         the virtual environment; made unless it is there
  --torch nvidia        the torch that is there, in FOLDER or in PYTHON's own packages; it has to be one with CUDA (default)
          keep          the same, with or without CUDA
          cuda, cpu     install torch's own build, with or without CUDA: for servers
  --torch-version V     for cuda and cpu (2.13.0)
  --flower VERSION      of Flower, the same on all machines of a federation (1.41.* from Python 3.11 on, 1.30.* on Python 3.10)
  --extras NAMES        extras of flwr_splitkd, with commas (device: fast; cloud: fast,prometheus; edge:
                        fast,metrics,prometheus,report)
  --python PROGRAM      what the environment is made with (python3)
  SOURCE                a clone of the repository, or a wheel (the clone that this script is in)

TORCH_INDEX_URL is where torch comes from with cuda and cpu: https://download.pytorch.org/whl/cpu for cpu, pip's own index for
cuda. Set it to another, or to nothing for pip's own.
TEXT
}

die() {
    echo "install.sh: $*" >&2
    exit 1
}

role='' into='' torch=nvidia torch_version=2.13.0 flower='' extras='' python=python3 source=$(dirname "$here")
while [ $# -gt 0 ]; do
    case $1 in
    --role) role=${2-} && shift 2 ;;
    --into) into=${2-} && shift 2 ;;
    --torch) torch=${2-} && shift 2 ;;
    --torch-version) torch_version=${2-} && shift 2 ;;
    --flower) flower=${2-} && shift 2 ;;
    --extras) extras=${2-} && shift 2 ;;
    --python) python=${2-} && shift 2 ;;
    -h | --help) usage && exit 0 ;;
    -*) die "there is no option $1; see install.sh --help" ;;
    *) source=$1 && shift ;;
    esac
done

case $role in
device) extras=${extras:-fast} ;;
cloud) extras=${extras:-fast,prometheus} ;;
edge) extras=${extras:-fast,metrics,prometheus,report} ;;
*) die "--role is '$role'; expected device, edge or cloud" ;;
esac
case $torch in
nvidia | keep | cuda | cpu) ;;
*) die "--torch is '$torch'; expected nvidia, keep, cuda or cpu" ;;
esac
[ -n "$into" ] || die "--into is missing; expected a folder for the virtual environment, such as /opt/flwr_splitkd"
[ -e "$source" ] || die "the source '$source' is not there; expected a clone of the repository, or a wheel"

version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') || die "'$python' cannot be run"
case $version in
3.[0-9] | 2.*)
    die "$python is Python $version; expected 3.10 or newer. JetPack 5 has 3.8: deploy/README.md says what can be done there"
    ;;
3.10) newest='1.30.*' ;; # the last one for it
*) newest='1.41.*' ;;
esac
if [ -z "$flower" ]; then
    flower=$newest
    echo "Flower $flower: Python is $version. SuperLink and SuperNodes must agree in major and minor version."
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# What pip would say of the whole environment belongs to whoever made it; only what is new is ours to show.
conflicts() { "$into/bin/python" -m pip check 2>/dev/null | grep -v '^No broken requirements' | sort || true; }

# "version cuda folder" of torch. From its files: importing it may need a driver, which a build of an image does not have.
torch_state() {
    "$into/bin/python" - <<'PY'
import importlib.metadata, importlib.util, pathlib, runpy, sys

spec = importlib.util.find_spec("torch")
if spec is None or not spec.origin:
    sys.exit(3)
facts = runpy.run_path(str(pathlib.Path(spec.origin).with_name("version.py")))
print(importlib.metadata.version("torch"), facts.get("cuda") or "none", pathlib.Path(spec.origin).parent)
PY
}

# Its version is one that this package takes: NVIDIA's 2.6.0a0 came before 2.6, which pip would say in more words.
check_torch_version() {
    local least
    least=$(sed -nE 's/^ *"torch>=([0-9.]+)".*/\1/p' "$source/pyproject.toml" 2>/dev/null || true)
    [ -n "$least" ] || return 0 # a wheel: pip will say it
    "$into/bin/python" - "$1" "$least" <<'PY' || die "torch is $1; expected $least or newer. Take an image, or a wheel, with a newer one"
import sys

from pip._vendor.packaging.version import Version

sys.exit(Version(sys.argv[1]) < Version(sys.argv[2]))
PY
}

# -- the environment -------------------------------------------------------------------------------------------------------

if [ ! -x "$into/bin/python" ]; then
    options=()
    case $torch in
    # Sees the packages of an image, or of JetPack, and has its own beside them: theirs stay as they are.
    nvidia | keep) options+=(--system-site-packages) ;;
    esac
    # Images without ensurepip (Debian's python3-venv) have a pip of their own that the environment sees.
    "$python" -c 'import ensurepip' 2>/dev/null || options+=(--without-pip)
    "$python" -m venv ${options[@]+"${options[@]}"} "$into"
fi
"$into/bin/python" -m pip --version >/dev/null 2>&1 ||
    die "there is no pip in $into or in $python's packages; install python3-venv or python3-pip first"

# NVIDIA's images since 25.03 hold hundreds of packages at the versions that they were made with, by PIP_CONSTRAINT. Some are older
# than what transformers needs, and pip would refuse everything. What must not change is held below, by name.
unset PIP_CONSTRAINT

case $torch in
cpu) index=${TORCH_INDEX_URL-https://download.pytorch.org/whl/cpu} ;;
cuda) index=${TORCH_INDEX_URL-} ;;
esac
case $torch in
cuda | cpu)
    "$into/bin/python" -m pip install --quiet ${index:+--index-url "$index"} "torch==$torch_version"
    ;;
esac

# -- what must not change --------------------------------------------------------------------------------------------------

before=$(torch_state) || die "there is no torch in $into or in $python's packages; expected the one that NVIDIA made for this \
board. Take an image that has it, or install it into $into first (deploy/README.md); --torch cpu or cuda is for servers"
echo "torch before: $before"
check_torch_version "${before%% *}"
case $torch:$before in
nvidia:*' none '* | cuda:*' none '*)
    die "torch ${before%% *} has no CUDA; expected a build with it. For training on the processor alone say --torch keep or cpu"
    ;;
esac
"$into/bin/python" -m pip list --format=freeze 2>/dev/null |
    grep -iE '^(torch|pytorch|triton|nvidia|cuda|numpy=)' >"$work/constraints.txt"
conflicts >"$work/conflicts"

# -- the package -----------------------------------------------------------------------------------------------------------

"$into/bin/python" -m pip install --quiet --constraint "$work/constraints.txt" "flwr==$flower" "${source}[$extras]"

after=$(torch_state)
echo "torch after:  $after"
[ "$after" = "$before" ] || die "torch was '$before' and is '$after' now; nothing of it should have changed. Do not use $into"

# numpy's binary interface has to be the one that torch was built for, and every module that the role needs has to load.
case $role in
device) modules='flwr_splitkd.clients.split_kd flwr_splitkd.clients.scct' programs='flower-supernode' ;;
edge) modules='flwr_splitkd.strategies.split_kd flwr_splitkd.strategies.scct' programs='flower-superlink flwr flwr-splitkd' ;;
cloud) modules='flwr_splitkd.tiers.cloud flwr_splitkd.cli.cloud' programs='flwr-splitkd' ;;
esac
# shellcheck disable=SC2086 # words
"$into/bin/python" - $modules <<'PY'
import importlib, sys

import numpy, torch

torch.from_numpy(numpy.zeros(1)).numpy()
for name in sys.argv[1:]:
    importlib.import_module(name)
PY
for program in $programs; do
    [ -x "$into/bin/$program" ] || die "$into/bin/$program is missing"
done
comm -13 "$work/conflicts" <(conflicts) >"$work/new-conflicts"
if [ -s "$work/new-conflicts" ]; then
    echo 'pip finds these conflicts, which were not there before (of packages that this one does not use, unless it is named):'
    cat "$work/new-conflicts"
fi
"$into/bin/python" - <<'PY'
from importlib.metadata import version

print(*(f"{name} {version(name)}" for name in ("flwr_splitkd", "flwr", "torch", "transformers", "numpy")), sep=", ")
PY
