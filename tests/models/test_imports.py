import subprocess
import sys

FOREIGN = ("ray", "datasets", "numba", "torch._dynamo", "transformers", "seqmill.pipeline", "seqmill.packing")


def test_importing_the_models_pulls_in_neither_pipeline_nor_heavy_libraries() -> None:
    code = f"import sys, seqmill.models; print([name for name in {FOREIGN} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
