"""python -m entrypoints.custom_onnx KEY=VALUE ... (see conf/custom_onnx.yaml)"""

from slmflow.cli import run_entry_point

if __name__ == "__main__":
    run_entry_point("custom_onnx")
