"""What would be applied to a cluster? Prints the manifests of an overlay.

    python k8s/render.py dev | kubectl apply -f -
    python k8s/render.py prod

Takes kustomize or kubectl, whichever is there, else builds the pinned kustomize with Go, once, below .cache/. The
overlays read settings that lie above their folder, which kustomize allows only when told so. Exit 0; 1 kustomize
refused; 2 no such overlay; 3 none of the three tools is here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OVERLAYS = ROOT / "k8s" / "overlays"
KUSTOMIZE = "v5.5.0"
CACHE = ROOT / ".cache" / f"kustomize-{KUSTOMIZE}"
NO_TOOL = 3


def main(argv: list[str]) -> int:
    """Print one overlay. Returns the exit code."""
    names = sorted(path.name for path in OVERLAYS.iterdir())
    if len(argv) != 1 or argv[0] not in names:
        print(f"python k8s/render.py {'|'.join(names)}", file=sys.stderr)
        return 2
    command = kustomize()
    if command is None:
        print(
            "k8s/render.py: neither kustomize nor kubectl nor go is on the PATH; install one of them", file=sys.stderr
        )
        return NO_TOOL
    return subprocess.run(
        [*command, "--load-restrictor", "LoadRestrictionsNone", str(OVERLAYS / argv[0])], check=False
    ).returncode


def kustomize() -> list[str] | None:
    """The command that builds a kustomization; None if there is none and Go is missing, too.

    Raises:
        subprocess.CalledProcessError: Go is here and cannot build it.
    """
    own = CACHE / "kustomize"
    if not own.exists():
        if found := shutil.which("kustomize"):
            return [found, "build"]
        if found := shutil.which("kubectl"):
            return [found, "kustomize"]
        if not (go := shutil.which("go")):
            return None
        environment = {**os.environ, "GOBIN": str(CACHE), "GOFLAGS": "-mod=mod"}
        module = f"sigs.k8s.io/kustomize/kustomize/v5@{KUSTOMIZE}"
        subprocess.run([go, "install", module], env=environment, check=True, stdout=sys.stderr)
    return [str(own), "build"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
