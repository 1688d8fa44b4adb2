"""What became of our Triton kernels for GPUs that are not there: registers, spills, instructions.

Spilled are bytes of a thread, loads instructions that read memory, wide ones 128 bits at a time.

Run: `cd tests && ../.venv/bin/python -m benchmarks.triton_kernels` (Linux). Printed as Markdown.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from triton_aot import CAPABILITIES, kernels


def main() -> None:
    """Compiles for all capabilities, and prints a table."""
    print(
        "| kernel | GPU | registers | spilled | shared KiB | wide loads | others | tensor cores |"
    )
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for capability in CAPABILITIES:
        with tempfile.TemporaryDirectory() as folder:
            for name, found in kernels(capability, Path(folder)).items():
                wide = found.loads.get(128, 0)
                narrow = sum(found.loads.values()) - wide
                print(
                    f"| {name} | sm_{capability} | {found.registers} | {found.spilled} | "
                    f"{found.shared / 1024:.1f} | {wide} | {narrow} | {found.tensor_cores} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
