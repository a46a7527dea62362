"""Update onnxruntime-web, with which an exported page computes: `python -m dp.ui.web.update_runtime VERSION`.

The package comes from npm. Two of its builds are kept, each as three files compressed with gzip: one for the processor
and one for a graphics processor (WebGPU).
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

RUNTIME = Path(__file__).with_name("runtime")
BUILDS = {  # the module that a page imports, the module that loads WebAssembly, and that
    "wasm": ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"),
    "webgpu": ("ort.jspi.min.mjs", "ort-wasm-simd-threaded.jspi.mjs", "ort-wasm-simd-threaded.jspi.wasm"),
}
VERSION = "version.json"


def main() -> None:
    [version] = sys.argv[1:]
    with TemporaryDirectory() as folder:
        command = ["npm", "pack", "--silent", f"onnxruntime-web@{version}"]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        with tarfile.open(next(Path(folder).glob("*.tgz"))) as package:
            for name in sum(BUILDS.values(), ()):
                content = package.extractfile(f"package/dist/{name}").read()
                # Without a date, so that the same version gives the same files.
                (RUNTIME / f"{name}.gz").write_bytes(gzip.compress(content, mtime=0))
    (RUNTIME / VERSION).write_text(json.dumps({"onnxruntime-web": version}) + "\n", encoding="utf-8")
    print(f"onnxruntime-web {version}: {sum(path.stat().st_size for path in RUNTIME.glob('*.gz')):,} bytes")


if __name__ == "__main__":
    main()
