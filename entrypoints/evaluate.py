"""python -m entrypoints.evaluate KEY=VALUE ... (see conf/evaluate.yaml)"""

from slmflow.cli import run_entry_point

if __name__ == "__main__":
    run_entry_point("evaluate")
