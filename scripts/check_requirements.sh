#!/usr/bin/env bash
# Says what this machine lacks before anything is installed. Usage: check_requirements.sh PYTHON
set -u
python=${1:-python3}
missing=()
command -v "$python" >/dev/null || missing+=("Python 3.11 or later (Debian/Ubuntu: python3)")
if command -v "$python" >/dev/null; then
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    missing+=("Python 3.11 or later; $python is $("$python" --version 2>&1) (make PYTHON=python3.11 ...)")
  "$python" -c 'import venv, ensurepip' 2>/dev/null || missing+=("the venv module (Debian/Ubuntu: python3-venv)")
fi
command -v g++ >/dev/null || missing+=("a C++ compiler, for torch.compile (Debian/Ubuntu: g++)")
free_kib=$(df --output=avail -k . | tail -n 1)
[ "$free_kib" -ge $((8 * 1024 * 1024)) ] || missing+=("8 GiB of free disk; here are $((free_kib / 1024 / 1024)) GiB")
[ ${#missing[@]} -eq 0 ] && exit 0
echo "vqkit needs, and this machine lacks:" >&2
printf -- '- %s\n' "${missing[@]}" >&2
exit 1
