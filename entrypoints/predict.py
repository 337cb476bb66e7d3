"""python -m entrypoints.predict KEY=VALUE ... (see conf/predict.yaml)"""

from slmflow.cli import run_entry_point

if __name__ == "__main__":
    run_entry_point("predict")
