"""Build the wheel and be its first user: only vqkit inside, three dependencies, and nothing heavy loaded on import.

It is installed into a folder of its own and used there: it may load nothing but itself, torch, einops, safetensors, and
what those depend on.

    python scripts/check_wheel.py
"""

import subprocess
import sys
import tempfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORE = {"torch", "einops", "safetensors"}
USE = """
import sys
import torch, einops, safetensors.torch
before = set(sys.modules)
import vqkit
from importlib.metadata import version
assert vqkit.__file__.startswith(sys.argv[1]), vqkit.__file__
assert version("vqkit") == vqkit.__version__
quantizer = vqkit.Quantizer("ema", dim=8, codebook_size=16)
output = quantizer.eval()(torch.randn(2, 5, 8))
assert torch.equal(quantizer.decode(output.indices), output.quantized)
with vqkit.TokenShardWriter("tokens", quantizer) as writer:
    writer.add(output.indices, ["first", "second"])
shards = vqkit.TokenShards("tokens")
assert torch.equal(torch.stack([sample["indices"] for sample in shards]), output.indices)
import re
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
allowed, pending = {"vqkit", "numpy"}, {"torch", "einops", "safetensors"}  # numpy: torch loads it where it is installed
while pending:
    name = pending.pop()
    allowed.add(name)
    try:
        needs = [re.match(r"[A-Za-z0-9._-]+", need)[0] for need in requires(name) or [] if "extra ==" not in need]
    except PackageNotFoundError:  # needed on another platform
        needs = []
    pending |= {need.lower().replace("_", "-") for need in needs} - allowed
owners = packages_distributions()
for module in {name.partition(".")[0] for name in set(sys.modules) - before}:
    packages = {owner.lower().replace("_", "-") for owner in owners.get(module, [])}
    assert not packages or packages & allowed, f"importing vqkit loads {module}, which it does not depend on"
print(f"vqkit {vqkit.__version__} imports, quantizes and writes token shards with its core dependencies alone")
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        build = [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "--wheel-dir",
            directory,
            str(ROOT),
        ]
        subprocess.run(build, check=True)
        (wheel,) = folder.glob("*.whl")
        check_content(wheel)
        target = folder / "site"
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)]
        subprocess.run(install, check=True)
        environment = {"PYTHONPATH": str(target), "PATH": ""}
        subprocess.run([sys.executable, "-W", "error", "-c", USE, str(target)], check=True, cwd=folder, env=environment)


def check_content(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = next(name for name in names if name.endswith("METADATA"))
        headers = HeaderParser().parsestr(archive.read(metadata).decode())
    outside = [name for name in names if not name.startswith(("vqkit/", "vqkit-"))]
    if outside:
        sys.exit(f"the wheel holds more than vqkit: {outside}")
    if "vqkit/py.typed" not in names:
        sys.exit("the wheel lacks vqkit/py.typed: its types would be ignored")
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "vqkit").rglob("*.[chi]*")}
    if not sources or sources - set(names):
        sys.exit(f"the wheel lacks {sorted(sources - set(names))}: the compiled search could not be built from it")
    needed = {line.split(";")[0].strip() for line in headers.get_all("Requires-Dist", []) if "extra ==" not in line}
    if {name.split(">")[0].split("=")[0] for name in needed} != CORE:
        sys.exit(f"the wheel depends on {sorted(needed)}: expected {sorted(CORE)} alone")
    print(f"{wheel.name}: {len(names)} files, all of vqkit; needs {', '.join(sorted(needed))}")


if __name__ == "__main__":
    main()
